"""Progress as it is reported: files, and the part of each that is done. Knows neither worker nor watcher."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The watcher of a long piece of work: the files of a cycle or a resync, the tables of a snapshot.

    A size is in whatever the work is measured in: for files to apply, their bytes as stored, compressed ones
    too; for tables to copy, their rows as the source estimates them. Each ``files_found`` begins anew, and
    one of no files ends.
    """

    def files_found(self, count: int, size: int, /) -> None: ...

    def file_started(self, name: str, size: int, /) -> None: ...

    def batch_applied(self, records: int, size: int, /) -> None: ...

    def file_finished(self, name: str, /) -> None: ...


class NoProgress:
    """Nobody watches."""

    def files_found(self, count: int, size: int, /) -> None: ...

    def file_started(self, name: str, size: int, /) -> None: ...

    def batch_applied(self, records: int, size: int, /) -> None: ...

    def file_finished(self, name: str, /) -> None: ...
