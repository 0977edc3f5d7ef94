"""nightly: raw files in, the day's predictions and the page out, each stage in turn and each only where it has something to do.

What the order rests on: drift judges the day's data before they are trained on, for a fault that came tonight must not be learned tonight; it
judges the predictions of the night before, since tonight's come last. Where nothing is to be trained the sequences are not written, nor the
champion measured again: drift tells how often its past predictions came true.
"""

from __future__ import annotations

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.pipelines.night import one_night
from llm_spark.pipelines.night_training import decided_training, recorded_training
from llm_spark.tables.warehouse import Warehouse


def nightly(warehouse: Warehouse, config: Config) -> None:
    """Take the warehouse through one night. Safe to repeat and to kill: a further run goes on where this one stopped.

    A step that fails ends the night, and what was served is served on. A model that the gate refuses, or a file that cannot be read, does not:
    the night goes on with what it has, the page tells, and then DataError says why. UserError naming the other where another night is under way.
    """
    with one_night(warehouse, config) as night:
        night.step("ingest", goes_on_refused=True)
        night.step("sessionize")
        night.settle_day()
        training = recorded_training(night)
        if training is None:
            night.step("drift")
            training = decided_training(night)
        if training.is_due:
            night.step("sequences")
            night.step("train", training.config(night.config))
        if night.evaluates(training.is_due):
            night.step("evaluate", goes_on_refused=True)
        if night.scores(training.is_due):
            night.step("score")
        night.step("report")
        night.finish(training.reason)
        refused_model = night.refused_model() if training.is_due else ""
        if refusals := [refusal for refusal in (night.refused_files(), refused_model) if refusal]:
            raise DataError("; and ".join(refusals))
