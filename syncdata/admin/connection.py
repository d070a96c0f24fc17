"""The admin's way to the tables: the tables service, on the connection of the running request."""

from __future__ import annotations

from django.db import router

from syncdata.models import TableToSync
from syncdata.tables import TablesService, tables_of_request


def tables_alias() -> str:
    """Return the alias of the database that holds the synced tables and syncdata's own."""
    return router.db_for_write(TableToSync)


def tables_service() -> TablesService:
    """Return the tables service; its reads and writes are part of the request's transaction."""
    return tables_of_request(tables_alias())
