"""Writes the plans of many tables at once: few round trips, however many tables and statements. Knows SQL
and the plan.

Plans of few rows go by their direct statements (direct.py), all in one round trip. The others go as one
script (script.py), which waits once a table: a plan of inserts alone is a COPY into its table; any other plan
is one COPY into its staging table, of the rows of all shapes and of the keys that are to go, and the
statements of keyed.py for them. The columns that a shape lacks are NULL there, and are not looked at.

Rows with a long value go by their direct statements, too. Those of a table that has a part in the script
travel with what ends the transaction (`send_rest`), without a round trip of their own: the script has removed
what is to go, and has said which of the rows are missing. Test:
test_long_values_go_to_the_server_by_themselves_and_not_by_copy.

Nothing is decided on the way, so only plans go like this whose statements say by their row counts alone what
they did. When one does anything else than expected, all is in vain: the caller rolls back, and applies table
by table (writer.py), which knows more ways. A table with which that has happened rests, the longer the more
often. Tests: tests/integration/test_round_trips.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql

from syncdata.apply.counts import Counts
from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.copy_text import NulError, copy_text
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import Shape, TablePlan, key_getter, long_rows_apart
from syncdata.apply.postgres.connection import is_servers_fault
from syncdata.apply.postgres.direct import DoubtfulError, missing_of
from syncdata.apply.postgres.keyed import UPDATE, UPSERT, parts_of
from syncdata.apply.postgres.pieces import TargetNames, assignments, names_of, on_conflict
from syncdata.apply.postgres.rests import Rests
from syncdata.apply.postgres.script import Statement, StatementError, run_pipeline, run_script
from syncdata.apply.postgres.staging import creation_of
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.sink import LockedError
from syncdata.changes.names import TableName

# The numbers of staged keys that are to go: those of rows that are expected to be there, and the others.
_EXPECTED, _OTHERS = -1, -2
# The same for those of rows with a long value, which will be updated: they are looked for and locked.
_LATER = -3

_REMOVE: LiteralString = (
    "DELETE FROM {rows} t USING (SELECT * FROM {staging} r WHERE {mine} ORDER BY {key}) r WHERE {same}"
)

_FIND: LiteralString = (
    "SELECT FROM {rows} t, (SELECT * FROM {staging} r WHERE {mine} ORDER BY {key}) r WHERE {same}"
    " FOR UPDATE OF t"
)

# A bound on memory: a query has all columns of a wide table.
_MOST_TABLES, _MOST_QUERIES = 200, 20

# How many rows a statement is to touch, and what it means if they are fewer: they are to be counted as
# missing, it is as good, or, if that is empty, it must not be.
_Expected = tuple[int, Literal["counts", "good", ""]]


class NotAtOnceError(Exception):
    """Something was not as expected; what was written must be rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A table's part of the script. ``is_straight``: its rows go to it by COPY."""

    table: TableName
    plan: TablePlan
    is_straight: bool
    statements: Sequence[Statement]
    expected: Sequence[_Expected]


class AtOnceWriter:
    """Writes to the tables of the connection of *writer*, after its `begin`."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._connection = writer.connection
        self._known: dict[TableName, _Queries] = {}
        self._rests = Rests()
        self._later: list[TablePlan] = []

    def begin(self) -> None:
        """Prepare the transaction that has just begun."""
        self._later.clear()

    def write(self, plans: Mapping[TableName, TablePlan]) -> dict[TableName, Counts]:
        """Write those of *plans* that can go like this; return their counts, with the rows that were missing.

        Some of their rows are not written before `send_rest`.

        Raises LockedError, NotAtOnceError, and psycopg.Error when the server is at fault.
        """
        plans = {table: plan for table, plan in plans.items() if self._may_try(plan)}
        small = {table: plan for table, plan in plans.items() if self._writer.direct.suits(plan)}
        others = {table: plan for table, plan in plans.items() if table not in small}
        parts, long, later = self._parts(others)
        missing = self._write_alone(small | long) | self._write_parts(parts)
        self._later = later
        counts = {}
        for table, not_there in missing.items():
            plan = plans[table]
            # A row that one record alone did not find is missing.
            if not_there and plan.replay_if_missing and plan.counts.records > 1:
                raise self._doubtful(plan.schema)
            counts[table] = replace(plan.counts, missing=plan.counts.missing + not_there)
            self._rests.note_success(plan.schema.oid)
        return counts

    def send_rest(self) -> None:
        """Send, in the caller's pipeline, the rows that `write` has left. COMMIT goes behind them.

        Nobody reads their row counts before, so a statement that does not write its row fails. Test:
        test_a_long_value_that_is_not_written_with_the_commit_stops_it.
        """
        cursor = psycopg.RawCursor(self._connection)
        for plan in self._later:
            for text, rows in self._writer.direct.sure_writes(plan):
                for values in rows:
                    # Not prepared: the table's columns may have other types the next time.
                    cursor.execute(text, values, prepare=False)
        self._later.clear()

    def _parts(
        self, plans: Mapping[TableName, TablePlan]
    ) -> tuple[list[_Part], dict[TableName, TablePlan], list[TablePlan]]:
        """Return the parts of the script for *plans*, the plans of nothing but rows with long values, and the
        plans of such rows beside a part. A plan that cannot go like this is left out."""
        parts: list[_Part] = []
        long: dict[TableName, TablePlan] = {}
        later: list[TablePlan] = []
        for table, plan in plans.items():
            rest, of_long = (self._may_part(plan) and long_rows_apart(plan)) or (plan, None)
            if of_long is not None and not (rest.gone or rest.writes):
                long[table] = of_long
            elif (part := self._part(table, rest, of_long)) is not None:
                parts.append(part)
                if of_long is not None:
                    later.append(of_long)
        return parts, long, later

    def _may_part(self, plan: TablePlan) -> bool:
        """Tell whether some rows of *plan* may be written later than others. Where foreign keys are awake,
        these could refer to those."""
        return self._writer.is_silent and self._writer.direct.is_for(plan.schema)

    def _may_try(self, plan: TablePlan) -> bool:
        schema = plan.schema
        return not (
            plan.truncate
            or plan.removals
            or plan.is_order_sensitive
            or not (plan.gone or plan.writes)
            or (plan.rekeyed and not self._writer.is_silent)
            or any(shape.mode == "move" or not shape.columns for shape in plan.writes)
            or schema.hides_rows
            or schema.awake_guards(is_silent=self._writer.is_silent)
        ) and self._rests.may_try(schema.oid)

    def _doubtful(self, schema: TableSchema) -> NotAtOnceError:
        self._rests.note_failure(schema.oid)
        return NotAtOnceError()

    def _refused(
        self, table: TableName, plan: TablePlan, error: Exception, *, is_straight: bool
    ) -> Exception:
        """Return what to raise for a statement for *table* that failed with *error*."""
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return LockedError(table)
        if is_servers_fault(error):
            return error
        if is_straight and isinstance(
            error, psycopg.errors.UniqueViolation | psycopg.errors.ExclusionViolation
        ):
            # Some of the rows are there already: it can go at once by staging.
            self._writer.straight_rests.note_failure(plan.schema.oid)
            return NotAtOnceError()
        return self._doubtful(plan.schema)

    # Few rows, and those with long values

    def _write_alone(self, plans: Mapping[TableName, TablePlan]) -> dict[TableName, int]:
        steps, statements = {}, []
        for table, plan in plans.items():
            try:
                steps[table] = self._writer.direct.steps(plan)
            except (psycopg.DataError, DoubtfulError):
                raise self._doubtful(plan.schema) from None
            statements += [(table, statement) for of_kind, _ in steps[table] for statement in of_kind]
        try:
            counts = iter(run_pipeline(self._connection, [statement for _, statement in statements]))
        except StatementError as failure:
            table, _ = statements[failure.number]
            raise self._refused(table, plans[table], failure.error, is_straight=False) from None
        missing = {}
        for table, plan in plans.items():
            try:
                missing[table] = missing_of(plan, steps[table], counts)
            except DoubtfulError:
                raise self._doubtful(plan.schema) from None
        return missing

    # Many rows

    def _write_parts(self, parts: Sequence[_Part]) -> dict[TableName, int]:
        if not parts:
            return {}
        statements = [(part, statement) for part in parts for statement in part.statements]
        try:
            counts = iter(run_script(self._connection, [statement for _, statement in statements]))
        except StatementError as failure:
            part, _ = statements[failure.number]
            raise self._refused(part.table, part.plan, failure.error, is_straight=part.is_straight) from None
        except NulError:
            raise NotAtOnceError from None
        missing = {}
        for part in parts:
            missing[part.table] = 0
            for rows, if_fewer in part.expected:
                not_there = rows - next(counts)
                if not_there < 0 or (not_there and not if_fewer):
                    raise self._doubtful(part.plan.schema)
                missing[part.table] += not_there if if_fewer == "counts" else 0
            if part.is_straight:
                self._writer.straight_rests.note_success(part.plan.schema.oid)
        return missing

    def _part(self, table: TableName, plan: TablePlan, later: TablePlan | None) -> _Part | None:
        """Return the statements for *plan*, before *later*; None where it cannot go like this."""
        schema = plan.schema
        queries = self._known.get(table)
        if queries is None or queries.schema is not schema:
            if len(self._known) >= _MOST_TABLES:
                self._known.clear()
            queries = self._known[table] = _Queries(schema, self._connection)
        later_keys = _keys_of_updates(later)
        # The same conditions as in writer.py.
        if (
            plan.only_inserts
            and not later_keys
            and not schema.is_key_deferrable
            and self._writer.straight_rests.may_try(schema.oid)
        ):
            ((shape, rows),) = plan.writes.items()
            copy = Statement(queries.straight(shape.columns), copy_text(rows))
            return _Part(
                table=table, plan=plan, is_straight=True, statements=[copy], expected=[(len(rows), "")]
            )
        if not (schema.key and schema.has_arbiter) or schema.fixed or queries.target.is_wide:
            return None
        if any(
            shape.mode == "update" and not queries.target.settable(shape.columns) for shape in plan.writes
        ):
            return None
        return self._staged(table, plan, later_keys, queries)

    def _staged(
        self, table: TableName, plan: TablePlan, later_keys: Sequence[Key], queries: _Queries
    ) -> _Part:
        by_key = {
            _EXPECTED: [key for key, is_expected in plan.gone.items() if is_expected],
            _OTHERS: [key for key, is_expected in plan.gone.items() if not is_expected],
            _LATER: later_keys,
        }
        keys = sum(map(len, by_key.values()))
        shapes = list(enumerate(plan.writes))
        names = _all_columns([shape.columns for shape in plan.writes], plan.schema.key if keys else ())
        rows = sum(map(len, plan.writes.values())) + keys
        expected: list[_Expected] = [(0, "good"), (rows, "")]
        if by_key[_EXPECTED]:
            expected.append((len(by_key[_EXPECTED]), "counts"))
        if by_key[_OTHERS]:
            expected.append((len(by_key[_OTHERS]), "good"))
        if later_keys:
            expected.append((len(later_keys), "counts"))
        for mode in ("update", "upsert"):
            for shape, shape_rows in plan.writes.items():
                if shape.mode == mode:
                    # What has no column beside the key is left alone where it is.
                    may_stay = not queries.target.settable(shape.columns)
                    expected.append((len(shape_rows), "good" if may_stay else ""))
        texts = queries.staged(names, shapes, [number for number, of_number in by_key.items() if of_number])
        statements = [Statement(text) for text in texts]
        statements[1] = Statement(texts[1], _staged_text(plan, names, shapes, by_key))
        self._writer.staging.note_use(queries.target.staging)
        return _Part(table=table, plan=plan, is_straight=False, statements=statements, expected=expected)


class _Queries:
    """The statements for one table, as text, which is made once: making it costs more than sending."""

    def __init__(self, schema: TableSchema, connection: psycopg.Connection[Any]) -> None:
        self.schema = schema
        self.target = TargetNames(schema)
        self._connection = connection
        self._texts: dict[tuple[Any, ...], list[bytes]] = {}

    def straight(self, columns: Sequence[str]) -> bytes:
        (text,) = self._kept(
            ("straight", tuple(columns)), lambda: [self._copy(self.target.relation, names_of(columns))]
        )
        return text

    def staged(
        self, names: Sequence[str], shapes: Sequence[tuple[int, Shape]], by_key: Sequence[int]
    ) -> list[bytes]:
        """Return the statements that stage *names* and write *shapes*, after what is done to the rows of the
        keys that are staged under the numbers *by_key*: the first makes the staging table, the second is the
        COPY."""
        known = ("staged", tuple(names), tuple(shapes), tuple(by_key))
        return self._kept(known, lambda: list(self._compose(names, shapes, by_key)))

    def _kept(self, known: tuple[Any, ...], compose: Callable[[], list[sql.Composable]]) -> list[bytes]:
        if known not in self._texts:
            if len(self._texts) >= _MOST_QUERIES:
                self._texts.clear()
            self._texts[known] = [statement.as_bytes(self._connection) for statement in compose()]
        return self._texts[known]

    def _compose(
        self, names: Sequence[str], shapes: Sequence[tuple[int, Shape]], by_key: Sequence[int]
    ) -> Iterator[sql.Composable]:
        target = self.target
        yield creation_of(target.staging, target.staging_columns)
        columns = sql.SQL(", ").join([target.shape, *map(sql.Identifier, names)])
        yield self._copy(sql.Identifier("pg_temp", target.staging), columns)
        for number in by_key:
            yield sql.SQL(_FIND if number == _LATER else _REMOVE).format(**parts_of(target, number))
        for number, shape in shapes:
            if shape.mode == "update":
                assigned = assignments(target.settable(shape.columns), "r")
                yield sql.SQL(UPDATE).format(**parts_of(target, number), assignments=assigned)
        for number, shape in shapes:
            if shape.mode == "upsert":
                yield sql.SQL(UPSERT).format(
                    **parts_of(target, number),
                    columns=names_of(shape.columns),
                    action=on_conflict(target.settable(shape.columns)),
                )

    def _copy(self, relation: sql.Composable, columns: sql.Composable) -> sql.Composed:
        return sql.SQL("COPY {} ({}) FROM STDIN").format(relation, columns)


def _keys_of_updates(plan: TablePlan | None) -> list[Key]:
    if plan is None:
        return []
    updates = [(shape, rows) for shape, rows in plan.writes.items() if shape.mode == "update"]
    return [key for shape, rows in updates for key in map(key_getter(shape.columns, plan.schema.key), rows)]


def _all_columns(shapes: Iterable[Sequence[str]], key: Sequence[str]) -> tuple[str, ...]:
    """Return every column of *shapes* and *key* once, beginning with those of the widest shape."""
    widest_first = sorted(shapes, key=len, reverse=True)
    return tuple(dict.fromkeys(name for columns in (*widest_first, key) for name in columns))


def _staged_text(
    plan: TablePlan,
    names: tuple[str, ...],
    shapes: Sequence[tuple[int, Shape]],
    by_key: Mapping[int, Sequence[Key]],
) -> Iterator[bytes]:
    """Yield the keys *by_key* and the rows of all *shapes* as COPY reads them: number and *names*."""
    for number, keys in by_key.items():
        yield from copy_text(_arranged(keys, plan.schema.key, names), prefix=f"{number}\t")
    for number, shape in shapes:
        yield from copy_text(_arranged(plan.writes[shape], shape.columns, names), prefix=f"{number}\t")


def _arranged(
    rows: Iterable[tuple[Any, ...]], columns: tuple[str, ...], names: tuple[str, ...]
) -> Iterable[tuple[Any, ...]]:
    """Return *rows* of *columns* as rows of *names*, with NULL for those that they lack."""
    if columns == names:
        return rows
    nothing = len(columns)
    arrange = itemgetter(*(columns.index(name) if name in columns else nothing for name in names))
    return (arrange((*row, None)) for row in rows)
