"""The net change of a table without a key: a bag of rows, each located by all its old values. Pure.

Example: table taps (room, at) holds ('hall', '9:00') twice. The records INSERT ('hall', '9:05'),
DELETE ('hall', '9:00'), DELETE ('hall', '9:05') leave ``removals`` {(('room', 'at'), ('hall', '9:00')): 1}
and nothing to write: the second delete takes back the batch's own insert, and one of the two equal rows
goes, for a record means one row.
"""

from __future__ import annotations

from typing import Any

from syncdata.apply.plan.columns import RecordReader, Values, located_by
from syncdata.apply.plan.table_plan import Shape, TablePlan
from syncdata.changes.record import ChangeRecord
from syncdata.errors import SchemaError


class KeylessFold:
    """Folds the records of a table without a key, one after the other, into ``plan``."""

    def __init__(self, reader: RecordReader) -> None:
        self.plan = TablePlan(schema=reader.schema)
        self._reader = reader
        self._inserts: dict[tuple[tuple[str, ...], tuple[Any, ...]], int] = {}

    def add(self, record: ChangeRecord) -> None:
        reader = self._reader
        match record.op:
            case "INSERT":
                self._insert(self._values_of(record.data))
            case "UPDATE":
                # Rows without values are all alike, so an UPDATE of one changes nothing.
                old = reader.read(located_by(record)) if reader.writable else {}
                new = {**old, **reader.read(record.data or {})}
                # A column that is left out would get its default in place of the old row's value.
                # Test: test_what_cannot_be_located_or_placed_is_refused_with_its_line.
                if len(new) < len(reader.writable):
                    raise SchemaError(
                        "an UPDATE leaves out columns and the table has no key to find the old row by",
                        hint="give the table a primary key, or REPLICA IDENTITY FULL in production",
                    )
                self._remove(old)
                # An UPDATE that finds no row still inserts its new one. One statement removes rows for
                # updates and deletes together, and cannot tell which of them missed their row; a replay can.
                self.plan.replay_if_missing = True
                self._insert(new)
            case "DELETE":
                self._remove(self._values_of(record.old_keys or record.data))
            case "TRUNCATE":
                self.plan.truncate = True
                if self.plan.removals:
                    self.plan.hides_missing = True
                self.plan.removals.clear()
                self._inserts.clear()

    def _values_of(self, values: Values | None) -> Values:
        """Return *values* as the table takes them. Raises SchemaError for none: any row would equal that one.

        Test: test_a_record_without_values_is_for_a_table_without_columns.
        """
        if not values and self._reader.writable:
            raise SchemaError(
                "a record carries no values, and the table has columns to fill",
                hint="compare the table's definition in production with the local one",
            )
        return self._reader.read(values or {})

    def _insert(self, values: Values) -> None:
        row = self._reader.row(values)
        self._inserts[row] = self._inserts.get(row, 0) + 1

    def _remove(self, values: Values) -> None:
        row = self._reader.row(values)
        inserted = self._inserts.get(row, 0)
        if inserted > 1:
            self._inserts[row] = inserted - 1
        elif inserted == 1:
            del self._inserts[row]
        else:
            self.plan.removals[row] = self.plan.removals.get(row, 0) + 1
            if self._inserts:
                # The row may be one of the batch's own inserts in another spelling (1 and "1"), which is
                # not in the table yet when the removals run. Test:
                # test_a_keyless_delete_finds_the_row_that_its_own_batch_inserted_in_another_spelling.
                self.plan.replay_if_missing = True

    def finish(self) -> None:
        writes = self.plan.writes
        for (columns, values), count in self._inserts.items():
            writes.setdefault(Shape("upsert", columns), []).extend([values] * count)
        self.plan.only_inserts = not self.plan.removals and not self.plan.truncate and len(writes) == 1
