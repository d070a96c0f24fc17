"""Finds and opens the snapshots of a table, and checks that one is whole before any of its rows is used.

Knows the archive and the format; knows nothing of databases. Every fault of a snapshot is a ParseError. The
caller then takes the next older one: that only leaves more change files to apply.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from syncdata.apply.feed.files import Fetched, ask, fetch
from syncdata.apply.position import Position
from syncdata.archive.archive import Archive, SnapshotFile
from syncdata.changes.filenames import is_change_file
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.changes.reader import read_pieces
from syncdata.changes.run import LocatedRecord, Piece, Run, records_in
from syncdata.errors import ParseError, SchemaError, shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A finished snapshot that has been fetched. The change files go on from it at ``position``."""

    table: TableName
    fetched: Fetched
    position: Position

    def records(self) -> Iterator[Piece]:
        """Yield the rows. Raises ParseError at the first record that is no INSERT of the table."""
        for piece in self._pieces():
            if isinstance(piece, Run) and self._are_inserts(piece):
                yield piece
            else:
                yield from map(self._insert, records_in(piece))

    def _are_inserts(self, run: Run) -> bool:
        is_of_table = run.names == {(self.table.schema, self.table.name)}
        return is_of_table and all(outline.op == "INSERT" for outline in run.outlines)

    def _pieces(self) -> Iterator[Piece]:
        fetched = self.fetched
        return read_pieces(fetched.stream, fetched.name, max_record_bytes=fetched.max_record_bytes)

    def _insert(self, located: LocatedRecord) -> LocatedRecord:
        record = located.record
        if record.op != "INSERT" or (record.schema, record.table) != (self.table.schema, self.table.name):
            raise ParseError(
                "a record that is no INSERT of the snapshot's table",
                hint=_hint(self.table),
                file=self.fetched.name,
                line=located.line,
            )
        return located

    def close(self) -> None:
        self.fetched.stream.close()


def find_snapshots(
    archive: Archive, tables: Collection[TableName], *, stop: threading.Event
) -> dict[TableName, list[SnapshotFile]]:
    """Return the snapshots of those of *tables* that have any, newest first.

    Raises DiscoveryError or ArchiveConnectionError, and ReadingStopped once *stop* is set.
    """
    found: dict[TableName, list[SnapshotFile]] = {}
    if tables:
        for file in ask(archive, archive.discover_snapshots, stop=stop):
            if file.table in tables:
                found.setdefault(file.table, []).append(file)
    return found


def open_snapshot(
    archive: Archive, file: SnapshotFile, *, stop: threading.Event, max_record_bytes: int
) -> Snapshot:
    """Fetch *file* and check that it is whole and of the table that its name says.

    Raises ParseError when it is not, FetchError or ArchiveConnectionError, and ReadingStopped.
    """
    fetched = ask(
        archive,
        lambda: fetch(archive, file, stop=stop, max_record_bytes=max_record_bytes),
        stop=stop,
        discard=lambda late: late.stream.close(),
    )
    try:
        snapshot = Snapshot(table=file.table, fetched=fetched, position=_position(fetched, file.table))
        _require_prev(archive, snapshot, stop=stop)
        if (missing := fetched.catalog_error) is not None:
            raise ParseError(missing.message, hint=_hint(file.table), file=missing.file)
        return snapshot
    except BaseException:  # a stop, too
        fetched.stream.close()
        raise


def _position(fetched: Fetched, table: TableName) -> Position:
    inspection = fetched.inspection
    if inspection.error:
        raise inspection.error
    header = inspection.header
    if inspection.unfinished:
        problem = f"the snapshot is not finished: {inspection.unfinished}"
    elif header is None:
        problem = "a file without a header is no snapshot"
    elif not _is_of(table, header):
        problem = "its header names another table than its file name"
    elif (commit_lsn := _commit_lsn(header)) is None:
        problem = "its header does not say at which commit it was taken"
    elif header.prev is not None and not is_change_file(header.prev):
        problem = f"it goes on from {shortened(header.prev)}, which is no change file"
    else:
        return Position(
            file=header.prev or "", is_finished=True, commit_lsn=commit_lsn, source_id=header.source_id
        )
    raise ParseError(problem, hint=_hint(table), file=fetched.name)


def _require_prev(archive: Archive, snapshot: Snapshot, *, stop: threading.Event) -> None:
    """Raise ParseError unless the change file that *snapshot* goes on from is in the archive, or a later one.

    It may have been pruned, and then later ones are there: the first of them proves that it follows. Behind a
    file that never was, nothing would ever follow, and the table would stand there, healthy, for good.
    """
    prev = snapshot.position.file
    if prev and not ask(archive, lambda: archive.reaches(prev), stop=stop):
        raise ParseError(
            f"it goes on from {prev}, but the archive holds neither that file nor a later one",
            hint=f"bring that file back from a copy of the archive, or {_hint(snapshot.table)}",
            file=snapshot.fetched.name,
        )


def _is_of(table: TableName, header: Header) -> bool:
    if header.snapshot == f"{table.schema}.{table.name}":
        return True
    try:
        return header.snapshot is not None and TableName.parse(header.snapshot) == table
    except SchemaError:
        return False


def _commit_lsn(header: Header) -> int | None:
    try:
        return None if header.commit_lsn is None else parse_lsn(header.commit_lsn)
    except ValueError:
        return None


def _hint(table: TableName) -> str:
    return f"take a new one at production: archive_changes --snapshot {table.argument}"
