"""A warehouse that is ready to be scored, with any number of users, made by Spark alone: sessions, vocabulary and a champion."""

from __future__ import annotations

import json
from datetime import datetime

import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import ModelConfig
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.registry.aliases import TRAIN, Model, as_champion, change
from llm_spark.schemas import EVENT_TYPES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.history_kernel import BY_TIME
from llm_spark.transforms.sessions import user_bucket

NUM_BUCKETS = 16
NUM_DAYS = 50
_ORIGIN = {"settings": {"num_buckets": NUM_BUCKETS}}
FIRST_DAY = datetime(2026, 1, 1)
TYPES = ("view", "cart", "purchase")
_MODEL_ID = "m-untrained"


def write_users(warehouse: Warehouse, num_users: int, num_items: int) -> None:
    """`num_users` users of one to three sessions of two to nine events each, in January and February 2026, and what a model needs."""
    spark = warehouse.spark
    items = spark.range(num_items).select(
        (F.col("id") + FIRST_ITEM_TOKEN).alias("token"),
        F.format_string("item-%06d", "id").alias("item_id"),
        F.lit(1).alias("num_events"),
        F.lit(FIRST_DAY).alias("first_seen_at"),
    )
    warehouse.replace(VOCABULARY, items, {})
    types = [(FIRST_ITEM_TOKEN + place, name, 1, FIRST_DAY) for place, name in enumerate(TYPES)]
    warehouse.replace(EVENT_TYPES, spark.createDataFrame(types, EVENT_TYPES.schema), {})
    visits = F.explode(F.sequence(F.lit(1), F.lit(1) + _draw("id", salt=1, below=3).cast("int")))
    of_users = spark.range(num_users).select("id", visits.alias("visit"))
    warehouse.replace(SESSIONS, _sessions(of_users, _draw("id", "visit", salt=2, below=NUM_DAYS), num_items), _ORIGIN)
    _write_champion(warehouse, num_items)


def add_a_night(warehouse: Warehouse, num_users: int, num_items: int, one_in: int) -> None:
    """One more session, on the day after all others, of each `one_in`-th user; written as sessionize does, which rewrites this month's parts."""
    visitors = warehouse.spark.range(num_users).where(F.col("id") % one_in == 0).select("id", F.lit(9).alias("visit"))
    new_sessions = _sessions(visitors, F.lit(NUM_DAYS), num_items)
    this_month = "started_month = DATE'2026-02-01'"
    of_month = warehouse.read(SESSIONS).where(this_month).unionByName(new_sessions)
    warehouse.replace_where(SESSIONS, of_month, this_month, _ORIGIN)


def _draw(*columns: str, salt: int, below: int):  # type: ignore[no-untyped-def]
    return F.pmod(F.xxhash64(*columns, F.lit(salt)), F.lit(below))


def _sessions(visits: DataFrame, day, num_items: int) -> DataFrame:  # type: ignore[no-untyped-def]
    """Rows of `sessions` from (id, visit). Items are skewed: half of the draws fall on an eighth of the items."""
    began = F.unix_timestamp(F.lit(FIRST_DAY)) + day * 86_400 + _draw("id", "visit", salt=3, below=80_000)
    sized = visits.withColumns({"num_events": F.lit(2) + _draw("id", "visit", salt=4, below=8), "began": began})

    def item_at(place):  # type: ignore[no-untyped-def]
        draw = F.pmod(F.xxhash64("id", "visit", place), F.lit(1_000_000)) / 1_000_000
        return F.format_string("item-%06d", F.floor(draw * draw * draw * num_items))

    def time_at(place):  # type: ignore[no-untyped-def]
        return F.timestamp_seconds(F.col("began") + place * 60)

    places = F.sequence(F.lit(0), F.col("num_events").cast("int") - 1)
    user_id = F.format_string("user-%09d", "id")
    made = sized.select(
        F.concat_ws("-", user_id, F.col("visit").cast("string")).alias("session_id"),
        user_id.alias("user_id"),
        F.lit(None).cast("string").alias("session_key"),
        F.trunc(F.timestamp_seconds("began"), "month").alias("started_month"),
        F.timestamp_seconds("began").alias("started_at"),
        time_at(F.col("num_events") - 1).alias("ended_at"),
        F.col("num_events").cast("int").alias("num_events"),
        F.lit(0).alias("num_collapsed"),
        F.transform(places, item_at).alias("item_ids"),
        F.transform(places, lambda place: F.element_at(F.array(*map(F.lit, TYPES)), (place % 3 + 1).cast("int"))).alias(
            "event_types"
        ),
        F.transform(places, time_at).alias("event_times"),
        F.transform(places, lambda place: (place + F.lit(1)).cast("double")).alias("event_values"),
        F.lit(None).cast("array<array<double>>").alias("event_features"),
    )
    return made.withColumn("user_bucket", user_bucket(NUM_BUCKETS))


def _write_champion(warehouse: Warehouse, num_items: int) -> None:
    """The default network with untrained weights: scoring takes as long as with trained ones."""
    torch.manual_seed(1)
    model = NextEventModel(ModelConfig(), num_items + FIRST_ITEM_TOKEN, len(TYPES) + FIRST_ITEM_TOKEN)
    splits = {"split": BY_TIME, "train_until": "2026-02-01 00:00:00", "validation_until": "2026-02-15 00:00:00"}
    path = warehouse.model_path(_MODEL_ID)
    tables = {"splits": splits, "table_versions": {"sequences": 0, "vocabulary": 0}}
    save_manifest(path, save_content(path, model, {}, tables))
    row = Model(_MODEL_ID, FIRST_DAY, json.dumps({}), "{}", "{}", f"models/{_MODEL_ID}", "", "")
    change(warehouse, lambda models: as_champion(models, row, FIRST_DAY, TRAIN, "untrained, for the benchmark"))
