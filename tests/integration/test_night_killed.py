"""A night killed with SIGKILL, then the same command again. The long form, at random instants: tests/benchmarks/nightly_kill.py."""

from __future__ import annotations

import json
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.pipelines.nightly import nightly
from llm_spark.schemas import MODELS
from llm_spark.tables.warehouse import Warehouse
from tests.conftest import FOR_FEW_ROWS
from tests.integration.nights import SETTINGS, Logs, rows_of
from tests.killing import Victim

# Files of as many rows, so that a model is trained on the same batches.
_CONF = {"spark.sql.adaptive.enabled": "false", "spark.default.parallelism": "2", **FOR_FEW_ROWS}
AS_THE_TESTS = ["spark.master=local[2]", f"spark.conf={json.dumps(_CONF)}"]


def test_a_night_killed_in_training_and_again_in_score_ends_as_one_that_never_was(
    spark: SparkSession, tmp_path: Path
) -> None:
    logs = Logs(tmp_path)
    logs.arrive("2025-01-13")
    clean, killed = (Warehouse(spark, str(tmp_path / name)) for name in ("clean", "killed"))

    def config(warehouse: Warehouse) -> settings.Config:
        return settings.load(logs.settings_file, [f"warehouse={warehouse.root}", *SETTINGS], ("ingest",))

    nightly(clean, config(clean))
    folder = Path(killed.root)
    checkpoints = "staging/train-*/checkpoints/step-*/manifest.json"
    for is_time in (
        lambda: bool(list(folder.glob(checkpoints))),
        lambda: bool(list(folder.glob("tables/predictions/as_of_date=*/*.parquet"))),
    ):
        victim = Victim("nightly", logs.settings_file, folder, *SETTINGS, *AS_THE_TESTS)
        assert victim.kill_when(is_time), victim.log.read_text()
    assert killed.read(MODELS).count() == 1
    nightly(killed, config(killed))
    assert rows_of(killed) == rows_of(clean)
