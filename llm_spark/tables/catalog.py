"""The warehouse's tables under their names in Spark's catalog, for every session of this Spark: what a SQL client finds."""

from __future__ import annotations

from py4j.protocol import Py4JError
from pyspark.sql.types import StructType

from llm_spark.schemas import PREDICTIONS, TABLES, USER_MEMORY
from llm_spark.tables.current import PREDICTIONS_CURRENT, current_predictions
from llm_spark.tables.warehouse import Warehouse


class Catalog:
    """Publishes tables in the database `default`. The catalog is this Spark's memory: it keeps names and places, no rows."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._published: dict[str, StructType] = {}

    @property
    def names(self) -> list[str]:
        """What is published."""
        return [*self._published, *([PREDICTIONS_CURRENT] if PREDICTIONS.name in self._published else [])]

    def publish(self) -> list[str]:
        """Add what came into being since, and the columns that tables got; returns the names that are new.

        A query reads the newest version of a published table by itself.
        """
        before = set(self.names)
        for table in TABLES.values():
            if not self._warehouse.exists(table):
                continue
            columns = self._warehouse.read(table).schema
            if self._published.get(table.name) == columns:
                continue
            if table.name not in self._published:
                self._warehouse.spark.catalog.createTable(table.name, self._warehouse.path(table), "delta")
            self._tell_columns(table.name, columns)
            self._published[table.name] = columns
            if table in (PREDICTIONS, USER_MEMORY) and PREDICTIONS.name in self._published:
                query = current_predictions(USER_MEMORY.name in self._published)
                self._warehouse.spark.sql(f"CREATE OR REPLACE VIEW {PREDICTIONS_CURRENT} AS {query}")
        return [name for name in self.names if name not in before]

    def is_alive(self) -> bool:
        """Whether Spark still answers."""
        try:
            return not self._warehouse.spark.sparkContext._jsc.sc().isStopped()
        except (Py4JError, OSError):
            return False

    def _tell_columns(self, name: str, columns: StructType) -> None:
        """Delta keeps a table's columns in its log alone, and those who list them (JDBC's getColumns) ask the catalog."""
        session = self._warehouse.spark._jsparkSession
        schema = session.parseDataType(columns.json())
        session.sessionState().catalog().externalCatalog().alterTableSchema("default", name, schema)
