"""The lock of a whole warehouse, where no kernel keeps it: a row of the table `locks`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.errors import UserError
from llm_spark.schemas import LOCKS
from llm_spark.tables import lease as leases
from llm_spark.tables.lease import held_by_nobody, table_lock
from llm_spark.tables.warehouse import Warehouse


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    """As in object storage, where no other lock is to be had."""
    found = Warehouse(spark, str(tmp_path / "warehouse"))
    found.is_local = False
    return found


def test_the_second_is_told_who_holds_the_lock_and_gets_it_once_it_is_given_back(warehouse: Warehouse) -> None:
    named = r"the lock 'nightly' of .* is held by run a, process \d+ on .* since .* UTC"
    with table_lock(warehouse, "nightly", "run a"):
        with pytest.raises(UserError, match=named), table_lock(warehouse, "nightly", "run b"):
            pytest.fail("two hold it")
        with pytest.raises(UserError, match=named), held_by_nobody(warehouse, "nightly", "a stage"):
            pytest.fail("a stage runs beside a night")
        with table_lock(warehouse, "another", "run b"):
            assert warehouse.read(LOCKS).count() == 2
    with table_lock(warehouse, "nightly", "run b") as lease:
        lease.check()
    with held_by_nobody(warehouse, "nightly", "a stage"):
        assert warehouse.read(LOCKS).count() == 0


def test_who_waits_gets_the_lock_once_it_is_given_back(warehouse: Warehouse) -> None:
    holds, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with table_lock(warehouse, "nightly", "run a"):
            holds.set()
            may_end.wait()

    with ThreadPoolExecutor() as threads:
        held = threads.submit(first)
        assert holds.wait(60) or held.result()
        told = pytest.raises(UserError, match=r"the lock 'nightly' of .* has been held for 0.2 s by run a")
        with told, table_lock(warehouse, "nightly", "run b", wait_seconds=0.2):
            pytest.fail("two hold it")
        may_end.set()
        with table_lock(warehouse, "nightly", "run b", wait_seconds=60):
            assert warehouse.read(LOCKS).first()["owner"].startswith("run b")
        held.result()


def test_a_lock_that_lasts_longer_than_any_can_is_told_with_what_to_do(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        ahead.setattr(leases, "_now", lambda: datetime(2099, 1, 1))
        killed = table_lock(warehouse, "nightly", "run a")
        killed.__enter__()
    told = f"it runs out at 2099-01-01 00:10:00, .* clock or this one's is wrong; .* remove '{warehouse.path(LOCKS)}'"
    with pytest.raises(UserError, match=told), table_lock(warehouse, "nightly", "run b"):
        pytest.fail("two hold it")
    killed.__exit__(None, None, None)


def test_a_lock_is_renewed_while_its_holder_lives_and_runs_out_after_it_was_killed(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = timedelta(seconds=8)
    with table_lock(warehouse, "nightly", "run a", lease=short):
        first = warehouse.read(LOCKS).first()["expires_at"]
        until = time.monotonic() + 60
        while warehouse.read(LOCKS).first()["expires_at"] == first:
            assert time.monotonic() < until, "nobody renews it"
            time.sleep(0.2)
    # One that was killed renews nothing.
    with monkeypatch.context() as patch:
        patch.setattr(leases._TableLease, "keep", lambda self: None)
        killed = table_lock(warehouse, "nightly", "run b", lease=timedelta(seconds=1))
        dead = killed.__enter__()
    time.sleep(1.1)
    with table_lock(warehouse, "nightly", "run c"):
        dead._renew()
        with pytest.raises(UserError, match="the lock 'nightly' ran out, and another run took it"):
            dead.check()
        assert warehouse.read(LOCKS).first()["owner"].startswith("run c")
    killed.__exit__(None, None, None)
