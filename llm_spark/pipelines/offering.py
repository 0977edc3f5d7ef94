"""From the settings of score to the rules of all lists, and to what is shown where the model knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config, ScoreConfig
from llm_spark.errors import DataError, UsageError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.item_attributes import categories_by
from llm_spark.pipelines.registry.serving import Champion
from llm_spark.schemas import EVENTS, SESSIONS_SET_ASIDE
from llm_spark.scoring.offers import Offers, popular_offers
from llm_spark.tables.item_lists import item_list
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.offers import item_activity, users_set_aside

_POPULAR_DDL = "popular_rank int, popular_item_id string, popular_probability double"


def offers_of(
    warehouse: Warehouse,
    config: Config,
    model: Champion,
    vocabulary: DataFrame,
    event_types: DataFrame,
    night: datetime,
    account: Account,
) -> Offers:
    """The rules of this night's lists; `vocabulary` and `event_types` hold what the model knows.

    UsageError for a list, an attribute or an event type that is not there; DataError where no item is left to offer.
    """
    rules = config.score
    allowed_V = _allowed(warehouse, rules, vocabulary, model.num_tokens, account)
    category_V = None
    if rules.max_per_category:
        assert rules.category_attribute is not None
        events = warehouse.read(EVENTS).where(F.col("event_time") < F.lit(night))
        categories = categories_by(events, config, rules.category_attribute, "score.category_attribute")
        category_V = _category_codes(categories, vocabulary, model.num_tokens)
    return Offers(
        k=rules.k,
        had_by=_had_by(rules.excluded_types, event_types),
        allowed_V=allowed_V,
        category_V=category_V,
        max_per_category=rules.max_per_category,
        min_probability=rules.min_probability,
        with_fallback=rules.fallback_days > 0,
    )


def offers_note(rules: ScoreConfig, offers: Offers) -> dict[str, Any]:
    """What the lists depend on beside the model and the histories: the same again, the same lists."""
    return {
        "k": rules.k,
        "exclude": rules.exclude,
        "items": offers.digest(),
        "max_per_category": rules.max_per_category,
        "min_probability": rules.min_probability,
        "fallback_days": rules.fallback_days,
    }


def fallback_items(
    sessions: DataFrame,
    model: Champion,
    vocabulary: DataFrame,
    offers: Offers,
    night: datetime,
    num_days: int,
    account: Account,
) -> DataFrame:
    """The fallback's list (popular_rank, popular_item_id, popular_probability), a few rows: what may be offered of the items with the most
    events in the days before the night. The probability is the item's share of all events of these days, those of unknown items included.
    """
    activity = item_activity(sessions, vocabulary, night - timedelta(days=num_days), night).toArrow()
    tokens, counts = (activity.column(name).to_numpy().astype(np.int64) for name in ("token", "num_events"))
    num_events_V = _by_token(model.num_tokens, tokens, counts)
    popular = popular_offers(offers, num_events_V)
    if not popular:
        account.remarks.append(
            f"no fallback: nothing that may be offered has an event in the {num_days} days before the night"
        )
    named = vocabulary.where(F.col("token").isin(popular)).select("token", "item_id").collect() if popular else []
    item_id_of = {row["token"]: row["item_id"] for row in named}
    num_events = int(counts.sum())
    rows = [
        (place + 1, item_id_of[token], int(num_events_V[token]) / num_events) for place, token in enumerate(popular)
    ]
    return vocabulary.sparkSession.createDataFrame(rows, _POPULAR_DDL).coalesce(1)


def users_without_history(warehouse: Warehouse, sessions: DataFrame, night: datetime) -> DataFrame:
    """(user_id): those whose sessions before the night were all set aside, and null, which stands for anybody who comes for the first time."""
    newcomer = warehouse.spark.createDataFrame([(None,)], "user_id string").coalesce(1)
    if not warehouse.exists(SESSIONS_SET_ASIDE):
        return newcomer
    return users_set_aside(warehouse.read(SESSIONS_SET_ASIDE), sessions, night).unionByName(newcomer)


def _had_by(excluded_types: Sequence[str] | None, event_types: DataFrame) -> frozenset[int] | None:
    if excluded_types is None or not excluded_types:
        return None if excluded_types is None else frozenset()
    token_of = {row["event_type"]: row["token"] for row in event_types.select("event_type", "token").collect()}
    for name in excluded_types:
        if name not in token_of:
            known = ", ".join(sorted(token_of))
            raise UsageError(
                f"score.exclude names events of type '{name}', which the model does not know: it knows {known}"
            )
    return frozenset(token_of[name] for name in excluded_types)


def _allowed(
    warehouse: Warehouse, rules: ScoreConfig, vocabulary: DataFrame, num_tokens: int, account: Account
) -> NDArray[np.bool_] | None:
    """Which tokens may be offered; None for all. How many ids of a list the model does not know is remarked."""
    allowed_V = None
    for setting, place in (("score.allow_items", rules.allow_items), ("score.deny_items", rules.deny_items)):
        if place is None:
            continue
        ids = item_list(warehouse, place, setting)
        # Each id is one item of the vocabulary at most.
        found = ids.join(vocabulary.select("item_id", "token"), "item_id", "left").select("token").toArrow()
        tokens = found.column("token").drop_null().to_numpy()
        if len(tokens) < found.num_rows:
            unknown = f"{found.num_rows - len(tokens):,} of {found.num_rows:,} items"
            account.remarks.append(f"{setting}: {unknown} of '{place}' are not in the model's vocabulary")
        listed_V = np.zeros(num_tokens, dtype=bool)
        listed_V[tokens] = True
        wanted_V = listed_V if setting == "score.allow_items" else ~listed_V
        allowed_V = wanted_V if allowed_V is None else allowed_V & wanted_V
    if allowed_V is not None and not allowed_V[FIRST_ITEM_TOKEN:].any():
        lists = " and ".join(f"'{place}'" for place in (rules.allow_items, rules.deny_items) if place is not None)
        raise DataError(f"{lists} leave no item that the model knows: nothing could be offered to anybody")
    return allowed_V


def _category_codes(categories: DataFrame, vocabulary: DataFrame, num_tokens: int) -> NDArray[np.int64]:
    """A code from 1 for each token that has a category, in the order of the names; else 0."""
    # Each item has one token, and one category at most.
    named = vocabulary.select("item_id", "token").join(categories, "item_id", "inner").select("token", "category")
    table = named.toArrow()
    _, codes = np.unique(table.column("category").to_numpy().astype(str), return_inverse=True)
    return _by_token(num_tokens, table.column("token").to_numpy(), codes.reshape(-1) + 1)


def _by_token(num_tokens: int, tokens: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.int64]:
    placed = np.zeros(num_tokens, dtype=np.int64)
    placed[tokens] = numbers
    return placed
