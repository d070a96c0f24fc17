"""Writes a plan of few rows by a statement for each row, in one round trip. Knows SQL and the plan.

A staging table is made, filled, and emptied with its files at every COMMIT of the session, used or not: some
0.3 ms each on PostgreSQL 15. So small plans go without one, and so do records that must be applied one after
the other.

Only plans are written like this whose statements say by their row counts alone what they did: nothing stands
between them and the table. When in doubt nothing is written, and staging is the way (writer.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import Connection, sql

from syncdata.apply.plan.schema import ColumnType, TableSchema
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter
from syncdata.apply.plan.values import to_text
from syncdata.apply.postgres.connection import in_one_trip
from syncdata.apply.postgres.pieces import TargetNames, names_of, on_conflict

# Measured on a table of eight columns and one more index: with more rows than these, staging costs client and
# server together less; the server alone breaks even at fifty.
MOST_ROWS = 20

_MOST_QUERIES = 1_000


class DoubtfulError(Exception):
    """A statement did not do what it was expected to do; what was written must be rolled back."""


# Statements that were each sent for a row, and what it means if one of them found none.
Sent = tuple[list[psycopg.Cursor[Any]], Literal["counts", "good", ""]]


class DirectWriter:
    """Writes to the tables of one connection. ``is_silent``: triggers and foreign keys stand aside."""

    def __init__(self, connection: Connection[Any], *, is_silent: bool) -> None:
        self._connection = connection
        self._is_silent = is_silent
        self._queries: dict[tuple[Any, ...], bytes] = {}

    def is_for(self, schema: TableSchema) -> bool:
        """Tell whether row counts alone say what statements did to the table of *schema*."""
        return (
            bool(schema.key)
            and schema.has_arbiter
            and not schema.awake_guards(is_silent=self._is_silent)
            and not any(column.is_always_identity for column in schema.columns)
            # A key is compared as it is sent. Staging would make it fit first: numeric(5,2) rounds it, and
            # varchar(5) refuses what is too long. Test:
            # test_a_key_that_its_type_makes_fit_is_not_compared_as_it_was_sent.
            and not any("(" in column.sql_type for column in schema.columns if column.name in schema.key)
        )

    def suits(self, plan: TablePlan) -> bool:
        """Tell whether *plan* is small, so that it should be tried with `write`."""
        return 0 < len(plan.gone) + sum(map(len, plan.writes.values())) <= MOST_ROWS and self.is_for(
            plan.schema
        )

    def write(self, plans: Sequence[TablePlan]) -> int:
        """Write *plans* of one table in turn; return how many rows they looked for and did not find.

        In a savepoint of its own. Raises DoubtfulError and psycopg.Error, with nothing done.
        """
        target = TargetNames(plans[0].schema)
        with self._connection.transaction():
            with in_one_trip(self._connection):
                sent = [(plan, list(self._send(target, plan))) for plan in plans]
            return sum(missing_of(plan, statements) for plan, statements in sent)

    def send(self, plan: TablePlan) -> list[Sent]:
        """Send the statements for *plan*, in a pipeline of the caller's; `missing_of` reads the answers.

        Raises DoubtfulError where it cannot go like this.
        """
        return list(self._send(TargetNames(plan.schema), plan))

    def _send(self, target: TargetNames, plan: TablePlan) -> Iterator[Sent]:
        """Send the statements in the order of keyed.py; yield those of a kind, with what it means if one
        finds no row: it ``counts``, it is as ``good``, or, if that is empty, it must not be.

        Raises DoubtfulError where one of several rows gets another key, or the table is emptied: keyed.py
        knows how.
        """
        if (
            plan.truncate
            or plan.rekeyed
            or plan.is_order_sensitive
            or plan.schema != target.schema
            or any(not shape.columns for shape in plan.writes)
        ):
            raise DoubtfulError
        if any(shape.mode == "move" for shape in plan.writes):
            yield self._move_alone(target, plan), "counts"
            return
        if expected := [key for key, is_expected in plan.gone.items() if is_expected]:
            yield self._run(self._removal(target), expected), "counts"
        if others := [key for key, is_expected in plan.gone.items() if not is_expected]:
            yield self._run(self._removal(target), others), "good"
        for mode in ("update", "upsert"):
            for shape, rows in plan.writes.items():
                if shape.mode == mode == "update":
                    key_of = key_getter(shape.columns, plan.schema.key)
                    settable = target.settable(shape.columns)
                    where = [shape.columns.index(name) for name in settable]
                    values = [(*(row[at] for at in where), *key_of(row)) for row in rows]
                    yield self._run(self._update(target, shape), values), "counts"
                elif shape.mode == mode == "upsert":
                    # What has no column beside the key is left alone where it is.
                    may_stay = not target.settable(shape.columns)
                    yield self._run(self._upsert(target, shape), rows), "good" if may_stay else ""

    def _move_alone(self, target: TargetNames, plan: TablePlan) -> list[psycopg.Cursor[Any]]:
        """Send the one row of *plan* to its new key, in place. Raises DoubtfulError where there is more.

        Orders 7 -> 8, 8 -> 9 and so on, from the last one down: one after the other, each finds its new key
        free. Where a row is there after all, the server refuses.
        Test: test_a_chain_of_keys_that_change_costs_a_few_statements_a_record.
        """
        ((shape, rows), *others) = plan.writes.items()
        if others or plan.gone or len(rows) > 1:
            raise DoubtfulError
        ((*values,),) = rows
        width = len(plan.schema.key)
        moved = [*plan.schema.key, *target.settable(shape.columns)]
        by_name = dict(zip(shape.columns, values[width:], strict=True))
        return self._run(
            self._query(
                target,
                "move",
                shape.columns,
                "UPDATE {rows} t SET {assigned} WHERE {same}",
                assigned=sql.SQL(", ").join(
                    sql.SQL("{} = %s").format(sql.Identifier(name)) for name in moved
                ),
            ),
            [[*(by_name[name] for name in moved), *values[:width]]],
        )

    def _run(self, query: bytes, rows: Iterable[Sequence[Any]]) -> list[psycopg.Cursor[Any]]:
        """Send *query* for each of *rows*, by a cursor each, for `executemany` would wait for the answers."""
        # As text without a type, as COPY would send it: the column's input function reads it.
        return [
            psycopg.Cursor(self._connection).execute(query, [to_text(value, ColumnType()) for value in row])
            for row in rows
        ]

    def _removal(self, target: TargetNames) -> bytes:
        return self._query(target, "remove", (), "DELETE FROM {rows} t WHERE {same}")

    def _update(self, target: TargetNames, shape: Shape) -> bytes:
        settable = target.settable(shape.columns)
        if not settable:
            return self._query(target, "find", (), "SELECT FROM {rows} t WHERE {same}")
        return self._query(
            target,
            "update",
            shape.columns,
            "UPDATE {rows} t SET {assigned} WHERE {same}",
            assigned=sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in settable),
        )

    def _upsert(self, target: TargetNames, shape: Shape) -> bytes:
        return self._query(
            target,
            "upsert",
            shape.columns,
            # The alias, for a table may be called "excluded".
            "INSERT INTO {relation} AS t ({names}) VALUES ({values}) ON CONFLICT ({key}) DO {action}",
            names=names_of(shape.columns),
            values=sql.SQL(", ").join([sql.Placeholder()] * len(shape.columns)),
            key=sql.SQL(", ").join(target.key),
            action=on_conflict(target.settable(shape.columns)),
        )

    def _query(
        self,
        target: TargetNames,
        kind: str,
        columns: tuple[str, ...],
        statement: LiteralString,
        **parts: sql.Composable,
    ) -> bytes:
        """Return *statement* as text, which is made once for a table: making it costs more than sending."""
        known = (target.schema.written_to, target.suffix, kind, columns)
        if known not in self._queries:
            if len(self._queries) >= _MOST_QUERIES:
                self._queries.clear()
            same = sql.SQL(" AND ").join(sql.SQL("t.{} = %s").format(name) for name in target.key)
            composed = sql.SQL(statement).format(
                relation=target.relation, rows=target.rows, same=same, **parts
            )
            self._queries[known] = composed.as_bytes(self._connection)
        return self._queries[known]


def missing_of(plan: TablePlan, sent: Sequence[Sent]) -> int:
    """Return how many rows the statements of *plan* did not find. Raises DoubtfulError."""
    missing = 0
    for cursors, miss in sent:
        not_there = len(cursors) - sum(cursor.rowcount for cursor in cursors)
        if any(cursor.rowcount > 1 for cursor in cursors) or (not_there and not miss):
            raise DoubtfulError
        if miss == "counts":
            missing += not_there
    if missing and plan.replay_if_missing and plan.counts.records > 1:
        raise DoubtfulError
    return missing
