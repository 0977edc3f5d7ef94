"""spark-submit --properties-file conf/spark-submit.conf jobs/train.py --config conf/NAME.yaml [key.path=value ...]"""

import sys

from llm_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
