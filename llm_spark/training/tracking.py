"""Metrics sent to TensorBoard or MLflow as they come, by rank 0.

Neither is a dependency: the one that `train.track` asks for must be installed on the machine that rank 0 runs on.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_spark.errors import UserError
from llm_spark.training.job import Metric

MLFLOW_EXPERIMENT = "llm_spark"


def require_package(track: str) -> None:
    """Raises UserError when what `train.track` asks for is not installed here."""
    if track != "none" and importlib.util.find_spec(track) is None:
        raise UserError(
            f"train.track is '{track}' and that package is not installed here: pip install {track}, or give train.track=none"
        )


@contextlib.contextmanager
def tracked(track: str, model_id: str, folder: str, settings: Mapping[str, Any]) -> Iterator[Callable[[Metric], None]]:
    """A function that sends one metric on, under the model's name.

    A run that goes on from a checkpoint goes on here too: TensorBoard forgets what came after that step, MLflow keeps
    it and has those steps twice. `folder` is where TensorBoard's files go; MLflow knows its server from
    MLFLOW_TRACKING_URI. Raises UserError when the package is missing.
    """
    require_package(track)
    if track == "tensorboard":
        with _tensorboard(f"{folder}/{model_id}") as send:
            yield send
    elif track == "mlflow":
        with _mlflow(model_id, settings) as send:
            yield send
    else:
        yield lambda metric: None


@contextlib.contextmanager
def _tensorboard(folder: str) -> Iterator[Callable[[Metric], None]]:
    from torch.utils.tensorboard import SummaryWriter

    with contextlib.ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def send(metric: Metric) -> None:
            if not writers:
                # The first metric says where the run begins or goes on: what is there of later steps is void.
                writer = SummaryWriter(folder, purge_step=metric.step)
                writers.append(stack.enter_context(writer))
            writers[0].add_scalar(metric.name, metric.value, metric.step, metric.at)

        yield send


@contextlib.contextmanager
def _mlflow(model_id: str, settings: Mapping[str, Any]) -> Iterator[Callable[[Metric], None]]:
    import mlflow

    experiment = mlflow.set_experiment(MLFLOW_EXPERIMENT)
    earlier = mlflow.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{model_id}'", max_results=1, output_format="list"
    )
    begun = {"run_id": earlier[0].info.run_id} if earlier else {"run_name": model_id}
    with mlflow.start_run(**begun):
        if not earlier:
            mlflow.log_params(dict(settings))
        yield lambda metric: mlflow.log_metric(metric.name, metric.value, step=metric.step)
