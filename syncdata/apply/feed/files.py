"""Fetches a file of the archive, inspects it, and cuts it into batches.

Knows archives, files and threads; knows nothing of the order of files, of rows, or of where batches go.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, TypeVar

from syncdata.apply.plan.batches import Batch, BatchFile, Limits, cut_batches, no_check
from syncdata.archive.archive import Archive, ArchivedFile
from syncdata.changes.catalog import Catalog
from syncdata.changes.names import TableName
from syncdata.changes.proof import Count
from syncdata.changes.reader import DEFAULT_MAX_RECORD_BYTES, Inspection, LocatedCheck, inspect
from syncdata.changes.run import LocatedRecord, Piece, Run
from syncdata.changes.verification import Check
from syncdata.errors import DiscoveryError, FetchError, ParseError
from syncdata.runtime.bounded_stream import ReadingStopped, up_to
from syncdata.runtime.interruptible import interruptible
from syncdata.runtime.prefetch import prefetch

T = TypeVar("T")

# A file of this size is read once, into memory: to read it twice, through all that stands between, would take
# longer than its records do.
SMALL_FILE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A change file or a snapshot that has been fetched and inspected. ``catalogs``: those that it names, by
    digest; ``catalog_error`` is set when one is missing or broken. No record longer than
    ``max_record_bytes`` is read."""

    name: str
    stream: BinaryIO
    size_bytes: int
    inspection: Inspection
    catalogs: Mapping[str, Catalog] = field(default_factory=dict)
    catalog_error: ParseError | DiscoveryError | None = None
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES

    @property
    def batch_file(self) -> BatchFile:
        return BatchFile(name=self.name, is_plain=self.inspection.header is None, catalogs=self.catalogs)

    def share_of(self, text_bytes: int) -> int:
        """Return how many of ``size_bytes``, perhaps compressed, stand for *text_bytes* of its text."""
        return round(text_bytes / max(self.inspection.text_bytes, 1) * self.size_bytes)


def fetch(
    archive: Archive,
    file: ArchivedFile,
    *,
    stop: threading.Event,
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> Fetched:
    """Fetch *file* and inspect all of it.

    Raises FetchError or ArchiveConnectionError, and ReadingStopped once *stop* is set. A broken file raises
    nothing here: its inspection says what is wrong with it. Nor does a catalog that is missing or broken.
    """
    stream = archive.fetch(file)
    size_bytes = stream.seek(0, os.SEEK_END)
    stream = up_to(stream, size_bytes, stop=stop)
    try:
        if size_bytes < file.size_bytes:
            raise FetchError(
                f"it holds {size_bytes} bytes, but {file.size_bytes} when the archive was listed",
                hint="files of an archive must not be rewritten; it is fetched again in the next cycle",
                file=file.name,
            )
        if size_bytes <= SMALL_FILE_BYTES:
            stream = _in_memory(stream, size_bytes)
        inspection = inspect(stream, file.name, max_record_bytes=max_record_bytes)
        if archive.keys is not None:
            inspection = archive.keys.checked(file.name, inspection)
        catalogs, error = _read_catalogs(archive, inspection)
    except BaseException:  # a stop, too
        stream.close()
        raise
    return Fetched(
        name=file.name,
        stream=stream,
        size_bytes=size_bytes,
        inspection=inspection,
        catalogs=catalogs,
        catalog_error=error,
        max_record_bytes=max_record_bytes,
    )


def _in_memory(stream: BinaryIO, size_bytes: int) -> BinaryIO:
    with stream:
        return io.BytesIO(stream.read(size_bytes))


def fetch_all(
    archive: Archive, files: Iterable[ArchivedFile], *, stop: threading.Event, max_record_bytes: int
) -> Generator[Fetched]:
    """Yield *files*, the next being fetched while the caller works on one and closes it; a stop ends it."""
    return prefetch(
        (fetch(archive, file, stop=stop, max_record_bytes=max_record_bytes) for file in files),
        name="syncdata-fetch",
        discard=lambda fetched: fetched.stream.close(),
        stop=stop,
        interrupt=archive.close,
    )


def _read_catalogs(
    archive: Archive, inspection: Inspection
) -> tuple[dict[str, Catalog], ParseError | DiscoveryError | None]:
    """Read the catalogs that a file names; without them, or with a part, where one is missing or broken."""
    catalogs: dict[str, Catalog] = {}
    try:
        for digest in sorted(inspection.digests):
            catalogs[digest] = archive.read_catalog(digest)
    except (ParseError, DiscoveryError) as error:
        return catalogs, error
    return catalogs, None


def ask(
    archive: Archive,
    question: Callable[[], T],
    *,
    stop: threading.Event,
    discard: Callable[[T], None] = lambda answer: None,
) -> T:
    """Return the answer to *question*, which may wait for the archive's host; a stop ends the wait.

    An answer that comes after the stop goes to *discard*. Raises what *question* raises, and ReadingStopped
    once *stop* is set.
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


def read_batches(
    fetched: Fetched,
    records: Iterable[Piece | LocatedCheck],
    *,
    watermarks: Mapping[TableName, int | None],
    limits: Limits,
    start_record: int = 0,
    until_record: int | None = None,
    is_wanted: Callable[[Check], bool] = no_check,
) -> Iterator[Batch]:
    """Cut *records*, which are those of *fetched* after *start_record*, into batches (see `cut_batches`).

    Raises ParseError, too, when the file's footer counts its records or transactions otherwise, or its
    commits run backwards.
    """
    footer = fetched.inspection.footer
    count = Count()
    segments = cut_batches(
        records if footer is None else _counted(records, count, fetched.name),
        file=fetched.batch_file,
        watermarks=watermarks,
        limits=limits,
        start_record=start_record,
        until_record=until_record,
        catalog=fetched.inspection.catalog,
        is_wanted=is_wanted,
    )
    for segment in segments:
        # Checked before the file's last batch is handed on: once that is applied, the file counts as applied.
        if footer and segment.ends_file and segment.end_record != footer.records:
            raise ParseError(
                f"the file holds {segment.end_record} records, but its footer says {footer.records}",
                hint="replace the file in the archive by a good copy; syncing goes on by itself",
                file=fetched.name,
            )
        if footer and segment.ends_file and not start_record:
            count.require(footer, fetched.name)
        last = fetched.inspection.last_catalog
        if segment.ends_file and last is not None and last != segment.catalog and segment.catalog is not None:
            # Test: test_a_catalog_announced_behind_the_last_record_holds_from_there_on.
            if segment.size_bytes or segment.checks:
                yield Batch(segments=(replace(segment, ends_file=False),))
            segment = replace(
                segment, records=[], skipped=0, repeated=0, size_bytes=0, catalog=last, checks=()
            )
        yield Batch(segments=(segment,))


def _counted(
    records: Iterable[Piece | LocatedCheck], count: Count, name: str
) -> Iterator[Piece | LocatedCheck]:
    for piece in records:
        if isinstance(piece, Run):
            count.add_run(piece, name)
        elif isinstance(piece, LocatedRecord):
            count.add(piece.record, name)
        yield piece
