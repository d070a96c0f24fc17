"""Writes a plan of few rows by a statement for each row, in one round trip. Knows SQL and the plan.

A staging table costs as much as some fifty such statements: it is made, filled, and emptied at every COMMIT,
with its files. So small plans go without one, and so do records that must be applied one after the other.

Only plans are written like this whose statements say by their row counts alone what they did: nothing stands
between them and the table. When in doubt nothing is written, and staging is the way (writer.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql

from syncdata.apply.plan.schema import ColumnType
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter
from syncdata.apply.plan.values import to_text
from syncdata.apply.postgres.pieces import TargetNames, assignments, names_of

# Measured: from some sixty rows on, a staging table costs the server less.
MOST_ROWS = 50

_MOST_QUERIES = 1_000


class DoubtfulError(Exception):
    """A statement did not do what it was expected to do; what was written must be rolled back."""


class DirectWriter:
    """Writes to the tables of one connection. ``is_silent``: triggers and foreign keys stand aside."""

    def __init__(self, connection: Connection[Any], *, is_silent: bool) -> None:
        self._connection = connection
        self._is_silent = is_silent
        self._queries: dict[tuple[Any, ...], bytes] = {}

    def suits(self, plan: TablePlan) -> bool:
        """Tell whether `write` may be tried with *plan*: it is small, and no row gets another key."""
        schema = plan.schema
        return (
            0 < len(plan.gone) + sum(map(len, plan.writes.values())) <= MOST_ROWS
            and bool(schema.key)
            and schema.has_arbiter
            and not (plan.truncate or plan.rekeyed or plan.removals)
            and all(shape.mode != "move" and shape.columns for shape in plan.writes)
            and not schema.awake_guards(is_silent=self._is_silent)
            and not any(column.is_always_identity for column in schema.columns)
            # A key is compared as it is sent. Staging would make it fit first: numeric(5,2) rounds it, and
            # varchar(5) refuses what is too long. Test:
            # test_a_key_that_its_type_makes_fit_is_not_compared_as_it_was_sent.
            and not any("(" in column.sql_type for column in schema.columns if column.name in schema.key)
        )

    def write(self, target: TargetNames, plan: TablePlan) -> int:
        """Write *plan* in a savepoint of its own; return how many rows it looked for and did not find.

        Raises DoubtfulError and psycopg.Error, with nothing done.
        """
        with self._connection.pipeline() as pipeline, self._connection.transaction():
            sent = list(self._send(target, plan))
            pipeline.sync()
            missing = 0
            for cursor, rows, may_miss in sent:
                if cursor.rowcount > rows or (cursor.rowcount < rows and not may_miss):
                    raise DoubtfulError
                missing += (rows - cursor.rowcount) if may_miss == "counts" else 0
            if missing and plan.replay_if_missing and plan.counts.records > 1:
                raise DoubtfulError
            return missing

    def _send(self, target: TargetNames, plan: TablePlan) -> Iterator[tuple[psycopg.Cursor[Any], int, str]]:
        """Send the statements in the order of keyed.py; yield each with its rows, and what it means if fewer
        are there: it ``counts``, it is as ``good``, or, if that is empty, it must not be."""
        for is_expected, miss in ((True, "counts"), (False, "good")):
            if keys := [key for key, expected in plan.gone.items() if expected is is_expected]:
                yield self._run(self._removal(target), keys), len(keys), miss
        for mode in ("update", "upsert"):
            for shape, rows in plan.writes.items():
                if shape.mode == mode == "update":
                    key_of = key_getter(shape.columns, plan.schema.key)
                    settable = target.settable(shape.columns)
                    where = [shape.columns.index(name) for name in settable]
                    values = [(*(row[at] for at in where), *key_of(row)) for row in rows]
                    yield self._run(self._update(target, shape), values), len(rows), "counts"
                elif shape.mode == mode == "upsert":
                    # What has no column beside the key is left alone where it is.
                    miss = "" if target.settable(shape.columns) else "good"
                    yield self._run(self._upsert(target, shape), rows), len(rows), miss

    def _run(self, query: bytes, rows: Iterable[Sequence[Any]]) -> psycopg.Cursor[Any]:
        cursor = psycopg.Cursor(self._connection)
        # As text without a type, as COPY would send it: the column's input function reads it.
        cursor.executemany(query, [[to_text(value, ColumnType()) for value in row] for row in rows])
        return cursor

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
        settable = target.settable(shape.columns)
        return self._query(
            target,
            "upsert",
            shape.columns,
            # The alias, for a table may be called "excluded".
            "INSERT INTO {relation} AS t ({names}) VALUES ({values}) ON CONFLICT ({key}) DO {action}",
            names=names_of(shape.columns),
            values=sql.SQL(", ").join([sql.Placeholder()] * len(shape.columns)),
            key=sql.SQL(", ").join(target.key),
            action=sql.SQL("UPDATE SET {}").format(assignments(settable, "excluded"))
            if settable
            else sql.SQL("NOTHING"),
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
