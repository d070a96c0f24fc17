"""Checkpoints: how far each whitelisted table's records have been applied, as rows of their table.

Knows its columns; knows nothing of files' contents or target rows. Every function here works inside the
caller's transaction: a checkpoint is true because it commits together with the rows that it counts.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
from psycopg import Connection, Cursor, sql
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader

from syncdata.apply.counts import Counts
from syncdata.apply.position import START, FileCounts, Position, watermark_after
from syncdata.apply.result import Effect
from syncdata.apply.state.audit import log_files, parameters_of
from syncdata.apply.state.marks import Mark, decode_marks, encode_marks, partial
from syncdata.apply.state.reasons import NO_ERROR, error_parameters, read_reason
from syncdata.apply.state.verifications import forget
from syncdata.apply.whitelist import parse_all, parse_syncable
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import Reason, SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A record that *requested_by* has said to leave out when it is met again and still cannot be applied."""

    file: str
    line: int
    requested_by: str = ""

    def is_at(self, file: str | None, line: int | None) -> bool:
        """Tell whether the record stands in *line* of *file*, which may have been compressed since."""
        return file is not None and line == self.line and stem(file) == stem(self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCheckpoint:
    """One whitelisted table's position. ``reason``: what blocks it; a blocked table that is paused keeps it.
    A paused table keeps its position until it is resumed. ``local_oid``: of the table that the rows went to;
    None where that is not known. ``id``: of its row, which a rebuild replaces."""

    table: TableName
    position: Position
    reason: Reason | None = None
    is_paused: bool = False
    skips: tuple[Skip, ...] = ()
    marks: tuple[Mark, ...] = ()
    local_oid: int | None = None
    id: int = 0

    @property
    def has_begun(self) -> bool:
        """Whether rows may have gone to the table: from a change file, or from a snapshot."""
        return self.position.file != "" or self.position != START

    @property
    def is_partial(self) -> bool:
        return any(mark.kind == "partial" for mark in self.marks)

    @property
    def error(self) -> str | None:
        """The reason's text."""
        return None if self.reason is None else self.reason.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """*tables* whose checkpoints have a new *position* and are active, and are else what they were."""

    tables: Set[TableName]
    position: Position


# Columns are listed by name, so that a database that has not been migrated raises an error with its remedy.
# In a database that was restored from a dump, all tables have other oids: rows and checkpoints came back
# together, and the oid that was noted in the other database says nothing here. Test:
# test_a_local_database_that_is_restored_from_a_dump_goes_on_from_there.
COLUMNS = """
c.id, c.table_name, file, file_size, file_finished, record_number, commit_lsn, source_id, state, skips,
    marks, CASE WHEN home_oid = c.tableoid::bigint THEN local_oid END AS local_oid,
    error, error_code, error_file, error_line, error_hint
"""
OF_WHITELIST = "data_sync_checkpoints c JOIN tables_to_sync w USING (table_name)"
_SELECT = f"SELECT {COLUMNS} FROM {OF_WHITELIST}"
_OF_TABLES = f"{_SELECT} WHERE table_name = ANY(%(names)s::text[]) ORDER BY table_name"


class CheckpointMovedError(Exception):
    """Another process moved a checkpoint (a resync, a clear, a removal): read them again and go on."""


def open_checkpoints(connection: Connection[Any]) -> list[TableCheckpoint]:
    """Give every whitelisted table a checkpoint, at the archive's beginning if it has none, and read all.

    A whitelisted name that must not be synced is not among them: its checkpoint is blocked and says why.
    """
    refused = _make_names_canonical(connection)
    _open_missing(connection)
    checkpoints = read_checkpoints(connection, without=refused.keys())
    for name, error in refused.items():
        connection.execute(
            "UPDATE data_sync_checkpoints SET state = 'blocked', error = %(error)s,"
            " error_code = %(error_code)s, error_file = NULL, error_line = NULL, error_hint = %(error_hint)s,"
            " blocked_at = coalesce(blocked_at, now()) WHERE table_name = %(name)s",
            {"name": name, **error_parameters(error)},
        )
    return checkpoints


def read_checkpoints(connection: Connection[Any], *, without: Collection[str] = ()) -> list[TableCheckpoint]:
    """Return the checkpoints of the whitelisted tables that have one, but for the names *without*.

    Each name must be one that may be synced.
    """
    rows = _rows(connection, f"{_SELECT} ORDER BY table_name")
    return [checkpoint_of(row) for row in rows if row[1] not in without]


def read_checkpoint(connection: Connection[Any], table: TableName) -> TableCheckpoint | None:
    """Return the checkpoint of *table*; None where it has none, or is not whitelisted."""
    return next(iter(read_checkpoints_of(connection, [table])), None)


def read_checkpoints_of(connection: Connection[Any], tables: Collection[TableName]) -> list[TableCheckpoint]:
    """Return the checkpoints of those *tables* that have one, and are whitelisted."""
    rows = _rows(connection, _OF_TABLES, names=[str(table) for table in tables])
    return [checkpoint_of(row) for row in rows]


def _open_missing(connection: Connection[Any]) -> None:
    """Give the tables without a checkpoint one. It says ``partial`` from the start: a snapshot, a TRUNCATE or
    an operator takes that away."""
    names = connection.execute(
        "SELECT table_name FROM tables_to_sync w WHERE NOT EXISTS"
        " (SELECT FROM data_sync_checkpoints c WHERE c.table_name = w.table_name)"
    ).fetchall()
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO data_sync_checkpoints (table_name, marks) VALUES (%s, %s)"
            " ON CONFLICT (table_name) DO NOTHING",
            [(name, encode_marks(tuple(partial(table) for table in parse_all([name])))) for (name,) in names],
        )


def _make_names_canonical(connection: Connection[Any]) -> dict[str, SyncError]:
    """Give each whitelisted name its one spelling: the predecessor accepted ``public.users`` for ``users``.

    Returns the names that must not be synced, each with the reason.
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


def lock_checkpoints(connection: Connection[Any], tables: Collection[TableName]) -> list[TableCheckpoint]:
    """Lock and read the checkpoints of those *tables* that are whitelisted, always in one order.

    A row that was replaced while the statement waited for it is not among its rows, nor is its successor,
    which the next statement finds. Without its lock a rebuild would go on beside a batch, and bring records
    that the batch brings as well. Test: test_a_checkpoint_that_is_replaced_meanwhile_is_locked_all_the_same.
    """
    names = [str(table) for table in tables]
    while True:
        rows = _rows(connection, f"{_OF_TABLES} FOR UPDATE OF c", names=names)
        if len(rows) == len(names) or len(rows) == len(_rows(connection, _OF_TABLES, names=names)):
            return [checkpoint_of(row) for row in rows]


def require_position(
    connection: Connection[Any], watermarks: Mapping[TableName, int | None], position: Position
) -> list[TableCheckpoint]:
    """Lock and return the checkpoints of the tables of *watermarks*.

    Raises CheckpointMovedError unless all stand at *position*, each with its watermark, and none is paused.
    The position alone would not do: a resync may have put newer rows into a table at the same record.
    """
    checkpoints = lock_checkpoints(connection, watermarks.keys())
    require_all_at(position, watermarks, checkpoints)
    return checkpoints


def require_all_at(
    position: Position, watermarks: Mapping[TableName, int | None], checkpoints: Collection[TableCheckpoint]
) -> None:
    """Do what `require_position` does with *checkpoints*, which have just been locked."""
    expected = (position.order, position.source_id)
    found = {(c.position.order, c.position.source_id) for c in _one_a_position(checkpoints)}
    if (
        len(checkpoints) != len(watermarks)
        or found - {expected}
        or any(c.is_paused or c.position.commit_lsn != watermarks[c.table] for c in checkpoints)
    ):
        raise CheckpointMovedError


def _one_a_position(checkpoints: Collection[TableCheckpoint]) -> Iterable[TableCheckpoint]:
    """Return one of the checkpoints that share a position, which most do."""
    return {id(checkpoint.position): checkpoint for checkpoint in checkpoints}.values()


def advance_checkpoints(
    connection: Connection[Any],
    watermarks: Mapping[TableName, int | None],
    effects: Mapping[TableName, Effect],
    *,
    start: Position,
    end: Position,
    now: dt.datetime,
    local_oids: Mapping[TableName, int] | None = None,
    files: Sequence[FileCounts] = (),
) -> Moved:
    """Move the checkpoints of the tables of *watermarks* from *start* to *end* and add *effects* to them.

    They are active afterwards, blocked before or not. The caller holds their locks (see `require_position`).
    At the end of a file its counts become an audit row for each table with activity; where the step takes
    several whole *files*, each has its own. *local_oids*: of the tables that the rows went to, as far as the
    checkpoints do not hold them yet. A TRUNCATE proves a partial table whole: nothing older is left.

    Returns those that have no records, and went to one place.
    """
    oids = local_oids or {}
    lsns = {mark: _lsn_text(watermark_after(mark, start, end)) for mark in set(watermarks.values())}
    mark_of_most = _most_common(watermarks.values())
    # Counts of earlier batches may stand in any of the rows, and become entries at the end of their file.
    has_counts = end.is_finished and not start.is_finished
    names: list[TableName] = []
    others: list[TableName] = []
    for table, mark in watermarks.items():
        is_own = has_counts or mark != mark_of_most or table in effects or table in oids
        (names if is_own else others).append(table)
    own = [table for table in names if table in effects]
    effects_of_own = [parameters_of(effects[table]) for table in own]
    connection.execute(
        _ADVANCE,
        {
            "names": names_text(names),
            "lsns": array_text(lsns[watermarks[table]] for table in names),
            "oids": array_text(map(oids.get, names)),
            "others": names_text(others),
            "lsn_of_others": lsns.get(mark_of_most),
            "file": end.file,
            "size": end.file_size,
            "finished": end.is_finished,
            "logs": end.is_finished and not files,
            "number": end.record_number,
            "source": end.source_id,
            "now": now,
            "own": [str(table) for table in own],
            **{name: [values[name] for values in effects_of_own] for name in parameters_of(Effect())},
        },
    )
    if files:
        log_files(connection, files, effects, now=now)
    return Moved(
        tables=set(others), position=replace(end, commit_lsn=watermark_after(mark_of_most, start, end))
    )


def _most_common(watermarks: Iterable[int | None]) -> int | None:
    [(watermark, _)] = Counter(watermarks).most_common(1) or [(None, 0)]
    return watermark


# One statement, however many tables advance and however few of them have records: each is where the file is.
# The ``others`` have no records and all go to one place; nothing else of them changes. With 1,000 tables that
# takes the server half as long. Test: test_tables_without_records_end_as_if_they_were_moved_one_by_one.
# The ``file_*`` counts are those of the checkpoint's file; at its end they become an entry of the audit log,
# for which they are read as they were before the statement.
_ADVANCE = f"""
WITH own AS (
    SELECT * FROM unnest(%(own)s::text[], %(added)s::bigint[], %(updated)s::bigint[], %(deleted)s::bigint[],
        %(truncated)s::bigint[], %(missing)s::bigint[], %(duration_ms)s::bigint[],
        %(last_change_at)s::timestamptz[], %(last_lsn)s::pg_lsn[])
    AS own (table_name, added, updated, deleted, truncated, missing, duration_ms, last_change_at, last_lsn)
), step AS (
    SELECT w.table_name, w.lsn, w.oid, coalesce(added, 0) AS added, coalesce(updated, 0) AS updated,
        coalesce(deleted, 0) AS deleted, coalesce(truncated, 0) AS truncated, coalesce(missing, 0) AS missing,
        coalesce(duration_ms, 0) AS duration_ms, last_change_at, last_lsn
    FROM unnest(%(names)s::text[], %(lsns)s::pg_lsn[], %(oids)s::bigint[]) AS w (table_name, lsn, oid)
    LEFT JOIN own USING (table_name)
), logged AS (
    INSERT INTO data_sync_logs (table_name, status, action, archive_ref, sync_time, rows_synced,
        records_added, records_updated, records_deleted, records_truncated, records_missing, duration_ms)
    SELECT table_name, 'SUCCESS', 'sync', %(file)s, %(now)s,
        file_added + added + file_updated + updated + file_deleted + deleted,
        file_added + added, file_updated + updated, file_deleted + deleted, file_truncated + truncated,
        file_missing + missing, file_duration_ms + duration_ms
    FROM data_sync_checkpoints JOIN step USING (table_name)
    WHERE %(logs)s AND file_added + added + file_updated + updated + file_deleted + deleted
        + file_truncated + truncated > 0
    ORDER BY table_name
), others AS (
    UPDATE data_sync_checkpoints SET
        file = %(file)s, file_size = %(size)s, file_finished = %(finished)s, record_number = %(number)s,
        commit_lsn = %(lsn_of_others)s, source_id = %(source)s, state = 'active', {NO_ERROR},
        last_sync_at = %(now)s
    WHERE table_name = ANY(%(others)s::text[])
)
UPDATE data_sync_checkpoints c SET
    file = %(file)s, file_size = %(size)s, file_finished = %(finished)s, record_number = %(number)s,
    commit_lsn = step.lsn, source_id = %(source)s, state = 'active', {NO_ERROR},
    last_sync_at = %(now)s, last_lsn = coalesce(step.last_lsn, c.last_lsn),
    last_change_at = greatest(c.last_change_at, step.last_change_at),
    rows_synced = rows_synced + added + updated + deleted,
    records_added = records_added + added, records_updated = records_updated + updated,
    records_deleted = records_deleted + deleted, records_truncated = records_truncated + truncated,
    records_missing = records_missing + missing,
    file_added = CASE WHEN %(finished)s THEN 0 ELSE file_added + added END,
    file_updated = CASE WHEN %(finished)s THEN 0 ELSE file_updated + updated END,
    file_deleted = CASE WHEN %(finished)s THEN 0 ELSE file_deleted + deleted END,
    file_truncated = CASE WHEN %(finished)s THEN 0 ELSE file_truncated + truncated END,
    file_missing = CASE WHEN %(finished)s THEN 0 ELSE file_missing + missing END,
    file_duration_ms = CASE WHEN %(finished)s THEN 0 ELSE file_duration_ms + duration_ms END,
    marks = CASE WHEN truncated > 0 THEN jsonb_path_query_array(marks, '$[*] ? (@.kind <> "partial")')
        ELSE marks END,
    local_oid = coalesce(step.oid, local_oid),
    home_oid = CASE WHEN step.oid IS NULL THEN home_oid ELSE c.tableoid::bigint END
FROM step WHERE c.table_name = step.table_name
"""


def reset_checkpoints(
    connection: Connection[Any],
    tables: Collection[TableName],
    position: Position = START,
    *,
    counts: Counts | None = None,
    now: dt.datetime | None = None,
    is_whole: bool = True,
    local_oid: int | None = None,
    newest: Effect | None = None,
) -> None:
    """Replace the checkpoints of *tables* by new active ones at *position*, with *counts*.

    They have no marks, but for one when not *is_whole*, and nothing that was verified of the old rows counts.
    *newest* tells of the newest record applied; an older checkpoint's newer one stays, for production had it
    by then.
    """
    forget(connection, tables)
    with connection.cursor(row_factory=dict_row) as cursor:
        for table in tables:
            values: dict[str, Any] = {
                "table_name": str(table),
                "file": position.file,
                "file_size": position.file_size,
                "file_finished": position.is_finished,
                "record_number": position.record_number,
                "commit_lsn": _lsn_text(position.commit_lsn),
                "source_id": position.source_id,
                "last_sync_at": now,
                "marks": encode_marks(() if is_whole else (partial(table),)),
                **_totals(counts or Counts()),
            }
            cursor.execute(
                "DELETE FROM data_sync_checkpoints WHERE table_name = %(table_name)s"
                " RETURNING last_change_at, last_lsn::text AS last_lsn",
                values,
            )
            if position != START:
                values |= _newest_of(cursor.fetchone() or {}, newest or Effect())
            columns = [sql.Identifier(name) for name in values]
            entries: list[sql.Composable] = [sql.Placeholder(name) for name in values]
            if local_oid is not None:
                columns += [sql.Identifier("local_oid"), sql.Identifier("home_oid")]
                entries += [sql.Literal(local_oid), sql.SQL("'data_sync_checkpoints'::regclass::oid::bigint")]
            cursor.execute(
                sql.SQL("INSERT INTO data_sync_checkpoints ({}) VALUES ({})").format(
                    sql.SQL(", ").join(columns), sql.SQL(", ").join(entries)
                ),
                values,
            )


def _newest_of(old: Mapping[str, Any], new: Effect) -> dict[str, Any]:
    """Return the columns that tell of the newest record, of the *old* checkpoint or the *new* rows."""
    changes = [moment for moment in (old.get("last_change_at"), new.last_change_at) if moment]
    lsns = [lsn for lsn in (old.get("last_lsn"), new.last_lsn) if lsn]
    return {
        "last_change_at": max(changes, default=None),
        "last_lsn": max(lsns, key=parse_lsn, default=None),
    }


def _lsn_text(lsn: int | None) -> str | None:
    return None if lsn is None else format_lsn(lsn)


def _totals(counts: Counts) -> dict[str, int]:
    return {
        "rows_synced": counts.rows,
        "records_added": counts.added,
        "records_updated": counts.updated,
        "records_deleted": counts.deleted,
        "records_truncated": counts.truncated,
        "records_missing": counts.missing,
    }


def array_text(values: Iterable[object]) -> str:
    """Return *values* as the text of an array. The driver takes a millisecond for a thousand of them, which
    is much for a batch of one record. Test: test_names_of_all_kinds_stand_in_an_array."""
    return "{" + ",".join(map(_element_text, values)) + "}"


def names_text(tables: Iterable[TableName]) -> str:
    """Return the names of *tables* as the text of an array."""
    return "{" + ",".join(map(_name_text, tables)) + "}"


def _element_text(value: object) -> str:
    if value is None:
        return "NULL"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


# Each batch sends the names of all tables that go on together.
_name_text = lru_cache(maxsize=4096)(_element_text)


def _rows(connection: Connection[Any], query: Any, **parameters: object) -> list[tuple[Any, ...]]:
    return ask(connection, query, **parameters).fetchall()


def ask(connection: Connection[Any], query: Any, **parameters: object) -> Cursor[tuple[Any, ...]]:
    """Run *query*, whose rows `checkpoint_of` can read."""
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.adapters.register_loader("jsonb", TextLoader)  # as on Django's connections
    return cursor.execute(query, parameters)


# A cycle of another connection reads the same.
@lru_cache(maxsize=4096)
def checkpoint_of(row: tuple[Any, ...]) -> TableCheckpoint:
    """Return the checkpoint of a row of ``COLUMNS``. Test: test_checkpoints_are_made_of_their_rows_once."""
    number, name, file, size, is_finished, record, lsn, source, state, skips, marks, local_oid, *error = row
    return TableCheckpoint(
        id=number,
        table=_parse(name),
        position=_position(file, is_finished, record, size, lsn, source),
        reason=None if error[0] is None else read_reason(dict(zip(_ERROR_COLUMNS, error, strict=True))),
        is_paused=state == "paused",
        skips=() if skips == "[]" else msgspec.json.decode(skips, type=tuple[Skip, ...]),
        marks=() if marks == "[]" else _decode_marks(marks),
        local_oid=local_oid,
    )


_ERROR_COLUMNS = ("error", "error_code", "error_file", "error_line", "error_hint")
_decode_marks = lru_cache(maxsize=4096)(decode_marks)
# Each batch reads the names of all tables that go on together.
_parse = lru_cache(maxsize=4096)(TableName.parse)


@lru_cache(maxsize=16)
def _position(
    file: str, is_finished: bool, number: int, size: int | None, lsn: str | None, source_id: str
) -> Position:
    """Return the position that these columns hold, which most tables share."""
    return Position(
        file=file,
        is_finished=is_finished,
        record_number=number,
        file_size=size,
        commit_lsn=None if lsn is None else parse_lsn(lsn),
        source_id=source_id,
    )
