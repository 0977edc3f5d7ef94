"""Run several jobs one after the other in one submitted driver, on one Spark: a JVM's start, and two executors', cost more than a small stage.

spark-submit ... tests/integration/submitted_jobs.py "ingest sessionize ..." --config FILE [key.path=value ...]
"""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from pyspark.sql import SparkSession

JOBS = Path(__file__).parents[2] / "jobs"


def run(stages: list[str], arguments: list[str]) -> None:
    for stage in stages:
        sys.argv = [f"{stage}.py", *arguments]
        try:
            runpy.run_path(str(JOBS / f"{stage}.py"), run_name="__main__")
        except SystemExit as stop:
            print(f"{stage} ended with exit code {stop.code}", flush=True)
            if stop.code:
                raise


if __name__ == "__main__":
    named, *given = sys.argv[1:]
    # Each job ends its Spark; the next would start two executors anew, with all that they had loaded and compiled.
    with patch.object(SparkSession, "stop"):
        run(named.split(), given)
    SparkSession.builder.getOrCreate().stop()
