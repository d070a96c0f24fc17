"""Batches do not wait for the disk: a crash takes rows and checkpoints back together, and they come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from syncdata.apply.postgres.target import Target
from syncdata.apply.state import checkpoints
from syncdata.signals import sync_cycle_finished
from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests.world import World, insert

FILES = [f"changes_20260205_1030{number:02d}.json" for number in range(8)]


@pytest.fixture
def lazy_server() -> Iterator[PostgresServer]:
    """A server that flushes commits that do not wait as late as it may."""
    server = PostgresServer(binaries=embedded_binaries(), settings={"wal_writer_delay": "10s"})
    server.start()
    yield server
    server.stop()


def write(world: World, numbers: range) -> None:
    for number in numbers:
        world.write(FILES[number], [insert("t", id=10 * number + n, v="x" * 50) for n in range(10)])


@pytest.mark.parametrize(("options", "shown"), [({}, "off"), ({"apply_synchronous_commit": "on"}, "on")])
def test_the_transaction_of_a_batch_waits_for_the_disk_only_where_it_is_told_to(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], shown: str
) -> None:
    world = make_world(**options)
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    write(world, range(1))
    advance, seen = checkpoints.advance_checkpoints, []

    def look(connection: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(connection.execute("SHOW synchronous_commit").fetchone())
        return advance(connection, *arguments, **more)

    monkeypatch.setattr("syncdata.apply.postgres.target.advance_checkpoints", look)
    assert world.sync().errors == ()
    assert seen == [(shown,)]


def test_what_a_crash_of_the_server_takes_back_is_applied_again(
    lazy_server: PostgresServer, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(lazy_server)
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    write(world, range(2))
    assert world.sync().errors == ()
    write(world, range(2, 8))
    applied = []
    apply = Target.apply

    def crash_behind(target: Target, *arguments: Any) -> Any:
        outcome = apply(target, *arguments)
        applied.append(outcome)
        if len(applied) == 4:
            lazy_server.restart()
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Target, "apply", crash_behind)
        with world.service() as service, pytest.raises(Exception, match="SHD_SYN"):
            service.run_once()
    # As many rows as the checkpoint says, whatever came to the disk; and fewer than were applied.
    assert world.value("SELECT count(*) FROM t") == world.value(
        "SELECT rows_synced FROM data_sync_checkpoints WHERE table_name = 't'"
    )
    assert world.value("SELECT count(*) FROM t") < 60
    assert world.sync().errors == ()
    assert world.rows("SELECT count(*), count(DISTINCT id), max(id) FROM t") == [(80, 80, 79)]
    assert world.value("SELECT sum(records_added) FROM data_sync_logs") == 80


def test_a_crash_takes_nothing_back_that_a_signal_has_told_of(
    lazy_server: PostgresServer, make_world: Callable[..., World]
) -> None:
    world = make_world(lazy_server)
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    write(world, range(4))
    told = []

    def crash(**_: Any) -> None:
        told.append(True)
        lazy_server.restart()

    sync_cycle_finished.connect(crash)
    try:
        with world.service() as service:
            service.run_once()
    finally:
        sync_cycle_finished.disconnect(crash)
    assert told
    assert world.value("SELECT count(*) FROM t") == 40
