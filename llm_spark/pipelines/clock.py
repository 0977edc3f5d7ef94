"""Times that order runs, whatever happens to the machine's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from weakref import WeakKeyDictionary

from pyspark.sql import functions as F

from llm_spark.logs import log
from llm_spark.schemas import DATA_QUALITY, RUNS
from llm_spark.tables.warehouse import Warehouse

_STEP = timedelta(milliseconds=1)
_newest_of: WeakKeyDictionary[Warehouse, datetime] = WeakKeyDictionary()
"""By warehouse: nothing recorded there, and no run of this process, began later."""


def begin_run(warehouse: Warehouse) -> datetime:
    """UTC now, as the beginning of a run; where the clock was moved back behind a recorded run, a moment after that one.

    What asks for the newest run, check or advice asks by time, and must not find yesterday's.
    """
    before = _newest_of.get(warehouse)
    if before is None:
        before = _newest_recorded(warehouse)
    now = datetime.now(UTC).replace(tzinfo=None)
    if now <= before and before - now > timedelta(minutes=1):
        log.warning("the clock says %s and a run began at %s: this one is told as a moment later", now, before)
    _newest_of[warehouse] = begun = max(now, before + _STEP)
    return begun


def _newest_recorded(warehouse: Warehouse) -> datetime:
    newest = datetime.min
    for table, column in ((RUNS, "started_at"), (DATA_QUALITY, "measured_at")):
        if warehouse.exists(table):
            row = warehouse.read(table).agg(F.max(column)).first()
            newest = max(newest, row[0] if row is not None and row[0] is not None else newest)
    return newest
