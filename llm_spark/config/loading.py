"""All settings together, and how defaults, a YAML file and `key=value` become them, with one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from llm_spark.config.checks import is_date, require
from llm_spark.config.drift import DriftConfig
from llm_spark.config.gate import GateConfig
from llm_spark.config.ingest import IngestConfig
from llm_spark.config.maintain import MaintainConfig
from llm_spark.config.model import EvaluateConfig, ModelConfig, TrainConfig
from llm_spark.config.nightly import NightlyConfig
from llm_spark.config.report import ReportConfig
from llm_spark.config.score import ScoreConfig
from llm_spark.config.sequences import SequencesConfig, SessionizeConfig
from llm_spark.config.serve import ServeConfig
from llm_spark.config.spark import SparkConfig
from llm_spark.errors import UsageError


@dataclass(frozen=True)
class Config:
    """All stages' settings."""

    warehouse: str = "warehouse"
    """Root of all tables and model artifacts: a folder, or s3a://, hdfs://, abfss://."""
    as_of: str | None = None
    """UTC date: every stage but ingest and sessionize then works as it would have at the end of that day, and leaves out what happened after it,
    whenever it arrived. Not given: the day of the newest event. On or after that day it leaves out nothing; drift then also notices that the
    days since are empty."""
    spark: SparkConfig = field(default_factory=SparkConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    sessionize: SessionizeConfig = field(default_factory=SessionizeConfig)
    sequences: SequencesConfig = field(default_factory=SequencesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    nightly: NightlyConfig = field(default_factory=NightlyConfig)
    maintain: MaintainConfig = field(default_factory=MaintainConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        self.gate.chosen_metric(self.evaluate.ks)
        # A value on the line between two known ones tells in training of the later one, which an outcome asks for.
        tells = bool(self.model.outcomes) and self.ingest.missing.value == "interpolate"
        require(not tells, "ingest.missing.value", "interpolate", "give keep or forward where there are model.outcomes")
        if self.as_of is not None:
            require(is_date(self.as_of), "as_of", self.as_of, "write a date such as 2026-01-31")


def _known_keys(node: Any, prefix: str = "") -> list[str]:
    """Of a settings dataclass, or of one of its values, whose nested settings may be of another kind than the default's."""
    keys = []
    kinds = get_type_hints(node if isinstance(node, type) else type(node))
    for entry in dataclasses.fields(node):
        keys.append(prefix + entry.name)
        for kind in get_args(kinds[entry.name]):
            if dataclasses.is_dataclass(kind):  # a list of settings
                keys += _known_keys(kind, prefix + entry.name + ".")
        below = entry.default_factory if isinstance(node, type) else getattr(node, entry.name)
        if dataclasses.is_dataclass(below):
            keys += _known_keys(below, prefix + entry.name + ".")
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
        wrong = str(error.full_key)
        if key:
            # A key that is known holds settings of its own, in a list, and one of those is wrong.
            wrong = f"{key}.{wrong}" if key in _known_keys(Config) else key
        raise _unknown_key(wrong, where) from error
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


def from_overrides(kind: Any, overrides: list[str]) -> Any:
    """A settings dataclass of its own, from its defaults and `key=value` overrides. Raises UsageError as `load` does.

    `kind` may also be a value of such a class: its settings are then the defaults.
    """
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
