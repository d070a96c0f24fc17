"""What a person sees of long work: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Tally:
    """How far the files of one cycle are: pure counting, the clock's reading comes in as an argument.

    Sizes are of the files as they are in the archive. Bytes of a file beyond its size are not counted,
    so that a compressed file's contents cannot push the sum past the total.
    """

    def __init__(self, files_total: int, size_bytes: int, now_s: float) -> None:
        self.files_total = files_total
        self.total_bytes = size_bytes
        self.files = 0
        self.records = 0
        self._started_s = now_s
        self._finished_bytes = 0
        self._file_bytes = 0
        self._file_size_bytes = 0

    def start_file(self, size_bytes: int) -> None:
        self._file_bytes, self._file_size_bytes = 0, size_bytes

    def add_batch(self, records: int, size_bytes: int) -> None:
        self.records += records
        self._file_bytes += size_bytes

    def finish_file(self) -> None:
        self.files += 1
        self._finished_bytes += self._file_size_bytes
        self._file_bytes = self._file_size_bytes = 0

    @property
    def done_bytes(self) -> int:
        return self._finished_bytes + min(self._file_bytes, self._file_size_bytes)

    @property
    def is_finished(self) -> bool:
        return self.files == self.files_total

    def rate(self, now_s: float) -> float:
        """Records a second since the start."""
        return self.records / max(now_s - self._started_s, 0.001)

    def left_s(self, now_s: float) -> float | None:
        """Seconds to go at the speed so far; None before anything and after everything is done."""
        if not self.done_bytes or self.done_bytes >= self.total_bytes:
            return None
        return (now_s - self._started_s) * (self.total_bytes - self.done_bytes) / self.done_bytes

    def __str__(self) -> str:
        return f"{self.files:,} of {self.files_total:,} files, {self.records:,} records"


class SyncProgress(Protocol):
    """The cycle's progress port, and what the command must do when the work is over."""

    def files_found(self, count: int, size_bytes: int) -> None: ...
    def file_started(self, name: str, size_bytes: int) -> None: ...
    def batch_applied(self, records: int, size_bytes: int) -> None: ...
    def file_finished(self, name: str) -> None: ...
    def close(self) -> None: ...


def make_progress(stream: TextIO) -> SyncProgress:
    """Return the progress that suits *stream*, which other output should then go to as well."""
    if stream.isatty():
        return BarProgress(Console(file=stream))
    return LineProgress(lambda line: print(line, file=stream, flush=True))


class LineProgress:
    """A line every ten seconds of work, for logs and pipes; a short run needs none."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._tally = Tally(0, 0, clock())
        self._written_s = clock()

    def files_found(self, count: int, size_bytes: int) -> None:
        self._written_s = self._clock()
        self._tally = Tally(count, size_bytes, self._written_s)

    def file_started(self, name: str, size_bytes: int) -> None:
        self._tally.start_file(size_bytes)

    def batch_applied(self, records: int, size_bytes: int) -> None:
        self._tally.add_batch(records, size_bytes)
        self._write_if_due()

    def file_finished(self, name: str) -> None:
        self._tally.finish_file()
        self._write_if_due()

    def close(self) -> None:
        """Nothing is open."""

    def _write_if_due(self) -> None:
        now_s = self._clock()
        if now_s - self._written_s < LINE_EVERY_S:
            return
        self._written_s = now_s
        left_s = self._tally.left_s(now_s)
        left = "" if left_s is None else f", about {format_duration(left_s)} left"
        self._write(f"{self._tally}, {self._tally.rate(now_s):,.0f} records/s{left}")


class BarProgress:
    """A bar while there are files to apply, and no trace of it while the daemon waits."""

    def __init__(self, console: Console) -> None:
        self._tally = Tally(0, 0, time.monotonic())
        self._bar = make_bar(console)
        self._task: TaskID | None = None

    def files_found(self, count: int, size_bytes: int) -> None:
        self.close()
        if not count:
            return
        self._tally = Tally(count, size_bytes, time.monotonic())
        self._task = self._bar.add_task(self._counts(), total=size_bytes)
        self._bar.start()

    def file_started(self, name: str, size_bytes: int) -> None:
        self._tally.start_file(size_bytes)

    def batch_applied(self, records: int, size_bytes: int) -> None:
        self._tally.add_batch(records, size_bytes)
        self._show()

    def file_finished(self, name: str) -> None:
        self._tally.finish_file()
        self._show()
        if self._tally.is_finished:
            self.close()

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._task is None:
            return
        self._bar.stop()
        self._bar.remove_task(self._task)
        self._task = None

    def _show(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=self._tally.done_bytes, description=self._counts())

    def _counts(self) -> str:
        return f"{self._tally}, {self._tally.rate(time.monotonic()):,.0f}/s"


def make_bar(console: Console) -> Progress:
    """Return a bar with percentage, description and time left, not started yet."""
    return Progress(
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        redirect_stdout=False,  # results go there, perhaps into a pipe; the log goes to stderr
    )


def format_duration(seconds: float) -> str:
    """``0.4 s``, ``45 s``, ``3 min``, ``2 h 5 min``"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
