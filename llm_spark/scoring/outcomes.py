"""The outcome kernels: for every user the chance of each configured event within its days, or the amount; and, to judge that
by, the same at every moment whose outcome is known.

As the kernels beside them, for Spark's `mapInArrow`:

    histories.mapInArrow(functools.partial(foretell, artifact_path=path, batch_rows=256), FORETELL_DDL)

Shape suffixes: B rows, L moments, O outcomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from llm_spark.errors import UserError
from llm_spark.model.explain import explain_outcomes
from llm_spark.model.history import HistoryBatch
from llm_spark.scoring.histories import history_batch, like_shaped_slices, with_moments
from llm_spark.scoring.kernels import loaded_model
from llm_spark.scoring.reasons import REASONS_TYPE, no_reasons, reason_columns
from llm_spark.scoring.states import KeptState

FORETELL_DDL = "user_id string, outcome string, value float, reasons array<struct<token: int, weight: float>>"

LABELLED_MOMENTS_DDL = "user_id string, outcome string, label double, prediction double, frequency float, tenure float, monetary float, recency float"

_FORETELL_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("outcome", pa.string()), ("value", pa.float32()), ("reasons", REASONS_TYPE)]
)

_LABELLED_MOMENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("outcome", pa.string()),
        ("label", pa.float64()),
        ("prediction", pa.float64()),
        *((name, pa.float32()) for name in ("frequency", "tenure", "monetary", "recency")),
    ]
)


def foretell(
    batches: Iterator[pa.RecordBatch], artifact_path: str, batch_rows: int, num_reasons: int = 0, model_id: str = ""
) -> Iterator[pa.RecordBatch]:
    """One row for each user and outcome: a probability, or an amount in the unit of the values.

    In: user_id, tokens, event_types, values, session_starts, event_times, and features where the model has any, one row a
    user; the columns of a state (scoring/states.py) where the rows begin with what model `model_id` kept of a past; and, where given,
    `asked_at` (epoch seconds): the days count from then on, and the user is known to have done
    nothing since the last event of the row. Not given, they count from that event. Out (FORETELL_DDL): null for a user
    without events; `reasons` are the `num_reasons` past items that raised the outcome's logit or log(1 + amount) most
    (model/explain.py), null where `num_reasons` is 0. Raises UserError when the model foretells no outcome.
    """
    model = loaded_model(artifact_path).model
    names = [outcome.name for outcome in model.config.outcomes]
    if not names:
        raise UserError(f"the model at '{artifact_path}' foretells no outcome: give model.outcomes and train it again")
    for batch in batches:
        for rows in like_shaped_slices(batch, batch_rows):
            histories = history_batch(rows, len(model.config.features))
            if "past" in rows.schema.names:
                histories = dataclasses.replace(histories, past=KeptState.of_rows(rows, model, model_id).past)
            elapsed_B = _elapsed(rows, histories)
            with torch.inference_mode():
                values_BO = model.outcomes(histories, elapsed_B).numpy()
            reasons = no_reasons(values_BO.size)[0]
            if num_reasons:
                is_told_BO = torch.ones(values_BO.shape, dtype=torch.bool)
                explanation = explain_outcomes(model, histories, elapsed_B)
                reasons = reason_columns(explanation, histories, model.num_tokens, num_reasons, is_told_BO)[0]
            users = rows.column("user_id").take(pa.array(np.repeat(np.arange(rows.num_rows), len(names))))
            outcomes = pa.array(names * rows.num_rows, pa.string())
            values = pa.array(values_BO.ravel(), pa.float32(), mask=np.isnan(values_BO.ravel()))
            yield pa.RecordBatch.from_arrays([users, outcomes, values, reasons], schema=_FORETELL_SCHEMA)


def labelled_moments(
    batches: Iterator[pa.RecordBatch], artifact_path: str, batch_rows: int, foretold: bool
) -> Iterator[pa.RecordBatch]:
    """One row for each moment and outcome whose label is known: what came about, and what the model says.

    In: the columns of `foretell` and the model's `moment_columns`. Out (LABELLED_MOMENTS_DDL):
    `label` is 0 or 1, or log(1 + amount); `prediction` is the logit of the probability, or the foretold log(1 + amount), null
    unless `foretold`. The four numbers are what direct marketing goes by, each as log(1 + .): visits so far, seconds from the
    first to the latest event, sum of the values, and seconds since the latest event. Raises UserError as `foretell`.
    """
    model = loaded_model(artifact_path).model
    names = [outcome.name for outcome in model.config.outcomes]
    if not names:
        raise UserError(f"the model at '{artifact_path}' foretells no outcome: give model.outcomes and train it again")
    for batch in batches:
        for rows in like_shaped_slices(batch, batch_rows):
            histories = with_moments(rows, history_batch(rows, len(model.config.features)), len(names))
            moments = histories.moments
            assert moments is not None
            numbers_LA = histories.moment_numbers().numpy()
            labels_LO = moments.labels_LO.numpy().astype(np.float64)
            predictions_LO = np.full_like(labels_LO, np.nan)
            if foretold and len(labels_LO):
                with torch.inference_mode():
                    outputs_LO = model.forward_heads(histories)[2]
                assert outputs_LO is not None
                predictions_LO = outputs_LO.numpy().astype(np.float64)
            moment, outcome = (~np.isnan(labels_LO)).nonzero()
            row_L = np.searchsorted(histories.row_offsets.numpy(), moments.place_L.numpy(), side="right") - 1
            predicted = predictions_LO[moment, outcome]
            yield pa.RecordBatch.from_arrays(
                [
                    rows.column("user_id").take(pa.array(row_L[moment])),
                    pa.array(names, pa.string()).take(pa.array(outcome)),
                    pa.array(labels_LO[moment, outcome]),
                    pa.array(predicted, pa.float64(), mask=np.isnan(predicted)),
                    *(pa.array(numbers_LA[moment, number]) for number in range(numbers_LA.shape[1])),
                ],
                schema=_LABELLED_MOMENTS_SCHEMA,
            )


def _elapsed(rows: pa.RecordBatch, histories: HistoryBatch) -> torch.Tensor:
    """Seconds [B] from each row's latest event to when it is asked about."""
    if "asked_at" not in rows.schema.names:
        return torch.zeros(rows.num_rows)
    asked_B = rows.column("asked_at").to_numpy(zero_copy_only=False).astype(np.int64)
    times_N, offsets = histories.event_times_N.numpy(), histories.row_offsets.numpy()
    filled_B = np.diff(offsets) > 0
    latest_B = asked_B.copy()
    if filled_B.any():
        latest_B[filled_B] = np.maximum.reduceat(times_N, offsets[:-1][filled_B])
    if histories.past is not None:
        latest_B = np.maximum(latest_B, histories.past.latest_time_B.numpy())
    return torch.from_numpy(np.maximum(asked_B - latest_B, 0).astype(np.float32))
