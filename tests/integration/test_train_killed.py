"""`llm-spark train` killed with SIGKILL, then the same command again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import MODELS, SEQUENCES, TRAINING_METRICS
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import SMALL_MODEL, Chain
from tests.integration.training_victim import are_equal, weights
from tests.killing import Victim

AFTER_EVERY_STEP = "train.checkpoint_seconds=0"


def num_whole(warehouse: Path) -> int:
    return len(list(warehouse.glob("staging/train-*/checkpoints/step-*/manifest.json")))


def instants(warehouse: Path) -> dict[str, Callable[[], bool]]:
    """When to kill, in the order in which a run comes there."""

    def is_there(pattern: str) -> Callable[[], bool]:
        return lambda: bool(list(warehouse.glob(pattern)))

    def in_a_checkpoint() -> bool:
        """A newer one than the newest whole one is being written."""
        begun = sorted(path.parent.name for path in warehouse.glob("staging/train-*/checkpoints/step-*/*.safetensors*"))
        whole = sorted(path.parent.name for path in warehouse.glob("staging/train-*/checkpoints/step-*/manifest.json"))
        return bool(whole) and begun[-1] > whole[-1]

    return {
        "as rank 0 begins": is_there("staging/train-*/run-*/rank-0.started.json"),
        "between steps": lambda: num_whole(warehouse) == 2,
        "in a checkpoint": in_a_checkpoint,
        "in the artifact": is_there("models/*/weights.safetensors*"),
        "before the model is registered": is_there("models/*/manifest.json"),
    }


# Each kill costs a JVM's start.
@pytest.mark.parametrize(
    "struck",
    [
        ("between steps", "before the model is registered"),
        pytest.param(
            ("as rank 0 begins", "between steps", "in a checkpoint", "in the artifact"), marks=pytest.mark.slow
        ),
    ],
    ids=["twice", "again and again"],
)
def test_a_run_killed_at_stages_of_its_life_ends_in_the_weights_of_one_that_never_was(
    chain: Chain, chain_until: Callable[[str], Warehouse], struck: tuple[str, ...]
) -> None:
    warehouse = chain_until("sequences")
    folder = Path(warehouse.root)
    for name in struck:
        is_time = instants(folder)[name]
        shutil.rmtree(folder / "models", ignore_errors=True)  # what a killed run left there is not what to wait for
        victim = Victim("train", chain.config_file, folder, *SMALL_MODEL, AFTER_EVERY_STEP)
        # The driver alone in one case: its ranks must end by themselves, and disturb nobody until they do.
        assert victim.kill_when(is_time, and_children=name != "between steps"), (name, victim.log.read_text())
        assert not warehouse.exists(MODELS)
    steps = sorted(path.name for path in folder.glob("staging/train-*/checkpoints/step-*"))
    assert steps, "the killed runs left checkpoints"
    account = run_stage("train", warehouse, chain.with_settings(AFTER_EVERY_STEP))
    assert any(remark.startswith("gone on from step") for remark in account.remarks), account.remarks
    assert are_equal(weights(folder), weights(Path(chain.warehouse.root)))
    assert list((folder / "staging").iterdir()) == []
    metrics = {
        name: [
            tuple(row)
            for row in of.read(TRAINING_METRICS)
            .where("name <> 'tokens_per_second'")
            .select("model_id", "step", "name", "value")
            .orderBy("step", "name")
            .collect()
        ]
        for name, of in (("killed", warehouse), ("never killed", chain.warehouse))
    }
    assert metrics["killed"] == metrics["never killed"]


def test_a_run_goes_on_with_the_files_that_it_began_with_though_they_were_compacted_since(
    chain: Chain, chain_until: Callable[[str], Warehouse], spark: SparkSession
) -> None:
    warehouse = chain_until("sequences")
    folder = Path(warehouse.root)
    victim = Victim("train", chain.config_file, folder, *SMALL_MODEL, AFTER_EVERY_STEP)
    assert victim.kill_when(lambda: num_whole(folder) == 2), victim.log.read_text()
    files = spark.read.format("delta").load(warehouse.path(SEQUENCES)).repartition(3)
    files.write.format("delta").mode("overwrite").option("dataChange", "false").save(warehouse.path(SEQUENCES))
    before = warehouse.version(SEQUENCES)
    account = run_stage("train", warehouse, chain.config)
    assert account.read[SEQUENCES.name] < before
    assert are_equal(weights(folder), weights(Path(chain.warehouse.root)))
