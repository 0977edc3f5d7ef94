"""What counts are told to mean, on windows made by hand: verdicts, reasons for none, and what becomes of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from llm_spark.config import DriftConfig, DriftRules
from llm_spark.config.drift import MEASURES
from llm_spark.transforms.drift_counts import (
    EVENTS,
    HITS,
    ITEM_SQUARES,
    MISSING,
    NEW_ITEMS,
    SUMS_OF_HITS,
    TOTALS,
    UNKNOWN_ITEMS,
    USERS,
    VALUELESS,
    Count,
    Counts,
)
from llm_spark.transforms.drift_findings import findings
from llm_spark.transforms.drift_kernel import Calendar
from llm_spark.transforms.drift_rules import Advice, retraining_advice
from llm_spark.transforms.drift_scene import INFO, Finding, Scene

SUNDAY = date(2025, 3, 2)
USUAL: dict[str, dict[str, int]] = {
    TOTALS: {EVENTS: 1000, USERS: 300, NEW_ITEMS: 20, UNKNOWN_ITEMS: 100, ITEM_SQUARES: 2500, f"{MISSING}agent": 50},
    "event_types": {"view": 800, "cart": 140, "purchase": 60},
    VALUELESS: {"view": 800, "cart": 5, "purchase": 1},
    "item_mix": {"a": 400, "b": 300, "c": 200, "d": 100},
    "hours": {"9": 500, "20": 500},
    "session_length": {"1": 100, "2": 80, "5": 70},
    "score_distribution": {"1": 100, "2": 150, "3": 50},
    HITS: dict(zip(SUMS_OF_HITS, (250, 250, 60, 250, 60, 60), strict=True)),
}


def scene(
    now: Mapping[str, Mapping[str, int]] | None = None,
    num_earlier: int = 12,
    settings: DriftConfig | None = None,
    excluded: Sequence[date] = (),
    absent: Mapping[str, str] | None = None,
) -> Scene:
    """Earlier Sundays that differ by a few in a thousand, as `USUAL`, and the newest one with other numbers in the place of some."""
    settings = settings or DriftConfig()
    windows = range(settings.num_references + 1)
    rows = []
    for window in windows:
        for measure, categories in USUAL.items():
            if window > num_earlier:
                continue
            numbers: Mapping[str, int] = {
                name: number + (window * 7 + place * 3) % 5 for place, (name, number) in enumerate(categories.items())
            }
            if measure == HITS:
                numbers = categories
            if window == 0 and now is not None:
                numbers = {**numbers, **now.get(measure, {})}
            rows += [Count(measure, window, name, None, number) for name, number in numbers.items()]
    calendar = Calendar(SUNDAY, settings.window_days, settings.num_references, frozenset(excluded))
    known = range(1, num_earlier + 1)
    return Scene(Counts.of(rows, len(windows)), calendar, settings, known, range(num_earlier + 1), absent or {})


def by_name(found: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def told(found: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.severity for finding in found if finding.severity != INFO}


def test_a_day_like_those_before_is_as_usual_in_every_measure() -> None:
    found = findings(scene())
    assert told(found) == {}
    assert {finding.measure for finding in found} == set(MEASURES) - {"sources", "item_ids", "user_ids"}
    assert all(finding.text.endswith(": as usual") and finding.limit is not None for finding in found)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"event_types": {"view": 600, "cart": 200, "purchase": 200}}, {"event_types": "error"}),
        ({"event_types": {"view": 745, "cart": 155, "purchase": 100}}, {"event_types": "warning"}),
        ({"item_mix": {"a": 100, "d": 400}}, {"item_mix": "error"}),
        ({"hours": {"9": 20, "20": 980}}, {"hours": "error"}),
        ({"session_length": {"1": 200, "2": 40, "5": 10}}, {"session_length": "error"}),
        ({"score_distribution": {"1": 20, "3": 130}}, {"score_distribution": "error"}),
        ({VALUELESS: {"purchase": 30}}, {"missing_rate of value of purchase": "error"}),
        ({TOTALS: {f"{MISSING}agent": 520}}, {"missing_rate of agent": "error"}),
        ({TOTALS: {NEW_ITEMS: 160}}, {"new_item_share": "error"}),
        ({TOTALS: {NEW_ITEMS: 0}}, {}),
        ({TOTALS: {UNKNOWN_ITEMS: 205}}, {"unknown_item_share": "warning"}),
        (
            {TOTALS: {EVENTS: 2800, f"{MISSING}agent": 140, NEW_ITEMS: 56, UNKNOWN_ITEMS: 280, ITEM_SQUARES: 19600}},
            {"volume": "error"},
        ),
        ({HITS: {"hits": 10, "hits_squared": 10, "hits_trials": 10}}, {"hit_rate": "error"}),
        ({HITS: {"hits": 200, "hits_squared": 200, "hits_trials": 200}}, {}),
    ],
)
def test_what_has_changed_is_told_by_its_measure_and_nothing_else(
    now: dict[str, dict[str, int]], expected: dict[str, str]
) -> None:
    assert told(findings(scene(now))) == expected


def test_a_mix_that_changed_names_the_category_that_did_most_of_it() -> None:
    found = by_name(findings(scene({"event_types": {"view": 600, "cart": 200, "purchase": 200}})))["event_types"]
    assert "error, more than earlier Sundays explain; most of it: 'purchase' from 6." in found.text
    assert found.text.endswith("to 20.0 %")
    assert found.value is not None
    assert found.limit is not None
    assert f"PSI {found.value:.3f}, limit {found.limit:.3f}, error above 0.100" in found.text


def test_a_category_of_so_few_events_that_they_may_be_one_users_is_not_named() -> None:
    rare = scene(settings=DriftConfig(min_users=300))
    # 250 of the newest 749 events are of one file, and fewer than 300 users are no population.
    sources = {f"file {number}": np.full(13, 1.0) for number in range(500)}
    sources["file 7"] = np.array([250.0] + [1.0] * 12)
    rare.counts.by_measure["sources"] = sources  # type: ignore[index]
    found = by_name(findings(rare))["sources"]
    assert found.severity == "error"
    assert "most of it: a rare one from 0.2 % to 33.4 %" in found.text


def test_a_change_beyond_chance_that_does_not_matter_is_not_told() -> None:
    # A million events: 6.0 to 6.3 % purchases is far beyond chance, and a PSI of .0002.
    rows = []
    for window in range(13):
        purchases = 63_000 if window == 0 else 60_000 + window
        rows += [Count(TOTALS, window, EVENTS, None, 1_000_000), Count(TOTALS, window, USERS, None, 300_000)]
        rows += [Count("event_types", window, "view", None, 1_000_000 - purchases)]
        rows += [Count("event_types", window, "purchase", None, purchases)]
    large = replace(scene(), counts=Counts.of(rows, 13))
    assert told(findings(large)) == {}
    keen = replace(large, settings=DriftConfig(warning=replace(DriftConfig().warning, min_psi=0.0)))
    assert told(findings(keen)) == {"event_types": "warning"}


def test_the_hit_rate_has_its_interval_and_names_the_day_of_the_predictions() -> None:
    found = by_name(findings(scene()))["hit_rate"]
    assert found.window == "2025-02-23"
    # 60 of 250; Wilson's interval is that of scipy.stats.binomtest(60, 250).
    assert found.text.startswith(
        "24.0 % [19.1 %, 29.7 %] of 250 users: their next event was among the first 10 predicted as of 2025-02-23"
    )


def test_the_more_is_measured_the_wider_is_each_limit() -> None:
    settings = DriftConfig(warning=replace(DriftConfig().warning, min_share_change=0.0, min_volume_ratio=1.0))
    narrow, wide = scene(settings=settings), scene(settings=settings)
    for number in range(200):
        wide.counts.by_measure[TOTALS][f"{MISSING}column {number}"] = np.full(13, 5.0)  # type: ignore[index]
    few, many = (by_name(findings(measured)) for measured in (narrow, wide))

    def margin(found: Finding) -> float:
        assert found.value is not None
        assert found.limit is not None
        return abs(found.value - found.limit)

    assert margin(many["missing_rate of agent"]) > margin(few["missing_rate of agent"])
    assert margin(many["volume"]) == margin(few["volume"]), "two hundred columns are one measure of thirteen"


def test_events_of_one_new_item_are_one_new_item() -> None:
    # 160 of 1,000 events are new: of many items it is an error, of one that a quarter of all events are of it is chance.
    few_items = {TOTALS: {NEW_ITEMS: 160, ITEM_SQUARES: 120_000}}
    assert told(findings(scene({TOTALS: {NEW_ITEMS: 160}}))) == {"new_item_share": "error"}
    assert told(findings(scene(few_items))) == {}


def test_with_fewer_earlier_windows_than_asked_nothing_is_judged_and_it_says_how_many_there_are() -> None:
    found = findings(scene({"event_types": {"view": 1}}, num_earlier=3))
    assert told(found) == {}
    judged = [finding for finding in found if finding.measure != "unknown_item_share"]
    assert {finding.not_judged for finding in judged} == {"3 windows of 4"}
    assert by_name(found)["volume"].text == "1,000 events; not judged: 3 windows of 4"
    assert by_name(found)["event_types"].text == "not judged: 3 windows of 4"
    assert by_name(found)["event_types"].value is None
    four = findings(scene({"event_types": {"view": 1, "purchase": 900}}, num_earlier=4))
    assert told(four) == {"event_types": "error"}


def test_a_day_without_events_is_an_error_of_the_volume_and_the_rest_says_so_in_one_line() -> None:
    silent: dict[str, dict[str, int]] = {m: dict.fromkeys(c, 0) for m, c in USUAL.items() if m != HITS}
    found = findings(scene(silent))
    assert told(found) == {"volume": "error"}
    assert by_name(found)["volume"].text.startswith("0 events, usually 1,00")
    assert by_name(found)["event_types"].not_judged == "no users on 2025-03-02"
    assert by_name(found)["session_length"].not_judged == "no sessions that began on 2025-03-02"
    assert by_name(found)["score_distribution"].not_judged == "no users with predictions as of 2025-03-02"


def test_a_day_without_events_is_a_warning_where_nothing_can_be_compared() -> None:
    found = findings(scene({TOTALS: {EVENTS: 0, USERS: 0}}, num_earlier=2))
    assert told(found) == {"volume": "warning"}
    assert by_name(found)["volume"].text == "0 events; not judged: 2 windows of 4"


def test_a_day_that_is_always_without_events_is_as_usual() -> None:
    closed = scene()
    closed.counts.by_measure[TOTALS][EVENTS][:] = 0
    closed.counts.by_measure[TOTALS][USERS][:] = 0
    assert told(findings(closed)) == {}


def test_one_user_is_no_population_and_nothing_of_it_is_told() -> None:
    now = {TOTALS: {EVENTS: 12, USERS: 1, f"{MISSING}agent": 12}, "event_types": {"view": 0, "cart": 0, "purchase": 12}}
    found = by_name(findings(scene(now)))
    for name in ("event_types", "item_mix", "missing_rate of agent", "new_item_share", "unknown_item_share"):
        assert found[name].text == "not judged: 1 user on 2025-03-02, fewer than drift.min_users 30"
        assert found[name].value is None
    assert found["volume"].severity == "error"


def test_an_earlier_window_of_few_users_is_not_compared_with() -> None:
    few = scene(num_earlier=5)
    few.counts.by_measure[TOTALS][USERS][2:4] = 3
    assert by_name(findings(few))["event_types"].not_judged == "3 windows of 4"
    assert not by_name(findings(few))["session_length"].not_judged


def test_an_excluded_date_is_not_judged() -> None:
    found = findings(scene({"event_types": {"view": 0}}, excluded=[SUNDAY]))
    assert {finding.not_judged for finding in found} == {"2025-03-02 is among drift.exclude_dates"}
    assert told(found) == {}


@pytest.mark.parametrize(
    ("days_before", "not_judged"),
    [
        (0, set(MEASURES) - {"score_distribution"}),
        (1, {"score_distribution", "hit_rate"}),
        (7, {"hit_rate"}),
        (8, set()),
    ],
)
def test_predictions_are_excluded_by_their_own_day_and_hits_also_by_the_days_that_followed(
    days_before: int, not_judged: set[str]
) -> None:
    day = SUNDAY - timedelta(days=days_before)
    # As in a night: the newest predictions are those of the day before.
    found = findings(replace(scene(excluded=[day]), scored_days_back=1))
    reason = f"{day} is among drift.exclude_dates"
    assert {f.measure for f in found if f.not_judged == reason} == not_judged - {"sources", "item_ids", "user_ids"}


def test_an_earlier_window_with_an_excluded_day_is_not_compared_with() -> None:
    saturdays = [SUNDAY - timedelta(days=1 + 7 * weeks) for weeks in range(1, 10)]
    found = by_name(findings(replace(scene(excluded=saturdays), scored_days_back=1)))
    assert found["score_distribution"].not_judged == "3 windows of 4"
    assert not found["event_types"].not_judged


def test_a_table_that_is_not_there_yet_is_one_reason() -> None:
    why = "there are no predictions yet: run `llm-spark score`"
    found = by_name(findings(scene(absent={"hit_rate": why, "score_distribution": why})))
    assert found["hit_rate"].text == found["score_distribution"].text == f"not judged: {why}"


def test_how_user_ids_are_written_is_judged_and_not_shown() -> None:
    written = scene()
    others = np.full(13, 100.0)
    known = np.array([100.0] + [900.0] * 12)
    written.counts.by_measure["user_ids"] = {"a-9 of 8": known, "9 of 5": others}  # type: ignore[index]
    found = by_name(findings(written))["user_ids"]
    assert found.severity == "error"
    assert "most of it: one form from" in found.text


def finding(measure: str, severity: str) -> Finding:
    return Finding(measure, "", "2025-03-02", 1.0, 0.5, severity, "")


@pytest.mark.parametrize(
    ("found", "action", "reason"),
    [
        ([finding("item_mix", INFO)], "none", "None of the 1 measures that were judged asks for training."),
        ([finding("item_mix", "warning")], "warm_start", "Train with a warm start: mix of items (warning)."),
        (
            [finding("item_mix", "warning"), finding("hit_rate", "error"), finding("event_types", "warning")],
            "retrain",
            "Train from scratch: hit rate of predictions (error).",
        ),
        (
            [finding("hit_rate", "error"), finding("missing_rate", "error")],
            "none",
            "The data look broken, and training would learn the fault: missing (error); mend them first.",
        ),
        ([finding("volume", "warning")], "none", "None of the 1 measures that were judged asks for training."),
        ([], "none", "Nothing could be judged, so that nothing speaks for training."),
    ],
)
def test_advice_is_withheld_for_broken_data_and_else_the_strongest_that_is_asked_for(
    found: list[Finding], action: str, reason: str
) -> None:
    advice = retraining_advice(found, DriftRules())
    assert (advice.action, advice.reason) == (action, reason)
    assert advice.is_withheld == reason.startswith("The data look broken")


def test_rules_can_be_set_and_switched_off() -> None:
    rules = DriftRules(withhold={"volume": "never"}, retrain={"item_mix": "warning"}, warm_start={})
    found = [finding("volume", "error"), finding("item_mix", "warning")]
    assert retraining_advice(found, rules) == Advice("retrain", "Train from scratch: mix of items (warning).")
