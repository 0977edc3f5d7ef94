"""Codes that items and event types have in every table and every model, and the words for where a prediction comes from."""

PADDING_TOKEN = 0
UNKNOWN_TOKEN = 1
FIRST_ITEM_TOKEN = 2
"""The first code that stands for an item; likewise for an event type."""

FROM_MODEL, FALLBACK, ABSTAINED, WITHDRAWN = PREDICTION_SOURCES = ("model", "fallback", "abstained", "withdrawn")
"""`predictions.source`: the model's own; popular items, for a user of whom it knows nothing; nothing that may be offered; no history any more."""
