"""Holds tables at their checkpoints, and lets them go: blocked by an error, or paused by an operator.

Every function works inside the caller's transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

from psycopg import Connection

from syncdata.apply.state.marks import Mark, decode_marks, encode_marks, folded
from syncdata.apply.state.reasons import NO_ERROR, error_parameters
from syncdata.changes.names import TableName
from syncdata.errors import SyncError


def mark_blocked(
    connection: Connection[Any],
    tables: Collection[TableName],
    error: SyncError,
    *,
    file: str,
    now: dt.datetime,
) -> None:
    """Mark *tables* blocked by *error* where they stand.

    The reason is audited when it is a new one, not again in each cycle that meets it.
    """
    connection.execute(
        """
        WITH blocked AS (
            UPDATE data_sync_checkpoints c SET state = 'blocked', error = %(error)s,
                error_code = %(error_code)s, error_file = %(error_file)s, error_line = %(error_line)s,
                error_hint = %(error_hint)s, blocked_at = coalesce(c.blocked_at, %(now)s)
            FROM data_sync_checkpoints old
            WHERE old.id = c.id AND c.table_name = ANY(%(names)s)
            RETURNING c.table_name, old.error IS DISTINCT FROM %(error)s AS is_new
        )
        INSERT INTO data_sync_logs (table_name, status, action, archive_ref, error_detail, sync_time)
        SELECT table_name, 'FAILED', 'sync', %(file)s, %(error)s, %(now)s FROM blocked WHERE is_new
        """,
        {"names": [str(table) for table in tables], "file": file, "now": now, **error_parameters(error)},
    )


def mark_unblocked(connection: Connection[Any], tables: Collection[TableName]) -> None:
    """Mark *tables* active again, when the cause has gone but no record is left to apply.

    For example, a change file with a broken line was withdrawn from the archive. (Applying a record makes a
    table active by itself.) Tables that an operator has paused meanwhile stay paused.
    """
    connection.execute(
        f"UPDATE data_sync_checkpoints SET state = 'active', {NO_ERROR}"
        " WHERE table_name = ANY(%s) AND state = 'blocked'",
        ([str(table) for table in tables],),
    )


def add_mark(connection: Connection[Any], table: TableName, mark: Mark) -> None:
    """Give *table* the mark, once."""
    row = connection.execute(
        "SELECT marks::text FROM data_sync_checkpoints WHERE table_name = %s FOR UPDATE", (str(table),)
    ).fetchone()
    if row is not None:
        marks = folded([*decode_marks(row[0]), mark])
        connection.execute(
            "UPDATE data_sync_checkpoints SET marks = %s::jsonb WHERE table_name = %s",
            (encode_marks(marks), str(table)),
        )


def mark_whole(connection: Connection[Any], tables: Collection[TableName]) -> list[TableName]:
    """Take the mark ``partial`` from *tables*; return those that had it."""
    rows = connection.execute(
        "UPDATE data_sync_checkpoints SET"
        " marks = jsonb_path_query_array(marks, '$[*] ? (@.kind <> \"partial\")')"
        ' WHERE table_name = ANY(%s) AND marks @> \'[{"kind": "partial"}]\' RETURNING table_name',
        ([str(table) for table in tables],),
    ).fetchall()
    return sorted(TableName.parse(name) for (name,) in rows)


def mark_paused(connection: Connection[Any], tables: Collection[TableName]) -> list[TableName]:
    """Keep *tables* where they stand; return those that were not paused before."""
    rows = connection.execute(
        "UPDATE data_sync_checkpoints SET state = 'paused'"
        " WHERE table_name = ANY(%s) AND state <> 'paused' RETURNING table_name",
        ([str(table) for table in tables],),
    ).fetchall()
    return sorted(TableName.parse(name) for (name,) in rows)


def mark_resumed(connection: Connection[Any], tables: Collection[TableName]) -> list[TableName]:
    """Let *tables* go on from where they stand; return those that were paused."""
    rows = connection.execute(
        "UPDATE data_sync_checkpoints SET state = CASE WHEN error IS NULL THEN 'active' ELSE 'blocked' END"
        " WHERE table_name = ANY(%s) AND state = 'paused' RETURNING table_name",
        ([str(table) for table in tables],),
    ).fetchall()
    return sorted(TableName.parse(name) for (name,) in rows)
