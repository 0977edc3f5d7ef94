"""Quality on rsc15-100k: python -m tests.benchmarks.quality.rsc15 [--quick] [--seed N] [key=value ...]

Trains on all training sessions and ranks the next item at each of the 387 positions for which the rivals' lists are kept
(the first 99 test sessions), among all items. HR@20 and MRR@20; the rivals' figures are measured here, from their lists.
With --validate the newest tenth of the training sessions is held out and measured instead.
"""

from __future__ import annotations

from tests.benchmarks.quality.histories import Histories
from tests.benchmarks.quality.measures import bootstrap_interval, model_ranks, mrr, recall
from tests.benchmarks.quality.published_cuts import VALIDATION_SHARE, Split, Vocabulary
from tests.benchmarks.quality.training import arguments, report, require_data, train
from tests.rsc15_lists import NAME, RIVALS, TEST_FILE, TRAINING_FILE, RivalLists, read_sessions

LIST_LENGTH = 20


def split_of(training: list[list[int]], evaluation: list[list[int]]) -> Split:
    vocabulary = Vocabulary(training)
    return Split(
        vocabulary.num_tokens,
        Histories.of_sessions([vocabulary.tokens(session) for session in training]),
        Histories.of_sessions([vocabulary.tokens(session) for session in evaluation]),
    )


def main() -> None:
    given = arguments(NAME, __doc__)
    folder = require_data(NAME)
    training = list(read_sessions(folder / TRAINING_FILE).values())
    tests = read_sessions(folder / TEST_FILE)
    rivals = {name: RivalLists.of(name, folder) for name in RIVALS}
    compared = {session: tests[session] for session, _ in rivals["V-SkNN"].lists}
    if given.validate:
        num_training = round(len(training) * (1 - VALIDATION_SHARE))
        split = split_of(training[:num_training], training[num_training:])
    else:
        split = split_of(training, list(compared.values()))
    trained = train(
        given.config, split.training, split.evaluation if given.validate else None, split.num_tokens, oldest_first=True
    )
    ranks_P, session_P = model_ranks(trained.model, split.evaluation, given.config.evaluate.batch_rows)
    part = "validation" if given.validate else "test"
    rows = {f"llm_spark ({part})": ranks_P, **{name: rival.ranks(tests) for name, rival in rivals.items()}}
    report(
        NAME,
        ["HR@20", "MRR@20"],
        {name: [float(recall(of, 20).mean()), float(mrr(of, LIST_LENGTH).mean())] for name, of in rows.items()},
        part=part,
        seed=given.seed,
        num_targets=len(ranks_P),
        intervals={
            "HR@20": bootstrap_interval(recall(ranks_P, 20), session_P),
            "MRR@20": bootstrap_interval(mrr(ranks_P, 20), session_P),
        },
        steps=trained.fit.num_steps,
        best_step=trained.fit.best_step,
        train_seconds=round(trained.seconds),
    )


if __name__ == "__main__":
    main()
