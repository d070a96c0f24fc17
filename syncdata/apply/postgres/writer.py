"""Writes one table's net change to PostgreSQL, as sets. Knows SQL; knows nothing of files or checkpoints.

How, and why (each measured; see benchmarks/):

1. Rows travel by COPY, into a temporary table typed like the target, and from there by few statements.
   A batch of inserts alone goes straight into the target, which saves the second trip; where a key
   exists after all, a savepoint takes it back.
2. The temporary table has no statistics, and with a wrong guess the planner hashes the whole target to
   find a handful of rows. So it is left no choice: nested loops over the target's key.
3. Upserts are sorted by key: the target's pages are then visited once.
4. Where rows exchange unique values, all are removed before any is written. What the server still
   refuses is halved, and the halves applied in order, down to single records. So order heals what
   order can, and what cannot be healed is known to the line.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql

from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.net_change import Counts, Shape, TablePlan, as_replacement, key_getter, make_plan
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.connection import is_servers_fault
from syncdata.apply.postgres.staging import (
    COUNT,
    EXPECTED,
    SHAPE,
    TargetNames,
    assignments,
    equalities,
    names_of,
    relation_of,
)
from syncdata.changes.reader import LocatedRecord
from syncdata.errors import ApplyError


class RowWriter:
    """Writes to the tables of one connection, inside the caller's transaction.

    ``is_silent``: triggers and foreign keys stand aside (``session_replication_role = replica``); where
    the role may not do that, constraints are deferred and a moved row keeps its identity.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._cursor = psycopg.Cursor(connection)
        self._cursor.adapters.register_dumper(bool, _BooleanDumper)
        self.is_silent = self._may_silence()
        self._staged: set[str] = set()
        self._no_direct_copy: set[int] = set()

    def _may_silence(self) -> bool:
        try:
            with self._connection.transaction(force_rollback=True):
                self._cursor.execute("SET LOCAL session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True

    def begin(self) -> None:
        """Prepare the transaction that has just begun. Its settings end with it."""
        self._staged.clear()
        if self.is_silent:
            self._cursor.execute("SET LOCAL session_replication_role = replica")
        else:
            self._cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        self._allow_only_nested_loops(True)

    def _allow_only_nested_loops(self, only: bool) -> None:
        value = "off" if only else "on"
        self._cursor.execute(
            "SELECT set_config(name, %s, true)"
            " FROM unnest('{enable_hashjoin,enable_mergejoin,enable_seqscan}'::text[]) AS name",
            (value,),
        )

    def forget_failures(self) -> None:
        """Let tables whose inserts met existing keys try the straight COPY again."""
        self._no_direct_copy.clear()

    def apply(
        self, records: Sequence[LocatedRecord], plan: TablePlan, *, file: str, is_plain_file: bool
    ) -> Counts:
        """Apply *records*, whose plan is *plan*, or nothing of them. Returns the counts with ``missing``.

        Raises ApplyError or SchemaError, with file and line, for the first record that cannot be applied,
        and psycopg.OperationalError when the server is at fault.
        """
        try:
            with self._connection.transaction():
                return self._apply_set(plan)
        except (psycopg.Error, _ReplayNeededError) as error:
            if is_servers_fault(error):
                raise
            if len(records) == 1:
                raise _record_error(error, plan.schema, records[0], file) from error
            if isinstance(error, psycopg.errors.UniqueViolation) and (counts := self._replace_set(plan)):
                return counts
        middle = len(records) // 2
        counts = Counts()
        for half in (records[:middle], records[middle:]):
            half_plan = make_plan(half, plan.schema, file=file, is_plain_file=is_plain_file)
            counts.add(self.apply(half, half_plan, file=file, is_plain_file=is_plain_file))
        return counts

    def _replace_set(self, plan: TablePlan) -> Counts | None:
        """Apply *plan* by removing all its rows before writing any; None, with nothing done, if it fails."""
        replacement = as_replacement(plan) if self.is_silent and plan.schema.key else None
        if replacement is None:
            return None
        try:
            with self._connection.transaction():
                return self._apply_set(replacement)
        except (psycopg.Error, _ReplayNeededError) as error:
            if is_servers_fault(error):
                raise
            return None

    def _apply_set(self, plan: TablePlan) -> Counts:
        if plan.is_order_sensitive:
            raise _ReplayNeededError
        target = TargetNames(plan.schema)
        if plan.truncate:
            self.empty(plan.schema)
        if plan.only_inserts and self._copy_straight(target, plan):
            return replace(plan.counts)
        missing = self._write_keyed(target, plan) if plan.schema.key else self._write_keyless(target, plan)
        if missing and plan.replay_if_missing and plan.counts.records > 1:
            raise _ReplayNeededError
        return replace(plan.counts, missing=plan.counts.missing + missing)

    def empty_all(self, schemas: Sequence[TableSchema]) -> None:
        """Remove all rows of tables given parents first; together where no other table refers to them."""
        if not schemas:
            return
        relations = sql.SQL(", ").join(relation_of(schema) for schema in schemas)
        try:
            with self._connection.transaction():
                self._cursor.execute(sql.SQL("TRUNCATE {}").format(relations))
        except psycopg.errors.FeatureNotSupported:
            for schema in reversed(schemas):
                self.empty(schema)

    def empty(self, schema: TableSchema) -> None:
        """Remove all rows. A table that others refer to cannot be truncated alone."""
        verb: LiteralString = "DELETE FROM {}" if schema.has_inbound_keys else "TRUNCATE {}"
        self._cursor.execute(sql.SQL(verb).format(relation_of(schema)))

    def _copy_straight(self, target: TargetNames, plan: TablePlan) -> bool:
        """COPY a batch of inserts into the target; False, with nothing done, when a key exists already."""
        schema = plan.schema
        if schema.oid in self._no_direct_copy or schema.is_key_deferrable:
            return False
        ((shape, rows),) = plan.writes.items()
        try:
            with self._connection.transaction():
                self._copy(target.relation, [sql.Identifier(name) for name in shape.columns], rows)
        except psycopg.errors.UniqueViolation:
            self._no_direct_copy.add(schema.oid)
            return False
        return True

    def _write_keyed(self, target: TargetNames, plan: TablePlan) -> int:
        shapes = self._stage_rows(target, plan.writes)
        missing = 0
        moves_in_place = self._moves_in_place(plan.schema)
        if moves_in_place:
            _refuse_chains(plan)
            missing += self._remove_keys(target, plan.gone.keys() - plan.rekeyed.keys(), plan.gone)
            self._rekey(target, plan.rekeyed)
        for number, shape in shapes:
            if shape.mode == "move":
                missing += self._move(target, number, shape, len(plan.writes[shape]))
        if not moves_in_place:
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

    def _stage_rows(
        self, target: TargetNames, writes: dict[Shape, list[tuple[Any, ...]]]
    ) -> list[tuple[int, Shape]]:
        """COPY all rows into the staging table, each marked with its shape's number."""
        if not writes:
            return []
        self._create_staging(target.staging, target.staging_columns)
        shapes = list(enumerate(writes))
        for number, shape in shapes:
            names = [SHAPE]
            if shape.mode == "move":
                names += target.old_key
            names += [sql.Identifier(name) for name in shape.columns]
            self._copy(sql.Identifier(target.staging), names, writes[shape], prefix=(number,))
        return shapes

    def _create_staging(self, name: str, columns: sql.Composable) -> None:
        self._cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(
                sql.Identifier(name), columns
            )
        )
        if name in self._staged:
            self._cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier("pg_temp", name)))
        self._staged.add(name)

    def _copy(
        self,
        relation: sql.Composable,
        columns: Sequence[sql.Composable],
        rows: Iterable[tuple[Any, ...]],
        *,
        prefix: tuple[Any, ...] = (),
    ) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(relation, sql.SQL(", ").join(columns))
        with self._cursor.copy(statement) as copy:
            if prefix:
                for row in rows:
                    copy.write_row(prefix + row)
            else:
                for row in rows:
                    copy.write_row(row)

    def _move(self, target: TargetNames, number: int, shape: Shape, rows: int) -> int:
        """Give rows their new keys; return how many were not there.

        In silence a moved row is completed from the row it was, removed, and upserted later with the
        rest: so chains and swaps of keys need no order. Where constraints are awake it is updated in
        place, for a delete could cascade.
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

    def _moves_in_place(self, schema: TableSchema) -> bool:
        """Whether a moved row is updated: not where nothing can cascade, nor where identity forbids it."""
        always = {column.name for column in schema.columns if column.is_always_identity}
        return not self.is_silent and always.isdisjoint(schema.key)

    def _rekey(self, target: TargetNames, rekeyed: dict[Key, Key]) -> None:
        """Give rows their new keys in place, for a delete could cascade to the rows that refer to them."""
        if not rekeyed:
            return
        self._create_staging(target.rekeyed, target.rekeyed_columns)
        self._copy(
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
        self._create_staging(target.gone, target.gone_columns)
        self._copy(
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
        if not target.schema.key or target.schema.is_key_deferrable:
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
        """ON CONFLICT cannot use a deferrable key, and a table without a key has nothing to conflict."""
        only_new: sql.Composable = sql.SQL("true")
        if target.schema.key:
            if settable:
                self._execute(
                    "UPDATE {relation} t SET {assignments} FROM {staging} r"
                    " WHERE r.{shape} = {number} AND {same}",
                    target,
                    number,
                    assignments=assignments(settable, "r"),
                )
            only_new = sql.SQL("NOT EXISTS (SELECT FROM {} t WHERE {})").format(
                target.relation, equalities(target.key, "t", target.key, "r")
            )
        self._execute(
            "INSERT INTO {relation} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {staging} r WHERE r.{shape} = {number} AND {only_new}",
            target,
            number,
            columns=names_of(columns),
            only_new=only_new,
        )

    def _write_keyless(self, target: TargetNames, plan: TablePlan) -> int:
        missing = 0
        by_columns: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for (columns, values), count in plan.removals.items():
            by_columns.setdefault(columns, []).append((count, *values))
        for columns, rows in by_columns.items():
            missing += self._remove_bag(target, columns, rows)
        for number, shape in self._stage_rows(target, plan.writes):
            self._upsert(target, number, shape.columns)
        return missing

    def _remove_bag(self, target: TargetNames, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> int:
        """Remove, of each row that equals one of *rows* in *columns*, as many as its count; return how
        many were not there.

        Rows are compared by their text, for json and others have no equality; the text of ROW() is
        unambiguous, NULLs included.
        """
        bag = f"syncdata_bag_{target.suffix}_{zlib.crc32(repr(columns).encode()):08x}"
        self._create_staging(bag, target.bag_columns(columns))
        self._copy(sql.Identifier(bag), [COUNT, *map(sql.Identifier, columns)], rows)
        statement = sql.SQL(
            "DELETE FROM {relation} WHERE (tableoid, ctid) IN ("
            " SELECT t.tableoid, t.ctid FROM ("
            "  SELECT tableoid, ctid, ROW({columns})::text AS row,"
            "         row_number() OVER (PARTITION BY ROW({columns})::text ORDER BY tableoid, ctid) AS number"
            "  FROM {relation} WHERE ROW({columns})::text IN (SELECT ROW({columns})::text FROM {bag})"
            " ) t JOIN (SELECT ROW({columns})::text AS row, sum({count}) AS count FROM {bag} GROUP BY 1) b"
            " ON t.row = b.row AND t.number <= b.count)"
        ).format(relation=target.relation, columns=names_of(columns), bag=sql.Identifier(bag), count=COUNT)
        self._allow_only_nested_loops(False)
        removed = self._cursor.execute(statement).rowcount
        self._allow_only_nested_loops(True)
        return sum(row[0] for row in rows) - removed

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

    def exchange(self, live: TableSchema, shadow: TableSchema) -> None:
        """Give *live* the rows of *shadow*, in the caller's transaction.

        Where constraints are awake, rows that others refer to must not vanish even for a moment: a
        delete could cascade. So only the keys that are gone are deleted, and the rest upserted.
        """
        target = TargetNames(live)
        may_delete_all = self.is_silent or not live.key or not live.has_inbound_keys
        keep = sql.SQL("EXISTS (SELECT FROM {} s WHERE {})").format(
            relation_of(shadow), equalities(target.key, "t", target.key, "s")
        )
        settable = target.settable(target.columns)
        on_conflict = sql.SQL("ON CONFLICT ({}) DO {}").format(
            sql.SQL(", ").join(target.key),
            sql.SQL("UPDATE SET {}").format(assignments(settable, "excluded"))
            if settable
            else sql.SQL("NOTHING"),
        )
        self._cursor.execute(
            sql.SQL("DELETE FROM {} t WHERE NOT {}").format(
                target.relation, sql.SQL("false") if may_delete_all else keep
            )
        )
        if not may_delete_all and live.is_key_deferrable:  # which ON CONFLICT cannot use
            same = equalities(target.key, "t", target.key, "s")
            if settable:
                self._cursor.execute(
                    sql.SQL("UPDATE {} t SET {} FROM {} s WHERE {}").format(
                        target.relation, assignments(settable, "s"), relation_of(shadow), same
                    )
                )
            on_conflict = sql.SQL("WHERE NOT EXISTS (SELECT FROM {} t WHERE {})").format(
                target.relation, same
            )
        self._cursor.execute(
            sql.SQL(
                "INSERT INTO {live} ({columns}) OVERRIDING SYSTEM VALUE"
                " SELECT {columns} FROM {shadow} s {on_conflict}"
            ).format(
                live=target.relation,
                columns=names_of(target.columns),
                shadow=relation_of(shadow),
                on_conflict=sql.SQL("") if may_delete_all else on_conflict,
            )
        )

    def advance_sequences(self, schema: TableSchema) -> None:
        """Set the table's sequences to at least its highest value, so that a local insert finds a free one.

        Not transactional, like nextval; harmless, for a sequence may run ahead. Needs UPDATE on the sequence.
        """
        for column, sequence in schema.sequences:
            self._cursor.execute(
                sql.SQL(
                    "SELECT setval({sequence}::oid::regclass, top::bigint) FROM (SELECT max({column}) AS top"
                    " FROM {relation}) t, pg_sequence s WHERE s.seqrelid = {sequence}::oid"
                    " AND s.seqincrement > 0 AND top BETWEEN s.seqmin AND s.seqmax"
                    " AND top > coalesce(pg_sequence_last_value(s.seqrelid), s.seqmin - 1)"
                ).format(
                    sequence=sql.Literal(sequence),
                    column=sql.Identifier(column),
                    relation=relation_of(schema),
                )
            )


def _refuse_chains(plan: TablePlan) -> None:
    """A row moved in place to a key that another row leaves would be moved again, were that one missing.

    Raises _ReplayNeededError.
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
        raise _ReplayNeededError


class _BooleanDumper(psycopg.adapt.Dumper):
    """``true``, as the file has it, which a text column keeps and a boolean one reads; not ``t``."""

    oid = 0

    def dump(self, obj: bool) -> bytes:
        return b"true" if obj else b"false"


class _ReplayNeededError(Exception):
    """The fold of this batch does not tell its outcome; the records' own order does."""


def _record_error(
    error: psycopg.Error | _ReplayNeededError, schema: TableSchema, located: LocatedRecord, file: str
) -> ApplyError:
    """Say what the database refused, without its DETAIL and CONTEXT, which hold row values."""
    if isinstance(error, psycopg.Error):
        parts = [type(error).__name__]
        if error.sqlstate:
            parts.append(f"SQLSTATE {error.sqlstate}")
        for label, value in (("column", error.diag.column_name), ("constraint", error.diag.constraint_name)):
            if value:
                parts.append(f"{label} {value}")
        what = f"the database refuses this {located.record.op} ({', '.join(parts)})"
    else:
        what = f"this {located.record.op} cannot be applied by itself"
    return ApplyError(
        what,
        hint="compare the table's definition with production's and mend it, or resync the table;"
        " it is tried again in every cycle",
        table=str(schema.name),
        file=file,
        line=located.line,
    )
