"""sequences: sessions -> vocabulary, event_types, sequences."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config, SequencesConfig
from llm_spark.errors import DataError, UsageError
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.as_of import as_of_sessions
from llm_spark.pipelines.certificate import certify, is_certified, was_measured
from llm_spark.pipelines.features import features_note, require_session_features
from llm_spark.pipelines.outcomes import asked_outcomes, label_lines, outcomes_note
from llm_spark.pipelines.values import fitted_treatment, note_missing_values
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, SESSIONS, SPLITS, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms import vocabulary as tokens
from llm_spark.transforms.history_kernel import BY_TIME
from llm_spark.transforms.sequences import sequences as sequences_of
from llm_spark.transforms.sequences import tokenized_steps
from llm_spark.transforms.splits import SplitTimes, split_time_quantiles, training_sessions

MIN_ITEMS = 2


def sequences(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Split the sessions, extend the vocabulary from the training part, write the histories of each split, and certify them."""
    settings = config.sequences
    sessions_version = warehouse.version(SESSIONS)
    all_sessions = warehouse.read(SESSIONS, sessions_version)
    as_of = as_of_sessions(all_sessions, config.as_of) if config.as_of is not None else None
    made_from = {
        "sessions": warehouse.data_version(SESSIONS, sessions_version),
        # A table that is deleted and made anew counts its versions from 0 again.
        "sessions_table": warehouse.log(SESSIONS).table_id,
        **(as_of.note() if as_of is not None else {}),
        "missing_value": config.ingest.missing.value,
        **asdict(settings),
        **features_note(config.model.features),
        **outcomes_note(config.model.outcomes),
    }
    origin = warehouse.origin(SEQUENCES)
    has_tokens = all(warehouse.exists(table) for table in (VOCABULARY, EVENT_TYPES))
    is_written = has_tokens and origin is not None and origin["made_from"] == made_from
    if is_written and is_certified(warehouse):
        account.nothing_to_do = f"sequences are those of sessions v{sessions_version}{_as_of_day(made_from)} already"
        return
    require_session_features(warehouse, config.model.features, "model.features")
    account.begin(f"write the histories of sessions v{sessions_version}{_as_of_day(made_from)}")
    if config.model.outcomes and settings.split != BY_TIME:
        raise UsageError(
            f"sequences.split is '{settings.split}', under which no time says what an outcome's label may know: "
            "give sequences.split=time, or leave out model.outcomes"
        )
    sessions = as_of.of(all_sessions) if as_of is not None else all_sessions
    if is_written and not was_measured(warehouse):
        # Killed in between: written again they would be another version, and all that is made from them another thing.
        with progress("sequences: certificate"):
            certify(warehouse, sessions, account)
        account.read = {SESSIONS.name: sessions_version}
        return
    with progress("sequences: vocabulary"):
        times = _split_times(sessions, settings) if settings.split == BY_TIME else None
        trained = training_sessions(sessions, settings.split, times)
        added_from = {table.name: _next_token(warehouse, table) for table in (VOCABULARY, EVENT_TYPES)}
        type_counts = tokens.event_type_counts(trained).localCheckpoint()
        item_counts = tokens.item_counts(trained).localCheckpoint()
        new_types = _new(warehouse, EVENT_TYPES, type_counts, "event_type", 1, 0)
        new_items = _new(warehouse, VOCABULARY, item_counts, "item_id", settings.min_item_count, settings.max_items)
        num_items = warehouse.read_or_empty(VOCABULARY).count() + new_items.count()
        if num_items < MIN_ITEMS:
            where = f"before {times.train_until:%Y-%m-%d %H:%M}" if times else "that are training"
            raise DataError(
                f"the vocabulary has {num_items} items: there is no next one to choose; lower sequences.min_item_count "
                f"(now {settings.min_item_count}) or bring more events {where}"
            )
        _append(warehouse, EVENT_TYPES, new_types, "event_type")
        _append(warehouse, VOCABULARY, new_items, "item_id")
        treatment = fitted_treatment(trained, config, account)
        note_missing_values(sessions, treatment, account)
    with progress("sequences: histories"):
        # A code that an earlier night knew and that this training part does not teach stays unknown to these sequences.
        taught_items = warehouse.read(VOCABULARY).join(item_counts.select("item_id"), "item_id", "left_semi")
        taught_types = warehouse.read(EVENT_TYPES).join(type_counts.select("event_type"), "event_type", "left_semi")
        with_features = bool(config.model.features)
        steps = tokenized_steps(treatment.clipped(sessions), taught_items, taught_types, with_features)
        asked = None
        if times and config.model.outcomes:
            asked = asked_outcomes(sessions, config.model.outcomes, taught_types, times)
        origin = {
            "made_from": made_from,
            "split": settings.split,
            "train_until": str(times.train_until) if times else None,
            "validation_until": str(times.validation_until) if times else None,
            "added_from": added_from,
            "values": treatment.as_json(),
        }
        warehouse.replace(SEQUENCES, sequences_of(steps, settings, times, treatment.fill, asked), origin)
        targets = F.size("tokens") - F.col("first_target")
        by_split = (
            warehouse.read(SEQUENCES)
            .groupBy("split")
            .agg(
                F.count("*").alias("rows"),
                F.sum(targets).alias("targets"),
                F.count_if(targets == 0).alias("asking_rows"),
            )
        )
        found = {row["split"]: row for row in by_split.collect()}
    account.rows_in = {"sessions": sessions.count()}
    account.rows_out = {f"{split}_sequences": found[split]["rows"] if split in found else 0 for split in SPLITS}
    account.rows_out["vocabulary items"] = num_items
    account.read = {SESSIONS.name: sessions_version}
    account.wrote(warehouse, VOCABULARY, EVENT_TYPES, SEQUENCES)
    for split in SPLITS:
        if split in found and found[split]["targets"]:
            account.remarks.append(f"{split}: {found[split]['targets']:,} positions to predict")
        else:
            remedy = (
                "move sequences.train_until or validation_until" if times else "no user has three of what is left out"
            )
            account.remarks.append(f"{split}: no position to predict; {remedy}")
        if split in found and (num_rows := found[split]["asking_rows"]):
            account.remarks.append(f"{split}: {num_rows:,} sequences that predict none are there for their outcomes")
    if as_of is not None and as_of.leaves_out:
        account.remarks.append(f"events after {as_of.day} are left out (as_of)")
    if times:
        account.remarks.append(
            f"training ends before {times.train_until} UTC, validation before {times.validation_until} UTC"
        )
    else:
        account.remarks.append(f"{settings.split}: each user's last is test, the one before validation")
    if config.model.outcomes:
        account.remarks += label_lines(warehouse.read(SEQUENCES), config.model.outcomes)
    with progress("sequences: certificate"):
        certify(warehouse, sessions, account)


def _as_of_day(made_from: dict[str, Any]) -> str:
    return f" as of {made_from['as_of']}" if "as_of" in made_from else ""


def _next_token(warehouse: Warehouse, table: Table) -> int:
    largest = warehouse.read_or_empty(table).agg(F.max("token")).first()
    return int(largest[0]) + 1 if largest is not None and largest[0] is not None else FIRST_ITEM_TOKEN


def _new(
    warehouse: Warehouse, table: Table, counts: DataFrame, name: str, min_count: int, max_tokens: int
) -> DataFrame:
    return tokens.new_tokens(counts, warehouse.read_or_empty(table), name, min_count, max_tokens).localCheckpoint()


def _append(warehouse: Warehouse, table: Table, new: DataFrame, name: str) -> None:
    if not new.isEmpty():
        warehouse.insert_new(table, new, name)


def _split_times(sessions: DataFrame, settings: SequencesConfig) -> SplitTimes:
    if settings.train_until is not None and settings.validation_until is not None:
        times = SplitTimes(
            _time("train_until", settings.train_until), _time("validation_until", settings.validation_until)
        )
    else:
        row = split_time_quantiles(sessions, settings).first()
        if row is None or row["train_until"] is None:
            raise DataError(
                "the sessions table is empty: run `llm-spark ingest` and `llm-spark sessionize` on logs that hold events"
            )
        times = SplitTimes(row["train_until"], row["validation_until"])
    if not times.train_until < times.validation_until:
        raise UsageError(
            f"training would end at {times.train_until} and validation at {times.validation_until}: "
            "give sequences.train_until before sequences.validation_until"
        )
    return times


def _time(key: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise UsageError(
            f"sequences.{key} is '{text}': write a UTC time such as 2026-01-31 or 2026-01-31T06:00:00"
        ) from error
    if time.microsecond:
        raise UsageError(f"sequences.{key} is '{text}': write whole seconds, as the table sequences holds them")
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
