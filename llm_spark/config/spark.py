"""Settings of the Spark session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SparkConfig:
    """How to start Spark when none is running; under `spark-submit` the submitted settings win."""

    master: str = "local[*]"
    """Spark master URL. All cores of this machine unless `spark-submit` or this says otherwise."""
    driver_memory: str = "4g"
    """Heap of the driver JVM when this process starts it."""
    java_options: str = ""
    """Further options of that JVM. `-XX:TieredStopAtLevel=1` starts faster and runs long work slower: for small data."""
    class_archive: bool = True
    """Keep what that JVM loads in an archive in the user's cache folder, for the next ones to start from."""
    shuffle_partitions: int = 0
    """Partitions after a shuffle; 0 takes twice the cores (local) or lets adaptive execution decide (cluster)."""
    conf: dict[str, str] = field(default_factory=dict)
    """Further Spark settings, passed through as they are."""


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Settings of Spark or Hive by their dotted names: `spark.conf.spark.sql.x=1` on the command line arrives as nested mappings."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value)
    return found
