"""Keeps the checkpoints that were read last, and reads again only those that have changed.

Knows whitelist and checkpoints as rows; knows nothing of what is done with them. Whatever writes a row makes
a version of it with another xmin, the transaction that wrote it. So a row that was read as the version of a
transaction is what it was while it is the version of that transaction. Source: "System Columns" of the
PostgreSQL documentation.

Mostly all rows are versions of one transaction: the last batch, which has moved them. The server is told
which transactions are known; it answers with the rows of others, and the number of those that it leaves out.
Where that is not the expected number, a row has gone, and all are read anew. An example, with 1,000 tables:

    transaction 7001 applies a record of orders   known: {7001}, unread: {orders}; the other 999 are what they
                                                  were, but for their position, and so are not read
    transaction 7002 pauses customers             1 row is read for being unread, 1 for being of 7002, and 998
                                                  are left out, as expected

Test: test_what_is_kept_is_what_the_database_holds_whatever_happens_to_it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, Cursor

from syncdata.apply.position import Position
from syncdata.apply.state.checkpoints import (
    COLUMNS,
    OF_WHITELIST,
    CheckpointMovedError,
    TableCheckpoint,
    array_text,
    ask,
    checkpoint_of,
    names_text,
    open_checkpoints,
    read_checkpoints_of,
)
from syncdata.changes.names import TableName

# The number of rows and the sum of their versions, of the whitelist and of the checkpoints.
Versions = tuple[tuple[int, str], tuple[int, str]]

_WHITELIST = """
SELECT count(*) AS number, sum(hashint8extended(id, xmin::text::bigint))::text AS versions FROM tables_to_sync
"""

_VERSIONS = f"""
SELECT w.number, w.versions, c.number, c.versions
FROM ({_WHITELIST}) AS w,
     (SELECT count(*) AS number, sum(hashint8extended(id, xmin::text::bigint))::text AS versions
      FROM data_sync_checkpoints) AS c
"""

_IS_LEFT_OUT = "c.xmin = ANY(%(known)s::xid[]) AND table_name <> ALL(%(unread)s::text[])"

# What is the same in each row, and a checkpoint, whose columns are NULL where there is none to be read. It is
# one statement, so that all of it is of one moment.
_CHANGED = f"""
SELECT w.number, w.versions, left_out.number, changed.*
FROM ({_WHITELIST}) AS w CROSS JOIN
    (SELECT count(*) AS number FROM {OF_WHITELIST} WHERE {_IS_LEFT_OUT}) AS left_out LEFT JOIN
    (SELECT c.xmin::text AS version, {COLUMNS} FROM {OF_WHITELIST} WHERE NOT ({_IS_LEFT_OUT})) AS changed
    ON true
ORDER BY table_name
"""

# Whoever locks several checkpoints takes them in this order.
_LOCK = f"""
SELECT pg_current_xact_id()::xid::text, count(*) FROM (
    SELECT FROM {OF_WHITELIST} WHERE table_name = ANY(%(names)s::text[]) ORDER BY table_name FOR UPDATE OF c
) AS locked
"""

# The server is told of so many transactions. Rows of others, of which there are few, are read each time.
_MOST_KNOWN = 8


def read_versions(connection: Connection[Any]) -> Versions:
    """Return which versions whitelist and checkpoints have; equal while nothing in them has changed."""
    row = connection.execute(_VERSIONS).fetchone()
    assert row is not None
    return (row[0], row[1]), (row[2], row[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks:
    """Questions to the server: for locks on the checkpoints of *tables*, and for those that have changed.
    ``is_whole``: for all of them, since nothing was known."""

    tables: Collection[TableName]
    locks: Cursor[tuple[Any, ...]]
    look: Cursor[tuple[Any, ...]]
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedCheckpoints:
    """Checkpoints that are locked until the transaction ends, whose id as a row's xmin is ``version``."""

    checkpoints: list[TableCheckpoint]
    version: str


class KeptCheckpoints:
    """The checkpoints of all whitelisted tables. Works inside the caller's transaction, which has written to
    none of them before."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._whitelist: tuple[int, str] | None = None
        self._versions: dict[TableName, str] = {}
        self._checkpoints: dict[TableName, TableCheckpoint] = {}
        # Tables whose checkpoints are to be read, though they may be versions of a transaction that is known.
        self._unread: set[TableName] = set()

    def read(self) -> list[TableCheckpoint]:
        """Return what `open_checkpoints` would."""
        if self._whitelist is not None and self._take_in(self._send_look().fetchall()):
            return list(self._checkpoints.values())
        before = read_versions(self._connection)
        checkpoints = open_checkpoints(self._connection)
        # Where that has written something, it may be rolled back, and another look is due.
        if read_versions(self._connection) == before:
            self._whitelist = before[0]
        return checkpoints

    def send_locks(self, tables: Collection[TableName]) -> Locks:
        """Ask for locks on the checkpoints of *tables*, and then for those that have changed."""
        locks = ask(self._connection, _LOCK, names=names_text(tables))
        return Locks(tables=tables, locks=locks, look=self._send_look(), is_whole=not self._versions)

    def locked(self, sent: Locks) -> LockedCheckpoints:
        """Return the checkpoints that are locked, once the answers are there.

        Raises CheckpointMovedError where one is not whitelisted, or was replaced while it was waited for:
        neither the row nor its successor is locked. Test:
        test_a_batch_does_not_go_on_with_a_checkpoint_that_is_replaced_meanwhile.
        """
        [(version, number)] = sent.locks.fetchall()
        if number != len(sent.tables):
            raise CheckpointMovedError
        rows = sent.look.fetchall()
        if self._take_in(rows):
            checkpoints = [self._checkpoints[table] for table in sent.tables]
        elif sent.is_whole:
            # The look before has opened a checkpoint, of a new table: then nothing is kept.
            names = {str(table) for table in sent.tables}
            checkpoints = [checkpoint_of(tuple(row)) for _, _, _, _, *row in rows if row[1] in names]
        else:
            checkpoints = read_checkpoints_of(self._connection, sent.tables)
        return LockedCheckpoints(checkpoints=checkpoints, version=version)

    def note_moved(
        self, locked: LockedCheckpoints, tables: Collection[TableName], position: Position
    ) -> None:
        """Note that the transaction of *locked* has committed. All it wrote in the checkpoints of *tables* is
        that they are at *position* and active; in the others that were locked it may have written anything.
        """
        if not self._checkpoints:
            return
        for old in locked.checkpoints:
            if old.table not in tables:
                self._unread.add(old.table)
                continue
            self._versions[old.table] = locked.version
            self._checkpoints[old.table] = TableCheckpoint(
                table=old.table,
                position=position,
                skips=old.skips,
                marks=old.marks,
                local_oid=old.local_oid,
                id=old.id,
            )

    def _send_look(self) -> Cursor[tuple[Any, ...]]:
        """Ask for the rows that have changed, which `_take_in` takes in."""
        numbers = Counter(self._versions.values()).most_common(_MOST_KNOWN)
        known = array_text(version for version, _ in numbers)
        return ask(self._connection, _CHANGED, known=known, unread=names_text(self._unread))

    def _take_in(self, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Keep the rows that have changed. False, and nothing is known any more, where the whitelist is not
        what it was, or a row has gone."""
        number, versions, left_out, *_ = rows[0]
        # First: where a name is new, it may be none, or of a table that must not be synced.
        if self._whitelist == (number, versions):
            changed = 0
            for _, _, _, version, *row in rows:
                if version is not None:
                    checkpoint = checkpoint_of(tuple(row))
                    self._versions[checkpoint.table] = version
                    self._checkpoints[checkpoint.table] = checkpoint
                    self._unread.discard(checkpoint.table)
                    changed += 1
            if number == left_out + changed == len(self._checkpoints):
                return True
        self._whitelist, self._versions, self._checkpoints, self._unread = None, {}, {}, set()
        return False
