"""What a cycle costs that finds nothing to do, and what is kept from cycle to cycle."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from syncdata.apply.position import START
from syncdata.apply.postgres.target import Target
from syncdata.apply.run import Run
from syncdata.apply.state.checkpoints import TableCheckpoint, open_checkpoints
from syncdata.apply.state.kept import KeptCheckpoints
from syncdata.changes.names import TableName
from syncdata.predecessor.mirror import StateFileMirror
from syncdata.predecessor.statefile import STATE_FILE_NAME, load_state
from syncdata.service import SyncDataService
from tests import catalogs
from tests.framed import Writer
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
# Statements of a cycle that finds nothing.
_MOST_STATEMENTS = 10


def many_tables(world: World, number: int) -> list[str]:
    names = [f"item_{n}" for n in range(number)]
    world.execute(*(f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in names))
    world.whitelist(*names)
    return names


@contextmanager
def running(world: World) -> Iterator[tuple[SyncDataService, Run]]:
    with world.service() as service, service._worker.running(600) as run:
        yield service, run


class Counted:
    """Counts the statements of all cursors, and the rows that they bring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements = self.rows = 0
        execute = psycopg.Cursor.execute

        def count(cursor: Any, *args: Any, **options: Any) -> Any:
            self.statements += 1
            done = execute(cursor, *args, **options)
            self.rows += cursor.rowcount if cursor.description else 0
            return done

        monkeypatch.setattr(psycopg.Cursor, "execute", count)


@pytest.mark.parametrize("tables", [3, 60])
def test_an_idle_cycle_asks_no_more_of_many_tables_than_of_few(
    world: World, monkeypatch: pytest.MonkeyPatch, tables: int
) -> None:
    names = many_tables(world, tables)
    monkeypatch.setattr("syncdata.apply.postgres.target.REST", 1_000_000)
    world.write(FIRST, [insert(names[0], id=1)])
    stop = threading.Event()
    with running(world) as (_, run):
        run.cycle(stop)
        run.cycle(stop)
        counted = Counted(monkeypatch)
        run.cycle(stop)
        assert counted.statements <= _MOST_STATEMENTS
        assert counted.rows <= _MOST_STATEMENTS, "no row of any table's own is read"


def test_checkpoints_are_read_again_when_anything_of_them_has_changed(world: World) -> None:
    names = many_tables(world, 3)
    world.write(FIRST, [insert(names[0], id=1)])
    world.sync()
    with world.connect() as connection:
        kept = KeptCheckpoints(connection)

        def read() -> dict[str, tuple[int, bool, int]]:
            with connection.transaction():
                found = kept.read()
            return {str(c.table): (c.id, c.is_paused, c.position.record_number) for c in found}

        before = read()
        assert read() == before
        changes = (
            "UPDATE data_sync_checkpoints SET state = 'paused' WHERE table_name = 'item_0'",
            "UPDATE data_sync_checkpoints SET record_number = 7 WHERE table_name = 'item_1'",
            "DELETE FROM tables_to_sync WHERE table_name = 'item_2'",
            "INSERT INTO tables_to_sync (table_name) VALUES ('other')",
            "INSERT INTO tables_to_sync (table_name) VALUES ('public.item_2')",
            "DELETE FROM data_sync_checkpoints WHERE table_name = 'item_1'",
            "UPDATE tables_to_sync SET table_name = 'renamed' WHERE table_name = 'other'",
        )
        for change in changes:
            world.execute(change)
            now = read()
            assert now != before, change
            assert now.keys() == {name for (name,) in world.rows("SELECT table_name FROM tables_to_sync")}
            before = now


def test_a_name_that_must_not_be_synced_is_left_out_each_time_that_it_is_whitelisted(world: World) -> None:
    many_tables(world, 1)
    with world.connect() as connection:
        kept = KeptCheckpoints(connection)
        for _ in range(2):
            world.execute("INSERT INTO tables_to_sync (table_name) VALUES ('django_migrations')")
            assert [str(checkpoint.table) for checkpoint in kept.read()] == ["item_0"]
            world.execute("DELETE FROM tables_to_sync WHERE table_name = 'django_migrations'")
            assert len(kept.read()) == len(kept.read()) == 1


def test_what_is_written_while_checkpoints_are_read_shows_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_tables(world, 1)
    world.sync()

    def read_and_pause(connection: psycopg.Connection[Any]) -> list[TableCheckpoint]:
        found = open_checkpoints(connection)
        world.execute("UPDATE data_sync_checkpoints SET state = 'paused'")
        return found

    monkeypatch.setattr("syncdata.apply.state.kept.open_checkpoints", read_and_pause)
    with world.connect() as connection:
        kept = KeptCheckpoints(connection)
        assert not kept.read()[0].is_paused
        assert kept.read()[0].is_paused


def test_what_a_transaction_took_back_is_not_kept(world: World) -> None:
    """A new table gets its checkpoint by the look at all of them, which may be rolled back."""
    many_tables(world, 1)
    with world.connect() as connection:
        kept = KeptCheckpoints(connection)
        connection.execute("BEGIN")
        (taken_back,) = kept.read()
        connection.execute("ROLLBACK")
        with connection.transaction():
            (checkpoint,) = kept.read()
        assert world.value("SELECT id FROM data_sync_checkpoints") == checkpoint.id != taken_back.id


def test_tables_that_are_all_fit_are_looked_at_again_when_the_look_is_old(world: World) -> None:
    many_tables(world, 2)
    with world.connect() as connection:
        target = Target(connection, metric_freq_hours=24)
        checkpoints = target.checkpoints()
        assert not target.examine(checkpoints).unfit
        world.execute("DROP TABLE item_0", "CREATE VIEW item_0 AS SELECT 1 AS id")
        target._look_again_s = float("-inf")
        assert target.examine(checkpoints).unfit.keys() == {TableName("public", "item_0")}
        world.execute("DROP VIEW item_0", "CREATE TABLE item_0 (id int PRIMARY KEY)")
        assert not target.examine(checkpoints).unfit, "one that was unfit is looked at each time"


def test_a_partition_whose_first_records_are_the_archivers_is_looked_at_again_at_once(world: World) -> None:
    world.execute(
        "CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF whole DEFAULT",
    )
    world.whitelist("part")
    with world.connect() as connection:
        target = Target(connection, metric_freq_hours=24)
        (checkpoint,) = target.checkpoints()
        assert not target.examine([checkpoint]).unfit
        target._look_again_s = float("inf")
        assert not target.examine([checkpoint]).unfit
        moved = replace(checkpoint.position, source_id="7")
        assert target.examine([replace(checkpoint, position=moved)]).unfit


def test_the_state_file_is_written_when_something_has_changed(world: World) -> None:
    names = many_tables(world, 2)
    path, stop = world.state_dir / STATE_FILE_NAME, threading.Event()
    with running(world) as (_, run):
        world.write(FIRST, [insert(names[0], id=1)])
        run.cycle(stop)
        first = path.read_text()
        run.cycle(stop)
        assert path.read_text() == first
        world.write(SECOND, [insert(names[1], id=1)])
        run.cycle(stop)
        assert SECOND in path.read_text()
        path.unlink()
        run.cycle(stop)
        assert SECOND in path.read_text()


def test_the_state_file_is_written_when_the_clock_has_gone_back(world: World) -> None:
    """The time of its last cycle would lie in the future for long."""
    many_tables(world, 1)
    world.write(FIRST, [insert("item_0", id=1)])
    world.sync()
    mirror, path = StateFileMirror(world.state_dir), world.state_dir / STATE_FILE_NAME
    noon = dt.datetime(2026, 2, 5, 12, tzinfo=dt.UTC)
    with world.connect() as connection:
        for now in (noon, noon - dt.timedelta(hours=1)):
            mirror.save(connection, START, now=now)
            state = load_state(path)
            assert state is not None
            assert state.last_sync_cycle == now


def test_what_production_publishes_is_not_written_again_with_each_file(world: World) -> None:
    """All checkpoints move with each file. The rows of 50 tables of 40 columns stay narrow."""
    names = many_tables(world, 50)
    columns = ("id integer", *(f"a_column_of_some_length_{n} text" for n in range(40)))
    for name in names:
        world.execute(f"ALTER TABLE {name} {', '.join(f'ADD {column}' for column in columns[1:])}")
    digest = catalogs.put(world.archive, *(catalogs.table(name, *columns) for name in names))
    archive = Writer(world.archive)
    for number in range(1, 9):
        archive.changes(
            number,
            [(number * 16, [insert(names[0], id=number)])],
            catalog=digest,
            catalog_lsn=1,
        )
        assert world.sync().errors == ()
    published = world.value("SELECT sum(length(published::text)) FROM data_sync_checkpoints")
    assert published > 50 * 2_000
    assert world.value("SELECT pg_relation_size('data_sync_checkpoints')") < 160_000
