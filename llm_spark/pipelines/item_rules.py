"""The regular expressions of `ingest.normalise_item`, tried before anything is read."""

from __future__ import annotations

from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import IllegalArgumentException
from pyspark.sql import SparkSession

from llm_spark.config import NormaliseItemConfig
from llm_spark.errors import UsageError


def check_replacements(spark: SparkSession, rules: NormaliseItemConfig) -> None:
    """UsageError for a regular expression that Java does not take, or a replacement that names a group which it does not have."""
    patterns: Any = spark._jvm.java.util.regex.Pattern  # type: ignore[union-attr]
    for pattern, replacement in rules.replace:
        try:
            patterns.compile(pattern)
            # The empty alternative matches the empty text, so that the replacement is carried out, with every group empty.
            patterns.compile(f"(?:{pattern}\n)|").matcher("").replaceAll(replacement)
        except (IllegalArgumentException, Py4JJavaError) as error:
            java = getattr(error, "java_exception", None)
            said = str(error if java is None else java.getMessage()).splitlines()[0]
            raise UsageError(
                f"ingest.normalise_item.replace is ['{pattern}', '{replacement}']: {said}; give a Java regular expression, and "
                "a replacement in which $1 stands for its first group and \\$ for a dollar sign"
            ) from error
