"""What a host project hears, and when: after the commit, once, with counts, whatever its receivers do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections
from django.dispatch import Signal

from syncdata.apply.state import queue as requests
from syncdata.errors import SyncError
from syncdata.service import SyncDataService
from syncdata.signals import sync_cycle_finished, table_blocked, table_synced
from tests.framed import Writer
from tests.world import World, delete, insert, truncate, update

FIRST, SECOND, THIRD = (f"changes_20260205_10300{n}.json" for n in range(3))
NAMES: dict[Signal, str] = {table_synced: "synced", table_blocked: "blocked", sync_cycle_finished: "finished"}


class Listener:
    """Hears all signals; ``heard`` holds their names and arguments."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, signal: Signal, sender: type, **arguments: Any) -> None:
        assert sender is SyncDataService
        self.heard.append((NAMES[signal], arguments))

    def take(self, name: str) -> list[dict[str, Any]]:
        """Return the arguments of the signals of this name, and forget all that was heard."""
        heard, self.heard = self.heard, []
        return [arguments for heard_name, arguments in heard if heard_name == name]


@pytest.fixture
def connect() -> Iterator[Callable[..., None]]:
    """``connect(receiver, *signals)`` for the time of the test."""
    connected: list[tuple[Signal, Any]] = []

    def connect(receiver: Any, *signals: Signal) -> None:
        for signal in signals or NAMES:
            signal.connect(receiver, weak=False)
            connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        assert signal.disconnect(receiver)


@pytest.fixture
def listener(connect: Callable[..., None]) -> Listener:
    listener = Listener()
    connect(listener)
    return listener


@pytest.fixture
def users(world: World) -> World:
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    return world


def test_a_table_is_announced_once_a_cycle_with_its_counts(users: World, listener: Listener) -> None:
    users.options["batch_records"] = 1
    users.write(FIRST, [insert("users", ts=f"2026-02-05T10:30:0{n}Z", id=n) for n in range(4)])
    users.write(SECOND, [update("users", id=1, name="x"), delete("users", id=2), insert("others", id=1)])
    users.sync()
    assert listener.take("synced") == [
        {
            "database": users.alias,
            "table": "users",
            "model": None,
            "action": "sync",
            "records_added": 4,
            "records_updated": 1,
            "records_deleted": 1,
            "records_truncated": 0,
            "files": 2,
        }
    ]


def test_a_cycle_without_news_is_announced_alone(users: World, listener: Listener) -> None:
    users.sync()
    ((name, arguments),) = listener.heard
    assert (name, arguments["result"].files_processed, arguments["error"]) == ("finished", 0, None)


def test_a_receiver_finds_the_rows_committed_and_no_transaction_open(
    users: World, connect: Callable[..., None]
) -> None:
    seen: list[Any] = []

    def look(sender: type, **arguments: Any) -> None:
        seen.append(users.value("SELECT count(*) FROM users"))
        seen.append(
            users.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            )
        )

    connect(look, table_synced)
    users.write(FIRST, [insert("users", id=1), insert("users", id=2)])
    users.sync()
    assert seen == [2, 0]


def test_a_blocked_table_is_announced_when_it_blocks_and_not_in_each_cycle(
    users: World, listener: Listener
) -> None:
    users.write(FIRST, [insert("users", id=1, missing="column")])
    users.sync()
    (blocked,) = listener.take("blocked")
    assert (blocked["table"], blocked["code"]) == ("users", "SHD_SYN_050")
    assert (blocked["file"], blocked["line"]) == (FIRST, 1)
    assert "missing" in blocked["message"] and blocked["hint"]
    users.sync()
    assert listener.take("blocked") == []
    users.execute("ALTER TABLE users ADD missing int")
    users.sync()
    assert [blocked["code"] for blocked in listener.take("blocked")] == ["SHD_SYN_064"]  # another reason
    users.execute("ALTER TABLE users ALTER missing TYPE text")
    users.sync()
    (synced,) = listener.take("synced")
    assert synced["records_added"] == 1


def test_a_file_that_cannot_be_read_blocks_and_announces_every_table(
    users: World, listener: Listener
) -> None:
    users.execute("CREATE TABLE items (id int PRIMARY KEY)")
    users.whitelist("items")
    users.write(FIRST, [insert("users", id=1), "not a record", insert("users", id=2)])
    users.sync()
    assert [(b["table"], b["code"], b["line"]) for b in listener.take("blocked")] == [
        ("items", "SHD_SYN_063", 2),
        ("users", "SHD_SYN_063", 2),
    ]


def test_resync_and_clear_are_announced_as_what_they_are(users: World, listener: Listener) -> None:
    users.write(FIRST, [insert("users", id=1), truncate("users"), insert("users", id=2)])
    users.sync()
    listener.heard.clear()
    with users.service() as service:
        service.resync("users")
        (resynced,) = listener.take("synced")
        service.clear()
        (cleared,) = listener.take("synced")
    assert (resynced["action"], resynced["records_added"], resynced["files"]) == ("resync", 2, 1)
    assert (cleared["action"], cleared["records_added"], cleared["files"]) == ("clear", 0, 0)


def test_a_clear_by_the_daemon_is_announced_after_its_commit(
    users: World, connect: Callable[..., None]
) -> None:
    """Before it, a receiver that reads the table would wait for the daemon's lock, and the daemon for it."""
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    seen: list[Any] = []

    def look(sender: type, action: str, **arguments: Any) -> None:
        if action == "clear":
            with users.connect() as connection:
                connection.execute("SET lock_timeout = '1s'")
                seen.extend(connection.execute("SELECT count(*) FROM users").fetchall())

    connect(look, table_synced)
    with users.connect() as connection:
        requests.submit(connection, "clear", ["users"])
    users.sync()
    assert seen == [(0,)]
    assert users.rows("SELECT id FROM users") == [(1,)]


def test_a_cycle_that_fails_announces_what_it_applied_and_why_it_ended(
    users: World, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    listener.heard.clear()
    users.write(SECOND, [insert("users", id=2)])
    with users.service() as service:
        drop = lambda *args, **options: users.execute("DROP TABLE data_sync_runs")  # noqa: E731
        monkeypatch.setattr(service._resources.mirror, "save", drop)
        with pytest.raises(SyncError):
            service.run_once()
    assert [name for name, _ in listener.heard] == ["synced", "finished"]
    finished = listener.heard[-1][1]
    assert (finished["error"].code, finished["result"].records_added) == ("SHD_SYN_064", 1)


def test_an_archive_that_cannot_be_listed_is_announced(users: World, listener: Listener) -> None:
    shutil.rmtree(users.archive)
    with pytest.raises(SyncError):
        users.sync()
    ((name, arguments),) = listener.heard
    assert (name, arguments["error"].code) == ("finished", "SHD_SYN_061")


def test_a_receiver_that_raises_is_logged_once_and_stops_nothing(
    users: World, connect: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def clumsy(sender: type, **arguments: Any) -> None:
        raise ZeroDivisionError("of the host's own")

    later = Listener()
    connect(clumsy, table_synced)
    connect(later)
    users.write(FIRST, [insert("users", id=1)])
    assert users.sync().records_added == 1
    assert [name for name, _ in later.heard] == ["synced", "finished"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == "syncdata.signals"
    assert "clumsy failed (ZeroDivisionError)" in record.getMessage()
    assert record.exc_info is not None


def test_connections_that_receivers_use_do_not_grow_old(users: World, connect: Callable[..., None]) -> None:
    def ask(sender: type, **arguments: Any) -> None:
        with connections[users.alias].cursor() as cursor:
            cursor.execute("SELECT 1")

    connect(ask, sync_cycle_finished)
    users.sync()
    assert connections[users.alias].connection is None  # closed, as after a request


def test_log_records_carry_their_fields(users: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "syncdata")
    users.write(FIRST, [insert("users", id=1)])
    users.write(SECOND, [insert("users", id=2, missing="column")])
    users.sync()
    (error,) = [record.__dict__ for record in caplog.records if record.levelno == logging.ERROR]
    assert (error["table"], error["file"], error["line"]) == ("users", SECOND, 1)
    assert (error["code"], error["records"]) == ("SHD_SYN_050", 1)
    (done,) = [r.__dict__ for r in caplog.records if r.getMessage().startswith("cycle done")]
    assert done["records"] == 1
    batches = [r.__dict__ for r in caplog.records if "applied up to" in r.getMessage()]
    assert [(batch["file"], batch["records"]) for batch in batches] == [(FIRST, 1), (SECOND, 1)]


def test_a_table_that_begins_with_a_snapshot_is_announced_with_its_rows(
    users: World, listener: Listener
) -> None:
    writer = Writer(users.archive)
    writer.changes(1, [(10, [insert("users", id=2)])])
    writer.snapshot(1, "users", 5, [{"id": 1}], prev=None)
    assert users.sync().errors == ()
    (synced,) = listener.take("synced")
    assert (synced["action"], synced["records_added"], synced["files"]) == ("sync", 2, 2)
