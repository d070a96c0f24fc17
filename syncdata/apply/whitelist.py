"""Which tables may be synced, and what they are called. Knows names; connects to nothing."""

from __future__ import annotations

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, WhitelistAddError

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
        "django_migrations",
    }
)
_SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema", "pg_toast"})


def is_syncable(table: TableName) -> bool:
    """Whether *table* may be synced at all."""
    return table.name not in RESERVED and table.schema not in _SYSTEM_SCHEMAS


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
    if table.schema in _SYSTEM_SCHEMAS:
        raise WhitelistAddError(f"{table} is a system table", hint="choose tables of your application")
    return table
