"""One module a stage: read tables, transform, write tables."""

STAGES = {
    "ingest": "raw files -> events, events_rejected",
    "sessionize": "events -> sessions",
    "sequences": "sessions -> vocabulary, sequences",
    "train": "sequences -> a model",
    "evaluate": "the model on the test sequences -> evaluation",
    "score": "next items of the users with news -> predictions, outcomes, user_memory",
    "drift": "the newest day against earlier weeks -> data_quality, advice on training",
    "report": "all of this on one HTML page -> reports/report-<date>.html",
}
"""The stages in their order, and what each makes of what."""
