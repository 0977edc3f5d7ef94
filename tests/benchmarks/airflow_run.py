"""Runs in Airflow's environment: parse the DAG, then run it for a day. airflow_night.py calls it.

PYTHON airflow_run.py FOLDER_OF_DAGS [LOGICAL_DATE PARAMETERS_AS_JSON]; the last line of stdout is JSON: the run's state and its tasks'.
"""

import json
import sys
from datetime import UTC, datetime

from airflow.dag_processing.dagbag import DagBag

DAG_ID = "llm_spark_nightly"


def main() -> None:
    folder, *run = sys.argv[1:]
    bag = DagBag(folder)
    dag = bag.dags.get(DAG_ID)
    found = {
        "import_errors": bag.import_errors,
        "tasks": {} if dag is None else {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks},
    }
    if run and dag is not None:
        day = datetime.fromisoformat(run[0]).replace(tzinfo=UTC)
        done = dag.test(logical_date=day, run_conf=json.loads(run[1]))
        states = {ti.task_id: str(ti.state) for ti in done.get_task_instances()}
        found |= {"state": str(done.state), "states": states}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
