"""Keeps the sequences of tables ahead of the rows that are written to them. Knows when it is due; how it is
done is whole_table.py's affair.

Where an index tells a column's highest value, it is asked at the end of a file. Where none does (the second
column of a key, say, tenant and number), asking would read the whole table, so the batch's own rows say what
the sequence must reach, in the batch's transaction. Tests: test_a_small_batch_reads_little_of_a_large_table,
test_a_sequence_without_an_index_follows_the_rows_of_each_batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql

from syncdata.apply.plan.schema import ColumnSequence, TableSchema
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.postgres.locks import lock_waits
from syncdata.apply.postgres.whole_table import advance_sequence, highest_of
from syncdata.changes.names import TableName

# No sequence counts beyond a bigint. Test:
# test_a_default_from_a_sequence_that_cannot_follow_its_column_stops_nothing.
_HIGHEST = 2**63 - 1


class Sequences:
    """The sequences of the tables of one connection that are due, in the caller's transactions."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        # Tables whose indexes are to be asked, and what rows of this transaction ask for.
        self._due: dict[TableName, TableSchema] = {}
        self._reached: list[tuple[TableSchema, ColumnSequence, sql.Composable]] = []

    def begin(self) -> None:
        """Note that a transaction has begun: what the one before has not done was taken back."""
        self._reached.clear()

    def note_earlier(self, schemas: Iterable[TableSchema]) -> None:
        """Note tables to which an earlier process may have written rows without a word to their sequences."""
        self._due |= {schema.name: schema for schema in schemas if schema.sequences}

    def note_written(self, plan: TablePlan) -> None:
        """Note that the rows of *plan* were written."""
        if plan.schema.sequences:
            self._due[plan.schema.name] = plan.schema
        for sequence in plan.schema.sequences:
            if sequence.is_indexed:
                continue
            if plan.is_order_sensitive:  # it does not tell all values
                self._reached.append((plan.schema, sequence, highest_of(plan.schema, sequence)))
            elif (highest := highest_written(plan, sequence.column)) is not None:
                self._reached.append((plan.schema, sequence, sql.Literal(highest)))

    def advance(self, *, is_end_of_file: bool) -> None:
        """Set the sequences that are due, as far as the role may."""
        for schema, sequence, highest in self._asked(is_end_of_file=is_end_of_file):
            with self._tried(schema):
                advance_sequence(self._cursor, sequence, highest)
        self.note_advanced(is_end_of_file=is_end_of_file)

    def send(self, *, is_end_of_file: bool) -> None:
        """Ask for what `advance` does, in the caller's pipeline, where all fails with one.

        Call `note_advanced` when it has not.
        """
        for _, sequence, highest in self._asked(is_end_of_file=is_end_of_file):
            advance_sequence(psycopg.Cursor(self._cursor.connection), sequence, highest)

    def note_advanced(self, *, is_end_of_file: bool) -> None:
        """Note that those that were due have been set."""
        if is_end_of_file:
            self._due.clear()

    def _asked(self, *, is_end_of_file: bool) -> Iterator[tuple[TableSchema, ColumnSequence, sql.Composable]]:
        yield from self._reached
        if is_end_of_file:
            for schema in self._due.values():
                for sequence in schema.sequences:
                    if sequence.is_indexed:
                        yield schema, sequence, highest_of(schema, sequence)

    @contextmanager
    def _tried(self, schema: TableSchema) -> Iterator[None]:
        try:
            with lock_waits(schema.name), self._cursor.connection.transaction():
                yield
        except psycopg.ProgrammingError:
            # A role that may not move a sequence may not draw from it, either, so it does no harm. Or the
            # table has been changed or dropped since its catalog was read.
            # Test: test_a_default_from_a_sequence_that_cannot_follow_its_column_stops_nothing.
            pass


def highest_written(plan: TablePlan, column: str) -> int | None:
    """Return the highest whole number that *plan* writes into *column*; None where it writes none."""
    numbers: list[int] = []
    for shape, rows in plan.writes.items():
        if column in shape.columns:
            # A moved row begins with the key that it leaves.
            at = shape.columns.index(column) + (len(plan.schema.key) if shape.mode == "move" else 0)
            numbers += [number for row in rows if (number := _whole(row[at])) is not None]
    return max(numbers, default=None)


def _whole(value: object) -> int | None:
    try:
        number = Decimal(str(value))
        return int(number) if abs(number) <= _HIGHEST else None
    except ArithmeticError:  # NULL, NaN, no number at all
        return None
