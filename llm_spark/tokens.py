"""Codes that items and event types have in every table and every model."""

PADDING_TOKEN = 0
UNKNOWN_TOKEN = 1
FIRST_ITEM_TOKEN = 2
"""The first code that stands for an item; likewise for an event type."""
