"""The outcomes that the sequences hold labels of: resolved, noted, told of, and held against what a model wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.config.outcomes import OUTCOMES_VERSION
from llm_spark.errors import DataError, UsageError
from llm_spark.schemas import SPLITS
from llm_spark.transforms.outcome_kernel import OutcomeRules
from llm_spark.transforms.sequences import outcome_rules
from llm_spark.transforms.splits import SplitTimes


def outcomes_note(outcomes: Sequence[OutcomeConfig]) -> dict[str, Any]:
    """What the sequences' origin notes of them: what their labels depend on; nothing where there are none."""
    labelled = [
        {"name": o.name, "event_types": list(o.event_types), "within_days": o.within_days, "kind": o.kind}
        for o in outcomes
    ]
    return {"outcomes": labelled, "outcomes_version": OUTCOMES_VERSION} if labelled else {}


def asked_outcomes(
    sessions: DataFrame, outcomes: Sequence[OutcomeConfig], event_types: DataFrame, times: SplitTimes
) -> OutcomeRules:
    """The outcomes with the tokens of their event types. UsageError for a type that training does not know."""
    token_of_type = {row["event_type"]: row["token"] for row in event_types.select("event_type", "token").collect()}
    for outcome in outcomes:
        for name in outcome.event_types:
            if name not in token_of_type:
                known = ", ".join(sorted(token_of_type))
                raise UsageError(
                    f"model.outcomes: '{outcome.name}' counts events of type '{name}', of which training has none; "
                    f"its types are {known}"
                )
    newest = sessions.agg(F.max("ended_at")).first()
    assert newest is not None
    return outcome_rules(outcomes, token_of_type, times, newest[0])


def label_lines(sequences: DataFrame, outcomes: Sequence[OutcomeConfig]) -> list[str]:
    """How many moments of each split have a label, and how often what is foretold came about."""

    def labels(place: int) -> Column:
        def is_mine(label: Column, index: Column) -> Column:
            return label.isNotNull() & (index % F.lit(len(outcomes)) == F.lit(place))

        return F.filter("outcome_labels", is_mine)

    sums = [F.sum(F.size(labels(place))).alias(f"num_{place}") for place in range(len(outcomes))]
    sums += [
        F.sum(F.aggregate(labels(place), F.lit(0.0), lambda total, label: total + label)).alias(f"total_{place}")
        for place in range(len(outcomes))
    ]
    found = {row["split"]: row for row in sequences.groupBy("split").agg(*sums).collect()}
    lines = []
    for place, outcome in enumerate(outcomes):
        parts = []
        for split in SPLITS:
            num = (found[split][f"num_{place}"] or 0) if split in found else 0
            mean = f" (mean {found[split][f'total_{place}'] / num:.3f})" if num else ""
            parts.append(f"{split} {num:,}{mean}")
        lines.append(f"moments with a label of '{outcome.name}': {', '.join(parts)}")
    return lines


def require_labels(made_from: Mapping[str, Any], config: ModelConfig) -> None:
    """DataError unless the sequences hold the labels of the model's outcomes, as they are asked for now; `made_from` is noted in their origin."""
    wanted = outcomes_note(config.outcomes)
    if any(made_from.get(name) != value for name, value in wanted.items()):
        raise DataError("the sequences do not hold the labels of model.outcomes as they are: run `llm-spark sequences`")
