"""The pseudonymisation key: from the environment or a file that its owner alone may read, and under which key, with which other columns
hidden, a warehouse was written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llm_spark.config import IngestConfig
from llm_spark.errors import UsageError
from llm_spark.schemas import EVENTS, EVENTS_REJECTED
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.pseudonyms import Pseudonyms

KEY_VARIABLE = "LLM_SPARK_PSEUDONYM_KEY"
FINGERPRINT_PROPERTY = "llm_spark.pseudonym_key"
ALSO_PROPERTY = "llm_spark.pseudonymised_also"
MIN_KEY_BYTES = 32

_MAKE_ONE = "make one with `openssl rand -hex 32`"


def load(config: IngestConfig) -> Pseudonyms | None:
    """The pseudonyms that the settings ask for; None where they do not. UsageError in one line for a missing, short or open key."""
    if not config.pseudonymise:
        return None
    given = os.environ.get(KEY_VARIABLE, "")
    if given and config.pseudonym_key_file:
        raise UsageError(f"both {KEY_VARIABLE} and ingest.pseudonym_key_file are set: keep one of them")
    if config.pseudonym_key_file:
        key, place = _from_file(config.pseudonym_key_file), f"'{config.pseudonym_key_file}'"
    else:
        key, place = os.fsencode(given).strip(), KEY_VARIABLE
    if not key:
        raise UsageError(
            f"ingest.pseudonymise needs a key and {place} holds none: set {KEY_VARIABLE} or ingest.pseudonym_key_file; {_MAKE_ONE}"
        )
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"the key in {place} has {len(key)} bytes, {MIN_KEY_BYTES} are needed: {_MAKE_ONE}")
    return Pseudonyms(key, config.pseudonymise_also)


def _from_file(name: str) -> bytes:
    path = Path(name)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(
                f"ingest.pseudonym_key_file '{name}' has mode {mode:04o}: others than its owner may use it; run `chmod 600 {name}`"
            )
        return path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"ingest.pseudonym_key_file '{name}' cannot be read: {error.strerror}") from error


def properties(pseudonyms: Pseudonyms | None) -> dict[str, str]:
    """What a new table notes of the key, and of the columns hidden besides the user's."""
    if pseudonyms is None:
        return {}
    also = {ALSO_PROPERTY: _listed(pseudonyms)} if pseudonyms.also else {}
    return {FINGERPRINT_PROPERTY: pseudonyms.fingerprint} | also


def _listed(pseudonyms: Pseudonyms) -> str:
    return ",".join(sorted(pseudonyms.also))


def check_warehouse(warehouse: Warehouse, pseudonyms: Pseudonyms | None) -> None:
    """UsageError unless what the warehouse holds was written under the same key and with the same columns hidden, or likewise without one."""
    now = pseudonyms.fingerprint if pseudonyms else None
    for table in (EVENTS, EVENTS_REJECTED):
        if not warehouse.exists(table):
            continue
        then = warehouse.table_property(table, FINGERPRINT_PROPERTY)
        also_then, also_now = (
            warehouse.table_property(table, ALSO_PROPERTY) or "",
            _listed(pseudonyms) if pseudonyms else "",
        )
        if (then, also_then) == (now, also_now):
            continue
        if then is None:
            found, remedy = (
                "holds user ids as they were logged",
                "set ingest.pseudonymise=false or begin a new warehouse",
            )
        elif now is None:
            found, remedy = (
                f"holds pseudonyms under key {then}",
                "set ingest.pseudonymise=true or begin a new warehouse",
            )
        elif then == now:
            found = f"was written with ingest.pseudonymise_also=[{also_then}], and [{also_now}] is given"
            remedy = "give what it was written with or begin a new warehouse"
        else:
            found = f"holds pseudonyms under key {then}, and the key given is {now}"
            remedy = "give the key it was written with or begin a new warehouse"
        raise UsageError(f"table '{table.name}' of the warehouse '{warehouse.root}' {found}: {remedy}")
