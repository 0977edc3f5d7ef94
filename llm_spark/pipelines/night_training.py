"""Whether a night trains: decided once for a day and its data, by the rule of nightly.train, and kept in data_quality.

Kept, because a night that goes on where it stopped must not decide anew: what it has written since (predictions, above all) is what drift
looks at.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.config.nightly import ADVISED, ALWAYS, NEVER
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.clock import begin_run
from llm_spark.pipelines.drift import latest_advice
from llm_spark.pipelines.night import Night
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.registry.fitness import why_it_cannot_score
from llm_spark.pipelines.registry.serving import champion
from llm_spark.schemas import DATA_QUALITY, SESSIONS
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.drift_rules import NONE, NOTHING_JUDGED, WARM_START

DECISION = "training_decision"
TRAINED = "trained"
AS_CONFIGURED = "as_configured"
_DAYS_UNJUDGED = 7


@dataclass(frozen=True)
class Training:
    """What becomes of the model tonight."""

    action: str
    """none; retrain or warm_start, as drift advises; or as_configured: as train.warm_start says."""
    reason: str
    """One sentence."""

    @property
    def is_due(self) -> bool:
        return self.action != NONE

    def config(self, config: Config) -> Config:
        """The settings with which to train."""
        if self.action == AS_CONFIGURED:
            return config
        return replace(config, train=replace(config.train, warm_start=self.action == WARM_START))


def recorded_training(night: Night) -> Training | None:
    """What was decided for this day, these sessions and this rule; None where nothing was."""
    key = _key(night.warehouse, night.config.nightly.train)
    row = read_models(night.warehouse).champion
    can_score = row is not None and not why_it_cannot_score(night.warehouse, row)
    for made in reversed(_decisions(night.warehouse)):
        # Not to train was decided for the sake of a champion that could score.
        stands = made["action"] != NONE or can_score
        if made["day"] == str(night.as_of.day) and made["key"] == key and stands:
            return Training(made["action"], made["reason"])
    return None


def decided_training(night: Night) -> Training:
    """Decide by the rule, now that drift has judged the day, and keep it."""
    warehouse, rule = night.warehouse, night.config.nightly.train
    training = due_training(warehouse, night.config, night.as_of.day, night.as_of.night)
    told = json.dumps({"key": _key(warehouse, rule), **asdict(training)}, sort_keys=True)
    account = Account("nightly", started_at=begin_run(warehouse))
    account.checks.append(Check(DECISION, str(night.as_of.day), float(training.is_due), detail=told))
    account.record_checks(warehouse)
    return training


def record_trained(night: Night) -> None:
    """Keep that the night's model is there: a decision alone may have come to nothing."""
    day = night.as_of.day
    if day not in _trained_days(night.warehouse):
        account = Account("nightly", started_at=begin_run(night.warehouse))
        account.checks.append(Check(TRAINED, str(day), 1.0))
        account.record_checks(night.warehouse)


def due_training(warehouse: Warehouse, config: Config, day: date, night: datetime) -> Training:
    """What the rule says, by what is known now."""
    rule, row = config.nightly.train, read_models(warehouse).champion
    if row is None:
        return Training(AS_CONFIGURED, "there is no champion yet")
    if objection := why_it_cannot_score(warehouse, row):
        return Training(AS_CONFIGURED, f"the champion cannot score: {objection}")
    known_until = champion(warehouse).validation_until
    if known_until is not None and datetime.fromisoformat(known_until) > night:
        return Training(
            NONE,
            f"champion {row.model_id} was chosen on events up to {known_until}, later than this night: it knows what came after",
        )
    later = [trained for trained in _trained_days(warehouse) if trained > day]
    if later:
        return Training(NONE, f"the night of {max(later)} has trained on later events than this one has")
    if rule == NEVER:
        return Training(NONE, "nightly.train is never")
    if rule == ALWAYS:
        return Training(AS_CONFIGURED, "nightly.train is always")
    advice = latest_advice(warehouse)
    if advice is not None and advice.is_withheld:
        return Training(NONE, advice.reason)
    if rule != ADVISED:
        num_days = config.nightly.every_days
        assert num_days is not None
        return _by_days(warehouse, day, num_days, f"nightly.train is '{rule}'")
    if advice is None or advice.reason == NOTHING_JUDGED:
        # For its first weeks drift has too few earlier windows, and the first night's model would score all that time.
        return _by_days(
            warehouse, day, _DAYS_UNJUDGED, f"drift could judge nothing yet, so every {_DAYS_UNJUDGED} days"
        )
    return Training(advice.action, advice.reason)


def _by_days(warehouse: Warehouse, day: date, num_days: int, why: str) -> Training:
    last = max((earlier for earlier in _trained_days(warehouse) if earlier < day), default=None)
    if last is None:
        return Training(AS_CONFIGURED, f"{why}, and no earlier night has trained")
    due = (day - last).days >= num_days
    return Training(AS_CONFIGURED if due else NONE, f"{why}, and the night of {last} trained last")


def _key(warehouse: Warehouse, rule: str) -> dict[str, Any]:
    log = warehouse.log(SESSIONS)
    return {"rule": rule, "sessions": warehouse.data_version(SESSIONS, log.version), "table": log.table_id}


def _decisions(warehouse: Warehouse) -> list[dict[str, Any]]:
    """All that nights have decided, the oldest first: one row a night."""
    ordered = _kept(warehouse, DECISION).orderBy("measured_at", "run_id").select("subject", "detail").collect()
    return [{"day": row["subject"], **json.loads(row["detail"])} for row in ordered]


def _trained_days(warehouse: Warehouse) -> list[date]:
    """The days whose nights have trained a model, or found it trained."""
    return [date.fromisoformat(row["subject"]) for row in _kept(warehouse, TRAINED).select("subject").collect()]


def _kept(warehouse: Warehouse, name: str) -> DataFrame:
    of_nights = (F.col("stage") == "nightly") & (F.col("name") == name)
    return warehouse.read_or_empty(DATA_QUALITY).where(of_nights)
