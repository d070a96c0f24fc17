"""A primary and its standby, on servers of their own, which a test promotes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from syncsite.demo import postgres as servers
from syncsite.demo.postgres import PostgresServer
from tests.postgres import Database

PATIENCE_S = 30.0
_SLOT = "standby"


@dataclass
class Pair:
    """`execute` at the primary; `fail_over` kills it and promotes the standby."""

    primary: PostgresServer
    standby: PostgresServer
    name: str = "postgres"

    @property
    def old(self) -> Database:
        return Database(self.primary, self.name)

    @property
    def new(self) -> Database:
        return Database(self.standby, self.name)

    def execute(self, *statements: str) -> None:
        execute(self.primary, *statements)

    def wait_for_standby(self) -> None:
        """Wait until the standby has replayed what the primary has written by now."""
        (lsn,) = _row(self.primary, "SELECT pg_current_wal_flush_lsn()::text")
        until(lambda: _row(self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")[0])

    def wait_for_slot(self, slot: str, meanwhile: Callable[[], object]) -> None:
        """Wait until the standby keeps a copy of *slot* that would survive; *meanwhile* moves the slot on."""

        def is_kept() -> bool:
            meanwhile()
            execute(self.primary, "SELECT pg_log_standby_snapshot()")
            execute(self.standby, "SELECT pg_reload_conf()")  # which wakes the worker that keeps the copies
            query = (
                f"SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND synced AND NOT temporary"
            )
            return _row(self.standby, query) is not None

        until(is_kept, pause_s=0.2)

    def cut_off_standby(self) -> None:
        """Let the standby get nothing more."""
        execute(
            self.primary,
            "ALTER ROLE follower NOLOGIN",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE usename = 'follower'",
        )
        until(
            lambda: _row(self.primary, "SELECT FROM pg_stat_replication WHERE usename = 'follower'") is None
        )

    def fail_over(self) -> None:
        self.primary.crash()
        execute(self.standby, "SELECT pg_promote()")
        until(lambda: not _row(self.standby, "SELECT pg_is_in_recovery()")[0])


@pytest.fixture
def make_pair() -> Iterator[Callable[[Path], Pair]]:
    """`make_pair(binaries)` starts a primary and a standby that follows it."""
    with ExitStack() as cleanup:

        def make(binaries: Path) -> Pair:
            primary = PostgresServer(binaries=binaries)
            primary.start()
            cleanup.callback(primary.stop)
            standby = follow(primary)
            cleanup.callback(standby.stop)
            return Pair(primary, standby)

        yield make


def follow(primary: PostgresServer) -> PostgresServer:
    """Return a standby of *primary*, which runs; it is for the caller to stop."""
    if _row(primary, "SELECT FROM pg_roles WHERE rolname = 'follower'") is None:
        execute(primary, f"CREATE ROLE follower LOGIN REPLICATION PASSWORD '{primary.password}'")
    execute(primary, f"SELECT pg_create_physical_replication_slot('{_SLOT}', true)")
    standby = _copy(primary)
    standby._launch()
    return standby


def exchange(one: PostgresServer, other: PostgresServer) -> None:
    """Let each of the two be the server that the other was, for all who know it."""
    for each in fields(PostgresServer):
        first, second = getattr(one, each.name), getattr(other, each.name)
        setattr(one, each.name, second)
        setattr(other, each.name, first)


def _copy(primary: PostgresServer) -> PostgresServer:
    """Return a server whose data are a copy of the running *primary*'s; it does not run yet."""
    standby = PostgresServer(
        binaries=primary.binaries,
        user=primary.user,
        password=primary.password,
        settings=dict(primary.settings),
    )
    home = standby._home = servers.make_home(servers.HOMES)
    account = servers._unprivileged_account()
    servers._hand_over(home, account)
    login = f"host={primary.host} port={primary.port} user=follower password={primary.password}"
    standby._run("pg_basebackup", "-D", str(standby._data), "-d", login, "-c", "fast", "-X", "stream")
    (standby._data / "standby.signal").touch()
    servers._hand_over(home, account)
    standby.settings |= {
        "primary_conninfo": f"{login} dbname=postgres",
        "primary_slot_name": _SLOT,
        "hot_standby_feedback": "on",
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "200ms",
    }
    with primary.connect() as connection:
        if connection.info.server_version >= 170_000:
            standby.settings["sync_replication_slots"] = "on"
    return standby


def execute(server: PostgresServer, *statements: str) -> None:
    with server.connect(autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def until(is_so: Callable[[], Any], pause_s: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause_s)


def _row(server: PostgresServer, query: str) -> Any:
    with server.connect(autocommit=True) as connection:
        return connection.execute(query).fetchone()
