"""Holds rows of tables to the checks of the archive, and keeps what comes of it.

Knows how rows are read and hashed here; what may be compared is plan/comparison.py's affair, and what becomes
of the results state/verifications.py's.

Invariants:

1. Rows are compared only where they stand exactly at the check's place. They and the checkpoint are read in
   one snapshot, for another thread may exchange the table at any moment.
   Test: test_a_table_that_stands_elsewhere_has_no_verdict.
2. A verdict is kept only while that checkpoint is the table's, under its lock: what was found of rows that
   have been exchanged since says nothing of the new ones.
   Test: test_a_verdict_on_rows_that_were_exchanged_meanwhile_is_dropped.
3. No check waits or works for long: it is given up, and says so.
   Test: test_a_check_that_takes_long_is_given_up.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, sql

from syncdata.apply.plan.comparison import ComparedColumn, Comparison, plan_comparison
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.position import Position
from syncdata.apply.postgres.connection import (
    allow_only_nested_loops,
    is_servers_fault,
    kind_of,
    limit_lock_waits,
)
from syncdata.apply.sink import Verdict
from syncdata.apply.state.checkpoints import TableCheckpoint, lock_checkpoints, read_checkpoint
from syncdata.apply.state.verifications import keep_verdict
from syncdata.changes.catalog import Catalog
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.changes.verification import Check, hash_of_rows

# How long a check may take, and wait for a lock.
LIMIT_S, LOCK_LIMIT_S = 5.0, 1.0


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows in a check's bounds as they are here, or the ``trouble`` that kept them from being read."""

    rows: int = 0
    hash: str | None = None
    trouble: str = ""


def verify(
    connection: Connection[Any],
    checks: Sequence[Check],
    published: Catalog | None,
    schemas: Mapping[TableName, TableSchema],
    *,
    position: Position,
    clock: Callable[[], dt.datetime],
) -> list[Verdict]:
    """Hold the tables of *checks*, which have the *schemas*, to them; keep and return the verdicts.

    There is none of a table that does not stand at *position*, or has rows from behind the check. Raises
    psycopg.Error only where the server or the connection fails.
    """
    entries = {} if published is None else {entry.table: entry for entry in published.tables}
    verdicts = []
    for check in checks:
        schema = schemas.get(check.name)
        comparison = plan_comparison(check, entries.get(check.name), schema)
        checkpoint, found = _look(connection, check, comparison, schema)
        if checkpoint is None or not _is_at(checkpoint, position, check):
            continue
        verdict = _judge(check, comparison, found)
        if _keep(connection, verdict, checkpoint, position, now=clock()):
            verdicts.append(verdict)
    return verdicts


def _keep(
    connection: Connection[Any],
    verdict: Verdict,
    checkpoint: TableCheckpoint,
    position: Position,
    *,
    now: dt.datetime,
) -> bool:
    """Keep *verdict*, which was found at *checkpoint*; return False where that has moved, or is locked."""
    try:
        with connection.transaction():
            # A resync that ends just now may hold it for longer.
            limit_lock_waits(connection, LOCK_LIMIT_S)
            locked = next(iter(lock_checkpoints(connection, [verdict.table])), None)
            if locked is None or locked.id != checkpoint.id or not _is_at(locked, position, verdict.check):
                return False
            keep_verdict(connection, verdict, locked, now=now)
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _is_at(checkpoint: TableCheckpoint, position: Position, check: Check) -> bool:
    """Tell whether the table stands at *position*, with no rows of a snapshot that is newer than *check*."""
    mine = checkpoint.position
    is_there = (mine.order, mine.source_id) == (position.order, position.source_id)
    return is_there and (mine.commit_lsn is None or mine.commit_lsn <= parse_lsn(check.lsn))


def _look(
    connection: Connection[Any], check: Check, comparison: Comparison, schema: TableSchema | None
) -> tuple[TableCheckpoint | None, _Found]:
    """Return the checkpoint of the table and the rows in the bounds of *check*, both of one moment."""
    checkpoint = None
    try:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            checkpoint = read_checkpoint(connection, check.name)
            if schema is None or comparison.problem:
                return checkpoint, _Found(trouble=comparison.problem)
            limit_lock_waits(connection, LOCK_LIMIT_S)
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, true)", (f"{round(LIMIT_S * 1000)}ms",)
            )
            # Those few rows are found by the key's index, whatever the planner makes of old statistics.
            allow_only_nested_loops(cursor, not check.is_of_whole_table)
            row = cursor.execute(*_statement(connection, check, comparison, schema)).fetchone()
            assert row is not None
            return checkpoint, _Found(row[0], row[1])
    except psycopg.errors.QueryCanceled:
        return checkpoint, _Found(trouble=f"that took longer than {LIMIT_S:g} seconds")
    except psycopg.errors.LockNotAvailable:
        return checkpoint, _Found(trouble="others held a lock on the table")
    except psycopg.Error as error:
        if is_servers_fault(error):
            raise
        return checkpoint, _Found(trouble=f"the database refuses to read them ({kind_of(error)})")


def _judge(check: Check, comparison: Comparison, found: _Found) -> Verdict:
    is_equal: bool | None = None
    reason = comparison.problem or found.trouble
    if not reason:
        if found.rows != check.rows:
            is_equal, reason = False, f"{check.rows:,} at production, {found.rows:,} here"
        elif comparison.unhashed:
            reason = comparison.unhashed
        elif check.hash is not None and found.hash != check.hash:
            is_equal, reason = False, f"of {check.rows:,} some have other values"
        else:
            is_equal, reason = True, _left_out(check)
    return Verdict(table=check.name, check=check, is_equal=is_equal, rows_here=found.rows, reason=reason)


def _left_out(check: Check) -> str:
    if check.hash is None or not check.left_out:
        return ""
    return f"without {', '.join(check.left_out)}, whose text means something at production only"


def _statement(
    connection: Connection[Any], check: Check, comparison: Comparison, schema: TableSchema
) -> tuple[sql.Composed, list[Any]]:
    """Return the statement that counts and hashes the rows of *check* here, and its parameters.

    ONLY, for what inherits from a table is not of it; a partitioned table's rows are those of its partitions.
    """
    columns = [_expression(column).as_string(connection) for column in comparison.columns]
    statement = sql.SQL("SELECT count(*), {hash} FROM {only} {table} AS t{where}").format(
        hash=sql.SQL(hash_of_rows(columns).replace("%", "%%") if columns else "NULL"),
        only=sql.SQL("" if schema.is_partitioned else "ONLY"),
        table=_name(schema.name.schema, schema.name.name),
        where=_condition(check, comparison),
    )
    return statement, list(_parameters(check))


def _expression(column: ComparedColumn) -> sql.Composable:
    """Return the value of *column* as production spells it, if it is one that production can have."""
    name = sql.Identifier("t", column.name)
    if column.scale is None:
        return name
    return sql.SQL("CASE WHEN {0} = round({0}, {1}) THEN round({0}, {1}) ELSE {0} END").format(
        name, column.scale
    )


def _condition(check: Check, comparison: Comparison) -> sql.Composable:
    """Return what follows the table's name: a join with the keys that are wanted, or the bounds."""
    if check.is_of_whole_table:
        return sql.SQL("")
    own = [_name("t", column.name) for column in comparison.key]
    types = [sql.SQL(column.sql_type.replace("%", "%%")) for column in comparison.key]
    if check.keys is not None:
        numbers = range(len(own))
        return sql.SQL(" JOIN unnest({arrays}) AS wanted ({names}) ON {equal}").format(
            arrays=_listed(sql.SQL("%s::text[]") for _ in numbers),
            names=_listed(sql.Identifier(f"k{number}") for number in numbers),
            equal=sql.SQL(" AND ").join(
                sql.SQL("{} = {}::{}").format(
                    own[number], sql.Identifier("wanted", f"k{number}"), types[number]
                )
                for number in numbers
            ),
        )
    ordered = _listed(
        sql.SQL('{} COLLATE "C"').format(name) if column.is_text else name
        for name, column in zip(own, comparison.key, strict=True)
    )
    bound = _listed(sql.SQL("%s::{}").format(sql_type) for sql_type in types)
    tests = [sign for sign, values in ((">", check.after), ("<=", check.upto)) if values is not None]
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(
        sql.SQL("({}) {} ({})").format(ordered, sql.SQL(sign), bound) for sign in tests
    )


def _parameters(check: Check) -> Iterator[Any]:
    """Yield the values for `_condition`."""
    if check.keys is not None:
        for number in range(len(check.key)):
            yield [key[number] for key in check.keys]
    for bound in (check.after, check.upto):
        yield from bound or ()


def _listed(parts: Iterator[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _name(*parts: str) -> sql.SQL:
    """Return an identifier that can stand in a statement with parameters: the driver reads its ``%``, too."""
    return sql.SQL(sql.Identifier(*parts).as_string(None).replace("%", "%%"))
