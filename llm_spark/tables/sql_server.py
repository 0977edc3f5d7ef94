"""Spark's Thrift server (HiveServer2's protocol, which JDBC, ODBC and Python's DB-API clients speak) over a published catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from llm_spark.errors import UserError
from llm_spark.tables import read_only

_NEEDS = {"spark.sql.hive.thriftServer.singleSession": "false", "spark.sql.catalogImplementation": "in-memory"}


class SqlServer:
    """Listens in this process's JVM until `stop`. Each connection has a session of its own, held to `read_only`."""

    def __init__(self, spark: SparkSession, hive_settings: Mapping[str, str], scratch: str) -> None:
        """Start it. `hive_settings` say where it listens and whom it answers; `scratch` is a folder for its files.

        UserError in one line where it does not start.
        """
        for name, must in _NEEDS.items():
            if spark.conf.get(name, must) != must:
                raise UserError(f"serve-sql needs {name}={must}: with {spark.conf.get(name)} clients could write")
        jvm: Any = spark._jvm
        read_only.enforce(spark)
        # Hive opens a database in memory at the first question about tables; its log would go to the working directory.
        jvm.java.lang.System.setProperty("derby.stream.error.file", f"{scratch}/derby.log")
        own = {
            # Everything runs under this process's account, for Spark has one.
            "hive.server2.enable.doAs": "false",
            "hive.exec.scratchdir": f"{scratch}/hive",
            "hive.exec.local.scratchdir": f"{scratch}/hive_local",
            "hive.server2.logging.operation.log.location": f"{scratch}/operation_logs",
        }
        Path(own["hive.exec.local.scratchdir"]).mkdir(exist_ok=True)
        for name, value in (own | dict(hive_settings)).items():
            spark.conf.set(name, value)
            # Hive's authentication makes a configuration of its own, of system properties.
            jvm.java.lang.System.setProperty(name, value)
        thrift = jvm.org.apache.spark.sql.hive.thriftserver.HiveThriftServer2
        try:
            self._server = thrift.startWithSparkSession(spark._jsparkSession, False)
        except Py4JError as error:
            java = getattr(error, "java_exception", None)
            while java is not None and java.getCause() is not None:
                java = java.getCause()
            line = " ".join(str(error if java is None else java.getMessage()).split())[:300]
            raise UserError(f"the SQL server did not start: {line}") from error

    def stop(self) -> None:
        """End all connections, then the server. A JVM that has ended already is no error."""
        try:
            self._server.stop()
        except (Py4JError, OSError):
            return
