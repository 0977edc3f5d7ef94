"""What a training run is given and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.reader import Snapshot


@dataclass(frozen=True)
class Progress:
    """How far training has come."""

    step: int
    num_steps: int
    epoch: int
    tokens_per_second: float
    """Over all ranks."""
    loss: float
    """Mean over the targets of the last step."""
    seconds_left: float


@dataclass(frozen=True)
class Metric:
    """One measurement, for the table training_metrics."""

    step: int
    name: str
    value: float
    at: float
    """Epoch seconds."""


@dataclass(frozen=True)
class TrainingJob:
    """One model to train."""

    model_config: ModelConfig
    train_config: TrainConfig
    training: Snapshot
    """The training split's files at one version of the table."""
    validation: Snapshot
    """The validation split's; where it has none there is no early stopping, and the last weights are kept."""
    num_tokens: int
    """Rows of the embedding: the highest token of the vocabulary, plus one."""
    num_event_types: int
    """The same for the event types."""
    artifact_path: str
    """Folder of this model alone, that does not hold a model yet."""
    work_dir: str
    """Folder of this model alone that the driver and all ranks see: checkpoints, and the records of each launch. The same job with the
    same folder goes on from the newest checkpoint. The caller removes it once it has noted the result."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Vocabulary and table versions, kept in the artifact."""
    parent_path: str | None = None
    """Artifact of the model whose weights this one begins with, if any."""
    tracking_path: str = "tensorboard"
    """Folder in which TensorBoard's files of each model are, where those are asked for."""
    launch_id: str = ""
    """Given by the launcher: of several launches of one job only the last may write."""
    initial_embedding: str | None = None
    """File of item vectors to begin at, where all ranks see it; None for random ones."""
    on_progress: Callable[[Progress], None] | None = None
    """Called on the driver whenever there is news, a few times a second at most."""

    @property
    def checkpoint_path(self) -> str:
        return f"{self.work_dir.rstrip('/')}/checkpoints"

    def checkpoint_identity(self) -> dict[str, Any]:
        """What a checkpoint of this job belongs to: whatever has a part in the weights, and the files that its position refers to."""
        files = "\n".join(self.training.files)
        return {
            **{f"model.{name}": value for name, value in asdict(self.model_config).items()},
            **{f"train.{name}": value for name, value in self.train_config.identity().items()},
            **{f"data_versions.{name}": value for name, value in self.provenance.get("data_versions", {}).items()},
            "num_tokens": self.num_tokens,
            "num_event_types": self.num_event_types,
            "parent": self.parent_path,
            "training_files": hashlib.sha256(files.encode()).hexdigest()[:12],
        }


@dataclass(frozen=True)
class TrainingResult:
    """A model that every rank has finished."""

    artifact_path: str
    metrics: list[Metric]
    num_steps: int
    num_tokens: int
    """Events that passed through the network, over all epochs and ranks."""
    num_parameters: int
    num_ranks: int
    final_loss: float
    """Mean over the targets of the last epoch."""
    best_step: int
    """The step whose weights are kept."""
    best_recall: float | None
    """Their validation recall@20; None without validation targets."""
    resumed_at_step: int | None
    """Where an interrupted run was taken up; None for one that began at the beginning."""
    seconds: float
    model_summary: str
