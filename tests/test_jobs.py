"""Each file of jobs/ is the command of its name, for spark-submit."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from llm_spark.pipelines import STAGES

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.py")), ids=lambda job: job.stem)
def test_a_job_hands_its_arguments_to_the_command_of_its_name_and_ends_with_its_exit_code(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def main(words: list[str]) -> int:
        asked.append(words)
        return 3

    monkeypatch.setattr("llm_spark.cli.main", main)
    monkeypatch.setattr(sys, "argv", [str(job), "--config", "shop.yaml", "score.k=3"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(job), run_name="__main__")
    assert end.value.code == 3
    assert asked == [[job.stem.replace("_", "-"), "--config", "shop.yaml", "score.k=3"]]


def test_every_stage_has_a_job() -> None:
    assert {*STAGES, "nightly", "maintain", "serve_sql"} == {job.stem for job in JOBS.glob("*.py")}
