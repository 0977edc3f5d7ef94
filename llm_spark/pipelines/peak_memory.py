"""How much memory the Python workers of a job took at most."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pyspark import AccumulatorParam
from pyspark.sql import SparkSession

_Kernel = Callable[[Iterator[Any]], Iterator[Any]]


class _Maximum(AccumulatorParam[int]):
    def zero(self, value: int) -> int:
        return 0

    def addInPlace(self, value1: int, value2: int) -> int:
        return max(value1, value2)


class PeakMemory:
    """The largest resident set of the worker processes that ran a kernel, from their start on."""

    def __init__(self, spark: SparkSession) -> None:
        self._peak_kib = spark.sparkContext.accumulator(0, _Maximum())

    @property
    def mib(self) -> int:
        """So far; 0 before a kernel has run to its end."""
        return self._peak_kib.value // 1024

    def of(self, kernel: _Kernel) -> _Kernel:
        """The kernel, its workers measured when it ends."""
        peak_kib = self._peak_kib

        def measured(batches: Iterator[Any]) -> Iterator[Any]:
            yield from kernel(batches)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak_kib.add(peak // 1024 if sys.platform == "darwin" else peak)

        return measured
