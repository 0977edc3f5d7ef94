"""The two kernels: the rank of every target beside the list that it is missed in or found on, and every user's top items.

Each takes and gives an iterator of Arrow record batches, as Spark's `mapInArrow` wants:

    kernel = functools.partial(target_ranks, artifact_path=path, batch_rows=256, list_length=20)
    sequences.mapInArrow(kernel, TARGET_RANKS_DDL)

A worker process loads a model once. Memory is bounded by `batch_rows`, never by the number of users. What a row
gets does not depend on the rows beside it, up to the rounding of float32.

Shape suffixes: B rows, P targets, K list length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llm_spark.errors import UserError
from llm_spark.model.artifact import LoadedModel, load_artifact, read_manifest
from llm_spark.model.explain import explain
from llm_spark.model.history import HistoryBatch
from llm_spark.model.ranking import rank_and_list, top_items
from llm_spark.scoring.histories import history_batch, like_shaped_slices
from llm_spark.scoring.reasons import REASONS_TYPE, no_reasons, reason_columns

TARGET_RANKS_DDL = (
    "sequence_id string, user_id string, position int, session_position int, token int, rank int, log_prob float, "
    "top array<int>, confidence float"
)
RECOMMEND_DDL = (
    "user_id string, rank int, token int, score float, probability float, "
    "reasons array<struct<token: int, weight: float>>, memory_weight float"
)

_TARGET_RANKS_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.string()),
        ("user_id", pa.string()),
        ("position", pa.int32()),
        ("session_position", pa.int32()),
        ("token", pa.int32()),
        ("rank", pa.int32()),
        ("log_prob", pa.float32()),
        ("top", pa.list_(pa.int32())),
        ("confidence", pa.float32()),
    ]
)
RECOMMEND_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("token", pa.int32()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("reasons", REASONS_TYPE),
        ("memory_weight", pa.float32()),
    ]
)

_loaded: dict[str, LoadedModel] = {}


def target_ranks(
    batches: Iterator[pa.RecordBatch], artifact_path: str, batch_rows: int, list_length: int
) -> Iterator[pa.RecordBatch]:
    """One row for each target of the sequences: its rank among all items, its log probability, and the items that rank first.

    In: sequence_id, user_id, tokens, event_types, values, session_starts, event_times, first_target, and features where
    the model has any. Out
    (TARGET_RANKS_DDL): `position` in the row, `session_position` in its session (0: a session's first item,
    predicted from the memory); where the target token is unknown (1) to the vocabulary or the model, rank and
    log_prob are null. `top` holds the `list_length` best tokens (all, where the model has fewer), best first, ties by token,
    and `confidence` is the probability of the first of them.
    """
    loaded = loaded_model(artifact_path)
    model = loaded.model
    for batch in batches:
        for rows in like_shaped_slices(batch, batch_rows):
            histories = history_batch(rows, len(model.config.features))
            with torch.inference_mode():
                contexts_PD, targets_P = model.forward_states(histories)
                ranked = rank_and_list(contexts_PD, targets_P, list_length, *model.output_layer(), loaded.temperature)
            row_P, position_P, session_position_P = _target_places(histories)
            tokens_P = histories.tokens_N.numpy()[histories.row_offsets.numpy()[row_P] + position_P]
            unknown_P = ranked.ranks_P.numpy() == 0
            yield pa.RecordBatch.from_arrays(
                [
                    rows.column("sequence_id").take(pa.array(row_P)),
                    rows.column("user_id").take(pa.array(row_P)),
                    pa.array(position_P, pa.int32()),
                    pa.array(session_position_P, pa.int32()),
                    pa.array(tokens_P, pa.int32()),
                    pa.array(ranked.ranks_P.numpy(), pa.int32(), mask=unknown_P),
                    pa.array(ranked.log_probabilities_P.numpy(), pa.float32(), mask=unknown_P),
                    _lists(ranked.listed_PK.numpy()),
                    pa.array(ranked.confidence_P.numpy(), pa.float32()),
                ],
                schema=_TARGET_RANKS_SCHEMA,
            )


def recommend(
    batches: Iterator[pa.RecordBatch],
    artifact_path: str,
    k: int,
    batch_rows: int,
    exclude_seen: bool,
    num_reasons: int = 0,
    num_explained: int = 1,
) -> Iterator[pa.RecordBatch]:
    """Each user's k most probable next items, best first; fewer where fewer items are left.

    In: user_id, tokens, event_types, values, session_starts, event_times, and features where the model has any, one row
    a user; and, where given, a boolean `session_open`. Where that is false the user's last session has ended, and what is predicted is the
    first item of the next visit, from the long-term memory; where true, or not given, the next item of the current
    session. Out (RECOMMEND_DDL): `score` is the logit, `probability` the softmax over all items at
    the temperature that was fitted on validation. With
    `exclude_seen`, items of the row's history are left out of the list, and the probabilities of the others stay as
    they are. `reasons` are the `num_reasons` past items that raised the score most, strongest first (model/explain.py),
    `memory_weight` is what all sessions before the current one added to it together; both are given for the first
    `num_explained` of each list, and null for the others and where `num_reasons` is 0.
    """
    loaded = loaded_model(artifact_path)
    for batch in batches:
        for rows in like_shaped_slices(batch, batch_rows):
            histories = history_batch(rows, len(loaded.model.config.features))
            row_of_token_N = torch.repeat_interleave(torch.arange(rows.num_rows), histories.row_offsets.diff())
            seen = (row_of_token_N, histories.tokens_N) if exclude_seen else None
            yield recommended(loaded, rows, histories, seen, k, num_reasons, num_explained)


def recommended(
    loaded: LoadedModel,
    rows: pa.RecordBatch,
    histories: HistoryBatch,
    seen: tuple[Tensor, Tensor] | None,
    k: int,
    num_reasons: int,
    num_explained: int,
) -> pa.RecordBatch:
    """What `recommend` gives for these rows, of which the model is to read the `histories`; `seen` are rows and tokens to leave out."""
    model = loaded.model
    starts_session_B = None
    if "session_open" in rows.schema.names:
        is_open = rows.column("session_open").fill_null(True)
        starts_session_B = ~torch.from_numpy(is_open.to_numpy(zero_copy_only=False).astype(bool))
    with torch.inference_mode():
        contexts_BD = model.next_step(histories, starts_session_B)
        tokens_BK, scores_BK, probabilities_BK = top_items(
            contexts_BD, k, *model.output_layer(), seen, loaded.temperature
        )
    listed_BK = torch.isfinite(scores_BK)
    listed = listed_BK.numpy()
    row_of_item, place = listed.nonzero()
    if num_reasons:
        explained_tokens = tokens_BK[:, :num_explained].clone()
        explanation = explain(model, histories, contexts_BD, explained_tokens, starts_session_B)
        reasons = reason_columns(explanation, histories, model.num_tokens, num_reasons, listed_BK)
    else:
        reasons = no_reasons(len(row_of_item))
    return pa.RecordBatch.from_arrays(
        [
            rows.column("user_id").take(pa.array(row_of_item)),
            pa.array(place + 1, pa.int32()),
            pa.array(tokens_BK.numpy()[listed], pa.int32()),
            pa.array(scores_BK.numpy()[listed], pa.float32()),
            pa.array(probabilities_BK.numpy()[listed], pa.float32()),
            *reasons,
        ],
        schema=RECOMMEND_SCHEMA,
    )


def _lists(tokens_PK: np.ndarray) -> pa.ListArray:
    num_rows, length = tokens_PK.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(num_rows + 1, dtype=np.int32) * np.int32(length)), pa.array(tokens_PK.ravel(), pa.int32())
    )


def _target_places(histories: HistoryBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, position in the row and position in the session of every target [P], in the rows' order."""
    num_tokens_B = histories.row_offsets.diff().numpy()
    index_N = np.arange(histories.num_tokens)
    row_N = np.repeat(np.arange(histories.num_rows), num_tokens_B)
    position_N = index_N - histories.row_offsets.numpy()[row_N]
    session_begin_N = np.repeat(histories.session_offsets[:-1].numpy(), histories.session_offsets.diff().numpy())
    targets = position_N >= histories.first_target_B.numpy()[row_N]
    return row_N[targets], position_N[targets], (index_N - session_begin_N)[targets]


def loaded_model(artifact_path: str) -> LoadedModel:
    """The model at this path, loaded once a process for as long as its manifest stays the same."""
    _, manifest_sha256 = read_manifest(artifact_path)
    known = _loaded.get(artifact_path)
    if known is None or known.manifest_sha256 != manifest_sha256:
        # Spark runs one worker a core: more threads in each would only wait for one another.
        torch.set_num_threads(1)
        known = load_artifact(artifact_path)
        if known.manifest_sha256 != manifest_sha256:
            raise UserError(f"the model at '{artifact_path}' was replaced while it was read: run the stage again")
        _loaded.clear()
        _loaded[artifact_path] = known
    return known
