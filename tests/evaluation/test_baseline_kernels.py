"""The baselines' kernels without Spark: places among all items, queries, V-SkNN by hand and against its definition in plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.evaluation.baselines.ranking_kernel import History, Popularity, rank_batches
from llm_spark.evaluation.baselines.vsknn_kernel import VectorSessionKnn, VsknnSettings, vector_session_knn
from tests.evaluation.plain_baselines import Row, past_sessions, vsknn


def popularity_of(counts: dict[int, int]) -> Popularity:
    tokens = np.array(list(counts), np.int64)
    return Popularity.of(tokens, np.array(list(counts.values()), float), np.zeros(len(tokens)))


def place(popularity: Popularity, target: int, scores: dict[int, float], length: int) -> tuple[int, list[int]]:
    tokens, values = np.array(list(scores), np.int64), np.array(list(scores.values()), float)
    rank, top = popularity.place(target, tokens, values, length)
    return rank, top.tolist()


def test_scored_items_stand_before_all_others_and_equals_by_popularity() -> None:
    popularity = popularity_of({2: 9, 3: 5, 4: 5, 5: 1, 6: 0, 7: 0})
    # 5 leads by its score; 3 and 6 score alike and 3 is more popular; then 2, 4 by popularity; 7 is last.
    scores = {6: 1.0, 5: 2.0, 3: 1.0}
    ranks = {target: place(popularity, target, scores, 4) for target in (2, 3, 4, 5, 6, 7)}
    assert {target: rank for target, (rank, _) in ranks.items()} == {5: 1, 3: 2, 6: 3, 2: 4, 4: 5, 7: 6}
    assert {tuple(top) for _, top in ranks.values()} == {(5, 3, 6, 2)}


def test_items_equal_in_everything_count_against_the_target_and_are_listed_by_token() -> None:
    popularity = popularity_of({5: 1, 4: 1, 3: 1, 2: 1})
    assert place(popularity, 2, {}, 3) == (4, [2, 3, 4])
    assert place(popularity, 2, {2: 1.0, 5: 1.0}, 3) == (2, [2, 5, 3])
    assert place(popularity, 3, {2: 1.0, 5: 1.0}, 9) == (4, [2, 5, 3, 4])


@pytest.mark.parametrize("outside", [0, 1, 8, 99])
def test_what_is_no_item_of_the_vocabulary_has_no_rank_and_is_on_no_list(outside: int) -> None:
    popularity = popularity_of({2: 3, 3: 2, 9: 1})
    assert place(popularity, outside, {}, 2) == (0, [2, 3])
    assert place(popularity, 9, {outside: 5.0, 9: 1.0}, 2) == (1, [9, 2])


def test_a_vocabulary_without_items_gives_no_rank_and_an_empty_list() -> None:
    assert place(popularity_of({}), 2, {2: 1.0}, 3) == (0, [])


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(2, 12), st.integers(0, 3), min_size=1),
    st.dictionaries(st.integers(0, 14), st.integers(1, 3)),
    st.integers(0, 15),
    st.integers(1, 14),
)
def test_a_place_is_found_by_comparing_with_every_item(
    counts: dict[int, int], scores: dict[int, int], target: int, length: int
) -> None:
    def worth(item: int) -> tuple[bool, int, int]:
        return item in scores, scores.get(item, 0), counts[item]

    rank = sum(worth(item) >= worth(target) for item in counts) if target in counts else 0
    best_first = sorted(sorted(counts), key=worth, reverse=True)[:length]
    assert place(popularity_of(counts), target, {i: float(s) for i, s in scores.items()}, length) == (rank, best_first)


def test_the_session_before_stands_in_until_the_current_one_has_a_known_event() -> None:
    history = History(np.array([2, 3, 1, 4, 5]), np.array([0, 2, 4]))
    queries = [history.query(position).tolist() for position in range(5)]
    assert queries == [[], [2], [2, 3], [2, 3], [4]]
    assert history.session_so_far(3).tolist() == []
    assert history.seen(4).tolist() == [2, 3, 4]


def knn(sessions: list[list[int]], weights: dict[int, float] | None = None, **given: float) -> VectorSessionKnn:
    tokens = np.array([token for session in sessions for token in session], np.int64)
    weight = np.array([(weights or {}).get(token, 1.0) for token in tokens.tolist()])
    return VectorSessionKnn(tokens, np.array([len(s) for s in sessions], np.int64), weight, VsknnSettings(**given))


def scores_of(recommender: VectorSessionKnn, session: list[int]) -> dict[int, float]:
    history = History(np.array([*session, 0]), np.array([0]))
    tokens, scores = recommender.candidates(history, len(session))
    assert len(set(tokens.tolist())) == len(tokens)
    return dict(zip(tokens.tolist(), scores.tolist(), strict=True))


def test_vsknn_by_hand() -> None:
    # The current session is 2, 3: weights (1/2)^2 = 1/4 and 1. Likenesses: 1/4, 1, 5/4, none. The latest shared event is 2 steps back in the
    # first of them, 1 step back in the next two: they give 1/8, 1, 5/4 to their items.
    sessions = [[2, 4], [3, 5], [2, 3, 4], [6, 7]]
    scores = scores_of(knn(sessions), [2, 3])
    assert scores == {2: 1 / 8 + 5 / 4, 3: 1 + 5 / 4, 4: 1 / 8 + 5 / 4, 5: 1.0}
    # Linear decay: 1/2 and 1, so likenesses 1/2, 1, 3/2, and 1/4, 1, 3/2 to give.
    linear = scores_of(knn(sessions, decay_power=1), [2, 3])
    assert linear == {2: 1 / 4 + 3 / 2, 3: 1 + 3 / 2, 4: 1 / 4 + 3 / 2, 5: 1.0}
    assert scores_of(knn(sessions, {4: 3.0}), [2, 3])[4] == 3 * (1 / 8 + 5 / 4)


def test_of_a_repeated_item_the_last_event_counts() -> None:
    # Of 2, 3, 2 the item 2 weighs 1 and is the last event; 3 weighs (2/3)^2 and stands 2 steps back.
    scores = scores_of(knn([[2, 4], [3, 5]]), [2, 3, 2])
    assert scores == {2: 1.0, 4: 1.0, 3: pytest.approx(4 / 9 / 2), 5: pytest.approx(4 / 9 / 2)}


def test_only_the_most_recent_sessions_are_looked_at_and_of_those_the_most_like_count() -> None:
    sessions = [[2, 3, 4], [2, 5], [3, 6], [3, 7]]
    # The oldest is most like, and outside the sample of three.
    assert scores_of(knn(sessions, sample_size=3), [2, 3]).keys() == {2, 3, 5, 6, 7}
    assert scores_of(knn(sessions, sample_size=4, num_neighbours=1), [2, 3]).keys() == {2, 3, 4}
    # Two are equally like: the more recent one counts.
    assert scores_of(knn(sessions, sample_size=3, num_neighbours=1), [2, 3]).keys() == {3, 7}


def test_a_session_of_items_that_training_never_saw_scores_nothing() -> None:
    assert scores_of(knn([[2, 3]]), [9]) == {}
    assert scores_of(knn([[2, 3]]), []) == {}
    assert scores_of(knn([]), [2]) == {}


def test_an_answer_leaves_no_trace_in_the_next() -> None:
    recommender = knn([[2, 4], [3, 5], [2, 3, 4]], num_neighbours=2)
    first = scores_of(recommender, [2, 3])
    scores_of(recommender, [5, 4, 4])
    assert scores_of(recommender, [2, 3]) == first


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_vsknn_equals_its_definition_in_fractions(data: st.DataObject) -> None:
    session = st.lists(st.integers(2, 7), min_size=1, max_size=5)
    past = data.draw(st.lists(session, max_size=12))
    current = data.draw(session)
    given_settings = {"k": data.draw(st.integers(1, 6)), "m": data.draw(st.integers(1, 8))}
    power, idf_weight = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([0.0, 5.0]))
    rows = [Row(f"r{n:02}", items, [0], [n] * len(items), 0) for n, items in enumerate(past)]
    assert [each.items for each in past_sessions(rows)] == past
    expected = vsknn(rows, **given_settings, decay_power=power, idf_weight=idf_weight)(
        Row("t", [*current, 0], [0], [0] * (len(current) + 1), 1), len(current)
    )
    num_events = {item: sum(items.count(item) for items in past) for item in range(2, 8)}
    weights = {i: 1 + idf_weight * max(0.0, np.log(len(past) / num)) for i, num in num_events.items() if num}
    found = scores_of(
        knn(
            [list(dict.fromkeys(items)) for items in past],
            weights,
            num_neighbours=given_settings["k"],
            sample_size=given_settings["m"],
            decay_power=power,
            idf_weight=idf_weight,
        ),
        current,
    )
    assert found == pytest.approx(expected, rel=1e-6)


ROWS = pa.schema(
    [
        ("kind", pa.int32()),
        ("sequence_id", pa.string()),
        ("start", pa.int32()),
        ("user_id", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("session_starts", pa.list_(pa.int32())),
        ("numbers", pa.list_(pa.float64())),
        ("more_numbers", pa.list_(pa.float64())),
    ]
)


def rows_of_all_kinds() -> pa.RecordBatch:
    """Items 2..5 in two blocks; sessions a, b and c, of which b comes three times; two test rows."""
    items = [(0, None, None, None, tokens, None, [1.0, 1.0], [1.0, 1.0]) for tokens in ([2, 3], [4, 5])]
    learned = [
        (1, name, start, None, tokens, None, None, None)
        for name, start, tokens in (
            ("a", 0, [2, 3]),
            ("b", 0, [3, 4]),
            ("b", 0, [3, 4]),
            ("b", 0, [3, 4]),
            ("b", 2, [3, 5]),
        )
    ]
    tests = [(2, "t", 1, "u", [3, 4, 5], [0], None, None), (2, "v", 0, "w", [2], [0], None, None)]
    columns = zip(*items, *learned, *tests, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=6))
def test_batches_cut_anywhere_give_the_same_ranks_and_a_session_counts_once(cuts: list[int]) -> None:
    rows = rows_of_all_kinds()
    edges = [0, *sorted(cuts), rows.num_rows]
    batches = [rows.slice(first, last - first) for first, last in itertools.pairwise(edges)]
    build = vector_session_knn(VsknnSettings(num_neighbours=2, idf_weight=0.0))
    found = pa.Table.from_batches(rank_batches(iter(batches), build, 2)).to_pydict()
    # After 3 the two most recent sessions are {3 4} and {3 5}: 3 has 2; 4 and 5 have 1 each. After 3 4 it is {3 4}, by 1 + 1/4, and {3 5},
    # by 1/4, half of it: 3 has 11/8, 4 has 10/8, 5 has 1/8. Nothing stands before v's only event: four items are alike.
    assert found == {
        "sequence_id": ["t", "t", "v"],
        "user_id": ["u", "u", "w"],
        "position": [1, 2, 0],
        "session_position": [1, 2, 0],
        "token": [4, 5, 2],
        "rank": [3, 3, 4],
        "top": [[3, 4], [3, 4], [2, 3]],
    }


def test_a_part_without_test_rows_gives_nothing_and_one_without_learned_rows_its_ranks() -> None:
    rows, build = rows_of_all_kinds(), vector_session_knn(VsknnSettings())
    assert list(rank_batches(iter([rows.slice(0, 7)]), build, 2)) == []
    alone = pa.concat_tables([pa.Table.from_batches([rows.slice(*part)]) for part in ((0, 2), (7, 2))])
    (found,) = rank_batches(iter(alone.combine_chunks().to_batches()), build, 2)
    assert found.column("rank").to_pylist() == [4, 4, 4]
