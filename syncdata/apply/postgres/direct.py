"""Writes a plan of few rows by a statement for each row, in one round trip. Knows SQL and the plan.

A staging table is made, filled, and emptied with its files at every COMMIT of the session, used or not: some
0.3 ms each on PostgreSQL 15. So small plans go without one, and so do records that must be applied one after
the other.

Only plans are written like this whose statements say by their row counts alone what they did: nothing stands
between them and the table. When in doubt nothing is written, and staging is the way (writer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import psycopg
from psycopg import Connection, sql

from syncdata.apply.plan.schema import ColumnType, TableSchema
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter
from syncdata.apply.plan.values import to_text
from syncdata.apply.postgres.connection import is_servers_fault
from syncdata.apply.postgres.pieces import TargetNames, names_of, on_conflict
from syncdata.apply.postgres.script import Bound, StatementError, run_pipeline

# Measured on a table of eight columns and one more index: with more rows than these, staging costs client and
# server together less; the server alone breaks even at fifty.
MOST_ROWS = 20

_MOST_QUERIES = 1_000
_MOST_TARGETS = 200


class DoubtfulError(Exception):
    """A statement did not do what it was expected to do; what was written must be rolled back."""


class InTurnError(Exception):
    """Of plans that were written in turn, the one of that ``number`` is the first that cannot go like this.
    ``error``: what the server said, if it was the server."""

    def __init__(self, number: int, error: psycopg.Error | None) -> None:
        super().__init__(number)
        self.number = number
        self.error = error


# Statements for rows of one kind, and what it means if one of them finds none.
Step = tuple[list[Bound], Literal["counts", "good", ""]]


class DirectWriter:
    """Writes to the tables of one connection. ``is_silent``: triggers and foreign keys stand aside."""

    def __init__(self, connection: Connection[Any], *, is_silent: bool) -> None:
        self._connection = connection
        self._is_silent = is_silent
        self._queries: dict[tuple[Any, ...], bytes] = {}
        self._targets: dict[int, TargetNames] = {}

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

        In a savepoint of its own. Raises InTurnError, with nothing done, and psycopg.Error when the server is
        at fault.
        """
        steps, statements = [], []
        for number, plan in enumerate(plans):
            try:
                steps.append(self.steps(plan))
            except (DoubtfulError, psycopg.DataError):
                raise InTurnError(number, None) from None
            statements += [(number, statement) for of_kind, _ in steps[-1] for statement in of_kind]
        with self._connection.transaction():
            try:
                counts = iter(run_pipeline(self._connection, [statement for _, statement in statements]))
            except StatementError as failure:
                if is_servers_fault(failure.error):
                    raise failure.error from None
                raise InTurnError(statements[failure.number][0], failure.error) from None
            missing = 0
            for number, (plan, of_plan) in enumerate(zip(plans, steps, strict=True)):
                try:
                    missing += missing_of(plan, of_plan, counts)
                except DoubtfulError:
                    raise InTurnError(number, None) from None
            return missing

    def steps(self, plan: TablePlan) -> list[Step]:
        """Return the statements for *plan*; `missing_of` reads what came of them.

        Raises DoubtfulError where it cannot go like this, and psycopg.DataError for a value that cannot be.
        """
        return list(self._steps(self._target(plan.schema), plan))

    def sure_writes(self, plan: TablePlan) -> Iterator[tuple[bytes, list[list[str | None]]]]:
        """Yield the statements for the rows that *plan* writes, each with the values of all its rows.

        Their row counts tell nothing: one that is to insert a row, or else to update it, fails where it does
        neither. The row of an UPDATE must have been looked for.
        """
        target = self._target(plan.schema)
        for shape, rows in plan.writes.items():
            if shape.mode == "update":
                values, query = self._updated(target, shape, rows), self._update(target, shape)
            else:
                values, query = rows, self._sure_upsert(target, shape)
            yield query, [[to_text(value, ColumnType()) for value in row] for row in values]

    def _target(self, schema: TableSchema) -> TargetNames:
        target = self._targets.get(schema.oid)
        if target is None or target.schema is not schema:
            if len(self._targets) >= _MOST_TARGETS:
                self._targets.clear()
            target = self._targets[schema.oid] = TargetNames(schema)
        return target

    def _steps(self, target: TargetNames, plan: TablePlan) -> Iterator[Step]:
        """Yield the statements in the order of keyed.py, those of a kind together, with what it means if one
        finds no row: it ``counts``, it is as ``good``, or, if that is empty, it must not be.

        Raises DoubtfulError where one of several rows gets another key, or the table is emptied: keyed.py
        knows how.
        """
        if (
            plan.truncate
            or plan.rekeyed
            or plan.is_order_sensitive
            or any(not shape.columns for shape in plan.writes)
        ):
            raise DoubtfulError
        if any(shape.mode == "move" for shape in plan.writes):
            yield self._move_alone(target, plan), "counts"
            return
        if expected := [key for key, is_expected in plan.gone.items() if is_expected]:
            yield _bind(self._removal(target), expected), "counts"
        if others := [key for key, is_expected in plan.gone.items() if not is_expected]:
            yield _bind(self._removal(target), others), "good"
        for mode in ("update", "upsert"):
            for shape, rows in plan.writes.items():
                if shape.mode == mode == "update":
                    values = self._updated(target, shape, rows)
                    yield _bind(self._update(target, shape), values), "counts"
                elif shape.mode == mode == "upsert":
                    # What has no column beside the key is left alone where it is.
                    may_stay = not target.settable(shape.columns)
                    yield _bind(self._upsert(target, shape), rows), "good" if may_stay else ""

    def _updated(
        self, target: TargetNames, shape: Shape, rows: Sequence[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """Return the values of each of *rows* as `_update` takes them."""
        key_of = key_getter(shape.columns, target.schema.key)
        where = [shape.columns.index(name) for name in target.settable(shape.columns)]
        return [(*(row[at] for at in where), *key_of(row)) for row in rows]

    def _move_alone(self, target: TargetNames, plan: TablePlan) -> list[Bound]:
        """Return what brings the one row of *plan* to its new key, in place. Raises DoubtfulError where there
        is more.

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
        query = self._query(target, "move", shape.columns, lambda: _update_of(target, moved))
        return _bind(query, [[*(by_name[name] for name in moved), *values[:width]]])

    def _removal(self, target: TargetNames) -> bytes:
        return self._query(
            target,
            "remove",
            (),
            lambda: sql.SQL("DELETE FROM {rows} t WHERE {same}").format(rows=target.rows, same=_same(target)),
        )

    def _update(self, target: TargetNames, shape: Shape) -> bytes:
        if settable := target.settable(shape.columns):
            return self._query(target, "update", shape.columns, lambda: _update_of(target, settable))
        return self._query(
            target,
            "find",
            (),
            lambda: sql.SQL("SELECT FROM {rows} t WHERE {same}").format(rows=target.rows, same=_same(target)),
        )

    def _upsert(self, target: TargetNames, shape: Shape) -> bytes:
        return self._query(target, "upsert", shape.columns, lambda: _upsert_of(target, shape))

    def _sure_upsert(self, target: TargetNames, shape: Shape) -> bytes:
        return self._query(
            target,
            "sure upsert",
            shape.columns,
            lambda: sql.SQL("WITH r AS ({} RETURNING 1) SELECT 1 / count(*) FROM r").format(
                _upsert_of(target, shape)
            ),
        )

    def _query(
        self,
        target: TargetNames,
        kind: str,
        columns: tuple[str, ...],
        compose: Callable[[], sql.Composed],
    ) -> bytes:
        """Return what *compose* returns as text. It is done once for a table: it costs more than sending."""
        known = (target.schema.written_to, target.suffix, kind, columns)
        if known not in self._queries:
            if len(self._queries) >= _MOST_QUERIES:
                self._queries.clear()
            self._queries[known] = compose().as_bytes(self._connection)
        return self._queries[known]


# The parameters of each statement are the values that it sets, in their order, then the key that the row has.


def _update_of(target: TargetNames, columns: Sequence[str]) -> sql.Composed:
    return sql.SQL("UPDATE {rows} t SET {assigned} WHERE {same}").format(
        rows=target.rows,
        assigned=sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), _parameter(number))
            for number, name in enumerate(columns, start=1)
        ),
        same=_same(target, first=len(columns) + 1),
    )


def _upsert_of(target: TargetNames, shape: Shape) -> sql.Composed:
    # The alias, for a table may be called "excluded".
    return sql.SQL(
        "INSERT INTO {relation} AS t ({names}) VALUES ({values}) ON CONFLICT ({key}) DO {action}"
    ).format(
        relation=target.relation,
        names=names_of(shape.columns),
        values=sql.SQL(", ").join(map(_parameter, range(1, len(shape.columns) + 1))),
        key=sql.SQL(", ").join(target.key),
        action=on_conflict(target.settable(shape.columns)),
    )


def _same(target: TargetNames, *, first: int = 1) -> sql.Composed:
    """Return the condition that ``t`` has the key that the parameters from number *first* on are."""
    return sql.SQL(" AND ").join(
        sql.SQL("t.{} = {}").format(name, _parameter(number)) for number, name in enumerate(target.key, first)
    )


def _parameter(number: int) -> sql.Composable:
    return sql.SQL("$") + sql.Literal(number)


def _bind(query: bytes, rows: Iterable[Sequence[Any]]) -> list[Bound]:
    """Return *query* for each of *rows*, with its values as text, as COPY would send it: the column's input
    function reads it. Raises psycopg.DataError."""
    return [Bound(query, [_as_text(value) for value in row]) for row in rows]


def _as_text(value: Any) -> bytes | None:
    text = to_text(value, ColumnType())
    if text is None:
        return None
    if "\x00" in text:  # libpq would take it for the end
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text.encode()


def missing_of(plan: TablePlan, steps: Sequence[Step], counts: Iterator[int]) -> int:
    """Return how many rows the statements of *plan* did not find; take as many *counts* as they are. Raises
    DoubtfulError."""
    missing = 0
    for statements, miss in steps:
        found = list(islice(counts, len(statements)))
        not_there = len(statements) - sum(found)
        if any(number > 1 for number in found) or (not_there and not miss):
            raise DoubtfulError
        if miss == "counts":
            missing += not_there
    if missing and plan.replay_if_missing and plan.counts.records > 1:
        raise DoubtfulError
    return missing
