"""Writes the plan of a table without a key, whose rows are found by all their values. Knows SQL."""

from __future__ import annotations

import zlib
from typing import Any

import psycopg
from psycopg import sql

from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.postgres.connection import allow_only_nested_loops
from syncdata.apply.postgres.pieces import COUNT, TargetNames, names_of
from syncdata.apply.postgres.staging import Staging


class KeylessWriter:
    """Writes to tables without a key."""

    def __init__(self, cursor: psycopg.Cursor[Any], staging: Staging) -> None:
        self._cursor = cursor
        self._staging = staging

    def write(self, target: TargetNames, plan: TablePlan) -> int:
        """Write *plan*; return how many rows it was to remove and did not find."""
        missing = 0
        by_columns: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for (columns, values), count in plan.removals.items():
            by_columns.setdefault(columns, []).append((count, *values))
        for columns, rows in by_columns.items():
            missing += self._remove(target, columns, rows)
        for shape, rows in plan.writes.items():
            self._staging.copy(target.relation, [sql.Identifier(name) for name in shape.columns], rows)
        return missing

    def _remove(self, target: TargetNames, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> int:
        """Remove rows of the table that equal one of *rows* in *columns*; return how many were not there.

        Each of *rows* begins with the number of such rows to remove. Rows are compared by their text, since
        json and some other types have no equality; the text of ROW() is unambiguous, NULLs included. Test:
        test_a_table_without_any_key_is_matched_on_all_old_values_one_row_a_record.
        """
        bag = f"syncdata_bag_{target.suffix}_{zlib.crc32(repr(columns).encode()):08x}"
        self._staging.create(bag, target.bag_columns(columns))
        self._staging.copy(sql.Identifier(bag), [COUNT, *map(sql.Identifier, columns)], rows)
        statement = sql.SQL(
            "DELETE FROM {relation} WHERE (tableoid, ctid) IN ("
            " SELECT t.tableoid, t.ctid FROM ("
            "  SELECT tableoid, ctid, ROW({columns})::text AS row,"
            "         row_number() OVER (PARTITION BY ROW({columns})::text ORDER BY tableoid, ctid) AS number"
            "  FROM {relation} WHERE ROW({columns})::text IN (SELECT ROW({columns})::text FROM {bag})"
            " ) t JOIN (SELECT ROW({columns})::text AS row, sum({count}) AS count FROM {bag} GROUP BY 1) b"
            " ON t.row = b.row AND t.number <= b.count)"
        ).format(relation=target.relation, columns=names_of(columns), bag=sql.Identifier(bag), count=COUNT)
        # The join has only the rows' text, so nested loops would compare every row with every other.
        allow_only_nested_loops(self._cursor, False)
        removed = self._cursor.execute(statement).rowcount
        allow_only_nested_loops(self._cursor, True)
        return sum(row[0] for row in rows) - removed
