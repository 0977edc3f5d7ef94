"""What is kept of a user from night to night, as columns of Arrow: the past as the model left it, and the steps after it.

The steps that are kept, the *window*, are whole sessions: the last one, which may still grow, and where reasons are asked for as many
before it as fit, so that these can name items of past visits. They depend on the history alone, not on when it was seen.

Shape suffixes: B rows, S sessions, N tokens, M memory, F further features of an event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from llm_spark.errors import UserError
from llm_spark.model.history import HistoryBatch, stretches
from llm_spark.model.network import NextEventModel
from llm_spark.model.past import Past
from llm_spark.scoring.histories import list_column, list_offsets, list_values

PAST_TYPE = pa.struct(
    [
        ("num_sessions", pa.int64()),
        ("num_events", pa.int64()),
        ("first_event_time", pa.int64()),
        ("previous_event_time", pa.int64()),
        ("latest_event_time", pa.int64()),
        ("value_sum", pa.float64()),
        ("last_value", pa.float32()),
        ("ended_at", pa.timestamp("us", tz="UTC")),
        ("session_id", pa.string()),
    ]
)
STATE_SCHEMA = pa.schema(
    [
        ("memory", pa.binary()),
        ("past", PAST_TYPE),
        ("earlier_tokens", pa.list_(pa.int32())),
        ("earlier_event_types", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),
        ("event_types", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
        ("features", pa.list_(pa.float32())),
        ("event_times", pa.list_(pa.int64())),
        ("session_starts", pa.list_(pa.int32())),
        ("session_ids", pa.list_(pa.string())),
        ("sessions_ended_at", pa.list_(pa.timestamp("us", tz="UTC"))),
    ]
)
PAST_DDL = (
    "struct<num_sessions: bigint, num_events: bigint, first_event_time: bigint, previous_event_time: bigint, latest_event_time: bigint, "
    "value_sum: double, last_value: float, ended_at: timestamp, session_id: string>"
)
STATE_DDL = (
    f"memory binary, past {PAST_DDL}, earlier_tokens array<int>, earlier_event_types array<int>, tokens array<int>, event_types array<int>, "
    "values array<float>, features array<float>, event_times array<bigint>, session_starts array<int>, session_ids array<string>, "
    "sessions_ended_at array<timestamp>"
)
_MICROS = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class KeptState:
    """What the rows begin with: the stored state of their users, that of a newcomer where there is none."""

    past: Past
    num_events_B: np.ndarray
    """int64: the events of the past."""
    last_value_B: np.ndarray
    """float32: the value of the last of them; nan where it had none."""
    last_session: pa.StructArray
    """ended_at and session_id of the last past session; null where there is none."""
    earlier_tokens: pa.ListArray
    earlier_event_types: pa.ListArray

    @classmethod
    def of_rows(cls, rows: pa.RecordBatch, model: NextEventModel, model_id: str) -> KeptState:
        """From the state's columns, where the rows have them. Raises UserError for the state of another model."""
        num_rows = rows.num_rows
        newcomers = model.newcomers(num_rows)
        nothing = pa.array([[]] * num_rows, pa.list_(pa.int32()))
        if "past" not in rows.schema.names:
            session = pa.StructArray.from_arrays(
                [pa.nulls(num_rows, _MICROS), pa.nulls(num_rows, pa.string())], ["ended_at", "session_id"]
            )
            numbers = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, np.nan, dtype=np.float32)
            return cls(newcomers, *numbers, session, nothing, nothing)
        others = set(rows.column("model_id").drop_null().to_pylist()) - {model_id}
        if others:
            raise UserError(
                f"user_memory holds the state of model {min(others)} where {model_id} scores: run the stage again"
            )
        field = {entry.name: entry_of(rows.column("past"), entry.name) for entry in PAST_TYPE}
        integers = {name: _integers(field[name]) for name in field if pa.types.is_int64(PAST_TYPE.field(name).type)}
        past = Past(
            memory_BM=_memories(rows.column("memory"), newcomers.memory_BM),
            num_sessions_B=torch.from_numpy(integers["num_sessions"]),
            first_time_B=torch.from_numpy(integers["first_event_time"]),
            previous_time_B=torch.from_numpy(integers["previous_event_time"]),
            latest_time_B=torch.from_numpy(integers["latest_event_time"]),
            spent_B=torch.from_numpy(field["value_sum"].fill_null(0.0).to_numpy(zero_copy_only=False).copy()),
        )
        last_value_B = field["last_value"].to_numpy(zero_copy_only=False).astype(np.float32)
        ended_at = field["ended_at"].cast(_MICROS)
        session = pa.StructArray.from_arrays([ended_at, field["session_id"]], ["ended_at", "session_id"])
        earlier = (list_column(rows, name) for name in ("earlier_tokens", "earlier_event_types"))
        return cls(past, integers["num_events"], last_value_B, session, *earlier)


def entry_of(structs: pa.StructArray, name: str) -> pa.Array:
    """One field, null where the struct is."""
    return pc.struct_field(structs, name)


def window_begin(tails: HistoryBatch, max_tokens: int) -> Tensor:
    """How many of each row's sessions come before its window [B]: all but the last, or, where more of them have at most `max_tokens` events
    together, all but these. With `max_tokens` 0 the window is the last session.
    """
    first_session_B = tails.first_session_B[:-1]
    num_sessions_B = tails.first_session_B.diff()
    earliest_B = tails.row_offsets[1:] - max_tokens
    fits_B = torch.searchsorted(tails.session_offsets, earliest_B) - first_session_B
    return fits_B.clamp(min=0).minimum((num_sessions_B - 1).clamp(min=0))


def state_columns(
    rows: pa.RecordBatch,
    kept: KeptState,
    tails: HistoryBatch,
    windows: HistoryBatch,
    num_folded_B: Tensor,
    max_tokens: int,
) -> pa.RecordBatch:
    """The users' new states, STATE_SCHEMA: of the `tails`, all steps since the kept past, the first sessions were folded into the past that the
    `windows` begin with.
    """
    past = windows.past
    assert past is not None
    row_begin_B, first_session_B = tails.row_offsets[:-1], tails.first_session_B[:-1]
    begin_B = tails.session_offsets[first_session_B + num_folded_B]
    window_N = stretches(begin_B, tails.row_offsets[1:])
    earlier_N, earlier_offsets = _earlier(kept, tails, begin_B, max_tokens)
    window_S = stretches(first_session_B + num_folded_B, tails.first_session_B[1:])
    session_offsets = _int32(windows.first_session_B)
    starts_S = windows.session_offsets[:-1] - torch.repeat_interleave(
        windows.row_offsets[:-1], windows.first_session_B.diff()
    )

    def steps(column: Tensor, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(_int32(windows.row_offsets), pa.array(column.numpy()).cast(kind))

    def earlier(kept_lists: pa.ListArray, column: Tensor) -> pa.ListArray:
        both = torch.cat([list_values(kept_lists, np.int64), column])
        return pa.ListArray.from_arrays(earlier_offsets, pa.array(both[earlier_N].numpy(), pa.int32()))

    def sessions(name: str) -> pa.ListArray:
        return pa.ListArray.from_arrays(
            session_offsets, list_column(rows, name).flatten().take(pa.array(window_S.numpy()))
        )

    num_features = tails.features_NF.shape[1]
    return pa.RecordBatch.from_arrays(
        [
            _binaries(past.memory_BM),
            _past_column(rows, kept, tails, past, num_folded_B, begin_B - row_begin_B),
            earlier(kept.earlier_tokens, tails.tokens_N),
            earlier(kept.earlier_event_types, tails.event_types_N),
            steps(tails.tokens_N[window_N], pa.int32()),
            steps(tails.event_types_N[window_N], pa.int32()),
            pa.ListArray.from_arrays(_int32(windows.row_offsets), _floats(windows.values_N)),
            pa.ListArray.from_arrays(_int32(windows.row_offsets * num_features), _floats(windows.features_NF.flatten()))
            if num_features
            else pa.nulls(rows.num_rows, pa.list_(pa.float32())),
            steps(windows.event_times_N, pa.int64()),
            pa.ListArray.from_arrays(session_offsets, pa.array(starts_S.numpy(), pa.int32())),
            sessions("session_ids"),
            sessions("sessions_ended_at").cast(pa.list_(_MICROS)),
        ],
        schema=STATE_SCHEMA,
    )


def _past_column(
    rows: pa.RecordBatch, kept: KeptState, tails: HistoryBatch, past: Past, num_folded_B: Tensor, num_events_B: Tensor
) -> pa.StructArray:
    is_folded_B = (num_folded_B > 0).numpy()
    last_value_B = kept.last_value_B.copy()
    last_N = (tails.row_offsets[:-1] + num_events_B - 1).numpy()[is_folded_B]
    last_value_B[is_folded_B] = tails.values_N.numpy()[last_N]
    last_S = (tails.first_session_B[:-1] + num_folded_B - 1).numpy()
    session = [
        # The sessions of the rows, then those that were kept: one of either for each row.
        pa.concat_arrays([list_column(rows, name).flatten().cast(kind), entry_of(kept.last_session, field)]).take(
            pa.array(np.where(is_folded_B, last_S, tails.num_sessions + np.arange(rows.num_rows)))
        )
        for name, field, kind in (
            ("sessions_ended_at", "ended_at", _MICROS),
            ("session_ids", "session_id", pa.string()),
        )
    ]
    fields = [
        pa.array(past.num_sessions_B.numpy()),
        pa.array(kept.num_events_B + num_events_B.numpy()),
        pa.array(past.first_time_B.numpy()),
        pa.array(past.previous_time_B.numpy()),
        pa.array(past.latest_time_B.numpy()),
        pa.array(past.spent_B.numpy()),
        _floats(torch.from_numpy(last_value_B)),
        *session,
    ]
    return pa.StructArray.from_arrays(fields, fields=list(PAST_TYPE), mask=pa.array(~past.is_known_B.numpy()))


def _earlier(kept: KeptState, tails: HistoryBatch, begin_B: Tensor, max_tokens: int) -> tuple[Tensor, pa.Array]:
    """Where the steps before each row's window stand that are among the user's newest `max_tokens`: in the kept lists laid end to end and then
    the tails; and the offsets of the rows among them.
    """
    kept_offsets = list_offsets(kept.earlier_tokens)
    num_before_B = begin_B - tails.row_offsets[:-1]
    num_wanted_B = (max_tokens - (tails.row_offsets[1:] - begin_B)).clamp(min=0)
    from_tail_B = num_wanted_B.minimum(num_before_B)
    from_kept_B = (num_wanted_B - from_tail_B).minimum(kept_offsets.diff())
    shift = int(kept_offsets[-1])
    begins = torch.stack([kept_offsets[1:] - from_kept_B, shift + begin_B - from_tail_B], dim=1).flatten()
    ends = torch.stack([kept_offsets[1:], shift + begin_B], dim=1).flatten()
    offsets = torch.nn.functional.pad((from_tail_B + from_kept_B).cumsum(0), (1, 0))
    return stretches(begins, ends), _int32(offsets)


def _memories(column: pa.Array, newcomer_BM: Tensor) -> Tensor:
    """The vectors [B, M]; a newcomer's where there is none."""
    memory_BM = newcomer_BM.clone()
    known_B = torch.from_numpy(column.is_valid().to_numpy(zero_copy_only=False))
    content = b"".join(column.drop_null().to_pylist())
    memory_BM[known_B] = torch.from_numpy(np.frombuffer(content, dtype="<f4").copy()).view(
        -1 if content else int(known_B.sum()), memory_BM.shape[1]
    )
    return memory_BM


def _binaries(memory_BM: Tensor) -> pa.Array:
    vectors_BM = memory_BM.numpy().astype("<f4")
    return pa.array([vector_M.tobytes() for vector_M in vectors_BM], pa.binary())


def _integers(column: pa.Array) -> np.ndarray:
    return column.fill_null(0).to_numpy(zero_copy_only=False).copy()


def _int32(offsets: Tensor) -> pa.Array:
    return pa.array(offsets.numpy(), pa.int32())


def _floats(numbers: Tensor) -> pa.Array:
    """float32, null where nan."""
    return pa.array(numbers.numpy(), pa.float32(), mask=numbers.isnan().numpy())
