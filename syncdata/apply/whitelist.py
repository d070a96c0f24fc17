"""The whitelist: which tables may be in it, and how they get in and out.

Knows names and the table ``tables_to_sync``; knows nothing of checkpoints, rows or models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from psycopg import Connection

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, WhitelistAddError, WhitelistRemoveError

# Changes from production to these would rewrite the record of what was applied here.
RESERVED = frozenset(
    {
        "tables_to_sync",
        "data_sync_logs",
        "data_sync_metrics",
        "data_sync_checkpoints",
        "data_sync_runs",
        "data_sync_minutes",
        "data_sync_requests",
        "data_sync_verifications",
        "django_migrations",
    }
)


def is_syncable(table: TableName) -> bool:
    """Tell whether *table* may be synced at all."""
    return table.name not in RESERVED and not _is_system_schema(table.schema)


def _is_system_schema(schema: str) -> bool:
    """Tell whether *schema* is PostgreSQL's own: all that begin with ``pg_`` are, those of temporary tables
    too."""
    return schema == "information_schema" or schema.startswith("pg_")


def parse_syncable(text: str) -> TableName:
    """Return the table that *text* names. Raises WhitelistAddError when it must not be synced."""
    try:
        table = TableName.parse(text)
    except SchemaError as error:
        raise WhitelistAddError(error.message, hint=error.hint) from None
    return require_syncable(table)


def require_syncable(table: TableName) -> TableName:
    """Return *table*. Raises WhitelistAddError when it must not be synced."""
    if table.name in RESERVED:
        raise WhitelistAddError(
            f"{table} belongs to this database's own bookkeeping and is never synced",
            hint="choose tables of your application",
        )
    if _is_system_schema(table.schema):
        raise WhitelistAddError(
            f"{table} is a system or temporary table", hint="choose tables of your application"
        )
    return table


def parse_all(names: Iterable[str]) -> set[TableName]:
    """Return the tables that *names* name; those that name none are left out."""
    tables = set()
    for name in names:
        with suppress(SchemaError):
            tables.add(TableName.parse(name))
    return tables


def add_to_whitelist(
    connection: Connection[Any], tables: Collection[TableName], *, creator: str | None
) -> list[TableName]:
    """Whitelist *tables* in one transaction; return those that were not before."""
    with connection.transaction():
        return [table for table in tables if _insert(connection, table, creator)]


def _insert(connection: Connection[Any], table: TableName, creator: str | None) -> bool:
    cursor = connection.execute(
        "INSERT INTO tables_to_sync (table_name, creator) VALUES (%s, %s)"
        " ON CONFLICT (table_name) DO NOTHING",
        (str(table), creator),
    )
    return cursor.rowcount == 1


def remove_from_whitelist(connection: Connection[Any], names: Sequence[str]) -> None:
    """Take *names*, as the whitelist spells them, off it; rows and checkpoints of the tables stay.

    Raises WhitelistRemoveError, with nothing removed, when one is not there.
    """
    with connection.transaction():
        rows = connection.execute(
            "DELETE FROM tables_to_sync WHERE table_name = ANY(%s) RETURNING table_name", (list(names),)
        ).fetchall()
        removed = {row[0] for row in rows}
        if missing := [name for name in names if name not in removed]:
            raise WhitelistRemoveError(
                f"not whitelisted: {', '.join(missing)}",
                hint="list_tables shows what is; nothing was removed",
            )
