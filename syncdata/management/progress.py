"""Progress as a person sees it: a bar on a terminal, a line now and then anywhere else.

Knows how it looks; knows nothing of the work: that reports to the protocol of runtime/progress.py, and
`Words` say it in the work's own terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Tally:
    """The counts of one piece of work: files, records and sizes. The time comes in as an argument.

    Sizes are bytes of files as stored, or estimated rows of tables. No file counts for more than its size, so
    a compressed file, or a table that is larger than estimated, does not push the sum past the total.
    """

    def __init__(self, files_total: int, size_total: int, now_s: float) -> None:
        self.files_total = files_total
        self.size_total = size_total
        self.files = 0
        self.records = 0
        self.name = ""
        self.file_records = 0
        self.file_size = 0
        self._started_s = now_s
        self._finished_size = 0
        self._file_done = 0

    def start_file(self, name: str, size: int) -> None:
        self.name, self.file_size = name, size
        self.file_records = self._file_done = 0

    def add_batch(self, records: int, size: int) -> None:
        self.records += records
        self.file_records += records
        self._file_done += size

    def finish_file(self) -> None:
        self.files += 1
        self._finished_size += self.file_size
        self._file_done = 0

    @property
    def size_done(self) -> int:
        return self._finished_size + min(self._file_done, self.file_size)

    @property
    def is_finished(self) -> bool:
        return self.files == self.files_total

    def rate(self, now_s: float) -> float:
        """Records a second since the start."""
        return self.records / max(now_s - self._started_s, 0.001)

    def left_s(self, now_s: float) -> float | None:
        """Seconds to go at the speed so far; None before anything and after everything is done."""
        if not self.size_done or self.size_done >= self.size_total:
            return None
        return (now_s - self._started_s) * (self.size_total - self.size_done) / self.size_done


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The wording of a tally: ``line`` for a line of its own, ``bar`` for the text beside a bar."""

    line: Callable[[Tally, float], str]
    bar: Callable[[Tally, float], str]


def _sync_line(tally: Tally, now_s: float) -> str:
    left_s = tally.left_s(now_s)
    left = "" if left_s is None else f", about {format_duration(left_s)} left"
    return f"{_counts(tally)}, {tally.rate(now_s):,.0f} records/s{left}"


def _sync_bar(tally: Tally, now_s: float) -> str:
    return f"{_counts(tally)}, {tally.rate(now_s):,.0f}/s"


def _counts(tally: Tally) -> str:
    return f"{tally.files:,} of {tally.files_total:,} files, {tally.records:,} records"


def _snapshot_line(tally: Tally, now_s: float) -> str:
    about = f" of about {tally.file_size:,}" if tally.file_size >= tally.file_records else ""
    return f"snapshot of {tally.name}: {tally.file_records:,}{about} rows"


def _snapshot_bar(tally: Tally, now_s: float) -> str:
    return f"{tally.name}: {tally.file_records:,} rows" if tally.name else "snapshot"


def _prune_words(tally: Tally, now_s: float) -> str:
    return f"removed {tally.records:,} of {tally.size_total:,} entries"


SYNC_WORDS = Words(line=_sync_line, bar=_sync_bar)
SNAPSHOT_WORDS = Words(line=_snapshot_line, bar=_snapshot_bar)
PRUNE_WORDS = Words(line=_prune_words, bar=_prune_words)


def make_progress(stream: TextIO, words: Words = SYNC_WORDS) -> LineProgress | BarProgress:
    """Return the progress that suits *stream*; close it when the work is over."""
    if stream.isatty():
        return BarProgress(Console(file=stream), words)
    return LineProgress(lambda line: print(line, file=stream, flush=True), words)


class LineProgress:
    """A line every ten seconds of work, for logs and pipes; a short run needs none."""

    def __init__(
        self,
        write: Callable[[str], None],
        words: Words = SYNC_WORDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._words = words
        self._clock = clock
        self._written_s = clock()
        self._tally = Tally(0, 0, self._written_s)

    def files_found(self, count: int, size: int) -> None:
        self._written_s = self._clock()
        self._tally = Tally(count, size, self._written_s)

    def file_started(self, name: str, size: int) -> None:
        self._tally.start_file(name, size)

    def batch_applied(self, records: int, size: int) -> None:
        self._tally.add_batch(records, size)
        self._write_if_due()

    def file_finished(self, name: str) -> None:
        self._tally.finish_file()
        self._write_if_due()

    def close(self) -> None:
        """Do nothing: no line is left open."""

    def _write_if_due(self) -> None:
        now_s = self._clock()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            self._write(self._words.line(self._tally, now_s))


class BarProgress:
    """A bar while there is work, and no trace of it while the daemon waits."""

    def __init__(self, console: Console, words: Words = SYNC_WORDS) -> None:
        self._words = words
        self._tally = Tally(0, 0, time.monotonic())
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

    def files_found(self, count: int, size: int) -> None:
        self.close()
        if not count:
            return
        self._tally = Tally(count, size, time.monotonic())
        # With an unknown size, the bar shows movement only.
        self._task = self._bar.add_task(self._text(), total=size or None)
        self._bar.start()

    def file_started(self, name: str, size: int) -> None:
        self._tally.start_file(name, size)

    def batch_applied(self, records: int, size: int) -> None:
        self._tally.add_batch(records, size)
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
            self._bar.update(self._task, completed=self._tally.size_done, description=self._text())

    def _text(self) -> str:
        return self._words.bar(self._tally, time.monotonic())


def format_duration(seconds: float) -> str:
    """Return a duration as text: ``0.4 s``, ``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
