"""Run several jobs one after the other in one submitted driver: a JVM's start costs more than a small stage.

spark-submit ... tests/integration/submitted_jobs.py "ingest sessionize ..." --config FILE [key.path=value ...]
"""

import runpy
import sys
from pathlib import Path

JOBS = Path(__file__).parents[2] / "jobs"

if __name__ == "__main__":
    stages, *arguments = sys.argv[1:]
    for stage in stages.split():
        sys.argv = [f"{stage}.py", *arguments]
        try:
            runpy.run_path(str(JOBS / f"{stage}.py"), run_name="__main__")
        except SystemExit as stop:
            print(f"{stage} ended with exit code {stop.code}", flush=True)
            if stop.code:
                raise
