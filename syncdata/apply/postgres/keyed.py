"""Writes the plan of a table with a key: moves, removes, updates, upserts. Knows SQL and the plan.

The order of the steps is what keeps rows right; net_change.py (invariants 2 and 3) and the example in
writer.py say why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter
from syncdata.apply.postgres.pieces import EXPECTED, SHAPE, TargetNames, assignments, equalities, names_of
from syncdata.apply.postgres.staging import Staging


class ReplayNeededError(Exception):
    """The plan is not enough: the records must be applied one after the other."""


class KeyedWriter:
    """Writes to tables with a key. ``is_silent``: triggers and foreign keys stand aside."""

    def __init__(self, cursor: psycopg.Cursor[Any], staging: Staging, *, is_silent: bool) -> None:
        self._cursor = cursor
        self._staging = staging
        self._is_silent = is_silent

    def write(self, target: TargetNames, plan: TablePlan) -> int:
        """Write *plan*; return how many rows it looked for and did not find. Raises ReplayNeededError."""
        shapes = self._staging.stage(target, plan.writes)
        missing = 0
        moves_in_place = self._moves_in_place(plan.schema)
        if moves_in_place:
            _refuse_chains(plan)
            # Remove before the moves, which may go to a key that is removed here. Tests:
            # test_rows_may_be_moved_in_place_when_what_is_gone_is_removed_first,
            # test_a_row_that_moves_to_a_key_its_batch_has_used_is_not_lost.
            missing += self._remove_keys(target, plan.gone.keys() - plan.rekeyed.keys(), plan.gone)
            self._rekey(target, plan.rekeyed)
        for number, shape in shapes:
            if shape.mode == "move":
                missing += self._move(target, number, shape, len(plan.writes[shape]))
        if not moves_in_place:
            # Remove after the moves: a replacement removes all keys that it writes, and a move may start from
            # one of them. Order 7 becomes 17 and another order takes number 7: first the moved row gets its
            # note from the old row 7, then that is removed.
            # Test: test_a_replacement_equals_its_plan_and_writes_only_where_nothing_is_left.
            missing += self._remove_keys(target, plan.gone.keys(), plan.gone)
        for number, shape in shapes:
            if shape.mode == "update":
                updated = self._update(target, number, shape)
                missing += len(plan.writes[shape]) - updated
        for number, shape in shapes:
            if shape.mode == "upsert":
                self._upsert(target, number, shape.columns)
            elif shape.mode == "move" and not moves_in_place:
                self._upsert(target, number, target.columns)
        return missing

    def _moves_in_place(self, schema: TableSchema) -> bool:
        """Tell whether a row gets its new key by UPDATE of its key columns, and not by DELETE and INSERT.

        Order 7 becomes 17. Where foreign keys are awake, a DELETE of 7 could take its order lines along, so
        the key is updated; test: test_a_key_that_changes_does_not_cascade_to_children_for_an_ordinary_role.
        PostgreSQL refuses to update a column that is GENERATED ALWAYS AS IDENTITY, so where the key holds
        one, the row is deleted and inserted even then; test:
        test_rows_with_an_identity_that_is_always_generated_are_touched_and_moved.
        """
        always = {column.name for column in schema.columns if column.is_always_identity}
        return not self._is_silent and always.isdisjoint(schema.key)

    def _move(self, target: TargetNames, number: int, shape: Shape, rows: int) -> int:
        """Give rows their new keys; return how many were not there.

        Where keys are not updated in place, a moved row is completed from the row it was, removed, and
        upserted later with the rest: so chains (7 -> 8, 8 -> 9) and swaps of keys need no order. Test:
        test_two_rows_swap_their_keys.
        """
        if self._moves_in_place(target.schema):
            return rows - self._execute(
                "UPDATE {relation} t SET {assignments} FROM {staging} r"
                " WHERE r.{shape} = {number} AND {moved}",
                target,
                number,
                assignments=assignments([*target.schema.key, *target.settable(shape.columns)], "r"),
            )
        absent = [name for name in target.columns if name not in shape.columns]
        not_there = self._execute(
            "DELETE FROM {staging} r WHERE r.{shape} = {number}"
            " AND NOT EXISTS (SELECT FROM {relation} t WHERE {moved})",
            target,
            number,
        )
        if absent:
            self._execute(
                "UPDATE {staging} r SET {assignments} FROM {relation} t"
                " WHERE r.{shape} = {number} AND {moved}",
                target,
                number,
                assignments=assignments(absent, "t"),
            )
        self._execute(
            "DELETE FROM {relation} t USING {staging} r WHERE r.{shape} = {number} AND {moved}",
            target,
            number,
        )
        return not_there

    def _rekey(self, target: TargetNames, rekeyed: dict[Key, Key]) -> None:
        """Give rows that are upserted whole their new keys first, in place: see `_moves_in_place`."""
        if not rekeyed:
            return
        self._staging.create(target.rekeyed, target.rekeyed_columns)
        self._staging.copy(
            sql.Identifier(target.rekeyed),
            [*target.old_key, *target.key],
            (old + new for old, new in rekeyed.items()),
        )
        self._cursor.execute(
            sql.SQL("UPDATE {} t SET {} FROM {} r WHERE {}").format(
                target.relation,
                assignments(target.schema.key, "r"),
                sql.Identifier(target.rekeyed),
                equalities(target.key, "t", target.old_key, "r"),
            )
        )

    def _remove_keys(
        self, target: TargetNames, keys: Collection[Key], is_expected: Mapping[Key, bool]
    ) -> int:
        """Remove the rows of *keys*; return how many of the expected ones were not there."""
        if not keys:
            return 0
        self._staging.create(target.gone, target.gone_columns)
        self._staging.copy(
            sql.Identifier(target.gone),
            [EXPECTED, *target.key],
            ((is_expected[key], *key) for key in keys),
        )
        statement = sql.SQL(
            "WITH removed AS (DELETE FROM {relation} t USING {gone} g WHERE {same} RETURNING g.{expected})"
            " SELECT count(*) FILTER (WHERE {expected}) FROM removed"
        ).format(
            relation=target.relation,
            gone=sql.Identifier(target.gone),
            same=equalities(target.key, "t", target.key, "g"),
            expected=EXPECTED,
        )
        (removed,) = self._cursor.execute(statement).fetchone() or (0,)
        return sum(is_expected[key] for key in keys) - int(removed)

    def _update(self, target: TargetNames, number: int, shape: Shape) -> int:
        """Update the columns that rows carry; return how many rows were there."""
        settable = target.settable(shape.columns)
        if not settable:
            return self._execute(
                "SELECT FROM {relation} t JOIN {staging} r ON {same} WHERE r.{shape} = {number}",
                target,
                number,
            )
        return self._execute(
            "UPDATE {relation} t SET {assignments} FROM {staging} r WHERE r.{shape} = {number} AND {same}",
            target,
            number,
            assignments=assignments(settable, "r"),
        )

    def _upsert(self, target: TargetNames, number: int, columns: Sequence[str]) -> None:
        settable = target.settable(columns)
        if target.schema.is_key_deferrable:
            self._upsert_without_arbiter(target, number, columns, settable)
            return
        self._execute(
            "INSERT INTO {relation} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {staging} WHERE {shape} = {number} ORDER BY {key}"
            " ON CONFLICT ({key}) DO {action}",
            target,
            number,
            columns=names_of(columns),
            action=sql.SQL("UPDATE SET {}").format(assignments(settable, "excluded"))
            if settable
            else sql.SQL("NOTHING"),
        )

    def _upsert_without_arbiter(
        self, target: TargetNames, number: int, columns: Sequence[str], settable: Sequence[str]
    ) -> None:
        """Update the rows that are there and insert the others: ON CONFLICT cannot use a deferrable key.

        Tests: test_a_deferrable_key_is_upserted_too,
        test_an_insert_of_an_existing_deferrable_key_is_no_duplicate.
        """
        if settable:
            self._execute(
                "UPDATE {relation} t SET {assignments} FROM {staging} r"
                " WHERE r.{shape} = {number} AND {same}",
                target,
                number,
                assignments=assignments(settable, "r"),
            )
        self._execute(
            "INSERT INTO {relation} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {staging} r WHERE r.{shape} = {number}"
            " AND NOT EXISTS (SELECT FROM {relation} t WHERE {same})",
            target,
            number,
            columns=names_of(columns),
        )

    def _execute(
        self, statement: LiteralString, target: TargetNames, number: int, **parts: sql.Composable
    ) -> int:
        """Run *statement* for the staged rows of shape *number*; return the row count."""
        composed = sql.SQL(statement).format(
            relation=target.relation,
            staging=sql.Identifier(target.staging),
            shape=SHAPE,
            number=sql.Literal(number),
            key=sql.SQL(", ").join(target.key),
            same=equalities(target.key, "t", target.key, "r"),
            moved=equalities(target.key, "t", target.old_key, "r"),
            **parts,
        )
        return self._cursor.execute(composed).rowcount


def _refuse_chains(plan: TablePlan) -> None:
    """Raise ReplayNeededError where a row is moved in place to a key that another moved row leaves.

    Order 7 becomes 9, and order 6 becomes 7. If the target has no row 7, row 6 moves to 7, and a later
    statement takes it for the one that is to go on to 9.
    Test: test_a_row_moves_to_the_key_that_a_missing_row_would_have_left.
    """
    width = len(plan.schema.key)
    left: set[Key] = set()
    taken = set(plan.rekeyed.values())
    for shape, rows in plan.writes.items():
        if shape.mode == "move":
            key_of = key_getter(shape.columns, plan.schema.key)
            left.update(row[:width] for row in rows)
            taken.update(key_of(row[width:]) for row in rows)
    if not left.isdisjoint(taken):
        raise ReplayNeededError
