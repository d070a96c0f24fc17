"""System checks: the configuration, the settings around it, and, under ``--database`` only, the database.

Without ``--database`` nothing connects. What the database checks find are warnings, also where no row could
be applied: ``migrate`` runs them first, and is often what mends them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router

from syncdata.apply.plan.drift import quoted, sql_name
from syncdata.apply.plan.relation import Relation, find_fault
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.relations import read_relations
from syncdata.apply.whitelist import parse_syncable
from syncdata.archive.login import system_known_hosts, usual_known_hosts
from syncdata.archive.sftp import SftpSettings
from syncdata.changes.names import TableName
from syncdata.conf import (
    CONFIG_VARIABLE,
    SourceConfig,
    SyncConfig,
    exposes_secrets,
    is_production_host,
    load_config,
    load_source_config,
)
from syncdata.connections import init_error
from syncdata.errors import SyncError
from syncdata.logins import find_logins
from syncdata.models import SyncLog, TableToSync
from syncdata.tables import find_numbered_by_migrations

TAG = "syncdata"

Messages = Sequence[checks.CheckMessage]


@checks.register(TAG)
def check_configuration(**kwargs: Any) -> Messages:
    """The configuration loads, and its database is a PostgreSQL that syncdata's models are routed to.

    A production host has no local database; there it is the configuration of the source that must load.
    """
    try:
        if _is_production_host():
            load_source_config()
            return []
        config = load_config()
    except SyncError as error:
        hint = "The documentation's page 'Configuration' has all keys."
        if getattr(settings, "SYNCDATA", None) is None and not os.environ.get(CONFIG_VARIABLE):
            return [checks.Warning(str(error), hint=hint, id="syncdata.W001")]
        return [checks.Error(str(error), hint=hint, id="syncdata.E001")]
    return _check_alias(config)


def _is_production_host() -> bool:
    return getattr(settings, "SYNCDATA", None) is None and is_production_host()


def _check_alias(config: SyncConfig) -> Messages:
    alias = config.database
    if alias not in connections:
        return [
            checks.Error(
                f"settings.SYNCDATA names the database {alias!r}, which is not in DATABASES.",
                hint="Add it to DATABASES, or name another alias with 'database'.",
                id="syncdata.E002",
            )
        ]
    if connections[alias].vendor != "postgresql":
        return [
            checks.Error(
                f"The database {alias!r} is not a PostgreSQL.",
                hint="Name an alias of a PostgreSQL with 'database'.",
                id="syncdata.E003",
            )
        ]
    if router.db_for_write(SyncLog) != alias:
        return [
            checks.Error(
                f"syncdata's own tables are not routed to {alias!r}, the database of the synced tables.",
                hint="Add 'syncdata.routers.SyncDataRouter' to DATABASE_ROUTERS.",
                id="syncdata.E004",
            )
        ]
    return []


@checks.register(TAG)
def check_admin(**kwargs: Any) -> Messages:
    """The app that the admin pages need is installed."""
    if apps.is_installed("django.contrib.admin") and not apps.is_installed("rangefilter"):
        return [
            checks.Error(
                "The admin pages need 'rangefilter' in INSTALLED_APPS.",
                hint="Add it; it was installed with syncdata.",
                id="syncdata.E005",
            )
        ]
    return []


@checks.register(TAG)
def check_files(**kwargs: Any) -> Messages:
    """The files that the configuration names are there, and only those who should can read them."""
    try:
        config = load_source_config() if _is_production_host() else load_config()
    except SyncError:
        return []  # check_configuration says so
    return [*_check_secrets(config), *_check_state_dir(config), *_check_known_hosts(config)]


def _check_secrets(config: SyncConfig | SourceConfig) -> Iterator[checks.CheckMessage]:
    if config.config_file is not None and exposes_secrets(config.config_file):
        yield checks.Warning(
            f"{config.config_file} holds a password and can be read by every user.",
            hint=f"Run: chmod 600 {config.config_file}",
            id="syncdata.W002",
        )
    key_file = config.archive.key_file if isinstance(config.archive, SftpSettings) else None
    if (
        key_file is not None
        and key_file.is_file()
        and key_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    ):
        yield checks.Warning(
            f"The private key {key_file} can be read by other users.",
            hint=f"Run: chmod 600 {key_file}",
            id="syncdata.W003",
        )


def _check_state_dir(config: SyncConfig | SourceConfig) -> Iterator[checks.CheckMessage]:
    if not os.access(config.state_dir, os.W_OK | os.X_OK):
        yield checks.Warning(
            f"The state and pid files cannot be written to {config.state_dir} by this user.",
            hint="Let the daemon's user write there, or run the check as that user.",
            id="syncdata.W004",
        )


def _check_known_hosts(config: SyncConfig | SourceConfig) -> Iterator[checks.CheckMessage]:
    archive = config.archive
    if not isinstance(archive, SftpSettings):
        return
    files = (archive.known_hosts,) if archive.known_hosts else (*usual_known_hosts(), *system_known_hosts())
    if not any(os.access(file, os.R_OK) for file in files):
        yield checks.Warning(
            f"The backup host will be refused: {files[0]} cannot be read.",
            hint=f"Run: ssh-keyscan {archive.host} >> {files[0]}"
            " and compare the fingerprint with what its administrator says.",
            id="syncdata.W005",
        )


@checks.register(TAG, checks.Tags.database)
def check_database(databases: Sequence[str] | None = None, **kwargs: Any) -> Messages:
    """The whitelist fits the schema, and the role has the rights it needs. Only under ``--database``."""
    try:
        config = load_config()
    except SyncError:
        return []
    if config.database not in (databases or ()) or _check_alias(config):
        return []
    # If the database cannot be reached, this raises, and Django reports it as for any database check.
    with connections[config.database].cursor() as cursor:
        try:
            return _check_whitelist_and_role(cursor.connection, config.database)
        except psycopg.ProgrammingError as error:
            hint = "Run migrate; let the role read syncdata's own tables."
            return [checks.Warning(str(init_error(error)), hint=hint, id="syncdata.W013")]


def _check_whitelist_and_role(connection: psycopg.Connection[Any], alias: str) -> Messages:
    found = [*_check_role(connection)]
    if TableToSync._meta.db_table not in connections[alias].introspection.table_names():
        return found  # `migrate` has not been here yet
    rows = connection.execute("SELECT table_name FROM tables_to_sync ORDER BY table_name").fetchall()
    tables: list[TableName] = []
    for (name,) in rows:
        try:
            tables.append(parse_syncable(name))
        except SyncError as error:
            hint = "Run: manage.py remove_tables, or take it off in the admin."
            found.append(
                checks.Warning(f"On the whitelist, but not synced: {error}", hint=hint, id="syncdata.W006")
            )
    schemas = read_schemas(connection, tables)
    found += _check_tables(tables, schemas, read_relations(connection, tables))
    found += _check_logins(find_logins(connection, alias, tables))
    found += _check_table_rights(connection, schemas.values())
    return found


def _check_tables(
    tables: Iterable[TableName],
    schemas: Mapping[TableName, TableSchema],
    relations: Mapping[TableName, Relation],
) -> Iterator[checks.CheckMessage]:
    for table in tables:
        fault = find_fault(table, relations.get(table), is_of_archiver=True)
        if fault is not None and table in relations:
            yield checks.Warning(
                f"The whitelisted table {table} cannot be kept equal to production's: {fault.message}.",
                hint=f"{fault.hint}.",
                id="syncdata.W014",
            )
        elif table in relations and (part := relations[table].unlogged(table)):
            yield checks.Warning(
                f"The whitelisted table {table} is UNLOGGED, at least in part: a crash empties it.",
                hint=f"Run: ALTER TABLE {sql_name(TableName.parse(part))} SET LOGGED; and resync it.",
                id="syncdata.W016",
            )
        numbered = find_numbered_by_migrations(schemas[table]) if table in schemas else None
        if numbered not in (None, str(table)):  # those tables themselves have W009
            yield checks.Warning(
                f"The whitelisted table {table} holds numbers of {numbered}, which differ between databases:"
                " here they mean other content types or permissions than at production.",
                hint="Take it off with remove_tables, or see to it that both have the same numbers.",
                id="syncdata.W015",
            )
        if table not in relations:
            yield checks.Warning(
                f"The whitelisted table {table} does not exist.",
                hint="Create it (migrate), or take it off with remove_tables.",
                id="syncdata.W007",
            )
        elif table in schemas and not schemas[table].key:
            yield checks.Warning(
                f"The whitelisted table {table} has neither a primary key nor a replica identity index.",
                hint="Give it one; without, its rows are matched on all their old values, slowly.",
                id="syncdata.W008",
            )


def _check_logins(logins: Mapping[TableName, str]) -> Iterator[checks.CheckMessage]:
    for table, kind in logins.items():
        yield checks.Warning(
            f"The whitelisted table {table} ({kind}) holds the logins or rights of this project: who may"
            " log in there may log in here, and who writes the archive may make superusers.",
            hint=f"Run: manage.py remove_tables {table}",
            id="syncdata.W009",
        )


def _check_role(connection: psycopg.Connection[Any]) -> Iterator[checks.CheckMessage]:
    role, may_create_temporary = connection.execute(
        "SELECT current_user, has_database_privilege(current_database(), 'TEMPORARY')"
    ).fetchone() or ("", True)
    if not may_create_temporary:
        yield checks.Warning(
            f"The role {role} may not create temporary tables, which every batch goes through.",
            hint=f"Run: GRANT TEMPORARY ON DATABASE {quoted(connection.info.dbname)} TO {quoted(role)};",
            id="syncdata.W010",
        )
    if not _may_silence(connection):
        yield checks.Warning(
            f"The role {role} may not set session_replication_role: triggers and foreign keys stay awake.",
            hint=f"From PostgreSQL 15 on: GRANT SET ON PARAMETER session_replication_role TO {quoted(role)};"
            " without it, tables that refer to each other belong on the whitelist together.",
            id="syncdata.W011",
        )


def _may_silence(connection: psycopg.Connection[Any]) -> bool:
    query = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    if connection.info.server_version >= 150_000:
        query = "SELECT has_parameter_privilege('session_replication_role', 'SET')"
    row = connection.execute(query).fetchone()
    return bool(row and row[0])


def _check_table_rights(
    connection: psycopg.Connection[Any], schemas: Iterable[TableSchema]
) -> Iterator[checks.CheckMessage]:
    for schema in schemas:
        row = connection.execute(
            "SELECT current_user, array_remove(array["
            " CASE WHEN NOT has_schema_privilege(%(schema)s, 'USAGE') THEN 'USAGE of its schema' END,"
            " CASE WHEN NOT has_table_privilege(%(oid)s::oid, 'SELECT') THEN 'SELECT' END,"
            " CASE WHEN NOT has_table_privilege(%(oid)s::oid, 'INSERT') THEN 'INSERT' END,"
            " CASE WHEN NOT has_table_privilege(%(oid)s::oid, 'UPDATE') THEN 'UPDATE' END,"
            " CASE WHEN NOT has_table_privilege(%(oid)s::oid, 'DELETE') THEN 'DELETE' END,"
            " CASE WHEN NOT has_table_privilege(%(oid)s::oid, 'TRUNCATE') THEN 'TRUNCATE' END], NULL)",
            {"oid": schema.oid, "schema": schema.name.schema},
        ).fetchone()
        if row and row[1]:
            yield checks.Warning(
                f"The role {row[0]} lacks on the whitelisted table {schema.name}: {', '.join(row[1])}.",
                hint="Run: GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE"
                f" ON {sql_name(schema.name)} TO {quoted(row[0])};",
                id="syncdata.W012",
            )
