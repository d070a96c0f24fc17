"""The service as commands and the admin use it: whitelist, status, state file, adoption, and its errors."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from syncdata.errors import (
    CloseError,
    MetricsError,
    ResyncError,
    StatusError,
    WhitelistAddError,
    WhitelistListError,
    WhitelistRemoveError,
)
from syncdata.predecessor.statefile import STATE_FILE_NAME
from syncdata.service import format_status
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def users(world: World) -> World:
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    return world


def state(world: World) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((world.state_dir / STATE_FILE_NAME).read_text())
    return document


def test_tables_are_added_once_under_one_name(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with world.service() as service:
        assert service.add_tables(["users", "public.users", "shop.Orders"], creator="ann") == [
            "users",
            "shop.Orders",
        ]
        assert service.add_tables(["users"]) == []
        listed = [(info.table_name, info.creator, info.state) for info in service.list_tables()]
    assert listed == [("shop.Orders", "ann", "new"), ("users", "ann", "new")]
    assert "table users does not exist locally yet" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["django_migrations", "tables_to_sync", "public.data_sync_logs", "pg_catalog.pg_class", "a.b.c", ""],
)
def test_what_must_not_be_synced_is_refused_and_nothing_is_added(world: World, name: str) -> None:
    with world.service() as service:
        with pytest.raises(WhitelistAddError):
            service.add_tables(["fine", name])
        assert service.list_tables() == []


def test_removing_an_unknown_table_removes_none(users: World) -> None:
    with users.service() as service:
        with pytest.raises(WhitelistRemoveError, match="not whitelisted: nobody"):
            service.remove_tables(["users", "nobody"])
        assert [info.table_name for info in service.list_tables()] == ["users"]


def test_a_table_that_is_added_again_goes_on_where_it_stopped(world: World) -> None:
    world.execute("CREATE TABLE bag (v int)")
    world.whitelist("bag")
    world.write(FIRST, [insert("bag", v=1)])
    world.sync()
    with world.service() as service:
        assert service.remove_tables(["bag"]) == ["bag"]
    world.write(SECOND, [insert("bag", v=2)])
    assert world.sync().records_added == 0
    world.whitelist("bag")
    assert world.sync().records_added == 1
    assert world.rows("SELECT v FROM bag ORDER BY v") == [(1,), (2,)]


def test_a_table_that_is_added_later_catches_up_from_the_beginning(users: World) -> None:
    users.execute("CREATE TABLE late (id int PRIMARY KEY)")
    users.write(FIRST, [insert("users", id=1), insert("late", id=1)])
    users.sync()
    users.whitelist("late")
    users.write(SECOND, [insert("users", id=2), insert("late", id=2)])
    assert users.sync().records_added == 3
    assert users.value("SELECT count(*) FROM late") == 2
    assert users.checkpoint("late")[:2] == users.checkpoint("users")[:2]


def test_the_status_has_the_documented_form(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    with users.service() as service:
        status = service.get_status()
    lines = format_status(status).splitlines()
    assert lines[:3] == ["status: not-started", "sync frequency: 600 seconds", "start time: -"]
    assert lines[3].startswith("last sync: 20") and lines[3].endswith("Z")
    assert lines[4:9] == ["records synced: 1", "errors: 0", "", "synced tables (1):", "  - users"]
    assert not status.is_healthy


def test_the_state_file_mirrors_the_checkpoints(users: World) -> None:
    users.write(FIRST, [insert("users", id=1) | {"lsn": "0/16B3D40"}])
    users.sync()
    mirror = state(users)
    assert (mirror["version"], mirror["last_file"], mirror["global_lsn"]) == (1, FIRST, "0/16B3D40")
    assert mirror["last_file_time"] == "2026-02-05T10:30:00Z"
    assert mirror["tables"]["users"]["last_lsn"] == "0/16B3D40"
    assert mirror["tables"]["users"]["record_count"] == mirror["total_synced"] == 1


@pytest.mark.parametrize("damage", ["", "{", '{"version": 99}', "[]"])
def test_a_broken_state_file_loses_nothing_and_is_rewritten(users: World, damage: str) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    (users.state_dir / STATE_FILE_NAME).write_text(damage)
    assert users.sync().records_added == 0
    assert state(users)["last_file"] == FIRST


def test_the_predecessors_state_is_adopted_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY)",
        "INSERT INTO tables_to_sync (table_name) VALUES ('public.users')",
    )
    world.write(FIRST, [insert("users", id=1)])
    world.write(SECOND, [insert("users", id=2)])
    predecessors = {"version": 1, "last_file": FIRST, "tables": {"users": {"record_count": 1}}}
    (world.state_dir / STATE_FILE_NAME).write_text(json.dumps(predecessors))
    world.sync()
    assert world.rows("SELECT id FROM users") == [(2,)]
    assert f"syncing goes on after {FIRST}" in caplog.text
    with world.service() as service:
        assert [info.table_name for info in service.list_tables()] == ["users"]
        service.clear()
        service.run_once()
    assert world.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]


def test_our_own_state_file_is_never_adopted(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    users.execute("TRUNCATE data_sync_checkpoints", "TRUNCATE users")
    assert users.sync().records_added == 1


def test_a_resync_of_a_table_that_is_not_whitelisted_is_refused(users: World) -> None:
    with users.service() as service, pytest.raises(ResyncError, match="not whitelisted"):
        service.resync("nobody")


def test_metrics_that_cannot_be_written_undo_the_batch(users: World) -> None:
    users.execute("ALTER TABLE data_sync_metrics RENAME TO elsewhere")
    users.write(FIRST, [insert("users", id=1)])
    with pytest.raises(MetricsError, match="migrate"):
        users.sync()
    assert users.value("SELECT count(*) FROM users") == 0
    users.execute("ALTER TABLE elsewhere RENAME TO data_sync_metrics")
    assert users.sync().records_added == 1


def test_missing_books_are_named_with_their_code(users: World) -> None:
    users.execute("DROP TABLE data_sync_runs")
    with users.service() as service, pytest.raises(StatusError, match="migrate"):
        service.get_status()
    users.execute("DROP TABLE tables_to_sync")
    with users.service() as service, pytest.raises(WhitelistListError, match="migrate"):
        service.list_tables()


def test_an_archive_that_cannot_be_closed_is_a_close_error(users: World) -> None:
    class Stuck:
        def close(self) -> None:
            raise OSError("stuck")

    service = users.service()
    service._resources._archive = Stuck()  # type: ignore[assignment]
    with pytest.raises(CloseError) as caught:
        service.close()
    assert str(caught.value).startswith("SHD_SYN_093: ")
    service.close()


def test_a_model_may_be_named_wherever_a_table_is(world: World) -> None:
    world.write(FIRST, [insert("auth_group", id=1, name="staff")])
    with world.service() as service:
        assert service.find_tables(["auth.Group", "auth.group", "auth_group"]) == ["auth_group"]
        assert service.add_tables(["auth.Group"]) == ["auth_group"]
        assert service.resync("auth.group").records_added == 1
        assert service.remove_tables(["auth.Group"]) == ["auth_group"]


def test_an_apps_tables_are_added_together(world: World) -> None:
    with world.service() as service:
        added = service.add_tables(["users"], apps=["auth"])
        with pytest.raises(WhitelistAddError, match="'shop'"):
            service.add_tables(["more"], apps=["shop"])
        with pytest.raises(WhitelistAddError, match="own bookkeeping"):
            service.add_tables([], apps=["syncdata"])
        assert len(service.list_tables()) == len(added)
    assert {"users", "auth_user", "auth_group_permissions", "auth_user_groups"} <= {*added}


def test_a_table_that_exists_wins_over_a_model_of_its_name(world: World) -> None:
    world.execute("CREATE SCHEMA auth", 'CREATE TABLE auth."group" (id int PRIMARY KEY)')
    with world.service() as service:
        assert service.find_tables(["auth.group", '"auth"."Group"']) == ["auth.group", "auth.Group"]
        assert service.find_tables(["auth.Group"]) == ["auth_group"]
        assert service.add_tables(["auth.group"]) == ["auth.group"]
        assert service.remove_tables(["auth.group"]) == ["auth.group"]
