"""Metrics on their way to TensorBoard and MLflow, as stand-ins for the packages see them."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llm_spark.errors import UserError
from llm_spark.training.job import Metric
from llm_spark.training.tracking import require_package, tracked

METRICS = [Metric(3, "train_loss", 2.5, 100.0), Metric(4, "validation_loss", 2.25, 101.0)]


def send_all(track: str, folder: Path) -> None:
    with tracked(track, "m1", str(folder), {"train.seed": 1}) as send:
        for metric in METRICS:
            send(metric)


@pytest.mark.parametrize("track", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named(track: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"train.track is '{track}' .* pip install {track}") as error:
        send_all(track, tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_is_needed_where_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_package("none")
    send_all("none", tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What stand-ins for both packages were called with."""
    calls: list[tuple] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append(("open", folder, purge_step))

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *exception: object) -> None:
            calls.append(("close",))

        def add_scalar(self, name: str, value: float, step: int, at: float) -> None:
            calls.append((name, value, step, at))

    tensorboard = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)

    class Run:
        def __init__(self, **begun: str) -> None:
            calls.append(("start", begun))

        def __enter__(self) -> None: ...

        def __exit__(self, *exception: object) -> None:
            calls.append(("end",))

    mlflow: Any = types.ModuleType("mlflow")
    mlflow.earlier = []
    mlflow.set_experiment = lambda name: types.SimpleNamespace(experiment_id="7")
    mlflow.search_runs = lambda ids, text, **more: mlflow.earlier if (ids, text) == (["7"], OF_THE_MODEL) else None
    mlflow.start_run = Run
    mlflow.log_params = lambda settings: calls.append(("params", settings))
    mlflow.log_metric = lambda name, value, step: calls.append((name, value, step))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return calls


OF_THE_MODEL = "attributes.run_name = 'm1'"


def test_tensorboard_gets_every_metric_and_forgets_what_came_after_the_step_that_a_run_goes_on_from(
    calls: list[tuple], tmp_path: Path
) -> None:
    send_all("tensorboard", tmp_path)
    assert calls == [
        ("open", f"{tmp_path}/m1", 3),
        ("train_loss", 2.5, 3, 100.0),
        ("validation_loss", 2.25, 4, 101.0),
        ("close",),
    ]


def test_mlflow_gets_settings_and_metrics(calls: list[tuple], tmp_path: Path) -> None:
    send_all("mlflow", tmp_path)
    assert calls == [
        ("start", {"run_name": "m1"}),
        ("params", {"train.seed": 1}),
        ("train_loss", 2.5, 3),
        ("validation_loss", 2.25, 4),
        ("end",),
    ]


def test_mlflow_takes_an_interrupted_run_up_again(calls: list[tuple], tmp_path: Path) -> None:
    sys.modules["mlflow"].earlier = [types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))]  # type: ignore[attr-defined]
    send_all("mlflow", tmp_path)
    assert calls[0] == ("start", {"run_id": "abc"})
    assert not [call for call in calls if call[0] == "params"]


def test_tensorboard_itself_reads_the_metrics_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    send_all("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "m1"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(3, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("validation_loss")] == [(4, 2.25)]
