"""drift: the newest window of events, sessions and predictions against earlier ones -> data_quality, and advice on training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.config import Config, DriftConfig
from llm_spark.config.drift import ERROR, WARNING
from llm_spark.errors import DataError
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.as_of import as_of_days
from llm_spark.schemas import DATA_QUALITY, EVENTS, PREDICTIONS, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms import drift as counting
from llm_spark.transforms.drift_counts import EVENTS as NUM_EVENTS
from llm_spark.transforms.drift_counts import MISSING, TOTALS, Count, Counts
from llm_spark.transforms.drift_findings import findings
from llm_spark.transforms.drift_kernel import Calendar
from llm_spark.transforms.drift_rules import ACTIONS, NONE, Advice, retraining_advice
from llm_spark.transforms.drift_scene import INFO, Finding, Scene
from llm_spark.transforms.offers import of_the_model

_INPUTS, _ADVICE, _NOT_JUDGED = "drift_inputs", "retraining_advice", "not_judged"
_WITHOUT = {
    SESSIONS.name: ("there are no sessions yet: run `llm-spark sessionize`", ("session_length",)),
    VOCABULARY.name: ("there is no vocabulary yet: run `llm-spark sequences`", ("unknown_item_share",)),
    PREDICTIONS.name: ("there are no predictions yet: run `llm-spark score`", ("score_distribution", "hit_rate")),
}
"""Table that may be missing -> how that is told, and of which measures."""


def drift(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Judge the window that ends with as_of, write what was found to data_quality, and advise on training.

    DataError where there are no events, and with drift.fail_on_error after all is written where a measure is an error.
    """
    settings = config.drift
    attributes = sorted(config.ingest.columns.attributes)
    versions = {EVENTS.name: warehouse.version(EVENTS)}
    versions |= {t.name: warehouse.version(t) for t in (SESSIONS, VOCABULARY, PREDICTIONS) if warehouse.exists(t)}
    first_day, newest_day = _span(warehouse.read(EVENTS, versions[EVENTS.name]))
    as_of = as_of_days(config.as_of, first_day, newest_day)
    inputs = _inputs(warehouse, versions, as_of.day, settings, attributes)
    before = _newest(warehouse, _INPUTS)
    if before is not None and before["detail"] == inputs:
        account.nothing_to_do = f"{before['subject']} was judged on these tables with these settings already"
        _refuse_errors(account, settings, before["subject"], _errors_of(warehouse, before["run_id"]))
        return
    tables = {
        table.name: warehouse.read(table, versions[table.name])
        for table in (EVENTS, SESSIONS, VOCABULARY, PREDICTIONS)
        if table.name in versions
    }
    if SESSIONS.name in tables:
        tables[SESSIONS.name] = as_of.of(tables[SESSIONS.name])
    account.begin(f"judge the window that ends with {as_of.day}")
    with progress("drift"):
        calendar = _calendar(settings, as_of.day)
        scored_days_back = _scored_days_back(tables.get(PREDICTIONS.name), as_of.day)
        scene = Scene(
            _counts(tables, calendar, calendar.moved_back(scored_days_back), settings, attributes),
            calendar,
            settings,
            [w for w in range(1, settings.num_references + 1) if _is_known(calendar, w, first_day)],
            [w for w in range(settings.num_references + 1) if _has_a_past(calendar, w, first_day, settings)],
            {name: why for table, (why, names) in _WITHOUT.items() if table not in tables for name in names},
            scored_days_back,
        )
        found = findings(scene)
    advice = retraining_advice(found, settings.rules)
    account.checks += [_check(finding) for finding in found]
    account.checks.append(_check_of_advice(advice))
    account.checks.append(Check(_INPUTS, calendar.name(0), len(scene.known), detail=inputs))
    account.read = versions
    account.rows_in = {"events_in_the_window": int(scene.counts.of_category(TOTALS, NUM_EVENTS)[0])}
    numbers = {severity: sum(finding.severity == severity for finding in found) for severity in (WARNING, ERROR)}
    account.rows_out = {
        "measures_judged": sum(not finding.not_judged for finding in found),
        "warnings": numbers[WARNING],
        "errors": numbers[ERROR],
    }
    account.remarks += account_lines(scene, found, advice)
    _refuse_errors(
        account, settings, calendar.name(0), [finding.name for finding in found if finding.severity == ERROR]
    )


def latest_advice(warehouse: Warehouse) -> Advice | None:
    """What the newest run of this stage advised; None before the first. A nightly run asks this before it trains."""
    row = _newest(warehouse, _ADVICE)
    if row is None:
        return None
    return Advice(row["subject"], row["detail"], is_withheld=row["subject"] == NONE and row["severity"] == WARNING)


def account_lines(scene: Scene, found: Sequence[Finding], advice: Advice) -> list[str]:
    """The findings as lines of text: what is unusual first, then what is as usual, then what was not judged by reason, then the advice."""
    calendar, settings, known = scene.calendar, scene.settings, scene.known
    against = f"{len(known)} {scene.earlier}" + (f", from {calendar.name(known[-1])} on" if known else "")
    days = "" if calendar.window_days > 1 else f" ({calendar.as_of:%A})"
    lines = [f"{calendar.name(0)}{days} against {against}; at most drift.num_references {settings.num_references}"]
    severities = (ERROR, WARNING, INFO)
    told = [finding for finding in found if finding.value is not None]
    for finding in sorted(told, key=lambda finding: severities.index(finding.severity)):
        mark = "" if finding.severity == INFO else f"{finding.severity.upper()}: "
        lines.append(f"{mark}{finding.label}: {finding.text}")
    reasons: dict[str, list[str]] = {}
    for finding in found:
        if finding.value is None:
            reasons.setdefault(finding.not_judged, []).append(finding.label)
    lines += [f"not judged: {why} ({', '.join(labels)})" for why, labels in reasons.items()]
    return [*lines, f"advice: {advice.action}. {advice.reason}"]


def _inputs(
    warehouse: Warehouse, versions: Mapping[str, int], as_of: date, settings: DriftConfig, attributes: list[str]
) -> str:
    """What a verdict depends on, in one line: the same again is nothing to do."""
    tables = {
        table.name: [warehouse.log(table).table_id, warehouse.data_version(table, versions[table.name])]
        for table in (EVENTS, SESSIONS, VOCABULARY, PREDICTIONS)
        if table.name in versions
    }
    asked = {name: value for name, value in asdict(settings).items() if name != "fail_on_error"}
    told = {"tables": tables, "as_of": str(as_of), "settings": asked, "attributes": attributes}
    return json.dumps(told, sort_keys=True)


def _newest(warehouse: Warehouse, name: str) -> Row | None:
    rows = warehouse.read_or_empty(DATA_QUALITY).where((F.col("stage") == "drift") & (F.col("name") == name))
    return rows.orderBy(F.desc("measured_at"), F.desc("run_id")).first()


def _errors_of(warehouse: Warehouse, run_id: str) -> list[str]:
    rows = warehouse.read(DATA_QUALITY).where((F.col("run_id") == run_id) & (F.col("severity") == ERROR))
    return sorted(row["name"] for row in rows.select("name").collect())


def _refuse_errors(account: Account, settings: DriftConfig, window: str, names: Sequence[str]) -> None:
    if settings.fail_on_error and names:
        account.refusal = (
            f"errors on {window} ({', '.join(names)}): see data_quality; mend the data, put the days among drift.exclude_dates, "
            "or leave out drift.fail_on_error"
        )


def _span(events: DataFrame) -> tuple[date, date]:
    row = events.agg(F.min("event_date").alias("first"), F.max("event_date").alias("last")).first()
    if row is None or row["first"] is None:
        raise DataError("the events table is empty: run `llm-spark ingest` on logs that hold events")
    return row["first"], row["last"]


def _scored_days_back(predictions: DataFrame | None, as_of: date) -> int:
    """1 where that day is not scored yet and the day before is: a night judges its data before it trains, and scores last."""
    if predictions is None:
        return 0
    near = predictions.where(F.col("as_of_date").isin(as_of, as_of - timedelta(days=1)))
    newest = near.agg(F.max("as_of_date")).first()
    return (as_of - newest[0]).days if newest is not None and newest[0] is not None else 0


def _calendar(settings: DriftConfig, as_of: date) -> Calendar:
    excluded = frozenset(date.fromisoformat(day) for day in settings.exclude_dates)
    return Calendar(as_of, settings.window_days, settings.num_references, excluded)


def _is_known(calendar: Calendar, window: int, first_day: date) -> bool:
    return calendar.days(window)[0] >= first_day and calendar.excluded_day(window) is None


def _has_a_past(calendar: Calendar, window: int, first_day: date, settings: DriftConfig) -> bool:
    return calendar.days(window)[0] - timedelta(days=settings.new_item_days) >= first_day


def _counts(
    tables: Mapping[str, DataFrame],
    calendar: Calendar,
    scored: Calendar,
    settings: DriftConfig,
    attributes: Sequence[str],
) -> Counts:
    events = tables[EVENTS.name]
    items = counting.item_windows(events, tables.get(VOCABULARY.name), calendar, settings.new_item_days)
    frames = [
        counting.event_counts(events, calendar, attributes),
        counting.user_counts(events, calendar),
        counting.item_counts(items),
    ]
    if SESSIONS.name in tables:
        frames.append(counting.session_lengths(tables[SESSIONS.name], calendar))
    if PREDICTIONS.name in tables:
        # A night writes lists of whoever has news, one of a new model those of everybody: visitors of the day are what nights have in common.
        since = min(calendar.first_day, scored.first_day) - timedelta(days=settings.hit_days)
        recent = events.where(F.col("event_date") >= F.lit(since))
        visitors = recent.select("user_id", F.col("event_date").alias("as_of_date")).distinct()
        predictions = of_the_model(tables[PREDICTIONS.name]).join(visitors, ["user_id", "as_of_date"], "left_semi")
        frames.append(counting.score_distribution(predictions, scored))
        frames.append(counting.hits(predictions, events, calendar, settings.hit_k, settings.hit_days))
    counts = counting.all_counts(frames).localCheckpoint()
    rows: list[Any] = counting.grouped(counts, settings).collect()
    # An attribute that no event lacks has a share too.
    none_missing = [Count(TOTALS, 0, f"{MISSING}{name}", None, 0) for name in attributes]
    return Counts.of([*(Count(*row) for row in rows), *none_missing], settings.num_references + 1)


def _check(finding: Finding) -> Check:
    if finding.value is None:
        return Check(_NOT_JUDGED, f"{finding.name} of {finding.window}", 1, detail=finding.not_judged)
    return Check(finding.name, finding.window, finding.value, finding.limit, finding.severity, finding.text)


def _check_of_advice(advice: Advice) -> Check:
    is_quiet = advice.action == NONE and not advice.is_withheld
    severity = INFO if is_quiet else WARNING
    return Check(_ADVICE, advice.action, ACTIONS.index(advice.action), severity=severity, detail=advice.reason)
