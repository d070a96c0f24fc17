"""Some of a table's rows, masked: to be shown at production, and to be tried against types and constraints.

Knows SQL and the policy's verdicts. Only reads, in transactions that can do no more. What a trial says names
columns and rules, never a value: the server's own words may quote one, so they are left out.

A trial at the archiver's start (`try_all`) stops nothing but what is sure: where rows cannot be read, or
there are none, it says so, and the archiver starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from msgspec import UNSET, UnsetType
from psycopg import Connection, sql
from psycopg.rows import dict_row, tuple_row

from syncdata.capture.described import Check, Described, read_described
from syncdata.capture.source import TEXT_SETTINGS, connect
from syncdata.changes.names import TableName
from syncdata.errors import SyncError
from syncdata.privacy.facts import parse_type
from syncdata.privacy.policy import ColumnVerdict, TableVerdict
from syncdata.runtime.session_settings import pin_statement

logger = logging.getLogger(__name__)

Value = str | UnsetType | None
_TRIED = 200
# Where a table is empty, values that any column of the kind could have.
_TEXTS, _NUMBERS = ("Ada Example", "a", "ada@example.org"), ("1", "27", "4711")
_EXAMPLES = {
    **dict.fromkeys(("text", "character varying", "character", "citext"), _TEXTS),
    **dict.fromkeys(("smallint", "integer", "bigint", "numeric"), _NUMBERS),
    "date": ("1999-12-31", "2004-02-29", "infinity"),
    "timestamp without time zone": ("1999-12-31 23:59:59", "2004-02-29 00:00:00", "infinity"),
    "timestamp with time zone": ("1999-12-31 23:59:59+00", "2004-02-29 00:00:00+00", "infinity"),
    "uuid": tuple(f"00000000-0000-4000-8000-00000000000{digit}" for digit in "123"),
    **dict.fromkeys(("json", "jsonb"), ("{}", '{"a": [1, "b"]}', "null")),
}
_TEXT_TYPES = ("character varying", "character")
# At the start, a table that is busy or large is not waited for, and the stream is not for long.
_AT_START = TEXT_SETTINGS | {"row_security": "off", "lock_timeout": "1s", "statement_timeout": "5s"}
_MOST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of a table as they are (``before``) and as they travel (``after``; UNSET: it does not)."""

    table: TableName
    columns: tuple[str, ...]
    before: Sequence[Sequence[Value]]
    after: Sequence[Sequence[Value]]


def read_sample(
    connection: Connection[Any], described: Described, verdict: TableVerdict, *, rows: int
) -> Sample:
    """Read some *rows* of a table and mask them. Raises psycopg.Error."""
    facts = described.facts
    columns = tuple(column.name for column in facts.columns if not column.is_generated)
    # By the types' output functions, as in the stream: a cast would spell a boolean otherwise.
    spelled = sql.SQL("CASE WHEN {0} IS NOT NULL THEN format('%s', {0}) END")
    query = sql.SQL("SELECT {} FROM {} LIMIT {}").format(
        sql.SQL(", ").join(spelled.format(sql.Identifier(column)) for column in columns),
        sql.Identifier(facts.table.schema, facts.table.name),
        sql.Literal(rows),
    )
    cursor = connection.cursor(row_factory=tuple_row)
    before = cursor.execute(query).fetchall() if columns else []
    return Sample(table=facts.table, columns=columns, before=before, after=_masked(verdict, columns, before))


@dataclass(frozen=True, slots=True)
class Misfit:
    """What masks make of ``columns`` and the server does not take, in words."""

    columns: tuple[str, ...]
    text: str


def try_masks(
    connection: Connection[Any], described: Described, verdict: TableVerdict, *, with_examples: bool = True
) -> list[Misfit]:
    """Return what the server does not take of what the masks make: types, lengths, domains and CHECKs.

    Tried with rows of the table; where it has none, *with_examples*, which may be none of its values: what
    does not fit then is worth a look, and no proof. *connection* is in a transaction.
    """
    masked = _masked_columns(verdict)
    if not masked:
        return []
    sample = read_sample(connection, described, verdict, rows=_TRIED)
    after = sample.after
    if not after and with_examples:
        after = _masked(verdict, sample.columns, _examples(described, sample.columns))
    if not after:
        return []
    values = dict(zip(sample.columns, zip(*after, strict=True), strict=True))
    bases = {column.name: column.type for column in described.facts.columns}
    problems = [
        Misfit((it.column,), f"{it.column}: what {it.rule} makes is no {described.types[it.column]}")
        for it in masked
        if it.column in values
        and not _fits(connection, described.types[it.column], bases[it.column], values[it.column])
    ]
    if problems:
        return problems
    names = {it.column for it in masked}
    return [
        Misfit(columns, f"{', '.join(columns)}: the masks break CHECK {check.name}")
        for check in described.checks
        if (columns := tuple(name for name in check.columns if name in names))
        and _is_broken(connection, check, described.types, values)
    ]


@dataclass(slots=True)
class Trial:
    """What became of a trial of all tables. ``problems``: what the server does not take of rows that are
    there, each with its table; ``untried``: why of others nobody can say, by table."""

    problems: list[str] = field(default_factory=list)
    untried: dict[str, str] = field(default_factory=dict)


def try_all(params: Mapping[str, Any], verdicts: Mapping[TableName, TableVerdict]) -> list[str]:
    """Return what the server does not take of the masks' results, with rows of each table. What could not be
    tried is logged. Raises nothing of the source's."""
    masked = [table for table, verdict in verdicts.items() if _masked_columns(verdict)]
    if not masked:
        return []
    trial = Trial()
    try:
        with connect(params) as connection:
            connection.row_factory = dict_row
            connection.execute(pin_statement(_AT_START))
            with connection.transaction(force_rollback=True):
                connection.execute("SET TRANSACTION READ ONLY")
                _try_tables(connection, masked, verdicts, trial)
    except SyncError as error:
        logger.warning("the masks are not tried: %s", error, extra={"code": error.code})
    for table, why in trial.untried.items():
        logger.warning("%s: its masks are not tried: %s", table, why, extra={"table": table})
    return trial.problems


def _try_tables(
    connection: Connection[dict[str, Any]],
    tables: Sequence[TableName],
    verdicts: Mapping[TableName, TableVerdict],
    trial: Trial,
) -> None:
    until_s = time.monotonic() + _MOST_S
    for table, described in read_described(connection, tables).items():
        if time.monotonic() > until_s:
            trial.untried[str(table)] = "the trial of the others took too long"
            continue
        try:
            with connection.transaction(force_rollback=True):
                misfits = try_masks(connection, described, verdicts[table], with_examples=False)
        except psycopg.Error as error:
            if connection.broken:
                raise
            # The server's words may quote a value; its code says enough.
            trial.untried[str(table)] = _WHY.get(type(error), f"the source says SQLSTATE {error.sqlstate}")
        else:
            trial.problems += [f"{table}: {misfit.text}" for misfit in misfits]


_WHY: Mapping[type[psycopg.Error], str] = {
    psycopg.errors.InsufficientPrivilege: "the role has no right to read it (GRANT SELECT)",
    psycopg.errors.LockNotAvailable: "it is locked by another transaction",
    psycopg.errors.QueryCanceled: "to read it takes too long",
}


def _masked_columns(verdict: TableVerdict) -> list[ColumnVerdict]:
    """Return the columns that travel masked."""
    if verdict.is_withheld:
        return []
    return [it for it in verdict.columns if it.rule not in ("keep", "withhold") and not it.problem]


def _masked(
    verdict: TableVerdict, columns: Sequence[str], rows: Sequence[Sequence[Value]]
) -> Sequence[Sequence[Value]]:
    mask = verdict.row_mask(columns)
    return rows if mask is None or not rows else mask.rows(rows)


def _examples(described: Described, columns: Sequence[str]) -> list[list[Value]]:
    types = {column.name: parse_type(column.type) for column in described.facts.columns}
    kinds = [None if types[name].is_array else _EXAMPLES.get(types[name].name) for name in columns]
    return [[None if kind is None else kind[place] for kind in kinds] for place in range(len(_TEXTS))]


def _fits(connection: Connection[Any], type_name: str, base: str, values: Sequence[Value]) -> bool:
    """Tell whether all *values* are texts of the type, which is made of *base*."""
    query = sql.SQL(
        "SELECT count(given::{type}) AS taken,"
        " count(*) FILTER (WHERE rtrim(given::{type}::text) <> rtrim(given)) AS altered"
        " FROM unnest(%s::text[]) AS given"
    ).format(type=_sql(type_name))
    answer = _ask(connection, query, [_texts(values)])
    # A cast cuts what is too long, and an INSERT refuses it, but for blanks. Other types may spell a value
    # otherwise.
    is_cut = answer is not None and answer["altered"] and parse_type(base).name in _TEXT_TYPES
    return answer is not None and not is_cut


def _is_broken(
    connection: Connection[Any],
    check: Check,
    types: Mapping[str, str],
    values: Mapping[str, Sequence[Value]],
) -> bool:
    """Tell whether a row of *values* breaks *check*. Where a column does not travel, nobody can tell."""
    columns = [name for name in check.columns if name in values]
    if len(columns) < len(check.columns) or any(UNSET in values[name] for name in columns):
        return False
    cast = sql.SQL(", ").join(
        sql.SQL("{name}::{type} AS {name}").format(name=sql.Identifier(name), type=_sql(types[name]))
        for name in columns
    )
    query = sql.SQL(
        "SELECT count(*) FILTER (WHERE NOT ({condition})) AS broken FROM (SELECT {cast} FROM"
        " unnest({arrays}) AS given ({names})) AS masked"
    ).format(
        condition=_sql(check.condition),
        cast=cast,
        arrays=sql.SQL(", ").join(sql.SQL("%s::text[]") for _ in columns),
        names=sql.SQL(", ").join(map(sql.Identifier, columns)),
    )
    answer = _ask(connection, query, [_texts(values[name]) for name in columns])
    return answer is None or answer["broken"] > 0


def _sql(text: str) -> sql.SQL:
    """Return SQL that the server itself has spelled, for a statement with parameters."""
    return sql.SQL(text.replace("%", "%%"))


def _texts(values: Sequence[Value]) -> list[str | None]:
    return [None if value is UNSET else value for value in values]


def _ask(connection: Connection[Any], query: sql.Composed, parameters: list[Any]) -> dict[str, Any] | None:
    """Return the answer; None where the server takes a value for none of its type, or a CHECK's own function
    refuses it."""
    try:
        with connection.transaction(force_rollback=True):
            row: dict[str, Any] | None = connection.execute(query, parameters).fetchone()
            return row
    except (psycopg.errors.DataError, psycopg.errors.IntegrityError, psycopg.errors.RaiseException):
        return None
