"""`check --database`: the whitelist against the schema, and the role's rights, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import OperationalError, connections
from django.test import override_settings

from syncdata.checks import TAG
from tests.postgres import Database
from tests.world import World, _add_alias


def found(alias: str, state_dir: Any, *, databases: list[str] | None = None) -> dict[str | None, str]:
    """Return the messages of the checks by id, as `check --tag syncdata --database ...` would show them."""
    settings = {
        "archive_backend": "local",
        "archive_dir": "/",
        "database": alias,
        "state_dir": str(state_dir),
    }
    router = "syncdata.routers.SyncDataRouter"
    try:
        with override_settings(SYNCDATA=settings, DATABASE_ROUTERS=[router]):
            messages = checks.run_checks(tags=[TAG], databases=[alias] if databases is None else databases)
    finally:
        connections[alias].close()
    assert all(message.hint for message in messages)
    return {message.id: message.msg for message in messages}


def test_a_whitelist_that_fits_has_no_complaint(any_world: World) -> None:
    any_world.execute("CREATE TABLE users (id int PRIMARY KEY)")
    any_world.whitelist("users")
    assert found(any_world.alias, any_world.state_dir) == {}


def test_the_whitelist_is_held_against_the_schema(world: World) -> None:
    world.execute("CREATE TABLE bag (v int)")
    world.whitelist("bag", "missing")
    world.execute("INSERT INTO tables_to_sync (table_name) VALUES ('django_migrations')")
    messages = found(world.alias, world.state_dir)
    assert sorted(filter(None, messages)) == ["syncdata.W006", "syncdata.W007", "syncdata.W008"]
    assert "missing" in messages["syncdata.W007"] and "bag" in messages["syncdata.W008"]
    assert "django_migrations" in messages["syncdata.W006"]


def test_what_cannot_be_kept_equal_and_numbers_of_content_types_are_warned_of(world: World) -> None:
    world.execute(
        "CREATE TABLE tag (id int PRIMARY KEY, of_id int REFERENCES django_content_type)",
        "CREATE UNLOGGED TABLE quick (id int PRIMARY KEY)",
        "CREATE VIEW v AS SELECT * FROM tag",
    )
    world.whitelist("tag", "quick")
    messages = found(world.alias, world.state_dir)
    assert sorted(filter(None, messages)) == ["syncdata.W015", "syncdata.W016"]
    assert "quick" in messages["syncdata.W016"] and "UNLOGGED" in messages["syncdata.W016"]
    assert "tag" in messages["syncdata.W015"] and "django_content_type" in messages["syncdata.W015"]
    world.execute("DELETE FROM tables_to_sync", "INSERT INTO tables_to_sync (table_name) VALUES ('v')")
    assert "it is a view" in found(world.alias, world.state_dir)["syncdata.W014"]


@pytest.mark.parametrize("table", ["auth_user", "auth_user_groups", "auth_permission", "django_session"])
def test_the_projects_own_logins_are_not_to_be_synced(
    world: World, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    world.whitelist(table)
    assert found(world.alias, world.state_dir) == {}  # its logins are in another database
    monkeypatch.setattr("syncdata.checks.router.db_for_read", lambda model: world.alias)
    messages = found(world.alias, world.state_dir)
    assert [*messages] == ["syncdata.W009"] and table in messages["syncdata.W009"]


def test_the_roles_rights_are_looked_at(any_world: World) -> None:
    world = any_world
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY)",
        "CREATE TABLE orders (id int PRIMARY KEY)",
        f"REVOKE TEMPORARY ON DATABASE {world.database.name} FROM PUBLIC",
    )
    world.whitelist("users", "orders")
    world.use_ordinary_role()
    world.execute("REVOKE UPDATE, DELETE ON users FROM ordinary")
    messages = found(world.alias, world.state_dir)
    assert [*messages] == ["syncdata.W010", "syncdata.W011", "syncdata.W012"]
    assert "ordinary lacks on the whitelisted table users: UPDATE, DELETE." in messages["syncdata.W012"]


def test_without_database_nothing_connects(world: World) -> None:
    connections.databases[world.alias] |= {"HOST": "127.0.0.1", "PORT": 1}
    assert found(world.alias, world.state_dir, databases=[]) == {}
    with pytest.raises(OperationalError):
        found(world.alias, world.state_dir)


def test_books_that_cannot_be_read_are_a_warning(world: World) -> None:
    world.use_ordinary_role()
    world.execute("REVOKE SELECT ON tables_to_sync FROM ordinary")
    assert "syncdata.W013" in found(world.alias, world.state_dir)


def test_a_first_migrate_is_not_disturbed(
    fresh_database: Callable[[], Database], tmp_path: Any, django_db_blocker: Any
) -> None:
    database = fresh_database()
    _add_alias(database.name, database)
    try:
        with django_db_blocker.unblock():
            assert found(database.name, tmp_path) == {}
            call_command("migrate", database=database.name, verbosity=0, skip_checks=False)
            connections[database.name].close()
    finally:
        connections.databases.pop(database.name)
