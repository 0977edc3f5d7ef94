"""Settings of the model and of the stages that train, evaluate and score it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_spark.config.checks import one_of, require


@dataclass(frozen=True)
class ModelConfig:
    """The network: embedding -> recurrent cell with user memory -> self-attention -> dense(relu) -> softmax over the items."""

    embedding_size: int = 64
    """Numbers in an item's vector (E)."""
    cell: str = "gru"
    """rnn, lstm or gru."""
    hidden_size: int = 128
    """Numbers in the recurrent state (H)."""
    num_layers: int = 1
    dropout: float = 0.1
    """Share of activations dropped in training, at the embedding and before the dense layer."""
    attention: str = "dot"
    """Score of the causal self-attention over the hidden states of the session: dot, additive, or none."""
    dense_size: int = 128
    """Width of the dense(relu) layer, 0 for none."""
    memory_size: int = 64
    """Numbers in a user's long-term memory vector (M), 0 for none."""
    tied: bool = False
    """Score an item by its embedding instead of a vector of its own, and begin from the last item's: fewer parameters, rare
    items learn from both uses, and what is like the last item is likely at once."""
    cosine_scale: float = 0.0
    """Score by this number times the cosine of context and item, plus the item's bias, so that long vectors of frequent
    items win nothing by their length; 10 to 20 is usual. 0: by the plain inner product."""
    use_event_types: bool = True
    """Feed each step's event type."""
    use_values: bool = True
    """Feed each step's numeric value, standardised on training data, with a flag where it is missing."""

    def __post_init__(self) -> None:
        one_of("model.cell", self.cell, ("rnn", "lstm", "gru"))
        one_of("model.attention", self.attention, ("dot", "additive", "none"))
        for name in ("embedding_size", "hidden_size", "num_layers"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "give a number above 0")
        for name in ("dense_size", "memory_size", "cosine_scale"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "give 0 or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give a share from 0 to below 1")


@dataclass(frozen=True)
class TrainConfig:
    """The training run."""

    num_epochs: float = 5.0
    """Passes over the training sequences; the account counts steps and tokens."""
    batch_rows: int = 128
    """Sequences a step, over all ranks."""
    learning_rate: float = 0.01
    """Of Adam at its height. Large, since the embeddings of rare items get few steps."""
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    """Gradients are scaled down to this norm at most."""
    warmup_steps: int = 50
    """Steps over which the learning rate climbs to its value, a fifth of the run at most; it then falls to a tenth by a cosine."""
    loss: str = "full"
    """full softmax, or sampled: softmax over the target and a sample of the items, logQ-corrected."""
    num_negatives: int = 512
    """Items drawn for each step of a rank, shared by all of its targets."""
    negative_power: float = 0.5
    """They are drawn by (frequency as a target) to this power: 0 all alike, 1 by popularity."""
    num_batch_negatives: int = 0
    """Further negatives: the targets of at most this many other steps of the batch. They cost as much as drawn ones."""
    num_ranks: int = 1
    """Training processes, started by TorchDistributor."""
    device: str = "auto"
    """auto takes a GPU where torch finds one; cpu or cuda insist."""
    precision: str = "fp32"
    """fp32, or bf16 autocast."""
    reader_workers: int = 2
    """Petastorm workers that read ahead, for each rank."""
    patience: int = 3
    """Stop after this many epochs without a better validation recall; the best weights are kept."""
    timeout_seconds: int = 1800
    """A collective operation that waits longer than this fails the run: a dead or hung rank never hangs the night."""
    seed: int = 1

    def __post_init__(self) -> None:
        one_of("train.loss", self.loss, ("full", "sampled"))
        one_of("train.device", self.device, ("auto", "cpu", "cuda"))
        one_of("train.precision", self.precision, ("fp32", "bf16"))
        for name in (
            "num_epochs",
            "batch_rows",
            "learning_rate",
            "clip_norm",
            "num_negatives",
            "num_ranks",
            "timeout_seconds",
            "reader_workers",
            "patience",
        ):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "give a number above 0")
        for name in ("warmup_steps", "weight_decay", "negative_power", "num_batch_negatives"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "give 0 or more")
        enough = self.batch_rows >= self.num_ranks
        require(enough, "train.batch_rows", self.batch_rows, f"give at least one sequence a rank ({self.num_ranks})")


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics on the test split, ranked against the whole vocabulary."""

    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    """The k of recall@k, MRR@k and NDCG@k. Accuracy is recall@1."""
    batch_rows: int = 128
    """Sequences evaluated at a time in a Python worker; bounds its memory."""

    def __post_init__(self) -> None:
        require(
            bool(self.ks) and all(k > 0 for k in self.ks), "evaluate.ks", self.ks, "give one or more numbers above 0"
        )
        require(self.batch_rows > 0, "evaluate.batch_rows", self.batch_rows, "give a number above 0")


@dataclass(frozen=True)
class ScoreConfig:
    """Predictions for every user."""

    as_of: str | None = None
    """UTC date: only events before its end are used. Not given: the day of the newest event."""
    k: int = 10
    """Recommended next items for each user."""
    batch_rows: int = 256
    """Users scored at a time in a Python worker; bounds its memory."""
    exclude_seen: bool = False
    """Leave out items that stand in the user's recent history."""

    def __post_init__(self) -> None:
        require(self.k > 0, "score.k", self.k, "give a number above 0")
        require(self.batch_rows > 0, "score.batch_rows", self.batch_rows, "give a number above 0")
