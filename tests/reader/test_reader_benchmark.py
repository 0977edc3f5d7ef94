"""What the benchmark of the reader counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llm_spark.reader import Epoch, RaggedReader
from tests.benchmarks import reader as benchmark


class SlowToStart(RaggedReader):
    def epoch(self, epoch: int) -> Epoch:
        time.sleep(2)
        return super().epoch(epoch)


def test_the_start_of_an_epoch_counts_as_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RaggedReader", SlowToStart)
    assert benchmark.waiting_share(benchmark.write_table(tmp_path, 512), num_steps=1) > 0.5
