"""Temporary tables that rows travel through. Knows COPY; knows nothing of what the rows are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from syncdata.apply.plan.table_plan import Shape
from syncdata.apply.postgres.pieces import SHAPE, TargetNames


class Staging:
    """The temporary tables of one connection, and the cursor that fills them.

    They are empty when a transaction begins and stay for the next one, for making them costs more than
    emptying them.
    """

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self._used: set[str] = set()

    def begin(self) -> None:
        """Note that a transaction has begun: the one before has left the tables empty."""
        self._used.clear()

    def create(self, name: str, columns: sql.Composable) -> None:
        """Make the temporary table *name*, or empty it where this transaction has used it already."""
        self._cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(
                sql.Identifier(name), columns
            )
        )
        if name in self._used:
            self._cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier("pg_temp", name)))
        self._used.add(name)

    def stage(
        self, target: TargetNames, writes: Mapping[Shape, Sequence[tuple[Any, ...]]]
    ) -> list[tuple[int, Shape]]:
        """COPY all rows into the staging table, each marked with its shape's number; return the shapes."""
        if not writes:
            return []
        self.create(target.staging, target.staging_columns)
        shapes = list(enumerate(writes))
        for number, shape in shapes:
            names = [SHAPE]
            if shape.mode == "move":
                names += target.old_key
            names += [sql.Identifier(name) for name in shape.columns]
            self.copy(sql.Identifier(target.staging), names, writes[shape], prefix=(number,))
        return shapes

    def copy(
        self,
        relation: sql.Composable,
        columns: Sequence[sql.Composable],
        rows: Iterable[tuple[Any, ...]],
        *,
        prefix: tuple[Any, ...] = (),
    ) -> None:
        """COPY *rows*, each after *prefix*, into *columns* of *relation*, a temporary table or not."""
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(relation, sql.SQL(", ").join(columns))
        with self._cursor.copy(statement) as copy:
            if prefix:
                for row in rows:
                    copy.write_row(prefix + row)
            else:
                for row in rows:
                    copy.write_row(row)
