from dataclasses import replace

import numpy as np
import pytest

from llm_spark.simulation import Process, SimulationConfig

CONFIG = SimulationConfig(num_users=400, num_days=14)


@pytest.fixture(scope="module")
def process():
    return Process.draw(CONFIG)


@pytest.fixture(scope="module")
def events(process):
    return process.simulate()


def test_the_same_seed_gives_the_same_events(events):
    again = Process.draw(CONFIG).simulate()
    for name in ("user_N", "item_N", "time_N", "event_type_N", "value_N", "session_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(events, name))


def test_another_seed_gives_other_events(events):
    other = Process.draw(replace(CONFIG, seed=8)).simulate()
    assert len(other) != len(events) or not np.array_equal(other.item_N, events.item_N)


def test_a_gap_of_thirty_minutes_recovers_the_sessions_exactly(events):
    new_user = np.diff(events.user_N, prepend=-1) != 0
    recovered = np.cumsum(new_user | (np.diff(events.time_N, prepend=0) > 30 * 60)) - 1
    np.testing.assert_array_equal(recovered, events.session_N)


def test_a_users_events_have_strictly_growing_times(events):
    same_user = np.diff(events.user_N) == 0
    assert (np.diff(events.time_N)[same_user] > 0).all()


def test_all_events_lie_within_the_days(process, events):
    assert process.start_seconds == np.datetime64("2025-01-06T00:00:00", "s").astype(int)
    assert events.time_N.min() >= process.start_seconds
    assert events.time_N.max() < process.start_seconds + 14 * 86_400


def test_sessions_that_do_not_fit_into_the_days_are_dropped_and_the_rest_keeps_its_gaps():
    config = SimulationConfig(num_users=200, num_days=1, mean_sessions_per_user=20.0)
    process = Process.draw(config)
    events = process.simulate()
    assert events.time_N.max() < process.start_seconds + 86_400
    num_sessions_U = [len(set(events.session_N[events.user_N == user])) for user in range(200)]
    assert max(num_sessions_U) <= 8  # at three hours and more from one to the next
    same_user = np.diff(events.user_N) == 0
    new_session = np.diff(events.session_N) > 0
    assert np.diff(events.time_N)[same_user & new_session].min() >= 3 * 3600


def test_means_of_sessions_and_lengths_are_those_asked_for():
    events = Process.draw(SimulationConfig(num_users=4000, num_days=60)).simulate()
    num_sessions = events.session_N[-1] + 1
    # Geometric laws: standard errors sqrt(m (m - 1) / n); sessions dropped for want of room are rare at 60 days.
    assert abs(num_sessions / 4000 - 10.0) < 4 * np.sqrt(90 / 4000)
    assert abs(len(events) / num_sessions - 4.0) < 4 * np.sqrt(12 / num_sessions)


def test_each_event_has_a_value_exactly_where_its_type_carries_one(events):
    carries_value = events.event_type_N > 0  # cart and purchase
    np.testing.assert_array_equal(~np.isnan(events.value_N), carries_value)


@pytest.mark.parametrize("name", ["taste_G", "intent_GZ", "preference_GZM", "event_type_VK"])
def test_every_law_of_the_process_sums_to_one(process, name):
    np.testing.assert_allclose(getattr(process, name).sum(axis=-1), 1.0, rtol=1e-12)


def test_every_item_belongs_to_an_intent_and_stands_where_its_cycle_says(process):
    assert (process.position_VZ >= 0).any(axis=1).all()
    for intent, cycle_M in enumerate(process.cycle_ZM):
        assert len(set(cycle_M)) == CONFIG.items_per_intent
        np.testing.assert_array_equal(process.position_VZ[cycle_M, intent], np.arange(CONFIG.items_per_intent))


def test_histories_hold_each_users_items_and_session_beginnings(process, events):
    histories = process.histories(events, first_target=2)
    user = events.user_N[len(events) // 2]
    of_user = events.user_N == user
    history = histories[np.unique(events.user_N).tolist().index(user)]
    assert history.item_ids == [f"item-{item:05d}" for item in events.item_N[of_user]]
    first_event_of = [events.session_N[of_user].tolist().index(s) for s in np.unique(events.session_N[of_user])]
    assert history.session_starts == first_event_of
    assert history.first_target == 2
    assert sum(len(history.item_ids) for history in histories) == len(events)
