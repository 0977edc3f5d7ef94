"""Random ranked positions, as the sums kernel takes them, and plain ways to measure them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from llm_spark.evaluation.estimates import Estimate, Measured
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.sums_kernel import MetricRules, merged_sums, partial_sums

NUM_ITEMS = 40
NUM_TOKENS = NUM_ITEMS + 2


def items_of(seed: int, with_categories: bool = True) -> Items:
    """Items 2..41: some that training never predicts, some equally popular, some without a category."""
    random = np.random.default_rng(seed)
    tokens = random.permutation(np.arange(2, NUM_TOKENS))
    counts = random.integers(0, 15, NUM_ITEMS)
    return Items.counted(tokens, counts, random.integers(0, 4, NUM_ITEMS) if with_categories else None)


def random_positions(
    num_positions: int, num_users: int, seed: int, list_length: int = 10, with_confidence: bool = True
) -> list[dict]:
    """Positions of sessions of one to four; each ranks the true item and lists distinct tokens, sometimes too few."""
    sure = np.random.default_rng(seed + 1)
    random = np.random.default_rng(seed)
    rows: list[dict] = []
    while len(rows) < num_positions:
        user, before = int(random.integers(num_users)), int(random.integers(0, 8))
        session = []
        for place in range(int(random.integers(1, 5))):
            unknown = random.random() < 0.1
            length = int(random.integers(0, list_length + 1)) if random.random() < 0.1 else list_length
            session.append(
                {
                    "user_hash": user * 7_919 - 3,
                    "rank": None if unknown else int(random.integers(1, NUM_ITEMS + 1)),
                    "token": 1 if unknown else int(random.integers(2, NUM_TOKENS)),
                    "session_position": place,
                    "sessions_before": before,
                    "gap_seconds": None if random.random() < 0.1 else int(10 ** random.uniform(0, 7)),
                    "session_rank": None,
                    "confidence": float(sure.random()) if with_confidence else None,
                    "top": random.permutation(np.arange(2, NUM_TOKENS))[:length].tolist(),
                }
            )
        session[0]["session_rank"] = min((row["rank"] for row in session if row["rank"]), default=0)
        rows += session
    return rows


SCHEMA = pa.schema(
    [
        ("user_hash", pa.int64()),
        ("rank", pa.int32()),
        ("token", pa.int32()),
        ("session_position", pa.int32()),
        ("sessions_before", pa.int32()),
        ("gap_seconds", pa.int64()),
        ("session_rank", pa.int32()),
        ("top", pa.list_(pa.int32())),
        ("confidence", pa.float32()),
    ]
)


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def sums_of(parts: Iterable[list[dict]], rules: MetricRules, batch_rows: int = 1_000_000) -> dict[int, bytes]:
    """The merged sums of parts that are reduced one by one, each in batches."""
    partial = []
    for part in parts:
        batches = [batch_of(part[first : first + batch_rows]) for first in range(0, len(part), batch_rows)]
        partial += list(partial_sums(iter(batches), rules))
    (merged,) = merged_sums(iter(partial), rules)
    return dict(zip(merged.column("slice").to_pylist(), merged.column("content").to_pylist(), strict=True))


def measured(rows: list[dict], rules: MetricRules) -> Measured:
    return Measured.of_rows(sums_of([rows], rules).items(), rules)


def by_name(estimates: list[Estimate], slice_name: str = "all") -> dict[str, Estimate]:
    return {estimate.name: estimate for estimate in estimates if estimate.slice == slice_name}
