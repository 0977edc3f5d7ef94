"""The `llm-spark` command: parse, load the config, call one pipeline, print what it did.

Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage or config, 3 the data did not pass a gate.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_spark import config as settings
from llm_spark import logs
from llm_spark.config import Config
from llm_spark.errors import UsageError, UserError
from llm_spark.logs import log
from llm_spark.pipelines import STAGES

# What a stage reads of the config and cannot do without.
_NEEDS: dict[str, tuple[str, ...]] = {
    stage: ("ingest",) if stage in ("ingest", "sessionize", "score", "nightly") else ()
    for stage in (*STAGES, "nightly")
}

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
"""Begins a setting, and no query."""

_MODEL_ACTIONS = {
    "list": ("", "every model, with its alias and why it has it"),
    "show": (
        "ID",
        "what a model was trained on, with which settings and code, how it was measured and what became of it",
    ),
    "compare": ("ID [ID]", "what differs between two models; not given, the second is the champion"),
    "promote": ("ID", "make a model the one that scores, whatever the gate says"),
    "rollback": ("", "make the champion before this one score again"),
}
"""What each takes, in brackets what need not be given, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["models"] and (words[1:] == [] or words[1].startswith("--") or "=" in words[1]):
        words[1:1] = [] if words[1:] == ["--help"] else ["list"]
    try:
        given, rest = parser.parse_known_args(words)
        # argparse leaves what follows an option: settings, ids and a query may stand anywhere.
        if hasattr(given, "words"):
            given.words += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        strange = [word for word in rest if word.startswith("-") or "=" not in word]
        if strange or (rest and not hasattr(given, "overrides")):
            parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
        if rest:
            given.overrides = [*given.overrides, *rest]
    except SystemExit as stop:
        return int(stop.code or 0)
    logs.configure(given.debug)
    try:
        given.run(given)
    except UserError as error:
        if given.debug:
            log.exception("failed")
        print(f"llm-spark {given.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"llm-spark {given.command}: interrupted; run it again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if given.debug:
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        print(f"llm-spark {given.command}: {type(error).__name__}: {line[:300]} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-spark", description="Raw event logs in, next-event predictions in SQL tables out."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.add_argument("--debug", action="store_true", help="show stack traces")
        added.set_defaults(run=run)
        return added

    def configured(added: argparse.ArgumentParser) -> None:
        added.add_argument("--config", metavar="FILE", help="YAML settings")
        added.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that win over the file")

    def configured_among_words(added: argparse.ArgumentParser, takes: str, help_text: str | None = None) -> None:
        """What it takes besides, and settings, in any order; `_run_…` tells them apart."""
        added.add_argument("--config", metavar="FILE", help="YAML settings")
        added.add_argument("words", nargs="*", metavar=f"{takes} key.path=value".strip(), help=help_text)
        added.set_defaults(overrides=[])

    for stage, what in STAGES.items():
        added = command(stage, what, _run_stage)
        configured(added)
        added.add_argument("--show-config", action="store_true", help="print the merged settings and stop")
        if stage == "report":
            added.add_argument("--output", default="", metavar="FILE", help="where to write the page instead")
    nightly = command(
        "nightly", "one night: every stage in turn, going on where an earlier run of it stopped", _run_nightly
    )
    configured(nightly)
    nightly.add_argument(
        "--as-of", metavar="DATE", help="the night of this UTC day (as_of=DATE); not given: of the newest event"
    )
    nightly.add_argument("--dry-run", action="store_true", help="say what every step would do, and write nothing")
    nightly.add_argument("--show-config", action="store_true", help="print the merged settings and stop")
    maintain = command("maintain", "join small files, and remove those that no version in use needs", _run_stage)
    configured(maintain)
    maintain.add_argument("--show-config", action="store_true", help="print the merged settings and stop")
    maintain.add_argument("--force", action="store_true", help="also remove versions that a model was trained on")
    query = command("sql", "query the tables", _run_sql)
    configured_among_words(query, "SELECT", "Spark SQL, the tables by their names; settings that win over the file")
    query.add_argument("--format", choices=("table", "csv", "json"), default="table")
    query.add_argument("--max-rows", type=int, default=1000, metavar="N")
    configured(
        command("serve-sql", "serve the tables to SQL clients (JDBC, ODBC, DB-API) until it is ended", _run_serve)
    )
    models = command("models", "which models there are and which one scores; promote another by hand", _run_models)
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (takes, what) in _MODEL_ACTIONS.items():
        action = actions.add_parser(name, help=f"{takes} {what}".strip(), description=what)
        action.add_argument("--debug", action="store_true", help="show stack traces")
        configured_among_words(action, takes)
        if name in ("promote", "rollback"):
            action.add_argument("--reason", default="", metavar="TEXT", help="why, for the table models")
    configured(command("tables", "what is in the warehouse: versions, rows, newest event, files", _run_tables))
    simulate = command(
        "simulate", "write raw logs of simulated users, with every trouble that real logs have", _run_simulate
    )
    simulate.add_argument("folder", help="where to write them")
    simulate.add_argument(
        "--format", choices=("jsonl", "csv", "both"), help="not given: what is usual in the trade (retail: jsonl)"
    )
    simulate.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="profile=retail|finance|logistics|health, and for example num_users=500 seed=7",
    )
    demo = command("demo", "the whole chain on simulated logs, on this machine, in minutes", _run_demo)
    demo.add_argument("--folder", default="llm_spark_demo", help="where to put logs, settings and warehouse")
    return parser


def _load(given: argparse.Namespace, needs: tuple[str, ...] = ()) -> Config:
    return settings.load(given.config, given.overrides, needs)


def _run_stage(given: argparse.Namespace) -> None:
    loaded = _load(given, () if given.show_config else _NEEDS.get(given.command, ()))
    if given.show_config:
        print(settings.show(loaded), end="")
        return
    from llm_spark.pipelines.night import run_by_hand

    options = {name: value for name in ("force", "output") if (value := getattr(given, name, None))}
    _with_spark(loaded, lambda warehouse: run_by_hand(given.command, warehouse, loaded, **options))


def _run_nightly(given: argparse.Namespace) -> None:
    if given.as_of is not None:
        given.overrides = [*given.overrides, f"as_of={given.as_of}"]
    loaded = _load(given, () if given.show_config else _NEEDS["nightly"])
    if given.show_config:
        print(settings.show(loaded), end="")
        return
    from llm_spark.pipelines.dry_run import print_plan
    from llm_spark.pipelines.nightly import nightly

    _with_spark(loaded, lambda warehouse: (print_plan if given.dry_run else nightly)(warehouse, loaded))


def _with_spark(loaded: Config, work: Callable) -> None:
    from llm_spark import spark
    from llm_spark.tables.failures import storage_told
    from llm_spark.tables.warehouse import Warehouse

    session = spark.session(loaded.spark)
    try:
        with storage_told(loaded.warehouse):
            work(Warehouse(session, loaded.warehouse))
    finally:
        session.stop()


def _run_sql(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.query import print_query

    # Settings may stand on either side of the query.
    given.overrides = [word for word in given.words if _SETTING.match(word)]
    queries = [word for word in given.words if not _SETTING.match(word)]
    if len(queries) != 1:
        raise UsageError("give one query, in quotes: " + (f"got {', '.join(queries)}" if queries else "there is none"))
    _with_spark(_load(given), lambda warehouse: print_query(warehouse, queries[0], given.format, given.max_rows))


def _run_serve(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.serve_sql import prepared, serve_sql

    with tempfile.TemporaryDirectory(prefix="llm_spark_sql_") as scratch:
        loaded = prepared(_load(given), scratch)
        _with_spark(loaded, lambda warehouse: serve_sql(warehouse, loaded.serve, scratch))


def _run_tables(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.query import print_tables

    _with_spark(_load(given), print_tables)


def _run_models(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.registry.commands import run_action

    ids = [word for word in given.words if "=" not in word]
    takes, _ = _MODEL_ACTIONS[given.action]
    most = takes.count("ID")
    if not most - takes.count("[ID]") <= len(ids) <= most:
        raise UsageError(f"`models {given.action}` takes {takes or 'no ID'}, and was given {', '.join(ids) or 'none'}")
    given.overrides = [*given.overrides, *(word for word in given.words if "=" in word)]
    reason = getattr(given, "reason", "")
    _with_spark(_load(given), lambda warehouse: run_action(warehouse, given.action, ids, reason))


def _run_simulate(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.simulate import simulate

    simulate(Path(given.folder), given.format, given.overrides)


def _run_demo(given: argparse.Namespace) -> None:
    from llm_spark.pipelines.demo import prepare, run
    from llm_spark.spark import check_java

    check_java()
    config_file = prepare(Path(given.folder))
    loaded = settings.load(config_file, [], tuple(_NEEDS))
    _with_spark(loaded, lambda warehouse: run(warehouse, loaded, config_file))


if __name__ == "__main__":
    sys.exit(main())
