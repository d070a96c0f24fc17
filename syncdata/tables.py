"""The tables service: the whitelist, the state of its tables, and the actions that may be asked for them.

Needs a connection to the database of syncdata's own tables, and nothing else: no archive, no valid
configuration. The admin uses it on the connection of its request, `SyncDataService` on a session of its own.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply import actions
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.catalog import LocalTable, local_tables, read_schemas
from syncdata.apply.postgres.connection import errors_as
from syncdata.apply.state import queries, queue
from syncdata.apply.state.status import DaemonStatus, TableInfo, daemon_status
from syncdata.apply.whitelist import add_to_whitelist, parse_all, remove_from_whitelist, require_syncable
from syncdata.changes.names import TableName
from syncdata.conf import load_config
from syncdata.connections import Connector, RequestConnection, is_locked
from syncdata.errors import (
    ClearError,
    Problem,
    RequestError,
    SchemaError,
    StatusError,
    SyncError,
    WhitelistAddError,
    WhitelistListError,
    WhitelistRemoveError,
)
from syncdata.modelnames import resolve, tables_of_app

logger = logging.getLogger(__name__)

DEFAULT_FREQUENCY_S = 600


class TablesService:
    """The tables of one database, over the connection of *connector*. *frequency_s* is the configured
    interval of the cycles; while a daemon runs, the status shows the interval of that one instead.

    Each method that changes something does all of it or, on an error, nothing. Names of tables are
    resolved as `find_tables` says.
    """

    def __init__(self, connector: Connector, *, frequency_s: int = DEFAULT_FREQUENCY_S) -> None:
        self._connector = connector
        self._frequency_s = frequency_s

    # The whitelist

    def find_tables(self, names: Sequence[str], *, apps: Sequence[str] = ()) -> list[str]:
        """Return the tables, as the whitelist calls them, that *names* and app labels stand for.

        A name is a table's, or ``app_label.Model``; of both, a table that exists. Raises WhitelistAddError
        for what must not be synced.
        """
        return _texts(_find_tables(self._connector.connect(), names, apps))

    def add_tables(
        self, names: Sequence[str], *, apps: Sequence[str] = (), creator: str | None = None
    ) -> list[str]:
        """Whitelist tables; return those that were not before. All are added or, on an error, none.

        *names* and *apps* are as for `find_tables`. A table that does not exist locally is accepted with
        a warning. Raises WhitelistAddError.
        """
        connection = self._connector.connect()
        tables = _find_tables(connection, names, apps)
        with errors_as(WhitelistAddError, "nothing is added"):
            added = add_to_whitelist(connection, tables, creator=creator)
            if added:
                queue.call_for_cycle(connection)
        for unusual in self.find_unusual(_texts(tables)):
            logger.warning("%s", unusual, extra={"table": unusual.table})
        return _texts(added)

    def find_unusual(self, names: Sequence[str]) -> list[Problem]:
        """Return what an operator should know of the whitelisted tables *names*.

        Kinds are ``absent`` (no such table here yet) and ``keyless``. Raises WhitelistAddError.
        """
        tables = [TableName.parse(name) for name in names]
        with errors_as(WhitelistAddError, "the tables cannot be looked up"):
            existing = read_schemas(self._connector.connect(), tables)
        found = (_find_unusual(table, existing.get(table)) for table in tables)
        return [unusual for unusual in found if unusual is not None]

    def remove_tables(self, names: Sequence[str]) -> list[str]:
        """Take tables off the whitelist; return their names. Their rows and checkpoints stay.

        A name is a table's, or ``app_label.Model``. Raises WhitelistRemoveError, with nothing removed,
        when one is not whitelisted.
        """
        known = self._whitelist()
        wanted = list(dict.fromkeys(_spelled_in_whitelist(name, known) for name in names))
        with errors_as(WhitelistRemoveError, "nothing is removed"):
            remove_from_whitelist(self._connector.connect(), wanted)
        return wanted

    def spelled(self, names: Sequence[str]) -> list[str]:
        """Return *names*, each once, as the whitelist spells them; a name that it lacks stays as it is."""
        known = self._whitelist()
        return list(dict.fromkeys(_spelled_in_whitelist(name, known) for name in names))

    def list_tables(self) -> list[TableInfo]:
        """Return the whitelist with each table's state and checkpoint. Raises WhitelistListError."""
        connection = self._connector.connect()
        with errors_as(WhitelistListError, "the whitelist cannot be read"):
            return queries.read_tables(connection)

    def local_tables(self) -> list[LocalTable]:
        """Return all tables of the local database that are not the system's. Raises StatusError."""
        connection = self._connector.connect()
        with errors_as(StatusError, "the catalog cannot be read"):
            return local_tables(connection)

    # Actions that an operator may ask for

    def pause_tables(self, names: Sequence[str], *, requested_by: str | None = None) -> list[str]:
        """Keep tables where they stand until they are resumed; return those that were not paused before.

        A batch that is running commits first. Raises RequestError, with nothing changed, when one is not
        whitelisted.
        """
        tables = self._resolve(names)
        return _texts(actions.pause(self._connector.connect(), tables, requested_by=requested_by))

    def resume_tables(self, names: Sequence[str], *, requested_by: str | None = None) -> list[str]:
        """Let paused tables go on from where they stand; return those that were paused.

        Raises RequestError, with nothing changed, when one is not whitelisted.
        """
        tables = self._resolve(names)
        resumed = _texts(actions.resume(self._connector.connect(), tables, requested_by=requested_by))
        return self._call_for_cycle(resumed)

    def skip_record(self, table: str, place: str, *, requested_by: str | None = None) -> list[str]:
        """Let *table* go on without the record at which it is blocked, which must be the one at *place*
        (``file:line``); a line that cannot be parsed is skipped for all tables that it blocks.

        Returns these tables. The skip happens, and is audited, in the transaction of the batch that meets
        the record again and still cannot apply it. Raises RequestError when the table is not blocked there.
        """
        (name,) = self._resolve([table])
        connection = self._connector.connect()
        skipped = _texts(actions.skip_record(connection, name, place, requested_by=requested_by))
        return self._call_for_cycle(skipped)

    def clear(self, tables: Sequence[str] | None = None, *, requested_by: str | None = None) -> list[str]:
        """Empty *tables* (all synced ones without it) and set their checkpoints back, so that the next cycle
        begins anew.

        Returns the tables' names. Raises ClearError; then nothing is changed.
        """
        names = None if tables is None else self._resolve(tables, ClearError)
        cleared = _texts(actions.empty(self._connector.connect(), names, requested_by=requested_by))
        return self._call_for_cycle(cleared)

    def submit_request(
        self, action: str, tables: Sequence[str], place: str = "", requested_by: str = ""
    ) -> int:
        """Ask the daemon to do *action* (``pause``, ``resume``, ``retry``, ``skip``, ``clear`` or ``resync``)
        to *tables*, all or none; return the request's id.

        The daemon wakes up when the transaction commits. ``place``: the record to skip, as ``file:line``. If
        the daemon cannot do it, the request will say so (`read_requests`). Raises RequestError, and asks for
        nothing, when the database fails.
        """
        known = self._whitelist()
        names = [_spelled_in_whitelist(name, known) for name in tables]
        connection = self._connector.connect()
        with errors_as(RequestError, "nothing is asked"), connection.transaction():
            return queue.submit(connection, action, names, place=place, requested_by=requested_by)

    # State and status

    def get_status(self) -> DaemonStatus:
        """Return the daemon's status, wherever it runs. Raises StatusError or WhitelistListError."""
        tables = tuple(self.list_tables())
        is_active, run = self.is_active(), self.read_run()
        return daemon_status(is_active, run, tables, frequency_s=self._frequency_s, now=_utcnow())

    def is_active(self) -> bool:
        """Tell whether a daemon runs on this database, on whatever host. Raises StatusError."""
        connection = self._connector.connect()
        with errors_as(StatusError, "the status cannot be read"):
            return is_locked(connection)

    def read_run(self) -> dict[str, Any] | None:
        """Return the columns of the daemon's newest run, None before the first. Raises StatusError."""
        connection = self._connector.connect()
        with errors_as(StatusError, "the status cannot be read"):
            return queries.read_latest_run(connection)

    def read_requests(self) -> list[dict[str, Any]]:
        """Return the requests that are open, then the newest that are over. Raises StatusError."""
        connection = self._connector.connect()
        with errors_as(StatusError, "the requests cannot be read"):
            return queries.read_requests(connection)

    def read_minutes(self) -> list[dict[str, Any]]:
        """Return the counts and the lag of each minute of the last day. Raises StatusError."""
        connection = self._connector.connect()
        with errors_as(StatusError, "the metrics cannot be read"):
            return queries.read_minutes(connection)

    def read_periods(self) -> list[dict[str, Any]]:
        """Return the counts of each metric period of the last month, oldest first.

        Raises StatusError.
        """
        connection = self._connector.connect()
        with errors_as(StatusError, "the metrics cannot be read"):
            return queries.read_periods(connection)

    # Inside

    def _whitelist(self) -> set[TableName]:
        return parse_all(info.table_name for info in self.list_tables())

    def _call_for_cycle(self, changed: list[str]) -> list[str]:
        """Wake a daemon that rests, if something has *changed*; return that."""
        if changed:
            with suppress(psycopg.Error):
                queue.call_for_cycle(self._connector.connect())
        return changed

    def _resolve(self, names: Sequence[str], refusal: type[SyncError] = RequestError) -> list[TableName]:
        """Return the tables that *names* name. Raises *refusal* for a name that cannot be a table's."""
        known = self._whitelist()
        tables = []
        for name in names:
            try:
                tables.append(resolve(name, known))
            except SchemaError:
                raise refusal(
                    f"not whitelisted: {name}", hint="list_tables shows what is; nothing was changed"
                ) from None
        return list(dict.fromkeys(tables))


def tables_of_request(alias: str) -> TablesService:
    """Return the service on the running request's connection to *alias*; no configuration need be valid."""
    try:
        frequency_s = load_config().data_sync_freq
    except SyncError:  # A daemon that runs has noted its interval; the start of one reports this error.
        frequency_s = DEFAULT_FREQUENCY_S
    return TablesService(RequestConnection(alias), frequency_s=frequency_s)


def _find_tables(connection: Connection[Any], names: Sequence[str], apps: Sequence[str]) -> list[TableName]:
    with errors_as(WhitelistAddError, "the tables cannot be looked up"):
        existing = read_schemas(connection, parse_all(names))
    try:
        tables = [resolve(name, existing) for name in names]
        tables += [table for label in apps for table in tables_of_app(label)]
    except SchemaError as error:
        raise WhitelistAddError(error.message, hint=error.hint) from None
    return list(dict.fromkeys(require_syncable(table) for table in tables))


def _find_unusual(table: TableName, schema: TableSchema | None) -> Problem | None:
    if schema is None:
        text = f"table {table} does not exist locally yet: create it before it is synced"
        return Problem(kind="absent", text=text, table=str(table))
    if not schema.key:
        text = f"table {table} has no key: its rows are matched on all their old values"
        return Problem(kind="keyless", text=text, table=str(table))
    return None


def _spelled_in_whitelist(name: str, known: Collection[TableName]) -> str:
    """Return *name* as the whitelist has it, where other programs may have put names that no table has."""
    try:
        return str(resolve(name, known))
    except SchemaError:
        return name


def _texts(tables: Iterable[TableName]) -> list[str]:
    return [str(table) for table in tables]


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
