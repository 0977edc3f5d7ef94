"""The examples in conf/schedules name what there is, and Airflow can read its DAG."""

from __future__ import annotations

import ast
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from llm_spark.pipelines import STAGES
from tests.benchmarks.airflow_night import DAGS, ENVIRONMENT, parsed, run

ROOT = Path(__file__).parents[1]
# That of `nightly`: drift judges the day before it is trained on.
ORDER = ("ingest", "sessionize", "drift", "sequences", "train", "evaluate", "score", "report")
NO_AIRFLOW = "no Airflow beside this checkout: `python -m tests.benchmarks.airflow_night --parse-only` makes it"


def test_the_dag_runs_every_stage_in_the_order_of_a_night_and_each_has_its_job() -> None:
    tree = ast.parse((DAGS / "airflow_dag.py").read_text())
    (named,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "STAGES"
    )
    assert named == ORDER
    assert set(named) == set(STAGES)
    assert all((ROOT / "jobs" / f"{stage}.py").is_file() for stage in named)


def test_airflow_reads_the_dag_one_task_a_stage_each_after_the_one_before(tmp_path: Path) -> None:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip(NO_AIRFLOW)
    found = parsed(python, tmp_path)
    assert found["import_errors"] == {}
    assert found["tasks"] == {stage: list(ORDER[:place][-1:]) for place, stage in enumerate(ORDER)}


@pytest.mark.parametrize("unit", ["llm-spark-nightly.service", "llm-spark-nightly.timer", "llm-spark-sql.service"])
def test_systemd_finds_no_fault_with_a_unit(unit: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine")
    # The program's path is the reader's own: any that exists will do.
    for name in ("llm-spark-nightly.service", "llm-spark-nightly.timer", "llm-spark-sql.service"):
        text = (DAGS / name).read_text().replace("/srv/llm_spark/.venv/bin/llm-spark", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run([analyze, "verify", str(tmp_path / unit)], capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if unit in line]
    assert (done.returncode, faults) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("failing", "exit_code", "states"),
    [
        ("evaluate", 3, {"evaluate": "skipped", "score": "success", "report": "success"}),
        ("ingest", 3, {"ingest": "failed", "sessionize": "upstream_failed", "report": "upstream_failed"}),
    ],
)
def test_what_airflow_makes_of_a_stages_exit_code(
    tmp_path: Path, failing: str, exit_code: int, states: dict[str, str]
) -> None:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip(NO_AIRFLOW)
    submit = tmp_path / "bin" / "spark-submit"
    submit.parent.mkdir()
    submit.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/submitted\ncase "$*" in *jobs/{failing}.py*) exit {exit_code};; esac\n'
    )
    submit.chmod(0o755)
    found = run(
        python,
        tmp_path / "home",
        date(2026, 1, 5),
        {"project": "/p", "config": "/c.yaml"},
        PATH=f"{submit.parent}:/usr/bin:/bin",
    )
    assert {stage: found["states"][stage] for stage in states} == states
    submitted = (tmp_path / "submitted").read_text().splitlines()
    for line, stage in zip(submitted, ORDER, strict=False):
        assert line.endswith(f"/p/jobs/{stage}.py --config /c.yaml as_of=2026-01-05")
        assert "--properties-file /srv/llm_spark/conf/spark-submit.conf" in line
