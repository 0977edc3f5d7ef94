"""spark-submit --properties-file conf/spark-submit.conf jobs/nightly.py --config conf/NAME.yaml [--as-of DATE] [--dry-run] [key.path=value ...]"""

import sys

from llm_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
