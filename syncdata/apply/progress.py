"""Progress that is noted for other processes to see. Knows neither the database nor the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from syncdata.runtime.progress import NoProgress as NoProgress
from syncdata.runtime.progress import Progress as Progress

_NOTE_EVERY_S = 1.0


class WaitingProgress:
    """Notes how many files and bytes some table still has to go through; passes every report on to *shown*.

    Files that one group of tables has not gone through (the tables blocked, or the newest file is still being
    written) go on counting while the next group is at work.
    """

    def __init__(self, note: Callable[[int, int], None], shown: Progress | None = None) -> None:
        self._note = note
        self._shown = shown or NoProgress()
        self._sizes: dict[str, int] = {}
        self._left = (0, 0)
        self._files = self._size_bytes = 0
        self._noted_at = 0.0

    def files_found(self, count: int, size_bytes: int) -> None:
        self._shown.files_found(count, size_bytes)
        self._left = max(self._left, (self._files, self._size_bytes))
        self._files, self._size_bytes = count, size_bytes
        self._write()

    def file_started(self, name: str, size_bytes: int) -> None:
        self._shown.file_started(name, size_bytes)
        self._sizes = {name: size_bytes}

    def batch_applied(self, records: int, size_bytes: int) -> None:
        self._shown.batch_applied(records, size_bytes)

    def file_finished(self, name: str) -> None:
        self._shown.file_finished(name)
        self._files -= 1
        self._size_bytes -= self._sizes.get(name, 0)
        if time.monotonic() - self._noted_at >= _NOTE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._noted_at = time.monotonic()
        files, size_bytes = max(self._left, (self._files, self._size_bytes))
        self._note(files, max(size_bytes, 0))


class RequestProgress:
    """Notes how far a resync is, about once a second, as ``42 % (12,345 records)``."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._records = self._total_bytes = self._done_bytes = 0
        self._noted_at = 0.0

    def files_found(self, count: int, size_bytes: int) -> None:
        self._total_bytes, self._done_bytes = size_bytes, 0

    def file_started(self, name: str, size_bytes: int) -> None:
        """Do nothing: the file's bytes count as they are applied."""

    def batch_applied(self, records: int, size_bytes: int) -> None:
        self._records += records
        self._done_bytes += size_bytes
        if time.monotonic() - self._noted_at >= _NOTE_EVERY_S:
            self._noted_at = time.monotonic()
            share = min(self._done_bytes / max(self._total_bytes, 1), 1.0)
            self._note(f"{share:.0%} ({self._records:,} records)")

    def file_finished(self, name: str) -> None:
        """Do nothing: the count goes on with the next file."""
