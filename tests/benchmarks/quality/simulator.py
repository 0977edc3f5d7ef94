"""Quality on simulated logs: python -m tests.benchmarks.quality.simulator [--users N] [--quick] [--seed N] [key=value ...]

The process is known, so the best that any predictor can reach is known too (llm_spark/simulation/oracle.py). The same model
is trained on the first three weeks of the retail trade with its long-term memory and without it, and both predict the
fourth week; so does the oracle, with and without memory of the user.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llm_spark.simulation.oracle import Oracle
from llm_spark.simulation.presets import preset
from llm_spark.simulation.process import SECONDS_PER_DAY, Events, History, Process
from llm_spark.tokens import FIRST_ITEM_TOKEN
from tests.benchmarks.quality.measures import bootstrap_interval, model_ranks, mrr, recall
from tests.benchmarks.quality.training import Trained, arguments, report, train
from tests.benchmarks.quality.users import Targets, User, Windows, windows

NAME = "simulator"
TRADE = "retail"
VALIDATION_DAY, TEST_DAY = 18, 21
K = 10
WHOLE_HISTORY = 10**9


def users_of(events: Events) -> list[User]:
    """Users with events, their items as tokens."""
    begin_U = np.flatnonzero(np.diff(events.user_N, prepend=-1))
    users = []
    for begin, end in zip(begin_U, [*begin_U[1:], len(events)], strict=True):
        opens_N = np.diff(events.session_N[begin:end], prepend=-1) > 0
        users.append(
            User(events.item_N[begin:end] + FIRST_ITEM_TOKEN, events.time_N[begin:end], np.flatnonzero(opens_N))
        )
    return users


def oracle_histories(rows: Windows, item_ids: list[str]) -> list[History]:
    """The same rows and targets as the oracle takes them."""
    of = rows.histories
    histories = []
    for row in range(len(of)):
        tokens_N = of.tokens_N[of.row_offsets[row] : of.row_offsets[row + 1]]
        starts_S = of.session_starts_S[of.session_offsets[row] : of.session_offsets[row + 1]]
        ids = [item_ids[token - FIRST_ITEM_TOKEN] for token in tokens_N]
        histories.append(History(ids, starts_S.tolist(), int(of.first_target_B[row])))
    return histories


def main() -> None:
    given = arguments(NAME, __doc__, users=preset(TRADE).num_users)
    process = Process.draw(dataclasses.replace(preset(TRADE), num_users=given.sizes["users"]))
    users = users_of(process.simulate())
    num_tokens = FIRST_ITEM_TOKEN + process.config.num_items

    def rows(first_day: int, after_day: int) -> Windows:
        begin, end = (process.start_seconds + day * SECONDS_PER_DAY for day in (first_day, after_day))
        return windows(users, begin, end, WHOLE_HISTORY, WHOLE_HISTORY)

    training, validation = rows(0, VALIDATION_DAY), rows(VALIDATION_DAY, TEST_DAY)
    evaluation = validation if given.validate else rows(TEST_DAY, process.config.num_days + 1)
    best = Oracle(process).best_recall(oracle_histories(evaluation, process.item_ids), K)
    table = {
        "best reachable": [best.recall, best.mrr],
        "best without memory": [best.session_only_recall, best.session_only_mrr],
        "popularity": [best.popularity_recall, best.popularity_mrr],
    }
    user_P = evaluation.user_B[Targets.of(evaluation.histories).row_P]
    trained: dict[str, Trained] = {}
    gains = {}
    for name, memory_size in (("memory on", given.config.model.memory_size), ("memory off", 0)):
        config = dataclasses.replace(
            given.config, model=dataclasses.replace(given.config.model, memory_size=memory_size)
        )
        trained[name] = train(config, training.histories, validation.histories, num_tokens)
        ranks_P, row_P = model_ranks(trained[name].model, evaluation.histories, config.evaluate.batch_rows)
        ranks_P = ranks_P[np.argsort(row_P, kind="stable")]
        gains[name] = recall(ranks_P, K)
        table[name] = [float(gains[name].mean()), float(mrr(ranks_P, K).mean())]
    report(
        NAME,
        [f"Recall@{K}", f"MRR@{K}"],
        table,
        part="validation" if given.validate else "test",
        seed=given.seed,
        num_users=process.config.num_users,
        num_targets=best.num_targets,
        share_of_best_reachable=table["memory on"][0] / best.recall,
        intervals={name: bootstrap_interval(gain_P, user_P) for name, gain_P in gains.items()},
        memory_on_minus_off=[
            float((gains["memory on"] - gains["memory off"]).mean()),
            *bootstrap_interval(gains["memory on"] - gains["memory off"], user_P),
        ],
        best_steps={name: of.fit.best_step for name, of in trained.items()},
        steps={name: of.fit.num_steps for name, of in trained.items()},
        train_seconds={name: round(of.seconds) for name, of in trained.items()},
    )


if __name__ == "__main__":
    main()
