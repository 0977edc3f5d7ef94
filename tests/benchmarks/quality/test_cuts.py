from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_spark.config import TrainConfig, load
from llm_spark.simulation.config import SimulationConfig
from llm_spark.simulation.process import Process
from tests.benchmarks.quality.histories import Histories, InMemorySource
from tests.benchmarks.quality.online_retail import Invoices
from tests.benchmarks.quality.published_cuts import Beauty, Yoochoose
from tests.benchmarks.quality.simulator import oracle_histories, users_of
from tests.benchmarks.quality.training import ROOT, SHARED_DATA
from tests.benchmarks.quality.users import Targets, User, markov_ranks, popularity_ranks, windows

HOUR = 3600


def shared(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the published cut '{name}' is not at ../shared/data")
    return folder


def rows_of(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.tokens_N, histories.row_offsets[1:-1])]


def user(sessions: list[list[int]], hours: list[int]) -> User:
    lengths = [len(session) for session in sessions]
    return User(
        np.array([token for session in sessions for token in session]),
        np.repeat(np.array(hours) * HOUR, lengths),
        np.cumsum([0, *lengths[:-1]]),
    )


def test_every_training_row_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    sessions = [[2 + i % 7] * (1 + i % 5) + [2] for i in range(100)]
    source = InMemorySource(Histories.of_sessions(sessions), None, batch_rows=8, seed=1)
    epochs = []
    for epoch in range(2):
        batches = list(source.training(epoch))
        assert len(batches) == source.num_steps(epoch) == 13
        rows = [
            tuple(batch.tokens_N[batch.row_offsets[k] : batch.row_offsets[k + 1]].tolist())
            for batch in batches
            for k in range(batch.num_rows)
        ]
        assert sorted(rows) == sorted(map(tuple, sessions))
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def test_oldest_first_ends_with_the_newest_rows() -> None:
    sessions = [[2, i] for i in range(2, 2 + 512)]
    source = InMemorySource(Histories.of_sessions(sessions), None, batch_rows=4, seed=1, oldest_first=True)
    items = [int(batch.tokens_N[1::2].float().mean()) for batch in source.training(0)]
    pool_means = np.array(items).reshape(-1, 32).mean(axis=1)
    assert (np.diff(pool_means) > 0).all()


def test_yoochoose_test_items_that_training_lacks_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "train_sessions.txt").write_text("5 6\n6 7 6\n")
    (tmp_path / "test_prefix_label.tsv").write_text("5 6\t7\n6\t99\n")
    split = Yoochoose.read(tmp_path).test_split()
    assert split.num_tokens == 2 + 3
    assert rows_of(split.training) == [[2, 3], [3, 4, 3]]
    assert rows_of(split.evaluation) == [[2, 3, 4], [3, 1]]
    assert split.evaluation.first_target_B.tolist() == [2, 1]


def test_yoochoose_validation_is_the_last_tenth_of_training_alone(tmp_path: Path) -> None:
    (tmp_path / "train_sessions.txt").write_text("".join(f"{i} {i + 1} 7\n" for i in range(20)))
    (tmp_path / "test_prefix_label.tsv").write_text("1\t2\n")
    split = Yoochoose.read(tmp_path).validation_split()
    assert len(split.training) == 18
    assert len(split.evaluation) == 2
    assert split.training.first_target_B.tolist() == [1] * 18


def test_beauty_keeps_the_last_two_items_of_each_user_from_training(tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt").write_text("1 1 2 3 4\n2 4 2 5 3 1\n")
    data = Beauty.read(tmp_path)
    assert data.num_tokens == 2 + 5
    assert rows_of(data.training()) == [[2, 3], [5, 3, 6]]
    assert rows_of(data.validation()) == [[2, 3, 4], [5, 3, 6, 4]]
    assert rows_of(data.test()) == [[2, 3, 4, 5], [5, 3, 6, 4, 2]]
    assert data.test().first_target_B.tolist() == [3, 4]


def test_windows_predict_every_event_of_the_stretch_once_but_a_users_first() -> None:
    sessions = [[2, 3, 4], [5], [6, 7], [8, 9], [10]]
    users = [user(sessions, [0, 10, 20, 30, 40]), user([[11, 12]], [25])]
    found = windows(users, 10 * HOUR, 40 * HOUR, target_tokens=3, context_tokens=2)
    targets = Targets.of(found.histories)
    # User 0 from the session at hour 10 on, but not the one at hour 40; of user 1 all but the first event.
    assert targets.token_P.tolist() == [5, 6, 7, 8, 9, 12]
    assert targets.previous_P.tolist() == [-1, -1, 6, -1, 8, 11]
    assert rows_of(found.histories) == [[2, 3, 4, 5, 6, 7], [6, 7, 8, 9], [11, 12]]
    assert found.user_B.tolist() == [0, 0, 1]


def test_markov_ranks_of_a_hand_worked_chain() -> None:
    training = Targets.of(Histories.of_sessions([[2, 3], [2, 3], [2, 4], [5, 5]]))
    evaluation = Targets.of(Histories.of_sessions([[2, 3], [2, 4], [2, 5], [4, 3], [2, 1]]))
    # After 2: 3 twice, 4 once, then by popularity (3, then 4 and 5 alike, never 2). After 4 nothing was seen: popularity.
    assert markov_ranks(training, evaluation, 6).tolist() == [1, 2, 3, 1, 0]
    assert popularity_ranks(training, evaluation, 6).tolist() == [1, 3, 3, 1, 0]


def test_retail_invoices_are_sessions_without_cancellations_and_repeats(tmp_path: Path) -> None:
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    lines = [
        "536366,22A,x,1,2010-12-02 08:26:00,1.0,17.0,UK",
        "536365,85123a,x,6,2010-12-01 08:26:00,2.55,17.0,UK",
        "536365,85123A,x,1,2010-12-01 08:26:00,2.55,17.0,UK",
        "C536367,22A,x,-1,2010-12-03 08:26:00,1.0,17.0,UK",
        "536368,22A,x,1,2010-12-03 08:26:00,1.0,,UK",
        "536369,NEW,x,1,2011-12-03 08:26:00,1.0,18.0,UK",
    ]
    (tmp_path / "2010-12-01.csv").write_text(header + "\n".join(lines) + "\n")
    data = Invoices.read(tmp_path, train_until_seconds=1_300_000_000)
    assert data.num_tokens == 2 + 2
    first, second = data.users
    assert first.tokens_N.tolist() == [3, 2]  # 85123A, then 22A; tokens go by the alphabet
    assert first.session_starts_S.tolist() == [0, 1]
    assert first.event_times_N.tolist() == [1_291_191_960, 1_291_278_360]
    assert second.tokens_N.tolist() == [1]


def test_oracle_is_asked_about_the_same_targets_as_the_model() -> None:
    config = SimulationConfig(num_users=20, num_items=200, num_days=10, num_tastes=2, num_intents=2)
    process = Process.draw(config)
    events = process.simulate()
    found = windows(users_of(events), 0, 2**62, 10**9, 10**9)
    histories = oracle_histories(found, process.item_ids)
    expected = [history for history in process.histories(events) if len(history.item_ids) > 1]
    assert histories == expected


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "quality").glob("*.yaml")), ids=lambda file: file.stem)
def test_settings_of_every_script_are_valid_and_name_no_unknown_one(file: Path) -> None:
    config = load(file)
    assert config.train.seed == TrainConfig().seed, "the seed comes from --seed"


def test_yoochoose_is_the_published_cut() -> None:
    split = Yoochoose.read(shared("yoochoose1_64")).test_split()
    assert (len(split.training), len(split.evaluation)) == (116_167, 55_898)
    assert len(Targets.of(split.training).token_P) == 369_859
    assert int((Targets.of(split.evaluation).token_P == 1).sum()) == 412


def test_beauty_is_the_published_cut() -> None:
    data = Beauty.read(shared("amazon-beauty"))
    assert (len(data.users), data.num_items) == (22_363, 12_101)
    assert len(data.test().tokens_N) == 198_502
