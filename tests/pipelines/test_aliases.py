"""How aliases move, and how a table of models that is not what was written is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from llm_spark.errors import UserError
from llm_spark.pipelines.registry.aliases import (
    FOLLOWED,
    GATE,
    HAND,
    ROLLBACK,
    TRAIN,
    Model,
    Models,
    as_challenger,
    as_champion,
    as_refused,
    require_unchanged,
    without_artifacts,
)
from llm_spark.pipelines.registry.retention import spare_artifacts

START = datetime(2026, 1, 1)


def model(model_id: str, alias: str = "", day: int = 0, reason: str = "") -> Model:
    at = START + timedelta(days=day)
    return Model(model_id, at, "{}", "{}", "{}", f"models/{model_id}", alias, reason)


def nights(*model_ids: str) -> Models:
    """Each promoted the night after the one before."""
    models = Models()
    for day, model_id in enumerate(model_ids):
        models = as_champion(models, model(model_id, day=day), START + timedelta(days=day), TRAIN, "newest")
    return models


def aliases(models: Models) -> dict[str, str]:
    return {model.model_id: model.alias for model in models.rows}


def rolled_back(models: Models) -> Models:
    former = models.find(models.former(models.champion))
    return as_champion(models, former, START, ROLLBACK, "rolled back", former=models.former(former))


def test_one_model_is_champion_and_each_remembers_whom_it_followed() -> None:
    models = nights("a", "b", "c")
    assert aliases(models) == {"a": "archived", "b": "archived", "c": "champion"}
    assert [models.former(models.find(model_id)) for model_id in "abc"] == [None, "a", "b"]
    assert [(move.alias, move.cause) for move in models.find("b").moves] == [
        ("champion", TRAIN),
        ("archived", FOLLOWED),
    ]


def test_a_rollback_goes_back_night_by_night() -> None:
    models = rolled_back(nights("a", "b", "c"))
    assert aliases(models) == {"a": "archived", "b": "champion", "c": "archived"}
    assert models.find("c").judged_by == ROLLBACK, "so that train does not bring it back"
    models = rolled_back(models)
    assert aliases(models)["a"] == "champion"
    assert models.former(models.champion) is None


def test_a_table_of_an_earlier_version_tells_the_former_champion_by_its_reason() -> None:
    old = [
        model("a", "archived", 0, "followed by b"),
        model("b", "archived", 1, "followed by c"),
        model("c", "champion", 2),
    ]
    assert aliases(rolled_back(rolled_back(Models(tuple(old)))))["a"] == "champion"


def test_a_newer_challenger_takes_the_place_of_one_that_waits_and_the_champion_stays() -> None:
    models = nights("a")
    for model_id in "bc":
        models = as_challenger(models, model(model_id), START, "trained")
    assert aliases(models) == {"a": "champion", "b": "archived", "c": "challenger"}
    assert models.find("b").judged_by == "", "nobody has judged it"
    refused = as_refused(models, models.find("c"), START, "refused: worse")
    assert aliases(refused) == {"a": "champion", "b": "archived", "c": "archived"}
    assert (refused.find("c").judged_by, refused.find("c").reason) == (GATE, "refused: worse")


def test_a_promotion_by_hand_leaves_the_challenger_waiting_and_judges_the_former_champion() -> None:
    models = as_challenger(nights("a", "b"), model("c"), START, "trained")
    models = as_champion(models, models.find("a"), START, HAND, "promoted by hand")
    assert aliases(models) == {"a": "champion", "b": "archived", "c": "challenger"}
    assert models.find("b").judged_by == HAND
    assert models.former(models.champion) == "b"


def test_a_decision_upon_another_champion_is_refused() -> None:
    decided_on = nights("a")
    require_unchanged(nights("a"), decided_on)
    with pytest.raises(UserError, match="model b became champion meanwhile, by another run"):
        require_unchanged(nights("a", "b"), decided_on)
    with pytest.raises(UserError, match="champion a was archived meanwhile"):
        require_unchanged(Models(), decided_on)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no model 'm12x': the nearest is 'm123'"):
        nights("m123", "m999").find("m12x")
    with pytest.raises(UserError, match="no model 'm1', nor any other"):
        Models().find("m1")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([model("", "champion")], "a row has no model_id"),
        ([model("a", "archived"), model("a", "archived")], "model a has two rows"),
        ([model("a", "chmpion")], "model a has the alias 'chmpion', which is none of champion, challenger, archived"),
    ],
)
def test_a_damaged_row_is_named(rows: list[Model], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Models(tuple(rows)).check()


def test_two_champions_are_named_and_a_promotion_leaves_one() -> None:
    models = Models((model("a", "champion"), model("b", "champion")))
    with pytest.raises(UserError, match="a, b are all champion"):
        _ = models.champion
    assert aliases(as_champion(models, models.find("b"), START, HAND, "by hand")) == {"a": "archived", "b": "champion"}


def test_a_column_that_holds_no_json_is_named_with_its_model() -> None:
    for damaged in ("{", None, "[]"):
        with pytest.raises(UserError, match="row of model a in the table models is damaged: its config is no JSON"):
            replace(model("a"), config=damaged).json("config")


def test_the_newest_archived_models_and_the_one_to_roll_back_to_keep_their_artifacts() -> None:
    models = nights("a", "b", "c", "d", "e", "f")
    models = as_challenger(models, model("g"), START + timedelta(days=9), "trained")
    assert spare_artifacts(models, 2) == {"a", "b", "c"}
    assert spare_artifacts(models, 0) == {"a", "b", "c", "d"}, "e is what a rollback returns to"
    assert spare_artifacts(models, 9) == set()
    gone = without_artifacts(models, {"a", "b"}, "removed")
    assert spare_artifacts(gone, 2) == {"c"}
    assert gone.find("a").reason == "followed by b; removed"
    with pytest.raises(UserError, match="model a has no artifact any more"):
        as_champion(gone, gone.find("a"), START, HAND, "by hand")
