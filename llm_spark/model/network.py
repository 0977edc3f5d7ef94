"""The next-event model: embedding, recurrent cell with user memory, self-attention, dense(relu), softmax over items.

    x_t = E[item_t] + E'[type_t] + A [standardised value_t, is missing_t] + B [time gap_t, ...]    see inputs.py
    h_t = cell(h_{t-1}, x_t)    rnn (Elman): h_t = tanh(W_hh h_{t-1} + W_xh x_t + b_h), with torch's b_ih + b_hh = b_h
    c_t = attention(h_t; h_0..h_t, memory)                                                                 see attention.py
    d_t = relu(W_d [h_t, c_t, memory] + b_d)
    y_t = W_p d_t + b_p + L x_t + S e_t         where the softmax is tied to the embedding, else y_t = d_t
    e_t = sum_j a_tj x_j                        by the weights of the attention
    p(next item) = softmax(W_y y_t + b_y)       see head.py

`item_context` says what L and S are: last, L = 1 and S = 0; mapped, L is learned and S = 0; attended, both are learned. They begin at 1.

Step 0 of a session takes a learned begin-of-session input, so the state after it predicts the session's first item:
from the memory, or, without memory, from that input alone.

Shape suffixes: B rows, N tokens, S sessions, P packed steps, W wanted steps, E embedding, H hidden, M memory, D
context, V items, C what the attention gives (H, or H + E).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from llm_spark.config import ModelConfig
from llm_spark.model.attention import SessionAttention
from llm_spark.model.head import ItemHead
from llm_spark.model.history import HistoryBatch
from llm_spark.model.inputs import MAX_STANDARDISED_VALUE, NumberInput, num_step_numbers, step_numbers
from llm_spark.model.memory import UserMemory
from llm_spark.model.outcomes import OutcomeHead, account_numbers
from llm_spark.model.past import Past
from llm_spark.model.plan import SessionPlan
from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN


class NextEventModel(nn.Module):
    """Predicts each user's next item from the current session (short-term) and all sessions before it (long-term memory)."""

    value_mean: Tensor
    value_std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        num_tokens: int,
        num_event_types: int,
        value_mean: float = 0.0,
        value_std: float = 1.0,
    ) -> None:
        """`num_tokens` and `num_event_types` count the codes 0 (padding) and 1 (unknown). Mean and deviation are those of the
        training data.
        """
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.num_event_types = num_event_types
        size = config.embedding_size
        self.item_embedding = nn.Embedding(num_tokens, size)
        self.type_embedding = nn.Embedding(num_event_types, size) if config.use_event_types else None
        self.value_input = nn.Linear(2, size, bias=False) if config.use_values else None
        num_numbers = num_step_numbers(config)
        self.number_input = NumberInput(num_numbers, size) if num_numbers else None
        for embedding in (self.item_embedding, self.type_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=size**-0.5)
        self.register_buffer("value_mean", torch.tensor(float(value_mean)))
        self.register_buffer("value_std", torch.tensor(float(value_std)))
        self.dropout = nn.Dropout(config.dropout)
        layer = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[config.cell]
        between_layers = config.dropout if config.num_layers > 1 else 0.0
        self.cell = layer(size, config.hidden_size, config.num_layers, dropout=between_layers)
        self.memory_cell = (
            UserMemory(config.memory_size, config.hidden_size, config.num_layers, config.cell)
            if config.memory_size
            else None
        )
        self.attention = (
            SessionAttention(config.hidden_size, config.memory_size, config.attention)
            if config.attention != "none"
            else None
        )
        features = config.hidden_size * (1 if self.attention is None else 2) + config.memory_size
        self.dense = nn.Linear(features, config.dense_size) if config.dense_size else None
        features = config.dense_size or features
        # Contexts then lie in the embedding's space: what is like the last item (and those attended to) is likely from the first step of
        # training on, and the network learns what else is (residual connection: He et al. 2016; as in SASRec, Kang and McAuley 2018).
        self.projection = nn.Linear(features, size) if config.tied else None
        self.last_map = nn.Identity() if config.item_context == "last" else _map_from_identity(size)
        self.attended_map = _map_from_identity(size) if config.item_context == "attended" else None
        self.context_size = size if config.tied else features
        self.head = ItemHead(self.context_size, num_tokens, config.tied, config.cosine_scale)
        self.outcome_head = OutcomeHead(self.context_size, config.outcomes) if config.outcomes else None

    @torch.no_grad()
    def begin_at_popularity(self, target_counts_V: Tensor) -> None:
        """Set the head's bias to the items' log frequency, so that training begins at what popularity knows."""
        smoothed_V = target_counts_V.double() + 1
        self.head.bias.copy_((smoothed_V / smoothed_V.sum()).log())

    def forward(self, batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        return self.forward_states(batch)

    def forward_states(self, batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        """The context vectors [W, D] that predict each row's tokens from its first target on, and those tokens [W], in the
        rows' order.

        Unknown tokens (1, and any token that the model has no row for) are among the targets; the losses and the
        ranking leave them out.
        """
        plan = SessionPlan.for_targets(batch).to(batch.tokens_N.device)
        contexts_WD = self._contexts(*self._walk(batch, plan), plan)
        return contexts_WD, self._known(batch.tokens_N[plan.target_W], self.num_tokens)

    def forward_heads(self, batch: HistoryBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `forward_states` gives, and the outcome heads' outputs [L, O] at the batch's moments; None without such."""
        if self.outcome_head is None or batch.moments is None:
            return *self.forward_states(batch), None
        plan = SessionPlan.for_targets(batch, batch.moments.place_L).to(batch.tokens_N.device)
        contexts_WD = self._contexts(*self._walk(batch, plan), plan)
        num_targets = len(plan.target_W)
        outputs_LO = self.outcome_head(contexts_WD[num_targets:], batch.moment_numbers())
        return contexts_WD[:num_targets], self._known(batch.tokens_N[plan.target_W], self.num_tokens), outputs_LO

    def outcomes(self, batch: HistoryBatch, elapsed_B: Tensor) -> Tensor:
        """Probabilities and amounts [B, O] so many seconds after each row's last event; NaN for a row without events."""
        if self.outcome_head is None:
            raise ValueError("the model has no outcome head: it was trained without model.outcomes")
        contexts_BD = self.next_step(batch)
        answers_BO = contexts_BD.new_full((batch.num_rows, len(self.config.outcomes)), torch.nan)
        known_B = batch.row_offsets.diff() > 0
        known_B3 = batch.account(batch.row_offsets[1:][known_B] - 1)
        numbers_BA = account_numbers(known_B3, elapsed_B[known_B])
        known_B = known_B.to(contexts_BD.device)
        outputs_BO = self.outcome_head(contexts_BD[known_B], numbers_BA)
        answers_BO[known_B] = self.outcome_head.predictions(outputs_BO).to(answers_BO.dtype)
        return answers_BO

    def next_step(self, batch: HistoryBatch, starts_session_B: Tensor | None = None) -> Tensor:
        """One context vector a row [B, D]: what comes after the row's last token, in the same session.

        Where `starts_session_B` (bool) is true, the session counts as ended: it is folded into the memory, and the
        vector predicts the first item of the user's next session. So does a row without tokens.
        """
        plan = SessionPlan.for_next_step(batch, starts_session_B).to(batch.tokens_N.device)
        return self._contexts(*self._walk(batch, plan), plan)

    def memory(self, batch: HistoryBatch) -> Tensor:
        """Each user's long-term memory [B, M] after the row's last session has ended; M is 0 without memory."""
        plan = SessionPlan.for_next_step(batch, torch.ones(batch.num_rows, dtype=torch.bool)).to(batch.tokens_N.device)
        memory_SM = self._walk(batch, plan)[1]
        return memory_SM[plan.wanted_slot_W]

    def newcomers(self, num_users: int) -> Past:
        """The past of users who have none, to begin histories with."""
        if self.memory_cell is None:
            return Past.newcomers(self.value_mean.new_zeros(num_users, 0))
        return Past.newcomers(self.memory_cell.newcomers(num_users))

    def step_inputs(self, batch: HistoryBatch, plan: SessionPlan) -> Tensor:
        """What the recurrent cell is fed [P, E]: a learned input where a session begins, and one vector an event."""
        return self._inputs(batch, plan)

    def contexts_of_inputs(self, inputs_PE: Tensor, plan: SessionPlan) -> Tensor:
        """The context vectors [W, D] of the plan's wanted steps if the cell were fed these inputs instead."""
        return self._contexts(*self._walk_inputs(inputs_PE, plan), plan)

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Weights [V, D] and biases [V] of the softmax, as `rank_targets`, `top_offers` and the losses take them."""
        return self.head.layer(self.item_embedding.weight)

    def logits(self, contexts_WD: Tensor) -> Tensor:
        """Scores [W, V] of all tokens; padding and unknown get -inf, for they are never predicted."""
        logits_WV = F.linear(contexts_WD, *self.output_layer()).float()
        logits_WV[:, :FIRST_ITEM_TOKEN] = -torch.inf
        return logits_WV

    def _walk(self, batch: HistoryBatch, plan: SessionPlan) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of all packed steps [P, H], the memory [S, M] that each session begins with, and the steps' inputs
        [P, E].
        """
        return self._walk_inputs(self._inputs(batch, plan), plan)

    def _walk_inputs(self, inputs_PE: Tensor, plan: SessionPlan) -> tuple[Tensor, Tensor, Tensor]:
        states, memories = [], []
        summary_SH = memory_SM = inputs_PE[:0]
        first_session = 0
        for group in plan.groups:
            num_sessions = int(group.batch_sizes[0])
            start: tuple[Tensor, ...] | None = None
            if self.memory_cell is None:
                memory_SM = inputs_PE.new_zeros(num_sessions, 0)
            else:
                if first_session == 0:
                    started_SM = plan.start_SM
                    memory_SM = self.memory_cell.newcomers(num_sessions) if started_SM is None else started_SM
                else:
                    before = group.previous_S
                    gap_S2 = plan.gap_S2[first_session - len(memory_SM) : first_session]
                    memory_SM = self.memory_cell.fold(summary_SH[before], gap_S2[before], memory_SM[before])
                start = self.memory_cell.initial_states(memory_SM)
            states_PH, summary_SH = self._run_cell(
                inputs_PE[group.first_step : group.last_step], group.batch_sizes, start
            )
            states.append(states_PH)
            memories.append(memory_SM)
            first_session += num_sessions
        if not states:
            no_states_PH, no_memory_SM = (
                inputs_PE.new_zeros(0, size) for size in (self.config.hidden_size, self.config.memory_size)
            )
            return no_states_PH, no_memory_SM, inputs_PE
        return torch.cat(states), torch.cat(memories), inputs_PE

    def _run_cell(
        self, inputs_PE: Tensor, batch_sizes: Tensor, start: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """One session of each user through the fused recurrent kernel: the states of all steps, and each session's last state."""
        if self.config.cell == "lstm" and inputs_PE.device.type == "cpu" and _is_half_on_cpu():
            # oneDNN has such an LSTM on CPUs with avx512_fp16 alone and raises elsewhere; torch's own takes ten times single precision's time.
            with torch.autocast("cpu", enabled=False):
                started = tuple(state.float() for state in start) if start is not None else None
                return self._run_cell(inputs_PE.float(), batch_sizes, started)
        packed = PackedSequence(inputs_PE, batch_sizes)
        if self.config.cell == "lstm":
            states, (last_YSH, _) = self.cell(packed, start)
        else:
            states, last_YSH = self.cell(packed, start[0] if start is not None else None)
        return states.data, last_YSH[-1]

    def _inputs(self, batch: HistoryBatch, plan: SessionPlan) -> Tensor:
        """The cell's inputs [P, E]. Code 0, which no event carries, is the learned begin-of-session input."""
        begins_P = plan.token_P < 0
        source_P = plan.token_P.clamp(min=0)
        if batch.num_tokens == 0:
            tokens_P = types_P = torch.zeros_like(plan.token_P)
            values_P = torch.zeros(len(plan.token_P), device=plan.token_P.device)
        else:
            tokens_P = self._known(batch.tokens_N, self.num_tokens)[source_P].masked_fill(begins_P, 0)
            types_P = self._known(batch.event_types_N, self.num_event_types)[source_P].masked_fill(begins_P, 0)
            values_P = batch.values_N[source_P]
        inputs_PE = self.item_embedding(tokens_P)
        if self.type_embedding is not None:
            inputs_PE = inputs_PE + self.type_embedding(types_P)
        if self.value_input is not None:
            missing_P = values_P.isnan()
            standardised_P = ((values_P - self.value_mean) / self.value_std).clamp(
                -MAX_STANDARDISED_VALUE, MAX_STANDARDISED_VALUE
            )
            features_P2 = torch.stack([standardised_P.masked_fill(missing_P, 0.0), missing_P.to(values_P.dtype)], dim=1)
            inputs_PE = inputs_PE + self.value_input(features_P2.masked_fill(begins_P[:, None], 0.0))
        if self.number_input is not None and batch.num_tokens:
            numbers_PE = self.number_input(step_numbers(batch, self.config)[source_P])
            inputs_PE = inputs_PE + numbers_PE.masked_fill(begins_P[:, None], 0.0)
        return self.dropout(inputs_PE)

    def _contexts(self, states_PH: Tensor, memory_SM: Tensor, inputs_PE: Tensor, plan: SessionPlan) -> Tensor:
        features = [states_PH[plan.wanted_step_W]]
        attended_WE = inputs_PE[:0]
        if self.attention is not None:
            also_PE = inputs_PE if self.attended_map is not None else None
            attended_WC = self.attention(states_PH, memory_SM, plan, also_PE)[plan.wanted_cell_W]
            attended_WH, attended_WE = attended_WC.tensor_split([self.config.hidden_size], dim=1)
            features.append(attended_WH)
        if self.memory_cell is not None:
            features.append(memory_SM[plan.wanted_slot_W])
        contexts_WD = self.dropout(torch.cat(features, dim=1))
        if self.dense is not None:
            contexts_WD = torch.relu(self.dense(contexts_WD))
        if self.projection is not None:
            contexts_WD = self.projection(contexts_WD) + self.last_map(inputs_PE[plan.wanted_step_W])
            if self.attended_map is not None:
                contexts_WD = contexts_WD + self.attended_map(attended_WE)
        return self.head.scaled(contexts_WD)

    @staticmethod
    def _known(codes: Tensor, num_codes: int) -> Tensor:
        """Codes that came into the vocabulary after this model was trained are unknown to it."""
        return codes.masked_fill((codes < 0) | (codes >= num_codes), UNKNOWN_TOKEN)


def _map_from_identity(size: int) -> nn.Linear:
    """A linear map that begins as the identity."""
    linear = nn.Linear(size, size, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def _is_half_on_cpu() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16


def summary(model: NextEventModel) -> str:
    """A table of the model's layers, their shapes and parameter counts."""
    rows = [("layer", "kind", "shape", "parameters")]
    for name, layer in model.named_children():
        parameters = list(layer.parameters())
        if parameters:
            shapes = " ".join("x".join(map(str, p.shape)) for p in parameters if p.dim() > 1)
            rows.append((name, type(layer).__name__, shapes, f"{sum(p.numel() for p in parameters):,}"))
    rows.append(("total", "", "", f"{sum(p.numel() for p in model.parameters()):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    return "\n".join(line.rstrip() for line in lines)
