"""The oracle against enumeration of all latent paths, and against laws that any exact predictor obeys."""

import itertools

import numpy as np
import pytest

from llm_spark.simulation import History, Oracle, Process, SimulationConfig

TINY = SimulationConfig(
    seed=6,
    num_users=2000,
    num_items=4,
    num_tastes=2,
    num_intents=2,
    items_per_intent=3,
    chain_steps=[0.7, 0.3],
    chain_share=0.4,
    noise_share=0.2,
    mean_sessions_per_user=2.0,
    mean_session_length=2.5,
)
MODERATE = SimulationConfig(num_users=500)


@pytest.fixture(scope="module")
def tiny():
    return Process.draw(TINY)


@pytest.fixture(scope="module")
def moderate():
    process = Process.draw(MODERATE)
    return process, process.simulate()


def item_law(process, taste, intent, before):
    """p(item | item before, taste, intent) as the module's text has it; `before` is None where a session begins."""
    config = process.config
    cycle = process.cycle_ZM[intent].tolist()
    law = [config.noise_share / config.num_items] * config.num_items
    taste_share = 1 - config.noise_share - config.chain_share
    if before in cycle:
        for steps, share in enumerate(config.chain_steps, start=1):
            law[cycle[(cycle.index(before) + steps) % len(cycle)]] += config.chain_share * share
    else:
        taste_share += config.chain_share
    for place, item in enumerate(cycle):
        law[item] += taste_share * process.preference_GZM[taste, intent, place]
    return law


def probability_of(process, items, starts):
    """p(items), summed over the taste and the intent of every session, one path after another."""
    total = 0.0
    for taste in range(process.config.num_tastes):
        for intents in itertools.product(range(process.config.num_intents), repeat=len(starts)):
            path = process.taste_G[taste]
            for intent in intents:
                path *= process.intent_GZ[taste, intent]
            session = -1
            for at, item in enumerate(items):
                opens = at in starts
                session += opens
                path *= item_law(process, taste, intents[session], None if opens else items[at - 1])[item]
            total += path
    return total


def enumerated_predictive(process, items, starts):
    """p(item at t | items before), unknown items (-1) summed over all that they may have been."""
    rows = []
    for t in range(len(items)):
        choices = [range(4) if item == -1 else [item] for item in items[:t]]
        starts_so_far = [start for start in starts if start <= t]
        joint = [
            sum(probability_of(process, [*before, item], starts_so_far) for before in itertools.product(*choices))
            for item in range(4)
        ]
        rows.append(np.array(joint) / sum(joint))
    return np.array(rows)


@pytest.mark.parametrize(
    ("items", "starts"),
    [
        ([0, 1, 2, 3, 0], [0]),
        ([2, 2, 1, 3, 1], [0, 2]),
        ([3, 0, 0, 2, 1], [0, 1, 4]),
        ([1, -1, 2, 0, 3], [0]),
        ([0, -1, -1, 3, 2], [0, 4]),
        ([2, 1, -1, 0, 3], [0, 3]),
        ([-1, 3, -1, 0, 1], [0]),
        ([-1, -1, -1, -1, 2], [0, 2]),
    ],
)
def test_prediction_equals_enumeration_of_all_latent_paths(tiny, items, starts):
    predictive = Oracle(tiny).predictive(items, starts)
    np.testing.assert_allclose(predictive, enumerated_predictive(tiny, items, starts), rtol=1e-10)


def test_every_predictive_row_sums_to_one(moderate):
    process, _ = moderate
    rng = np.random.default_rng(3)
    items = rng.integers(-1, process.config.num_items, 40)
    predictive = Oracle(process).predictive(items, [0, 7, 8, 30])
    np.testing.assert_allclose(predictive.sum(axis=1), 1.0, rtol=1e-9)


def test_the_top_items_mean_probability_is_its_hit_rate(moderate):
    process, events = moderate
    oracle = Oracle(process)
    probabilities, hits = [], []
    for user in range(150):
        of_user = events.user_N == user
        items = events.item_N[of_user]
        starts = np.flatnonzero(np.diff(events.session_N[of_user], prepend=-1)).tolist()
        predictive = oracle.predictive(items, starts)
        probabilities.append(predictive.max(axis=1))
        hits.append(predictive.argmax(axis=1) == items)
    p, hit = np.concatenate(probabilities), np.concatenate(hits)
    assert len(p) > 3000
    standard_error = np.sqrt((p * (1 - p)).sum())
    assert abs(hit.sum() - p.sum()) < 4 * standard_error


def test_best_recall_is_what_ranking_each_predictive_row_gives(moderate):
    process, events = moderate
    oracle = Oracle(process)
    histories = [history._replace(first_target=3) for history in process.histories(events)[:40]]
    histories[5].item_ids[4] = "no-such-item"
    num_targets, found = 0, []
    for item_ids, starts, first_target in histories:
        items = [int(item_id[-5:]) if item_id.startswith("item-") else -1 for item_id in item_ids]
        predictive = oracle.predictive(items, starts)
        for t in range(first_target, len(items)):
            num_targets += 1
            if items[t] >= 0:
                rank = (predictive[t] >= predictive[t, items[t]]).sum()
                found += [1 / rank] if rank <= 10 else []
    result = oracle.best_recall(histories, 10)
    assert result.num_targets == num_targets
    assert result.recall == pytest.approx(len(found) / num_targets)
    assert result.mrr == pytest.approx(sum(found) / num_targets)


def test_knowing_only_the_session_is_the_oracle_on_sessions_cut_apart(moderate):
    process, events = moderate
    histories = process.histories(events, first_target=0)
    sessions = [
        History(history.item_ids[begin:end], [0], 0)
        for history in histories
        for begin, end in itertools.pairwise([*history.session_starts, len(history.item_ids)])
    ]
    whole, apart = Oracle(process).best_recall(histories, 10), Oracle(process).best_recall(sessions, 10)
    assert whole.num_targets == apart.num_targets == len(events)
    assert whole.session_only_recall == pytest.approx(apart.recall)
    assert whole.session_only_mrr == pytest.approx(apart.mrr)


def test_long_memory_beats_the_session_alone_beats_a_learned_chain_beats_popularity(moderate):
    process, events = moderate
    result = Oracle(process).best_recall(process.histories(events, first_target=0), 10)

    # A first-order chain of counts, learned on other users of the same process.
    others = Process.simulate(Process.draw(SimulationConfig(num_users=3000)))
    learned = others.user_N >= 500
    num_items = process.config.num_items
    follows = learned[1:] & (np.diff(others.session_N) == 0)
    counts = np.zeros((num_items, num_items))
    np.add.at(counts, (others.item_N[:-1][follows], others.item_N[1:][follows]), 1)
    popular = np.bincount(others.item_N[learned], minlength=num_items) / learned.sum()
    opens = np.diff(events.session_N, prepend=-1) > 0
    scores = np.where(opens[:, None], 0, counts[np.roll(events.item_N, 1)]) + 5 * popular
    ranks = (scores >= scores[np.arange(len(events)), events.item_N][:, None]).sum(axis=1)
    chain_recall = (ranks <= 10).mean()

    assert result.recall > result.session_only_recall + 0.08
    assert result.session_only_recall > chain_recall + 0.05
    assert chain_recall > 0.6 * result.session_only_recall  # so that the process can be learned from this many events
    assert chain_recall > result.popularity_recall + 0.1


def test_simulated_items_come_as_often_as_the_oracle_expects(tiny):
    events, oracle = tiny.simulate(), Oracle(tiny)
    opens = np.diff(events.session_N, prepend=-1) > 0
    expected = np.concatenate(
        [
            oracle.predictive(events.item_N[of_user], np.flatnonzero(opens[of_user]).tolist())
            for of_user in np.split(np.arange(len(events)), np.flatnonzero(np.diff(events.user_N)) + 1)
        ]
    )
    came = events.item_N[:, None] == np.arange(4)
    for rows in (opens, ~opens):  # what opens a session, and what follows in it
        standard_error = np.sqrt((expected[rows] * (1 - expected[rows])).sum(axis=0))
        assert (abs(came[rows].sum(axis=0) - expected[rows].sum(axis=0)) < 4 * standard_error).all()


def test_popularity_is_the_mean_law_of_an_item_over_sessions_of_geometric_length(tiny):
    # From the law m of the first item and the chain's matrix P: the sum of (1 - r) r^t m P^t is (1 - r) m (1 - r P)^-1.
    going_on = 1 - 1 / TINY.mean_session_length
    popularity = np.zeros(4)
    for taste, intent in itertools.product(range(2), range(2)):
        first = np.array(item_law(tiny, taste, intent, None))
        chain = np.array([item_law(tiny, taste, intent, before) for before in range(4)])
        resolvent = np.linalg.inv(np.eye(4) - going_on * chain)
        popularity += tiny.taste_G[taste] * tiny.intent_GZ[taste, intent] * (1 - going_on) * first @ resolvent
    np.testing.assert_allclose(Oracle(tiny).popularity(), popularity, rtol=1e-5)


def test_popularity_where_sessions_have_one_item_is_the_law_of_a_first_item():
    process = Process.draw(SimulationConfig(mean_session_length=1.0))
    oracle = Oracle(process)
    np.testing.assert_allclose(oracle.popularity(), oracle.predictive([0], [0])[0], rtol=1e-9)


def test_an_unknown_target_counts_as_a_miss(tiny):
    result = Oracle(tiny).best_recall([(["item-00000", "gone", "item-00001"], [0], 1)], k=4)
    assert (result.num_targets, result.num_unknown_targets) == (2, 1)
    assert result.recall == result.session_only_recall == result.popularity_recall == 0.5


def test_equally_probable_items_rank_last_among_their_equals():
    # All noise: every item is as probable as any other, so a target is within the first k only where k covers all
    # items.
    config = SimulationConfig(
        num_items=4,
        num_tastes=2,
        num_intents=2,
        items_per_intent=3,
        chain_steps=[0.5, 0.5],
        chain_share=0.0,
        noise_share=1.0,
    )
    oracle = Oracle(Process.draw(config))
    history = (["item-00002", "item-00000", "item-00003"], [0], 1)
    assert oracle.best_recall([history], k=3).recall == 0.0
    assert oracle.best_recall([history], k=4).mrr == 0.25


def test_a_history_with_nothing_to_predict_gives_no_targets(tiny):
    result = Oracle(tiny).best_recall([(["item-00000"], [0], 1), ([], [], 1)], k=2)
    assert result.num_targets == 0
    assert np.isnan(result.recall)


def test_a_k_below_one_is_refused(tiny):
    with pytest.raises(ValueError, match=r"^k=0: "):
        Oracle(tiny).best_recall([], k=0)


def test_a_history_that_does_not_begin_with_a_session_is_refused(tiny):
    with pytest.raises(ValueError, match=r"^session_starts=\[1\]: "):
        Oracle(tiny).predictive([0, 1], [1])
