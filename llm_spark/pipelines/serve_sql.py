"""serve-sql: the warehouse's tables for every SQL client, until it is asked to end."""

from __future__ import annotations

import dataclasses
import ipaddress
import signal
import socket
import threading
from types import FrameType

from llm_spark.config import AUTHENTICATION_NEEDS, Config, ServeConfig, flat
from llm_spark.errors import UsageError, UserError
from llm_spark.logs import log
from llm_spark.tables.catalog import Catalog
from llm_spark.tables.sql_server import SqlServer
from llm_spark.tables.warehouse import Warehouse

LOOK_SECONDS = 10.0
"""How often to look for tables that came into being."""


def prepared(config: Config, scratch: str) -> Config:
    """The settings, checked, with Spark's own files in the folder `scratch`. UsageError in one line for what cannot be served."""
    settings = config.serve
    missing = [name for name in AUTHENTICATION_NEEDS[settings.authentication] if name not in flat(settings.conf)]
    if missing:
        raise UsageError(
            f"serve.authentication={settings.authentication} needs {', '.join(missing)}: set it in serve.conf"
        )
    if not _is_loopback(settings) and settings.authentication == "none":
        raise UsageError(
            f"serve.host={settings.host} would let whoever reaches it read every table: set serve.authentication "
            f"({', '.join(name for name in AUTHENTICATION_NEEDS if name != 'none')}), or keep 127.0.0.1 and let others in by `ssh -L`"
        )
    _require_free(settings)
    own = {"spark.sql.warehouse.dir": f"{scratch}/spark_warehouse"}
    # `${env:NAME}` in a statement would be answered with this process's environment, keys of object storage included.
    kept_out = {"spark.sql.variable.substitute": "false"}
    conf: dict[str, str] = {**own, **flat(config.spark.conf), **kept_out}
    return dataclasses.replace(config, spark=dataclasses.replace(config.spark, conf=conf))


def serve_sql(warehouse: Warehouse, settings: ServeConfig, scratch: str) -> None:
    """Publish the tables, listen, and go on publishing what comes into being, until SIGINT or SIGTERM."""
    asked_to_end = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        asked_to_end.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    catalog = Catalog(warehouse)
    catalog.publish()
    server = SqlServer(warehouse.spark, _hive_settings(settings), scratch)
    try:
        _say_ready(warehouse, settings, catalog)
        while not asked_to_end.wait(LOOK_SECONDS):
            _publish(catalog)
        log.info("serve-sql: ending, as it was asked to")
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _publish(catalog: Catalog) -> None:
    # Object storage may fail for a moment; the next look finds what this one did not.
    try:
        added = catalog.publish()
    except Exception as error:
        if not catalog.is_alive():
            raise UserError("Spark has ended, and the server with it: start it again") from error
        log.warning("serve-sql: could not look for new tables: %s", " ".join(str(error).split())[:200])
        return
    if added:
        log.info("serve-sql: also %s", ", ".join(added))


def _say_ready(warehouse: Warehouse, settings: ServeConfig, catalog: Catalog) -> None:
    tables = ", ".join(catalog.names) or "no table yet: each is served once it is written"
    log.info("serving '%s', read-only: %s", warehouse.root, tables)
    if not _is_loopback(settings):
        unreadable = flat(settings.conf).get("hive.server2.use.SSL", "").lower() == "true"
        log.warning(
            "WARNING: %s:%d is open beyond this machine: whoever passes %s reads every row of these tables, user ids included%s",
            settings.host,
            settings.port,
            settings.authentication,
            "" if unreadable else "; passwords and rows travel readable, for hive.server2.use.SSL is not set",
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"ready: jdbc:hive2://{host}:{settings.port}/default", flush=True)


def _hive_settings(settings: ServeConfig) -> dict[str, str]:
    own = {
        "hive.server2.thrift.bind.host": settings.host,
        "hive.server2.thrift.port": str(settings.port),
        "hive.server2.authentication": settings.authentication.upper(),
    }
    return flat(settings.conf) | own


def _address(settings: ServeConfig) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"serve.host is '{settings.host}', which is no address of this machine: {error}") from error
    return family, str(address[0])


def _is_loopback(settings: ServeConfig) -> bool:
    return ipaddress.ip_address(_address(settings)[1]).is_loopback


def _require_free(settings: ServeConfig) -> None:
    """Ask for the port before Spark starts, which takes seconds."""
    family, address = _address(settings)
    with socket.socket(family) as probe:
        # As the server does: a port whose last connections are fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, settings.port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on serve.host={settings.host} serve.port={settings.port}: {error.strerror}; set another"
            ) from error
