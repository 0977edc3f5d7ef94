"""The command that a stranger without logs of their own types first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_spark.cli import main
from llm_spark.pipelines.simulate import simulation_config
from llm_spark.simulation import SimulationConfig, preset


def test_without_a_profile_a_web_shop_is_simulated() -> None:
    assert simulation_config(["num_users=5"]) == SimulationConfig(num_users=5)


def test_a_profile_may_stand_anywhere_among_the_settings_that_win_over_it(tmp_path: Path) -> None:
    assert main(["simulate", str(tmp_path / "logs"), "num_users=5", "profile=health", "num_days=5"]) == 0
    account = json.loads((tmp_path / "logs" / "_simulation.json").read_text())
    assert account["profile"] == "health"
    config = account["config"]
    assert (config["num_users"], config["num_days"]) == (5, 5)
    assert config["start_date"] == preset("health").start_date
    assert {file.removesuffix(".gz") for file in account["files"]} == {
        f"encounters-2025-02-0{day}-00.csv" for day in range(3, 8)
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["profile=bank"], "simulation.profile='bank': choose one of retail, finance, logistics, health"),
        (["profile=finance", "profile.item_prefix=x"], "the nearest valid one is 'profile."),
        (["profile=finance", "profile.tail_shar=0"], "the nearest valid one is 'profile.tail_share'"),
        (["profile=finance", "profile.tail_share=2"], "simulation.profile.tail_share=2"),
        (["profile=logistics", "--format", "csv"], "fmt='csv': choose among jsonl"),
        (["profile=finance", "num_items=100"], "simulation.num_items=100"),
        (["profile=health", "num_days=3"], "simulation.num_days=3: must be at least 4"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["simulate", str(tmp_path / "logs"), *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llm-spark simulate: ")]
    assert len(error) == 1
    assert told in error[0]
    assert not (tmp_path / "logs").exists()
