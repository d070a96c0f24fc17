"""Decides which file may follow a position in the archive, and names the error when another one does. Pure.

Knows headers, positions and the order of files; knows nothing of the records in them.
"""

from __future__ import annotations

import datetime as dt

from syncdata.apply.position import Position
from syncdata.archive.archive import ChangeFile
from syncdata.changes.filenames import is_ahead, is_change_file, stem
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.errors import DiscoveryError, ParseError, shortened

_RESYNC_HINT = "take snapshots of the tables at production (archive_changes --snapshot) and resync them"


def check_position(position: Position) -> None:
    """Raise DiscoveryError when *position* is of a file whose name is none of a change file's.

    Such a file was read before the names were held to their form. Most sort behind every other, and then
    nothing follows it. Test: test_a_table_that_stands_behind_a_stray_copy_says_so.
    """
    if position.file and not is_change_file(position.file):
        raise DiscoveryError(
            "the table stands at a file that is no change file, so it is not known what follows",
            hint=_RESYNC_HINT,
            file=position.file,
        )


def check_plain(position: Position, name: str, now: dt.datetime) -> None:
    """Raise DiscoveryError unless *name*, a file without a header, may follow *position*.

    Behind a file of a chain, every file says which one it follows. Without that, it is a stray copy, or
    another program writes to the archive: taken for a continuation, it would end the chain here.
    """
    if position.source_id:
        raise DiscoveryError(
            f"a gap: a file without a header says not what it follows, but {position.file or 'a snapshot'}"
            " of a chain was applied last",
            hint="move it out of the archive and syncing goes on by itself; where another program than"
            " archive_changes writes there, stop that one",
            file=name,
        )
    if is_ahead(name, now):
        raise DiscoveryError(
            "the time in its name lies days ahead: no file from now on would come behind it",
            hint="rename it in the archive to the time when it was written; where the name is right, set this"
            " machine's clock",
            file=name,
        )


def check_chain(position: Position, header: Header, name: str) -> None:
    """Raise DiscoveryError unless the file with *header* is the one that follows *position*."""
    if position.source_id and position.source_id != header.source_id:
        raise DiscoveryError(
            "the file comes from another source (system, timeline, slot or epoch) than those before it:"
            " changes between the two may be missing",
            hint=_RESYNC_HINT,
            file=name,
        )
    expected = "" if header.prev is None else stem(header.prev)
    is_first_of_chain = header.prev is None and not position.source_id
    if not is_first_of_chain and expected != stem(position.file):
        raise DiscoveryError(
            f"a gap: it follows {shortened(header.prev or 'none')}, but {position.file or 'none'} was applied"
            " last",
            hint=_gap_hint(position, header, name),
            file=name,
        )
    if header.seq == 1 and header.prev is not None and not position.source_id:
        raise DiscoveryError(
            f"a new source begins here, after the plain file {shortened(header.prev)}: changes between"
            " the two may be missing",
            hint=_RESYNC_HINT,
            file=name,
        )


def _gap_hint(position: Position, header: Header, name: str) -> str:
    """Return the way on: a file that follows one that is applied already is a copy, else one is missing."""
    prev = stem(header.prev or "")
    if position.file and prev < stem(position.file):
        return (
            "it is a copy under another name, or another archiver writes to this archive: move it out of the"
            f" archive and syncing goes on by itself; where it belongs there, {_RESYNC_HINT}"
        )
    if header.prev is not None and prev >= stem(name):
        return f"it names no file before it: move it out of the archive, and {_RESYNC_HINT}"
    return (
        "bring the missing file into the archive and syncing goes on by itself; where it is gone for good,"
        f" {_RESYNC_HINT}"
    )


def lost_beginning(table: TableName, name: str, bad_snapshot: ParseError | None) -> DiscoveryError:
    """Return the error for a *table* that cannot begin: its rows from before the first file are lost.

    *name* is that file. They are lost where the table stands at the archive's beginning and *name* follows
    another file, which was pruned. *bad_snapshot*: the error of its newest snapshot, where it has some and
    none is good.
    """
    why = (
        f"no snapshot of it is good ({bad_snapshot.place}: {bad_snapshot.message})"
        if bad_snapshot
        else "there is no snapshot of it"
    )
    return DiscoveryError(
        f"the archive no longer holds the history of this table from its beginning, and {why}",
        hint=f"run 'archive_changes --snapshot {table.argument}' at production; the table goes on by itself"
        " when the snapshot is there",
        table=str(table),
        file=name,
    )


def files_after(position: Position, files: list[ChangeFile]) -> list[ChangeFile]:
    """Return the *files* that may hold records after *position*: newer ones, and its own if it goes on."""
    own = stem(position.file)
    return [file for file in files if file.stem > own or (file.stem == own and _goes_on(position, file))]


def lost_part(position: Position, files: list[ChangeFile]) -> DiscoveryError | None:
    """Return the error when the file that *position* lies in has gone while newer files are there."""
    own = stem(position.file)
    if not own or position.is_finished or not files or any(file.stem == own for file in files):
        return None
    return DiscoveryError(
        f"the file is gone from the archive, but only {position.record_number} of its records were applied",
        hint=f"put it back and syncing goes on by itself; where it is gone for good, {_RESYNC_HINT}",
        file=position.file,
    )


def _goes_on(position: Position, file: ChangeFile) -> bool:
    """Tell whether *file*, the one that *position* lies in, may hold records beyond it.

    A file that was applied in part does; so does a plain one that has grown since all of it was applied.
    """
    if not position.is_finished:
        return True
    if position.file_size is None or position.source_id:
        return False
    # A file that was compressed since may have grown before that; only a look inside tells.
    # Test: test_a_plain_file_that_grew_before_it_was_compressed_goes_on.
    return file.name != position.file or file.size_bytes > position.file_size
