"""What is decided of a single record as it is read: item ids made equal, missing fields filled by a constant, rejected or dropped.

`value` is not filled here: an event keeps what was logged, and its identity does not depend on a filling rule (see fill_kernel).
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from llm_spark.config import MISSING_RULES, IngestConfig, MissingConfig, NormaliseItemConfig

# Java's \s knows ASCII alone. Besides Unicode's white space: zero-width space and joiners, word joiner, byte order mark.
_WHITE_SPACE = r"[\s\p{Z}\x{85}\x{200B}-\x{200D}\x{2060}\x{FEFF}]"


def normalised_item(item: Column, rules: NormaliseItemConfig) -> Column:
    """An item id of text as the settings have it: stripped, replaced, case-folded, in this order. The empty text is not made null here."""
    if rules.strip:
        item = F.regexp_replace(item, rf"^{_WHITE_SPACE}++|{_WHITE_SPACE}++$", "")
    for pattern, replacement in rules.replace:
        item = F.regexp_replace(item, F.lit(pattern), F.lit(replacement))
    # Upper case first: what has the same upper case (ß and SS, both small sigmas) then has the same lower case. Spark would simplify lower(upper)
    # to lower, but for the trimming between.
    return F.lower(F.trim(F.upper(item))) if rules.case_fold else item


def filled(field: Column, rule: str) -> Column:
    """The field, its nulls replaced where the rule is a constant."""
    return field if rule in MISSING_RULES else F.coalesce(field, F.lit(rule.strip()))


def missing_verdicts(config: IngestConfig) -> list[tuple[str, Column, Column]]:
    """Why a mapped record lacks something optional that it must have: reason, condition, detail. Besides the event's fields it has `_raw_value`."""
    missing, nothing = config.missing, F.lit(None).cast("string")
    demanded = [
        (missing.type, "missing_type", F.col("event_type"), nothing),
        (missing.value, "missing_value", F.col("value"), F.substring("_raw_value", 1, 200)),
    ]
    demanded += [
        (rule, "missing_attribute", F.col("attributes")[name], F.lit(name)) for name, rule in missing.attributes.items()
    ]
    return [(reason, field.isNull(), detail) for rule, reason, field, detail in demanded if rule in ("reject", "drop")]


def reasons_that_are_no_fault(missing: MissingConfig) -> frozenset[str]:
    """Reasons of rejection that were asked for: they do not count against ingest.max_rejected_fraction."""
    by_column = {name: getattr(missing, name) for name in ("user", "item", "time", "type", "value")}
    dropped = {f"missing_{name}" for name, rule in by_column.items() if rule == "drop"}
    if "drop" in missing.attributes.values():
        dropped.add("missing_attribute")
    return frozenset(dropped | {"filtered"})
