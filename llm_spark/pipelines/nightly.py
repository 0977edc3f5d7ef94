"""nightly: raw files in, the day's predictions and the page out, each stage in turn and each only where it has something to do.

What the order rests on: drift judges the day's data before they are trained on, for a fault that came tonight must not be learned tonight; it
judges the predictions of the night before, since tonight's come last. Where nothing is to be trained the sequences are not written, nor the
champion measured again: drift tells how often its past predictions came true.
"""

from __future__ import annotations

from llm_spark.config import Config
from llm_spark.errors import DataError, Refusal, UserError
from llm_spark.pipelines.night import Night, one_night
from llm_spark.pipelines.night_training import Training, decided_training, record_trained, recorded_training
from llm_spark.tables.failures import storage_told
from llm_spark.tables.warehouse import Warehouse


def nightly(warehouse: Warehouse, config: Config) -> None:
    """Take the warehouse through one night. Safe to repeat and to kill: a further run goes on where this one stopped.

    A step that fails ends the night, and what was served is served on. These do not: a file that cannot be read, a model that the gate
    refuses, and, where there is a champion to score with, whatever else keeps a new model from coming to be. The night then goes on with
    what it has, the page tells, and at its end the error is raised. UserError naming the other where another night is under way.
    """
    with storage_told(warehouse.root), one_night(warehouse, config) as night:
        night.step("ingest", survives=(Refusal,))
        night.step("sessionize")
        night.settle_day()
        training = recorded_training(night)
        if training is None:
            night.step("drift")
            training = decided_training(night)
        not_learned = _learn(night, training)
        if night.has_champion() or (not_learned is None and night.scores(training.is_due)):
            night.step("score")
        night.step("report")
        night.finish(training.reason)
        if not_learned is not None and not isinstance(not_learned, Refusal):
            raise not_learned
        refused_model = (night.refused_model() if training.is_due else "") or str(not_learned or "")
        if refusals := [refusal for refusal in (night.refused_files(), refused_model) if refusal]:
            raise DataError("; and ".join(refusals))


def _learn(night: Night, training: Training) -> UserError | None:
    """Train and evaluate where that is due; returns what kept the model from being judged or from passing."""
    survives = (UserError,) if night.has_champion() else ()
    if training.is_due:
        for stage, settings in (("sequences", night.config), ("train", training.config(night.config))):
            if error := night.step(stage, settings, survives):
                return error
        record_trained(night)
    if night.evaluates(training.is_due):
        return night.step("evaluate", survives=(*survives, Refusal))
    return None
