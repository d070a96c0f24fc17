"""Words for what the database refuses: what is wrong with the row, and a remedy that is true for it.

Knows SQLSTATEs; connects to nothing. The server's own message is used only where it speaks of definitions:
of a row it may hold values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from syncdata.apply.plan.schema import Column
from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """``what`` is wrong with a row, and the ``remedy``, which holds as it stands."""

    what: str
    remedy: str


# Classes of SQLSTATEs whose messages name tables, columns and roles, never values.
_OF_DEFINITIONS = ("0A", "25", "42", "54", "55")

# What the value does not fit into, where the column has another type here than in production.
_TYPE_WORDS = {
    "22001": "is too short here for the value",
    "22003": "is too small here for the value",
    "22P02": "has a type here that does not know the value",
    "22007": "has a type here that does not know the value",
    "22008": "has a type here that does not reach to the value",
    "22P03": "has a type here that does not know the value",
}


def explain_refusal(error: psycopg.Error, table: TableName, columns: Sequence[Column] = ()) -> Refusal:
    """Return the words for *error*, which the database raised for rows of *table* with these *columns*."""
    state, diag = error.sqlstate or "", error.diag
    relation, constraint = _quoted(table.schema, table.name), diag.constraint_name
    of = _constrained(error, table)
    named = constraint and _quoted(constraint)
    if state == "23502":
        column = diag.column_name or ""
        return Refusal(
            what=f"column {column} would be NULL, which the table does not allow here",
            remedy=f"ALTER TABLE {relation} ALTER COLUMN {_quoted(column)} DROP NOT NULL, as in production;"
            " or give the column a DEFAULT here, where production has no such column",
        )
    if state == "23514" and not constraint:
        return Refusal(
            what="no partition here takes the row",
            remedy=f"create the partition of {relation} that production has (CREATE TABLE … PARTITION OF …)",
        )
    if state == "23514" and diag.datatype_name:
        domain = _quoted(diag.schema_name or "public", diag.datatype_name)
        return Refusal(
            what=f"a value breaks the CHECK {constraint} of the domain {diag.datatype_name}",
            remedy=f"production's values may: ALTER DOMAIN {domain} DROP CONSTRAINT {named}, or change it to"
            " what production has",
        )
    if state == "23514":
        return Refusal(
            what=f"the row breaks the CHECK {constraint}",
            remedy=f"production's rows may: ALTER TABLE {of} DROP CONSTRAINT {named}, or change it to what"
            " production has",
        )
    if state == "23503":
        return Refusal(
            what=f"the row breaks the foreign key {constraint} of {diag.table_name}",
            remedy="whitelist the table it refers to as well, or let the role set session_replication_role",
        )
    if state in ("23505", "23P01"):
        return Refusal(
            what=f"another row here has what {constraint} allows only once",
            remedy=f"where production has no such constraint, drop it here: ALTER TABLE {of} DROP CONSTRAINT"
            f" {named} (or DROP INDEX); where it has, that other row exists only here: delete it",
        )
    if state == "42501":
        return Refusal(
            what=diag.message_primary or "the role may not do that",
            remedy=f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {relation} TO {_role(error)}",
        )
    if state in ("22021", "22P05"):
        return Refusal(
            what=f"{_column_words(error, columns)} holds a character that this database's encoding lacks",
            remedy="sync into a database with ENCODING 'UTF8'",
        )
    if state in _TYPE_WORDS:
        found = refused_column(error, columns)
        place = _quoted(found.name) if found else "…"
        return Refusal(
            what=f"{_column_words(error, columns)} {_TYPE_WORDS[state]}",
            remedy=f"change it to what production has: ALTER TABLE {relation} ALTER COLUMN {place} TYPE …; an"
            " enum by ALTER TYPE … ADD VALUE or RENAME VALUE",
        )
    if state.startswith("P0"):
        return Refusal(
            what="a trigger or function of the local database refuses the row",
            remedy=f"PostgreSQL's log has its words; switch it off: ALTER TABLE {relation} DISABLE TRIGGER"
            " USER, or let the role set session_replication_role",
        )
    return Refusal(
        what=(diag.message_primary or "" if state.startswith(_OF_DEFINITIONS) else "")
        or "it does not fit the table here",
        remedy=f"compare the definition of {relation} with production's, and bring it in step; PostgreSQL's"
        " log has its own words",
    )


def refused_column(error: psycopg.Error, columns: Sequence[Column]) -> Column | None:
    """Return the column that *error* is about, as its diagnostics or COPY's context name it.

    The context goes on with the value (``COPY t, line 1, column m: "happy"``), so nothing is taken out of it
    but the name of a column that is known. Test: test_a_refusal_names_the_column_and_never_the_value.
    """
    named = error.diag.column_name
    for line in (error.diag.context or "").splitlines():
        _, comma, rest = line.partition(", ")
        _, comma, rest = rest.partition(", ")
        _, _, rest = rest.partition(" ")  # "column", in whatever language
        if comma:
            named = named or next(
                (
                    column.name
                    for column in columns
                    if rest == column.name or rest.startswith(f"{column.name}:")
                ),
                None,
            )
    return next((column for column in columns if column.name == named), None)


def _column_words(error: psycopg.Error, columns: Sequence[Column]) -> str:
    column = refused_column(error, columns)
    return f"column {column.name} ({column.sql_type})" if column else "a column"


def _constrained(error: psycopg.Error, table: TableName) -> str:
    """Return the relation whose constraint it is: the table, or one of its partitions."""
    schema, name = error.diag.schema_name, error.diag.table_name
    if not schema or not name or schema.startswith("pg_temp"):
        return _quoted(table.schema, table.name)
    return _quoted(schema, name)


def _role(error: psycopg.Error) -> str:
    try:
        return _quoted(error.pgconn.user.decode()) if error.pgconn else "the role"
    except psycopg.Error:  # the connection is closed
        return "the role"


def _quoted(*parts: str) -> str:
    return sql.Identifier(*parts).as_string(None)
