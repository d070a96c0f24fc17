"""The protocol by which long work reports its progress. Knows neither the work nor its display."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The watcher of a long piece of work: the files of a cycle or a resync, the tables of a snapshot.

    A size is in whatever the work is measured in: for files to apply, their bytes as stored, compressed ones
    too; for tables to copy, their rows as the source estimates them. ``files_found`` begins a new piece of
    work; with a count of 0 there is none, and the display of the last one ends.
    """

    def files_found(self, count: int, size: int, /) -> None: ...

    def file_started(self, name: str, size: int, /) -> None: ...

    def batch_applied(self, records: int, size: int, /) -> None: ...

    def file_finished(self, name: str, /) -> None: ...


class NoProgress:
    """Progress that nobody watches: every report is ignored."""

    def files_found(self, count: int, size: int, /) -> None: ...

    def file_started(self, name: str, size: int, /) -> None: ...

    def batch_applied(self, records: int, size: int, /) -> None: ...

    def file_finished(self, name: str, /) -> None: ...
