"""The statements for a table as a whole: empty it, exchange its rows, advance its sequences.

Functions over a cursor, in the caller's transaction. Knows SQL; knows nothing of records or checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.pieces import TargetNames, assignments, equalities, names_of, relation_of

Cursor = psycopg.Cursor[Any]


def empty_all(cursor: Cursor, schemas: Sequence[TableSchema]) -> None:
    """Remove all rows of the tables of *schemas*, which come parents first; with one TRUNCATE if possible."""
    if not schemas:
        return
    relations = sql.SQL(", ").join(relation_of(schema) for schema in schemas)
    try:
        with cursor.connection.transaction():
            cursor.execute(sql.SQL("TRUNCATE {}").format(relations))
    except psycopg.errors.FeatureNotSupported:
        for schema in reversed(schemas):
            empty(cursor, schema)


def empty(cursor: Cursor, schema: TableSchema) -> None:
    """Remove all rows of one table."""
    # PostgreSQL refuses to truncate a table that others refer to, even where their keys stand aside.
    # Test: test_truncate_empties_the_table_although_an_outside_table_refers_to_it.
    verb: LiteralString = "DELETE FROM {}" if schema.has_inbound_keys else "TRUNCATE {}"
    cursor.execute(sql.SQL(verb).format(relation_of(schema)))


def exchange(cursor: Cursor, live: TableSchema, shadow: TableSchema, *, is_silent: bool) -> None:
    """Give *live* the rows of *shadow*.

    *is_silent*: triggers and foreign keys stand aside. Where they do not, rows that others refer to must not
    vanish even for a moment: a delete could cascade. So only the rows whose keys are gone are deleted, and
    the others are upserted. Test: test_a_resync_exchanges_unique_values_under_a_deferrable_key.
    """
    target = TargetNames(live)
    if is_silent or not live.key or not live.has_inbound_keys:
        cursor.execute(sql.SQL("DELETE FROM {}").format(target.relation))
        _insert_from(cursor, target, shadow, on_conflict=sql.SQL(""))
        return
    same = equalities(target.key, "t", target.key, "s")
    cursor.execute(
        sql.SQL("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {})").format(
            target.relation, relation_of(shadow), same
        )
    )
    settable = target.settable(target.columns)
    if live.is_key_deferrable:  # which ON CONFLICT cannot use
        if settable:
            cursor.execute(
                sql.SQL("UPDATE {} t SET {} FROM {} s WHERE {}").format(
                    target.relation, assignments(settable, "s"), relation_of(shadow), same
                )
            )
        on_conflict = sql.SQL("WHERE NOT EXISTS (SELECT FROM {} t WHERE {})").format(target.relation, same)
    else:
        on_conflict = sql.SQL("ON CONFLICT ({}) DO {}").format(
            sql.SQL(", ").join(target.key),
            sql.SQL("UPDATE SET {}").format(assignments(settable, "excluded"))
            if settable
            else sql.SQL("NOTHING"),
        )
    _insert_from(cursor, target, shadow, on_conflict=on_conflict)


def _insert_from(
    cursor: Cursor, target: TargetNames, shadow: TableSchema, *, on_conflict: sql.Composable
) -> None:
    cursor.execute(
        sql.SQL(
            "INSERT INTO {live} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {shadow} s {on_conflict}"
        ).format(
            live=target.relation,
            columns=names_of(target.columns),
            shadow=relation_of(shadow),
            on_conflict=on_conflict,
        )
    )


def advance_sequences(cursor: Cursor, schema: TableSchema) -> None:
    """Set the table's sequences to at least its highest value, so that a local insert finds a free one.

    A sequence is never set back, nor beyond its own bounds. Not transactional, like nextval; harmless, for a
    sequence may run ahead. Needs UPDATE on the sequence. Test: test_a_developer_can_insert_after_a_sync.
    """
    for column, sequence in schema.sequences:
        cursor.execute(
            sql.SQL(
                "SELECT setval({sequence}::oid::regclass, top::bigint) FROM (SELECT max({column}) AS top"
                " FROM {relation}) t, pg_sequence s WHERE s.seqrelid = {sequence}::oid"
                " AND s.seqincrement > 0 AND top BETWEEN s.seqmin AND s.seqmax"
                " AND top > coalesce(pg_sequence_last_value(s.seqrelid), s.seqmin - 1)"
            ).format(
                sequence=sql.Literal(sequence),
                column=sql.Identifier(column),
                relation=relation_of(schema),
            )
        )
