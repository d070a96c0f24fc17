"""The admin's way to the books: Django's connection to their database, as the driver has it."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connections, router

from syncdata.apply.postgres.catalog import LocalTable, local_tables
from syncdata.models import TableToSync


def books_alias() -> str:
    return router.db_for_write(TableToSync)


def books_connection() -> psycopg.Connection[Any]:
    """Return the connection of the running request; what it reads and writes is part of its transaction."""
    wrapper = connections[books_alias()]
    wrapper.ensure_connection()
    connection: psycopg.Connection[Any] = wrapper.connection
    return connection


def estimates(connection: psycopg.Connection[Any]) -> dict[str, LocalTable]:
    """Return the tables of the local database by their name in the whitelist."""
    return {str(table.name): table for table in local_tables(connection)}
