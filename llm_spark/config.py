"""Every setting, its unit, and why its default is what it is.

Frozen dataclasses <- YAML file <- `key.path=value` from the command line. `load` merges the three and raises one-line errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from llm_spark.errors import UsageError


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UsageError(f"{key} is {value!r}: {remedy}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, key, value, f"choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class SparkConfig:
    """How to start Spark when none is running; under `spark-submit` the submitted settings win."""

    master: str = "local[*]"
    """Spark master URL. All cores of this machine unless `spark-submit` or this says otherwise."""
    driver_memory: str = "4g"
    """Heap of the driver JVM when this process starts it."""
    java_options: str = ""
    """Further options of that JVM. `-XX:TieredStopAtLevel=1` starts faster and runs long work slower: for small data."""
    shuffle_partitions: int = 0
    """Partitions after a shuffle; 0 takes twice the cores (local) or lets adaptive execution decide (cluster)."""
    conf: dict[str, str] = field(default_factory=dict)
    """Further Spark settings, passed through as they are."""


@dataclass(frozen=True)
class ColumnsConfig:
    """Where each field of an event stands in a record: a column name, or any Spark SQL expression over the columns."""

    user: str = MISSING
    """Who did it. For logs without users give the session column: each session is then a user of its own."""
    item: str = MISSING
    """What it was done to: the thing whose next occurrence is predicted."""
    time: str = MISSING
    """When; read as `ingest.time_format` says."""
    type: str | None = None
    """What kind of event; `event` for all where not given."""
    value: str | None = None
    """A number that belongs to the event, such as a price or a weight."""
    session: str | None = None
    """A session id that the log already has; the inactivity gap is then not used."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Further fields to keep, name: column or expression."""


MISSING_RULES = ("keep", "reject", "drop", "forward", "interpolate")


@dataclass(frozen=True)
class MissingConfig:
    """What to do where a field is missing (empty, or blank, or for `value` no finite number): a rule's name, or else the constant to fill in.

    reject: the record goes to events_rejected as `missing_<column>`, a fault that ingest.max_rejected_fraction counts. drop: likewise, but no
    fault. keep: it stays missing. A constant that is spelt like a rule is written into the column's expression: `coalesce(action, 'drop')`.
    """

    user: str = "reject"
    """reject, drop, or a constant: all records without a user are then one user's."""
    item: str = "reject"
    """reject, drop, or a constant."""
    time: str = "reject"
    """reject or drop. A time that cannot be read is a fault under either."""
    type: str = "event"
    """reject, drop, or a constant."""
    value: str = "keep"
    """keep, reject, drop, a constant number, forward or interpolate. The last three leave `events` and `sessions` as logged and fill in
    `sequences.values` and what is scored. forward: the user's last known value in the order of the history. interpolate: within one session the
    line in time between two known values, where no position to predict in validation or test stands between; elsewhere as forward. Nothing is
    ever filled backwards: before a user's first known value it stays missing."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attribute: keep (as where not named), reject, drop, or a constant."""

    def __post_init__(self) -> None:
        _missing_rule("user", self.user, ("reject", "drop"), "a constant")
        _missing_rule("item", self.item, ("reject", "drop"), "a constant")
        _missing_rule("time", self.time, ("reject", "drop"))
        _missing_rule("type", self.type, ("reject", "drop"), "a constant")
        _missing_rule("value", self.value, MISSING_RULES, "a constant number")
        for name, rule in self.attributes.items():
            _missing_rule(f"attributes.{name}", rule, ("keep", "reject", "drop"), "a constant")
        # The reason says missing_attribute for all of them, and a reason is a fault or it is not.
        both = {"reject", "drop"} <= set(self.attributes.values())
        _require(not both, "ingest.missing.attributes", self.attributes, "reject some or drop some, not both")


def _missing_rule(column: str, rule: str, rules: tuple[str, ...], constant: str = "") -> None:
    if rule in rules:
        return
    key, choices = f"ingest.missing.{column}", [*rules, constant] if constant else [*rules]
    remedy = f"give {', '.join(choices[:-1])} or {choices[-1]}"
    # What is nearly a rule's name would otherwise be filled in as a constant, in every record.
    near = difflib.get_close_matches(rule.strip().lower(), MISSING_RULES, n=1, cutoff=0.8)
    if near and near[0] != rule:
        remedy = f"'{near[0]}' is not spelt so; {remedy}"
    is_constant = bool(constant and rule.strip() and not near)
    if constant == "a constant number":
        is_constant = _is_finite_number(rule)
    _require(is_constant, key, rule, remedy)


def _is_finite_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class NormaliseItemConfig:
    """Make item ids of one thing equal, after `ingest.columns.item` and before the test for a missing item; in the order of these fields.

    Plain spaces around an id are trimmed always, before and after.
    """

    strip: bool = False
    """Remove white space of every kind (tabs, line ends, no-break spaces, byte order marks) around it."""
    replace: list[list[str]] = field(default_factory=list)
    """Pairs of a regular expression (Java's) and its replacement ($1 for a group), each applied everywhere in the id, in this order."""
    case_fold: bool = False
    """Make ids that differ only in case equal: written in lower case."""

    def __post_init__(self) -> None:
        for pair in self.replace:
            ok = len(pair) == 2 and pair[0] != ""
            _require(ok, "ingest.normalise_item.replace", pair, "give pairs: [regular expression, replacement]")


@dataclass(frozen=True)
class IngestConfig:
    """From raw files to the tables `events` and `events_rejected`."""

    paths: list[str] = MISSING
    """Files, folders or globs, on any file system that Spark reaches."""
    format: str = MISSING
    """csv, jsonl, parquet or access_log (combined log format); text may be gzip-compressed."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    time_format: str = "iso8601"
    """iso8601, epoch_s, epoch_ms, epoch_us, epoch_auto, or a Spark datetime pattern such as `yyyy-MM-dd HH:mm:ss`.

    epoch_auto tells the unit of each number by its magnitude: below 10^11 seconds (to the year 5138), below 10^14 milliseconds (from March
    1973), below 10^17 microseconds, from there on nanoseconds. For logs whose writers do not agree."""
    time_zone: str = "UTC"
    """Zone of times that do not carry one. A local time that a clock shows twice is the first, still in summer time; one that it skips is
    taken as if the clock had not been put forward yet."""
    filters: list[str] = field(default_factory=list)
    """SQL expressions over the columns; a record for which one is not true goes to events_rejected as `filtered`."""
    normalise_item: NormaliseItemConfig = field(default_factory=NormaliseItemConfig)
    missing: MissingConfig = field(default_factory=MissingConfig)
    csv_delimiter: str = ","
    csv_multiline: bool = False
    """Let a quoted CSV field go on over line ends. Off, since a file is then one task's work, and one quote that is never closed swallows all
    records after it; without it such a quote costs its own line."""
    max_record_chars: int = 1_000_000
    """A record of more characters is rejected as too_long, with its beginning kept: it is no event, and many such would fill the memory."""
    pseudonymise: bool = False
    """Put a keyed hash in the place of each user id: no table, file name or log line then holds the id. The key comes from the environment
    variable LLM_SPARK_PSEUDONYM_KEY or from `pseudonym_key_file`; who loses it cannot add to the warehouse any more."""
    pseudonym_key_file: str | None = None
    """A file that holds the key, 32 bytes at least, and that none but its owner may read."""
    earliest_time: str = "1990-01-01"
    """Events before this UTC date are rejected as time_out_of_range: an epoch of 0 is a fault, not a date."""
    max_rejected_fraction: float = 1.0
    """Above this share of records rejected for any reason but `filtered` and what ingest.missing drops, ingest writes no event and exits 3."""

    def __post_init__(self) -> None:
        if self.format != MISSING:
            _one_of("ingest.format", self.format, ("csv", "jsonl", "parquet", "access_log"))
        _require(
            0 <= self.max_rejected_fraction <= 1, "ingest.max_rejected_fraction", self.max_rejected_fraction, "0 to 1"
        )
        _require(self.max_record_chars > 0, "ingest.max_record_chars", self.max_record_chars, "give a number above 0")
        _require(len(self.csv_delimiter) == 1, "ingest.csv_delimiter", self.csv_delimiter, "give one character")
        try:
            datetime.fromisoformat(str(self.earliest_time))
        except ValueError:
            _require(False, "ingest.earliest_time", self.earliest_time, "write a UTC date such as 1990-01-01")
        for name, rule, column in (
            ("type", self.missing.type in ("reject", "drop"), self.columns.type),
            ("value", self.missing.value != "keep", self.columns.value),
        ):
            remedy = f"it is missing in every record, for ingest.columns.{name} is not given: give it, or take this out"
            _require(not rule or column is not None, f"ingest.missing.{name}", getattr(self.missing, name), remedy)
        for name, text in self.missing.attributes.items():
            known = ", ".join(self.columns.attributes) or "none"
            remedy = f"it is none of ingest.columns.attributes ({known})"
            _require(name in self.columns.attributes, f"ingest.missing.attributes.{name}", text, remedy)


@dataclass(frozen=True)
class BotsConfig:
    """What no human does. A session beyond a limit goes, whole and as it was, to sessions_set_aside; 0 is no limit."""

    max_events_per_minute: float = 0.0
    """Mean over a session; one shorter than a minute counts as a minute, so that a few quick clicks are no bot."""
    max_events: int = 0
    """In one session. A session that sessionize.max_events cuts is judged piece by piece: the last one may be short enough to stay."""
    max_events_per_day: int = 0
    """Of one user on one UTC day; all sessions of that user that touch the day are set aside. Under it every run rebuilds all sessions, for a
    new event may condemn sessions that it does not touch."""

    def __post_init__(self) -> None:
        for name in ("max_events_per_minute", "max_events", "max_events_per_day"):
            ok = 0 <= getattr(self, name) < math.inf
            _require(ok, f"sessionize.bots.{name}", getattr(self, name), "give a number above 0, or 0 for no limit")

    @property
    def any_limit(self) -> bool:
        return bool(self.max_events_per_minute or self.max_events or self.max_events_per_day)


@dataclass(frozen=True)
class SessionizeConfig:
    """From `events` to `sessions`."""

    gap_seconds: int = 1800
    """A pause strictly longer than this opens a new session. Half an hour is the web's custom."""
    max_length_seconds: int = 86_400
    """A session longer than this from its first event is cut there."""
    max_events: int = 1_000
    """A session with more events than this is cut there."""
    day_cut: str | None = None
    """A zone such as Europe/London at whose midnight a session ends. Not given: a session may span midnight, as a visitor does."""
    num_buckets: int = 8
    """Partitions of each month of the sessions table, by a hash of the user; also the tasks that build it: at least one a core."""
    bots: BotsConfig = field(default_factory=BotsConfig)
    collapse_repeats: bool = False
    """Of events with the same item and type directly after one another in a session keep the first; `sessions.num_collapsed` counts the others."""

    def __post_init__(self) -> None:
        for name in ("gap_seconds", "max_length_seconds", "max_events", "num_buckets"):
            _require(getattr(self, name) > 0, f"sessionize.{name}", getattr(self, name), "give a number above 0")
        remedy = f"sessions are cut at sessionize.max_events ({self.max_events}) before: give less than that"
        can_be = self.bots.max_events < self.max_events
        _require(can_be, "sessionize.bots.max_events", self.bots.max_events, remedy)


@dataclass(frozen=True)
class ClipValuesConfig:
    """Outliers of `value` are set to the bounds of what is usual for their event type, fitted on the training window alone.

    The fitted bounds stand in data_quality, in the sequences' origin and in the model, which scores under the bounds that it was trained with.
    """

    method: str = "none"
    """none, mad (median +- num_mads times the median absolute deviation) or quantile (low_quantile to high_quantile)."""
    num_mads: float = 10.0
    """For a bell curve 1 is 0.67 standard deviations. Where more than half of a type's values are equal the deviation is 0: then 0.845 times the
    mean absolute deviation stands in for it, which is the same for a bell curve (Iglewicz and Hoaglin 1993)."""
    low_quantile: float = 0.001
    high_quantile: float = 0.999
    min_values: int = 30
    """Event types with fewer values than this in the training window are not clipped."""

    def __post_init__(self) -> None:
        _one_of("sequences.clip_values.method", self.method, ("none", "mad", "quantile"))
        finite = 0 < self.num_mads < math.inf
        _require(finite, "sequences.clip_values.num_mads", self.num_mads, "give a number above 0")
        ordered = 0 <= self.low_quantile < self.high_quantile <= 1
        remedy = "give a share from 0, below sequences.clip_values.high_quantile, which is 1 at most"
        _require(ordered, "sequences.clip_values.low_quantile", self.low_quantile, remedy)
        _require(self.min_values > 0, "sequences.clip_values.min_values", self.min_values, "give a number above 0")


SPLIT_KINDS = ("time", "leave_last_session_out", "leave_last_event_out")


@dataclass(frozen=True)
class SequencesConfig:
    """From `sessions` to `vocabulary` and `sequences`."""

    split: str = "time"
    """time: training ends at train_until, validation at validation_until, and nothing later is known to training. leave_last_session_out,
    leave_last_event_out: each user's last session (event) is test and the one before it validation, as in many papers; a user with fewer
    than three is trained on whole. There other users' training may be later than a user's test: only `time` measures what a night will do."""

    max_tokens: int = 200
    """The longest row. A longer history becomes several rows."""
    burn_in_tokens: int = 50
    """Context that a continued row repeats from before its first target, to warm the recurrent state."""
    min_item_count: int = 5
    """Items seen less often than this in the training window stay unknown."""
    max_items: int = 0
    """Keep only the most frequent items, 0 for all."""
    train_until: str | None = None
    """UTC time before which events are training data. Not given: so that `validation_fraction + test_fraction` of the events remain."""
    validation_until: str | None = None
    """UTC time before which (from train_until on) events are validation data; later ones are test data."""
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    clip_values: ClipValuesConfig = field(default_factory=ClipValuesConfig)

    def __post_init__(self) -> None:
        _one_of("sequences.split", self.split, SPLIT_KINDS)
        timed = self.train_until is not None or self.validation_until is not None
        _require(
            self.split == "time" or not timed,
            "sequences.split",
            self.split,
            "leave out train_until and validation_until, or split by time",
        )
        _require(self.max_tokens >= 2, "sequences.max_tokens", self.max_tokens, "give 2 or more")
        ok = 1 <= self.burn_in_tokens < self.max_tokens
        _require(ok, "sequences.burn_in_tokens", self.burn_in_tokens, "give 1 or more, below sequences.max_tokens")
        _require(self.min_item_count >= 1, "sequences.min_item_count", self.min_item_count, "give 1 or more")
        for name in ("validation_fraction", "test_fraction"):
            _require(
                0 < getattr(self, name) < 0.5,
                f"sequences.{name}",
                getattr(self, name),
                "give a share above 0, below 0.5",
            )
        both_or_none = (self.train_until is None) == (self.validation_until is None)
        _require(
            both_or_none, "sequences.train_until", self.train_until, "give it together with sequences.validation_until"
        )


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
    use_event_types: bool = True
    """Feed each step's event type."""
    use_values: bool = True
    """Feed each step's numeric value, standardised on training data, with a flag where it is missing."""

    def __post_init__(self) -> None:
        _one_of("model.cell", self.cell, ("rnn", "lstm", "gru"))
        _one_of("model.attention", self.attention, ("dot", "additive", "none"))
        for name in ("embedding_size", "hidden_size", "num_layers"):
            _require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "give a number above 0")
        for name in ("dense_size", "memory_size"):
            _require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "give 0 or more")
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give a share from 0 to below 1")


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
    """full softmax, or sampled: softmax over the target and `num_negatives` items drawn by frequency, logQ-corrected."""
    num_negatives: int = 512
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
        _one_of("train.loss", self.loss, ("full", "sampled"))
        _one_of("train.device", self.device, ("auto", "cpu", "cuda"))
        _one_of("train.precision", self.precision, ("fp32", "bf16"))
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
            _require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "give a number above 0")
        for name in ("warmup_steps", "weight_decay"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "give 0 or more")
        enough = self.batch_rows >= self.num_ranks
        _require(enough, "train.batch_rows", self.batch_rows, f"give at least one sequence a rank ({self.num_ranks})")


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics on the test split, ranked against the whole vocabulary."""

    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    """The k of recall@k, MRR@k and NDCG@k. Accuracy is recall@1."""
    batch_rows: int = 128
    """Sequences evaluated at a time in a Python worker; bounds its memory."""

    def __post_init__(self) -> None:
        _require(
            bool(self.ks) and all(k > 0 for k in self.ks), "evaluate.ks", self.ks, "give one or more numbers above 0"
        )
        _require(self.batch_rows > 0, "evaluate.batch_rows", self.batch_rows, "give a number above 0")


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
        _require(self.k > 0, "score.k", self.k, "give a number above 0")
        _require(self.batch_rows > 0, "score.batch_rows", self.batch_rows, "give a number above 0")


@dataclass(frozen=True)
class MaintainConfig:
    """Compaction, and removal of files that nothing needs."""

    target_file_mib: int = 128
    """Small files are joined into files of about this size: few enough to list, small enough for one task."""
    retention_hours: int = 168
    """A version younger than this stays readable, and no younger file is touched. Longer than any stage or query runs; a week, as Delta's own."""

    def __post_init__(self) -> None:
        _require(self.target_file_mib > 0, "maintain.target_file_mib", self.target_file_mib, "give a number above 0")
        _require(self.retention_hours >= 0, "maintain.retention_hours", self.retention_hours, "give 0 or more")


@dataclass(frozen=True)
class Config:
    """All stages' settings."""

    warehouse: str = "warehouse"
    """Root of all tables and model artifacts: a folder, or s3a://, hdfs://, abfss://."""
    spark: SparkConfig = field(default_factory=SparkConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    sessionize: SessionizeConfig = field(default_factory=SessionizeConfig)
    sequences: SequencesConfig = field(default_factory=SequencesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    maintain: MaintainConfig = field(default_factory=MaintainConfig)


def _known_keys(node: type, prefix: str = "") -> list[str]:
    keys = []
    for entry in dataclasses.fields(node):
        keys.append(prefix + entry.name)
        factory = entry.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            keys += _known_keys(factory, prefix + entry.name + ".")
    return keys


def _unknown_key(key: str, where: str) -> UsageError:
    known = _known_keys(Config)
    by_leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    near = close or by_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UsageError(f"unknown setting '{key}' in {where}: the nearest valid one is '{near[0]}'")


def _merge(base: DictConfig, layer: DictConfig, where: str, key: str = "") -> DictConfig:
    try:
        return OmegaConf.merge(base, layer)  # type: ignore[return-value]
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise _unknown_key(key or str(error.full_key), where) from error
    except OmegaConfBaseException as error:
        raise UsageError(f"setting '{key or error.full_key}' in {where}: {str(error).splitlines()[0]}") from error


def _writable(node: DictConfig) -> DictConfig:
    # OmegaConf marks nodes of frozen dataclasses read-only; the layers are merged first and frozen again by to_object.
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _writable(child)
    return node


def load(path: str | Path | None, overrides: list[str] | None = None, needs: tuple[str, ...] = ()) -> Config:
    """Merge defaults, the YAML file at `path` and `key=value` overrides into a `Config`.

    `needs` names the sections a stage uses: mandatory settings missing there are all listed at once. Elsewhere they stay OmegaConf's MISSING.
    Raises UsageError in one line for: no such file, bad YAML, an unknown key (the nearest valid key is named), a value of the wrong type.
    """
    merged = _writable(OmegaConf.structured(Config))
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise UsageError(f"no config file at '{path}': give one with --config, for example conf/demo.yaml")
        try:
            loaded = OmegaConf.load(file)
        except Exception as error:
            raise UsageError(f"'{path}' is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, DictConfig):
            raise UsageError(f"'{path}' does not hold settings: write them as `section: {{key: value}}`")
        merged = _merge(merged, loaded, f"'{path}'")
    for override in overrides or []:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise UsageError(f"'{override}' is not a setting: write key.path=value")
        merged = _merge(merged, _dotted(override), "the command line", key)
    try:
        missing = [key for key in sorted(OmegaConf.missing_keys(merged)) if key.split(".")[0] in needs]
        if missing:
            place = path or "a --config file"
            raise UsageError(f"settings without a value: {', '.join(missing)}; set them in {place} or as key=value")
        return _build(Config, merged)
    except OmegaConfBaseException as error:
        raise UsageError(f"setting '{error.full_key}': {str(error).splitlines()[0]}") from error


def _dotted(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except yaml.YAMLError as error:
        raise UsageError(f"'{override}' is not a setting: its value is not valid YAML") from error


def from_overrides(kind: type, overrides: list[str]) -> Any:
    """A settings dataclass of its own, from its defaults and `key=value` overrides. Raises UsageError as `load` does."""
    merged = _writable(OmegaConf.structured(kind))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise UsageError(f"'{override}' is not a setting: write key=value")
        try:
            merged = OmegaConf.merge(merged, _dotted(override))  # type: ignore[assignment]
        except (ConfigKeyError, ConfigAttributeError) as error:
            known = _known_keys(kind)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UsageError(f"unknown setting '{key}': the nearest valid one is '{near[0]}'") from error
        except OmegaConfBaseException as error:
            raise UsageError(f"setting '{key}': {str(error).splitlines()[0]}") from error
    try:
        return OmegaConf.to_object(merged)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _build(kind: type, node: DictConfig) -> Any:
    """The dataclass tree of a merged node; unlike OmegaConf.to_object it lets MISSING stand where a stage does not need the value."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        factory = entry.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            values[entry.name] = _build(factory, node[entry.name])
        elif OmegaConf.is_missing(node, entry.name):
            values[entry.name] = MISSING
        else:
            value = node[entry.name]
            values[entry.name] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return kind(**values)


def show(config: Config) -> str:
    """The merged settings as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
