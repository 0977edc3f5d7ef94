"""What ran, what it measured of the data, and who holds what."""

from __future__ import annotations

from pyspark.sql import types as t

from llm_spark.schemas.table import RUN_ID, TEXT, TIME, Table, columns

DATA_QUALITY = Table(
    "data_quality",
    "One measured check of one run",
    "every stage",
    columns(
        RUN_ID,
        ("stage", TEXT, "the stage that measured"),
        ("name", TEXT, "what was measured"),
        ("subject", TEXT, "of what: a file, a table, a split, a column"),
        ("value", t.DoubleType(), "the measured value"),
        ("limit", t.DoubleType(), "the value that it is held against; null where there is none"),
        (
            "severity",
            TEXT,
            "info: a measurement; warning: look at it; error: the data are at fault, and most stages then refuse to go on",
        ),
        ("detail", TEXT, "in words"),
        ("measured_at", TIME, "when the run began"),
    ),
)

RUNS = Table(
    "runs",
    "One run of a stage",
    "every stage",
    columns(
        RUN_ID,
        ("stage", TEXT, "the stage"),
        ("started_at", TIME, "when it began"),
        ("seconds", t.DoubleType(), "how long it took"),
        ("outcome", TEXT, "done; under nightly also refused (the data or a model did not pass a gate) or failed"),
        ("account", TEXT, "rows in, out and rejected by reason, versions read and written, JSON; of a night its steps"),
        ("reason", TEXT, "of a run that is not done, why; else null"),
        ("night_id", TEXT, "the run of `llm-spark nightly` that it was a step of; null for a stage by hand"),
        (
            "as_of_date",
            t.DateType(),
            "the UTC day at whose end it worked; null where that is the day of the newest event",
        ),
    ),
    added_later=("reason", "night_id", "as_of_date"),
)

LOCKS = Table(
    "locks",
    "One lock that a run holds, or held until it was killed; in object storage alone",
    "nightly",
    columns(
        ("name", TEXT, "what is locked: nightly"),
        ("owner", TEXT, "who holds it: run, process and host"),
        ("token", TEXT, "drawn anew each time that it is taken"),
        ("taken_at", TIME, "since when"),
        ("expires_at", TIME, "until when, unless its owner renews it: one that was killed does not"),
    ),
)
