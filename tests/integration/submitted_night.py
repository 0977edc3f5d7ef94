"""All stages in one driver: spark-submit ... tests/integration/submitted_night.py --config FILE [key.path=value ...]"""

import argparse
import sys

from llm_spark import config as settings
from llm_spark import logs, spark
from llm_spark.errors import UserError
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.tables.warehouse import Warehouse

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    logs.configure()
    loaded = settings.load(given.config, given.overrides, ("ingest",))
    session = spark.session(loaded.spark)
    try:
        for stage in STAGES:
            run_stage(stage, Warehouse(session, loaded.warehouse), loaded)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        session.stop()
