"""What may be whitelisted. Pure; the whitelist itself is the table ``tables_to_sync``."""

from __future__ import annotations

from syncdata.engine.changes import TableName
from syncdata.engine.errors import SchemaError, WhitelistAddError

# A change file that wrote these could make the local side believe anything of itself. They are refused in
# every schema: whichever schema ours are in, nobody needs the ones of another installation.
OWN_TABLES = frozenset(
    {
        "tables_to_sync",
        "data_sync_logs",
        "data_sync_metrics",
        "data_sync_checkpoints",
        "data_sync_runs",
        "django_migrations",
    }
)


def parse_whitelisted(text: str) -> TableName:
    """Read the name of a table that may be whitelisted.

    Raises WhitelistAddError when *text* names no table, or one that is never synced.
    """
    try:
        table = TableName.parse(text)
    except SchemaError as error:
        raise WhitelistAddError(error.message, hint=error.hint) from error
    if table.name in OWN_TABLES:
        raise WhitelistAddError("this is a table of the sync itself, and never synced", table=str(table))
    if table.schema == "information_schema" or table.schema.startswith("pg_"):
        raise WhitelistAddError("this is a table of PostgreSQL itself, and never synced", table=str(table))
    return table
