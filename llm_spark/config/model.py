"""Settings of the model and of the stages that train and evaluate it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_spark.config.checks import one_of, require
from llm_spark.config.outcomes import MOMENT_COLUMNS, OPENING_COLUMNS, OutcomeConfig

_WITHOUT_PART_IN_THE_WEIGHTS = frozenset(
    {"timeout_seconds", "reader_workers", "checkpoint_seconds", "keep_checkpoints", "track"}
)

BASELINES = ("popularity", "session_popularity", "recency", "markov", "vsknn", "item_knn")
"""What a model can be set against, from the plainest to the most knowing; llm_spark/evaluation/baselines says what each does."""

MIN_REPLICATES = 40
"""Of fewer, the 2.5 % at either end are less than one."""


@dataclass(frozen=True)
class ModelConfig:
    """The network: embedding -> recurrent cell with user memory -> self-attention -> dense(relu) -> softmax over the items."""

    embedding_size: int = 64
    """Numbers in an item's vector (E)."""
    initial_embedding: str = "random"
    """What the items' vectors begin at: random, or word2vec (skip-gram on the sessions of the training split, by Spark ML)."""
    word2vec_size: int = 0
    """Numbers in the Word2Vec vectors before PCA reduces them to embedding_size; 0 for embedding_size, without PCA."""
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
    items learn from both uses, and what is like the last item is likely at once (more on which in item_context)."""
    item_context: str = "last"
    """What a tied model's score begins from. last: the last item's vector, after which items that are like it are likely. mapped: a learned
    map of it (E x E numbers), since what follows an item need not be like it. attended: that, and a learned map of the session's items so
    far, weighted by the attention, for sessions that return to items; where a session holds no item twice it does harm."""
    cosine_scale: float = 0.0
    """Score by this number times the cosine of context and item, plus the item's bias, so that long vectors of frequent
    items win nothing by their length; 10 to 20 is usual. 0: by the plain inner product."""
    use_event_types: bool = True
    """Feed each step's event type."""
    use_values: bool = True
    """Feed each step's numeric value, standardised on training data, with a flag where it is missing."""
    use_time_gaps: bool = True
    """Feed log(1 + seconds since the user's event before), likewise."""
    features: list[str] = field(default_factory=list)
    """Further numbers to feed with each step, likewise: names of ingest.columns.attributes whose text is a number, such as quantity. A text
    that is none counts as missing. sessionize carries them into `sessions` and sequences into `sequences`, so run both after a change."""
    outcomes: list[OutcomeConfig] = field(default_factory=list)
    """What to foretell beside the next item, at every step and, while a user is silent, every few days. Needs sequences.split=time, and
    validation and test windows longer than an outcome's within_days to be measured in them."""
    next_item_weight: float = 1.0
    """Of the next item's loss, beside the outcomes' own weights. 0 trains the outcomes alone, and chooses the best weights by their loss."""

    def __post_init__(self) -> None:
        one_of("model.cell", self.cell, ("rnn", "lstm", "gru"))
        one_of("model.initial_embedding", self.initial_embedding, ("random", "word2vec"))
        one_of("model.attention", self.attention, ("dot", "additive", "none"))
        for name in ("embedding_size", "hidden_size", "num_layers"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "give a number above 0")
        for name in ("dense_size", "memory_size", "cosine_scale"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "give 0 or more")
        require(self.cosine_scale < math.inf, "model.cosine_scale", self.cosine_scale, "give a finite number")
        one_of("model.item_context", self.item_context, ("last", "mapped", "attended"))
        needs_attention = self.item_context == "attended"
        possible = self.tied and not (needs_attention and self.attention == "none")
        remedy = "give model.tied=true" + (" and a model.attention" if needs_attention else "")
        require(self.item_context == "last" or possible, "model.item_context", self.item_context, remedy)
        # As an artifact or a settings file has them.
        outcomes = [each if isinstance(each, OutcomeConfig) else OutcomeConfig(**each) for each in self.outcomes]
        object.__setattr__(self, "outcomes", outcomes)
        names = [outcome.name for outcome in outcomes]
        require(len(set(names)) == len(names), "model.outcomes.name", names, "name each outcome differently")
        ok = 0 <= self.next_item_weight < math.inf
        require(ok, "model.next_item_weight", self.next_item_weight, "give 0 or more")
        taught = bool(outcomes) or self.next_item_weight > 0
        require(taught, "model.next_item_weight", self.next_item_weight, "give more than 0, or model.outcomes")
        twice = len(set(self.features)) < len(self.features)
        require(not twice, "model.features", self.features, "name each attribute once")
        enough = self.word2vec_size == 0 or self.word2vec_size >= self.embedding_size
        remedy = f"give 0, or at least model.embedding_size ({self.embedding_size})"
        require(enough, "model.word2vec_size", self.word2vec_size, remedy)
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give a share from 0 to below 1")

    @property
    def history_columns(self) -> tuple[str, ...]:
        """The columns of a user's history that this model reads, in the table sequences and wherever else it is given one."""
        columns = ("tokens", "event_types", "values", "session_starts", "event_times")
        return (*columns, "features") if self.features else columns

    @property
    def moment_columns(self) -> tuple[str, ...]:
        """The columns of the table sequences that say at which moments its outcomes are asked about, what came about, and what stood before."""
        return (*MOMENT_COLUMNS, *OPENING_COLUMNS) if self.outcomes else ()


@dataclass(frozen=True)
class TrainConfig:
    """The training run."""

    num_epochs: float = 5.0
    """Passes over the training sequences; the account counts steps and tokens."""
    batch_rows: int = 128
    """Sequences a step, over all ranks."""
    accumulate: int = 1
    """Parts of about equally many events into which each rank cuts its sequences of a step, one after the other. Memory falls with it,
    the loss curve stays (but for `num_batch_negatives`, which are then of the part); more parts are slower. A sequence is never cut."""
    learning_rate: float = 0.01
    """Of Adam at its height. Large, since the embeddings of rare items get few steps."""
    weight_decay: float = 0.0
    """Share of themselves, times the learning rate, by which a step shrinks all matrices (AdamW: Loshchilov and Hutter 2019), the items'
    vectors among them; biases and the memory of newcomers are not shrunk. 0: none."""
    average_decay: float = 0.0
    """Validate and keep, in place of the weights, their exponential moving average: after each step it is this share of itself and the rest
    of the new weights, which takes the noise of large steps out. .999 is usual, .99 for runs of few thousand steps. It is one more copy of
    the weights in memory. 0: none."""
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
    """fp32, or autocast to bf16, or to fp16 with a scaled loss (for GPUs without bf16)."""
    reader_workers: int = 2
    """Petastorm workers that read ahead, for each rank."""
    patience: int = 3
    """Stop after this many epochs without a better validation recall; the best weights are kept."""
    timeout_seconds: int = 1800
    """A collective operation that waits longer than this fails the run: a dead or hung rank never hangs the night."""
    checkpoint_seconds: float = 300.0
    """A checkpoint is written after the first step that ends so long after the last one: what a kill can cost at most. 0 writes one after
    every step. Five minutes, for writing the 223 MiB of a model of 100,000 items takes a second of one core."""
    keep_checkpoints: int = 2
    """Newest ones kept until the run has ended. Two, so that there is one to fall back to where the newest is damaged. There must be room
    for one more while it is written."""
    warm_start: bool = False
    """Begin with the champion's weights instead of random ones. New items and event types get rows beside the old ones. A champion of
    another shape, or one that has seen later events than this run may, is passed over: the account says why."""
    track: str = "none"
    """Send the metrics, as they come, also to tensorboard (files under <warehouse>/tensorboard) or to mlflow (where its own environment
    variables say); either must be installed on the driver and where rank 0 runs."""
    seed: int = 1

    def __post_init__(self) -> None:
        one_of("train.loss", self.loss, ("full", "sampled"))
        one_of("train.device", self.device, ("auto", "cpu", "cuda"))
        one_of("train.precision", self.precision, ("fp32", "bf16", "fp16"))
        one_of("train.track", self.track, ("none", "tensorboard", "mlflow"))
        for name in (
            "num_epochs",
            "batch_rows",
            "accumulate",
            "keep_checkpoints",
            "learning_rate",
            "clip_norm",
            "num_negatives",
            "num_ranks",
            "timeout_seconds",
            "reader_workers",
            "patience",
        ):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "give a number above 0")
        for name in ("warmup_steps", "weight_decay", "checkpoint_seconds", "negative_power", "num_batch_negatives"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "give 0 or more")
        # Without end are only the norm that nothing is clipped to, and the time to a checkpoint that never comes.
        for name in ("num_epochs", "learning_rate", "weight_decay", "negative_power"):
            require(getattr(self, name) < math.inf, f"train.{name}", getattr(self, name), "give a finite number")
        require(
            0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "give a share from 0 to below 1"
        )
        enough = self.batch_rows >= self.num_ranks
        require(enough, "train.batch_rows", self.batch_rows, f"give at least one sequence a rank ({self.num_ranks})")

    def identity(self) -> dict[str, Any]:
        """The settings that have a part in the weights: runs that differ in others only are the same run."""
        return {name: value for name, value in asdict(self).items() if name not in _WITHOUT_PART_IN_THE_WEIGHTS}


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics on the test split, ranked against the whole vocabulary."""

    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    """The k of recall@k, MRR@k, NDCG@k and of the metrics of recommended lists. Accuracy is recall@1."""
    batch_rows: int = 128
    """Sequences evaluated at a time in a Python worker; bounds its memory."""
    num_replicates: int = 1000
    """Bootstrap replicates, in each of which every user counts so often as a Poisson draw says; an interval's ends are percentiles of them.
    With 1,000 an end is off by about 4 % of half the interval's width, which no decision hangs on; with 10,000 by 1.4 %, for ten times the
    time and memory."""
    diversity_attribute: str | None = None
    """The name of ingest.columns.attributes that holds an item's category, for diversity@k. Not given: not computed."""
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    """Recommenders without a model, measured on the same positions: popularity, session_popularity, recency, markov, vsknn, item_knn. All of
    them, for a model is worth its training only where it beats the best of them; [] for none."""

    def __post_init__(self) -> None:
        for name in self.baselines:
            one_of("evaluate.baselines", name, BASELINES)
        twice = len(set(self.baselines)) < len(self.baselines)
        require(not twice, "evaluate.baselines", self.baselines, "name each baseline once")
        require(
            bool(self.ks) and all(k > 0 for k in self.ks), "evaluate.ks", self.ks, "give one or more numbers above 0"
        )
        require(self.batch_rows > 0, "evaluate.batch_rows", self.batch_rows, "give a number above 0")
        require(len(set(self.ks)) < 255, "evaluate.ks", self.ks, "give fewer than 255 of them")
        enough = self.num_replicates >= MIN_REPLICATES
        require(enough, "evaluate.num_replicates", self.num_replicates, f"give {MIN_REPLICATES} or more")
