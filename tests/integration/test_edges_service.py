"""The service in a host project of its own mind, with a whitelist by hand, and stopped at bad moments."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pytest
from django.db import connections

from syncdata.apply.postgres.target import Target
from syncdata.apply.progress import NoProgress
from syncdata.apply.state.checkpoints import CheckpointMovedError
from syncdata.archive.archive import Archive, ArchivedFile
from syncdata.archive.local import LocalStorage
from syncdata.errors import ParseError, WhitelistAddError
from syncdata.predecessor.statefile import STATE_FILE_NAME
from syncdata.service import SyncDataService
from tests.world import World, insert, truncate

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def pair(world: World) -> World:
    """Two whitelisted tables, t and o."""
    world.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE o (id int PRIMARY KEY)")
    world.whitelist("t", "o")
    return world


def ids(world: World) -> list[int]:
    return [number for (number,) in world.rows("SELECT id FROM t ORDER BY 1")]


# The host project's database settings


def test_a_host_project_without_autocommit_changes_nothing(pair: World) -> None:
    connections.databases[pair.alias]["AUTOCOMMIT"] = False
    pair.write(FIRST, [insert("t", id=1)])
    assert pair.sync().records_added == 1
    assert ids(pair) == [1]


def test_the_service_leaves_the_host_projects_pool_alone(pair: World) -> None:
    connections.databases[pair.alias]["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 1}}
    pair.write(FIRST, [insert("t", id=1)])
    assert pair.sync().records_added == 1
    if find_spec("psycopg_pool") is None:
        return  # Without it Django makes no pool, and there is nothing more to see.
    host: Any = connections.create_connection(pair.alias)
    try:
        with host.cursor() as cursor:
            cursor.execute("SHOW jit")
            assert cursor.fetchone() == ("on",)
        assert host.connection.cursor_factory is not psycopg.Cursor
    finally:
        host.close()
        host.close_pool()


# The whitelist, written by hand


@pytest.mark.parametrize("name", ["django_migrations", "app.data_sync_logs", "a.b.c"])
def test_a_name_that_must_not_be_whitelisted_blocks_itself_alone(pair: World, name: str) -> None:
    pair.execute(f"INSERT INTO tables_to_sync (table_name) VALUES ('{name}')")
    before = pair.value("SELECT count(*) FROM django_migrations")
    pair.write(FIRST, [truncate("django_migrations"), insert("t", id=1)])
    assert pair.sync().records_added == 1
    assert pair.value("SELECT count(*) FROM django_migrations") == before
    assert pair.checkpoint(name)[2] == "blocked"


def test_the_books_are_reserved_in_whatever_schema(pair: World) -> None:
    with pair.service() as service:
        for name in ("app.data_sync_checkpoints", "app.django_migrations"):
            with pytest.raises(WhitelistAddError, match="bookkeeping"):
                service.add_tables([name])


def test_any_spelling_in_the_whitelist_means_its_one_table(pair: World) -> None:
    pair.execute("INSERT INTO tables_to_sync (table_name) VALUES ('public.t'), ('\"o\"')")
    for number, name in enumerate((FIRST, SECOND)):
        pair.write(name, [insert("t", id=number)])
        assert pair.sync().errors == ()
    assert ids(pair) == [0, 1]
    assert pair.rows("SELECT table_name FROM tables_to_sync ORDER BY 1") == [("o",), ("t",)]


def test_any_spelling_is_understood_while_the_service_runs(world: World) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.write(FIRST, [insert("t", id=1)])
    with world.service() as service:
        assert service.run_once().records_added == 0
        world.execute("INSERT INTO tables_to_sync (table_name) VALUES ('public.t')")
        assert service.run_once().records_added == 1


def test_the_predecessors_state_waits_until_there_are_tables_to_adopt_it(world: World) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    (world.state_dir / STATE_FILE_NAME).write_text(json.dumps({"version": 1, "last_file": FIRST}))
    for number, name in enumerate((FIRST, SECOND)):
        world.write(name, [insert("t", id=number)])
    world.sync()
    world.whitelist("t")
    world.sync()
    assert ids(world) == [1]


def test_a_late_verdict_does_not_block_tables_that_were_cleared_meanwhile(pair: World) -> None:
    pair.write(FIRST, [insert("t", id=1)])
    pair.sync()
    with pair.connect() as connection, pair.service() as service:
        target = Target(connection, metric_freq_hours=24)
        before = target.checkpoints()
        service.clear()
        with pytest.raises(CheckpointMovedError):
            target.block(
                {checkpoint.table: checkpoint.position.commit_lsn for checkpoint in before},
                ParseError("broken", file=FIRST),
                start=before[0].position,
            )
    assert [pair.checkpoint(table) for table in "to"] == [("", 0, "active", None)] * 2


# Stops


@contextmanager
def running(service: SyncDataService) -> Iterator[threading.Event]:
    """Run *service*'s loop; on leaving, it must have stopped soon after the event was set."""
    stop = threading.Event()
    loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 60, "stop": stop})
    loop.start()
    try:
        yield stop
    finally:
        stop.set()
        loop.join(timeout=5)
        assert not loop.is_alive()
        service.close()


class SlowArchive(Archive):
    """Hands out the first file at once; the second one only when it is closed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LocalStorage(directory))
        self._is_closed = threading.Event()
        self.is_waiting = threading.Event()

    def fetch(self, file: ArchivedFile) -> BinaryIO:
        if file.name != FIRST:
            self.is_waiting.set()
            self._is_closed.wait(30)
        return super().fetch(file)

    def close(self) -> None:
        self._is_closed.set()


def test_a_stop_while_the_next_file_is_slow_to_come_keeps_what_was_applied(pair: World) -> None:
    pair.write(FIRST, [insert("t", id=1)])
    pair.write(SECOND, [insert("t", id=2)])
    service, archive = pair.service(), SlowArchive(pair.archive)
    service._resources._archive = archive
    with running(service):
        assert archive.is_waiting.wait(10)
    assert ids(pair) in ([], [1])
    pair.sync()
    assert ids(pair) == [1, 2]


def test_a_stop_does_not_wait_for_the_end_of_records_that_nobody_wants(pair: World) -> None:
    line = json.dumps(insert("nobody", id=1)).encode() + b"\n"
    (pair.archive / f"{FIRST}.gz").write_bytes(gzip.compress(line * 10_000) * 100)
    is_reading = threading.Event()

    class Watcher(NoProgress):
        def file_started(self, name: str, size_bytes: int) -> None:
            is_reading.set()

    with running(pair.service(progress=Watcher())):
        assert is_reading.wait(20)
    assert pair.checkpoint("t")[1] < 1_000_000


def test_a_stop_does_not_wait_for_a_host_that_never_answers(pair: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.options |= {
            "archive_backend": "sftp",
            "archive_host": "127.0.0.1",
            "archive_port": silent.getsockname()[1],
            "archive_user": "backup",
            "archive_password": "secret",
            "archive_known_hosts": tmp_path / "known_hosts",
        }
        with running(pair.service()):
            connection, _ = silent.accept()
            time.sleep(0.2)
        connection.close()
