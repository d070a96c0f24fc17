"""Keeps what came of the checks, and sums it up by table.

Knows the rows of ``data_sync_verifications`` and the mark ``differs``; not how rows are compared.
A round that ends takes all rows of other rounds away, so a table has those of two rounds at most: the newest
one that has ended, and the one that goes on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader

from syncdata.apply.sink import Verdict
from syncdata.apply.state.marks import Mark, differs, encode_marks, is_of_check
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.verification import Check, follows

if TYPE_CHECKING:
    from syncdata.apply.state.checkpoints import TableCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How far one table's rows are known to be production's.

    ``verified_at``: when the newest round that has ended did so, if none of its rows differed; None without
    one. ``rows``: the table's rows in that round; ``share``: how many of them were proved to be production's,
    from 0 to 1. ``differing``: the bounds of the rows that differed, in words. ``newest_at``: the time of the
    newest check of any kind. ``not_comparable``: why rows were not compared, where some were not.
    ``left_out``: which columns were not, of rows that were found equal, and why.
    """

    verified_at: dt.datetime | None = None
    rows: int = 0
    share: float = 0.0
    differing: tuple[str, ...] = ()
    newest_at: dt.datetime | None = None
    not_comparable: str = ""
    left_out: str = ""


_SUMMARIES = """
WITH ended AS (
    SELECT DISTINCT ON (table_name) table_name, round, seen, verified_at
    FROM data_sync_verifications WHERE is_last ORDER BY table_name, verified_at DESC, id DESC
), kept AS (
    SELECT v.*, e.seen AS ended_seen, e.verified_at AS ended_at,
        coalesce(v.round = e.round, false) AS has_ended
    FROM data_sync_verifications v LEFT JOIN ended e ON e.table_name = v.table_name
)
SELECT table_name, ended_seen, ended_at, max(verified_at) AS newest_at,
    coalesce(max(rows) FILTER (WHERE has_ended AND is_of_number), 0)::bigint AS counted,
    coalesce(sum(rows) FILTER (WHERE has_ended AND is_equal AND NOT is_of_number), 0)::bigint AS proved,
    coalesce(max(reason) FILTER (WHERE has_ended AND is_equal), '') AS left_out,
    coalesce(bool_or(is_equal AND (rows = 0 OR NOT is_of_number)) FILTER (WHERE has_ended), false)
        AS has_equal,
    coalesce(bool_or(NOT is_equal) FILTER (WHERE has_ended), false) AS has_differing,
    array_agg(bounds ORDER BY verified_at, id) FILTER (WHERE NOT is_equal) AS differing,
    (array_agg(reason ORDER BY verified_at DESC, id DESC) FILTER (WHERE is_equal IS NULL AND reason <> ''))[1]
        AS reason
FROM kept GROUP BY table_name, ended_seen, ended_at
"""


def summaries(connection: Connection[Any]) -> dict[str, Verification]:
    """Return how far the tables are verified, by their names; a table without any check is not among them."""
    cursor = connection.cursor(row_factory=dict_row)
    cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
    return {row["table_name"]: _summary(row) for row in cursor.execute(_SUMMARIES).fetchall()}


def _summary(row: dict[str, Any]) -> Verification:
    # Where only the number of rows was compared, or first, no rows were read for it.
    rows = max(row["ended_seen"] or 0, row["counted"])
    whole = 1.0 if row["has_equal"] else 0.0
    share = min(1.0, row["proved"] / rows) if rows else whole
    return Verification(
        # Of a table that was rebuilt in the midst of a round, all that is kept of it may be its empty end.
        # Test: test_the_empty_end_of_a_round_verifies_nothing.
        verified_at=row["ended_at"] if share and not row["has_differing"] else None,
        rows=rows,
        share=share,
        differing=tuple(dict.fromkeys(row["differing"] or ())),
        newest_at=row["newest_at"],
        not_comparable=row["reason"] or "",
        left_out=row["left_out"],
    )


def keep_verdict(
    connection: Connection[Any], verdict: Verdict, checkpoint: TableCheckpoint, *, now: dt.datetime
) -> TableCheckpoint:
    """Keep *verdict*, and have the mark ``differs`` of its table say what is known now.
    Returns the checkpoint with its marks as they are then.

    Inside the caller's transaction, which has locked the *checkpoint*. Rows that differ give the mark. A
    round takes it away when all its checks came, in turn and to the last, and found the rows equal: a gap,
    or rows that could not be compared, leave it. Tests: test_a_whole_round_of_equal_rows_takes_the_mark_away,
    test_a_round_with_a_gap_leaves_the_mark.
    """
    check, table = verdict.check, str(verdict.table)
    _make_room(connection, table, check)
    connection.execute(
        _INSERT,
        {
            "table": table,
            "round": check.round,
            "chunk": check.chunk,
            "bounds": check.bounds,
            "position": f"{checkpoint.position.file}:{checkpoint.position.record_number}",
            "lsn": None if (lsn := checkpoint.position.commit_lsn) is None else format_lsn(lsn),
            "rows": check.rows,
            "rows_here": verdict.rows_here,
            "seen": check.seen,
            "is_of_number": check.hash is None,
            "is_last": check.is_last,
            "is_equal": verdict.is_equal,
            "reason": verdict.reason,
            "now": now,
        },
    )
    if verdict.is_equal is False:
        mark = differs(verdict.table, check.bounds, verdict.reason, others=_others(connection, table, check))
        checkpoint = _mark(connection, checkpoint, mark)
    if check.is_last:
        connection.execute(
            "DELETE FROM data_sync_verifications WHERE table_name = %s AND round <> %s", (table, check.round)
        )
        if any(mark.kind == "differs" for mark in checkpoint.marks) and _is_whole(connection, table, check):
            checkpoint = _mark(connection, checkpoint, None)
    return checkpoint


def keep_end(
    connection: Connection[Any], end: Check, checkpoint: TableCheckpoint, *, now: dt.datetime
) -> None:
    """Keep that a round ended with the check *end*, to which no rows were held, so that what was verified in
    that round counts. Where nothing was, what is known of the round before is left."""
    known = connection.execute(
        "SELECT max(chunk) FROM data_sync_verifications WHERE table_name = %s AND round = %s",
        (str(end.name), end.round),
    ).fetchone()
    if known is not None and known[0] is not None and known[0] < end.chunk:
        keep_verdict(connection, Verdict(table=end.name, check=end, is_equal=None), checkpoint, now=now)


def forget(connection: Connection[Any], tables: Collection[TableName] | Collection[str]) -> None:
    """Remove what is kept of *tables*: their rows are others from now on, or not ours to verify."""
    connection.execute(
        "DELETE FROM data_sync_verifications WHERE table_name = ANY(%s)", ([str(table) for table in tables],)
    )


_INSERT = """
INSERT INTO data_sync_verifications (table_name, round, chunk, bounds, position, commit_lsn, rows, rows_here,
    seen, is_of_number, is_last, is_equal, reason, verified_at)
VALUES (%(table)s, %(round)s, %(chunk)s, %(bounds)s, %(position)s, %(lsn)s, %(rows)s, %(rows_here)s,
    %(seen)s, %(is_of_number)s, %(is_last)s, %(is_equal)s, %(reason)s, %(now)s)
"""


def _make_room(connection: Connection[Any], table: str, check: Check) -> None:
    """Remove what the result of *check* takes the place of.

    An archiver that was started again reads the newest chunks of its round once more, under the same numbers,
    and may cut them otherwise. Where one is a gap this time, the earlier one of its number may end before the
    next begins, and goes. Test: test_a_gap_behind_a_chunk_that_was_cut_otherwise_is_one.

    One that has lost its numbers begins with the first round again: so a round that has ended, and comes once
    more with another chunk, is another one.
    """
    newest = connection.execute(
        "SELECT chunk, is_last, (SELECT bounds FROM data_sync_verifications WHERE table_name = v.table_name"
        " AND round = v.round AND chunk = %s) FROM data_sync_verifications v"
        " WHERE table_name = %s AND round = %s ORDER BY chunk DESC LIMIT 1",
        (check.chunk - 1, table, check.round),
    ).fetchone()
    if newest is None:
        connection.execute(_DELETE_OLDER, {"table": table, "round": check.round})
        return
    chunk, has_ended, before = newest
    first = check.chunk if before is None or follows(check, before) else check.chunk - 1
    if has_ended and chunk != check.chunk:
        first = 0
    if chunk < first:
        return
    connection.execute(
        "DELETE FROM data_sync_verifications WHERE table_name = %s AND round = %s AND chunk >= %s",
        (table, check.round, first),
    )


# All rounds but the newest that has ended.
_DELETE_OLDER = """
DELETE FROM data_sync_verifications WHERE table_name = %(table)s AND round <> coalesce((
    SELECT round FROM data_sync_verifications WHERE table_name = %(table)s AND is_last
    ORDER BY verified_at DESC, id DESC LIMIT 1), %(round)s)
"""


def _others(connection: Connection[Any], table: str, check: Check) -> int:
    """Return how many other chunks of the round of *check* differ."""
    row = connection.execute(
        "SELECT count(*) FROM data_sync_verifications WHERE table_name = %s AND round = %s AND NOT is_equal"
        " AND chunk <> %s",
        (table, check.round, check.chunk),
    ).fetchone()
    return row[0] if row else 0


def _is_whole(connection: Connection[Any], table: str, check: Check) -> bool:
    """Tell whether all chunks of the round that *check* ends are there, and equal, and not by their number
    alone. The first has number 1. Test: test_an_equal_number_of_rows_takes_no_mark_away."""
    row = connection.execute(
        "SELECT count(*), coalesce(max(rows) FILTER (WHERE is_of_number), 0),"
        " coalesce(sum(rows) FILTER (WHERE NOT is_of_number), 0) FROM data_sync_verifications"
        " WHERE table_name = %s AND round = %s AND is_equal AND chunk BETWEEN 1 AND %s",
        (table, check.round, check.chunk),
    ).fetchone()
    assert row is not None
    chunks, counted, proved = row
    return bool(chunks == check.chunk and proved >= max(counted, check.seen))


def _mark(connection: Connection[Any], checkpoint: TableCheckpoint, mark: Mark | None) -> TableCheckpoint:
    """Have *mark* take the place of an earlier one of the same, or, where it is None, all that say that rows
    differ away."""
    others = tuple(
        known
        for known in checkpoint.marks
        if known.kind != "differs" or (mark is not None and not is_of_check(known))
    )
    marks = others if mark is None else (*others, mark)
    if marks != checkpoint.marks:
        connection.execute(
            "UPDATE data_sync_checkpoints SET marks = %s::jsonb WHERE id = %s",
            (encode_marks(marks), checkpoint.id),
        )
    return replace(checkpoint, marks=marks)
