"""Quality on amazon-beauty: python -m tests.benchmarks.quality.amazon_beauty [--quick] [--seed N] [key=value ...]

Trains on each user's items but the last two, keeps the epoch that predicts the item before the last best, and ranks the
last item among all items but those that the user has had (as published). HR@10 and NDCG@10.
"""

from __future__ import annotations

from tests.benchmarks.quality.measures import model_ranks, ndcg, recall
from tests.benchmarks.quality.published_cuts import Beauty
from tests.benchmarks.quality.training import arguments, report, require_data, train

NAME = "amazon-beauty"
PUBLISHED = {"GRU4Rec": [0.0283, 0.0137], "SASRec": [0.0605, 0.0318], "eSASRec": [0.0928, 0.0523]}


def main() -> None:
    given = arguments(NAME, __doc__)
    data = Beauty.read(require_data(NAME))
    trained = train(given.config, data.training(), data.validation(), data.num_tokens)
    evaluation = data.validation() if given.validate else data.test()
    ranks_P, _ = model_ranks(trained.model, evaluation, given.config.evaluate.batch_rows, filter_seen=True)
    ours = [float(recall(ranks_P, 10).mean()), float(ndcg(ranks_P, 10).mean())]
    part = "validation" if given.validate else "test"
    report(
        NAME,
        ["HR@10", "NDCG@10"],
        {f"llm_spark ({part})": ours, **PUBLISHED},
        part=part,
        seed=given.seed,
        num_targets=len(ranks_P),
        steps=trained.fit.num_steps,
        best_step=trained.fit.best_step,
        train_seconds=round(trained.seconds),
    )


if __name__ == "__main__":
    main()
