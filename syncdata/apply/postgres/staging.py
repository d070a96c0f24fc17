"""Temporary tables that rows travel through. Knows COPY; knows nothing of what the rows are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from syncdata.apply.plan.copy_text import NulError, copy_text
from syncdata.apply.plan.table_plan import Shape
from syncdata.apply.postgres.pieces import TargetNames

# To empty a table costs the server some 0.3 ms at each COMMIT, used or not; to make it, a few of that. So one
# that no batch has used for so many transactions is dropped.
_UNUSED = 20


def creation_of(name: str, columns: sql.Composable) -> sql.Composed:
    """Return the statement that makes the temporary table *name* unless it is there."""
    return sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(
        sql.Identifier(name), columns
    )


class Staging:
    """The temporary tables of one connection, and the cursor that fills them.

    They are empty when a transaction begins and stay for the next ones, for making them costs more than
    emptying them, until they have not been used for long. Test:
    test_staging_tables_that_are_not_used_any_more_go.
    """

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self._used: set[str] = set()
        self._transaction = 0
        self._last_use: dict[str, int] = {}

    def begin(self) -> None:
        """Note that a transaction has begun: the one before has left the tables empty."""
        self._used.clear()
        self._transaction += 1
        before = self._transaction - _UNUSED
        if unused := [name for name, last in self._last_use.items() if last < before]:
            # Some may never have come to be: what made them was rolled back.
            self._cursor.execute(
                sql.SQL("DROP TABLE IF EXISTS {}").format(
                    sql.SQL(", ").join(sql.Identifier("pg_temp", name) for name in unused)
                )
            )
            for name in unused:
                del self._last_use[name]

    def create(self, name: str, columns: sql.Composable) -> None:
        """Make the temporary table *name*, or empty it where this transaction has used it already."""
        self._cursor.execute(creation_of(name, columns))
        if name in self._used:
            self._cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier("pg_temp", name)))
        self.note_use(name)

    def note_use(self, name: str) -> None:
        """Note that the temporary table *name* is filled in this transaction."""
        self._used.add(name)
        self._last_use[name] = self._transaction

    def stage(
        self, target: TargetNames, writes: Mapping[Shape, Sequence[tuple[Any, ...]]]
    ) -> list[tuple[int, Shape]]:
        """COPY all rows into the staging table, each marked with its shape's number; return the shapes."""
        if not writes:
            return []
        shapes = list(enumerate(writes))
        if not target.is_wide:
            self.create(target.staging, target.staging_columns)
        for number, shape in shapes:
            names = list(target.old_key) if shape.mode == "move" else []
            names += [sql.Identifier(name) for name in shape.columns]
            if target.is_wide:
                columns = target.wide_columns(shape.columns, has_old_key=shape.mode == "move")
                # Shapes of other batches had other columns under this number.
                self.recreate(f"{target.staging}_{number}", columns)
                self.copy(target.staged(number), names, writes[shape])
            else:
                self.copy(target.staged(number), [target.shape, *names], writes[shape], prefix=f"{number}\t")
        return shapes

    def recreate(self, name: str, columns: sql.Composable) -> None:
        """Make the temporary table *name* anew."""
        self._cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier("pg_temp", name)))
        self._used.discard(name)
        self.create(name, columns)

    def copy(
        self,
        relation: sql.Composable,
        columns: Sequence[sql.Composable],
        rows: Iterable[tuple[Any, ...]],
        *,
        prefix: str = "",
    ) -> int:
        """COPY *rows*, each after *prefix*, into *columns* of *relation*, a temporary table or not; return
        how many came in. Raises psycopg.Error."""
        if not columns:
            # COPY cannot name no column. Test: test_rows_without_any_column_of_their_own_are_counted.
            many = sql.SQL("INSERT INTO {} SELECT FROM generate_series(1, {})")
            return self._cursor.execute(many.format(relation, sql.Literal(len(list(rows))))).rowcount
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(relation, sql.SQL(", ").join(columns))
        with self._cursor.copy(statement) as copy:
            try:
                for text in copy_text(rows, prefix=prefix):
                    copy.write(text)
            except NulError:
                # As the driver says it of a parameter.
                # Test: test_a_nul_in_a_text_is_corruption_and_stops_the_table.
                raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes") from None
        return self._cursor.rowcount
