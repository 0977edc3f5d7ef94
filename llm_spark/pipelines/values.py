"""What is done to an event's value before a model sees it: fitted by `sequences`, carried by the model, done again by `score`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.pipelines.account import Account, Check
from llm_spark.transforms.fill_kernel import ValueFill
from llm_spark.transforms.quality import Bounds, clip_values, fit_bounds


@dataclass(frozen=True)
class ValueTreatment:
    """Outliers are clipped first, so that no outlier is filled in elsewhere."""

    missing: str = "keep"
    """The rule or constant of `ingest.missing.value`."""
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """By event type; types without bounds are not clipped."""

    @property
    def fill(self) -> ValueFill:
        return ValueFill.of(self.missing)

    def clipped(self, sessions: DataFrame) -> DataFrame:
        return clip_values(sessions, self.bounds)

    def as_json(self) -> dict[str, Any]:
        return {"missing": self.missing, "bounds": {name: [b.low, b.high] for name, b in sorted(self.bounds.items())}}

    @classmethod
    def of_json(cls, noted: Mapping[str, Any] | None) -> ValueTreatment:
        """Nothing noted is nothing done: models of earlier versions."""
        if not noted:
            return cls()
        return cls(noted["missing"], {name: Bounds(*ends) for name, ends in noted["bounds"].items()})


def fitted_treatment(training_sessions: DataFrame, config: Config, account: Account) -> ValueTreatment:
    """The treatment that the settings ask for, its bounds fitted on the training window alone and noted for data_quality."""
    missing, clip = config.ingest.missing.value, config.sequences.clip_values
    bounds = {}
    if clip.method != "none":
        for row in fit_bounds(training_sessions, clip).orderBy("event_type").collect():
            name, ends = row["event_type"], Bounds(row["low"], row["high"])
            bounds[name] = ends
            said = f"{row['num_values']:,} values in the training window, by {clip.method}"
            account.checks += [
                Check("value_lower_bound", name, ends.low, detail=said),
                Check("value_upper_bound", name, ends.high, detail=said),
                Check("values_outside_bounds", name, row["num_outside"], detail="training values that are clipped"),
            ]
        clipped = ", ".join(f"{name} to [{b.low:g}, {b.high:g}]" for name, b in bounds.items())
        account.remarks.append(f"values clipped: {clipped or 'none, no event type has enough of them that differ'}")
    return ValueTreatment(missing, bounds)


def note_missing_values(sessions: DataFrame, treatment: ValueTreatment, account: Account) -> None:
    """How many events have no value, before filling."""
    if treatment.fill.rule == "keep":
        return
    numbers = sessions.select(
        F.size("event_values").alias("events"), F.size(F.filter("event_values", F.isnull)).alias("n")
    )
    row = numbers.agg(F.sum("n").alias("missing"), F.sum("events").alias("events")).first()
    assert row is not None
    detail = f"of {row['events']:,} events in sessions, before filling ({treatment.missing})"
    account.checks.append(Check("values_missing", "value", row["missing"] or 0, detail=detail))
