"""Settings of the gate that a newly trained model passes before it scores."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_spark.config.checks import one_of, require

BY_INTERVAL, BY_POINT, NOT_AT_ALL = WAYS_TO_BEAT = ("interval", "point", "none")


@dataclass(frozen=True)
class GateConfig:
    """When a newly trained model takes the champion's place."""

    enabled: bool = True
    """train registers its model as challenger, and evaluate lets the gate decide. False: the newest trained model scores at once."""
    metric: str | None = None
    """The metric that decides: accuracy, recall@k, mrr@k or ndcg@k. Not given: recall at the largest of evaluate.ks, for it uses the whole
    list that a user is shown."""
    max_loss: float = 0.01
    """So much of the metric, in its own unit, the challenger may lose against the champion on the same test positions: the lower end of the
    difference's 95 % interval must not lie below minus this. 0.01 of recall is one hit in a hundred positions. Where the test window is so
    small that the interval is wider than this, no challenger passes: give it more users, or a wider margin."""
    max_outcome_loss: float = 0.02
    """Likewise of each outcome, where the champion foretells the same ones: of the area under the curve, or of an amount the share by which the
    squared error of its logarithm may be larger than the champion's."""
    beats_popularity: str = "interval"
    """How the model must beat recommending what is popular. interval: the whole 95 % interval of the difference lies above 0; point: the
    difference does; none: it need not. A model that cannot be told from popularity is not worth its night."""
    beats_best_baseline: str = "point"
    """The same of the best of the other baselines. By the difference alone, since that baseline was picked as the best of several on these
    very positions, and is a strong rival on some data. Of a model that foretells outcomes alone: the same of the regression on recency,
    frequency and monetary value."""
    missing_baseline: str = "refuse"
    """Where a baseline that should have been measured was not: refuse, or warn and compare with those that were. Without it nobody knows
    which one is the best. Where nothing else speaks against the model it goes on waiting, and the next evaluate tries again. A model of
    outcomes alone that could not be compared with the regression waits either way, for then nothing speaks for it."""

    def __post_init__(self) -> None:
        known = self.metric is None or re.fullmatch(r"accuracy|(recall|mrr|ndcg)@[1-9]\d*", self.metric)
        require(
            bool(known), "gate.metric", self.metric, "give accuracy, recall@k, mrr@k or ndcg@k with a k of evaluate.ks"
        )
        require(0 <= self.max_loss < 1, "gate.max_loss", self.max_loss, "give 0 to below 1")
        require(0 <= self.max_outcome_loss < 1, "gate.max_outcome_loss", self.max_outcome_loss, "give 0 to below 1")
        one_of("gate.beats_popularity", self.beats_popularity, WAYS_TO_BEAT)
        one_of("gate.beats_best_baseline", self.beats_best_baseline, WAYS_TO_BEAT)
        one_of("gate.missing_baseline", self.missing_baseline, ("refuse", "warn"))

    def chosen_metric(self, ks: list[int]) -> str:
        """The metric that decides where evaluate measures at `ks`. UsageError where it does not measure that one."""
        metric = self.metric or f"recall@{max(ks)}"
        _, _, k = metric.partition("@")
        measured = not k or int(k) in ks
        require(measured, "gate.metric", metric, f"evaluate.ks has {', '.join(map(str, ks))}; choose one of them")
        return metric
