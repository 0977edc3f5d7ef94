"""A night as the tables would tell it, written by hand, for the tests of the page and to look at.

    python -m tests.report.nights FILE

writes the page of this night.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

from llm_spark.report import Check, Estimate, Measurement, Model, Prediction, Reason, Report, StageRun, User, page

BEGAN = datetime(2026, 11, 25, 22, 4, 11)
MODEL_ID, CHAMPION_ID = "m752d377eb454", "m0c1d88f0a7be"
SCRIPT = "<script>alert(1)</script>"
FORMULA = r"$\frac{1}{2}$ & more"

RECALL = {
    "model": 0.583,
    "champion": 0.571,
    "popularity": 0.118,
    "session_popularity": 0.301,
    "recency": 0.287,
    "markov": 0.512,
    "vsknn": 0.533,
    "item_knn": 0.489,
}
"""recall@20 of each recommender in this night."""


def night() -> Report:
    """Every section has something to show, an item and a remark are hostile, and one stage did not finish."""
    return Report(
        runs=list(_runs()),
        checks=list(_checks()),
        num_checks_left_out=180,
        drift_history=list(_drift_history()),
        model_id=MODEL_ID,
        champion_id=CHAMPION_ID,
        metric="recall@20",
        measurements=list(_measurements()),
        estimates=[*_metrics(), *_slices(), *_calibration(), *_outcomes()],
        models=_models(),
        num_models=31,
        users=list(_users()),
        num_users_asked=4,
    )


def _runs() -> Iterator[StageRun]:
    files = "file:/data/clicks/2026-11-25/events-2026-11-25-{:02d}.jsonl.gz"
    yield StageRun(
        "ingest",
        "8daaf4182d16",
        BEGAN,
        318.5,
        {"files": 28, "records": 12_558_104},
        {"events": 12_110_117, "duplicates": 121_100, "rejected": 326_887},
        {"bad_time": 12_100, "filtered": 242_200, "missing_user": 24_200, "unparsable": 48_387, "too_long": 0},
        [f"rejected in '{files.format(hour)}': 8,612 filtered, 1,504 missing_user, of 489,512" for hour in (3, 9)]
        + [f"an item is named '{SCRIPT}'", "and in 25 files more: see data_quality"],
    )
    yield StageRun(
        "sessionize",
        "b01cbc1ad870",
        BEGAN + timedelta(minutes=6),
        92.4,
        {"events": 12_110_117},
        {"sessions": 3_023_811},
    )
    yield StageRun(
        "sequences",
        "5895039beb74",
        BEGAN + timedelta(minutes=8),
        148.9,
        {"sessions": 3_023_811},
        {
            "train_sequences": 288_402,
            "validation_sequences": 166_103,
            "test_sequences": 157_204,
            "vocabulary items": 61_204,
        },
        {},
        ["train: 9,392,311 positions to predict", "sequences v41 certified: 7 laws hold, recorded in data_quality"],
    )
    yield StageRun(
        "train",
        "d25ec020e9d2",
        BEGAN - timedelta(days=2, minutes=-14),
        4_511.0,
        {"training_files": 31},
        {"steps": 13_800, "tokens": 58_084_221, "parameters": 12_404_970},
        {},
        [f"model {MODEL_ID} by 2 rank(s): loss 4.744, validation recall@20 0.581 at step 11040"],
    )
    yield StageRun(
        "evaluate",
        "e1ce0f1b7a01",
        BEGAN + timedelta(minutes=92),
        402.7,
        {"test_sequences": 157_204},
        {"predicted_positions": 1_207_511, "figures": 2_214},
        {},
        [
            "1,207,511 test positions of 157,204 users, each ranked among all 61,204 items",
            "                    recall@20             mrr@20                ndcg@20",
            "model               0.583 [0.580, 0.586]  0.271 [0.269, 0.273]  0.341 [0.339, 0.343]",
            "vsknn               0.533 [0.530, 0.536]  0.262 [0.260, 0.264]  0.322 [0.320, 0.324]",
            "in brackets 95 % intervals over users; a difference whose interval holds 0 may be chance",
        ],
    )
    yield StageRun("score", "5c03e0000001", BEGAN + timedelta(minutes=100), None)
    yield StageRun(
        "drift",
        "d41f70000001",
        BEGAN + timedelta(minutes=104),
        61.2,
        {"events_in_the_window": 402_117},
        {"measures_judged": 13, "warnings": 1, "errors": 1},
    )


def _drift(
    name: str, value: float, limit: float | None, severity: str, detail: str, window: str = "2026-11-24"
) -> Check:
    return Check("drift", name, window, value, limit, severity, detail, BEGAN + timedelta(minutes=104))


def _checks() -> Iterator[Check]:
    at = BEGAN
    yield Check(
        "score",
        "memory_missing",
        "user_memory",
        412,
        0,
        "error",
        "users whose memory is of another model: run `llm-spark score` again",
        at,
    )
    yield _drift(
        "event_types",
        0.214,
        0.031,
        "error",
        "PSI 0.214, limit 0.031, error above 0.100: error, more than earlier Tuesdays explain; most of it: purchase from 6.1 % to 11.8 %",
    )
    yield _drift(
        "missing_rate of value of purchase",
        0.061,
        0.042,
        "warning",
        "6.1 % of 47,212, limit 4.2 %: warning, more than earlier Tuesdays explain",
    )
    yield Check(
        "ingest",
        "changing_file",
        "file:/data/clicks/2026-11-25/events-2026-11-25-23.jsonl.gz",
        1,
        0,
        "warning",
        "it changed while it was read: the next run reads it",
        at,
    )
    yield Check(
        "drift",
        "retraining_advice",
        "retrain",
        2,
        None,
        "warning",
        "Train from scratch: mix of event types (error).",
        at,
    )
    yield Check("ingest", "num_records", "all files", 12_558_104, None, "info", "", at)
    yield Check("ingest", "fault_fraction", "all files", 0.00674, 0.05, "info", "", at)
    yield Check("ingest", "num_rejected", "all files", 242_200, None, "info", "filtered", at)
    yield Check(
        "sessionize",
        "events_lost_in_sessions",
        "sessions",
        0,
        0,
        "info",
        "12110117 events went in, 12110117 came out",
        at,
    )
    for law in (
        "rows_are_whole",
        "training_precedes_evaluation",
        "no_session_in_two_splits",
        "no_target_in_its_own_input",
    ):
        yield Check("sequences", law, "sequences v41", 0, 0, "info", "table 78b3135f: number of rows that break it", at)
    for name, value, limit, text in (
        ("volume", 402_117.0, 471_200.0, "402,117 events, limit 471,200: as usual"),
        ("item_mix", 0.022, 0.041, "PSI 0.022, limit 0.041: as usual"),
        ("hours", 0.011, 0.028, "PSI 0.011, limit 0.028: as usual"),
        ("new_item_share", 0.0123, 0.0311, "1.2 %, limit 3.1 %: as usual"),
        ("unknown_item_share", 0.0041, 0.0207, "0.4 %, usually 0.2 %, limit 2.1 %: as usual"),
        ("session_length", 0.0082, 0.02, "PSI 0.008, limit 0.020: as usual"),
        ("score_distribution", 0.0171, 0.034, "PSI 0.017, limit 0.034: as usual"),
        ("hit_rate", 0.314, 0.291, "31.4 % [30.9 %, 31.9 %], limit 29.1 %: as usual"),
    ):
        yield _drift(name, value, limit, "info", text)
    yield _drift("missing_rate of agent", 0.0, None, "info", "0.0 %; not judged: 2 windows of 4")


def _drift_history() -> Iterator[Check]:
    values = {
        "event_types": [0.004, 0.006, 0.005, 0.009, 0.007, 0.038, 0.008, 0.214],
        "item_mix": [0.018, 0.021, 0.017, 0.025, 0.02, 0.019, 0.024, 0.022],
        "hit_rate": [0.322, 0.319, 0.325, 0.318, 0.321, 0.316, 0.315, 0.314],
    }
    limits = {"event_types": 0.031, "item_mix": 0.041, "hit_rate": 0.291}
    for night_number in range(8):
        window = str(date(2026, 11, 17) + timedelta(days=night_number))
        for name, of_nights in values.items():
            value = of_nights[night_number]
            severity = "info" if name != "event_types" or value < 0.031 else "error" if value > 0.1 else "warning"
            yield Check(
                "drift", name, window, value, limits[name], severity, "", BEGAN + timedelta(days=night_number - 7)
            )


def _measurements() -> Iterator[Measurement]:
    for step in range(46, 13_801, 46):
        wiggle = 0.06 * ((step // 46 * 7919) % 13 / 13 - 0.5)
        yield Measurement(step, "train_loss", 4.6 + 2.1 * 0.5 ** (step / 1_700) + wiggle)
        yield Measurement(step, "learning_rate", 0.01 * min(1, step / 500) * (1 - 0.9 * step / 13_800))
    for epoch in range(1, 7):
        step = 2_300 * epoch
        yield Measurement(step, "epoch_loss", 4.62 + 2.3 * 0.45**epoch)
        yield Measurement(step, "validation_loss", 4.81 + 1.9 * 0.42**epoch + 0.012 * max(0, epoch - 4))
        yield Measurement(step, "validation_recall_at_20", 0.581 - 0.32 * 0.45**epoch - 0.004 * max(0, epoch - 5))
        yield Measurement(step, "tokens_per_second", 20_900 + 350 * (epoch % 3))


def _estimate(
    recommender: str,
    against: str | None,
    name: str,
    value: float,
    half: float | None,
    slice_name: str = "all",
    num: int = 1_207_511,
) -> Estimate:
    ends = (None, None) if half is None else (value - half, value + half)
    return Estimate(recommender, against, slice_name, name, value, *ends, num)


def _metrics() -> Iterator[Estimate]:
    shapes = {"accuracy": (0.31, 0.002), "mrr": (0.465, 0.002), "ndcg": (0.585, 0.0025), "hit_rate": (1.38, 0.004)}
    for recommender, recall in RECALL.items():
        yield _estimate(recommender, None, "accuracy", recall * shapes["accuracy"][0], shapes["accuracy"][1])
        for k, share in ((5, 0.6), (10, 0.82), (20, 1.0)):
            yield _estimate(recommender, None, f"recall@{k}", recall * share, 0.003)
            yield _estimate(recommender, None, f"mrr@{k}", recall * 0.465 * (0.9 + share / 10), 0.002)
            yield _estimate(recommender, None, f"ndcg@{k}", recall * 0.585 * (0.75 + share / 4), 0.0025)
            yield _estimate(recommender, None, f"hit_rate@{k}", min(0.97, recall * 1.38 * share), 0.004, num=301_200)
            yield _estimate(recommender, None, f"novelty@{k}", 13.1 - 5.5 * (0.6 - recall), 0.02)
            yield _estimate(recommender, None, f"popularity_bias@{k}", 0.31 - 0.5 * recall, 0.002)
            yield _estimate(recommender, None, f"coverage@{k}", 0.02 + 1.1 * recall * share, 0.006)
        if recommender != "model":
            half = 0.0041 if recommender == "champion" else 0.003
            yield _estimate("model", recommender, "recall@20", RECALL["model"] - recall, half)
            yield _estimate("model", recommender, "mrr@20", 0.465 * (RECALL["model"] - recall) - 0.004, 0.002)
            yield _estimate("model", recommender, "ndcg@20", 0.585 * (RECALL["model"] - recall), 0.0025)


def _slices() -> Iterator[Estimate]:
    slices = {
        "first_in_session": 0.321,
        "within_session": 0.642,
        "session_position_1": 0.598,
        "session_position_2_to_4": 0.641,
        "session_position_5_to_9": 0.668,
        "session_position_10_or_more": 0.671,
        "history_new": 0.471,
        "history_few": 0.569,
        "history_many": 0.634,
        "gap_below_minute": 0.651,
        "gap_below_hour": 0.622,
        "gap_below_day": 0.402,
        "gap_below_week": 0.338,
        "gap_week_or_more": 0.291,
        **{f"item_popularity_decile_{d}": 0.02 + 0.007 * d * d for d in range(1, 11)},
        "item_unknown": 0.0,
    }
    for place, (name, value) in enumerate(slices.items()):
        half = 0.004 + 0.002 * (place % 5)
        yield _estimate("model", None, "recall@20", value, half if value else 0.0, name, 40_000 + 13_127 * place)
        yield _estimate(
            "champion",
            None,
            "recall@20",
            max(0.0, value - 0.012 + 0.004 * (place % 4)),
            half if value else 0.0,
            name,
            40_000 + 13_127 * place,
        )
        yield _estimate(
            "vsknn", None, "recall@20", max(0.0, value - 0.06), half if value else 0.0, name, 40_000 + 13_127 * place
        )


def _calibration() -> Iterator[Estimate]:
    for tenth in range(1, 10):
        confidence = tenth / 10 - 0.048
        yield _estimate("model", None, "confidence", confidence, 0.001, f"confidence_{tenth}", 402_117 // tenth**2)
        yield _estimate(
            "model",
            None,
            "accuracy",
            confidence * 0.93 + 0.022,
            0.003 * tenth,
            f"confidence_{tenth}",
            402_117 // tenth**2,
        )
    yield _estimate("model", None, "calibration_error", 0.0123, 0.0011)
    for place in range(1, 10):
        threshold = place / 10
        yield _estimate("model", None, "answered", 0.9 ** (place * 2.4), 0.002, f"confidence_at_least_{threshold}")
        yield _estimate(
            "model", None, "accuracy", 0.181 + 0.075 * place, 0.002 * place, f"confidence_at_least_{threshold}"
        )


def _outcomes() -> Iterator[Estimate]:
    lifts = {
        "model": [4.1, 2.2, 1.2, 0.8, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1],
        "rfm_regression": [3.2, 1.9, 1.3, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.2],
    }
    measures = {"auc": (0.812, 0.744), "average_precision": (0.391, 0.302), "brier": (0.071, 0.079)}
    for place, (recommender, of_tenth) in enumerate(lifts.items()):
        for measure, values in measures.items():
            yield _estimate(recommender, None, f"buys_again.{measure}", values[place], 0.006, num=88_100)
        for tenth, lift in enumerate(of_tenth, 1):
            yield _estimate(recommender, None, "buys_again.lift", lift, 0.09, f"outcome_decile_{tenth}", 88_100)
            yield _estimate(
                recommender,
                None,
                "buys_again.gain",
                sum(of_tenth[:tenth]) / 10,
                0.008,
                f"outcome_decile_{tenth}",
                88_100,
            )
    for measure, (ours, theirs) in measures.items():
        yield _estimate("model", "rfm_regression", f"buys_again.{measure}", ours - theirs, 0.004, num=88_100)


def _models() -> list[Model]:
    reason = (
        "promoted: all 2 ranks finished its training; its recall@20 less that of champion m0c1d88f0a7be is +0.0120 [+0.0079, +0.0161] on "
        "1,207,511 positions: a loss of more than 0.01 is ruled out; its recall@20 less that of vsknn, the best baseline, is +0.0500 "
        "[+0.0470, +0.0530] on 1,207,511 positions: it is better"
    )
    refused = (
        "refused: its recall@20 less that of champion m0c1d88f0a7be is -0.0310 [-0.0352, -0.0268] on 1,190,004 positions: a loss of more "
        "than 0.01 is not ruled out"
    )
    return [
        Model(
            MODEL_ID, "champion", BEGAN + timedelta(minutes=99), BEGAN - timedelta(days=1), reason, "0.1.0 at 8b4da08"
        ),
        Model(
            CHAMPION_ID,
            "archived",
            BEGAN + timedelta(minutes=99),
            BEGAN - timedelta(days=9),
            f"followed by {MODEL_ID}",
            "0.1.0 at 12c228c",
        ),
        Model(
            "m91aa00cd2e10",
            "archived",
            BEGAN - timedelta(days=4),
            BEGAN - timedelta(days=4),
            refused,
            "0.1.0 at 12c228c",
            has_artifact=False,
        ),
    ]


def _users() -> Iterator[User]:
    items = [SCRIPT, FORMULA, "STRAWBERRY-LIGHTS-85123A", "item-00042", "CREAM-CUPID-HEARTS-COAT-HANGER-84406B"]
    for number, user_id in enumerate(("u_7f3a9c01d2", "u_02b6e1", "17850", "u_c4" + "0f" * 30)):
        predictions = []
        for rank in range(1, 6):
            item_id = items[(number + rank - 1) % len(items)]
            reasons = [
                Reason(items[(number + rank + 1) % len(items)], 1.31),
                Reason(items[(number + rank + 2) % len(items)], 0.42),
            ]
            predictions.append(
                Prediction(rank, item_id, 0.42 / rank**1.4, reasons if rank == 1 else (), 0.377 if rank == 1 else None)
            )
        yield User(user_id, date(2026, 11, 25), MODEL_ID, predictions)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(night()), "utf-8")
