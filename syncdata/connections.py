"""Connections to a Django alias: one of our own, with the lock of the only daemon, or that of the running
request.

Knows Django's connections and PostgreSQL's advisory locks; knows nothing of what is synced.
"""

from __future__ import annotations

from typing import Any, Protocol

import psycopg
import psycopg.types.datetime
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from syncdata.apply.postgres.connection import prepare_session
from syncdata.errors import CycleError, RunError, ServiceInitError

# "sync" and "data" as two 32-bit keys: one daemon a database, whatever host it runs on.
_LOCK_KEYS = (0x73796E63, 0x64617461)

_HOLDER = """
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
AND classid = %s AND objid = %s
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Connector(Protocol):
    """Hands out the connection to work on. A block of ``connection.transaction()`` commits by itself, or with
    the transaction that the connection is in already."""

    @property
    def alias(self) -> str:
        """The alias of the connection's database, as Django knows it."""
        ...

    def connect(self) -> psycopg.Connection[Any]:
        """Return the connection. Raises ServiceInitError when the database cannot be used."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class RequestConnection:
    """Django's own connection to *alias*, as the running request has it.

    Its transaction, autocommit and settings stay as they are: all work on it commits, or is rolled back, with
    the rest of the request.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @property
    def alias(self) -> str:
        return self._alias

    def connect(self) -> psycopg.Connection[Any]:
        """Return the connection, inside its transaction where it is to be in one.

        Raises ServiceInitError when the database cannot be used.
        """
        try:
            wrapper = connections[self._alias]
            wrapper.ensure_connection()
            connection: psycopg.Connection[Any] = wrapper.connection
            if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
                # Django's transaction begins with its first statement. If that were one of ours, psycopg
                # would take the transaction for its own, and commit it when connection.transaction() ends.
                connection.execute("SELECT")
        except (psycopg.Error, DatabaseError, ImproperlyConfigured) as error:
            raise init_error(error) from None
        return connection

    def close(self) -> None:
        """Do nothing: the connection is the request's."""


class AliasSession:
    """A session of our own on *alias*: one connection at a time, opened when it is first asked for, and again
    when it has broken.

    *timeout_s*: for callers that only look and must not hang, the most that connecting or a statement takes.
    """

    def __init__(self, alias: str, *, timeout_s: int | None = None) -> None:
        self._alias = alias
        self._timeout_s = timeout_s
        self._wrapper: BaseDatabaseWrapper | None = None
        self._holds_lock = False

    @property
    def alias(self) -> str:
        return self._alias

    @property
    def is_open(self) -> bool:
        return self._wrapper is not None and not self._wrapper.connection.closed

    def connect(self) -> psycopg.Connection[Any]:
        """Return the connection, in autocommit mode and with the settings that applying needs.

        A lock that was held is taken again. Raises ServiceInitError, or CycleError when the lock is not
        free yet.
        """
        if not self.is_open:
            self.close()
            self._wrapper = self._open()
        assert self._wrapper is not None
        connection: psycopg.Connection[Any] = self._wrapper.connection
        return connection

    def close(self) -> None:
        """Let go of the connection, and with it of the lock; a later `connect` takes both again."""
        if self._wrapper is not None:
            wrapper, self._wrapper = self._wrapper, None
            wrapper.close()

    def lock(self) -> None:
        """Become the one daemon of this database. Raises RunError when there is another."""
        if not self._holds_lock and not _try_lock(self.connect()):
            raise RunError(
                "another syncdata daemon runs on this database",
                hint="stop it first (syncdata_stop, on the host where it runs); syncdata_status shows it",
            )
        self._holds_lock = True

    def unlock(self) -> None:
        """Make room for another daemon. Raises psycopg.Error when the connection has broken."""
        held, self._holds_lock = self._holds_lock, False
        if held and self._wrapper is not None and self.is_open:
            self._wrapper.connection.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK_KEYS)

    def another(self) -> AliasSession:
        """Return a session of its own on the same alias, without the lock."""
        return AliasSession(self._alias, timeout_s=self._timeout_s)

    def _open(self) -> BaseDatabaseWrapper:
        try:
            wrapper = connections.create_connection(self._alias)
            _keep_from_pool(wrapper)
            if self._timeout_s is not None:
                wrapper.settings_dict["OPTIONS"] |= {"connect_timeout": self._timeout_s}
            wrapper.ensure_connection()
            # Transactions begin and end explicitly here, whatever the project's default is.
            wrapper.set_autocommit(True)
            # The loop may run in another thread than the one that closes the service.
            wrapper.inc_thread_sharing()
            prepare_session(wrapper.connection)
            _load_times_with_zone(wrapper.connection)
            if self._timeout_s is not None:
                wrapper.connection.execute(
                    "SELECT set_config('statement_timeout', %s, false)", [f"{self._timeout_s}s"]
                )
            has_lock = not self._holds_lock or _try_lock(wrapper.connection)
        except (psycopg.Error, DatabaseError, ImproperlyConfigured) as error:
            raise init_error(error) from None
        if not has_lock:
            wrapper.close()
            # The server may not know yet that our old session is gone.
            raise CycleError(
                "the lock on the database is still held, by our lost session or by another daemon",
                hint="it is tried again; the server drops a lost session within two minutes",
            )
        return wrapper


def is_locked(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether a daemon runs on this database, on whatever host."""
    return daemon_session(connection) is not None


def daemon_session(connection: psycopg.Connection[Any]) -> int | None:
    """Return the server's process number of the daemon's session; None when no daemon runs."""
    row = connection.execute(_HOLDER, _LOCK_KEYS).fetchone()
    return None if row is None else int(row[0])


def init_error(error: Exception) -> ServiceInitError:
    """Return the error for a database that cannot be used: the driver's first line, never a password."""
    cause = error.__cause__ if isinstance(error.__cause__, psycopg.Error) else error
    first_line = str(cause).strip().partition("\n")[0]
    is_schema = isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn)
    hint = (
        "run 'python manage.py migrate'" if is_schema else "check the database's address, role and password"
    )
    return ServiceInitError(f"the database cannot be used: {first_line or type(cause).__name__}", hint=hint)


def _keep_from_pool(wrapper: BaseDatabaseWrapper) -> None:
    """Leave the pool out: it would give this session, with its settings, to the project's next request."""
    options = {name: value for name, value in wrapper.settings_dict["OPTIONS"].items() if name != "pool"}
    wrapper.settings_dict = {**wrapper.settings_dict, "OPTIONS": options}


def _load_times_with_zone(connection: psycopg.Connection[Any]) -> None:
    """Load times with their zone, also where ``USE_TZ`` is off: the columns of our tables have one."""
    connection.adapters.register_loader("timestamptz", psycopg.types.datetime.TimestamptzLoader)


def _try_lock(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK_KEYS).fetchone()
    return bool(row and row[0])
