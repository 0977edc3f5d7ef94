"""llm_spark: a long-term memory model on Spark. Raw event logs in the evening, next-event predictions in SQL by morning."""

__version__ = "0.1.0"
