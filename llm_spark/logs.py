"""Progress and accounts: a live line on a terminal, plain log lines elsewhere. All of it goes to stderr; results go to stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False)
log = logging.getLogger("llm_spark")


class _CurrentStderr(logging.StreamHandler):
    """Writes to what sys.stderr is at the time of writing."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(debug: bool = False) -> None:
    """Set up logging once for this process."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = _CurrentStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    # pyspark prints each failed query as a line of JSON; the error comes with the exception as well.
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)
    log.setLevel(logging.DEBUG if debug else logging.INFO)


class Bar:
    """A running piece of work: `update` moves it. Off a terminal it logs at each tenth of the way."""

    def __init__(self, title: str, progress: Progress | None) -> None:
        self._title, self._progress, self._tenth = title, progress, 0
        self._task = progress.add_task(title, total=None, note="") if progress else None

    def update(self, done: float, total: float, note: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif total and int(10 * done / total) > self._tenth:
            self._tenth = int(10 * done / total)
            log.info("%s: %d %% %s", self._title, 10 * self._tenth, note)


@contextmanager
def progress(title: str) -> Iterator[Bar]:
    """Show that `title` is under way until the block ends."""
    if not console.is_terminal:
        log.info("%s ...", title)
        yield Bar(title, None)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as live:
        yield Bar(title, live)
