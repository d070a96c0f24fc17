"""Writes the plan of a table without a key, whose rows are found by all their values. Knows SQL."""

from __future__ import annotations

import zlib
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.postgres.connection import allow_only_nested_loops
from syncdata.apply.postgres.held import require_changed, require_copied
from syncdata.apply.postgres.pieces import TargetNames, names_of
from syncdata.apply.postgres.staging import Staging


class KeylessWriter:
    """Writes to tables without a key."""

    def __init__(self, cursor: psycopg.Cursor[Any], staging: Staging, *, is_silent: bool) -> None:
        self._cursor = cursor
        self._staging = staging
        self._is_silent = is_silent

    def write(self, target: TargetNames, plan: TablePlan) -> int:
        """Write *plan*; return how many rows it was to remove and did not find.

        Raises RefusedError where the table does not take what it is given.
        """
        missing = 0
        by_columns: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for (columns, values), count in plan.removals.items():
            by_columns.setdefault(columns, []).extend([values] * count)
        for columns, rows in by_columns.items():
            missing += self._remove(target, columns, rows)
        for shape, rows in plan.writes.items():
            copied = self._staging.copy(
                target.relation, [sql.Identifier(name) for name in shape.columns], rows
            )
            require_copied(
                target.schema, "INSERT", found=len(rows), changed=copied, is_silent=self._is_silent
            )
        return missing

    def _remove(self, target: TargetNames, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> int:
        """Remove rows of the table that equal one of *rows* in *columns*, one for each; return how many were
        not there.

        Rows are compared by their text, since json and some other types have no equality; the text of ROW()
        is unambiguous, NULLs included. The bag has the table's columns alone, of which there may be as many
        as PostgreSQL allows. Test:
        test_a_table_without_any_key_is_matched_on_all_old_values_one_row_a_record.
        """
        bag = f"syncdata_bag_{target.suffix}_{zlib.crc32(repr(columns).encode()):08x}"
        self._staging.create(bag, target.typed(columns))
        self._staging.copy(sql.Identifier(bag), [*map(sql.Identifier, columns)], rows)
        matching: LiteralString = (
            "SELECT t.tableoid, t.ctid FROM ("
            "  SELECT tableoid, ctid, ROW({columns})::text AS row,"
            "         row_number() OVER (PARTITION BY ROW({columns})::text ORDER BY tableoid, ctid) AS number"
            "  FROM {rows} WHERE ROW({columns})::text IN (SELECT ROW({columns})::text FROM {bag})"
            " ) t JOIN (SELECT ROW({columns})::text AS row, count(*) AS count FROM {bag} GROUP BY 1) b"
            " ON t.row = b.row AND t.number <= b.count"
        )
        parts = {"rows": target.rows, "columns": names_of(columns), "bag": sql.Identifier(bag)}
        statement = sql.SQL("DELETE FROM {rows} WHERE (tableoid, ctid) IN (" + matching + ")").format(**parts)
        # The join has only the rows' text, so nested loops would compare every row with every other.
        allow_only_nested_loops(self._cursor, False)
        guards = target.schema.awake_guards(is_silent=self._is_silent)
        found = None
        if any("DELETE" in guard.events for guard in guards):
            (found,) = self._cursor.execute(
                sql.SQL("SELECT count(*) FROM (" + matching + ") m").format(**parts)
            ).fetchone() or (0,)
        removed = self._cursor.execute(statement).rowcount
        allow_only_nested_loops(self._cursor, True)
        if found is None:
            found = removed
        require_changed(target.schema, "DELETE", found=found, changed=removed, is_silent=self._is_silent)
        return len(rows) - removed
