from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_spark.config import ModelConfig
from llm_spark.model.network import NextEventModel, summary
from tests.model.histories import Row, batch_of, prefix, random_rows, row, with_features

NUM_TOKENS, NUM_EVENT_TYPES = 12, 4


def small_model(num_tokens: int = NUM_TOKENS, **settings: object) -> NextEventModel:
    torch.manual_seed(3)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4, "dropout": 0.0}
    config = ModelConfig(**{**sizes, **settings})
    model = NextEventModel(config, num_tokens, NUM_EVENT_TYPES, value_mean=5.0, value_std=3.0).eval()
    if model.number_input is not None:
        num_numbers = len(model.number_input.mean_K)
        model.number_input.standardise_by(torch.full((num_numbers,), 4.0), torch.full((num_numbers,), 2.5))
    return model


def step_by_step(model: NextEventModel, one_row: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The model's equations for one row, one event at a time: contexts of all positions, the last state's context, the memory."""
    config = model.config
    steps = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[config.cell]
    cells = []
    for layer in range(config.num_layers):
        cell = steps(config.embedding_size if layer == 0 else config.hidden_size, config.hidden_size)
        cell.load_state_dict({name: getattr(model.cell, f"{name}_l{layer}") for name in cell.state_dict()})
        cells.append(cell)

    def embed(token: int, event_type: int, value: float | None, numbers: list[float]) -> torch.Tensor:
        x = model.item_embedding.weight[token]
        if model.type_embedding is not None:
            x = x + model.type_embedding.weight[event_type]
        if model.value_input is not None and value is not None:
            missing = math.isnan(value)
            standardised = 0.0 if missing else (value - 5.0) / 3.0
            x = x + model.value_input.weight @ torch.tensor([standardised, float(missing)], dtype=torch.float32)
        if numbers:
            standardised_numbers = [0.0 if math.isnan(number) else (number - 4.0) / 2.5 for number in numbers]
            flags = [float(math.isnan(number)) for number in numbers]
            x = x + model.number_input.linear.weight @ torch.tensor(standardised_numbers + flags)
        return x[None]

    def numbers_of(position: int) -> list[float]:
        times = one_row["event_times"]
        gap = math.log1p(times[position] - times[position - 1]) if position else math.nan
        return ([gap] if config.use_time_gaps else []) + one_row.get("features", [[]] * len(times))[position]

    def attend(
        states: list[torch.Tensor], inputs: list[torch.Tensor], memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attention = model.attention
        keys = [attention.key(h) for h in states]
        values = list(states)
        if memory is not None:
            keys.append(attention.memory_key(memory))
            values.append(attention.memory_value(memory))
        query = attention.query(states[-1])
        if config.attention == "dot":
            scores = [(query * key).sum() / math.sqrt(config.hidden_size) for key in keys]
        else:
            scores = [attention.score(torch.tanh(query + key)).sum() for key in keys]
        weights = torch.softmax(torch.stack(scores), dim=0)
        of_states = sum(w * v for w, v in zip(weights, values, strict=True))
        # The memory, which comes last, is no input.
        return of_states, sum(w * x for w, x in zip(weights, inputs, strict=False))

    def context(states: list[torch.Tensor], inputs: list[torch.Tensor], memory: torch.Tensor | None) -> torch.Tensor:
        parts = [states[-1]]
        if model.attention is not None:
            parts.append(attend(states, inputs, memory)[0])
        if memory is not None:
            parts.append(memory)
        features = torch.cat(parts, dim=1)
        result = torch.relu(model.dense(features)) if model.dense is not None else features
        if not config.tied:
            return result
        result = model.projection(result) + (
            inputs[-1] if config.item_context == "last" else inputs[-1] @ model.last_map.weight.T
        )
        if config.item_context == "attended":
            result = result + attend(states, inputs, memory)[1] @ model.attended_map.weight.T
        return result

    memory = model.memory_cell.newcomer_M[None] if model.memory_cell is not None else None
    bounds = [*one_row["session_starts"], len(one_row["tokens"])]
    contexts, last = [], torch.zeros(0)
    for index, (begin, end) in enumerate(itertools.pairwise(bounds)):
        zero = torch.zeros(1, config.hidden_size)
        state = [(zero, zero) for _ in cells]
        if memory is not None:
            start = torch.tanh(model.memory_cell.start(memory)).view(-1, config.num_layers, config.hidden_size)
            state = [(start[0, i][None], start[-1, i][None]) for i in range(config.num_layers)]
        states, inputs = [], []
        for position in range(begin - 1, end):
            if position < begin:
                x = embed(0, 0, None, [])
            else:
                event = (one_row[name][position] for name in ("tokens", "event_types", "values"))
                x = embed(*event, numbers_of(position))
            inputs.append(x)
            for i, cell in enumerate(cells):
                state[i] = cell(x, state[i]) if config.cell == "lstm" else (cell(x, state[i][0]),) * 2
                x = state[i][0]
            states.append(x)
            last = context(states, inputs, memory)
            if position < end - 1:
                contexts.append(last)
        if memory is not None:
            times = one_row["event_times"]
            gap = [math.log1p(times[begin] - times[begin - 1]) / 10, 1.0] if index else [0.0, 0.0]
            memory = model.memory_cell.fold_cell(torch.cat([states[-1], torch.tensor([gap])], dim=1), memory)
    return torch.cat(contexts), last, memory if memory is not None else torch.zeros(1, 0)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("attention", ["dot", "additive", "none"])
@pytest.mark.parametrize(("memory_size", "num_layers", "dense_size"), [(4, 1, 7), (0, 1, 7), (4, 2, 0)])
def test_packed_model_equals_its_equations_step_by_step(
    cell: str, attention: str, memory_size: int, num_layers: int, dense_size: int
) -> None:
    model = small_model(
        cell=cell, attention=attention, memory_size=memory_size, num_layers=num_layers, dense_size=dense_size
    )
    with torch.no_grad():
        if model.memory_cell is not None:
            model.memory_cell.newcomer_M.normal_()
        rows = random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=5)
        batch = batch_of(rows)
        contexts_WD, targets_W = model.forward_states(batch)
        next_BD, memory_BM = model.next_step(batch), model.memory(batch)
        singly = [step_by_step(model, r) for r in rows]
    expected = torch.cat([c[r["first_target"] :] for (c, _, _), r in zip(singly, rows, strict=True)])
    torch.testing.assert_close(contexts_WD, expected)
    assert targets_W.tolist() == [t for r in rows for t in r["tokens"][r["first_target"] :]]
    torch.testing.assert_close(next_BD, torch.cat([last for _, last, _ in singly]))
    torch.testing.assert_close(memory_BM, torch.cat([memory for _, _, memory in singly]))


@pytest.mark.parametrize("attention", ["dot", "additive"])
@pytest.mark.parametrize("memory_size", [0, 4])
@pytest.mark.parametrize("item_context", ["last", "mapped", "attended"])
def test_tied_model_equals_its_equations_step_by_step(item_context: str, memory_size: int, attention: str) -> None:
    model = small_model(tied=True, item_context=item_context, memory_size=memory_size, attention=attention)
    with torch.no_grad():
        for learned in (model.last_map, model.attended_map):
            if isinstance(learned, nn.Linear):
                nn.init.normal_(learned.weight)
        rows = random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=6)
        contexts_WD, _ = model.forward_states(batch_of(rows))
        expected = torch.cat([step_by_step(model, r)[0][r["first_target"] :] for r in rows])
    torch.testing.assert_close(contexts_WD, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_time_gaps", [True, False])
@pytest.mark.parametrize("num_features", [0, 2])
def test_time_gaps_and_features_enter_each_step_as_the_equations_say(use_time_gaps: bool, num_features: int) -> None:
    names = ["quantity", "price"][:num_features]
    model = small_model(use_time_gaps=use_time_gaps, features=names)
    rows = random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=6)
    if num_features:
        rows = with_features(rows, num_features, seed=7)
    with torch.no_grad():
        contexts_WD, _ = model.forward_states(batch_of(rows))
        expected = torch.cat([step_by_step(model, r)[0][r["first_target"] :] for r in rows])
    torch.testing.assert_close(contexts_WD, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 10**6))
def test_the_next_step_of_a_prefix_is_the_same_position_of_the_whole_history(seed: int, cut: int) -> None:
    model = small_model(features=["quantity"])
    (whole,) = with_features(random_rows(1, NUM_TOKENS, NUM_EVENT_TYPES, seed, max_sessions=4), 1, seed)
    position = 1 + cut % len(whole["tokens"])
    begins = torch.tensor([position in whole["session_starts"]])
    if position == len(whole["tokens"]):
        # A further event, whatever it is and whenever it comes, must not show in what foretells it.
        whole = {**prefix(whole, position), "session_starts": whole["session_starts"]}
        for name, further in (("tokens", 7), ("event_types", 3), ("values", 1e6), ("features", [1e6])):
            whole[name] = [*whole[name], further]
        whole["event_times"] = [*whole["event_times"], whole["event_times"][-1] + 10**8]
    with torch.no_grad():
        before = model.next_step(batch_of([prefix(whole, position)]), begins)
    torch.testing.assert_close(before, context_of_positions(model, whole)[position - 1 : position])


def test_the_gap_before_an_event_is_seen_only_after_that_event() -> None:
    model = small_model(memory_size=0)
    soon, late = row([[2, 3, 4]]), row([[2, 3, 4]])
    late["event_times"][1:] = [time + 5_000 for time in late["event_times"][1:]]
    difference = (context_of_positions(model, soon) - context_of_positions(model, late)).abs().amax(dim=1)
    assert difference[0] == 0
    assert difference[1] > 1e-4


def test_log_gaps_are_of_the_same_row_and_never_negative() -> None:
    overlapping = row([[2, 3, 4, 5]])
    overlapping["event_times"] = [100, 100, 199, 150]
    gaps = batch_of([row([[6]]), overlapping]).log_gaps()
    # log(1 + 0), log(1 + 99) and, where time steps back, log(1 + 0)
    np.testing.assert_allclose(gaps, [np.nan, np.nan, 0.0, 4.60517, 0.0], rtol=1e-6)


def test_features_of_another_number_than_the_model_takes_are_refused() -> None:
    model = small_model(features=["quantity", "price"])
    with pytest.raises(ValueError, match=r"features holds 1 numbers an event where the model takes 2"):
        model.forward_states(batch_of(with_features([row([[2, 3]])], 1, seed=1)))


def test_elman_cell_equals_numbers_worked_by_hand() -> None:
    # One unit of everything: x = 0.5 for item 2, the begin-of-session input is 1. W_xh = 2, W_hh = -1, b_h = 0.25 + 0.25.
    # h_0 = tanh(2*1 - 1*0 + 0.5) = tanh(2.5); h_1 = tanh(2*0.5 - tanh(2.5) + 0.5) = tanh(1.5 - 0.986614) = 0.472579
    sizes = {"embedding_size": 1, "hidden_size": 1, "memory_size": 0, "dense_size": 0}
    nothing_else = {"use_event_types": False, "use_values": False, "use_time_gaps": False}
    model = small_model(3, cell="rnn", attention="none", **sizes, **nothing_else)
    with torch.no_grad():
        model.item_embedding.weight[:] = torch.tensor([[1.0], [0.0], [0.5]])
        model.cell.weight_ih_l0.fill_(2.0)
        model.cell.weight_hh_l0.fill_(-1.0)
        model.cell.bias_ih_l0.fill_(0.25)
        model.cell.bias_hh_l0.fill_(0.25)
        model.head.weight[:] = torch.tensor([[0.0], [0.0], [3.0]])
        model.head.bias[:] = torch.tensor([0.0, 0.0, -1.0])
        h_1 = model.next_step(batch_of([row([[2]])]))
        # y_1 = W_hy h_1 + b_y = 3 * 0.472579 - 1
        y_1 = model.logits(h_1)
    assert h_1.item() == pytest.approx(0.472579, abs=1e-5)
    assert y_1[0, 2].item() == pytest.approx(0.417737, abs=1e-5)


def test_padding_and_unknown_have_no_chance() -> None:
    logits = small_model().logits(torch.randn(3, 7))
    assert torch.isinf(logits[:, :2]).all()
    assert torch.isfinite(logits[:, 2:]).all()


def context_of_positions(model: NextEventModel, one_row: Row) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_states(batch_of([{**one_row, "first_target": 1}]))[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), changed=st.integers(0, 10**6))
def test_changing_a_later_event_changes_no_earlier_context(seed: int, changed: int) -> None:
    model = small_model()
    one_row = random_rows(1, NUM_TOKENS, NUM_EVENT_TYPES, seed, max_sessions=4)[0]
    position = changed % len(one_row["tokens"])
    other = copy.deepcopy(one_row)
    other["tokens"][position] = 2 if one_row["tokens"][position] != 2 else 3
    other["event_types"][position] = 3 - int(one_row["event_types"][position] == 3)
    other["values"][position] = 99.0
    # contexts begin with the one that predicts position 1; the one of position p sees tokens before p
    torch.testing.assert_close(
        context_of_positions(model, one_row)[:position], context_of_positions(model, other)[:position]
    )


def test_changing_an_event_changes_every_later_context_of_the_row() -> None:
    model = small_model()
    one_row = row([[2, 3, 4], [5, 6], [7, 8]])
    other = copy.deepcopy(one_row)
    other["tokens"][1] = 9
    difference = (context_of_positions(model, one_row) - context_of_positions(model, other)).abs().amax(dim=1)
    assert (difference[:1] == 0).all()
    assert (difference[1:] > 0).all()


def test_without_memory_a_session_knows_nothing_of_the_one_before() -> None:
    model = small_model(memory_size=0)
    one_row, other = row([[2, 3, 4], [5, 6]]), row([[7, 8, 9], [5, 6]])
    torch.testing.assert_close(
        context_of_positions(model, one_row)[2:], context_of_positions(model, other)[2:], rtol=0, atol=0
    )


def test_time_between_sessions_reaches_the_memory() -> None:
    model = small_model()
    near, far = (batch_of([row([[2, 3], [4]], gap_seconds=gap)]) for gap in (3_600, 36_000_000))
    assert (model.memory(near) - model.memory(far)).abs().max() > 1e-4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 9))
def test_a_row_has_the_same_contexts_alone_as_in_company(seed: int, num_rows: int) -> None:
    model = small_model()
    rows = random_rows(num_rows, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    with torch.no_grad():
        together, _ = model.forward_states(batch_of(rows))
        singly = torch.cat([model.forward_states(batch_of([r]))[0] for r in rows])
    torch.testing.assert_close(together, singly)


def test_next_step_of_an_ended_session_is_what_the_first_step_of_the_next_one_sees() -> None:
    model = small_model()
    history, followed = row([[2, 3, 4], [5, 6]]), row([[2, 3, 4], [5, 6], [7]])
    with torch.no_grad():
        ended = model.next_step(batch_of([history, history]), torch.tensor([True, False]))
    torch.testing.assert_close(ended[:1], context_of_positions(model, followed)[-1:])
    with torch.no_grad():
        torch.testing.assert_close(ended[1:], model.next_step(batch_of([history])))


def test_a_user_without_events_gets_the_newcomers_prediction() -> None:
    model = small_model()
    nobody = {name: [] for name in ("tokens", "event_types", "values", "event_times", "session_starts")} | {
        "first_target": 1
    }
    with torch.no_grad():
        among = model.next_step(batch_of([row([[2, 3]]), nobody, row([[4]])]))
        alone = model.next_step(batch_of([nobody]))
    torch.testing.assert_close(among[1:2], alone)
    torch.testing.assert_close(model.memory(batch_of([nobody]))[0], model.memory_cell.newcomer_M)


def test_a_batch_without_rows_gives_contexts_without_rows() -> None:
    model = small_model()
    contexts, targets = model.forward_states(batch_of([]))
    assert contexts.shape == (0, 7)
    assert targets.shape == (0,)


def test_an_item_that_came_after_training_is_unknown_to_the_model() -> None:
    model = small_model()
    later, unknown = row([[2, NUM_TOKENS + 5, 3]]), row([[2, 1, 3]])
    torch.testing.assert_close(context_of_positions(model, later), context_of_positions(model, unknown), rtol=0, atol=0)


def test_one_enormous_value_is_cut_instead_of_drowning_the_item() -> None:
    model = small_model()
    huge, infinite = row([[2, 3]], value=1e9), row([[2, 3]], value=float("inf"))
    torch.testing.assert_close(context_of_positions(model, huge), context_of_positions(model, infinite))
    assert torch.isfinite(context_of_positions(model, huge)).all()


def test_additive_attention_in_blocks_equals_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(attention="additive")
    batch = batch_of(random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=2))

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        contexts, _ = model.forward_states(batch)
        contexts.square().sum().backward()
        return contexts.detach(), model.attention.key.weight.grad.clone()

    at_once = run()
    monkeypatch.setattr("llm_spark.model.attention.MAX_PAIR_ELEMENTS", 1)
    torch.testing.assert_close(run(), at_once)


def test_summary_counts_every_parameter_once() -> None:
    model = small_model()
    total = sum(p.numel() for p in model.parameters())
    by_hand = (
        12 * 5 + 4 * 5 + 2 * 5 + 2 * 5  # items, event types, values, time gaps
        + 3 * 6 * (5 + 6 + 2)  # GRU
        + 4 + 3 * 4 * (6 + 2 + 4 + 2) + (4 + 1) * 6  # memory: newcomer, fold, start
        + 2 * 36 + 2 * (4 + 1) * 6  # attention: query and key, memory's key and value
        + (6 + 6 + 4 + 1) * 7  # dense
        + (7 + 1) * 12  # head
    )  # fmt: skip
    assert total == by_hand
    lines = summary(model).splitlines()
    assert lines[-1].split() == ["total", f"{by_hand:,}"]
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines[1:-1]) == by_hand


@pytest.mark.parametrize("broken", [[1, 2], [0, 2, 2], [0, 9], []])
def test_sessions_that_do_not_fit_their_row_are_refused(broken: list[int]) -> None:
    with pytest.raises(ValueError, match="session_starts"):
        batch_of([row([[2, 3, 4]]), {**row([[2, 3, 4]]), "session_starts": broken}, row([[2, 3, 4]])])


def test_moving_a_batch_keeps_offsets_on_the_host() -> None:
    moved = batch_of(random_rows(3, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)).to("meta")
    assert moved.tokens_N.is_meta
    assert not moved.row_offsets.is_meta


def test_standardised_values_use_the_training_mean_and_deviation() -> None:
    model = small_model()
    at_mean = context_of_positions(model, row([[2, 3]], value=5.0))
    with torch.no_grad():
        model.value_input.weight[:, 0] *= 100  # the column of the standardised value, which is 0 at the mean
    torch.testing.assert_close(context_of_positions(model, row([[2, 3]], value=5.0)), at_mean, rtol=0, atol=0)
    assert not np.allclose(context_of_positions(model, row([[2, 3]], value=8.0)), at_mean)
