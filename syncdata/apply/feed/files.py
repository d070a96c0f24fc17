"""A file of the archive at hand: fetched, looked over, and its batches made ready while the server works.

Knows archives, files and threads; knows nothing of what follows what, or where rows go.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from syncdata.apply.plan.batches import Batch
from syncdata.apply.plan.prepare import PreparedBatch, prepare
from syncdata.apply.plan.schema import TableSchema
from syncdata.archive.archive import Archive, ArchivedFile
from syncdata.changes.names import TableName
from syncdata.changes.reader import Inspection, inspect
from syncdata.errors import ParseError
from syncdata.runtime.bounded_stream import ReadingStopped, up_to
from syncdata.runtime.interruptible import interruptible

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A change file or a snapshot at hand."""

    name: str
    stream: BinaryIO
    size_bytes: int
    inspection: Inspection

    def share_of(self, text_bytes: int) -> int:
        """How many of ``size_bytes`` stand for *text_bytes* of what the file holds."""
        return round(text_bytes / max(self.inspection.text_bytes, 1) * self.size_bytes)


def fetch(archive: Archive, file: ArchivedFile, *, stop: threading.Event) -> Fetched:
    """Fetch *file* and look over all of it.

    Raises FetchError or ArchiveConnectionError, and ReadingStopped once *stop* is set. What is wrong with
    the file itself is in the inspection.
    """
    stream = archive.fetch(file)
    size_bytes = stream.seek(0, os.SEEK_END)
    stream = up_to(stream, size_bytes, stop=stop)
    try:
        inspection = inspect(stream, file.name)
    except BaseException:  # a stop, too
        stream.close()
        raise
    return Fetched(name=file.name, stream=stream, size_bytes=size_bytes, inspection=inspection)


def ask(
    archive: Archive,
    question: Callable[[], T],
    *,
    stop: threading.Event,
    discard: Callable[[T], None] = lambda answer: None,
) -> T:
    """Return *question*'s answer; however long the archive's host takes, a stop comes first.

    Raises what *question* raises, and ReadingStopped.
    """
    try:
        answer = interruptible(question, stop=stop, interrupt=archive.close)
    except Exception as error:
        if stop.is_set():
            raise ReadingStopped from error
        raise
    if stop.is_set():
        discard(answer)
        raise ReadingStopped
    return answer


def prepare_all(
    batches: Iterator[Batch], schemas: Mapping[TableName, TableSchema], fetched: Fetched
) -> Iterator[PreparedBatch]:
    """Yield *batches* of the file ready to be applied. Raises ParseError when its footer counts otherwise."""
    footer = fetched.inspection.footer
    is_plain = fetched.inspection.header is None
    for batch in batches:
        if footer and batch.ends_file and batch.end_record != footer.records:
            raise ParseError(
                f"the file holds {batch.end_record} records, but its footer says {footer.records}",
                hint="replace the file in the archive by a good copy; syncing goes on by itself",
                file=fetched.name,
            )
        yield prepare(batch, schemas, file=fetched.name, is_plain_file=is_plain)
