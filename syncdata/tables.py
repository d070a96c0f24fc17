"""The tables service: the whitelist, the state of its tables, and the actions that may be asked for them.

Needs a connection to the database of syncdata's own tables, and nothing else: no archive, no valid
configuration. The admin uses it on the connection of its request, `SyncDataService` on a session of its own.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply import actions
from syncdata.apply.plan.relation import Relation, no_table
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.catalog import LocalTable, local_tables, read_schemas
from syncdata.apply.postgres.connection import errors_as
from syncdata.apply.postgres.kin import find_kin
from syncdata.apply.postgres.locks import describe_waits
from syncdata.apply.postgres.relations import read_relations
from syncdata.apply.state import queries, queue
from syncdata.apply.state.silence import DEFAULT_STALE_AFTER_S
from syncdata.apply.state.status import DaemonStatus, TableInfo, as_of_archiver, daemon_status
from syncdata.apply.state.verifications import forget
from syncdata.apply.whitelist import (
    RESERVED,
    add_to_whitelist,
    parse_all,
    remove_from_whitelist,
    require_syncable,
)
from syncdata.changes.names import TableName
from syncdata.conf import load_config
from syncdata.connections import Connector, RequestConnection, daemon_session, is_locked
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
from syncdata.logins import find_logins
from syncdata.modelnames import resolve, tables_of_app

logger = logging.getLogger(__name__)

DEFAULT_FREQUENCY_S = 600


class TablesService:
    """The tables of one database, over the connection of *connector*. *frequency_s* is the configured
    interval of the cycles; while a daemon runs, the status shows the interval of that one instead.
    *stale_after_s*: how long the archiver may be silent before active tables count as stale.

    Each method that changes something does all of it or, on an error, nothing. Names of tables are
    resolved as `find_tables` says.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        frequency_s: int = DEFAULT_FREQUENCY_S,
        stale_after_s: int = DEFAULT_STALE_AFTER_S,
    ) -> None:
        self._connector = connector
        self._frequency_s = frequency_s
        self._stale_after_s = stale_after_s

    # The whitelist

    def find_tables(
        self, names: Sequence[str], *, apps: Sequence[str] = (), force: bool = False
    ) -> list[str]:
        """Return the tables, as the whitelist calls them, that *names* and app labels stand for.

        A name is a table's, or ``app_label.Model``; of both, a table that exists. What is no table (a view)
        is left out of an app. Raises WhitelistAddError for what must not be synced, and, without *force*, for
        what decides who may log in here (`find_logins`), unless it is in the whitelist already.
        """
        tables, _ = _find_tables(self._connector.connect(), names, apps)
        if not force:
            self._refuse_logins(tables)
        return _texts(tables)

    def add_tables(
        self,
        names: Sequence[str],
        *,
        apps: Sequence[str] = (),
        creator: str | None = None,
        force: bool = False,
    ) -> list[str]:
        """Whitelist tables; return those that were not before. All are added or, on an error, none.

        *names*, *apps* and *force* are as for `find_tables`. A table that does not exist locally is accepted
        with a warning; what is no table but belongs to an app is left out with one. A daemon that runs begins
        with them at once. Raises WhitelistAddError.
        """
        connection = self._connector.connect()
        tables, left_out = _find_tables(connection, names, apps)
        if not force:
            self._refuse_logins(tables)
        with errors_as(WhitelistAddError, "nothing is added"), connection.transaction():
            added = add_to_whitelist(connection, tables, creator=creator)
            if added:
                queue.call_for_cycle(connection)
        for reason in left_out:
            logger.warning("left out: %s", reason, extra={"table": reason.table})
        for unusual in self.find_unusual(_texts(tables)):
            logger.warning("%s", unusual, extra={"table": unusual.table})
        return _texts(added)

    def find_unusual(self, names: Sequence[str]) -> list[Problem]:
        """Return what an operator should know of the whitelisted tables *names*.

        Kinds are ``absent`` (no such table here yet), ``keyless``, ``unlogged`` (a crash empties it),
        ``partition`` (its changes come as those of the whole table), ``content-types`` (it refers to rows
        whose numbers differ between databases) and ``logins`` (it decides who may log in here). Raises
        WhitelistAddError.
        """
        connection = self._connector.connect()
        tables = [TableName.parse(name) for name in names]
        with errors_as(WhitelistAddError, "the tables cannot be looked up"):
            existing = read_schemas(connection, tables)
            relations = read_relations(connection, tables)
        logins = self.find_logins(tables)
        return [
            unusual
            for table in tables
            for unusual in (
                *_find_unusual(table, existing.get(table), relations.get(table)),
                *([_holds_logins(table, logins[table])] if table in logins else []),
            )
        ]

    def find_logins(self, tables: Collection[TableName]) -> dict[TableName, str]:
        """Return those of *tables* that decide who may log in here, each with the model that it belongs to.

        Raises WhitelistAddError when the database fails.
        """
        with errors_as(WhitelistAddError, "the tables cannot be looked up"):
            return find_logins(self._connector.connect(), self._connector.alias, tables)

    def remove_tables(self, names: Sequence[str]) -> list[str]:
        """Take tables off the whitelist; return their names. Their rows and checkpoints stay.

        A name is a table's, or ``app_label.Model``. Raises WhitelistRemoveError, with nothing removed,
        when one is not whitelisted.
        """
        known = self._whitelist()
        wanted = list(dict.fromkeys(_spelled_in_whitelist(name, known) for name in names))
        connection = self._connector.connect()
        with errors_as(WhitelistRemoveError, "nothing is removed"), connection.transaction():
            remove_from_whitelist(connection, wanted)
            forget(connection, wanted)
        return wanted

    def spelled(self, names: Sequence[str]) -> list[str]:
        """Return *names*, each once, as the whitelist spells them; a name that it lacks stays as it is."""
        known = self._whitelist()
        return list(dict.fromkeys(_spelled_in_whitelist(name, known) for name in names))

    def list_tables(self) -> list[TableInfo]:
        """Return the whitelist with each table's state and checkpoint. Raises WhitelistListError."""
        tables, _ = self._read_tables()
        return tables

    def _read_tables(self) -> tuple[list[TableInfo], list[Problem]]:
        connection = self._connector.connect()
        with errors_as(WhitelistListError, "the whitelist cannot be read"):
            tables = queries.read_tables(connection)
        return as_of_archiver(tables, self.read_run(), stale_after_s=self._stale_after_s)

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

    def declare_whole(self, names: Sequence[str], *, requested_by: str | None = None) -> list[str]:
        """Believe the operator that tables hold all older rows, loaded by other means, though they began
        without a snapshot; return those that were partial before.

        Raises RequestError, with nothing changed, when one is not whitelisted.
        """
        tables = self._resolve(names)
        return _texts(actions.declare_whole(self._connector.connect(), tables, requested_by=requested_by))

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
        tables, found = self._read_tables()
        is_active, run = self.is_active(), self.read_run()
        found += self._find_waits()
        return daemon_status(
            is_active, run, tuple(tables), frequency_s=self._frequency_s, now=_utcnow(), found=found
        )

    def _find_waits(self) -> list[Problem]:
        connection = self._connector.connect()
        with errors_as(StatusError, "the status cannot be read"):
            session = daemon_session(connection)
            waits = [] if session is None else describe_waits(connection, session)
        return [Problem(kind="waiting-for-lock", text=text) for text in waits]

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

    def _refuse_logins(self, tables: Collection[TableName]) -> None:
        """Raise WhitelistAddError when one of *tables* decides who may log in here and is not whitelisted."""
        if not (logins := self.find_logins(tables)):
            return
        known = self._whitelist()
        for table, kind in logins.items():
            if table not in known:
                raise WhitelistAddError(
                    f"{table} ({kind}) decides who may log in here, or what they may do: who writes the"
                    " archive could make superusers",
                    hint="leave it out; if you trust the archive with that, let a superuser add it in the"
                    " admin, or run 'add_tables --force'",
                )

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
        config = load_config()
    except SyncError:  # A daemon that runs has noted its interval; the start of one reports this error.
        return TablesService(RequestConnection(alias))
    return TablesService(
        RequestConnection(alias), frequency_s=config.data_sync_freq, stale_after_s=config.stale_after
    )


def _find_tables(
    connection: Connection[Any], names: Sequence[str], apps: Sequence[str]
) -> tuple[list[TableName], list[SchemaError]]:
    """Return the tables, and why some of what belongs to *apps* is left out. Raises WhitelistAddError."""
    with errors_as(WhitelistAddError, "the tables cannot be looked up"):
        existing = read_relations(connection, parse_all(names))
    try:
        named = [resolve(name, existing) for name in names]
        of_apps = [table for label in apps for table in tables_of_app(label)]
    except SchemaError as error:
        raise WhitelistAddError(error.message, hint=error.hint) from None
    tables = list(dict.fromkeys(require_syncable(table) for table in [*named, *of_apps]))
    with errors_as(WhitelistAddError, "the tables cannot be looked up"):
        relations = read_relations(connection, tables)
        bookkeeping = find_kin(connection, sorted(RESERVED), tables).related
    for table, own in bookkeeping.items():
        raise WhitelistAddError(
            f"{table} shares its rows with {own}, this database's own bookkeeping, and is never synced",
            hint="choose tables of your application",
        )
    others = {table: relation for table, relation in relations.items() if relation.other_kind}
    for table in named:
        if table in others:
            other = others[table]
            raise WhitelistAddError(
                f"{table} is {other.other_kind}, not a table that changes could go to", hint=other.instead
            )
    left_out = [no_table(table, others[table]) for table in tables if table in others]
    return [table for table in tables if table not in others], left_out


def _holds_logins(table: TableName, kind: str) -> Problem:
    text = f"table {table} ({kind}) decides who may log in here, or what they may do: who writes the archive"
    return Problem(kind="logins", text=f"{text} could make superusers", table=str(table))


# Tables of Django whose rows get their numbers by the order in which a database was migrated.
_NUMBERED_BY_MIGRATIONS = frozenset({"django_content_type", "auth_permission"})


def _find_unusual(
    table: TableName, schema: TableSchema | None, relation: Relation | None
) -> Iterator[Problem]:
    def problem(kind: str, text: str) -> Problem:
        return Problem(kind=kind, text=f"table {table} {text}", table=str(table))

    if schema is None or relation is None:
        yield problem("absent", "does not exist locally yet: create it before it is synced")
        return
    if not schema.key:
        yield problem("keyless", "has no key: its rows are matched on all their old values")
    if relation.unlogged(table):
        yield problem(
            "unlogged", "is UNLOGGED, at least in part: a crash empties it, so it counts as suspect"
        )
    if relation.root is not None:
        yield problem(
            "partition",
            f"is a partition of {relation.root}: add {relation.root} instead, for the"
            " archiver writes changes as those of the whole table",
        )
    if numbered := find_numbered_by_migrations(schema):
        yield problem(
            "content-types",
            f"holds numbers of {numbered}, which differ between databases: here they"
            " mean other rows (content types, permissions) than at production",
        )


def find_numbered_by_migrations(schema: TableSchema) -> str | None:
    """Return the table of Django's content types or permissions that *schema* is or refers to; their numbers
    mean other rows in each database."""
    tables = [schema.name, *sorted(schema.parents)]
    return next((str(table) for table in tables if table.name in _NUMBERED_BY_MIGRATIONS), None)


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
