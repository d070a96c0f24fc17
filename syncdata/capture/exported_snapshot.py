"""The source's tables as they are at one exactly known commit. Knows SQL and the replication protocol's
``CREATE_REPLICATION_SLOT``; knows nothing of files.

When PostgreSQL makes a logical slot, it finds a point in the WAL, say 0/16B3D50, where a snapshot and the
stream meet: the snapshot has every transaction that committed before the point, the stream every one after
it. A temporary slot with ``USE_SNAPSHOT`` gives our transaction that snapshot. Then the slot is dropped, so
that a long copy pins no WAL. For the copy to be complete, three more things must hold:

1. The tables are in the publication before the slot is made. Making the slot waits for all transactions that
   run, so none that changed a table before it was published commits after the point.
2. The tables are locked against rewriting as soon as the point is known, and none was rewritten between. A
   table that was truncated or rewritten looks empty to an older snapshot.
3. Row-level security is off (``row_security = off``): then a table whose rows it hides is an error; with it
   on, the copy would lack those rows silently.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from syncdata.capture.copied_rows import blocks_of
from syncdata.capture.published import Look, look_at
from syncdata.capture.refusals import copy_error, snapshot_error, snapshot_login_error
from syncdata.capture.slot import Slot, read_slot
from syncdata.capture.source import SystemIdentity, connect_for_replication, read_identity
from syncdata.capture.waits import WaitTeller
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.errors import SnapshotError
from syncdata.runtime.interruptible import interruptible

T = TypeVar("T")

_POINT_TRIES = 3

# Read once before the slot is made, and once in its snapshot. There `relfilenode` is the snapshot's and
# `pg_relation_filenode` is that of now: they differ when the table was rewritten between. The names are
# literals, since a replication connection takes no parameters (see `connect_for_replication`).
_TABLES = """
SELECT wanted.schema, wanted.name, c.relkind::text AS kind, current_user::text AS role,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use_schema,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS may_select,
       coalesce(row_security_active(c.oid), false) AS hides_rows,
       p.tablename IS NOT NULL AS is_published,
       to_jsonb(p) ->> 'rowfilter' AS row_filter,
       ARRAY(
           SELECT a.attname::text FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           -- From 18 on the view says exactly which; before, generated columns are never in the stream.
           AND coalesce(to_jsonb(p) -> 'attnames' ? a.attname::text, true)
           AND (a.attgenerated = '' OR current_setting('server_version_num')::int >= 180000)
           ORDER BY a.attnum
       ) AS columns,
       coalesce(members.rows, 0) AS rows,
       coalesce(members.is_rewritten, false) AS is_rewritten
FROM (VALUES {wanted}) AS wanted (position, schema, name)
LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
LEFT JOIN pg_publication_tables p
    ON p.pubname = {publication} AND p.schemaname = n.nspname AND p.tablename = c.relname
CROSS JOIN LATERAL (
    SELECT sum(greatest(m.reltuples, 0))::bigint AS rows,
           bool_or(m.relfilenode IS DISTINCT FROM pg_relation_filenode(m.oid)) AS is_rewritten
    FROM pg_class m
    WHERE m.relkind = 'r' AND m.oid IN (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid))
) AS members
ORDER BY wanted.position
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedTable:
    """A table to copy. ``columns`` are those whose values are also in the stream; ``rows`` is the source's
    estimate of their number, 0 when it has none. ``has_leaves``: it is partitioned. ``row_filter``: the
    publication's condition, as SQL; the stream has no changes of other rows."""

    name: TableName
    columns: tuple[str, ...]
    rows: int
    has_leaves: bool
    row_filter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The moment of a snapshot: it holds every transaction that commits at ``commit_lsn`` or earlier, and
    none that commits later. ``refused``: the errors of tables that cannot be copied completely."""

    commit_lsn: int
    tables: tuple[CopiedTable, ...]
    refused: tuple[SnapshotError, ...] = ()


class ConsistentSource:
    """A connection to the source that shows it as it was at one `Point`; made by `open_consistent`.

    Its methods also raise psycopg.Error, which `open_consistent` translates.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        params: Mapping[str, Any],
        publication: str,
        stop: threading.Event,
    ) -> None:
        self._connection = connection
        self._params = params
        self._publication = publication
        self._stop = stop

    def identify(self) -> SystemIdentity:
        return read_identity(self._connection)

    def slot(self, name: str) -> Slot | None:
        return read_slot(self._connection, name)

    def begin(self, tables: Sequence[TableName]) -> Point:
        """Find a point, and from now on show *tables* as they are at it; return it.

        Waits for the transactions that run at the source, and logs that it waits. A table that cannot be
        copied completely, or whose later changes would not be in the stream, is refused, and the others are
        copied; raises SnapshotError where none is left.
        """
        refused: list[SnapshotError] = []
        tables = list(tables)
        for row in self._read(tables):
            if (refusal := _refusal(row, self._publication)) is not None:
                refused.append(refusal)
                tables.remove(TableName(row["schema"], row["name"]))
        if not tables:
            raise refused[0]
        for _ in range(_POINT_TRIES):
            consistent_point = self._find_point()
            self._lock(tables)
            rows = self._read(tables)
            if not any(row["is_rewritten"] for row in rows):
                # The slot's point is where the next WAL record begins, and a commit LSN is where its record
                # begins. So a commit at the point is already after it, and the last one before it is below.
                return Point(
                    commit_lsn=consistent_point - 1,
                    tables=tuple(map(_table, rows)),
                    refused=tuple(refused),
                )
            self._connection.execute("ROLLBACK")
        raise SnapshotError(
            "the table was truncated or rewritten each time the snapshot began",
            hint="take the snapshot again when nothing alters the table",
            table=next(str(TableName(row["schema"], row["name"])) for row in rows if row["is_rewritten"]),
        )

    def look(self, *, with_constraints: bool = False, slot_name: str = "") -> Look:
        """Return what is published at the point that `begin` has found. The options: see `look_at`."""
        return look_at(
            self._connection, self._publication, with_constraints=with_constraints, slot_name=slot_name
        )

    def blocks(self, table: CopiedTable) -> Iterator[bytes]:
        """Yield the table's rows, many at a time, in the text form of COPY.

        Raises SnapshotError, with the table, where the source cannot hand them over; the next table can be
        copied all the same. Test: test_a_row_that_cannot_be_copied_keeps_only_its_own_table_back.
        """
        self._connection.execute("SAVEPOINT one_table")
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        # ONLY leaves out children by inheritance: they are published under their own names. Leaf partitions
        # are published under their root's name, so a partitioned table is copied with them.
        only = sql.SQL("" if table.has_leaves else "ONLY ")
        # The condition is the server's own text.
        where = sql.SQL("" if table.row_filter is None else f" WHERE {table.row_filter}")
        copy_out = sql.SQL("COPY (SELECT {} FROM {}{}{}) TO STDOUT").format(
            columns, only, sql.Identifier(table.name.schema, table.name.name), where
        )
        try:
            with self._connection.cursor().copy(copy_out) as copy:
                yield from blocks_of(copy)  # the server sends a row at a time
        except psycopg.Error as error:
            if self._connection.broken:
                raise
            self._connection.execute("ROLLBACK TO SAVEPOINT one_table")
            raise copy_error(error, str(table.name)) from error
        self._connection.execute("RELEASE SAVEPOINT one_table")

    def _read(self, tables: Sequence[TableName]) -> list[dict[str, Any]]:
        wanted = sql.SQL(", ").join(
            sql.SQL("({}, {}::text, {}::text)").format(position, table.schema, table.name)
            for position, table in enumerate(tables)
        )
        query = sql.SQL(_TABLES).format(wanted=wanted, publication=self._publication)
        # Patiently: PostgreSQL opens each table to tell which of its columns are published.
        cursor = self._connection.cursor(row_factory=dict_row)
        return self._patiently(lambda: cursor.execute(query).fetchall())

    def _find_point(self) -> int:
        name = sql.Identifier(f"syncdata_snapshot_{secrets.token_hex(8)}")
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput USE_SNAPSHOT").format(name)
        row = self._patiently(lambda: self._connection.execute(create)).fetchone()
        assert row is not None
        self._connection.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(name))
        return parse_lsn(row[1])

    def _lock(self, tables: Sequence[TableName]) -> None:
        names = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
        lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names)
        self._patiently(lambda: self._connection.execute(lock))

    def _patiently(self, statement: Callable[[], T]) -> T:
        """Execute a statement that may wait for other sessions; log for whom, and end at a stop."""
        pid = self._connection.info.backend_pid
        teller = WaitTeller(self._params, "the snapshot", pid=pid)
        return interruptible(
            statement,
            stop=self._stop,
            interrupt=self._connection.cancel_safe,
            waiting=teller.tell,
        )


@contextmanager
def open_consistent(
    params: Mapping[str, Any], publication: str, stop: threading.Event
) -> Iterator[ConsistentSource]:
    """Connect to the source for the block; afterwards the source keeps nothing of it, no slot and no lock.

    Raises SourceConnectionError when the source cannot be reached or is lost, SnapshotError when it
    refuses.
    """
    try:
        connection = connect_for_replication(params)
    except psycopg.Error as error:
        raise snapshot_login_error(error) from None
    try:
        yield ConsistentSource(connection, params, publication, stop)
    except psycopg.Error as error:
        raise snapshot_error(error, is_lost=connection.broken) from None
    finally:
        connection.close()


def _table(row: dict[str, Any]) -> CopiedTable:
    return CopiedTable(
        name=TableName(row["schema"], row["name"]),
        columns=tuple(row["columns"]),
        rows=row["rows"],
        has_leaves=row["kind"] == "p",
        row_filter=row["row_filter"],
    )


def _refusal(row: dict[str, Any], publication: str) -> SnapshotError | None:
    """Return the error when the copy would lack rows, or later changes would not be captured."""
    table = TableName(row["schema"], row["name"])
    quoted = sql.Identifier(table.schema, table.name).as_string(None)
    role = sql.Identifier(row["role"]).as_string(None)
    if row["kind"] is None:
        problem, hint = "the source has no such table", "check [source].tables"
    elif not row["is_published"]:
        problem = f"it is not in the publication {publication}, so its later changes would be missing"
        hint = "add it to [source].tables and run 'python manage.py setup_logical_replication'"
    elif not row["may_use_schema"]:
        problem = f"the role {role} may not use the schema"
        schema = sql.Identifier(table.schema).as_string(None)
        hint = f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {quoted} TO {role};"
    elif not row["may_select"]:
        problem, hint = f"the role {role} may not read it", f"GRANT SELECT ON {quoted} TO {role};"
    elif row["hides_rows"]:
        problem, hint = f"row-level security hides rows from {role}", f"ALTER ROLE {role} BYPASSRLS;"
    else:
        return None
    return SnapshotError(problem, hint=hint, table=str(table))
