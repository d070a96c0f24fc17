"""The statements for a table as a whole: empty it, exchange its rows, advance its sequences.

Functions over a cursor, in the caller's transaction. Knows SQL; knows nothing of records or checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from syncdata.apply.plan.schema import ColumnSequence, TableSchema
from syncdata.apply.postgres.connection import allow_only_nested_loops
from syncdata.apply.postgres.held import fixed_error, refused, require_changed, require_visible
from syncdata.apply.postgres.pieces import (
    TargetNames,
    assignments,
    equalities,
    names_of,
    on_conflict,
    relation_of,
    rows_of,
)
from syncdata.apply.sink import Differences

Cursor = psycopg.Cursor[Any]


def empty_all(cursor: Cursor, schemas: Sequence[TableSchema], *, is_silent: bool) -> None:
    """Remove all rows of the tables of *schemas*, which come parents first; with one TRUNCATE if possible.

    Raises RefusedError where a table keeps rows.
    """
    if not schemas:
        return
    relations = sql.SQL(", ").join(rows_of(schema) for schema in schemas)
    try:
        with cursor.connection.transaction():
            cursor.execute(sql.SQL("TRUNCATE {}").format(relations))
    except psycopg.errors.FeatureNotSupported:
        for schema in reversed(schemas):
            empty(cursor, schema, is_silent=is_silent)


def empty(cursor: Cursor, schema: TableSchema, *, is_silent: bool) -> None:
    """Remove all rows of one table. Raises RefusedError where it keeps some."""
    if not schema.has_inbound_keys:
        try:
            with cursor.connection.transaction():
                cursor.execute(sql.SQL("TRUNCATE {}").format(rows_of(schema)))
                return
        except psycopg.errors.ObjectInUse:
            pass  # constraints of rows that this transaction has written wait to be checked
    # PostgreSQL refuses to truncate a table that others refer to, even where their keys stand aside.
    # Test: test_truncate_empties_the_table_although_an_outside_table_refers_to_it.
    removed = cursor.execute(sql.SQL("DELETE FROM {}").format(rows_of(schema))).rowcount
    left = _count(cursor, rows_of(schema))
    require_changed(schema, "DELETE", found=removed + left, changed=removed, is_silent=is_silent)


def exchange(cursor: Cursor, live: TableSchema, shadow: TableSchema, *, is_silent: bool) -> None:
    """Give *live* the rows of *shadow*. Raises RefusedError where it does not have exactly these then.

    *is_silent*: triggers and foreign keys stand aside. Where they do not, rows that others refer to must not
    vanish even for a moment: a delete could cascade. So only the rows whose keys are gone are deleted, and
    the others are upserted. Test: test_a_resync_exchanges_unique_values_under_a_deferrable_key.
    """
    require_visible(live)
    target = TargetNames(live)
    if not is_silent and live.key and live.has_inbound_keys:
        _exchange_by_key(cursor, target, shadow)
    elif live.key and not live.awake_guards(is_silent=is_silent) and _may_keep_rows(cursor, target):
        _exchange_differing(cursor, target, shadow)
    else:
        removed = cursor.execute(sql.SQL("DELETE FROM {}").format(target.rows)).rowcount
        if live.awake_guards(is_silent=is_silent):
            left = _count(cursor, target.rows)
            require_changed(live, "DELETE", found=removed + left, changed=removed, is_silent=is_silent)
        _insert_from(cursor, target, shadow, those_there=sql.SQL(""))
    # Tests: test_a_resync_that_a_rule_or_a_trigger_keeps_back_fails,
    # test_a_resync_whose_values_a_trigger_changes_fails.
    counts = sql.SQL("SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {})")
    rows, equal = cursor.execute(counts.format(relation_of(shadow), target.rows)).fetchone() or (0, 0)
    if equal == rows and any(guard.kind == "trigger" for guard in live.awake_guards(is_silent=is_silent)):
        equal = _count_equal(cursor, target, shadow)
    if equal != rows:
        what = f"{rows} rows were to take the place of the old ones, and {equal} did"
        raise refused(live, "INSERT", what, is_silent=is_silent)


def _may_keep_rows(cursor: Cursor, target: TargetNames) -> bool:
    """Tell whether the table has rows, all of which its constraints hold for: those that are NOT VALID, or a
    partition's own, are asked of each row again. Test:
    test_a_table_that_cannot_be_resynced_stops_none_of_those_beside_it."""
    if target.schema.is_partitioned:
        return False
    query = sql.SQL(
        "SELECT EXISTS (SELECT FROM {}) AND NOT EXISTS"
        " (SELECT FROM pg_constraint WHERE conrelid = {}::oid AND NOT convalidated)"
    ).format(target.rows, sql.Literal(target.schema.oid))
    (may_keep,) = cursor.execute(query).fetchone() or (False,)
    return bool(may_keep)


def _exchange_differing(cursor: Cursor, target: TargetNames, shadow: TableSchema) -> None:
    """Exchange the rows that are not the same to the last bit; the others, mostly nearly all, stay.

    Orders 1 and 2 are as they were, 3 has another status, 4 is gone and 5 is new: 3 and 4 are deleted, 3 and
    5 inserted. To delete and insert all of them would cost more, and leave the table twice as large. Test:
    test_a_resync_leaves_rows_that_do_not_differ_where_they_are.
    """
    # "*=" compares what is stored, whatever the types, so that 1.0 and 1.00 differ, or two texts that a
    # collation takes for equal. Two lists in ROW() would be compared column by column. Source: "Row and Array
    # Comparisons" of the PostgreSQL documentation.
    same = equalities(target.key, "t", target.key, "s")
    equal = sql.SQL("{} AND ROW({})::record *= ROW({})::record").format(
        same,
        *(sql.SQL(", ").join(sql.Identifier(alias, name) for name in target.columns) for alias in ("t", "s")),
    )
    # Here a join of all rows is what is wanted.
    allow_only_nested_loops(cursor, False)
    cursor.execute(
        sql.SQL("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {})").format(
            target.rows, relation_of(shadow), equal
        )
    )
    missing = sql.SQL("WHERE NOT EXISTS (SELECT FROM {} t WHERE {})").format(target.rows, same)
    _insert_from(cursor, target, shadow, those_there=missing)


def _exchange_by_key(cursor: Cursor, target: TargetNames, shadow: TableSchema) -> None:
    live = target.schema
    same = equalities(target.key, "t", target.key, "s")
    fixed = [sql.Identifier(name) for name in live.fixed]
    # A row whose column that no UPDATE may set differs goes, and comes again with the others.
    # Test: test_a_resync_brings_an_identity_that_is_always_generated.
    equal = sql.SQL(" AND ").join([same, equalities(fixed, "t", fixed, "s")]) if fixed else same
    if fixed and live.has_cascades:
        changed = sql.SQL("{} t JOIN {} s ON {} WHERE NOT ({})").format(
            target.rows, relation_of(shadow), same, equalities(fixed, "t", fixed, "s")
        )
        if _count(cursor, changed):
            raise fixed_error(live.fixed[0])
    cursor.execute(
        sql.SQL("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {})").format(
            target.rows, relation_of(shadow), equal
        )
    )
    settable = target.settable(target.columns)
    if not live.has_arbiter:  # ON CONFLICT cannot use the key
        if settable:
            cursor.execute(
                sql.SQL("UPDATE {} t SET {} FROM {} s WHERE {}").format(
                    target.rows, assignments(settable, "s"), relation_of(shadow), same
                )
            )
        those_there = sql.SQL("WHERE NOT EXISTS (SELECT FROM {} t WHERE {})").format(target.rows, same)
    else:
        those_there = sql.SQL("ON CONFLICT ({}) DO {}").format(
            sql.SQL(", ").join(target.key), on_conflict(settable)
        )
    _insert_from(cursor, target, shadow, those_there=those_there)


# A row stands for its text. Of the texts that one side has more often, those with one key on both sides are a
# row with other values; where there is no key, the text is the key.
_DIFFERENCES = """
SELECT coalesce(sum(missing - least(missing, too_many)), 0)::bigint,
    coalesce(sum(too_many - least(missing, too_many)), 0)::bigint,
    coalesce(sum(least(missing, too_many)), 0)::bigint
FROM (
    SELECT sum(greatest(wanted - here, 0)) AS missing, sum(greatest(here - wanted, 0)) AS too_many
    FROM (
        SELECT key, sum(here) AS here, sum(1 - here) AS wanted
        FROM (
            SELECT ROW({key})::text AS key, ROW({columns})::text AS row, 1 AS here FROM {live}
            UNION ALL SELECT ROW({key})::text, ROW({columns})::text, 0 FROM {shadow}
        ) AS rows (key, row, here) GROUP BY key, row HAVING sum(here) <> sum(1 - here)
    ) AS unequal GROUP BY key
) AS keys
"""


def differences(
    cursor: Cursor, live: TableSchema, shadow: TableSchema, *, columns: Sequence[str]
) -> Differences:
    """Return in how many rows *live* differs from *shadow*, by their key and the texts of *columns*."""
    require_visible(live)
    statement = sql.SQL(_DIFFERENCES).format(
        key=names_of(live.key or columns),
        columns=names_of(columns),
        live=rows_of(live),
        shadow=relation_of(shadow),
    )
    missing, too_many, different = cursor.execute(statement).fetchone() or (0, 0, 0)
    rows = _count(cursor, relation_of(shadow))
    return Differences(rows=rows, missing=missing, too_many=too_many, different=different)


def _count(cursor: Cursor, rows: sql.Composable) -> int:
    (number,) = cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(rows)).fetchone() or (0,)
    return int(number)


def _count_equal(cursor: Cursor, target: TargetNames, shadow: TableSchema) -> int:
    """Return how many rows of *shadow* the table holds, compared by their text."""
    row = sql.SQL("SELECT ROW({})::text FROM {}")
    columns = names_of(target.columns)
    return _count(
        cursor,
        sql.SQL("({} INTERSECT ALL {}) s").format(
            row.format(columns, target.rows), row.format(columns, relation_of(shadow))
        ),
    )


def _insert_from(
    cursor: Cursor, target: TargetNames, shadow: TableSchema, *, those_there: sql.Composable
) -> None:
    # A list of no columns is no SQL. Test: test_a_table_without_columns_of_its_own_arrives_by_every_way.
    into = "({columns}) OVERRIDING SYSTEM VALUE" if target.columns else ""
    cursor.execute(
        sql.SQL("INSERT INTO {live} AS t " + into + " SELECT {columns} FROM {shadow} s {those_there}").format(
            live=target.relation,
            columns=names_of(target.columns),
            shadow=relation_of(shadow),
            those_there=those_there,
        )
    )


def advance_sequences(cursor: Cursor, schema: TableSchema) -> None:
    """Set the table's sequences to at least its highest values, so that a local insert finds a free one.

    Test: test_a_developer_can_insert_after_a_sync.
    """
    for sequence in schema.sequences:
        advance_sequence(cursor, sequence, highest_of(schema, sequence))


def highest_of(schema: TableSchema, sequence: ColumnSequence) -> sql.Composable:
    """Return the highest value of the column of *sequence*; without an index, all rows are read for it."""
    return sql.SQL("(SELECT max({}) FROM {})").format(sql.Identifier(sequence.column), rows_of(schema))


def advance_sequence(cursor: Cursor, sequence: ColumnSequence, highest: sql.Composable) -> None:
    """Set *sequence* to at least *highest*; it is never set back, nor beyond its own bounds.

    Not transactional, like nextval; harmless, for a sequence may run ahead. One that the role may not move is
    left alone: nor may it draw from it. Test: test_a_sequence_that_the_role_may_not_move_costs_nothing.
    """
    cursor.execute(
        sql.SQL(
            "SELECT setval({sequence}::oid::regclass, top::bigint) FROM (SELECT {highest} AS top) t,"
            " pg_sequence s WHERE s.seqrelid = {sequence}::oid"
            " AND s.seqincrement > 0 AND top BETWEEN s.seqmin AND s.seqmax"
            " AND CASE WHEN has_sequence_privilege(s.seqrelid, 'UPDATE')"
            " AND has_sequence_privilege(s.seqrelid, 'USAGE, SELECT')"
            " THEN top > coalesce(pg_sequence_last_value(s.seqrelid), s.seqmin - 1) END"
        ).format(sequence=sql.Literal(sequence.oid), highest=highest)
    )
