"""A rule of Spark's analyzer that lets SQL sessions read the published tables and do nothing else.

Spark's Thrift server knows no rights: who may connect may drop a table, read any file by its path, or run a program on the server. So every
statement of a session that begins after `enforce` is checked once analysed, before any of it runs. It may be a query, SHOW, DESCRIBE, EXPLAIN,
USE or SET; it reads what the catalog names and no file by its path; it starts no program and calls no Java method.
The rule is Python called from the JVM, which costs a query some milliseconds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

_PLANS = "org.apache.spark.sql.catalyst.plans.logical"
_SOURCES = "org.apache.spark.sql.execution.datasources"
# Spark and Delta name their commands by what they do.
_READS = re.compile(
    r"^(Show|Describe|Explain)|^(Set|Reset)Command$|^Set(Catalog|Namespace|CatalogAndNamespace)(Command)?$"
)
# `${env:NAME}` in a statement would be answered with the server's environment; a catalog of a client's own connects where it says.
_OPENS = re.compile(
    r"spark\.sql\.variable\.substitute\b.{0,8}true|spark\.sql\.defaultCatalog|spark\.sql\.catalog\.(?!spark_catalog\b)"
)
_CALLS_JAVA = ("reflect", "java_method", "try_reflect")


def enforce(spark: SparkSession) -> None:
    """Hold all sessions of this Spark that begin from now on to the rule, but not `spark` itself."""
    gateway: Any = spark.sparkContext._gateway
    ensure_callback_server_started(gateway)
    gateway.callback_server_parameters.propagate_java_exceptions = True
    # py4j reports each refusal with a stack trace; the client that asked is told it.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    jvm: Any = spark._jvm
    functions = jvm.org.apache.spark.sql.catalyst.analysis.FunctionRegistry.builtin()
    for name in _CALLS_JAVA:
        functions.dropFunction(jvm.org.apache.spark.sql.catalyst.FunctionIdentifier(name))
    rule = _Rule(jvm)
    spark._jsparkSession.extensions().injectCheckRule(_RuleOfSession(rule))


class _RuleOfSession:
    """Spark asks for the rule once a session."""

    def __init__(self, rule: _Rule) -> None:
        self._rule = rule

    def apply(self, session: Any) -> _Rule:
        return self._rule

    class Java:
        implements = ("scala.Function1",)


class _Rule:
    def __init__(self, jvm: Any) -> None:
        def kind(name: str) -> Any:
            # The loader that also knows what spark-submit was given.
            return jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(name)

        self._jvm = jvm
        self._command = kind(f"{_PLANS}.Command")
        self._script = kind(f"{_PLANS}.ScriptTransformation")
        self._relation = kind(f"{_SOURCES}.LogicalRelation")
        self._files = kind(f"{_SOURCES}.HadoopFsRelation")
        self._log_index = kind("org.apache.spark.sql.delta.DeltaLogFileIndex")
        self._other_relation = kind(f"{_SOURCES}.v2.DataSourceV2RelationBase")

    def apply(self, plan: Any) -> None:
        """Called by Spark with each analysed plan; what is thrown here the client reads."""
        self._require_plain_session()
        for node in _nodes(plan):
            refusal = self._refusal(node)
            if refusal:
                self._refuse(refusal)

    def _require_plain_session(self) -> None:
        """However they came to be set, in a statement or with the connection."""
        own = self._jvm.org.apache.spark.sql.internal.SQLConf.get().getAllConfs().toString()
        if _OPENS.search(own):
            self._refuse(
                "this session sets a variable substitution or a catalog, which would read or write beside the tables"
            )

    def _refuse(self, refusal: str) -> None:
        exception = self._jvm.java.lang.UnsupportedOperationException(f"read-only: {refusal}")
        raise Py4JJavaError(refusal, exception)

    def _refusal(self, node: Any) -> str:
        name = node.getClass().getSimpleName()
        if name == "SetCommand" and _OPENS.search(str(node.kv())):
            return "variable substitution and other catalogs stay as they are"
        if self._command.isInstance(node):
            if not _READS.search(name):
                return f"this server answers SELECT, SHOW, DESCRIBE, EXPLAIN, USE and SET, and this statement is {name}"
        elif self._script.isInstance(node):
            return "TRANSFORM would run a program on the server"
        elif self._other_relation.isInstance(node) or (self._relation.isInstance(node) and self._is_by_path(node)):
            return "tables are read by their names (SHOW TABLES), not files by their paths"
        return ""

    def _is_by_path(self, relation: Any) -> bool:
        if not relation.catalogTable().isEmpty():
            return False
        # Delta reads its own log in the session that asks.
        files = relation.relation()
        return not (self._files.isInstance(files) and self._log_index.isInstance(files.location()))

    class Java:
        implements = ("scala.Function1",)


def _nodes(plan: Any) -> Iterator[Any]:
    """Every node of a plan, those of its subqueries included."""
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        yield node
        for below in (node.children(), node.subqueries()):
            waiting += [below.apply(place) for place in range(below.size())]
