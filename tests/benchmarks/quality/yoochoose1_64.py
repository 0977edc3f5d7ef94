"""Quality on yoochoose1_64: python -m tests.benchmarks.quality.yoochoose1_64 [--quick] [--seed N] [key=value ...]

Trains on all training sessions for the configured number of epochs and ranks the item that follows each test prefix
among all items. Recall@20 and MRR@20. With --validate the last tenth of the training sessions is held out and measured
instead, and the best epoch kept: that is how the settings were searched.
"""

from __future__ import annotations

from tests.benchmarks.quality.measures import model_ranks, mrr, recall
from tests.benchmarks.quality.published_cuts import Yoochoose
from tests.benchmarks.quality.training import arguments, report, require_data, train

NAME = "yoochoose1_64"
PUBLISHED = {
    "POP": [0.0671, 0.0165],
    "GRU4Rec": [0.6064, 0.2289],
    "NARM": [0.6832, 0.2863],
    "SR-GNN": [0.7057, 0.3094],
    "SGNN-HN": [0.7206, 0.3261],
}


def main() -> None:
    given = arguments(NAME, __doc__)
    data = Yoochoose.read(require_data(NAME))
    split = data.validation_split() if given.validate else data.test_split()
    held_out = split.evaluation if given.validate else None
    trained = train(given.config, split.training, held_out, split.num_tokens, oldest_first=True)
    ranks_P, _ = model_ranks(trained.model, split.evaluation, given.config.evaluate.batch_rows)
    part = "validation" if given.validate else "test"
    report(
        NAME,
        ["Recall@20", "MRR@20"],
        {f"llm_spark ({part})": [float(recall(ranks_P, 20).mean()), float(mrr(ranks_P, 20).mean())], **PUBLISHED},
        part=part,
        seed=given.seed,
        num_targets=len(ranks_P),
        steps=trained.fit.num_steps,
        best_step=trained.fit.best_step,
        train_seconds=round(trained.seconds),
    )


if __name__ == "__main__":
    main()
