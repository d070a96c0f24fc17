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
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter
from syncdata.apply.postgres.held import fixed_error, require_changed
from syncdata.apply.postgres.pieces import TargetNames, assignments, equalities, names_of, on_conflict
from syncdata.apply.postgres.staging import Staging

# In the order of the key, so that the table's pages are visited once.
UPDATE: LiteralString = (
    "UPDATE {rows} t SET {assignments} FROM (SELECT * FROM {staging} r WHERE {mine} ORDER BY {key}) r"
    " WHERE {same}"
)
# The alias, for a table may be called "excluded".
UPSERT: LiteralString = (
    "INSERT INTO {relation} AS t ({columns}) OVERRIDING SYSTEM VALUE"
    " SELECT {columns} FROM {staging} r WHERE {mine} ORDER BY {key}"
    " ON CONFLICT ({key}) DO {action}"
)


def parts_of(target: TargetNames, number: int) -> dict[str, sql.Composable]:
    """Return what the statements for the staged rows of shape *number* share."""
    return {
        "relation": target.relation,
        "rows": target.rows,
        "staging": target.staged(number),
        "mine": target.of_shape(number),
        "key": sql.SQL(", ").join(target.key),
        "same": equalities(target.key, "t", target.key, "r"),
        "moved": equalities(target.key, "t", target.old_key, "r"),
    }


class ReplayNeededError(Exception):
    """The plan is not enough: the records must be applied one after the other."""


class KeyedWriter:
    """Writes to tables with a key. ``is_silent``: triggers and foreign keys stand aside."""

    def __init__(self, cursor: psycopg.Cursor[Any], staging: Staging, *, is_silent: bool) -> None:
        self._cursor = cursor
        self._staging = staging
        self._is_silent = is_silent

    def write(self, target: TargetNames, plan: TablePlan, *, removes_first: bool = False) -> int:
        """Write *plan*; return how many rows it looked for and did not find.

        *removes_first*: no row is moved in place.

        Raises ReplayNeededError, and RefusedError where the table does not take what it is given.
        """
        shapes = self._staging.stage(target, plan.writes)
        left = {number: len(plan.writes[shape]) for number, shape in shapes}
        missing = 0
        moves_in_place = not removes_first and self._moves_in_place(target)
        if moves_in_place:
            _refuse_chains(plan)
            # Remove before the moves, which may go to a key that is removed here. Tests:
            # test_rows_may_be_moved_in_place_when_what_is_gone_is_removed_first,
            # test_a_row_that_moves_to_a_key_its_batch_has_used_is_not_lost.
            missing += self._remove_keys(target, plan.gone.keys() - plan.rekeyed.keys(), plan.gone)
            self._rekey(target, plan.rekeyed)
        elif (
            not self._is_silent
            and plan.schema.has_cascades
            and (plan.rekeyed or any(shape.mode == "move" for _, shape in shapes))
        ):
            raise fixed_error(next(c.name for c in plan.schema.columns if c.is_always_identity))
        for number, shape in shapes:
            if shape.mode == "move":
                not_there = self._move(target, number, shape, left[number], is_in_place=moves_in_place)
                left[number] -= not_there
                missing += not_there
        if not moves_in_place:
            # Remove after the moves: a replacement removes all keys that it writes, and a move may start from
            # one of them. Order 7 becomes 17 and another order takes number 7: first the moved row gets its
            # note from the old row 7, then that is removed.
            # Test: test_a_replacement_equals_its_plan_and_writes_only_where_nothing_is_left.
            missing += self._remove_keys(target, plan.gone.keys(), plan.gone)
        aside = self._set_aside(target, shapes, left, moves_in_place=moves_in_place)
        for number, shape in shapes:
            if shape.mode == "update":
                not_there = self._update(target, number, shape, left[number])
                left[number] -= not_there
                missing += not_there
        for number, shape in shapes:
            if shape.mode == "upsert":
                self._upsert(target, number, shape.columns, left[number])
            elif shape.mode == "move" and not moves_in_place:
                self._upsert(target, number, target.columns, left[number])
        self._put_back(target, aside)
        self._require_values(target, shapes, left, moves_in_place=moves_in_place)
        return missing

    def _moves_in_place(self, target: TargetNames) -> bool:
        """Tell whether a row gets its new key by UPDATE of its key columns, and not by DELETE and INSERT.

        Order 7 becomes 17. Where foreign keys are awake, a DELETE of 7 could take its order lines along, so
        the key is updated; test: test_a_key_that_changes_does_not_cascade_to_children_for_an_ordinary_role.
        So it is in a table whose staging table has no room for the columns that the moved row lacks.
        PostgreSQL refuses to update a column that is GENERATED ALWAYS AS IDENTITY, so where the key holds
        one, the row is deleted and inserted even then; test:
        test_rows_with_an_identity_that_is_always_generated_are_touched_and_moved.
        """
        schema = target.schema
        always = {column.name for column in schema.columns if column.is_always_identity}
        return (not self._is_silent or target.is_wide) and always.isdisjoint(schema.key)

    def _move(self, target: TargetNames, number: int, shape: Shape, rows: int, *, is_in_place: bool) -> int:
        """Give rows their new keys; return how many were not there.

        Where keys are not updated in place, a moved row is completed from the row it was, removed, and
        upserted later with the rest: so chains (7 -> 8, 8 -> 9) and swaps of keys need no order. Test:
        test_two_rows_swap_their_keys.
        """
        if is_in_place:
            moved = self._execute(
                "UPDATE {rows} t SET {assignments} FROM {staging} r WHERE {mine} AND {moved}",
                target,
                number,
                assignments=assignments([*target.schema.key, *target.settable(shape.columns)], "r"),
            )
            # No row comes to a key that a moved one leaves (`_refuse_chains`): what is there has not moved.
            stayed = 0
            if moved < rows:
                stayed = self._count("{staging} r ON {moved} WHERE {mine}", target, number)
            self._require(target, "UPDATE", found=moved + stayed, changed=moved)
            return rows - moved
        absent = [name for name in target.columns if name not in shape.columns]
        not_there = self._execute(
            "DELETE FROM {staging} r WHERE {mine} AND NOT EXISTS (SELECT FROM {rows} t WHERE {moved})",
            target,
            number,
        )
        if absent:
            self._execute(
                "UPDATE {staging} r SET {assignments} FROM {rows} t WHERE {mine} AND {moved}",
                target,
                number,
                assignments=assignments(absent, "t"),
            )
        removed = self._execute(
            "DELETE FROM {rows} t USING {staging} r WHERE {mine} AND {moved}", target, number
        )
        self._require(target, "DELETE", found=rows - not_there, changed=removed)
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
        parts = {
            "rows": target.rows,
            "keys": sql.Identifier(target.rekeyed),
            "assignments": assignments(target.schema.key, "r"),
            "moved": equalities(target.key, "t", target.old_key, "r"),
        }
        moved = self._run("UPDATE {rows} t SET {assignments} FROM {keys} r WHERE {moved}", parts).rowcount
        stayed = 0
        if moved < len(rekeyed):
            stayed = self._one("SELECT count(*) FROM {rows} t JOIN {keys} r ON {moved}", parts)
        self._require(target, "UPDATE", found=moved + stayed, changed=moved)

    def _remove_keys(
        self, target: TargetNames, keys: Collection[Key], is_expected: Mapping[Key, bool]
    ) -> int:
        """Remove the rows of *keys*; return how many of the expected ones were not there."""
        if not keys:
            return 0
        self._staging.create(target.gone, target.gone_columns)
        self._staging.copy(
            sql.Identifier(target.gone),
            [target.expected, *target.key],
            ((is_expected[key], *key) for key in keys),
        )
        parts = {
            "rows": target.rows,
            "gone": sql.Identifier(target.gone),
            "same": equalities(target.key, "t", target.key, "g"),
            "key": sql.SQL(", ").join(target.key),
            "expected": sql.SQL("g.{}").format(target.expected),
        }
        counts = " SELECT count(*), count(*) FILTER (WHERE is_expected) FROM found"
        if any(guard.kind == "rule" for guard in target.schema.guards):
            # Rules and RETURNING do not go together, so the rows are counted before they are removed.
            found, removed_expected = self._two(
                "WITH found AS (SELECT {expected} AS is_expected FROM {rows} t JOIN {gone} g ON {same})"
                + counts,
                parts,
            )
            removed = self._run("DELETE FROM {rows} t USING {gone} g WHERE {same}", parts).rowcount
        else:
            removed, removed_expected = self._two(
                "WITH found AS (DELETE FROM {rows} t USING (SELECT * FROM {gone} ORDER BY {key}) g"
                " WHERE {same} RETURNING {expected} AS is_expected)" + counts,
                parts,
            )
            stayed = 0
            if removed < len(keys):
                stayed = self._one("SELECT count(*) FROM {rows} t JOIN {gone} g ON {same}", parts)
            found = removed + stayed
        self._require(target, "DELETE", found=found, changed=removed)
        return sum(is_expected[key] for key in keys) - removed_expected

    def _set_aside(
        self,
        target: TargetNames,
        shapes: Sequence[tuple[int, Shape]],
        left: dict[int, int],
        *,
        moves_in_place: bool,
    ) -> int:
        """Take rows out of the table whose columns that no UPDATE may set change; return how many they are.

        Document 7 gets another ``rev``, which is GENERATED ALWAYS AS IDENTITY: its row is completed with the
        columns that the record lacks, removed, and put in again whole (`_put_back`). Only rows where such a
        column differs go this way. They leave the staged rows, and *left*, their numbers, with them. Test:
        test_an_identity_that_is_always_generated_follows_production_outside_the_key.
        """
        if not target.schema.fixed:
            return 0
        self._staging.create(target.aside, target.typed(target.columns))
        aside = sql.Identifier(target.aside)
        total = 0
        for number, shape in shapes:
            is_complete = shape.mode == "move" and not moves_in_place
            carried = set(target.columns if is_complete else shape.columns)
            fixed = [sql.Identifier(name) for name in target.schema.fixed if name in carried]
            if not fixed:
                continue
            changed = sql.SQL("NOT ({})").format(equalities(fixed, "t", fixed, "r"))
            values = [sql.Identifier("r" if name in carried else "t", name) for name in target.columns]
            taken = self._execute(
                "INSERT INTO {aside} ({columns}) SELECT {values} FROM {staging} r JOIN {rows} t ON {same}"
                " WHERE {mine} AND {changed}",
                target,
                number,
                aside=aside,
                columns=names_of(target.columns),
                values=sql.SQL(", ").join(values),
                changed=changed,
            )
            if taken:
                self._execute(
                    "DELETE FROM {staging} r USING {aside} t WHERE {mine} AND {same}",
                    target,
                    number,
                    aside=aside,
                )
                left[number] -= taken
                total += taken
        if total:
            if not self._is_silent and target.schema.has_cascades:
                raise fixed_error(target.schema.fixed[0])
            removed = self._execute(
                "DELETE FROM {rows} t USING {aside} r WHERE {same}", target, 0, aside=aside
            )
            self._require(target, "DELETE", found=total, changed=removed)
        return total

    def _put_back(self, target: TargetNames, rows: int) -> None:
        """Put the *rows* that `_set_aside` took out into the table again."""
        if rows:
            inserted = self._execute(
                "INSERT INTO {relation} ({columns}) OVERRIDING SYSTEM VALUE"
                " SELECT {columns} FROM {aside} ORDER BY {key}",
                target,
                0,
                aside=sql.Identifier(target.aside),
                columns=names_of(target.columns),
            )
            self._require(target, "INSERT", found=rows, changed=inserted)

    def _update(self, target: TargetNames, number: int, shape: Shape, rows: int) -> int:
        """Update the columns that rows carry; return how many of the *rows* were not there."""
        settable = target.settable(shape.columns)
        if not settable:
            return rows - self._count("{staging} r ON {same} WHERE {mine}", target, number)
        updated = self._execute(
            UPDATE,
            target,
            number,
            assignments=assignments(settable, "r"),
        )
        found = updated
        if updated < rows:
            found = self._count("{staging} r ON {same} WHERE {mine}", target, number)
        self._require(target, "UPDATE", found=found, changed=updated)
        return rows - updated

    def _upsert(self, target: TargetNames, number: int, columns: Sequence[str], rows: int) -> None:
        settable = target.settable(columns)
        if not target.schema.has_arbiter:
            self._upsert_without_arbiter(target, number, columns, rows)
            return
        written = self._execute(
            UPSERT,
            target,
            number,
            columns=names_of(columns),
            action=on_conflict(settable),
        )
        if written < rows and not settable:
            written = self._count("{staging} r ON {same} WHERE {mine}", target, number)
        self._require(target, "INSERT", found=rows, changed=written)

    def _upsert_without_arbiter(
        self,
        target: TargetNames,
        number: int,
        columns: Sequence[str],
        rows: int,
    ) -> None:
        """Update the rows that are there and insert the others: ON CONFLICT cannot use a deferrable key, nor
        one WITHOUT OVERLAPS, and no key of a table that has rules.

        Tests: test_a_deferrable_key_is_upserted_too,
        test_an_insert_of_an_existing_deferrable_key_is_no_duplicate,
        test_a_key_without_overlaps_is_upserted_and_moved, test_rules_that_are_silent_do_not_stop_an_upsert.
        """
        not_there = self._update(target, number, Shape("update", tuple(columns)), rows)
        inserted = self._execute(
            "INSERT INTO {relation} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {staging} r WHERE {mine}"
            " AND NOT EXISTS (SELECT FROM {rows} t WHERE {same})",
            target,
            number,
            columns=names_of(columns),
        )
        self._require(target, "INSERT", found=not_there, changed=inserted)

    def _require_values(
        self,
        target: TargetNames,
        shapes: Sequence[tuple[int, Shape]],
        left: Mapping[int, int],
        *,
        moves_in_place: bool,
    ) -> None:
        """Where triggers are awake, require that the rows have the values that were written.

        Values are compared by their text, since not all types have an equality. Test:
        test_values_that_a_trigger_changes_block_the_table.
        """
        guards = target.schema.awake_guards(is_silent=self._is_silent)
        if not any(guard.kind == "trigger" and guard.events & {"INSERT", "UPDATE"} for guard in guards):
            return
        for number, shape in shapes:
            is_complete = shape.mode == "move" and not moves_in_place
            columns = target.columns if is_complete else shape.columns
            equal = self._count(
                "{staging} r ON {same} WHERE {mine} AND ROW({theirs})::text = ROW({ours})::text",
                target,
                number,
                theirs=sql.SQL(", ").join(sql.Identifier("t", name) for name in columns),
                ours=sql.SQL(", ").join(sql.Identifier("r", name) for name in columns),
            )
            self._require(target, "UPDATE", found=left[number], changed=equal)

    def _require(self, target: TargetNames, event: str, *, found: int, changed: int) -> None:
        require_changed(target.schema, event, found=found, changed=changed, is_silent=self._is_silent)

    def _execute(
        self, statement: LiteralString, target: TargetNames, number: int, **parts: sql.Composable
    ) -> int:
        """Run *statement* for the staged rows of shape *number*; return the row count."""
        return self._run(statement, parts_of(target, number) | parts).rowcount

    def _count(self, joined: LiteralString, target: TargetNames, number: int, **parts: sql.Composable) -> int:
        """Return the number of the table's rows, joined with what *joined* says."""
        return self._one("SELECT count(*) FROM {rows} t JOIN " + joined, parts_of(target, number) | parts)

    def _one(self, query: LiteralString, parts: Mapping[str, sql.Composable]) -> int:
        (number,) = self._run(query, parts).fetchone() or (0,)
        return int(number)

    def _two(self, query: LiteralString, parts: Mapping[str, sql.Composable]) -> tuple[int, int]:
        one, two = self._run(query, parts).fetchone() or (0, 0)
        return int(one), int(two)

    def _run(self, statement: LiteralString, parts: Mapping[str, sql.Composable]) -> psycopg.Cursor[Any]:
        return self._cursor.execute(sql.SQL(statement).format(**parts))


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
