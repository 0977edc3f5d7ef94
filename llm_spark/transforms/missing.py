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


def missing_reason(config: IngestConfig) -> Column:
    """Why a record with the columns of schemas.EVENTS lacks something optional that it must have: null, missing_type, _value or _attribute."""
    missing = config.missing
    demanded = [
        (rule, F.col(name).isNull(), f"missing_{reason}")
        for name, reason, rule in (
            ("event_type", "type", missing.type),
            ("value", "value", missing.value),
        )
    ]
    demanded += [
        (rule, F.col("attributes")[name].isNull(), "missing_attribute") for name, rule in missing.attributes.items()
    ]
    reasons = [F.when(is_missing, F.lit(reason)) for rule, is_missing, reason in demanded if rule in ("reject", "drop")]
    return F.coalesce(*reasons, F.lit(None).cast("string"))


def missing_attribute(config: IngestConfig) -> Column:
    """Name of the first attribute that is missing and must not be; null where none."""
    demanded = [name for name, rule in config.missing.attributes.items() if rule in ("reject", "drop")]
    names = [F.when(F.col("attributes")[name].isNull(), F.lit(name)) for name in demanded]
    return F.coalesce(*names, F.lit(None).cast("string"))


def reasons_that_are_no_fault(missing: MissingConfig) -> frozenset[str]:
    """Reasons of rejection that were asked for: they do not count against ingest.max_rejected_fraction."""
    by_column = {name: getattr(missing, name) for name in ("user", "item", "time", "type", "value")}
    dropped = {f"missing_{name}" for name, rule in by_column.items() if rule == "drop"}
    if "drop" in missing.attributes.values():
        dropped.add("missing_attribute")
    return frozenset(dropped | {"filtered"})
