"""spark-submit --properties-file conf/spark-submit.conf jobs/serve_sql.py --config conf/NAME.yaml [key.path=value ...]"""

import sys

from llm_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve-sql", *sys.argv[1:]]))
