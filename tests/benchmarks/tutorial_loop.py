"""The same network and the same training, written as a tutorial would: row dicts, a DataLoader, padding, full softmax.

`TutorialModel` computes what `NextEventModel` computes (GRU, dot-product attention, memory), independently: every row's
s-th session is padded to the longest s-th session of the batch, rows without one are padding through and through, and
the softmax runs over every cell. `PlainGru` is what most tutorials stop at: one padded GRU over the whole history,
without sessions, memory and attention, which is less work a token.

Shape suffixes: B rows, L steps of a padded session, T steps of a padded history, E embedding, H hidden, M memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llm_spark.config import ModelConfig

PADDING = 0
Row = dict[str, Any]
"""One row of the sequences table, as pyarrow's to_pylist gives it."""
Session = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Padded tokens [B, L], event types [B, L], values [B, L], targets [B, L] (0 where there is none), gaps [B, 2]."""


def collate_sessions(rows: list[Row]) -> list[Session]:
    """All rows' first sessions, all second ones, and so on."""
    sessions = []
    bounds_of = [[*row["session_starts"], len(row["tokens"])] for row in rows]
    for place in range(max(len(bounds) for bounds in bounds_of) - 1):
        tokens, types, values, targets, gaps = [], [], [], [], []
        for row, bounds in zip(rows, bounds_of, strict=True):
            begin, end = (bounds[place], bounds[place + 1]) if place + 1 < len(bounds) else (0, 0)
            tokens.append(torch.tensor(row["tokens"][begin:end], dtype=torch.int64))
            types.append(torch.tensor(row["event_types"][begin:end], dtype=torch.int64))
            numbers = [math.nan if value is None else value for value in row["values"][begin:end]]
            values.append(torch.tensor(numbers, dtype=torch.float32))
            predicted = torch.arange(begin, end) >= row["first_target"]
            targets.append(tokens[-1] * predicted)
            times = row["event_times"]
            seconds = max(0, times[begin] - times[begin - 1]) if begin else 0
            gaps.append(torch.tensor([math.log1p(seconds) / 10, float(begin > 0)]))
        padded = [pad_sequence(one, batch_first=True, padding_value=PADDING) for one in (tokens, types, values)]
        sessions.append((*padded, pad_sequence(targets, batch_first=True), torch.stack(gaps)))
    return sessions


class TutorialModel(nn.Module):
    """GRU, causal attention with the memory as a key, dense, softmax: the summed loss of a padded batch."""

    def __init__(self, config: ModelConfig, num_tokens: int, num_types: int, value_mean: float, value_std: float):
        super().__init__()
        self.value_mean, self.value_std = value_mean, value_std
        embedding, hidden, memory = config.embedding_size, config.hidden_size, config.memory_size
        self.item_embedding = nn.Embedding(num_tokens, embedding)
        self.type_embedding = nn.Embedding(num_types, embedding)
        self.value_input = nn.Linear(2, embedding, bias=False)
        self.cell = nn.GRU(embedding, hidden, batch_first=True)
        self.newcomer = nn.Parameter(torch.zeros(memory))
        self.fold_cell = nn.GRUCell(hidden + 2, memory)
        self.start = nn.Linear(memory, hidden)
        self.query, self.key = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.memory_key, self.memory_value = nn.Linear(memory, hidden), nn.Linear(memory, hidden)
        self.dense = nn.Linear(2 * hidden + memory, config.dense_size)
        self.head = nn.Linear(config.dense_size, num_tokens)

    @classmethod
    def like(cls, ours: nn.Module, config: ModelConfig) -> TutorialModel:
        """With the weights of a NextEventModel."""
        model = cls(config, ours.num_tokens, ours.num_event_types, float(ours.value_mean), float(ours.value_std))
        renamed = {"memory_cell.newcomer_M": "newcomer", "memory_cell.": "", "attention.": ""}
        state = {}
        for name, tensor in ours.state_dict().items():
            if name.startswith("value_") and "input" not in name:
                continue
            for old, new in renamed.items():
                if name.startswith(old):
                    name = new + name.removeprefix(old)
                    break
            state[name] = tensor.clone()
        model.load_state_dict(state)
        return model

    def forward(self, sessions: list[Session]) -> tuple[Tensor, int]:
        memory_BM = self.newcomer.expand(len(sessions[0][0]), -1)
        loss, num_targets = torch.zeros(()), 0
        for tokens_BL, types_BL, values_BL, targets_BL, gaps_B2 in sessions:
            inputs_BLE = self._inputs(tokens_BL, types_BL, values_BL)
            states_BLH, _ = self.cell(inputs_BLE, torch.tanh(self.start(memory_BM))[None])
            features = [states_BLH, self._attend(states_BLH, memory_BM)]
            features.append(memory_BM[:, None].expand(-1, states_BLH.shape[1], -1))
            contexts_BLD = torch.relu(self.dense(torch.cat(features, dim=2)))
            logits_BLV = self.head(contexts_BLD[:, :-1])
            logits_BLV[:, :, :2] = -torch.inf  # neither padding nor unknown is an item
            flat_targets = targets_BL.flatten().masked_fill(targets_BL.flatten() < 2, PADDING)
            loss = loss + nn.functional.cross_entropy(
                logits_BLV.flatten(0, 1), flat_targets, ignore_index=PADDING, reduction="sum"
            )
            num_targets += int((flat_targets != PADDING).sum())
            lengths_B = (tokens_BL != PADDING).sum(dim=1)
            summary_BH = states_BLH[torch.arange(len(lengths_B)), lengths_B]
            folded_BM = self.fold_cell(torch.cat([summary_BH, gaps_B2], dim=1), memory_BM)
            memory_BM = torch.where(lengths_B[:, None] > 0, folded_BM, memory_BM)
        return loss, num_targets

    def _inputs(self, tokens_BL: Tensor, types_BL: Tensor, values_BL: Tensor) -> Tensor:
        """A begin-of-session step, then the padded session: [B, 1 + L, E]."""
        missing_BL = values_BL.isnan()
        standardised_BL = ((values_BL - self.value_mean) / self.value_std).clamp(-8, 8).masked_fill(missing_BL, 0.0)
        features_BL2 = torch.stack([standardised_BL, missing_BL.float()], dim=2)
        embedded_BLE = self.item_embedding(tokens_BL) + self.type_embedding(types_BL) + self.value_input(features_BL2)
        begin_E = self.item_embedding.weight[0] + self.type_embedding.weight[0]
        return torch.cat([begin_E.expand(len(tokens_BL), 1, -1), embedded_BLE], dim=1)

    def _attend(self, states_BLH: Tensor, memory_BM: Tensor) -> Tensor:
        keys = torch.cat([self.memory_key(memory_BM)[:, None], self.key(states_BLH)], dim=1)
        values = torch.cat([self.memory_value(memory_BM)[:, None], states_BLH], dim=1)
        scores = self.query(states_BLH) @ keys.transpose(1, 2) / math.sqrt(states_BLH.shape[2])
        num_steps = states_BLH.shape[1]
        future = torch.ones(num_steps, num_steps + 1, dtype=torch.bool).triu(2)
        return scores.masked_fill(future, -torch.inf).softmax(dim=2) @ values


def collate_histories(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Padded tokens [B, T] and targets [B, T] (0 where there is none)."""
    tokens = [torch.tensor(row["tokens"], dtype=torch.int64) for row in rows]
    targets = [
        one * (torch.arange(len(one)) >= row["first_target"]) * (one >= 2)
        for one, row in zip(tokens, rows, strict=True)
    ]
    return pad_sequence(tokens, batch_first=True), pad_sequence(targets, batch_first=True)


class PlainGru(nn.Module):
    """Embedding, GRU, softmax over the padded histories."""

    def __init__(self, config: ModelConfig, num_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, config.embedding_size)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        self.head = nn.Linear(config.hidden_size, num_tokens)

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        tokens_BT, targets_BT = batch
        states_BTH, _ = self.gru(self.embedding(tokens_BT[:, :-1]))
        logits, wanted = self.head(states_BTH).flatten(0, 1), targets_BT[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits, wanted, ignore_index=PADDING, reduction="sum")
        return loss, int((wanted != PADDING).sum())


def train(
    model: nn.Module,
    batches: Any,
    rate_of_step: Callable[[int], float],
    clip_norm: float,
) -> list[float]:
    """Adam over the batches; returns the mean loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate_of_step(0))
    losses = []
    for step, batch in enumerate(batches):
        loss_sum, num_targets = model(batch)
        loss = loss_sum / max(1, num_targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate_of_step(step)
        optimizer.step()
        losses.append(loss.item())
    return losses
