"""The throw-away servers that the demo and all other tests stand on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests.memory import remove_what_killed_runs_left
from tests.postgres import Database

FreshDatabase = Callable[..., Database]


def test_every_server_found_offers_logical_decoding_to_a_superuser(
    any_postgres: PostgresServer, fresh_database: FreshDatabase
) -> None:
    with fresh_database(any_postgres).connect() as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        assert connection.execute("SHOW is_superuser").fetchone() == ("on",)
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)


def test_a_server_asks_for_the_password(any_postgres: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**{**any_postgres.params(), "password": "not it"})


def test_a_password_is_kept_after_one_iteration(
    any_postgres: PostgresServer,
) -> None:
    with any_postgres.connect() as connection:
        row = connection.execute(
            "SELECT split_part(rolpassword, ':', 1) FROM pg_authid WHERE rolname = 'postgres'"
        ).fetchone()
    assert row is not None and row[0].startswith("SCRAM-SHA-256$1")


def test_what_a_killed_run_left_in_memory_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, recent, own, foreign = (
        tmp_path / name
        for name in (
            f"syncdata-postgres-{gone.pid}-old",
            f"syncdata-postgres-{gone.pid}-new",
            f"syncdata-postgres-{os.getpid()}-old",
            "syncdata-postgres-of_another",
        )
    )
    for home in (left, recent, own, foreign):
        (home / "data").mkdir(parents=True)
        if home != recent:
            os.utime(home, (1, 1))
    remove_what_killed_runs_left(tmp_path)
    assert {*tmp_path.iterdir()} == {recent, own, foreign}


def test_fresh_databases_are_empty_and_apart(fresh_database: FreshDatabase) -> None:
    first, second = fresh_database(), fresh_database()
    with first.connect() as connection:
        connection.execute("CREATE TABLE users (id int)")
    with second.connect() as connection:
        assert connection.execute("SELECT to_regclass('users')").fetchone() == (None,)


def test_committed_rows_survive_a_crash_of_the_server() -> None:
    server = PostgresServer(binaries=embedded_binaries())
    server.start()
    try:
        with server.connect() as connection:
            connection.execute("CREATE TABLE users AS SELECT 1 AS id")
        server.restart()
        with server.connect() as connection:
            assert connection.execute("SELECT id FROM users").fetchall() == [(1,)]
    finally:
        server.stop()
    with pytest.raises(psycopg.OperationalError):
        server.connect()


def test_binaries_that_only_their_owner_can_reach_will_do(tmp_path: Path) -> None:
    """As root we start the server as another account, which may not look into root's directories."""
    package = embedded_binaries().parents[1]
    shutil.copytree(package, tmp_path / package.name)
    shutil.copytree(f"{package}.libs", tmp_path / f"{package.name}.libs")
    tmp_path.chmod(0o700)
    server = PostgresServer(binaries=tmp_path / embedded_binaries().relative_to(package.parent))
    server.start()
    server.stop()
