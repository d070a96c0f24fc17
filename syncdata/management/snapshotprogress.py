"""What a person sees while snapshots are taken: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import TaskID

from syncdata.capture.snapshot import SnapshotProgress
from syncdata.changes.names import TableName
from syncdata.management.progress import LINE_EVERY_S, make_bar


class ClosableSnapshotProgress(SnapshotProgress, Protocol):
    """The snapshot's progress port, and what the command must do when the work is over."""

    def close(self) -> None: ...


def make_snapshot_progress(stream: TextIO) -> ClosableSnapshotProgress:
    """Return the progress that suits *stream*."""
    if stream.isatty():
        return SnapshotBar(Console(file=stream))
    return SnapshotLines(lambda line: print(line, file=stream, flush=True))


class SnapshotLines:
    """A line every ten seconds of work, for logs and pipes; a short run needs none."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._written_s = clock()
        self._table: TableName | None = None
        self._copied = self._expected = 0

    def tables_found(self, tables: int, rows: int) -> None:
        self._written_s = self._clock()

    def table_started(self, table: TableName, rows: int) -> None:
        self._table, self._copied, self._expected = table, 0, rows

    def rows_copied(self, rows: int) -> None:
        self._copied += rows
        now_s = self._clock()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            about = f" of about {self._expected:,}" if self._expected >= self._copied else ""
            self._write(f"snapshot of {self._table}: {self._copied:,}{about} rows")

    def table_finished(self, table: TableName) -> None:
        """The command tells of each snapshot in the end."""

    def close(self) -> None:
        """Nothing is open."""


class SnapshotBar:
    """One bar over the rows of all tables; their number is the source's estimate."""

    def __init__(self, console: Console) -> None:
        self._bar = make_bar(console)
        self._task: TaskID | None = None
        self._name = ""
        self._copied = self._expected = self._total = 0

    def tables_found(self, tables: int, rows: int) -> None:
        self._total = rows
        self._task = self._bar.add_task("snapshot", total=rows or None)
        self._bar.start()

    def table_started(self, table: TableName, rows: int) -> None:
        self._name, self._copied, self._expected = str(table), 0, rows
        self._show(0)

    def rows_copied(self, rows: int) -> None:
        self._copied += rows
        self._show(rows)

    def table_finished(self, table: TableName) -> None:
        # What the estimate was off by, so that the bar ends at its end.
        self._total += self._copied - self._expected
        self._show(0)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        self._bar.stop()

    def _show(self, rows: int) -> None:
        if self._task is not None:
            text = f"{self._name}: {self._copied:,} rows"
            self._bar.update(self._task, advance=rows, total=self._total or None, description=text)
