"""Simulated raw logs whose best reachable recall is known exactly.

`preset` gives the settings of a trade, `write_logs` writes messy raw logs drawn from a `Process`; `Oracle` is the
Bayes-optimal next-item predictor of that process, the ceiling against which a trained model is read. Needs numpy and
the standard library only.
"""

from llm_spark.simulation.config import SimulationConfig
from llm_spark.simulation.oracle import Oracle, OracleResult
from llm_spark.simulation.presets import PRESETS, preset
from llm_spark.simulation.process import Events, History, Process
from llm_spark.simulation.profile import Profile
from llm_spark.simulation.raw_logs import TROUBLES, LogsWritten, write_logs
from llm_spark.simulation.retail import RetailProfile

__all__ = [
    "PRESETS",
    "TROUBLES",
    "Events",
    "History",
    "LogsWritten",
    "Oracle",
    "OracleResult",
    "Process",
    "Profile",
    "RetailProfile",
    "SimulationConfig",
    "preset",
    "write_logs",
]
