"""The page of a night written by hand: what stands in it, that it needs nothing else, and that no data break out of it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from llm_spark.report import Check, Estimate, Measurement, Model, Report, StageRun, page
from tests.report.nights import CHAMPION_ID, FORMULA, MODEL_ID, RECALL, SCRIPT, night
from tests.report.pages import Element, parsed, section


@pytest.fixture(scope="module")
def html() -> str:
    return page(night())


@pytest.fixture(scope="module")
def told(html: str) -> Element:
    return parsed(html)


def test_the_page_needs_no_other_file_and_runs_no_script(html: str, told: Element) -> None:
    assert not list(told.all("script"))
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "<img" not in html
    for element in told.all():
        assert not [name for name in element.attributes if name.startswith("on")], element
        for name in ("src", "srcset", "href", "xlink:href", "action", "data"):
            assert element.attributes.get(name, "#").startswith(("#", "data:,")), element.attributes
    links = {
        element.attributes["href"][1:] for element in told.all() if element.attributes.get("href", "").startswith("#")
    }
    ids = [element.attributes["id"] for element in told.all() if "id" in element.attributes]
    assert links <= set(ids), "every link leads somewhere on the page"
    assert len(ids) == len(set(ids)), "no id is given twice"
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_every_picture_is_named_and_told_in_words(told: Element) -> None:
    pictures = list(told.all("svg"))
    assert len(pictures) > 20
    for picture in pictures:
        assert picture.attributes["role"] == "img"
        (title,) = picture.all("title")
        (words,) = picture.all("desc")
        assert picture.attributes["aria-label"] == f"{title.text}. {words.text}"
        assert re.search(r"\d", words.text), "the words hold the numbers"
    (recall,) = (picture for picture in pictures if next(picture.all("title")).text == "recall@20")
    assert (
        "this model 0.583 [0.580, 0.586]; champion 0.571 [0.568, 0.574]; vsknn 0.533" in recall.attributes["aria-label"]
    )


def test_pictures_take_their_colours_from_the_scheme_of_the_page(html: str, told: Element) -> None:
    for picture in told.all("svg"):
        for element in picture.all():
            colours = re.findall(r"(?:fill|stroke): ([^;]+)", element.attributes.get("style", ""))
            assert all(colour == "none" or colour.startswith("var(--") for colour in colours), colours
    used = set(re.findall(r"var\((--\w+)\)", html))
    for scheme in re.findall(r":root \{([^}]*)\}", html):
        assert used <= set(re.findall(r"(--\w+):", scheme))
    assert html.count("prefers-color-scheme: dark") == 1
    assert html.count("@media print") == 1


def test_what_comes_from_raw_logs_stays_text(html: str, told: Element) -> None:
    assert SCRIPT not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert SCRIPT in section(told, "users").text
    assert FORMULA in section(told, "users").text
    assert f"an item is named '{SCRIPT}'" in section(told, "night").text


def test_hostile_names_stay_text_in_pictures_and_attributes_too() -> None:
    hostile = f'"><svg onload=x>{SCRIPT} $x_'
    estimates = [
        Estimate(recommender, None, place, "recall@20", 0.5, 0.4, 0.6, 100)
        for recommender in ("model", hostile)
        for place in ("all", f"slice {hostile}")
    ]
    check = Check("drift", hostile, hostile, 0.3, 0.2, "error", hostile, datetime(2026, 1, 1))
    model = Model(hostile, hostile, None, None, hostile)
    whole = Report(
        [], [check], estimates=estimates, models=[model], model_id=hostile, measurements=[Measurement(1, hostile, 2.0)]
    )
    told = parsed(page(whole))
    assert not list(told.all("script"))
    assert not [element for element in told.all() if "onload" in element.attributes]
    labels = [element.text for picture in section(told, "metrics").all("svg") for element in picture.all("text")]
    assert hostile[:18] + "…" in labels


def test_the_same_night_gives_the_same_bytes(html: str) -> None:
    assert page(night()) == html


def test_the_account_names_each_stage_with_its_rows_and_what_was_rejected(told: Element) -> None:
    rows = {next(row.all("th")).text: row for row in section(told, "night").all("tr") if list(row.all("td"))}
    assert list(rows) == ["ingest", "sessionize", "sequences", "train", "evaluate", "score", "drift"]
    cells = [cell.text for cell in rows["ingest"].all("td")]
    assert cells == [
        "2026-11-25 22:04",
        "5 min 18 s",
        "28 files 12,558,104 records",
        "12,110,117 events 121,100 duplicates 326,887 rejected",
        "242,200 filtered 48,387 unparsable 24,200 missing user 12,100 bad time",
    ]
    assert "did not finish" in rows["score"].text
    assert "(2 days earlier)" in rows["train"].text, "from 22:18 of the 23rd to 23:48 of the 25th"
    assert "(" not in rows["sessionize"].text


def test_remarks_that_are_a_table_keep_their_columns(told: Element) -> None:
    (table,) = section(told, "night").all("pre")
    lines = "".join(child for child in table.children if isinstance(child, str)).splitlines()
    assert [line.index("[") for line in lines[1:]] == [26, 26]
    assert lines[0].index("recall@20") == lines[1].index("0.583")


def test_errors_come_before_warnings_and_measurements_are_folded_away(told: Element) -> None:
    quality = section(told, "quality")
    shown = [badge.text for badge in quality.all("span") if "badge" in badge.attributes.get("class", "")]
    assert shown[:5] == ["error", "error", "warning", "warning", "warning"]
    assert set(shown[5:]) == {"info"}
    (folded,) = quality.all("details")
    assert "events lost in sessions" in folded.text
    assert "event types" not in folded.text
    assert "2 errors and 3 warnings among 22 checks." in quality.text
    assert "180 further measurements are in the table data_quality." in quality.text


def test_metrics_stand_in_a_table_with_intervals_and_paired_differences(told: Element) -> None:
    values, apart = (
        [[cell.text for cell in row.all() if cell.tag in ("th", "td")] for row in table.all("tr")]
        for table in section(told, "metrics").all("table")
    )
    assert values[0][1:4] == ["this model", "champion", "vsknn"], "baselines from the best on"
    assert set(values[0][1:]) == {"this model", *(name.replace("_", " ") for name in RECALL if name != "model")}
    recall = dict(zip(values[0], next(row for row in values if row[0] == "recall@20"), strict=True))
    assert (recall["popularity"], recall["this model"]) == ("0.118 [0.115, 0.121]", "0.583 [0.580, 0.586]")
    differences = dict(zip(apart[0], next(row for row in apart if row[0] == "recall@20"), strict=True))
    assert differences["champion"] == "+0.0120 [0.0079, 0.0161]"
    assert "this model" not in differences


def test_the_facts_of_the_night_stand_at_the_top(told: Element) -> None:
    cards = [card.text for card in told.all("a") if "card" in card.attributes.get("class", "")]
    assert cards[0] == "Stages 7 stages did not finish: score"
    assert cards[1].startswith("Data quality 2 errors, 3 warnings")
    assert cards[2].startswith(f"Model champion {MODEL_ID}: promoted: all 2 ranks finished")
    assert cards[3].startswith("recall@20 0.583 95 % interval 0.580 to 0.586, 1,207,511 positions")
    assert cards[4] == "Against champion +0.0120 recall@20 [0.0079, 0.0161]"
    assert cards[5] == "Drift advises retrain Train from scratch: mix of event types (error)."
    assert CHAMPION_ID in next(told.all("header")).text


def test_calibration_outcomes_and_drift_are_drawn(told: Element) -> None:
    calibration = section(told, "calibration")
    assert "off by 0.0123 [0.0112, 0.0134] on average" in calibration.text
    assert len(list(calibration.all("svg"))) == 2
    outcomes = section(told, "outcomes")
    assert "0.812 [0.806, 0.818] 0.744 [0.738, 0.750] +0.0680 [0.0640, 0.0720]" in outcomes.text
    assert len(list(outcomes.all("svg"))) == 2
    drift = section(told, "drift")
    beside_limits, *over_nights = (picture.attributes["aria-label"] for picture in drift.all("svg"))
    assert "event types: 0.214, limit 0.0310, error." in beside_limits
    assert "missing rate of agent: 0, not judged." in beside_limits
    assert len(over_nights) == 3
    assert (
        "8 nights, from 0.0040 to 0.214; warning on 2026-11-22 at 0.0380, error on 2026-11-24 at 0.214."
        in over_nights[0]
    )


def test_users_show_their_predictions_with_reasons_and_that_a_page_travels(told: Element) -> None:
    users = section(told, "users")
    first = next(users.all("div", **{"class": "user"}))
    assert first.text.startswith(f"u_7f3a9c01d2 as of 2026-11-25, by {MODEL_ID} 1. {SCRIPT} 42.0 % because of")
    assert "STRAWBERRY-LIGHTS-85123A (+1.310), item-00042 (+0.420); earlier sessions together +0.377" in first.text
    assert "A page travels further than a table: report.num_users=0 leaves this section out" in users.text


def test_what_is_not_there_is_said_in_a_sentence() -> None:
    started = datetime(2026, 11, 25, 22)
    told = parsed(page(Report([StageRun("ingest", "r1", started, 2.0, {"files": 1}, {"events": 5})])))
    assert not list(told.all("svg"))
    assert {name: section(told, name).text.split(" ", 1)[1] for name in ("quality", "training", "metrics")} == {
        "quality": "quality These runs have recorded no check.",
        "training": "No measurement of the training of a model is in the table training_metrics.",
        "metrics": "on the test split No evaluation is in the table evaluation.",
    }
    assert "No slice was measured." in section(told, "slices").text
    assert "The evaluation holds no calibration of this model's probabilities." in section(told, "calibration").text
    assert "The stage drift has judged no window yet." in section(told, "drift").text
    assert "No model has been trained yet." in section(told, "registry").text
    assert "Left out, as report.num_users is 0." in section(told, "users").text
    assert not list(told.all("section", id="outcomes"))
    assert "The night of 2026-11-25" in next(told.all("h1")).text


def test_without_any_row_the_page_still_says_so() -> None:
    told = parsed(page(Report([], num_users_asked=5)))
    assert "No stage has recorded a run yet." in section(told, "night").text
    assert "The table predictions holds no user yet." in section(told, "users").text


def test_a_single_user_gives_values_without_intervals() -> None:
    alone = [
        Estimate("model", None, "all", "recall@20", 0.25, None, None, 4),
        Estimate("popularity", None, "all", "recall@20", 0.5, None, None, 4),
    ]
    told = parsed(page(Report([], estimates=alone, model_id="m1")))
    (picture,) = section(told, "metrics").all("svg")
    assert "this model 0.250; popularity 0.500." in picture.attributes["aria-label"]
    assert "No champion was measured beside it." in section(told, "metrics").text


def test_all_values_alike_or_zero_can_be_drawn() -> None:
    flat = [Estimate(who, None, "all", "recall@20", 0.0, 0.0, 0.0, 4) for who in ("model", "champion", "popularity")]
    flat += [Estimate("model", "champion", "all", "recall@20", 0.0, 0.0, 0.0, 4)]
    steps = [Measurement(step, "train_loss", 2.0) for step in (0, 0, 0)]
    level = Check("drift", "volume", "2026-01-01", 0.0, 0.0, "info", "", datetime(2026, 1, 1))
    nights = [
        replace(level, subject=f"2026-01-0{day}", measured_at=level.measured_at + timedelta(days=day))
        for day in range(1, 4)
    ]
    told = parsed(page(Report([], [level], drift_history=nights, estimates=flat, measurements=steps, model_id="m1")))
    assert len(list(told.all("svg"))) == 5


def test_recommenders_and_slices_of_later_versions_are_shown_by_their_names() -> None:
    later = [Estimate("oracle_of_delphi", None, "all", "serendipity@10", 0.3, 0.2, 0.4, 9)]
    later += [Estimate("model", None, place, "serendipity@10", 0.2, 0.1, 0.3, 9) for place in ("all", "weekday_monday")]
    told = parsed(page(Report([], estimates=later, model_id="m1")))
    assert "oracle of delphi 0.300 [0.200, 0.400]" in section(told, "metrics").text
    assert "weekday monday" in section(told, "slices").text


def test_parts_by_confidence_stand_under_calibration_alone() -> None:
    by_confidence = Estimate("model", None, "confidence_2", "recall@20", 0.2, 0.1, 0.3, 40)
    evening = night()
    told = parsed(page(replace(evening, estimates=[*evening.estimates, by_confidence])))
    assert "confidence 2" not in section(told, "slices").text
