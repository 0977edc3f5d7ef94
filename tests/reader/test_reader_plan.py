"""The rank plan's laws: every row once, ranks within one row, equal steps, an order drawn from (seed, epoch) alone."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.reader.plan import Batching, EpochPlan, Phase, Piece, RankPlan, budget_starts, random_order
from llm_spark.reader.schedule import Schedule

layouts = st.lists(st.integers(0, 40), max_size=12)
world_sizes = st.integers(1, 64)
batchings = st.builds(
    lambda rows, tokens, by_rows, buffer, shuffle, bucket: Batching(
        rows if by_rows else None, None if by_rows else tokens, buffer, shuffle, bucket or not by_rows
    ),
    st.integers(1, 9),
    st.integers(1, 30),
    st.booleans(),
    st.integers(1, 60),
    st.booleans(),
    st.booleans(),
)


def lengths_of(layout: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(sum(layout))
    return [random.integers(0, 12, num).astype(np.int32) for num in layout]


def plan_of(
    layout: list[int], batching: Batching, world_size: int, epoch: int = 0, phases: list[Phase] | None = None
) -> EpochPlan:
    return EpochPlan(layout, batching, 7, epoch, world_size, lengths_of(layout), phases or [])


def delivered(plan: RankPlan, first_step: int = 0) -> list[list[tuple[int, int]]]:
    """The (row group, row) of every batch, read off the plan's blocks one row at a time."""
    rows_on_stretch = [(piece.group, int(row)) for piece in plan.pieces for row in piece.rows]
    batches = []
    for number in range(plan.num_blocks):
        block = plan.block(number)
        for b in range(block.num_batches):
            batches.append([rows_on_stretch[i] for i in block.order[block.starts[b] : block.starts[b + 1]]])
    return batches[first_step:]


def all_rows(layout: list[int]) -> Counter[tuple[int, int]]:
    return Counter((group, row) for group, num in enumerate(layout) for row in range(num))


@settings(max_examples=800, deadline=None)
@given(layouts, batchings, world_sizes)
def test_every_row_stands_in_exactly_one_batch_of_one_rank(
    layout: list[int], batching: Batching, world_size: int
) -> None:
    plan = plan_of(layout, batching, world_size)
    rows = Counter(row for rank in range(world_size) for batch in delivered(plan.rank(rank)) for row in batch)
    assert rows == all_rows(layout)


@settings(max_examples=200, deadline=None)
@given(layouts, batchings, world_sizes)
def test_ranks_differ_by_at_most_one_row(layout: list[int], batching: Batching, world_size: int) -> None:
    plan = plan_of(layout, batching, world_size)
    sizes = [plan.rank(rank).num_rows for rank in range(world_size)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=200, deadline=None)
@given(layouts, batchings, world_sizes)
def test_the_steps_of_an_epoch_are_the_batches_of_the_rank_that_has_most(
    layout: list[int], batching: Batching, world_size: int
) -> None:
    plan = plan_of(layout, batching, world_size)
    assert plan.num_steps == max(len(delivered(plan.rank(rank))) for rank in range(world_size))


@settings(max_examples=200, deadline=None)
@given(layouts, batchings, st.integers(1, 8))
def test_no_batch_exceeds_its_rows_or_its_token_budget(layout: list[int], batching: Batching, world_size: int) -> None:
    plan, lengths = plan_of(layout, batching, world_size), lengths_of(layout)
    for rank in range(world_size):
        for batch in delivered(plan.rank(rank)):
            assert batch
            if batching.batch_rows is not None:
                assert len(batch) <= batching.batch_rows
            else:
                longest = max(max(1, int(lengths[group][row])) for group, row in batch)
                assert len(batch) == 1 or len(batch) * longest <= (batching.batch_tokens or 0)


@settings(max_examples=800, deadline=None)
@given(layouts, batchings, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=3), st.integers(1, 9))
def test_phases_at_any_world_sizes_and_the_rest_deliver_every_row_once(
    layout: list[int], batching: Batching, phases: list[tuple[int, int]], world_size: int
) -> None:
    rows: Counter[tuple[int, int]] = Counter()
    done: list[Phase] = []
    for phase in [Phase(*p) for p in phases]:
        plan = plan_of(layout, batching, phase.world_size, phases=done)
        for rank in range(phase.world_size):
            rows.update(row for batch in delivered(plan.rank(rank))[: phase.num_steps] for row in batch)
        done = [*done, phase]
    plan = plan_of(layout, batching, world_size, phases=done)
    rows.update(row for rank in range(world_size) for batch in delivered(plan.rank(rank)) for row in batch)
    assert rows == all_rows(layout)


@settings(max_examples=200, deadline=None)
@given(layouts, batchings, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=3))
def test_what_remains_of_a_row_group_is_one_piece_in_stored_order_whatever_phases_came_before(
    layout: list[int], batching: Batching, phases: list[tuple[int, int]]
) -> None:
    pieces = plan_of(layout, batching, 1, phases=[Phase(*p) for p in phases]).pieces
    groups = [piece.group for piece in pieces]
    assert len(groups) == len(set(groups))
    assert all(list(piece.rows) == sorted(set(piece.rows)) for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(layouts, batchings, st.integers(1, 6), st.integers(0, 10))
def test_what_workers_take_joins_to_the_planned_batches_from_any_step(
    layout: list[int], batching: Batching, world_size: int, first_step: int
) -> None:
    plan = plan_of(layout, batching, world_size)
    for rank in range(world_size):
        schedule = Schedule(plan.rank(rank), first_step)
        taken = {
            (request.position, slab): [(request.group, int(row)) for row in rows]
            for request in schedule.requests()
            for slab, rows in request.takes
        }
        joined = []
        for slab in schedule.slabs():
            end_to_end = [row for position in slab.positions for row in taken.pop((position, slab.index))]
            rows = end_to_end if slab.order is None else [end_to_end[i] for i in slab.order]
            joined += [rows[start:stop] for start, stop in itertools.pairwise(slab.starts)]
        assert joined == delivered(plan.rank(rank), first_step)
        assert not taken


def test_the_same_seed_and_epoch_give_the_same_order_and_others_another() -> None:
    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return delivered(EpochPlan([50] * 8, Batching(16, None, 100, True, False), seed, epoch, 2).rank(1))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_seed_zero_is_a_seed_like_any_other() -> None:
    assert random_order(50, 0, 3).tolist() == random_order(50, 0, 3).tolist() != list(range(50))


def fisher_yates(num: int, *key: int) -> list[int]:
    """The classic shuffle by 32-bit halves of PCG64's words, those above the place masked and drawn again."""
    words = np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(4 * num).tolist()
    halves = iter([half for word in words for half in (word & 0xFFFFFFFF, word >> 32)])
    order = list(range(num))
    for place in range(num - 1, 0, -1):
        mask = (1 << place.bit_length()) - 1
        other = next(half & mask for half in halves if half & mask <= place)
        order[place], order[other] = order[other], order[place]
    return order


@pytest.mark.parametrize("num", [0, 1, 4, 97, 700])
def test_random_orders_are_the_permutations_that_a_saved_state_relies_on(num: int) -> None:
    assert random_order(num, 5, 1).tolist() == fisher_yates(num, 5, 1)


@pytest.mark.parametrize("num", [1, 2, 5, 97])
def test_a_random_order_is_a_permutation(num: int) -> None:
    assert sorted(random_order(num, 3).tolist()) == list(range(num))


def test_a_file_read_without_shuffling_keeps_its_order() -> None:
    plan = EpochPlan([3, 0, 2], Batching(2, None, 4, False, False), 0, 5, 1)
    assert delivered(plan.rank(0)) == [[(0, 0), (0, 1)], [(0, 2), (2, 0)], [(2, 1)]]


def test_the_line_is_cut_into_row_ranges_by_hand() -> None:
    plan = EpochPlan([5, 3], Batching(2, None, 4, False, False), 0, 0, 3)
    assert [plan.rank(rank).pieces for rank in range(3)] == [
        [Piece(0, range(2))],
        [Piece(0, range(2, 5))],
        [Piece(1, range(3))],
    ]


def test_a_token_budget_counts_rows_times_the_longest() -> None:
    # 3 rows x 2 tokens = 6 fit in 7; the row of 9 stands alone; 0 counts as 1.
    assert budget_starts(np.array([1, 2, 2, 3, 9, 0, 1]), 7).tolist() == [0, 3, 4, 5, 7]


def test_bucketing_pads_less_than_a_full_shuffle_does() -> None:
    random = np.random.default_rng(0)
    lengths = [random.geometric(0.05, 500).astype(np.int32) for _ in range(4)]

    def num_cells(bucket: bool) -> int:
        plan = EpochPlan([500] * 4, Batching(20, None, 1000, True, bucket), 0, 0, 1, lengths)
        return sum(len(batch) * max(lengths[g][r] for g, r in batch) for batch in delivered(plan.rank(0)))

    num_tokens = sum(int(length.sum()) for length in lengths)
    assert 1 - num_tokens / num_cells(True) < 0.2 < 0.5 < 1 - num_tokens / num_cells(False)


def test_neighbours_share_a_batch_as_often_as_the_size_of_the_buffer_says() -> None:
    num_rows, block_rows, batch_rows, num_epochs = 4000, 500, 50, 20
    together = 0
    for epoch in range(num_epochs):
        plan = EpochPlan([num_rows], Batching(batch_rows, None, block_rows, True, False), 0, epoch, 1)
        batch_of = {row: number for number, batch in enumerate(delivered(plan.rank(0))) for _, row in batch}
        together += sum(batch_of[row] == batch_of[row + 1] for row in range(num_rows - 1))
    # Two rows of one block share a batch with probability (batch_rows - 1) / (block_rows - 1): 49 / 499 = 0.098.
    assert together / (num_epochs * num_rows) == pytest.approx(0.098, rel=0.05)


def test_a_row_is_equally_likely_to_come_early_or_late() -> None:
    places = np.zeros(8)
    for epoch in range(400):
        plan = EpochPlan([25] * 8, Batching(10, None, 50, True, False), 0, epoch, 1)
        order = [group for batch in delivered(plan.rank(0)) for group, _ in batch]
        places += [np.mean([i for i, g in enumerate(order) if g == group]) for group in range(8)]
    # The mean place of 200 rows is 99.5; 400 draws of a group's place have a standard error of 2.9.
    assert places / 400 == pytest.approx(99.5, abs=4 * 2.9)


def test_a_schedule_after_the_last_step_asks_for_nothing() -> None:
    plan = EpochPlan([10], Batching(4, None, 8, True, False), 0, 0, 1).rank(0)
    assert list(Schedule(plan, 3).requests()) == []
