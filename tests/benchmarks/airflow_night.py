"""Two nights of the DAG in conf/schedules under real Airflow: python -m tests.benchmarks.airflow_night [--parse-only] [--project FOLDER]

Airflow gets an environment of its own, .venv-airflow beside this checkout, made here where it is missing (pip, two minutes). Then, on
simulated logs and Spark on this machine: a night whose model is promoted, and the next, whose model the gate refuses, so that `evaluate` ends
with exit code 3. Checked: the DAG parses, every task's state, predictions as of both days, those of the second by the first night's model.
Takes ten minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-airflow"
DAGS = ROOT / "conf" / "schedules"
FIRST_DAY = date(2025, 1, 12)

_SETTINGS = """\
warehouse: {folder}/warehouse
spark: {{shuffle_partitions: 2}}
ingest:
  paths: ["{folder}/logs"]
  format: jsonl
  columns: {{user: user, item: item, time: time, type: type, value: value, attributes: {{agent: agent}}}}
  filters: ["NOT coalesce(agent, '') LIKE '%bot%'"]
sessionize: {{num_buckets: 2}}
sequences: {{min_item_count: 1}}
model: {{embedding_size: 16, hidden_size: 24, dense_size: 24, memory_size: 12}}
train: {{num_epochs: {num_epochs}, batch_rows: 32, device: cpu}}
evaluate: {{baselines: [popularity], num_replicates: 100}}
gate: {{enabled: {gate}, max_loss: 0.0}}
"""


def environment() -> Path:
    """The Python that has Airflow; made where it is missing."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"making {ENVIRONMENT.name} from conf/schedules/airflow_requirements.txt", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "-r", str(DAGS / "airflow_requirements.txt")]
        subprocess.run(install, check=True)
    return python


def parsed(python: Path, home: Path) -> dict:
    """What Airflow makes of the folder of DAGs: errors of import, and each task with those before it."""
    return _under_airflow(python, home, [])


def run(python: Path, home: Path, day: date, parameters: dict[str, str], **variables: str) -> dict:
    """Run the DAG for a day, with these parameters of it and environment variables: the run's state, and each task's."""
    return _under_airflow(python, home, [str(day), json.dumps(parameters)], **variables)


def _under_airflow(python: Path, home: Path, arguments: list[str], **variables: str) -> dict:
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": "",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    surroundings = kept | settings | variables
    if not (home / "airflow.db").exists():
        migrate = [str(python.with_name("airflow")), "db", "migrate"]
        subprocess.run(migrate, env=surroundings, capture_output=True, check=True)
    command = [str(python), str(Path(__file__).with_name("airflow_run.py")), str(DAGS), *arguments]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"Airflow failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return json.loads(lines[-1])


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--parse-only", action="store_true", help="make the environment and parse the DAG")
    arguments.add_argument("--project", type=Path, default=ROOT, help="the checkout whose jobs are submitted")
    given = arguments.parse_args()
    python = environment()
    with tempfile.TemporaryDirectory(prefix="llm_spark_airflow_") as name:
        folder = Path(name)
        found = parsed(python, folder / "airflow")
        assert not found["import_errors"], found["import_errors"]
        print(f"parsed: {' -> '.join(found['tasks'])}", flush=True)
        if not given.parse_only:
            _two_nights(python, folder, given.project.resolve())
    return 0


def _two_nights(python: Path, folder: Path, project: Path) -> None:
    from llm_spark.simulation import write_logs
    from tests.integration.conftest import SIMULATION

    write_logs(SIMULATION, folder / "logs", "jsonl")
    second_day = FIRST_DAY + timedelta(days=1)
    # One epoch instead of six: a model that a gate with nothing to lose refuses.
    first = _night(python, folder, project, FIRST_DAY, num_epochs=6, gate="false")
    second = _night(python, folder, project, second_day, num_epochs=1, gate="true")
    models = {day: _models_that_scored(folder / "warehouse", day) for day in (FIRST_DAY, second_day)}
    assert first["state"] == second["state"] == "success", (first, second)
    assert set(first["states"].values()) == {"success"}, first
    assert second["states"].pop("evaluate") == "skipped", second
    assert set(second["states"].values()) == {"success"}, second
    assert len(models[FIRST_DAY]) == 1, models
    assert models[FIRST_DAY] == models[second_day], models
    print(f"predictions as of {FIRST_DAY} and {second_day} by {models[second_day]}: as they must be")


def _night(python: Path, folder: Path, project: Path, day: date, **settings: str | int) -> dict:
    config = folder / f"settings-{day}.yaml"
    config.write_text(_SETTINGS.format(folder=folder, **settings))
    parameters = {
        "project": str(project),
        "python": sys.executable,
        "config": str(config),
        "properties": str(_properties(folder)),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    master = json.dumps({"conn_type": "spark", "host": "local[2]"})
    surroundings = {
        "PATH": path,
        "PYTHONPATH": str(project),
        "AIRFLOW_CONN_SPARK_DEFAULT": master,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    found = run(python, folder / "airflow", day, parameters, **surroundings)
    print(f"{day}: {found['state']}, {found['states']}", flush=True)
    return found


def _properties(folder: Path) -> Path:
    """As conf/spark-submit.conf, with Delta's JARs at hand in place of resolving them at each start."""
    from llm_spark.spark import delta_jars

    given = (ROOT / "conf" / "spark-submit.conf").read_text().splitlines()
    kept = [line for line in given if line and not line.startswith(("#", "spark.jars.packages"))]
    jars = delta_jars()
    kept += [
        f"spark.jars {','.join(jars)}",
        "spark.ui.enabled false",
        "spark.driver.memory 2g",
        "spark.driver.extraJavaOptions -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
    ]
    file = folder / "spark.conf"
    file.write_text("\n".join(kept) + "\n")
    return file


def _models_that_scored(warehouse: Path, day: date) -> set[str]:
    from deltalake import DeltaTable

    rows = DeltaTable(str(warehouse / "tables" / "predictions")).to_pyarrow_dataset().to_table()
    return {row["model_id"] for row in rows.select(["as_of_date", "model_id"]).to_pylist() if row["as_of_date"] == day}


if __name__ == "__main__":
    sys.exit(main())
