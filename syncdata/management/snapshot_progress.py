"""What a person sees of snapshots being taken: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from syncdata.capture.snapshot import SnapshotProgress
from syncdata.engine.changes import TableName
from syncdata.management.progress import LINE_EVERY_S


class ClosableProgress(SnapshotProgress, Protocol):
    """The port of `take_snapshots`, and what the command must do when the work is over."""

    def close(self) -> None: ...


def make_snapshot_progress(stream: TextIO) -> ClosableProgress:
    """Return the progress that suits *stream*, which other output should then go to as well."""
    if stream.isatty():
        return BarSnapshotProgress(Console(file=stream))
    return LineSnapshotProgress(lambda line: print(line, file=stream, flush=True))


class SnapshotTally:
    """How far the snapshots are: pure counting. The source's numbers of rows are estimates, so there may
    be more; then the estimate is what was counted."""

    def __init__(self, tables_total: int = 0, rows_total: int = 0) -> None:
        self.tables_total = tables_total
        self.tables = 0
        self.rows = 0
        self.table: TableName | None = None
        self._rows_total = rows_total

    @property
    def rows_total(self) -> int:
        return max(self._rows_total, self.rows)

    def __str__(self) -> str:
        table = "" if self.table is None else f", {self.table}"
        about = f" of about {self._rows_total:,}" if self._rows_total > self.rows else ""
        return f"{self.tables:,} of {self.tables_total:,} tables{table}, {self.rows:,}{about} rows"


class _Counting:
    """Keeps the tally, and lets `_show` show it."""

    def __init__(self) -> None:
        self._tally = SnapshotTally()

    def tables_found(self, tables: int, rows: int) -> None:
        self._tally = SnapshotTally(tables, rows)
        self._show()

    def table_started(self, table: TableName, rows: int) -> None:
        self._tally.table = table
        self._show()

    def rows_copied(self, rows: int) -> None:
        self._tally.rows += rows
        self._show()

    def table_finished(self, table: TableName) -> None:
        self._tally.tables += 1
        self._tally.table = None
        self._show()

    def _show(self) -> None:
        raise NotImplementedError


class LineSnapshotProgress(_Counting):
    """A line every ten seconds of work, for logs and pipes; a short run needs none."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._write = write
        self._clock = clock
        self._written_s = clock()

    def close(self) -> None:
        """Nothing is open."""

    def _show(self) -> None:
        now_s = self._clock()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            self._write(str(self._tally))


class BarSnapshotProgress(_Counting):
    """A bar from the moment the point is known until `close`."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._bar = Progress(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            redirect_stdout=False,  # results go there, perhaps into a pipe; the log goes to stderr
        )
        self._task: TaskID | None = None

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def _show(self) -> None:
        tally = self._tally
        if self._task is None:
            self._task = self._bar.add_task(str(tally), total=None)
            self._bar.start()
        # Nothing is known to be left where there is no estimate; the bar then only moves.
        is_done = tally.tables == tally.tables_total
        total = tally.rows_total if is_done or tally.rows_total > tally.rows else None
        self._bar.update(self._task, completed=tally.rows, total=total, description=str(tally))
