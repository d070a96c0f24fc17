"""The books: checkpoints, audit, metrics and runs, as rows of syncdata's own tables.

Knows their columns; knows nothing of files' contents or target rows. Every function here works inside
the caller's transaction: an entry is true because it commits together with the rows it speaks of.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from psycopg import Connection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg.types.string import TextLoader

from syncdata.apply.counts import Counts
from syncdata.apply.position import START, Position, watermark_after
from syncdata.apply.result import Entry
from syncdata.apply.state.audit import log_action, parameters_of
from syncdata.apply.whitelist import parse_syncable
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A record that *requested_by* has said to leave out when it is met again and still cannot be applied."""

    file: str
    line: int
    requested_by: str = ""

    def is_at(self, file: str | None, line: int | None) -> bool:
        """Whether this is that place; the file may have been compressed since."""
        return file is not None and line == self.line and stem(file) == stem(self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One whitelisted table's position. ``error`` is set while the table is blocked, also while it is
    paused; a paused one keeps its place until it is resumed."""

    table: TableName
    position: Position
    error: str | None = None
    is_paused: bool = False
    skips: tuple[Skip, ...] = ()


class CheckpointMovedError(Exception):
    """Another process moved a checkpoint (a resync, a clear, a removal): read them again and go on."""


def open_checkpoints(connection: Connection[Any]) -> list[Checkpoint]:
    """Give every whitelisted table a checkpoint, at the archive's beginning if it has none, and read all.

    A whitelisted name that must not be synced is not among them: its checkpoint is blocked and says why.
    """
    refused = _make_names_canonical(connection)
    connection.execute(
        "INSERT INTO data_sync_checkpoints (table_name) SELECT table_name FROM tables_to_sync"
        " ON CONFLICT (table_name) DO NOTHING"
    )
    rows = _rows(
        connection,
        "SELECT c.* FROM data_sync_checkpoints c JOIN tables_to_sync w USING (table_name)"
        " ORDER BY table_name",
    )
    for name, error in refused.items():
        connection.execute(
            "UPDATE data_sync_checkpoints SET state = 'blocked', error = %s,"
            " blocked_at = coalesce(blocked_at, now()) WHERE table_name = %s",
            (str(error), name),
        )
    return [_checkpoint(row) for row in rows if row["table_name"] not in refused]


def _make_names_canonical(connection: Connection[Any]) -> dict[str, SyncError]:
    """The predecessor took any spelling; the books know one (``users``, not ``public.users``).

    Returns the names that are refused, each with the reason.
    """
    refused: dict[str, SyncError] = {}
    names = {name for (name,) in connection.execute("SELECT table_name FROM tables_to_sync").fetchall()}
    for name in sorted(names):
        try:
            canonical = str(parse_syncable(name))
        except SyncError as error:
            refused[name] = error
            continue
        if canonical == name:
            continue
        if canonical in names:
            connection.execute("DELETE FROM tables_to_sync WHERE table_name = %s", (name,))
        else:
            connection.execute(
                "UPDATE tables_to_sync SET table_name = %s WHERE table_name = %s", (canonical, name)
            )
            names.add(canonical)
    return refused


def lock_checkpoints(connection: Connection[Any], tables: Collection[TableName]) -> list[Checkpoint]:
    """Lock and read the checkpoints of those *tables* that are whitelisted, always in one order."""
    rows = _rows(
        connection,
        "SELECT c.* FROM data_sync_checkpoints c JOIN tables_to_sync w USING (table_name)"
        " WHERE table_name = ANY(%(names)s) ORDER BY table_name FOR UPDATE OF c",
        names=[str(table) for table in tables],
    )
    return [_checkpoint(row) for row in rows]


def require_position(
    connection: Connection[Any], watermarks: Mapping[TableName, int | None], position: Position
) -> list[Checkpoint]:
    """Lock and return the checkpoints of the tables of *watermarks*.

    Raises CheckpointMovedError unless all stand at *position*, each with its watermark, and none is paused: a
    resync may have put newer rows there and left the file the same.
    """
    checkpoints = lock_checkpoints(connection, watermarks.keys())
    expected = (position.order, position.source_id)
    if len(checkpoints) != len(watermarks) or any(
        c.is_paused
        or (c.position.order, c.position.source_id) != expected
        or c.position.commit_lsn != watermarks[c.table]
        for c in checkpoints
    ):
        raise CheckpointMovedError
    return checkpoints


def advance_checkpoints(
    connection: Connection[Any],
    watermarks: Mapping[TableName, int | None],
    entries: Mapping[TableName, Entry],
    *,
    start: Position,
    end: Position,
    now: dt.datetime,
) -> None:
    """Move the checkpoints of the tables of *watermarks* from *start* to *end* and add *entries* to them.

    They are not blocked now. The caller holds their locks (see `require_position`).

    At the end of a file its counts become one audit row a table with activity.
    """
    parameters = [
        {
            "name": str(table),
            "file": end.file,
            "size": end.file_size,
            "finished": end.is_finished,
            "number": end.record_number,
            "lsn": _lsn_text(watermark_after(watermark, start, end)),
            "source": end.source_id,
            "now": now,
            **parameters_of(entries.get(table, Entry())),
        }
        for table, watermark in sorted(watermarks.items())
    ]
    with connection.cursor() as cursor:
        cursor.executemany(_ADVANCE, parameters)
        if end.is_finished:
            names = [str(table) for table in watermarks]
            cursor.execute(_CLOSE_FILE, {"names": names, "now": now})


# The file's own counts start anew with the first batch of another file.
_ADVANCE = """
UPDATE data_sync_checkpoints SET
    file = %(file)s, file_size = %(size)s, file_finished = %(finished)s, record_number = %(number)s,
    commit_lsn = %(lsn)s, source_id = %(source)s, state = 'active', error = NULL, blocked_at = NULL,
    last_sync_at = %(now)s, last_lsn = coalesce(%(last_lsn)s, last_lsn),
    last_change_at = greatest(last_change_at, %(last_change_at)s),
    rows_synced = rows_synced + %(added)s + %(updated)s + %(deleted)s,
    records_added = records_added + %(added)s, records_updated = records_updated + %(updated)s,
    records_deleted = records_deleted + %(deleted)s, records_truncated = records_truncated + %(truncated)s,
    records_missing = records_missing + %(missing)s,
    file_added = file_added + %(added)s, file_updated = file_updated + %(updated)s,
    file_deleted = file_deleted + %(deleted)s, file_truncated = file_truncated + %(truncated)s,
    file_missing = file_missing + %(missing)s, file_duration_ms = file_duration_ms + %(duration_ms)s
WHERE table_name = %(name)s
"""

_CLOSE_FILE = """
WITH closed AS (
    SELECT * FROM data_sync_checkpoints WHERE table_name = ANY(%(names)s)
), logged AS (
    INSERT INTO data_sync_logs (table_name, status, action, archive_ref, sync_time, rows_synced,
        records_added, records_updated, records_deleted, records_truncated, records_missing, duration_ms)
    SELECT table_name, 'SUCCESS', 'sync', file, %(now)s, file_added + file_updated + file_deleted,
        file_added, file_updated, file_deleted, file_truncated, file_missing, file_duration_ms
    FROM closed WHERE file_added + file_updated + file_deleted + file_truncated > 0
)
UPDATE data_sync_checkpoints SET file_added = 0, file_updated = 0, file_deleted = 0, file_truncated = 0,
    file_missing = 0, file_duration_ms = 0
WHERE table_name = ANY(%(names)s)
"""


def mark_blocked(
    connection: Connection[Any],
    tables: Collection[TableName],
    error: SyncError,
    *,
    file: str,
    now: dt.datetime,
) -> None:
    """Mark *tables* blocked by *error* where they stand; a new reason is audited, a repeated one is not."""
    connection.execute(
        """
        WITH blocked AS (
            UPDATE data_sync_checkpoints c SET state = 'blocked', error = %(error)s,
                blocked_at = coalesce(c.blocked_at, %(now)s)
            FROM data_sync_checkpoints old
            WHERE old.id = c.id AND c.table_name = ANY(%(names)s)
            RETURNING c.table_name, old.error IS DISTINCT FROM %(error)s AS is_new
        )
        INSERT INTO data_sync_logs (table_name, status, action, archive_ref, error_detail, sync_time)
        SELECT table_name, 'FAILED', 'sync', %(file)s, %(error)s, %(now)s FROM blocked WHERE is_new
        """,
        {"names": [str(table) for table in tables], "error": str(error), "file": file, "now": now},
    )


def mark_unblocked(connection: Connection[Any], tables: Collection[TableName]) -> None:
    """Mark *tables* as not blocked any more: what blocked them has gone without a record to apply.

    Those that an operator has paused meanwhile stay paused.
    """
    connection.execute(
        "UPDATE data_sync_checkpoints SET state = 'active', error = NULL, blocked_at = NULL"
        " WHERE table_name = ANY(%s) AND state = 'blocked'",
        ([str(table) for table in tables],),
    )


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


def remember_skip(connection: Connection[Any], table: TableName, skip: Skip) -> None:
    """Let the batch of *table* that meets the record leave it out; to say so twice is to say it once."""
    connection.execute(
        "UPDATE data_sync_checkpoints SET skips = skips || %(skip)s WHERE table_name = %(name)s"
        " AND NOT skips @> %(place)s",
        {
            "skip": Jsonb([asdict(skip)]),
            "place": Jsonb([{"file": skip.file, "line": skip.line}]),
            "name": str(table),
        },
    )


def settle_skips(
    connection: Connection[Any],
    checkpoint: Checkpoint,
    used: Mapping[Skip, SyncError | None],
    end: Position,
    *,
    now: dt.datetime,
) -> None:
    """Audit those of the checkpoint's skips that were *used*, each with the error it passed over, and forget
    them; and those, too, that will not be met any more, now that the table has got to *end*."""
    ahead = [s for s in checkpoint.skips if (stem(s.file), True) > (stem(end.file), end.is_finished)]
    left = [skip for skip in ahead if skip not in used]
    if len(left) == len(checkpoint.skips):
        return
    connection.execute(
        "UPDATE data_sync_checkpoints SET skips = %s WHERE table_name = %s",
        (Jsonb([asdict(skip) for skip in left]), str(checkpoint.table)),
    )
    for skip, error in used.items():
        log_action(
            connection,
            checkpoint.table,
            action="skip",
            reference=f"{skip.file}:{skip.line}",
            detail=str(error) if error else checkpoint.error,
            now=now,
            requested_by=skip.requested_by,
        )


def reset_checkpoints(
    connection: Connection[Any],
    tables: Collection[TableName],
    position: Position = START,
    *,
    counts: Counts | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Set *tables* to *position* with *counts* alone, as if they had begun there."""
    with connection.cursor() as cursor:
        for table in tables:
            values = {
                "table_name": str(table),
                "file": position.file,
                "file_size": position.file_size,
                "file_finished": position.is_finished,
                "record_number": position.record_number,
                "commit_lsn": _lsn_text(position.commit_lsn),
                "source_id": position.source_id,
                "last_sync_at": now,
                **_totals(counts or Counts()),
            }
            cursor.execute("DELETE FROM data_sync_checkpoints WHERE table_name = %(table_name)s", values)
            cursor.execute(
                sql.SQL("INSERT INTO data_sync_checkpoints ({}) VALUES ({})").format(
                    sql.SQL(", ").join(map(sql.Identifier, values)),
                    sql.SQL(", ").join(map(sql.Placeholder, values)),
                ),
                values,
            )


def _lsn_text(lsn: int | None) -> str | None:
    return None if lsn is None else format_lsn(lsn)


def _totals(counts: Counts) -> dict[str, int]:
    return {
        "rows_synced": counts.added + counts.updated + counts.deleted,
        "records_added": counts.added,
        "records_updated": counts.updated,
        "records_deleted": counts.deleted,
        "records_truncated": counts.truncated,
        "records_missing": counts.missing,
    }


def _rows(connection: Connection[Any], query: Any, **parameters: object) -> list[dict[str, Any]]:
    cursor = connection.cursor(row_factory=dict_row)
    cursor.adapters.register_loader("jsonb", TextLoader)  # as on Django's connections
    return cursor.execute(query, parameters).fetchall()


def _checkpoint(row: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        table=TableName.parse(row["table_name"]),
        position=Position(
            file=row["file"],
            is_finished=row["file_finished"],
            record_number=row["record_number"],
            file_size=row["file_size"],
            commit_lsn=None if row["commit_lsn"] is None else parse_lsn(row["commit_lsn"]),
            source_id=row["source_id"],
        ),
        error=row["error"],
        is_paused=row["state"] == "paused",
        skips=msgspec.json.decode(row["skips"], type=tuple[Skip, ...]),
    )
