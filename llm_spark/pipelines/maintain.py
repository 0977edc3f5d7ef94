"""maintain: spare models' artifacts removed, every table's small files joined and its old files removed, but for what a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_spark.config import Config
from llm_spark.logs import log, progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.registry.retention import pinned_versions, remove_artifacts
from llm_spark.schemas import TABLES, Table
from llm_spark.tables.maintenance import (
    LOG_HOURS,
    data_files,
    files_of_version,
    join_small_files,
    keep_log,
    remove_old_files,
)
from llm_spark.tables.warehouse import Warehouse


@dataclass(frozen=True)
class Pin:
    """A version of a table that models were trained on."""

    table: Table
    version: int
    model_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.table.name} v{self.version}, which {', '.join(self.model_ids)} was trained on"


def maintain(warehouse: Warehouse, config: Config, account: Account, force: bool = False) -> None:
    """Join small files, then remove those that no version younger than the retention needs, nor one that a model with an artifact was trained
    on; with `force` also the latter.

    No row changes, but that archived models say that their artifact is gone, and no stage takes its input for changed.
    """
    settings = config.maintain
    remove_artifacts(warehouse, settings.keep_models, account)
    tables = [table for table in TABLES.values() if warehouse.exists(table)]
    pins = list(pins_of_models(warehouse))
    num_joined = num_made = num_removed = 0
    with progress("maintain") as bar:
        for done, table in enumerate(tables):
            bar.update(done, len(tables), table.name)
            path, before = warehouse.path(table), warehouse.version(table)
            of_table = [pin for pin in pins if pin.table is table]
            if of_table or settings.retention_hours > LOG_HOURS:
                keep_log(warehouse.spark, path)
            joined, made = join_small_files(warehouse.spark, path, table, settings.target_file_mib * 2**20)
            removed = _remove_old_files(warehouse, table, of_table, settings.retention_hours, force, account)
            num_joined, num_made, num_removed = num_joined + joined, num_made + made, num_removed + removed
            if joined or removed:
                account.remarks.append(
                    f"{table.name}: {joined:,} files joined into {made:,}, {removed:,} old ones removed"
                )
            if warehouse.version(table) != before:
                account.wrote(warehouse, table)
    if not account.written and not account.remarks:
        account.nothing_to_do = (
            f"no partition has small files to join, and no file unneeded for {settings.retention_hours} h is there"
        )
        return
    account.rows_in = {"tables": len(tables)}
    account.rows_out = {"small_files_joined": num_joined, "files_made": num_made, "old_files_removed": num_removed}


def _remove_old_files(
    warehouse: Warehouse, table: Table, pins: list[Pin], retention_hours: int, force: bool, account: Account
) -> int:
    path, spark = warehouse.path(table), warehouse.spark
    needed: dict[Pin, set[str]] = {}
    on_disk = {file.name for file in data_files(spark, path)} if pins else set()
    versions = warehouse.log(table).versions
    for pin in pins:
        if pin.version > versions[-1]:
            continue  # a version of a table that was deleted since, and made anew
        if pin.version not in versions:
            if not force:
                _warn(
                    account,
                    f"the log has forgotten {pin}: no file of this table is removed; --force gives the version up",
                )
                return 0
            continue
        files = files_of_version(spark, path, pin.version)
        if files <= on_disk:
            needed[pin] = files
    keep = set() if force else set().union(*needed.values())
    removed = remove_old_files(spark, path, retention_hours, keep)
    if force and removed:
        left = {file.name for file in data_files(spark, path)}
        for pin, files in needed.items():
            if not files <= left:
                _warn(account, f"removed by --force: {pin}; that training cannot be repeated")
    return removed


def _warn(account: Account, line: str) -> None:
    log.warning("maintain: %s", line)
    account.remarks.append(line)


def pins_of_models(warehouse: Warehouse) -> Iterator[Pin]:
    """Every version that a model was trained on whose artifact is kept."""
    for (name, version), model_ids in pinned_versions(read_models(warehouse).rows).items():
        if name in TABLES:
            yield Pin(TABLES[name], version, tuple(model_ids))
