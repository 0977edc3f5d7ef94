"""The one SparkSession builder.

Under `spark-submit` the submitted settings win and only what is missing is added. Started from Python, it runs on this machine, with Delta's
JARs resolved once from Maven and then taken from the user's cache folder, since resolving them costs seconds at every start.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import pyspark
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from llm_spark.class_archive import ClassArchive
from llm_spark.config import SparkConfig, flat
from llm_spark.errors import UserError
from llm_spark.logs import log

JAVA_VERSIONS = (17, 21)
_SPARK_MINOR = ".".join(pyspark.__version__.split(".")[:2])
_DELTA_VERSION = metadata.version("delta-spark")
DELTA_PACKAGE = f"io.delta:delta-spark_{_SPARK_MINOR}_2.13:{_DELTA_VERSION}"

_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"

# What makes results right or wrong: set on every session, whatever was submitted.
_FIXED = {
    "spark.sql.session.timeZone": "UTC",
    # In a raw log a bad number is a missing value, not the end of the night.
    "spark.sql.ansi.enabled": "false",
}

# What every session needs, unless it was submitted with something else.
_NEEDED = {
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Tables stay readable by every Delta reader (design: reader version 1, writer version 2).
    "spark.databricks.delta.properties.defaults.minReaderVersion": "1",
    "spark.databricks.delta.properties.defaults.minWriterVersion": "2",
    "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",
    # Spark's own default is INT96, which has no statistics, is slow to write (sessionize: 10 %) and is deprecated by Parquet.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # A table's log is small: 50 partitions to replay it, the default, costs seconds at each operation.
    "spark.databricks.delta.snapshotPartitions": "2",
    # Delta refuses every version but the newest once it is older than `delta.deletedFileRetentionDuration`, a week, whether its files are there
    # or not. That property is no way out: VACUUM keeps what it says, and heeds no other hours than 0. `maintain` knows which are needed.
    "spark.databricks.delta.vacuum.enforceTimeTravelWithinDeletedFileRetentionDuration": "false",
}

# On one machine the driver listens to nobody else.
_LOOPBACK = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}

_SHOW_JARS = """
from pyspark import SparkConf, SparkContext
SparkContext._ensure_initialized()
print("JARS=" + SparkConf().get("spark.jars"))
"""


def check_java() -> str:
    """What the installed Java says of its version. Raises a one-line UserError unless Spark runs on it."""
    versions = " or ".join(str(version) for version in JAVA_VERSIONS)
    remedy = f"install Java {JAVA_VERSIONS[0]} (for example `apt-get install openjdk-17-jre-headless`) or point JAVA_HOME at one"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        raise UserError(
            f"Spark needs Java {versions} and no `java` was found{f' under JAVA_HOME={home}' if home else ''}: {remedy}"
        )
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', printed)
    if found is None or int(found[1]) not in JAVA_VERSIONS:
        version = found[1] if found else "of an unknown version"
        raise UserError(f"Spark needs Java {versions} and '{java}' is Java {version}: {remedy}")
    return f"{java} {printed}"


def _cache_folder() -> Path:
    return Path.home() / ".cache" / "llm_spark" / f"jars-{pyspark.__version__}-{_DELTA_VERSION}"


def delta_jars() -> list[str]:
    """Paths of Delta's JARs in the user's cache folder; the first call on a machine resolves them from Maven.

    Only Delta's own JARs are kept: the rest of what Ivy brings stands in Spark already, in the versions that Spark needs.
    """
    folder = _cache_folder()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            # Ivy in two processes at once reads the other's half-written files.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                log.info("fetching Delta Lake's JARs from Maven, this once")
                _keep(_resolve(), folder)
    return sorted(str(jar) for jar in folder.glob("*.jar"))


def _resolve() -> list[str]:
    """Let spark-submit resolve DELTA_PACKAGE, since it honours the user's Ivy settings and proxies; its chatter is swallowed."""
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "show_jars.py"
        script.write_text(_SHOW_JARS)
        command = [str(submit), "--master", "local[1]", "--packages", DELTA_PACKAGE, str(script)]
        environment = dict(os.environ, PYSPARK_PYTHON=sys.executable, PYSPARK_DRIVER_PYTHON=sys.executable)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"^JARS=(.*)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise UserError(
            f"{DELTA_PACKAGE} could not be fetched from Maven: check the network or set a mirror in Ivy's settings (spark.jars.ivySettings)"
        )
    return [jar.removeprefix("file://") for jar in found[1].split(",")]


def _keep(jars: list[str], folder: Path) -> None:
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    for jar in jars:
        if Path(jar).name.startswith(("io.delta_", "io.unitycatalog_")):
            shutil.copy(jar, staged)
    staged.rename(folder)


def _local_cores(master: str) -> int:
    threads = re.match(r"local\[(\d+|\*)", master)
    return (os.cpu_count() or 1) if threads is None or threads[1] == "*" else int(threads[1])


def _keep_utc() -> None:
    """Make this process's clock UTC: pyspark turns a Spark timestamp into a naive datetime of the process's own zone, and back."""
    os.environ["TZ"] = "UTC"
    time.tzset()


def _own_settings(config: SparkConfig, archive: ClassArchive | None) -> dict[str, str]:
    settings = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    settings["spark.master"] = config.master
    settings["spark.driver.memory"] = config.driver_memory
    # Workers take `python3` from PATH otherwise, which need not be the one that has these packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    log_settings = Path(__file__).with_name("log4j2.properties").as_uri()
    # Without the second compiler (TieredStopAtLevel=1) the JVM has room for 48 MB of compiled code, and Spark makes more:
    # it then spends its time throwing code out and compiling it again. And what Spark makes of a long projection, as ingest's, is a method
    # that the JVM would leave to its interpreter for its size.
    java = "-XX:+UseSerialGC -XX:-UsePerfData -XX:ReservedCodeCacheSize=240m -XX:-DontCompileHugeMethods"
    options = [f"-Dlog4j2.configurationFile={log_settings}", java, *([archive.java_options()] if archive else [])]
    settings["spark.driver.extraJavaOptions"] = " ".join([*options, config.java_options]).strip()
    if config.master.startswith("local"):
        settings |= _LOOPBACK
        settings["spark.sql.shuffle.partitions"] = str(2 * _local_cores(config.master))
    jars = delta_jars()
    settings["spark.driver.extraClassPath"] = ":".join(jars)
    if not settings["spark.master"].startswith("local["):
        settings["spark.jars"] = ",".join(jars)
    return settings


def session(config: SparkConfig, app_name: str = "llm_spark") -> SparkSession:
    """Start or join the Spark session.

    Raises UserError in one line for: no fit Java, a Spark that does not start, Delta's JARs missing from a submitted Spark.
    """
    _keep_utc()
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ or SparkContext._gateway is not None
    settings = _NEEDED | _FIXED
    archive = None
    if not submitted:
        java_version = check_java()
        if config.class_archive:
            archive = ClassArchive(_cache_folder().parent, java_version, [pyspark.__file__, *delta_jars()])
        settings |= _own_settings(config, archive)
    given = dict(SparkConf(loadDefaults=submitted).getAll())
    extensions = [name for name in given.pop("spark.sql.extensions", "").split(",") if name and name != _EXTENSION]
    settings["spark.sql.extensions"] = ",".join([_EXTENSION, *extensions])
    if config.shuffle_partitions:
        settings["spark.sql.shuffle.partitions"] = str(config.shuffle_partitions)
    settings |= flat(config.conf)
    builder = SparkSession.builder.appName(app_name)
    for key, value in settings.items():
        if key not in given:
            builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"Spark did not start on {config.master}: {line}") from error
    if archive is not None and SparkContext._gateway is not None:
        archive.keep_at_exit(SparkContext._gateway.proc)
    spark.sparkContext.setLogLevel("ERROR")
    for key, value in _FIXED.items():
        spark.conf.set(key, value)
    _require_delta(spark)
    return spark


def _require_delta(spark: SparkSession) -> None:
    try:
        jvm = spark._jvm
        assert jvm is not None
        jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass("io.delta.tables.DeltaTable")
    except Exception as error:
        remedy = "submit with --properties-file conf/spark-submit.conf"
        raise UserError(
            f"this Spark has no Delta Lake on its class path: {remedy}, or add --packages {DELTA_PACKAGE}"
        ) from error
