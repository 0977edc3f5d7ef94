"""What a night of scoring works on: which model, as of which day, which version of the sessions, and what its tables were made from before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.as_of import as_of_sessions, end_of
from llm_spark.pipelines.features import require_session_features
from llm_spark.pipelines.offering import offers_note, offers_of
from llm_spark.pipelines.registry.serving import Champion, champion
from llm_spark.schemas import EVENT_TYPES, PREDICTIONS, SESSIONS, SESSIONS_SET_ASIDE, USER_MEMORY, VOCABULARY
from llm_spark.scoring.offers import Offers
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.as_of import sessions_before
from llm_spark.transforms.sequences import tokenized_steps

BESIDE = "beside"
"""Notes, in the origin of predictions, the model whose lists of the same day are kept until user_memory is the new one's."""
STATES_VERSION = 1
"""Rises when the columns of user_memory come to mean something else: states made under another one are made again."""


@dataclass(frozen=True)
class ScoringNight:
    """Everything as of the end of a UTC day."""

    warehouse: Warehouse
    config: Config
    model: Champion
    as_of: date
    newest: date | None
    """The newest day that there are predictions of."""
    sessions_version: int
    sessions_table: str
    offers: Offers

    @classmethod
    def of(cls, warehouse: Warehouse, config: Config, account: Account) -> ScoringNight:
        """DataError where there is no champion, no session or nothing to offer; UsageError for a day that no event reaches, or is to come."""
        model = champion(warehouse)
        require_session_features(warehouse, model.config.features, f"model {model.model_id}")
        log = warehouse.log(SESSIONS)
        as_of = as_of_sessions(warehouse.read(SESSIONS, log.version), config.as_of).day
        days = warehouse.read_or_empty(PREDICTIONS).agg(F.max("as_of_date").alias("newest")).first()
        assert days is not None
        vocabulary, event_types = known_vocabulary(warehouse, model), known_event_types(warehouse, model)
        offers = offers_of(warehouse, config, model, vocabulary, event_types, end_of(as_of), account)
        return cls(warehouse, config, model, as_of, days["newest"], log.version, log.table_id, offers)

    @property
    def is_earlier(self) -> bool:
        """Whether there are predictions of a later day, which must not be mixed with what is known on this one."""
        return self.newest is not None and self.as_of < self.newest

    @property
    def instant(self) -> datetime:
        return end_of(self.as_of)

    @property
    def sessions(self) -> DataFrame:
        """As they stand now, events of later days among them."""
        return self.warehouse.read(SESSIONS, self.sessions_version)

    @property
    def vocabulary(self) -> DataFrame:
        return known_vocabulary(self.warehouse, self.model)

    def before(self, sessions: DataFrame) -> DataFrame:
        """The sessions as they were at the end of the day."""
        return sessions_before(sessions, self.instant)

    def steps(self, sessions: DataFrame) -> DataFrame:
        """The sessions' events as the model reads them, but for missing values."""
        event_types = known_event_types(self.warehouse, self.model)
        clipped_sessions = self.model.values.clipped(sessions)
        return tokenized_steps(clipped_sessions, self.vocabulary, event_types, bool(self.model.config.features))

    def session_open(self, last_event: Column) -> Column:
        """Whether the next event would still belong to the user's last session, whose last event came at that epoch second.

        Where each session is a user of its own there is no next session, so it is always open.
        """
        if self._one_session_a_user:
            return F.lit(True)
        settings, next_moment = self.config.sessionize, F.lit(self.instant)
        is_near = F.unix_seconds(next_moment) - last_event <= settings.gap_seconds
        if settings.day_cut is None:
            return is_near
        days = (
            F.to_date(F.from_utc_timestamp(t, settings.day_cut)) for t in (F.timestamp_seconds(last_event), next_moment)
        )
        return is_near & (next(days) == next(days))

    @property
    def _one_session_a_user(self) -> bool:
        columns = self.config.ingest.columns
        return columns.session is not None and columns.session == columns.user

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the night's rows are made from."""
        config = self.config
        return {
            "as_of_date": str(self.as_of),
            "model_id": self.model.model_id,
            "sessions": self.warehouse.data_version(SESSIONS, self.sessions_version),
            "sessions_table": self.sessions_table,
            "set_aside": self._set_aside_version(),
            "settings": {
                "states": STATES_VERSION,
                "offers": offers_note(config.score, self.offers),
                "reasons": config.score.reasons,
                "explained": config.score.explained,
                "max_tokens": config.sequences.max_tokens,
                "gap_seconds": config.sessionize.gap_seconds,
                "day_cut": config.sessionize.day_cut,
                "num_buckets": config.sessionize.num_buckets,
                "one_session_a_user": self._one_session_a_user,
            },
        }

    def _set_aside_version(self) -> int | None:
        """Whose sessions were all set aside is shown the fallback."""
        there = self.config.score.fallback_days and self.warehouse.exists(SESSIONS_SET_ASIDE)
        return self.warehouse.data_version(SESSIONS_SET_ASIDE) if there else None

    @property
    def has_buckets_of_sessions(self) -> bool:
        """Whether users lie in the same buckets as sessionize put their sessions in."""
        made_under = (self.warehouse.origin(SESSIONS) or {}).get("settings", {})
        return bool(made_under.get("num_buckets") == self.config.sessionize.num_buckets)

    def origin_of_memory(self) -> dict[str, Any]:
        """And to which table of predictions user_memory belongs."""
        there = self.warehouse.exists(PREDICTIONS)
        return {**self.origin, "predictions_table": self.warehouse.log(PREDICTIONS).table_id if there else None}

    @cached_property
    def former_model(self) -> str | None:
        """The other model whose lists of this very day are served, as user_memory says, until it is this one's; None where there is none."""
        made = None if self.is_earlier else self.warehouse.origin(USER_MEMORY)
        if made is None or made.get("as_of_date") != str(self.as_of) or made.get("model_id") == self.model.model_id:
            return None
        return str(made.get("model_id"))

    @property
    def origin_of_predictions(self) -> dict[str, Any]:
        """While the lists of a former model lie beside, that is noted too: they are to be removed."""
        return self.origin if self.former_model is None else {**self.origin, BESIDE: self.former_model}

    def lies_beside_another(self) -> bool:
        """Whether the day holds lists of a former model that nobody is served any more, or the newest ones of a run that was killed."""
        return not self.is_earlier and BESIDE in (self.warehouse.origin(PREDICTIONS) or {})

    def is_made(self, made: dict[str, Any] | None) -> bool:
        """Whether the tables hold this night already; `made` is the origin of user_memory."""
        if self.is_earlier:
            return self.warehouse.origin(PREDICTIONS) == self.origin
        return made == self.origin_of_memory()

    def is_whole(self, made: dict[str, Any] | None) -> bool:
        """Whether the newest predictions were written together with user_memory: neither by a run that was killed, nor for an earlier day."""
        noted = self.warehouse.origin(PREDICTIONS)
        return made is not None and noted == {name: made[name] for name in made if name != "predictions_table"}

    def offers_differ(self, made: dict[str, Any]) -> bool:
        """Whether something else is offered than when user_memory was `made`: then every list is made again, from what is kept."""
        return bool(made["settings"].get("offers") != self.origin["settings"]["offers"])

    def why_all(self, made: dict[str, Any] | None) -> str:
        """Why what was kept of the users is of no use tonight; empty where it is."""
        if self.is_earlier:
            return f"{self.as_of} is before {self.newest}, the newest day with predictions"
        if made is None:
            return "nothing is kept of any user yet"
        if made.get("model_id") != self.model.model_id:
            return f"it was model {made.get('model_id')} that kept user_memory, and {self.model.model_id} is champion"
        now = self.origin_of_memory()
        if _of_states(made) != _of_states(now):
            return "settings changed"
        for name in ("sessions", "predictions"):
            if made.get(f"{name}_table") != now[f"{name}_table"]:
                return f"the table {name} was made anew"
        if self.warehouse.is_laid_out_otherwise(USER_MEMORY):
            return "an earlier version of this program made user_memory, with other columns"
        return ""


def _of_states(origin: dict[str, Any]) -> dict[str, Any]:
    """The settings that what is kept of a user depends on: not those of what he is offered."""
    return {name: value for name, value in origin.get("settings", {}).items() if name != "offers"}


def known_vocabulary(warehouse: Warehouse, model: Champion) -> DataFrame:
    """The items that the model knows: tables of tokens only grow, and its own are those below its number of them."""
    return warehouse.read(VOCABULARY).where(F.col("token") < model.num_tokens)


def known_event_types(warehouse: Warehouse, model: Champion) -> DataFrame:
    """The event types that it knows, likewise."""
    return warehouse.read(EVENT_TYPES).where(F.col("token") < model.num_event_types)
