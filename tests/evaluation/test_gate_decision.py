"""When a model may take the champion's place, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_spark.config import GateConfig
from llm_spark.evaluation.gate import Evidence, Measured, MeasuredOutcome, decide

RULES = GateConfig(max_loss=0.01)


def lead(value: float, low: float | None, high: float | None) -> Measured:
    return Measured(value, low, high, 1234)


BETTER, TIED, WORSE = lead(0.05, 0.03, 0.07), lead(0.0, 0.0, 0.0), lead(-0.05, -0.07, -0.03)
UNSURE = lead(0.02, -0.01, 0.05)
OF_ONE_USER = lead(0.05, None, None)

GOOD = Evidence(
    metric="recall@20",
    champion_id="m1",
    certificate_objection="",
    num_ranks=2,
    finished_ranks=(0, 1),
    over_champion=BETTER,
    over_baselines={"popularity": BETTER, "markov": BETTER, "vsknn": BETTER},
    expected_baselines=("popularity", "markov", "vsknn"),
)


def leads(**over: Measured) -> dict[str, Any]:
    return {"over_baselines": {**GOOD.over_baselines, **over}}


def without(*names: str) -> dict[str, Any]:
    return {"over_baselines": {name: m for name, m in GOOD.over_baselines.items() if name not in names}}


@pytest.mark.parametrize(
    ("why", "evidence", "rules"),
    [
        ("better than all", {}, {}),
        ("a loss within the margin is no matter", {"over_champion": lead(-0.004, -0.009, 0.001)}, {}),
        ("the margin itself is within it", {"over_champion": lead(0.0, -0.01, 0.01)}, {}),
        ("as good as the champion to the position", {"over_champion": TIED}, {"max_loss": 0.0}),
        ("the first model has nobody to lose against", {"champion_id": None, "over_champion": None}, {}),
        ("a lead over the best baseline counts by its value", leads(vsknn=UNSURE), {}),
        ("popularity by its value, where asked for", leads(popularity=UNSURE), {"beats_popularity": "point"}),
        ("popularity need not be beaten", leads(popularity=WORSE), {"beats_popularity": "none"}),
        ("baselines need not be beaten", leads(vsknn=WORSE), {"beats_best_baseline": "none"}),
        ("what need not be beaten may be missing", without("markov"), {"beats_best_baseline": "none"}),
        ("a baseline that failed, with a warning", without("vsknn"), {"missing_baseline": "warn"}),
    ],
)
def test_a_model_is_promoted(why: str, evidence: dict[str, Any], rules: dict[str, Any]) -> None:
    decision = decide(replace(GOOD, **evidence), replace(RULES, **rules))
    assert decision.promoted, (why, decision.sentences)
    assert decision.sentences


@pytest.mark.parametrize(
    ("evidence", "rules", "sentence"),
    [
        ({"certificate_objection": "sequences v3 have no certificate"}, {}, "sequences v3 have no certificate"),
        ({"finished_ranks": (0,)}, {}, "record of rank 1 is missing (2 trained it)"),
        ({"finished_ranks": ()}, {}, "record of rank 0, 1 is missing (2 trained it)"),
        ({"over_champion": WORSE}, {}, "less that of champion m1 is -0.0500 [-0.0700, -0.0300] on 1,234 positions"),
        # Its upper end and its value lie well above: the lower end alone rules a loss out.
        ({"over_champion": lead(0.02, -0.011, 0.05)}, {}, "a loss of more than 0.01 is not ruled out"),
        ({"over_champion": None}, {}, "its recall@20 was not compared with that of champion m1"),
        ({"over_champion": lead(float("nan"), None, None)}, {}, "was not compared with that of champion m1"),
        ({"over_champion": lead(0.05, None, None)}, {}, "without an interval to judge by"),
        (leads(popularity=TIED), {}, "less that of popularity is +0.0000 [+0.0000, +0.0000]"),
        (leads(popularity=UNSURE), {}, "it is not shown to be better"),
        (leads(popularity=lead(0.05, None, None)), {}, "popularity is +0.0500 on 1,234 positions, without an interval"),
        (leads(vsknn=WORSE), {}, "less that of vsknn, the best baseline, is -0.0500"),
        (leads(vsknn=TIED), {}, "less that of vsknn, the best baseline, is +0.0000"),
        (leads(vsknn=UNSURE), {"beats_best_baseline": "interval"}, "vsknn, the best baseline, is +0.0200"),
        (leads(markov=lead(-0.01, -0.02, 0.0), vsknn=WORSE), {}, "vsknn, the best baseline"),
        (without("vsknn"), {}, "the baseline vsknn was not measured"),
        (without("popularity"), {}, "the baseline popularity was not measured"),
        (leads(vsknn=lead(float("nan"), None, None)), {}, "the baseline vsknn was not measured"),
        ({**without("vsknn"), "over_champion": WORSE}, {"missing_baseline": "warn"}, "champion m1 is -0.05"),
    ],
)
def test_a_model_is_refused_with_the_reason(evidence: dict[str, Any], rules: dict[str, Any], sentence: str) -> None:
    decision = decide(replace(GOOD, **evidence), replace(RULES, **rules))
    assert not decision.promoted
    assert any(sentence in found for found in decision.sentences), decision.sentences


def test_a_refusal_names_all_that_is_wrong_and_nothing_that_is_right() -> None:
    evidence = replace(GOOD, finished_ranks=(0,), over_champion=WORSE, **leads(popularity=WORSE))
    sentences = decide(evidence, RULES).sentences
    assert [next(word for word in ("rank 1", "champion", "popularity") if word in s) for s in sentences] == [
        "rank 1",
        "champion",
        "popularity",
    ]


def test_what_could_not_be_measured_is_no_final_word_against_a_model() -> None:
    unmeasured = without("vsknn")
    assert not decide(replace(GOOD, **unmeasured), RULES).is_final
    assert decide(replace(GOOD, **unmeasured, over_champion=WORSE), RULES).is_final
    assert decide(replace(GOOD, **unmeasured, expected_baselines=("popularity",)), RULES).promoted


def test_a_missing_baseline_that_is_only_warned_of_is_still_told() -> None:
    rules = replace(RULES, missing_baseline="warn")
    sentences = decide(replace(GOOD, **without("vsknn")), rules).sentences
    assert "the baseline vsknn was not measured (warning)" in sentences


def outcome(
    over_champion: Measured | None, over_regression: Measured | None = BETTER, regression_failed: bool = False
) -> MeasuredOutcome:
    return MeasuredOutcome("AUC of 'returns'", over_champion, over_regression, regression_failed)


ALONE = replace(GOOD, foretells_items=False, champion_foretells_items=False, over_champion=None, over_baselines={})


@pytest.mark.parametrize(
    ("why", "evidence"),
    [
        ("no worse than the champion", replace(GOOD, outcomes=(outcome(TIED),))),
        ("a regression need not be beaten by what else it foretells", replace(GOOD, outcomes=(outcome(TIED, WORSE),))),
        ("the champion foretells others", replace(GOOD, outcomes=(outcome(None, None),), same_outcomes=False)),
        ("others are not held against it", replace(GOOD, outcomes=(outcome(WORSE),), same_outcomes=False)),
        ("others, of outcomes alone", replace(ALONE, outcomes=(outcome(None),), same_outcomes=False)),
        ("its moments are of one user", replace(GOOD, outcomes=(outcome(OF_ONE_USER, OF_ONE_USER),))),
        ("its window is open still", replace(GOOD, outcomes=(outcome(None, None),))),
        ("outcomes alone", replace(ALONE, outcomes=(outcome(TIED, UNSURE),))),
        ("outcomes alone, the first model", replace(ALONE, champion_id=None, outcomes=(outcome(None),))),
    ],
)
def test_outcomes_do_not_stand_in_the_way_of(why: str, evidence: Evidence) -> None:
    decision = decide(evidence, RULES)
    assert decision.promoted, (why, decision.sentences)


@pytest.mark.parametrize(
    ("evidence", "sentence", "is_final"),
    [
        (replace(GOOD, outcomes=(outcome(TIED), outcome(WORSE))), "of champion m1 is -0.0500", True),
        (replace(ALONE, outcomes=(outcome(WORSE),)), "AUC of 'returns' less that of champion m1 is -0.0500", True),
        (replace(ALONE, outcomes=(outcome(TIED, WORSE),)), "less a regression's is -0.0500", True),
        (replace(ALONE, outcomes=(outcome(None),)), "could not be compared with that of champion m1", False),
        (replace(ALONE, outcomes=(outcome(TIED, None),)), "could not be compared with a regression's", False),
        (replace(ALONE, outcomes=(outcome(OF_ONE_USER),)), "m1, for all its moments are of one user", False),
        (
            replace(ALONE, outcomes=(outcome(TIED, OF_ONE_USER),)),
            "a regression's, for all its moments are of one",
            False,
        ),
        (replace(ALONE, outcomes=(outcome(None, WORSE),), same_outcomes=False), "less a regression's is -0.0500", True),
        (
            replace(ALONE, outcomes=(outcome(TIED),), champion_foretells_items=True),
            "it foretells outcomes alone, and champion m1 next items too",
            True,
        ),
    ],
)
def test_outcomes_stand_in_the_way(evidence: Evidence, sentence: str, is_final: bool) -> None:
    decision = decide(evidence, RULES)
    assert not decision.promoted
    assert any(sentence in found and "1,234 positions" not in found for found in decision.sentences), decision.sentences
    assert decision.is_final == is_final


def test_the_margin_of_outcomes_is_their_own() -> None:
    evidence = replace(GOOD, outcomes=(outcome(lead(0.0, -0.015, 0.01)),))
    assert decide(evidence, RULES).promoted
    assert not decide(evidence, replace(RULES, max_outcome_loss=0.01)).promoted


def test_a_smaller_error_is_a_gain_in_shares_of_the_others() -> None:
    gain = Measured(-0.5, -0.8, 0.2, 10).as_gain(2.0)
    assert gain == Measured(0.25, -0.1, 0.4, 10)
    assert Measured(-0.5, None, None, 10).as_gain(2.0) == Measured(0.25, None, None, 10)


@pytest.mark.parametrize("evidence", [GOOD, replace(ALONE, outcomes=(outcome(TIED),))])
def test_a_champion_that_cannot_score_any_more_protects_nobody_and_the_rest_still_counts(evidence: Evidence) -> None:
    why = "the model at 'x' is damaged"
    alone = replace(evidence, over_champion=None, champion_cannot_score=why, champion_foretells_items=True)
    decision = decide(alone, RULES)
    assert decision.promoted
    assert f"champion m1 cannot score any more: {why}" in decision.sentences
    assert not decide(replace(alone, finished_ranks=(0,)), RULES).promoted
    if evidence.foretells_items:
        assert not decide(replace(alone, **leads(popularity=WORSE)), RULES).promoted
    else:
        assert not decide(replace(alone, outcomes=(outcome(None, WORSE),)), RULES).promoted


@pytest.mark.parametrize("evidence", [GOOD, replace(ALONE, outcomes=(outcome(None),))])
def test_a_champion_that_can_score_and_was_not_compared_with_stays_and_the_sentence_says_why(
    evidence: Evidence,
) -> None:
    why = "the test sequences are others; give sequences.split=time, so that later models can be compared"
    decision = decide(replace(evidence, over_champion=None, champion_not_compared=why), RULES)
    assert decision.sentences == [
        f"it could not be compared with champion m1: {why}; promote it by hand if it is the better one"
    ]
    assert decision.is_final


def test_outcomes_that_the_champion_alone_foretells_are_named() -> None:
    evidence = replace(GOOD, same_outcomes=False, outcomes_of_champion_alone=("'spend' within 10 days",))
    assert (
        "champion m1 foretells another list of outcomes, so that they are not compared; it alone foretells 'spend' within 10 days (warning)"
        in decide(evidence, RULES).sentences
    )


def test_a_model_that_waits_is_told_what_may_change_that() -> None:
    (baseline,) = decide(replace(GOOD, **without("vsknn")), RULES).waits_for
    assert "`llm-spark evaluate` tries a missing baseline again, and gate.missing_baseline=warn" in baseline
    (newer,) = decide(replace(ALONE, outcomes=(outcome(None, None), outcome(OF_ONE_USER))), RULES).waits_for
    assert "needs newer sequences" in newer
    assert "evaluate" not in newer
    failed = decide(replace(ALONE, outcomes=(outcome(TIED, None, regression_failed=True),)), RULES)
    assert failed.waits_for == ("`llm-spark evaluate` tries a regression that failed again",)


def test_a_model_of_outcomes_alone_is_not_promoted_on_no_evidence() -> None:
    evidence = replace(ALONE, champion_id=None, outcomes=(outcome(None, None),))
    assert not decide(evidence, replace(RULES, missing_baseline="warn")).promoted
