"""One night under way: its lock, its steps, its row in `runs`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime

from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import log
from llm_spark.pipelines.account import DONE, FAILED, REFUSED, Account
from llm_spark.pipelines.as_of import AsOf, as_of_sessions
from llm_spark.pipelines.clock import begin_run
from llm_spark.pipelines.registry.aliases import GATE, Model, read_models
from llm_spark.pipelines.stages import as_of_date, one_line, run_stage
from llm_spark.schemas import SEQUENCES, SESSIONS
from llm_spark.tables.failures import storage_told
from llm_spark.tables.lease import Lease, held, held_alone, held_by_nobody
from llm_spark.tables.warehouse import Warehouse

LOCK = "nightly"
_ONE_AT_A_TIME = ("ingest", "sessionize", "sequences")
"""Two of one of these by hand would each write what the other found missing."""


@dataclass
class Night:
    """What the steps of a night have in common."""

    warehouse: Warehouse
    config: Config
    lease: Lease
    night_id: str
    started_at: datetime
    steps: dict[str, str] = field(default_factory=dict)
    """Stage -> done, or why there was nothing to do, or why it did not end."""
    _as_of: AsOf | None = None

    @property
    def as_of(self) -> AsOf:
        """The day; settled once the sessions are there."""
        assert self._as_of is not None
        return self._as_of

    def step(
        self, stage: str, config: Config | None = None, survives: tuple[type[UserError], ...] = ()
    ) -> UserError | None:
        """Run a stage; returns its error where that is one that does not end the night."""
        self.lease.check()
        try:
            account = run_stage(stage, self.warehouse, config or self.config, night_id=self.night_id)
            self.steps[stage] = f"nothing to do, {account.nothing_to_do}" if account.nothing_to_do else DONE
        except BaseException as error:
            self.steps[stage] = f"{REFUSED if isinstance(error, DataError) else FAILED}: {one_line(error)}"
            if not isinstance(error, survives):
                raise
            log.warning("%s: %s", stage, error)
            return error
        return None

    def settle_day(self) -> None:
        """Take the day of the newest event where none is given: all further steps then work as of the same one."""
        self._as_of = as_of_sessions(self.warehouse.read(SESSIONS), self.config.as_of)
        self.config = replace(self.config, as_of=str(self._as_of.day))

    def has_challenger(self) -> bool:
        return read_models(self.warehouse).challenger is not None

    def has_champion(self) -> bool:
        return read_models(self.warehouse).champion is not None

    def evaluates(self, has_trained: bool) -> bool:
        """Whether a model waits for the gate, or one of tonight's is measured without any."""
        return self.has_challenger() or (has_trained and not self.config.gate.enabled)

    def scores(self, has_trained: bool) -> bool:
        """Whether there is a model to score with: not where the only one was refused tonight, which is told at the night's end."""
        return self.has_champion() or not (has_trained and self.refused_model())

    def refused_model(self) -> str:
        """What the gate said against the newest model, if that is of these very sequences, tonight or before this run was repeated; empty where
        it was not refused."""
        models = read_models(self.warehouse)
        model = max(models.rows, key=lambda model: model.since, default=None)
        if model is None or model.judged_by != GATE or not self._is_of_these_sequences(model):
            return ""
        goes_on = f"champion {models.champion.model_id} scores" if models.champion else "no model is champion"
        by_hand = f"`llm-spark models promote {model.model_id}` overrules the gate"
        return f"model {model.model_id} was {model.reason}; {goes_on}; {by_hand}"

    def _is_of_these_sequences(self, model: Model) -> bool:
        version = model.json("table_versions").get(SEQUENCES.name)
        now = self.warehouse.data_version(SEQUENCES)
        return version is not None and version >= now

    def refused_files(self) -> str:
        """What ingest said against files that it could not read; empty where it did not. All others are ingested."""
        said = self.steps.get("ingest", "")
        return said.removeprefix(f"{REFUSED}: ") if said.startswith(f"{REFUSED}: ") else ""

    def finish(self, why: str) -> None:
        """Say what the night came to."""
        day = self.as_of.day
        if all(said.startswith("nothing to do") for said in self.steps.values()):
            log.info("nightly: nothing to do, the night of %s is finished with these inputs (%s)", day, why)
            return
        log.info("nightly: the night of %s is over; training: %s", day, why)


@contextmanager
def one_night(warehouse: Warehouse, config: Config) -> Iterator[Night]:
    """A night that no other runs beside; however it ends, `runs` tells, unless it found nothing to do."""
    night_id, began = uuid.uuid4().hex[:12], time.monotonic()
    what = f"the night of {config.as_of or 'the newest day'}, run {night_id}"
    with held(warehouse, LOCK, what, 60 * config.nightly.wait_minutes) as lease:
        night = Night(warehouse, config, lease, night_id, begin_run(warehouse))
        outcome, reason = DONE, ""
        try:
            yield night
        except BaseException as error:
            outcome = REFUSED if isinstance(error, DataError) else FAILED
            reason = one_line(error)
            raise
        finally:
            if any(not said.startswith("nothing to do") for said in night.steps.values()):
                _record(night, outcome, reason, time.monotonic() - began)


def run_by_hand(stage: str, warehouse: Warehouse, config: Config, **options: bool | str) -> Account:
    """Run one stage beside others, but not beside a night, nor one that makes tables beside itself: both would write the same, and neither know
    what the other read."""
    what = f"`llm-spark {stage}`"
    alone = held_alone(warehouse, stage, what) if stage in _ONE_AT_A_TIME else nullcontext()
    with storage_told(warehouse.root), held_by_nobody(warehouse, LOCK, what), alone:
        return run_stage(stage, warehouse, config, night_id="", **options)


def _record(night: Night, outcome: str, reason: str, seconds: float) -> None:
    account = Account("nightly", night.night_id, night.started_at, night_id=night.night_id, seconds=seconds)
    account.as_of_date = as_of_date(night.config)
    account.remarks = [f"{stage}: {said}" for stage, said in night.steps.items()]
    try:
        account.record(night.warehouse, outcome, reason)
    except Exception as error:
        log.warning("nightly: how it ended could not be recorded (%s)", one_line(error))
