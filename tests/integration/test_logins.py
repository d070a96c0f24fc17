"""Tables that decide who may log in: only whoever has all rights adds them, by whatever way."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connections
from django.db.models import Model
from django.test import override_settings

from syncdata.checks import TAG
from syncdata.errors import WhitelistAddError
from syncdata.service import SyncDataService
from syncdata.tables import tables_of_request
from tests.world import World


class Everywhere:
    """A router: the whole project is in one database."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model: type[Model], **hints: Any) -> str:
        return self.alias

    db_for_write = db_for_read


@pytest.fixture
def project(world: World) -> Iterator[World]:
    """A world whose database is the project's own, logins and all."""
    values = {
        "archive_backend": "local",
        "archive_dir": str(world.archive),
        "database": world.alias,
        "state_dir": str(world.state_dir),
    }
    try:
        with override_settings(SYNCDATA=values, DATABASE_ROUTERS=[Everywhere(world.alias)]):
            yield world
    finally:
        connections[world.alias].close()


def whitelist(world: World) -> set[str]:
    return {name for (name,) in world.rows("SELECT table_name FROM tables_to_sync")}


def unusual_kinds(service: Any, *tables: str) -> set[str]:
    return {problem.kind for problem in service.find_unusual(tables)}


LOGINS = [
    "auth_user",
    "auth_group",
    "auth_permission",
    "auth_user_groups",
    "auth_user_user_permissions",
    "auth_group_permissions",
    "django_session",
    "django_admin_log",
    "django_content_type",
]


@pytest.mark.parametrize("name", [*LOGINS, "auth.User", "auth.user", "public.auth_user", '"auth_user"'])
def test_a_table_of_logins_is_added_by_force_alone(project: World, name: str) -> None:
    project.execute("CREATE TABLE users (id int PRIMARY KEY)")
    with project.service() as service:
        for refused in ([name], ["users", name]):
            with pytest.raises(WhitelistAddError, match=r"SHD_SYN_051.*log in here.*--force"):
                service.add_tables(refused)
            with pytest.raises(WhitelistAddError, match="log in here"):
                service.find_tables(refused)
        assert whitelist(project) == set()
        (added,) = service.add_tables([name], force=True)
        assert whitelist(project) == {added}
        assert "logins" in unusual_kinds(service, added)


def test_an_app_with_logins_is_added_by_force_alone(project: World) -> None:
    with project.service() as service:
        with pytest.raises(WhitelistAddError, match="log in here"):
            service.add_tables([], apps=["auth"])
        assert {*LOGINS} & {*service.add_tables([], apps=["auth"], force=True)}


def test_the_command_and_the_requests_service_have_the_same_rule(project: World) -> None:
    with pytest.raises(WhitelistAddError, match=r"auth_user \(auth.User\).*--force"):
        call_command("add_tables", "auth.User")
    with pytest.raises(WhitelistAddError, match=r"auth_user \(auth.User\)"):
        tables_of_request(project.alias).add_tables(["auth_user"])
    assert whitelist(project) == set()
    out = StringIO()
    call_command("add_tables", "--force", "auth.User", stdout=out, stderr=StringIO())
    assert "added: auth_user" in out.getvalue()


def test_what_is_on_the_whitelist_stays_and_may_be_named_again(project: World) -> None:
    project.execute("INSERT INTO tables_to_sync (table_name) VALUES ('auth_user')")
    with project.service() as service:
        assert service.add_tables(["auth_user"]) == []
        assert service.find_tables(["auth_user"]) == ["auth_user"]
    out = StringIO()
    call_command("add_tables", "--whole", "auth_user", stdout=out)
    assert "already in the whitelist: auth_user" in out.getvalue()
    messages = checks.run_checks(tags=[TAG], databases=[project.alias])
    assert [(m.id, m.hint) for m in messages if m.id == "syncdata.W009"] == [
        ("syncdata.W009", "Run: manage.py remove_tables auth_user")
    ]


SEARCH_APP_FIRST = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = app, public', current_database()); END $$
"""
# Each makes another table of the project's logins; those of the second list are none.
KIN = {
    "a child, whose rows are seen in its parent": ("CREATE TABLE more () INHERITS (auth_user)", "more"),
    "a grandchild": (
        "CREATE TABLE between () INHERITS (auth_group); CREATE TABLE more () INHERITS (between)",
        "more",
    ),
    "the whole, whose rows arrive in a partition": (
        "ALTER TABLE auth_group RENAME TO old;"
        "CREATE TABLE whole (id int, name text) PARTITION BY RANGE (id);"
        "CREATE TABLE auth_group PARTITION OF whole DEFAULT",
        "whole",
    ),
    "a partition": (
        "ALTER TABLE auth_group RENAME TO old;"
        "CREATE TABLE auth_group (id int, name text) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF auth_group DEFAULT",
        "part",
    ),
    "the table behind a view": (
        "ALTER TABLE auth_group RENAME TO renamed; CREATE VIEW auth_group AS SELECT * FROM renamed",
        "renamed",
    ),
    "the table behind a view of a view": (
        "ALTER TABLE auth_group RENAME TO renamed; CREATE VIEW half AS SELECT * FROM renamed;"
        "CREATE VIEW auth_group AS SELECT * FROM half",
        "renamed",
    ),
    "in the schema where the search path finds it first": (
        "CREATE SCHEMA app; ALTER TABLE auth_user SET SCHEMA app;" + SEARCH_APP_FIRST,
        "app.auth_user",
    ),
}
NO_KIN = {
    "the same name in another schema": (
        "CREATE SCHEMA copy; CREATE TABLE copy.auth_user (id int PRIMARY KEY)",
        "copy.auth_user",
    ),
    "another case": ('CREATE TABLE "Auth_User" (id int PRIMARY KEY)', "Auth_User"),
    "the same name where the search path does not come to it": (
        "CREATE SCHEMA app; ALTER TABLE auth_user SET SCHEMA app; CREATE TABLE auth_user (id int);"
        + SEARCH_APP_FIRST,
        "auth_user",
    ),
    "a table that refers to users": (
        "CREATE TABLE orders (id int PRIMARY KEY, by_id int REFERENCES auth_user)",
        "orders",
    ),
}


@pytest.mark.parametrize("kind", KIN)
def test_what_shares_its_rows_with_a_table_of_logins_is_one(project: World, kind: str) -> None:
    statement, table = KIN[kind]
    project.execute(statement)
    with project.service() as service, pytest.raises(WhitelistAddError, match="log in here"):
        service.add_tables([table])
    assert whitelist(project) == set()


@pytest.mark.parametrize("kind", NO_KIN)
def test_what_only_looks_like_a_table_of_logins_is_none(project: World, kind: str) -> None:
    statement, table = NO_KIN[kind]
    project.execute(statement)
    with project.service() as service:
        assert service.add_tables([table]) == [table]


def test_a_table_of_logins_that_is_not_there_yet_is_judged_by_its_name(project: World) -> None:
    project.execute("DROP TABLE django_session")
    with project.service() as service, pytest.raises(WhitelistAddError, match="sessions.Session"):
        service.add_tables(["django_session"])


def test_a_cache_in_a_table_is_judged_as_logins_are(project: World) -> None:
    caches = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "my_cache"}}
    with (
        override_settings(CACHES=caches),
        project.service() as service,
        pytest.raises(WhitelistAddError, match="the cache 'default'"),
    ):
        service.add_tables(["my_cache"])


def test_logins_of_another_database_are_no_concern_of_this_one(world: World) -> None:
    with world.service() as service:
        assert service.add_tables(["auth_user"]) == ["auth_user"]


def test_two_aliases_of_one_database_are_one(world: World) -> None:
    connections.databases["twin"] = {**connections.databases[world.alias]}
    try:
        with (
            override_settings(DATABASE_ROUTERS=[Everywhere("twin")]),
            world.service() as service,
            pytest.raises(WhitelistAddError, match="log in here"),
        ):
            service.add_tables(["auth_user"])
    finally:
        del connections.databases["twin"]


@pytest.mark.parametrize(
    "name",
    [
        "pg_temp.users",
        '"pg_temp".users',
        "pg_temp_3.users",
        "pg_toast.pg_toast_1",
        "pg_toast_temp_3.x",
        "pg_catalog.pg_authid",
        "information_schema.sql_features",
    ],
)
def test_the_systems_and_temporary_tables_are_never_added(project: World, name: str) -> None:
    with project.service() as service, pytest.raises(WhitelistAddError, match="system or temporary"):
        service.add_tables([name], force=True)


def test_a_name_without_a_schema_never_means_a_temporary_or_a_systems_table(project: World) -> None:
    """The search path looks into both of them first."""
    connection = connections[project.alias]
    connection.ensure_connection()
    connection.connection.execute("CREATE TEMPORARY TABLE users (id int)")
    service = tables_of_request(project.alias)
    assert unusual_kinds(service, "users") == {"absent"}
    assert unusual_kinds(service, "pg_authid") == {"absent"}


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more () INHERITS (data_sync_checkpoints)",
        "CREATE TABLE more () INHERITS (tables_to_sync)",
        "CREATE TABLE more () INHERITS (django_migrations)",
    ],
)
def test_what_shares_its_rows_with_the_bookkeeping_is_never_added(project: World, statement: str) -> None:
    project.execute(statement)
    with project.service() as service, pytest.raises(WhitelistAddError, match="own bookkeeping"):
        service.add_tables(["more"], force=True)


def test_a_service_for_embedding_takes_the_same_argument(project: World) -> None:
    with SyncDataService(project.config) as service:
        assert service.add_tables(["auth.Group"], force=True) == ["auth_group"]
