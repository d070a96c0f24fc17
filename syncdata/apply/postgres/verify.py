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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
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
    limit_statements,
)
from syncdata.apply.sink import Verdict
from syncdata.apply.state.checkpoints import TableCheckpoint, lock_checkpoints, read_checkpoints_of
from syncdata.apply.state.verifications import keep_end, keep_verdict
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """A check, and how the table with that schema is held to it."""

    check: Check
    schema: TableSchema | None
    comparison: Comparison


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
    plans = []
    for check in checks:
        schema = schemas.get(check.name)
        comparison = plan_comparison(check, entries.get(check.name), schema)
        plans.append(_Plan(_shown(check, schema), schema, comparison))
    judged = [
        (checkpoint, _judge(plan.check, plan.comparison, found))
        for plan, (checkpoint, found) in zip(plans, _look(connection, plans), strict=False)
        if checkpoint is not None and _is_at(checkpoint, position, plan.check)
    ]
    return _keep(connection, judged, position, now=clock())


def _shown(check: Check, schema: TableSchema | None) -> Check:
    """Return *check* as it may be kept: where this side masks a column of the key, its bounds are values that
    must not be here. Nothing is compared within them then. Test:
    test_bounds_of_a_key_that_is_masked_here_are_kept_nowhere."""
    if schema is None or schema.rules is None or not schema.rules.names & set(check.key):
        return check
    return msgspec.structs.replace(check, after=None, upto=None, keys=None)


def pass_over(
    connection: Connection[Any],
    ends: Sequence[Check],
    schemas: Mapping[TableName, TableSchema],
    *,
    position: Position,
    now: dt.datetime,
) -> None:
    """Note that rounds of tables, which have the *schemas* and stand at *position*, ended with *ends*, which
    were passed over."""
    with connection.transaction():
        locked = {found.table: found for found in lock_checkpoints(connection, [end.name for end in ends])}
        for end in ends:
            if (checkpoint := locked.get(end.name)) is not None and _is_at(checkpoint, position, end):
                keep_end(connection, _shown(end, schemas.get(end.name)), checkpoint, now=now)


def _keep(
    connection: Connection[Any],
    judged: Sequence[tuple[TableCheckpoint, Verdict]],
    position: Position,
    *,
    now: dt.datetime,
) -> list[Verdict]:
    """Keep the verdicts, each of which was found at a checkpoint, and return them; but for those where that
    has moved, or is locked."""
    kept = []
    if not judged:
        return []
    try:
        with connection.transaction():
            # A resync that ends just now may hold it for longer.
            limit_lock_waits(connection, LOCK_LIMIT_S)
            tables = dict.fromkeys(verdict.table for _, verdict in judged)
            locked = {found.table: found for found in lock_checkpoints(connection, list(tables))}
            for checkpoint, verdict in judged:
                known = locked.get(verdict.table)
                if known is None or known.id != checkpoint.id or not _is_at(known, position, verdict.check):
                    continue
                locked[verdict.table] = keep_verdict(connection, verdict, known, now=now)
                kept.append(verdict)
    except psycopg.errors.LockNotAvailable:
        # One table's lock costs no other its verdict.
        one_by_one = [[one] for one in judged] if len(judged) > 1 else []
        return [verdict for one in one_by_one for verdict in _keep(connection, one, position, now=now)]
    return kept


def _is_at(checkpoint: TableCheckpoint, position: Position, check: Check) -> bool:
    """Tell whether the table stands at *position*, with no rows of a snapshot that is newer than *check*."""
    mine = checkpoint.position
    is_there = (mine.order, mine.source_id) == (position.order, position.source_id)
    return is_there and (mine.commit_lsn is None or mine.commit_lsn <= parse_lsn(check.lsn))


_Looks = list[tuple[TableCheckpoint | None, _Found]]


def _look(connection: Connection[Any], plans: Sequence[_Plan]) -> _Looks:
    """Return for the *plans*, in their order, the checkpoint of the table and the rows in the bounds of the
    check, both of one moment. When that takes long in all, the last of them are left out."""
    looks: _Looks = []
    until_s = time.monotonic() + LIMIT_S
    are_whole = all(plan.check.is_of_whole_table for plan in plans)
    while len(looks) < len(plans) and time.monotonic() < until_s:
        checkpoints: dict[TableName, TableCheckpoint] = {}
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                names = [plan.check.name for plan in plans[len(looks) :]]
                checkpoints |= {found.table: found for found in read_checkpoints_of(connection, names)}
                limit_lock_waits(connection, LOCK_LIMIT_S)
                limit_statements(connection, LIMIT_S)
                for plan in plans[len(looks) :]:
                    if not are_whole:
                        # Those few rows are found by the key's index, whatever the planner makes of old
                        # statistics.
                        allow_only_nested_loops(cursor, not plan.check.is_of_whole_table)
                    looks.append((checkpoints.get(plan.check.name), _read(cursor, plan)))
                    if time.monotonic() > until_s:
                        break
        except psycopg.Error as error:
            if len(looks) == len(plans) or (trouble := _trouble(error)) is None:
                raise
            # It ends the transaction, but is that check's own: those behind it are looked at in another.
            looks.append((checkpoints.get(plans[len(looks)].check.name), _Found(trouble=trouble)))
    return looks


def _trouble(error: psycopg.Error) -> str | None:
    """Return why rows could not be read, where it is for a reason of their own."""
    match error:
        case psycopg.errors.QueryCanceled():
            return f"that took longer than {LIMIT_S:g} seconds"
        case psycopg.errors.LockNotAvailable():
            return "others held a lock on the table"
    return None if is_servers_fault(error) else f"the database refuses to read them ({kind_of(error)})"


def _read(cursor: psycopg.Cursor[Any], plan: _Plan) -> _Found:
    if plan.schema is None or plan.comparison.problem:
        return _Found(trouble=plan.comparison.problem)
    comparison = _in_local_order(cursor, plan)
    if comparison.problem:
        return _Found(trouble=comparison.problem)
    row = cursor.execute(*_statement(cursor.connection, plan.check, comparison, plan.schema)).fetchone()
    assert row is not None
    return _Found(row[0], row[1])


# A row comparison can use an index that begins with its first column, in the same collation. Without one, to
# read the whole of a small table costs little.
_SMALL_BYTES = 16 << 20
_ORDERS = """
SELECT a.attname::text,
    a.attcollation IN ('pg_catalog."C"'::regcollation, 'pg_catalog."POSIX"'::regcollation)
    OR a.attcollation = 'pg_catalog."default"'::regcollation AND (
        SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' AND d.datcollate IN ('C', 'POSIX')
        FROM pg_database d WHERE d.datname = current_database()),
    EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum
            AND i.indcollation[0] = 'pg_catalog."C"'::regcollation AND i.indisvalid AND i.indpred IS NULL
    ) OR %(small)s >= coalesce(
        (SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(a.attrelid::regclass)),
        pg_relation_size(a.attrelid::regclass))
FROM pg_attribute a WHERE a.attrelid = %(table)s AND a.attname = ANY(%(columns)s)
"""


def _in_local_order(cursor: psycopg.Cursor[Any], plan: _Plan) -> Comparison:
    """Return the comparison, in which those columns of the key that are in the order of their bytes by
    themselves, so that their index has it, are taken as they are. A large table of which no index has that
    order cannot be compared: each of its chunks would have all of it read.
    Tests: test_texts_in_the_order_of_their_bytes_are_found_by_their_index,
    test_a_large_table_in_another_order_is_not_read_as_a_whole_for_each_chunk."""
    comparison, check = plan.comparison, plan.check
    texts = [column.name for column in comparison.key if column.is_text]
    if not texts or check.keys is not None or plan.schema is None:
        return comparison
    rows = cursor.execute(
        _ORDERS, {"table": plan.schema.oid, "columns": texts, "small": _SMALL_BYTES}
    ).fetchall()
    by_itself = {name for name, is_by_itself, _ in rows if is_by_itself}
    first = comparison.key[0]
    if first.is_text and not any(row[0] == first.name and (row[1] or row[2]) for row in rows):
        return Comparison(
            problem=f"column {first.name} of the key has another collation here than in production, and the"
            " table no index with that one"
        )
    key = tuple(
        replace(column, is_text=column.name not in by_itself and column.is_text) for column in comparison.key
    )
    return replace(comparison, key=key)


def _judge(check: Check, comparison: Comparison, found: _Found) -> Verdict:
    is_equal: bool | None = None
    reason = comparison.problem or found.trouble
    if not reason:
        if found.rows != check.rows:
            is_equal, reason = False, f"{check.rows:,} at production, {found.rows:,} here"
        elif comparison.unhashed:
            reason = comparison.unhashed
        elif check.hash is not None and found.hash != check.hash and comparison.doubt:
            reason = comparison.doubt
        elif check.hash is not None and found.hash != check.hash:
            is_equal, reason = False, f"of {check.rows:,} some have other values"
        else:
            is_equal, reason = True, comparison.left_out
    return Verdict(table=check.name, check=check, is_equal=is_equal, rows_here=found.rows, reason=reason)


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
