"""Every setting, its unit, and why its default is what it is.

Frozen dataclasses <- YAML file <- `key.path=value` from the command line. `load` merges the three and raises one-line errors.
"""

from llm_spark.config.drift import DriftConfig, DriftRules, ErrorConfig, SeverityConfig
from llm_spark.config.gate import GateConfig
from llm_spark.config.ingest import MISSING_RULES, ColumnsConfig, IngestConfig, MissingConfig, NormaliseItemConfig
from llm_spark.config.loading import Config, from_overrides, load, show
from llm_spark.config.maintain import MaintainConfig
from llm_spark.config.model import EvaluateConfig, ModelConfig, TrainConfig
from llm_spark.config.nightly import NightlyConfig
from llm_spark.config.outcomes import OutcomeConfig
from llm_spark.config.report import ReportConfig
from llm_spark.config.score import ScoreConfig
from llm_spark.config.sequences import SPLIT_KINDS, BotsConfig, ClipValuesConfig, SequencesConfig, SessionizeConfig
from llm_spark.config.serve import AUTHENTICATION_NEEDS, ServeConfig
from llm_spark.config.spark import SparkConfig, flat

__all__ = [
    "AUTHENTICATION_NEEDS",
    "MISSING_RULES",
    "SPLIT_KINDS",
    "BotsConfig",
    "ClipValuesConfig",
    "ColumnsConfig",
    "Config",
    "DriftConfig",
    "DriftRules",
    "ErrorConfig",
    "EvaluateConfig",
    "GateConfig",
    "IngestConfig",
    "MaintainConfig",
    "MissingConfig",
    "ModelConfig",
    "NightlyConfig",
    "NormaliseItemConfig",
    "OutcomeConfig",
    "ReportConfig",
    "ScoreConfig",
    "SequencesConfig",
    "ServeConfig",
    "SessionizeConfig",
    "SeverityConfig",
    "SparkConfig",
    "TrainConfig",
    "flat",
    "from_overrides",
    "load",
    "show",
]
