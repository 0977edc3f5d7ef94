"""Reasons: how well they agree with exact occlusion, and what they cost: python -m tests.benchmarks.explain [--quick]

The default network is trained on the first four fifths of simulated users' time. Then, on held-out users:

    agreement   Each user's likeliest next item, in an open session and after its end, is explained. Exact occlusion drops
                one event at a time from the history and scores it again (as many reruns as events). Reported are the mean
                over users of Spearman's rank correlation between weights and occlusions, of the mean absolute difference
                (beside the mean absolute occlusion), and the share of users whose strongest event is the same.
    contenders  integrated gradients of 1, 2, 4 and 8 points; `oldest_first`, exact occlusion of one event after another
                (weight j = score of events j.. less that of events j+1..), which sums to the score's change too.
    cost        `recommend` with 3 reasons for the first 1, 3 and 10 of 10 items over plain `recommend`, in turns

Weights of events sum to the score's change only with occlusions of independent events: two events that tell the same
are each dropped without loss, but share the weight. So agreement is never complete; its bars are floors for the number of points that `score`
takes, in the setting (open or ended) where it is lower. By chance the correlation is 0, and one event of dozens is the strongest.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.explain import NUM_POINTS, Explanation, explain
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import recommend
from llm_spark.scoring.histories import history_batch
from llm_spark.scoring.offers import Offers
from llm_spark.simulation import SimulationConfig
from llm_spark.training.batches import measure
from llm_spark.training.distributed import Ranks
from llm_spark.training.loop import Trainer
from tests.benchmarks.simulated_histories import simulated_histories

MAX_EVENTS = 150
"""Occlusion takes time with the square of a history's length; longer ones are left out of the agreement."""
COMPARED_POINTS = (1, 2, 4, 8)
NUM_EXPLAINED = (1, 3, 10)
BARS = {"rank_correlation": 0.4, "same_strongest": 0.25}
"""Measured: .53 and .65 in an open session, .60 and .32 after its end; `oldest_first` .51 and .49, .51 and .13."""
K = 10


class Batches:
    """A table's rows in batches, in a new order each epoch."""

    def __init__(self, table: pa.Table, batch_rows: int) -> None:
        self._rows, self._batch_rows = table.combine_chunks().to_batches()[0], batch_rows

    def num_steps(self, epoch: int) -> int:
        return -(-self._rows.num_rows // self._batch_rows)

    def training(self, epoch: int) -> Iterator[HistoryBatch]:
        order = np.random.default_rng(epoch).permutation(self._rows.num_rows)
        for first in range(0, len(order), self._batch_rows):
            yield history_batch(self._rows.take(pa.array(order[first : first + self._batch_rows])))

    def validation(self) -> Iterator[HistoryBatch]:
        return iter(())


def trained(source: Batches, num_tokens: int, num_event_types: int, num_epochs: float) -> NextEventModel:
    ranks = Ranks(0, 1, torch.device("cpu"))
    of_model = ModelConfig(use_time_gaps=False)
    found = measure(source.training(0), num_tokens, ranks, of_model)
    torch.manual_seed(1)
    model = NextEventModel(of_model, num_tokens, num_event_types, found.value_mean, found.value_std)
    model.begin_at_popularity(found.target_counts_V)
    config = TrainConfig(num_epochs=num_epochs, learning_rate=0.02, device="cpu")
    result = Trainer(model, config, source, ranks, found.target_counts_V).fit()
    print(f"trained for {result.num_steps} steps, loss {result.final_loss:.3f}", flush=True)
    return model.requires_grad_(False)


def of_events(batch: HistoryBatch, kept: list[list[int]]) -> HistoryBatch:
    """Rows made of events of this one-row batch, each event in the session it was in."""
    positions = torch.tensor([position for one in kept for position in one], dtype=torch.int64)
    num_kept = torch.tensor([len(one) for one in kept])
    session_N = torch.repeat_interleave(torch.arange(batch.num_sessions), batch.session_offsets.diff())
    row_M = torch.repeat_interleave(torch.arange(len(kept)), num_kept)
    begins = torch.ones(len(positions), dtype=torch.bool)
    begins[1:] = (session_N[positions].diff() != 0) | (row_M.diff() != 0)
    of_steps = [field.name for field in dataclasses.fields(batch) if field.name.endswith(("_N", "_NF"))]
    return dataclasses.replace(
        batch,
        **{name: getattr(batch, name)[positions] for name in of_steps},
        row_offsets=F.pad(num_kept.cumsum(0), (1, 0)),
        session_offsets=torch.cat([begins.nonzero().squeeze(1), torch.tensor([len(positions)])]),
        first_target_B=torch.full((len(kept),), torch.iinfo(torch.int64).max),
    )


class Case:
    """One held-out user's likeliest next item."""

    def __init__(self, model: NextEventModel, batch: HistoryBatch, is_closed: bool) -> None:
        self.model, self.batch, self.is_closed = model, batch, is_closed
        self.events = list(range(batch.num_tokens))
        self.starts = torch.tensor([is_closed])
        with torch.inference_mode():
            self.contexts_BD = model.next_step(batch, self.starts)
            self.item = int(model.logits(self.contexts_BD)[0].argmax())
        self._last_begin = int(batch.session_offsets[-2])

    def scores(self, kept: list[list[int]]) -> Tensor:
        """The item's score when only these events had happened, for each of the lists."""
        starts = torch.tensor([self.is_closed or not one or one[-1] < self._last_begin for one in kept])
        with torch.inference_mode():
            logits_BV = self.model.logits(self.model.next_step(of_events(self.batch, kept), starts))[:, 2:]
        return logits_BV[:, self.item - 2] - logits_BV.mean(dim=1)

    def occlusions(self) -> Tensor:
        scores = self.scores([self.events] + [[e for e in self.events if e != gone] for gone in self.events])
        return scores[0] - scores[1:]

    def oldest_first(self) -> Tensor:
        scores = self.scores([self.events[first:] for first in range(len(self.events) + 1)])
        return scores[:-1] - scores[1:]

    def integrated_gradients(self, num_points: int) -> Tensor:
        return self.explained(num_points).weight_NK[:, 0]

    def explained(self, num_points: int) -> Explanation:
        return explain(self.model, self.batch, self.contexts_BD, torch.tensor([[self.item]]), self.starts, num_points)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; weights without ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def agreement(cases: list[Case]) -> dict[str, tuple[float, float, float]]:
    """Rank correlation, mean absolute difference and share of equal strongest events, by contender."""
    methods: dict[str, Callable[[Case], Tensor]] = {"oldest_first": Case.oldest_first}
    for num_points in COMPARED_POINTS:
        methods[f"gradients_{num_points}"] = functools.partial(Case.integrated_gradients, num_points=num_points)
    occlusions = [case.occlusions() for case in cases]
    found = {}
    for name, weights_of in methods.items():
        pairs = [(weights_of(case), occluded) for case, occluded in zip(cases, occlusions, strict=True)]
        found[name] = (
            statistics.mean(rank_correlation(a, b) for a, b in pairs),
            statistics.mean(float((a - b).abs().mean()) for a, b in pairs),
            statistics.mean(float(a.argmax() == b.argmax()) for a, b in pairs),
        )
    found["occlusion itself"] = (1.0, statistics.mean(float(one.abs().mean()) for one in occlusions), 1.0)
    return found


def memory_agreement(cases: list[Case]) -> float:
    """Correlation over users of the long-term memory's weight and what forgetting all earlier sessions costs the score."""
    with_past = [case for case in cases if case.batch.num_sessions > 1 and not case.is_closed]
    pairs = []
    for case in with_past:
        told = case.explained(NUM_POINTS).memory_BK[0, 0]
        scores = case.scores([case.events, case.events[int(case.batch.session_offsets[-2]) :]])
        pairs.append(torch.stack([told, scores[0] - scores[1]]))
    return float(torch.corrcoef(torch.stack(pairs, dim=1))[0, 1])


def timed(work: Callable[[], object]) -> float:
    """CPU seconds: one thread does all of it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def costs(model: NextEventModel, table: pa.Table, num_turns: int) -> dict[str, float]:
    """Median over turns of the time of `recommend` with reasons over that without."""
    rows = table.combine_chunks().to_batches()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        save_manifest(path, save_content(path, model, {}, {}))

        def run(num_reasons: int, num_explained: int) -> object:
            return list(recommend(iter(rows), path, Offers(K), 256, num_reasons, num_explained))

        run(3, 1)
        ratios: dict[str, list[float]] = {f"first_{n}_explained": [] for n in NUM_EXPLAINED}
        for _ in range(num_turns):
            plain = timed(lambda: run(0, 1))
            print(f"plain: {table.num_rows / plain:,.0f} users a CPU second", flush=True)
            for n in NUM_EXPLAINED:
                ratios[f"first_{n}_explained"].append(timed(functools.partial(run, 3, n)) / plain)
    return {name: statistics.median(of_turns) for name, of_turns in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer users, epochs and cases; for development")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_users, num_epochs, num_cases, num_turns = (800, 2, 15, 1) if arguments.quick else (3_000, 6, 100, 3)
    histories = simulated_histories(SimulationConfig(num_users=num_users))
    source = Batches(histories.training, 128)
    model = trained(source, histories.num_tokens, histories.num_event_types, num_epochs)

    (held_out,) = histories.held_out.combine_chunks().to_batches()
    order = np.random.default_rng(3).permutation(held_out.num_rows)
    batches = (history_batch(held_out.slice(int(place), 1)) for place in order)
    chosen = [batch for batch in batches if 4 <= batch.num_tokens <= MAX_EVENTS][:num_cases]
    result: dict[str, Any] = {"benchmark": "explain", "agreement": {}}
    of_score = []
    for name, is_closed in (("open session", False), ("session ended", True)):
        cases = [Case(model, batch, is_closed) for batch in chosen]
        found = agreement(cases)
        print(f"\n{name}, {len(chosen)} users: {'rank corr.':>27} {'mean |diff|':>12} {'same strongest':>15}")
        for method, (correlation, difference, same) in found.items():
            print(f"{method:<34}{correlation:>14.2f}{difference:>13.3f}{same:>16.2f}")
        if not is_closed:
            result["memory_agreement"] = round(memory_agreement(cases), 3)
            print(f"the memory's weight and exact forgetting: correlation {result['memory_agreement']:.2f}")
        of_score.append(found[f"gradients_{NUM_POINTS}"])
        result["agreement"][name] = {method: round(figures[0], 3) for method, figures in found.items()}
    ratios = costs(model, histories.held_out, num_turns)
    print(f"\n`recommend` with reasons over without, {histories.held_out.num_rows} users, {K} items each:")
    for name, ratio in ratios.items():
        print(f"{name:<34}{ratio:>6.1f}")
    correlations, _, same = zip(*of_score, strict=True)
    ratios |= {"rank_correlation": min(correlations), "same_strongest": min(same)}
    print(json.dumps({**result, "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}, "bars": BARS}))


if __name__ == "__main__":
    main()
