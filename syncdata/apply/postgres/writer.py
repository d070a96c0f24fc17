"""Writes one table's net change to PostgreSQL, as sets. Knows SQL and the plan; knows nothing of files or
checkpoints.

How, and why (each measured; see benchmarks/):

1. Rows travel by COPY, into a temporary table typed like the target, and from there by few statements.
   A batch of inserts alone goes straight into the target, which saves the second trip; if one of the keys
   exists already, the COPY is rolled back to a savepoint, and the first way is taken. A few rows go without
   a temporary table: see direct.py.
2. The temporary table has no statistics, and with a wrong guess the planner hashes the whole target to
   find a handful of rows. So it is left no choice: nested loops over the target's key.
3. Upserts, updates and removals are sorted by key: the target's pages are then visited once. On all sizes of
   batches and numbers of indexes that were tried, INSERT … ON CONFLICT is about as cheap as a sorted UPDATE
   or MERGE, and cheaper than an UPDATE followed by an INSERT of the rest; setting a column to the value that
   it has keeps an update HOT, and costs next to nothing. DELETE and INSERT is never HOT: where pages have
   room it costs twice as much, and where they are full about a tenth more without an index beside the key, a
   third more with one; with four, both write all indexes, and cost the same.
4. What the server refuses as a set is tried in other ways: see fallback.py.

The example of net_change.py goes on here. Table orders (id, status, note) holds (7, 'new', 'ring twice'),
and the plan of the three records is

    move   (id, status):        ('7', 17, 'sent')
    upsert (id, status, note):  (7, 'new', 'none')

A COPY for each shape fills the staging table r. It has the columns of orders, the key that a move leaves
(old), and the number of the shape, by which the statements find their rows:

    shape  old  id  status  note
        0    7  17  sent    NULL
        1        7  new     none

Where triggers and foreign keys stand aside, these statements follow (names shortened):

    DELETE FROM r WHERE shape = 0 AND NOT EXISTS (SELECT FROM orders t WHERE t.id = r.old)
        -- a move whose row is missing moves nothing, and is counted as missing
    UPDATE r SET note = t.note FROM orders t WHERE r.shape = 0 AND t.id = r.old
        -- completes the moved row: r now holds (17, 'sent', 'ring twice')
    DELETE FROM orders t USING r WHERE r.shape = 0 AND t.id = r.old
        -- here the keys in ``gone`` would be removed as well, and then plain updates made
    INSERT INTO orders SELECT id, status, note FROM r WHERE shape = 0 ORDER BY id ON CONFLICT (id) DO UPDATE …
    INSERT INTO orders SELECT id, status, note FROM r WHERE shape = 1 ORDER BY id ON CONFLICT (id) DO UPDATE …

and orders holds (7, 'new', 'none') and (17, 'sent', 'ring twice'). For an ordinary role, whose foreign keys
are awake, the moved row is not deleted, for its order lines could go with it: the first three are one
``UPDATE orders t SET id = r.id, status = r.status FROM r WHERE r.shape = 0 AND t.id = r.old``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import Connection, sql

from syncdata.apply.counts import Counts
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.postgres.connection import allow_only_nested_loops
from syncdata.apply.postgres.direct import DirectWriter, InTurnError
from syncdata.apply.postgres.held import require_copied, require_visible
from syncdata.apply.postgres.keyed import KeyedWriter, ReplayNeededError
from syncdata.apply.postgres.keyless import KeylessWriter
from syncdata.apply.postgres.pieces import TargetNames
from syncdata.apply.postgres.rests import Rests
from syncdata.apply.postgres.staging import Staging
from syncdata.apply.postgres.whole_table import empty


class RowWriter:
    """Writes to the tables of one connection, inside the caller's transaction.

    ``is_silent``: triggers and foreign keys stand aside (``session_replication_role = replica``); where
    the role may not do that, constraints are deferred and a moved row keeps its identity.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection
        self.cursor = psycopg.Cursor(connection)
        self.is_silent = self._may_silence()
        self.staging = Staging(self.cursor)
        self._keyed = KeyedWriter(self.cursor, self.staging, is_silent=self.is_silent)
        self._keyless = KeylessWriter(self.cursor, self.staging, is_silent=self.is_silent)
        self.direct = DirectWriter(connection, is_silent=self.is_silent)
        self.straight_rests = Rests()

    def _may_silence(self) -> bool:
        try:
            with self.connection.transaction(force_rollback=True):
                self.cursor.execute("SET LOCAL session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True

    def begin(self) -> None:
        """Prepare the transaction that has just begun. Its settings end with it."""
        self.staging.begin()
        if self.is_silent:
            self.cursor.execute("SET LOCAL session_replication_role = replica")
        else:
            # The rows of a batch are written table by table, so a child may come before its parent.
            # Test: test_ordinary_django_foreign_keys_pass_for_an_ordinary_role.
            self.cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        allow_only_nested_loops(self.cursor, True)

    def savepoint(self) -> AbstractContextManager[object]:
        """Take back what the block writes, if it raises."""
        return self.connection.transaction()

    def write(self, plan: TablePlan, *, removes_first: bool = False) -> Counts:
        """Write *plan*, or nothing of it; return its counts with the rows that were missing.

        *removes_first*: rows are removed before any is written, even where rows are moved in place otherwise.

        Raises ReplayNeededError where the plan does not tell the outcome, RefusedError where the table does
        not take what it is given, and psycopg.Error.
        """
        require_visible(plan.schema)
        if plan.is_order_sensitive:
            raise ReplayNeededError
        target = TargetNames(plan.schema)
        if not removes_first and (counts := self._write_directly(plan)):
            return counts
        if plan.only_inserts and self._copy_straight(target, plan):
            return replace(plan.counts)
        with self.connection.transaction():
            if plan.truncate:
                empty(self.cursor, plan.schema, is_silent=self.is_silent)
            if plan.schema.key:
                missing = self._keyed.write(target, plan, removes_first=removes_first)
            else:
                missing = self._keyless.write(target, plan)
            # One record alone needs no replay: a row that it did not find is missing. Test:
            # test_a_missing_row_is_inserted_when_complete_and_else_counted_as_missing.
            if missing and plan.replay_if_missing and plan.counts.records > 1:
                raise ReplayNeededError
            return replace(plan.counts, missing=plan.counts.missing + missing)

    def copy_new(self, plan: TablePlan) -> Counts:
        """COPY the rows of *plan*, which has only inserts, into a table without guards, by a statement that
        is a transaction of its own. Raises psycopg.Error, with nothing done."""
        ((shape, rows),) = plan.writes.items()
        names = [sql.Identifier(name) for name in shape.columns]
        copied = self.staging.copy(TargetNames(plan.schema).relation, names, rows)
        require_copied(plan.schema, "INSERT", found=len(rows), changed=copied, is_silent=True)
        return replace(plan.counts)

    def write_in_turn(self, plans: Sequence[TablePlan]) -> Counts:
        """Write *plans* of one table one after the other, in one round trip; return what they did.

        Raises InTurnError, with nothing done, for the first that cannot go like this or is refused, and
        psycopg.Error when the server is at fault.
        """
        counts = Counts(missing=self.direct.write(plans))
        for plan in plans:
            counts.add(plan.counts)
        return counts

    def may_write_in_turn(self, schema: TableSchema) -> bool:
        """Tell whether `write_in_turn` is worth trying with a table."""
        return self.direct.is_for(schema)

    def _write_directly(self, plan: TablePlan) -> Counts | None:
        """Write a plan of few rows without a staging table; None, with nothing done, where that cannot be.

        What the server refuses here is left to staging, which knows more ways, and whom to blame; but for the
        rows of several records, which are to be taken apart anyway. Raises psycopg.Error. Tests:
        test_a_small_batch_needs_no_staging_table, test_what_a_small_batch_is_refused_is_tried_with_staging.
        """
        if not self.direct.suits(plan):
            return None
        try:
            return self.write_in_turn([plan])
        except InTurnError as failure:
            if failure.error is not None and plan.counts.records > 1:
                raise failure.error from None
            return None

    def _copy_straight(self, target: TargetNames, plan: TablePlan) -> bool:
        """COPY a batch of inserts into the target; False, with nothing done, when a key exists already."""
        schema = plan.schema
        # A deferrable key reports a duplicate only later, when the savepoint is gone.
        # Test: test_an_insert_of_an_existing_deferrable_key_is_no_duplicate.
        if schema.is_key_deferrable:
            return False
        # What triggers make of the rows is seen where they can be compared with what was sent.
        # Test: test_values_that_a_trigger_changes_block_the_table.
        if schema.key and any(
            guard.kind == "trigger" and "INSERT" in guard.events
            for guard in schema.awake_guards(is_silent=self.is_silent)
        ):
            return False
        if not self.straight_rests.may_try(schema.oid):
            return False
        ((shape, rows),) = plan.writes.items()
        try:
            with self.connection.transaction():
                if plan.truncate:
                    empty(self.cursor, schema, is_silent=self.is_silent)
                copied = self.staging.copy(
                    target.relation, [sql.Identifier(name) for name in shape.columns], rows
                )
                require_copied(schema, "INSERT", found=len(rows), changed=copied, is_silent=self.is_silent)
        # The index of another constraint may be older than the key's, and refuse the row first. Test:
        # test_an_insert_of_an_existing_key_is_an_upsert_whatever_other_constraint_is_asked_first.
        except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation):
            self.straight_rests.note_failure(schema.oid)
            return False
        self.straight_rests.note_success(schema.oid)
        return True
