"""The lock of a whole warehouse, where no kernel keeps it: a row of the table `locks`."""

from __future__ import annotations

import time
from datetime import timedelta
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
