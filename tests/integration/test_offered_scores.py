"""Scores under every filter, from a model whose probabilities are written into it: .30 a, .25 b, .20 c, .15 d, .07 e, .03 f for everybody."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config, ModelConfig, OutcomeConfig
from llm_spark.errors import DataError, UsageError
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines import score as score_module
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.offering import offers_of
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.score import score
from llm_spark.schemas import (
    EVENT_TYPES,
    EVENTS,
    OUTCOMES,
    PREDICTIONS,
    SESSIONS,
    SESSIONS_SET_ASIDE,
    USER_MEMORY,
    VOCABULARY,
    Table,
)
from llm_spark.tables.warehouse import Warehouse, sql
from tests.model.histories import batch_of
from tests.pipelines.models import SPLITS, model, promote_in_turn

CHANCES = {"a": 0.30, "b": 0.25, "c": 0.20, "d": 0.15, "e": 0.07, "f": 0.03}
TYPES = ("view", "purchase")
KINDS = {"a": "toy", "b": "toy", "c": "book", "d": "book", "f": "toy"}
"""e has none."""
DAY = datetime(2026, 3, 20)
NIGHT = DAY + timedelta(days=1)
HISTORIES = {
    "anna": [("a", "purchase", 0), ("b", "view", 0)],
    "carl": [("f", "view", -19), ("f", "view", -19), ("f", "view", -19), ("a", "view", -1)],
    "dora": [("a", "purchase", 0), ("b", "purchase", 0), ("d", "purchase", 0), ("e", "purchase", 0)],
    "ben": [("new", "view", -2), ("newer", "view", -2)],
}
"""(item, type, days before the newest day); those of a day are one session, an hour apart."""
SETTINGS = [
    "ingest.columns.attributes={kind: kind}",
    "score.exclude=[purchase]",
    "score.deny_items=stop.csv",
    "score.max_per_category=1",
    "score.category_attribute=kind",
    "score.min_probability=0.05",
    "score.reasons=2",
]
OFFERED = {
    "anna": ["b", "d", "e"],  # a is hers, c denied, f too improbable
    "carl": ["a", "d", "e"],  # b would be a second toy
    "dora": [],  # all but c and f are hers
}
POPULAR = [("a", 3 / 9), ("d", 1 / 9), ("e", 1 / 9)]
"""Of nine events in the week before, two of items that the model does not know; b would be a second toy."""


def event_rows() -> list[dict]:
    rows = []
    for user, history in HISTORIES.items():
        for hour, (item, kind, days) in enumerate(history):
            at = DAY + timedelta(days=days, hours=hour + 1)
            attributes = {"kind": KINDS[item]} if item in KINDS else {}
            rows.append(
                {"user_id": user, "item_id": item, "event_type": kind, "event_time": at, "attributes": attributes}
                | {"event_id": f"{user}{hour}", "event_date": at.date()}
            )
    return [*rows, rows[0] | {"event_id": "of c", "item_id": "c", "user_id": "bot", "attributes": {"kind": "book"}}]


def session_row(user: str, events: list[dict]) -> dict:
    times = [event["event_time"] for event in events]
    return {
        "session_id": f"{user}-{times[0]}",
        "user_id": user,
        "user_bucket": 0,
        "started_month": times[0].date().replace(day=1),
        "started_at": times[0],
        "ended_at": times[-1],
        "num_events": len(events),
        "num_collapsed": 0,
        "item_ids": [event["item_id"] for event in events],
        "event_types": [event["event_type"] for event in events],
        "event_times": times,
        "event_values": [None] * len(events),
    }


def frame(spark: SparkSession, table: Table, rows: list[dict]) -> DataFrame:
    return spark.createDataFrame(
        [tuple(row.get(n) for n in table.schema.names) for row in rows], table.schema
    ).coalesce(1)


def written_model() -> NextEventModel:
    torch.manual_seed(0)
    outcomes = [OutcomeConfig("returns"), OutcomeConfig("spends", kind="amount")]
    config = ModelConfig(embedding_size=4, hidden_size=5, dense_size=6, memory_size=3, outcomes=outcomes)
    made = NextEventModel(config, 2 + len(CHANCES), 2 + len(TYPES)).eval()
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.bias[2:] = torch.tensor(list(CHANCES.values())).log()
        made.outcome_head.output.weight.mul_(5)  # that users differ plainly
    return made


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("offered") / "warehouse"))
    events = event_rows()
    sessions = []
    for user in HISTORIES:
        of_user = [event for event in events if event["user_id"] == user]
        for day in sorted({event["event_date"] for event in of_user}):
            sessions.append(session_row(user, [event for event in of_user if event["event_date"] == day]))
    aside = [session_row("bot", events[-1:]), session_row("anna", events[-1:])]
    tokens = [{"token": token, "item_id": item, "num_events": 1} for token, item in enumerate(CHANCES, 2)]
    types = [{"token": token, "event_type": name, "num_events": 1} for token, name in enumerate(TYPES, 2)]
    for table, rows in (
        (EVENTS, events),
        (SESSIONS, sessions),
        (SESSIONS_SET_ASIDE, [row | {"reason": "too_fast"} for row in aside]),
        (VOCABULARY, tokens),
        (EVENT_TYPES, types),
    ):
        warehouse.replace(table, frame(spark, table, rows), {})
    path = warehouse.model_path("m1")
    save_manifest(
        path,
        save_content(
            path, written_model(), {}, {"splits": SPLITS, "table_versions": {"sequences": 1, "vocabulary": 0}}
        ),
    )
    promote_in_turn(warehouse, model("m1"))
    Path(warehouse.root, "stop.csv").write_text("item_id,why\nc,recalled\nunheard of,recalled\n")
    return warehouse


def configured(warehouse: Warehouse, *overrides: str) -> Config:
    return settings.load(None, [f"warehouse={warehouse.root}", *SETTINGS, *overrides])


def run(warehouse: Warehouse, *overrides: str) -> Account:
    account = Account("score")
    score(warehouse, configured(warehouse, *overrides), account)
    return account


@pytest.fixture(scope="module")
def scored(warehouse: Warehouse) -> tuple[Warehouse, Account]:
    return warehouse, run(warehouse)


def test_every_user_is_offered_what_passes_all_filters_or_has_one_row_that_says_why_not(
    scored: tuple[Warehouse, Account],
) -> None:
    warehouse, account = scored
    rows = warehouse.read(PREDICTIONS).orderBy("user_id", "rank").collect()
    lists = {user: [row for row in rows if row["user_id"] == user] for user in (*HISTORIES, "bot", None)}
    assert sum(map(len, lists.values())) == len(rows)
    for user, items in OFFERED.items():
        if items:
            assert [row["item_id"] for row in lists[user]] == items
            assert [row["probability"] for row in lists[user]] == pytest.approx([CHANCES[item] for item in items])
            assert {row["source"] for row in lists[user]} == {"model"}
        else:
            (row,) = lists[user]
            assert (row["rank"], row["item_id"], row["probability"], row["source"]) == (1, None, None, "abstained")
    for user in ("ben", "bot", None):
        assert [(row["item_id"], row["probability"]) for row in lists[user]] == [
            (item, pytest.approx(share)) for item, share in POPULAR
        ]
        assert [row["rank"] for row in lists[user]] == [1, 2, 3]
        assert {(row["source"], row["score"]) for row in lists[user]} == {("fallback", None)}
    assert {(row["as_of_date"], row["model_id"], row["sessions_version"]) for row in rows} == {
        (DAY.date(), "m1", warehouse.data_version(SESSIONS))
    }
    assert account.rows_out == {
        "users": 5,
        "predictions": 15,
        "abstained": 1,
        "lists_of_the_fallback": 3,
        "outcomes": 8,
        "users_advanced": 0,
        "users_replayed": 4,
        "users_kept": 0,
        "users_withdrawn": 0,
    }
    assert "score.deny_items: 1 of 2 items of 'stop.csv' are not in the model's vocabulary" in account.remarks
    current = {row["user_id"] for row in sql(warehouse, "SELECT user_id FROM predictions_current").collect()}
    assert current == {"anna", "carl", "ben", "bot", None}


def test_outcomes_of_every_user_are_the_models_with_deciles_of_their_order(scored: tuple[Warehouse, Account]) -> None:
    warehouse, _ = scored
    rows = warehouse.read(OUTCOMES).collect()
    assert {(row["user_id"], row["outcome"]) for row in rows} == {
        (user, name) for user in HISTORIES for name in ("returns", "spends")
    }
    for name, column, other in (("returns", "probability", "value"), ("spends", "value", "probability")):
        of_outcome = sorted((r for r in rows if r["outcome"] == name), key=lambda r: (-r[column], r["user_id"]))
        assert {row[other] for row in of_outcome} == {None}
        # Of four, the first is in the first tenth; each other stands a quarter of the ten further down.
        assert [row["decile"] for row in of_outcome] == [1, 3, 6, 8]
    times = [int((DAY + timedelta(hours=hour)).replace(tzinfo=UTC).timestamp()) for hour in range(1, 5)]
    dora = {"tokens": [2, 3, 5, 6], "event_types": [3] * 4, "values": [float("nan")] * 4, "event_times": times}
    batch = batch_of([dora | {"session_starts": [0], "first_target": 1}])
    with torch.no_grad():
        expected = written_model().outcomes(batch, torch.tensor([20 * 3600.0]))[0].tolist()
    found = {row["outcome"]: row for row in rows if row["user_id"] == "dora"}
    assert [found["returns"]["probability"], found["spends"]["value"]] == pytest.approx(expected, rel=1e-4)
    for row in rows:
        items = {item for item, _, _ in HISTORIES[row["user_id"]]}
        assert {reason["item_id"] for reason in row["reasons"]} <= items & set(CHANCES)
    assert any(row["reasons"] for row in rows)


def content(warehouse: Warehouse, table: Table) -> list[tuple]:
    """Its rows; numbers to three places, for a walk that goes on from a kept state rounds otherwise than one from the first event."""
    rows = warehouse.read(table).drop("run_id", "scored_at").collect()
    rounded = [tuple(round(cell, 3) if isinstance(cell, float) else cell for cell in row) for row in rows]
    return sorted(rounded, key=str)


def test_a_run_that_was_killed_before_the_outcomes_is_taken_up_and_gives_the_same_tables(
    scored: tuple[Warehouse, Account], tmp_path: Path, spark: SparkSession
) -> None:
    assert run(scored[0]).nothing_to_do
    shutil.copytree(scored[0].root, tmp_path / "warehouse")
    killed = Warehouse(spark, str(tmp_path / "warehouse"))
    shutil.rmtree(killed.path(OUTCOMES))
    account = run(killed)
    assert not account.nothing_to_do
    for table in (PREDICTIONS, OUTCOMES):
        assert content(killed, table) == content(scored[0], table)


def test_who_reads_while_another_model_scores_the_same_day_is_served_by_one_of_both(
    scored: tuple[Warehouse, Account], tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scored[0].root, tmp_path / "warehouse")
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    shutil.copytree(warehouse.model_path("m1"), warehouse.model_path("m2"))
    promote_in_turn(warehouse, model("m2", 1))

    def served() -> set[tuple]:
        query = "SELECT user_id, item_id, model_id FROM predictions_current WHERE user_id <> 'bot'"
        return {tuple(row) for row in sql(warehouse, query).collect()}

    def killed_at(name: str) -> None:
        def killed(*_: object) -> None:
            raise InterruptedError(name)

        with monkeypatch.context() as patched:
            patched.setattr(score_module, name, killed)
            with pytest.raises(InterruptedError, match=name):
                run(warehouse)

    before = served()
    assert {user for user, _, _ in before} == set(HISTORIES) - {"dora"}, "of Dora there is nothing to offer"
    of_m2 = {(user, item, "m2") for user, item, _ in before}
    killed_at("write_outcomes")
    assert served() == before
    killed_at("_write_memory")
    assert served() == before
    killed_at("_remove_former_lists")
    assert served() == of_m2
    assert not run(warehouse).nothing_to_do
    assert served() == of_m2
    assert {row["model_id"] for row in warehouse.read(PREDICTIONS).collect()} == {"m2"}
    assert run(warehouse).nothing_to_do


def test_a_list_with_other_items_is_scored_by_again(
    scored: tuple[Warehouse, Account], tmp_path: Path, spark: SparkSession
) -> None:
    shutil.copytree(scored[0].root, tmp_path / "warehouse")
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    Path(warehouse.root, "stop.csv").write_text("item_id\nb\ne\n")
    # As a table of the warehouse; what is denied is denied though it is allowed too.
    ids = spark.createDataFrame([("b",), ("c",), ("f",)], "item_id string").coalesce(1)
    ids.write.format("delta").save(f"{warehouse.root}/tables/campaign")
    account = run(warehouse, "score.allow_items=campaign", "score.min_probability=0", "score.fallback_days=0")
    assert (account.rows_out["users_advanced"], account.rows_out["users_replayed"]) == (len(HISTORIES), 0)
    rows = warehouse.read(PREDICTIONS).select("user_id", "item_id", "source").collect()
    # Neither is bound by a category of the other; without a fallback the model answers for Ben, and nobody for strangers.
    assert {tuple(row) for row in rows} == {(user, item, "model") for user in HISTORIES for item in ("c", "f")}


@pytest.mark.parametrize("column_gone", [False, True])
def test_without_a_fallback_its_lists_are_served_no_longer_also_where_columns_of_the_memory_are_gone(
    scored: tuple[Warehouse, Account], tmp_path: Path, spark: SparkSession, column_gone: bool
) -> None:
    shutil.copytree(scored[0].root, tmp_path / "warehouse")
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    newcomers = "SELECT * FROM predictions_current WHERE user_id IS NULL"
    assert not sql(warehouse, newcomers).isEmpty()
    if column_gone:
        # As if another version of the program had made it.
        narrower = warehouse.read(USER_MEMORY).drop("position").localCheckpoint()
        writer = narrower.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        writer.save(warehouse.path(USER_MEMORY))
    newest = scored[0].read(PREDICTIONS).agg(F.max("as_of_date")).first()[0]
    account = run(warehouse, f"as_of={newest + timedelta(days=1)}", "score.fallback_days=0")
    assert account.rows_out["users_replayed" if column_gone else "users_advanced"] == len(HISTORIES)
    assert sql(warehouse, newcomers).isEmpty()
    served = sql(warehouse, "SELECT user_id FROM predictions_current").collect()
    # Dora has all there is.
    assert {row["user_id"] for row in served} == set(HISTORIES) - {"dora"}


@pytest.mark.parametrize(
    ("override", "error", "complaint"),
    [
        ("score.deny_items=nowhere", UsageError, "score.deny_items is 'nowhere': no table of the warehouse"),
        ("score.allow_items=vault://x/y", UsageError, "score.allow_items is 'vault://x/y', which cannot be looked for"),
        ("score.allow_items=other.csv", UsageError, "has no column item_id: its columns are sku, why"),
        ("score.allow_items=broken.parquet", UsageError, "cannot be read as Delta, CSV or Parquet"),
        ("score.allow_items=stop.csv", DataError, "leave no item that the model knows"),
        (
            "score.exclude=[purchse]",
            UsageError,
            "events of type 'purchse', which the model does not know: it knows purchase, view",
        ),
        (
            "score.category_attribute=colour",
            UsageError,
            r"score.category_attribute is 'colour', which is none of .* \(kind\)",
        ),
    ],
)
def test_a_filter_that_cannot_be_followed_is_refused_in_one_line(
    warehouse: Warehouse, override: str, error: type[Exception], complaint: str
) -> None:
    Path(warehouse.root, "other.csv").write_text("sku,why\nc,x\n")
    Path(warehouse.root, "broken.parquet").write_text("no Parquet")
    with pytest.raises(error, match=complaint) as refused:
        offers_of(
            warehouse,
            configured(warehouse, override),
            champion(warehouse),
            warehouse.read(VOCABULARY),
            warehouse.read(EVENT_TYPES),
            NIGHT,
            Account("score"),
        )
    assert "\n" not in str(refused.value)
