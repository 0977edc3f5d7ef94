"""The night as an Airflow DAG: one spark-submit a stage, as of the day that the run is for.

Copy it into Airflow's folder of DAGs and set the parameters below; Airflow needs airflow_requirements.txt, `spark-submit` on its
PATH, and a connection `spark_default` that names the master. A night runs at 02:00 UTC and is as of the day that has ended; a day of the past
is run by `airflow backfill create --dag-id llm_spark_nightly --from-date … --to-date …`.

Exit codes: 0 done or nothing to do. 3 of `evaluate`: no new model passed, or none could be judged; the task is shown as skipped, its log says
why, and the night goes on with the model before. 3 of any other stage (the data did not pass), and 2 (wrong settings): the night fails at once, for a
repetition would end the same way, and the tables of the night before go on being served. Any other: tried again.

It trains every night, whatever nightly.train says, and a training that fails ends its night, where `nightly` goes on with the champion: for
either make one task of jobs/nightly.py instead. A backfill on the live
warehouse scores with a champion that knows what came after; for a faithful one give it a warehouse of its own.

On a warehouse in a local folder let nothing else write meanwhile; this DAG runs one night at a time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

STAGES = ("ingest", "sessionize", "drift", "sequences", "train", "evaluate", "score", "report")
USAGE, REFUSED = 2, 3


class Stage(SparkSubmitOperator):
    """A submitted stage whose exit code decides between done, skipped, failed, and failed for good."""

    def execute(self, context: Any) -> None:
        try:
            super().execute(context)
        except AirflowException as error:
            found = re.search(r"Error code is: (\d+)", str(error))
            code = int(found[1]) if found else 1
            if code == REFUSED and self.task_id == "evaluate":
                raise AirflowSkipException("no new model passed, its log says why: the model before scores") from error
            if code in (USAGE, REFUSED):
                raise AirflowFailException(f"{self.task_id} ended with exit code {code}: its log says why") from error
            raise


with DAG(
    "llm_spark_nightly",
    description="Raw event logs in, next-event predictions in SQL tables out",
    # Data intervals: the logical date is the day that has ended when the run begins, and stays so in a backfill.
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    # Before all logs: Airflow passes over the tasks of a run for an earlier day. With catchup off it starts none of the past by itself.
    start_date=datetime(2000, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
    params={
        "project": Param("/srv/llm_spark", type="string", description="the checkout with jobs/ and conf/"),
        "python": Param("/srv/llm_spark/.venv/bin/python", type="string", description="a Python with llm_spark in it"),
        "config": Param("/srv/llm_spark/shop.yaml", type="string", description="the settings"),
        "properties": Param(
            "/srv/llm_spark/conf/spark-submit.conf", type="string", description="spark-submit's --properties-file"
        ),
    },
    tags=["llm_spark"],
) as dag:
    before = None
    for name in STAGES:
        task = Stage(
            task_id=name,
            application=f"{{{{ params.project }}}}/jobs/{name}.py",
            application_args=["--config", "{{ params.config }}", "as_of={{ ds }}"],
            properties_file="{{ params.properties }}",
            env_vars={"PYSPARK_PYTHON": "{{ params.python }}"},
            name=f"llm_spark {name} {{{{ ds }}}}",
            # A skipped evaluate lets the champion score; whatever failed ends the night.
            trigger_rule="none_failed",
        )
        if before is not None:
            before >> task
        before = task
