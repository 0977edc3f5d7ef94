"""A night on one page: from plain values to one HTML file that needs nothing else. Knows neither Spark nor storage."""

from llm_spark.report.content import (
    Check,
    Estimate,
    Measurement,
    Model,
    Prediction,
    Reason,
    Report,
    StageRun,
    User,
)
from llm_spark.report.page import page

__all__ = [
    "Check",
    "Estimate",
    "Measurement",
    "Model",
    "Prediction",
    "Reason",
    "Report",
    "StageRun",
    "User",
    "page",
]
