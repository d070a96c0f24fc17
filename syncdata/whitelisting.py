"""The whitelist as an operator changes it: what a name stands for, adding and removing.

Knows names, models and the table ``tables_to_sync``; knows nothing of checkpoints or rows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.connection import translate
from syncdata.apply.whitelist import require_syncable
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, WhitelistAddError, WhitelistRemoveError
from syncdata.modelnames import resolve, tables_of_app

logger = logging.getLogger(__name__)


def find_tables(connection: Connection[Any], names: Sequence[str], apps: Sequence[str]) -> list[TableName]:
    """Return the tables that *names* and app labels stand for.

    A name is a table's, or ``app_label.Model``; of both, a table that exists. Raises WhitelistAddError
    for what must not be synced.
    """
    try:
        existing = read_schemas(connection, parse_all(names))
    except psycopg.Error as error:
        cause = translate(error)
        raise WhitelistAddError(
            f"the tables cannot be looked up: {cause.message}", hint=cause.hint
        ) from error
    try:
        tables = [resolve(name, existing) for name in names]
        tables += [table for label in apps for table in tables_of_app(label)]
    except SchemaError as error:
        raise WhitelistAddError(error.message, hint=error.hint) from None
    return list(dict.fromkeys(require_syncable(table) for table in tables))


def add_tables(
    connection: Connection[Any], tables: Sequence[TableName], *, creator: str | None
) -> list[TableName]:
    """Whitelist *tables*; return those that were not before. All are added or, on an error, none.

    One that does not exist locally is accepted with a warning. Raises WhitelistAddError.
    """
    try:
        with connection.transaction():
            added = [table for table in tables if _insert_into_whitelist(connection, table, creator)]
        existing = read_schemas(connection, tables)
    except psycopg.Error as error:
        cause = translate(error)
        raise WhitelistAddError(f"nothing is added: {cause.message}", hint=cause.hint) from error
    for table in tables:
        if table not in existing:
            _warn(table, "table %s does not exist locally yet: create it before it is synced")
        elif not existing[table].key:
            _warn(table, "table %s has no key: its rows are matched on all their old values")
    return added


def remove_tables(
    connection: Connection[Any], names: Sequence[str], whitelist: Collection[TableName]
) -> list[str]:
    """Take tables off the *whitelist*; return their names. Their rows and checkpoints stay.

    Raises WhitelistRemoveError, with nothing removed, when one is not whitelisted.
    """
    wanted = [canonical(name, whitelist) for name in names]
    try:
        with connection.transaction():
            rows = connection.execute(
                "DELETE FROM tables_to_sync WHERE table_name = ANY(%s) RETURNING table_name", (wanted,)
            ).fetchall()
            removed = {row[0] for row in rows}
            missing = [name for name in wanted if name not in removed]
            if missing:
                raise WhitelistRemoveError(
                    f"not whitelisted: {', '.join(missing)}",
                    hint="list_tables shows what is; nothing was removed",
                )
    except psycopg.Error as error:
        cause = translate(error)
        raise WhitelistRemoveError(f"nothing is removed: {cause.message}", hint=cause.hint) from error
    return list(dict.fromkeys(wanted))


def canonical(name: str, whitelist: Collection[TableName]) -> str:
    """A name that is none may stand in the whitelist all the same, put there by other means."""
    try:
        return str(resolve(name, whitelist))
    except SchemaError:
        return name


def parse_all(names: Iterable[str]) -> set[TableName]:
    """Return the tables that *names* name; those that name none are left out."""
    tables = set()
    for name in names:
        with suppress(SchemaError):
            tables.add(TableName.parse(name))
    return tables


def _insert_into_whitelist(connection: Connection[Any], table: TableName, creator: str | None) -> bool:
    cursor = connection.execute(
        "INSERT INTO tables_to_sync (table_name, creator) VALUES (%s, %s)"
        " ON CONFLICT (table_name) DO NOTHING",
        (str(table), creator),
    )
    return cursor.rowcount == 1


def _warn(table: TableName, message: str) -> None:
    logger.warning(message, table, extra={"table": str(table)})
