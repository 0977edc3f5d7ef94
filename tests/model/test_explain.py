from __future__ import annotations

import copy
import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig, OutcomeConfig, TrainConfig
from llm_spark.model.explain import NUM_POINTS, Explanation, explain, explain_outcomes
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.plan import SessionPlan
from llm_spark.training.distributed import Ranks
from llm_spark.training.loop import Trainer
from tests.model.histories import Row, batch_of, random_rows, row, with_features
from tests.model.test_network import NUM_EVENT_TYPES, NUM_TOKENS, small_model
from tests.training.sequences import SMALL_MODEL, InMemory

EVENT_COLUMNS = ("tokens", "event_types", "values", "event_times")
ALL_ITEMS = list(range(2, NUM_TOKENS))
LATER_VISITS = list(itertools.product((10, 11), repeat=3))
OUTCOMES = [OutcomeConfig("returns"), OutcomeConfig("spends", kind="amount")]


def explained(
    model: NextEventModel, rows: list[Row], closed: list[bool] | None = None, num_points: int = 4
) -> Explanation:
    """The scores of all items, explained."""
    tokens_BK = torch.tensor(ALL_ITEMS).expand(len(rows), -1)
    starts = torch.tensor(closed, dtype=torch.bool) if closed is not None else None
    batch = batch_of(rows)
    with torch.inference_mode():
        contexts_BD = model.next_step(batch, starts)
    return explain(model, batch, contexts_BD, tokens_BK, starts, num_points)


def occlusions(model: NextEventModel, one_row: Row, item: int) -> torch.Tensor:
    """What each event of an ended session adds to the item's score: that of all events less that without the event."""
    places = range(len(one_row["tokens"]))
    rest = [[place for place in places if place != gone] for gone in places]
    session = np.searchsorted(one_row["session_starts"], places, side="right")
    rows = [one_row]
    for kept in rest:
        columns = {name: [one_row[name][place] for place in kept] for name in EVENT_COLUMNS}
        starts = np.flatnonzero(np.diff(session[kept], prepend=0)).tolist()
        rows.append({**columns, "session_starts": starts, "first_target": 1})
    score_R = scores(model, rows, [True] * len(rows))[:, item]
    return score_R[0] - score_R[1:]


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1])


def weights_of_rows(found: Explanation, rows: list[Row]) -> list[torch.Tensor]:
    return list(found.weight_NK.split([len(one_row["tokens"]) for one_row in rows]))


def scores(
    model: NextEventModel, rows: list[Row], closed: list[bool] | None = None, head_of: NextEventModel | None = None
) -> torch.Tensor:
    """The items' logits, by the head of another model where one is given, less their mean."""
    starts = torch.tensor(closed, dtype=torch.bool) if closed is not None else None
    with torch.no_grad():
        logits = (head_of or model).logits(model.next_step(batch_of(rows), starts))[:, 2:]
    return logits - logits.mean(dim=1, keepdim=True)


def planned(one_row: Row) -> tuple[HistoryBatch, SessionPlan]:
    batch = batch_of([one_row])
    return batch, SessionPlan.for_next_step(batch)


def faded(model: NextEventModel, share_of_token: dict[int, float]) -> NextEventModel:
    """The model with these items' vectors shrunk to a share of themselves."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for token, share in share_of_token.items():
            other.item_embedding.weight[token] *= share
    return other


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_points=st.integers(1, 5),
    cell=st.sampled_from(["rnn", "lstm", "gru"]),
    attention=st.sampled_from(["none", "dot", "additive"]),
    memory_size=st.sampled_from([0, 4]),
    tied=st.sampled_from(["no", "last", "mapped", "attended"]),
    cosine_scale=st.sampled_from([0.0, 12.0]),
    num_layers=st.integers(1, 3),
    num_features=st.integers(0, 2),
)
def test_baseline_and_weights_sum_to_the_score(
    seed: int, num_points: int, num_features: int, tied: str, attention: str, **settings: object
) -> None:
    item_context = "last" if tied == "no" or (tied, attention) == ("attended", "none") else tied
    head = {"tied": tied != "no", "item_context": item_context}
    model = small_model(features=["quantity", "price"][:num_features], attention=attention, **head, **settings)
    rows = random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    if num_features:
        rows = with_features(rows, num_features, seed)
    closed = [bool((seed >> place) & 1) for place in range(5)]
    found = explained(model, rows, closed, num_points)
    total = found.baseline_BK + torch.stack([weights.sum(dim=0) for weights in weights_of_rows(found, rows)])
    torch.testing.assert_close(total, found.score_BK, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.score_BK, scores(model, rows, closed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [{}, {"tied": True, "item_context": "attended"}], ids=["own", "tied, attended"])
def test_weights_are_the_integral_of_the_scores_slope_as_each_event_fades_in(head: dict[str, object]) -> None:
    # Independently: items' vectors of a copy of the model shrunk, slopes by differences, in float64.
    model = small_model(use_event_types=False, use_values=False, use_time_gaps=False, **head)
    history = row([[2, 3], [4], [5, 6, 7]])
    found = explained(model, [history], num_points=12)
    exact = model.double()
    points, step = (np.arange(40) + 0.5) / 40, 1e-4

    def scores_where(shares: dict[int, float]) -> torch.Tensor:
        # A tied softmax does not fade with the inputs.
        return scores(faded(exact, shares), [history], head_of=exact)[0]

    for place, token in enumerate(history["tokens"]):
        slopes = []
        for point in points:
            shares = dict.fromkeys(history["tokens"], point)
            above, below = shares | {token: point + step}, shares | {token: point - step}
            slopes.append((scores_where(above) - scores_where(below)) / (2 * step))
        expected = torch.stack(slopes).mean(dim=0).float()
        torch.testing.assert_close(found.weight_NK[place], expected, atol=1e-4, rtol=1e-2)
    nothing = scores_where(dict.fromkeys(history["tokens"], 0.0)).float()
    torch.testing.assert_close(found.baseline_BK[0], nothing, atol=1e-5, rtol=1e-5)


def test_a_slope_of_nothing_midway_still_leaves_weights_that_sum_to_the_score() -> None:
    # Every unit of the dense layer is dead until the event is nearly all there.
    model = small_model(cell="rnn", attention="none", memory_size=0)
    with torch.no_grad():
        model.cell.weight_hh_l0.zero_()
        for bias in (model.cell.bias_ih_l0, model.cell.bias_hh_l0, model.dense.bias):
            bias.zero_()
        history = row([[3, 3]])
        state = torch.tanh(model.cell.weight_ih_l0 @ model.step_inputs(*planned(history))[-1])
        model.dense.bias.copy_(-0.9 * (model.dense.weight @ state).abs())
    found = explained(model, [history], num_points=1)
    assert (found.score_BK - found.baseline_BK).abs().max() > 1e-4
    torch.testing.assert_close(found.weight_NK.sum(dim=0), (found.score_BK - found.baseline_BK)[0])


def test_more_points_leave_less_to_be_spread() -> None:
    model = small_model(attention="dot")
    rows = random_rows(20, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)
    sizes = [explained(model, rows, num_points=n).remainder_BK.abs().mean() for n in (1, 4, 16)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-3


def test_the_memorys_weight_is_that_of_all_sessions_before_the_current_one() -> None:
    model = small_model()
    history = row([[2, 3], [4], [5, 6, 7]])
    found = explained(model, [history, history], [False, True])
    still_open, ended = weights_of_rows(found, [history, history])
    torch.testing.assert_close(found.memory_BK[0], still_open[:3].sum(dim=0))
    assert still_open[:3].abs().min() > 0
    # An ended session is an earlier one: nothing else speaks for the next visit's first item.
    torch.testing.assert_close(found.memory_BK[1], ended.sum(dim=0))
    torch.testing.assert_close(found.memory_BK[1], found.score_BK[1] - found.baseline_BK[1], atol=1e-5, rtol=1e-5)


def test_without_memory_in_the_network_earlier_sessions_have_no_weight() -> None:
    found = explained(small_model(memory_size=0), [row([[5, 6], [2, 3, 4]])])
    assert (found.weight_NK[:2] == 0).all()
    assert (found.weight_NK[2:].abs().max(dim=1).values > 1e-6).all()
    assert (found.memory_BK == 0).all()


def test_only_the_last_event_has_weight_where_only_it_decides() -> None:
    # A state that forgets the one before it: what comes next is a function of the last item alone.
    model = small_model(cell="rnn", attention="none", memory_size=0)
    with torch.no_grad():
        model.cell.weight_hh_l0.zero_()
    found = explained(model, [row([[9, 3, 4, 5]])])
    assert (found.weight_NK[:3] == 0).all()
    torch.testing.assert_close(found.weight_NK[3], (found.score_BK - found.baseline_BK)[0], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def returning() -> NextEventModel:
    """Trained on users whose first visit's item, 2 to 9, returns in the third; the second visit's, 10 or 11, tells nothing."""
    rows = [row([[2 + user % 8], [10 + user // 8 % 2], [2 + user % 8]], first_target=2) for user in range(64)]
    torch.manual_seed(1)
    model = NextEventModel(replace(SMALL_MODEL, use_time_gaps=False), NUM_TOKENS, NUM_EVENT_TYPES)
    config = TrainConfig(num_epochs=60.0, learning_rate=0.02, warmup_steps=2, device="cpu")
    source = InMemory([rows[:32], rows[32:]])
    Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS)).fit()
    return model


@pytest.mark.parametrize("num_points", [1, 4])
def test_the_visit_that_decides_what_comes_next_has_the_largest_weight(
    returning: NextEventModel, num_points: int
) -> None:
    rows = [row([[2 + user % 8], [10 + user // 8]]) for user in range(16)]
    found = explained(returning, rows, [True] * 16, num_points)
    for user, weights in enumerate(weights_of_rows(found, rows)):
        favourite = user % 8
        assert found.score_BK[user].argmax() == favourite
        decisive, noise = weights[:, favourite].tolist()
        assert decisive > 2 * abs(noise)


def test_the_strongest_event_is_mostly_that_whose_loss_costs_most_in_histories_longer_than_any_learnt(
    returning: NextEventModel,
) -> None:
    rows = [row([[item], *([noise] for noise in after)]) for item in range(2, 10) for after in LATER_VISITS]
    found = explained(returning, rows, [True] * len(rows), NUM_POINTS)
    same = []
    for user, weights in enumerate(weights_of_rows(found, rows)):
        item = int(found.score_BK[user].argmax())
        same.append(weights[:, item].argmax() == occlusions(returning, rows[user], item).argmax())
    # By chance a quarter.
    assert statistics.mean(map(float, same)) > 0.5


def users_by_taste(num_users: int, seed: int) -> list[Row]:
    """Users of 4 to 7 visits, about two thirds of them to their favourite, one of eight items."""
    dice = np.random.default_rng(seed)
    rows = []
    for _ in range(num_users):
        favourite, num_visits = dice.integers(2, 10), dice.integers(4, 8)
        visits = np.where(dice.random(num_visits) < 0.6, favourite, dice.integers(2, 12, num_visits))
        rows.append(row([[int(item)] for item in visits]))
    return rows


def test_weights_agree_with_exact_occlusion_on_users_who_were_held_out() -> None:
    learnt = users_by_taste(512, seed=1)
    torch.manual_seed(1)
    model = NextEventModel(replace(SMALL_MODEL, use_time_gaps=False), NUM_TOKENS, NUM_EVENT_TYPES)
    config = TrainConfig(num_epochs=10.0, learning_rate=0.02, warmup_steps=2, device="cpu")
    source = InMemory([learnt[at : at + 64] for at in range(0, 512, 64)])
    Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS)).fit()
    held_out = users_by_taste(100, seed=2)
    found = explained(model, held_out, [True] * 100, NUM_POINTS)
    correlations, of_strongest, dearest = [], [], []
    for user, weights in enumerate(weights_of_rows(found, held_out)):
        item = int(found.score_BK[user].argmax())
        exact = occlusions(model, held_out[user], item)
        correlations.append(rank_correlation(weights[:, item], exact))
        of_strongest.append(float(exact[weights[:, item].argmax()]))
        dearest.append(float(exact.max()))
    # Of events that tell the same each can be dropped without loss, so that the ranks never agree throughout. By chance it is 0 and .3.
    assert statistics.mean(correlations) > 0.4
    assert sum(of_strongest) > 0.8 * sum(dearest)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_row_is_explained_the_same_whatever_rows_stand_beside_it(seed: int) -> None:
    model = small_model()
    rows = random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    together = weights_of_rows(explained(model, rows), rows)
    for one_row, weights in zip(rows, together, strict=True):
        torch.testing.assert_close(explained(model, [one_row]).weight_NK, weights, atol=1e-5, rtol=1e-5)


def test_a_newcomer_has_nothing_but_the_baseline() -> None:
    empty = {name: [] for name in ("tokens", "event_types", "values", "event_times", "session_starts")}
    rows = [{**empty, "first_target": 1}, row([[2, 3]])]
    model = small_model()
    for found in (explained(model, rows), explained(model, rows[:1])):
        torch.testing.assert_close(found.score_BK[0], found.baseline_BK[0])
        assert (found.memory_BK[0] == 0).all()
    assert explained(model, rows[:1]).weight_NK.shape == (0, len(ALL_ITEMS))
    assert explained(model, []).weight_NK.shape == (0, len(ALL_ITEMS))


def test_an_unknown_event_has_a_weight_as_any_other() -> None:
    model = small_model()
    unknown, beyond = explained(model, [row([[2, 1, 3]])]), explained(model, [row([[2, NUM_TOKENS + 5, 3]])])
    assert unknown.weight_NK[1].abs().max() > 1e-6
    torch.testing.assert_close(unknown.weight_NK, beyond.weight_NK)


def test_explaining_leaves_no_gradients_in_the_model() -> None:
    model = small_model()
    explained(model, [row([[2, 3, 4]])])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_with_every_setting_off_is_explained_too() -> None:
    config = ModelConfig(embedding_size=5, hidden_size=6, memory_size=0, dense_size=0, attention="none", dropout=0.0)
    torch.manual_seed(0)
    model = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES).eval()
    found = explained(model, [row([[2, 3, 4]])])
    total = found.baseline_BK[0] + found.weight_NK.sum(dim=0)
    torch.testing.assert_close(total, found.score_BK[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), num_points=st.integers(1, 4))
def test_baseline_and_weights_of_an_outcome_sum_to_its_logit(seed: int, num_points: int) -> None:
    model = small_model(outcomes=OUTCOMES)
    rows, elapsed = random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed), torch.arange(5) * 1e5
    found = explain_outcomes(model, batch_of(rows), elapsed, num_points)
    total = found.baseline_BK + torch.stack([weights.sum(dim=0) for weights in weights_of_rows(found, rows)])
    with torch.no_grad():
        chance_B, amount_B = model.outcomes(batch_of(rows), elapsed).unbind(dim=1)
    torch.testing.assert_close(total[:, 0], chance_B.logit(), atol=1e-4, rtol=1e-4)
    # An amount is never below 0, while what is explained may be.
    torch.testing.assert_close(total[:, 1].clamp(min=0), amount_B.log1p(), atol=1e-4, rtol=1e-4)


def test_where_an_outcome_goes_by_the_heads_own_numbers_alone_no_event_is_a_reason() -> None:
    model = small_model(outcomes=OUTCOMES)
    with torch.no_grad():
        model.outcome_head.hidden.weight[:, : model.context_size] = 0
    rows = random_rows(4, NUM_TOKENS, NUM_EVENT_TYPES, seed=2)
    found = explain_outcomes(model, batch_of(rows), torch.zeros(4))
    torch.testing.assert_close(found.weight_NK, torch.zeros_like(found.weight_NK), atol=1e-5, rtol=0)
    assert found.score_BK.abs().min() > 0


def test_a_model_without_outcomes_explains_none() -> None:
    with pytest.raises(ValueError, match=r"trained without model\.outcomes"):
        explain_outcomes(small_model(), batch_of([row([[2, 3]])]), torch.zeros(1))
