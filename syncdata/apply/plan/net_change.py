"""From a batch of records to the net change of one table. Pure.

Invariants that the plan keeps, and that the target relies on:

1. Applying it equals replaying the table's records one by one, in their order (a Hypothesis test holds it
   to that: test_applying_a_plan_equals_replaying_its_records). Where that cannot be promised,
   ``is_order_sensitive`` or ``replay_if_missing`` says so, and the target replays the records instead.
2. Its steps run in this order: empty the table (``truncate``), complete the moved rows that lack
   columns from the rows they were, remove the keys in ``gone``, update, upsert.
3. A key appears at most once in ``gone`` and at most once among the rows. No key in ``gone`` is one that
   a move leaves, so a target that moves rows in place may, and must, remove ``gone`` first.
4. Counts are of records, by operation: they are facts of the file, not of the fold.

The fold walks the records once. ``rows`` holds, by current key, each row that the batch leaves behind
with the columns it is known by; ``origin`` is the key of the target's row it began as, or None when
the batch made it. Updates that lack columns (unchanged TOAST values are absent from them) can only
update a row, however many of them come together; an INSERT may always be inserted, for the columns it
lacks have defaults, and so may an UPDATE with every column.

An example (tests/unit/test_plan.py has it, too). Table orders (id, status, note) holds order 7:

    (7, 'new', 'ring twice')

Order 7 is paid, gets the number 17 when it is sent, and another order takes its old number:

    UPDATE                 data {id: 7, status: 'paid'}        note is unchanged, so it is absent
    UPDATE  old_keys {7}   data {id: 17, status: 'sent'}
    INSERT                 data {id: 7, status: 'new', note: 'none'}

The fold, after each record, as key: (values, origin):

    7:  ({id: 7, status: 'paid'}, origin 7)
    17: ({id: 17, status: 'sent'}, origin 7)         and 7 is vacated
    17: as before,  7: ({id: 7, status: 'new', note: 'none'}, origin None)

The plan is two rows. Row 17 lacks its note, which only the target's row 7 has, so it is a move that begins
with the key it leaves; row 7 is whole and is upserted. Nothing is ``gone``, for the move leaves by itself:

    writes  move   (id, status):        ('7', 17, 'sent')
            upsert (id, status, note):  (7, 'new', 'none')
    counts  added 1, updated 2

writer.py goes on with this example to the statements.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncdata.apply.plan.columns import Key, OtherKeyError, RecordReader, Values
from syncdata.apply.plan.keyless import KeylessFold
from syncdata.apply.plan.table_plan import Shape, TableBatch, TablePlan
from syncdata.apply.plan.typed import plan_runs
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord, OddRecord
from syncdata.errors import ApplyError, ParseError, SchemaError, SyncError


def make_plan(batch: TableBatch) -> TablePlan:
    """Fold the records of *batch* to their net change.

    Raises SchemaError, with file and line, when the table lacks a column that a record carries or a
    row cannot be located by its key.

    The key is that of the schema, unless the records locate their rows by another one: production's table
    has REPLICA IDENTITY USING INDEX on its ``code``, and its DELETEs carry ``code`` alone, not the primary
    key. Then ``plan.schema`` has that key. Records that do it in different ways are applied one by one.
    Tests: test_records_that_locate_rows_by_another_unique_index_are_planned_by_it,
    test_records_that_locate_rows_in_two_ways_are_replayed.
    """
    if (plan := plan_runs(batch)) is not None:
        return plan
    tried = {batch.schema.key}
    while True:
        try:
            return _fold(batch)
        except OtherKeyError as other:
            if other.key in tried:
                return TablePlan(
                    schema=batch.schema, is_order_sensitive=True, last_ts=batch.records[-1].record.ts
                )
            tried.add(other.key)
            batch = replace(batch, schema=batch.schema.located_by(other.key))


def plan_each(batch: TableBatch) -> list[TablePlan]:
    """Return the plan of each record of *batch* by itself, as `make_plan` would make it."""
    reader = RecordReader(batch.schema, is_plain_file=batch.file.is_plain)
    plans = []
    for located in batch.records:
        alone = replace(batch, records=[located])
        try:
            plans.append(_fold(alone, reader))
        except OtherKeyError:
            plans.append(make_plan(alone))
    return plans


def _fold(batch: TableBatch, reader: RecordReader | None = None) -> TablePlan:
    schema = batch.schema
    reader = reader or RecordReader(schema, is_plain_file=batch.file.is_plain)
    fold = _KeyedFold(reader) if schema.key else KeylessFold(reader)
    plan = fold.plan
    records_by_op = {"INSERT": 0, "UPDATE": 0, "DELETE": 0, "TRUNCATE": 0}
    record = None
    for located in batch.records:
        record = located.record
        try:
            # Test: test_rows_without_any_column_of_their_own_are_counted.
            if not record.data and (schema.writable or type(record) is OddRecord):
                _require_values(record)
            fold.add(record)
        except SyncError as error:
            raise _at(located, batch, error) from None
        except RecursionError:
            # Test: test_nesting_however_deep_stops_at_its_line_until_it_is_mended.
            nested = ApplyError(
                "a value is nested too deeply", hint="compare the record with the column's type"
            )
            raise _at(located, batch, nested) from None
        records_by_op[record.op] += 1
    counts = plan.counts
    counts.added, counts.updated, counts.deleted, counts.truncated = records_by_op.values()
    if record is not None:
        plan.last_ts = record.ts
    fold.finish()
    return plan


def try_plan(batch: TableBatch) -> TablePlan | SyncError:
    """Return the plan of *batch*, or the error that keeps it from having one."""
    try:
        return make_plan(batch)
    except SyncError as error:
        return error


def _require_values(record: ChangeRecord) -> None:
    """Raise SchemaError for a record without the values that its operation needs.

    The line is a record, and says whose: it blocks this table alone, and nobody who does not sync it. Test:
    test_a_record_without_values_blocks_its_own_table_alone.
    """
    if isinstance(record, OddRecord):
        # Test: test_a_line_that_names_its_table_blocks_that_table_alone.
        raise ParseError(
            record.problem, hint="mend the line in the archive; or leave it out with skip_record"
        )
    if record.op == "DELETE" and not record.old_keys:
        raise SchemaError(
            "a DELETE without old_keys: production sends no column of its key",
            hint="give the table a primary key or replica identity in production, of columns that are"
            " published and not generated; then take a snapshot there (archive_changes --snapshot"
            f" {record.table}) and resync",
        )
    if record.op in ("INSERT", "UPDATE"):
        raise SchemaError(
            f"an {record.op} without data: production sends no column of the table",
            hint="publish its columns, then take a snapshot in production (archive_changes --snapshot"
            f" {record.table}) and resync; or take it off the whitelist with remove_tables",
        )


def _at(located: LocatedRecord, batch: TableBatch, error: SyncError) -> SyncError:
    """Return *error* with the place of the record that it is about."""
    return type(error)(
        error.message,
        hint=error.hint,
        table=str(batch.schema.name),
        file=located.file,
        line=located.line,
    )


class _Row:
    """A row that the batch leaves behind. ``values`` may be a record's own and are never changed."""

    __slots__ = ("is_insertable", "origin", "values")

    def __init__(self, values: Values, *, origin: Key | None, is_insertable: bool) -> None:
        self.values = values
        self.origin = origin
        self.is_insertable = is_insertable

    def merge(self, values: Values, *, is_insertable: bool) -> None:
        self.values = {**self.values, **values}
        # Two updates that lack columns stay an update, even if together they have all columns: a replay
        # would not insert either of them.
        # Test: test_updates_that_lack_columns_never_insert_even_when_together_they_have_all.
        self.is_insertable = self.is_insertable or is_insertable


class _KeyedFold:
    """Folds the records of a table with a key, one after the other, into ``plan``."""

    def __init__(self, reader: RecordReader) -> None:
        self.plan = TablePlan(schema=reader.schema)
        self._reader = reader
        self._rows: dict[Key, _Row] = {}
        # Keys that rows of the target had before the batch gave them other keys.
        self._vacated: set[Key] = set()
        self._width = len(reader.writable)
        self._key_names = frozenset(reader.schema.key)
        self._saw_only_inserts = True

    def add(self, record: ChangeRecord) -> None:
        if record.op == "INSERT":
            self._insert(record.data or {})
            return
        self._saw_only_inserts = False
        match record.op:
            case "UPDATE":
                self._update(record)
            case "DELETE":
                self._delete(self._reader.old_key(record.old_keys, record.data))
            case "TRUNCATE":
                self._truncate()

    def _insert(self, data: Values) -> None:
        key = self._reader.key(data)
        values = self._reader.read(data)
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = _Row(values, origin=None, is_insertable=True)
        else:
            # A file that inserts a key twice repeats itself, and the table may hold its rows already.
            # Test: test_only_inserts_of_one_shape_and_no_key_twice_may_be_copied_straight.
            self._saw_only_inserts = False
            self._merge(row, values, is_insertable=True)

    def _update(self, record: ChangeRecord) -> None:
        reader, data, old_keys = self._reader, record.data or {}, record.old_keys
        if not old_keys:
            self._update_in_place(reader.key(data), reader.read(data))
            return
        old_key = reader.old_key(old_keys, data)
        if len(old_keys) > len(self._key_names) or not self._key_names <= data.keys():
            # Columns that the new row leaves out are unchanged, so the old row has their values. Tests:
            # test_under_identity_full_the_old_row_completes_the_new_one,
            # test_a_key_that_only_old_keys_carry_locates_the_row.
            data = {**old_keys, **data}
        new_key = reader.key(data)
        if old_key == new_key:
            self._update_in_place(old_key, reader.read(data))
        else:
            self._move(old_key, new_key, reader.read(data))

    def _update_in_place(self, key: Key, values: Values) -> None:
        row = self._rows.get(key)
        is_whole = len(values) == self._width
        if row is not None:
            self._note_second_touch(row, key)
            self._merge(row, values, is_insertable=is_whole)
        elif not self._is_absent(key):
            self._rows[key] = _Row(values, origin=key, is_insertable=is_whole)
        elif is_whole:
            self._rows[key] = _Row(values, origin=None, is_insertable=True)
        else:
            self.plan.counts.missing += 1

    def _move(self, old_key: Key, new_key: Key, values: Values) -> None:
        if new_key in self._rows:
            # Only a deferrable key lets two rows share a key for a moment; which values belong to which
            # row is lost here. Test: test_two_rows_at_one_key_make_the_order_matter.
            self.plan.is_order_sensitive = True
            return
        gone = self.plan.gone
        is_whole = len(values) == self._width
        row = self._rows.pop(old_key, None)
        if row is not None:
            self._note_second_touch(row, old_key)
            self._merge(row, values, is_insertable=is_whole)
            if row.origin != old_key:
                # The batch brought the row to old_key and takes it away again. If the target holds another
                # row at old_key, the batch's row has replaced that one, so it must go.
                # Test: test_a_stale_row_on_the_way_of_a_moving_one_is_removed.
                gone.setdefault(old_key, False)
        elif not self._is_absent(old_key):
            row = _Row(values, origin=old_key, is_insertable=is_whole)
        elif is_whole:
            row = _Row(values, origin=None, is_insertable=True)
        else:
            self.plan.counts.missing += 1
            return
        self._rows[new_key] = row
        if new_key == row.origin:
            # Back where it began. The key may be in ``gone`` for another row that stood there meanwhile.
            # Test: test_a_row_that_comes_back_to_its_key_survives_one_that_stood_there_meanwhile.
            self._vacated.discard(new_key)
            gone.pop(new_key, None)
        elif row.origin is not None:
            self._vacated.add(row.origin)

    def _merge(self, row: _Row, values: Values, *, is_insertable: bool) -> None:
        if is_insertable and not row.is_insertable:
            self.plan.hides_missing = True
        row.merge(values, is_insertable=is_insertable)

    def _note_second_touch(self, row: _Row, key: Key) -> None:
        """Ask for a replay should a row that was moved to *key*, and is now touched again, turn out missing.

        Orders 7 -> 17, then 17 is paid. If the target has no row 7, the first record does nothing, and the
        second means whatever row 17 the target holds. The fold knows nothing of that row, for it took the
        moved one to have replaced it; only a replay finds it.
        Test: test_a_moved_row_that_is_touched_again_must_be_there_or_the_records_are_replayed.
        """
        if row.origin is not None and row.origin != key and not row.is_insertable:
            self.plan.replay_if_missing = True

    def _delete(self, key: Key) -> None:
        row = self._rows.pop(key, None)
        gone = self.plan.gone
        if row is None:
            if self._is_absent(key):
                self.plan.counts.missing += 1
            else:
                gone[key] = True
            return
        if row.origin is not None:
            # A whole update would have inserted a missing row, so only other rows are expected to be there.
            gone[row.origin] = not row.is_insertable
        if row.origin != key:
            # The batch put the row there, perhaps in the place of one that the target holds.
            # Test: test_a_row_made_and_removed_in_one_batch_leaves_only_a_key_to_remove.
            gone.setdefault(key, False)

    def _truncate(self) -> None:
        # All rows go, so nothing that came before needs doing.
        # Test: test_a_truncate_empties_the_table_and_forgets_what_was_before.
        self.plan.truncate = True
        if any(self.plan.gone.values()) or not all(row.is_insertable for row in self._rows.values()):
            self.plan.hides_missing = True
        self.plan.gone.clear()
        self._rows.clear()
        self._vacated.clear()

    def _is_absent(self, key: Key) -> bool:
        """Tell whether the batch itself has removed the row of *key*, or all rows."""
        return self.plan.truncate or key in self.plan.gone or key in self._vacated

    def finish(self) -> None:
        plan, reader = self.plan, self._reader
        shapes: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for key, row in self._rows.items():
            columns, values = reader.row(row.values)
            is_moved = row.origin is not None and row.origin != key
            if row.is_insertable:
                if is_moved:
                    plan.gone[row.origin] = False  # type: ignore[index]
                    plan.rekeyed[row.origin] = key  # type: ignore[index]
                shapes.setdefault(columns, []).append(values)
            elif is_moved:
                # The move takes the row away from its key by itself. The key may be in ``gone`` for another
                # row that stood there meanwhile; a target that removes first would then lose the moving row.
                # Test:
                # test_a_key_that_a_moving_row_leaves_is_not_removed_for_one_that_stood_there_meanwhile.
                plan.gone.pop(row.origin, None)  # type: ignore[arg-type]
                plan.writes.setdefault(Shape("move", columns), []).append((*row.origin, *values))  # type: ignore[misc]
            else:
                plan.writes.setdefault(Shape("update", columns), []).append(values)
        for columns, rows in shapes.items():
            plan.writes[Shape("upsert", columns)] = rows
        plan.only_inserts = self._saw_only_inserts and len(plan.writes) == 1
