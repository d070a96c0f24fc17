"""The tables service on the connection of a request: it works there, and leaves the connection as it was."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator

import pytest
from django.db import connections, transaction
from psycopg.pq import TransactionStatus

from syncdata.errors import RequestError, ServiceInitError, WhitelistAddError, WhitelistRemoveError
from syncdata.tables import TablesService, tables_of_request
from tests.framed import Writer
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_100000.json", "changes_20260205_110000.json"


@pytest.fixture
def users(world: World) -> Iterator[World]:
    """A table ``users`` that is blocked at a record, and a request's connection to it."""
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    world.write(FIRST, [insert("users", id=1, name="a")])
    world.sync()
    world.write(SECOND, [insert("users", id="none")])
    world.sync()
    yield world
    connections[world.alias].close()
    del connections[world.alias]


CHANGES: dict[str, tuple[Callable[[TablesService], object], str]] = {
    "add": (lambda service: service.add_tables(["orders"]), "SELECT count(*) FROM tables_to_sync"),
    "remove": (lambda service: service.remove_tables(["users"]), "SELECT count(*) FROM tables_to_sync"),
    "pause": (lambda service: service.pause_tables(["users"]), "SELECT state FROM data_sync_checkpoints"),
    "skip": (
        lambda service: service.skip_record("users", f"{SECOND}:1", requested_by="ada"),
        "SELECT skips::text FROM data_sync_checkpoints",
    ),
    "clear": (
        lambda service: service.clear(["users"]),
        "SELECT count(*) FROM data_sync_logs WHERE action = 'clear'",
    ),
    "submit": (
        lambda service: service.submit_request("resync", ["users"], requested_by="ada"),
        "SELECT count(*) FROM data_sync_requests",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_commits_by_itself_where_the_request_has_no_transaction(users: World, change: str) -> None:
    do, query = CHANGES[change]
    before = users.value(query)
    do(tables_of_request(users.alias))
    assert users.value(query) != before
    connection = connections[users.alias].connection
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert connection.autocommit


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shares_the_fate_of_the_requests_transaction(users: World, change: str) -> None:
    do, query = CHANGES[change]
    before = users.value(query)
    with pytest.raises(KeyError), transaction.atomic(using=users.alias):
        do(tables_of_request(users.alias))  # the transaction's first statement is the service's
        raise KeyError
    assert users.value(query) == before
    with transaction.atomic(using=users.alias):
        do(tables_of_request(users.alias))
        assert users.value(query) == before
    assert users.value(query) != before


@pytest.mark.parametrize("is_ordinary", [False, True])
def test_after_a_clear_triggers_and_foreign_keys_of_the_requests_transaction_are_awake(
    users: World, is_ordinary: bool
) -> None:
    names = ("session_replication_role", "enable_hashjoin", "enable_mergejoin", "enable_seqscan")
    if is_ordinary:
        users.use_ordinary_role()
    with transaction.atomic(using=users.alias), connections[users.alias].cursor() as cursor:

        def settings() -> list[tuple[str, ...]]:
            cursor.execute("SELECT current_setting(name) FROM unnest(%s::text[]) AS name", [list(names)])
            return cursor.fetchall()

        cursor.execute("SET LOCAL enable_mergejoin = off")  # the project's own
        before = settings()
        assert tables_of_request(users.alias).clear(["users"]) == ["users"]
        assert settings() == before
    assert users.value("SELECT count(*) FROM users") == 0


def test_a_refused_change_leaves_the_requests_transaction_usable(users: World) -> None:
    with transaction.atomic(using=users.alias):
        service = tables_of_request(users.alias)
        service.add_tables(["orders"])
        with pytest.raises(RequestError):
            service.pause_tables(["users", "nobody"])
        with pytest.raises(WhitelistRemoveError):
            service.remove_tables(["users", "nobody"])
        with pytest.raises(WhitelistAddError):
            service.add_tables(["customers", "django_migrations"])
        with pytest.raises(RequestError, match="not blocked"):
            service.skip_record("users", f"{FIRST}:1")
    assert users.rows("SELECT table_name FROM tables_to_sync ORDER BY 1") == [("orders",), ("users",)]
    assert users.checkpoint("users")[2] == "blocked"


def test_the_settings_of_the_requests_connection_stay_as_they_are(users: World) -> None:
    def settings() -> list[tuple[str, str]]:
        with connections[users.alias].cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings ORDER BY name")
            return cursor.fetchall()

    before = settings()
    factory = connections[users.alias].connection.cursor_factory
    for do, _ in CHANGES.values():
        do(tables_of_request(users.alias))
        users.whitelist("users")
        tables_of_request(users.alias).resume_tables(["users"])
    assert settings() == before
    assert connections[users.alias].connection.cursor_factory is factory


def test_all_can_be_read_without_a_valid_configuration(
    users: World, monkeypatch: pytest.MonkeyPatch, settings: object
) -> None:
    monkeypatch.setenv("DATA_SYNC_CONFIG", "/nowhere/syncdata.toml")
    settings.SYNCDATA = None  # type: ignore[attr-defined]
    settings.USE_TZ = False  # type: ignore[attr-defined]
    service = tables_of_request(users.alias)
    service.submit_request("resync", ["public.users"], requested_by="ada")
    status = service.get_status()
    assert (status.status, status.sync_frequency, status.errors) == ("not-started", 600, 1)
    assert [(table.table_name, table.state) for table in status.tables] == [("users", "blocked")]
    assert status.tables == tuple(service.list_tables())
    assert not service.is_active()
    ((request),) = service.read_requests()
    assert (request["action"], request["table_names"], request["state"]) == ("resync", ["users"], "waiting")
    assert sum(minute["records"] for minute in service.read_minutes()) == 1
    assert sum(period["added"] for period in service.read_periods()) == 1
    run = service.read_run()
    assert run is not None
    for moment in (
        status.last_sync_time,
        run["started_at"],
        request["requested_at"],
        service.read_minutes()[0]["minute"],
        service.read_periods()[0]["period_start"],
    ):
        assert isinstance(moment, dt.datetime) and moment.tzinfo
    assert "users" in {str(table.name) for table in service.local_tables()}


def test_a_database_that_is_away_is_an_error_of_ours(world: World) -> None:
    connections.databases[world.alias] |= {"PORT": "1"}
    with pytest.raises(ServiceInitError):
        tables_of_request(world.alias).list_tables()


def test_a_table_that_began_with_a_snapshot_older_than_any_change_file_has_begun(world: World) -> None:
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    assert [table.state for table in tables_of_request(world.alias).list_tables()] == ["new"]
    Writer(world.archive).snapshot(1, "users", 30, [{"id": 1, "name": "a"}], prev=None)
    world.sync()
    assert world.rows("SELECT id FROM users") == [(1,)]
    assert world.checkpoint("users")[0] == ""
    service = tables_of_request(world.alias)
    assert [table.state for table in service.list_tables()] == ["active"]
    assert [table.state for table in service.get_status().tables] == ["active"]
    connections[world.alias].close()
    del connections[world.alias]


def test_names_are_told_as_the_whitelist_spells_them(world: World) -> None:
    world.whitelist("users", "shop.orders")
    with world.service() as service:
        assert service.spelled(["public.users", "users", "nobody", "shop.orders"]) == [
            "users",
            "nobody",
            "shop.orders",
        ]
