"""What a small file costs where many tables are whitelisted: nearly all of them have no record in it."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from syncdata.apply.counts import Counts
from syncdata.apply.position import Position
from syncdata.apply.result import Effect
from syncdata.apply.state import checkpoints, kept
from syncdata.apply.state.checkpoints import advance_checkpoints
from syncdata.changes.names import TableName
from tests.framed import Writer
from tests.integration.test_idle import many_tables, running
from tests.integration.test_requests import wait_until
from tests.world import World, insert, truncate

NOW = dt.datetime(2026, 2, 5, 12, tzinfo=dt.UTC)
BEFORE = Position(file="changes_20260205_103000.json", is_finished=True, commit_lsn=7, source_id="7")
MIDDLE = Position(file="changes_20260205_103001.json", record_number=3, commit_lsn=8, source_id="7")
LATER = Position(file="changes_20260205_103001.json", record_number=5, commit_lsn=9, source_id="7")
END = Position(
    file="changes_20260205_103001.json", record_number=9, is_finished=True, commit_lsn=10, source_id="7"
)
TABLES = [TableName("public", name) for name in ("item_0", 'of "all" kinds', "item_2", "item_3")]


@pytest.fixture
def items(world: World) -> World:
    """Tables of all kinds: one blocked, one with marks and an oid, one in the middle of a file."""
    with world.connect() as connection:
        for table in TABLES:
            connection.execute("INSERT INTO tables_to_sync (table_name) VALUES (%s)", (str(table),))
        with connection.transaction():
            checkpoints.open_checkpoints(connection)
    blocked = "state = 'blocked', error = 'e', error_code = 'c', error_line = 7, blocked_at = now()"
    counts = "records_added = 8, rows_synced = 8, file_added = 2, file_updated = 1, file_duration_ms = 3"
    world.execute(
        f"UPDATE data_sync_checkpoints SET {blocked} WHERE table_name = 'item_2'",
        "UPDATE data_sync_checkpoints SET local_oid = 7, home_oid = tableoid::bigint, last_lsn = '0/7'"
        " WHERE table_name = 'item_3'",
        f"UPDATE data_sync_checkpoints SET {counts} WHERE table_name IN ('item_2', 'item_3')",
    )
    return world


def left_by_an_advance(world: World, start: Position, end: Position, marks: list[int | None]) -> Any:
    """Return all checkpoints and entries after a step in which the first table alone has records."""
    effects = {TABLES[0]: Effect(counts=Counts(added=2), last_change_at=NOW, last_lsn="0/9", duration_ms=4)}
    with world.connect() as connection:
        if start.is_finished:  # nothing is counted yet of a file that has not begun
            connection.execute(
                "UPDATE data_sync_checkpoints SET file_added = 0, file_updated = 0, file_duration_ms = 0"
            )
        with connection.transaction(force_rollback=True):
            watermarks = dict(zip(TABLES, marks, strict=True))
            advance_checkpoints(connection, watermarks, effects, start=start, end=end, now=NOW)
            return [
                connection.execute(query).fetchall()
                for query in (
                    "SELECT to_jsonb(c) FROM data_sync_checkpoints c ORDER BY table_name",
                    "SELECT to_jsonb(l) - 'id' FROM data_sync_logs l ORDER BY table_name",
                )
            ]


@pytest.mark.parametrize("marks", [[7, 7, 7, 7], [7, 9, 7, 30], [None, None, 7, None]])
@pytest.mark.parametrize(
    ("start", "end"), [(BEFORE, END), (BEFORE, MIDDLE), (MIDDLE, LATER), (MIDDLE, END), (LATER, END)]
)
def test_tables_without_records_end_as_if_they_were_moved_one_by_one(
    items: World, monkeypatch: pytest.MonkeyPatch, start: Position, end: Position, marks: list[int | None]
) -> None:
    together = left_by_an_advance(items, start, end, marks)
    monkeypatch.setattr(checkpoints, "_most_common", lambda marks: -1)  # nobody's
    assert left_by_an_advance(items, start, end, marks) == together
    assert {row["file"] for (row,) in together[0]} == {end.file}
    assert {row["state"] for (row,) in together[0]} == {"active"}
    if end.is_finished and not start.is_finished:
        assert {row["table_name"] for (row,) in together[1]} == {"item_0", "item_2", "item_3"}


def test_a_file_counts_for_the_tables_that_it_is_about_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are moved all at once: by the tables that are moved one by one, whatever is whitelisted."""
    names = many_tables(world, 60)
    sent: list[str] = []
    execute = psycopg.Connection.execute

    def look(connection: Any, query: Any, params: Any = None, **options: Any) -> Any:
        if query is checkpoints._ADVANCE:
            sent.append(params["names"])
        return execute(connection, query, params, **options)

    archive, stop = Writer(world.archive), threading.Event()
    with running(world) as (_, run):
        for number in range(1, 4):
            archive.changes(number, [(number * 16, [insert(names[number], id=1)])])
            if number == 3:
                monkeypatch.setattr(psycopg.Connection, "execute", look)
            assert run.cycle(stop).errors == ()
    assert sent == ['{"item_3"}']
    assert world.value("SELECT count(DISTINCT (file, commit_lsn)) FROM data_sync_checkpoints") == 1
    assert world.value("SELECT count(*) FROM data_sync_checkpoints WHERE local_oid IS NOT NULL") == 60


def test_a_file_of_one_record_reads_the_checkpoint_of_its_table_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = many_tables(world, 60)
    archiver, stop = Writer(world.archive), threading.Event()
    read: list[str] = []
    checkpoint_of = checkpoints.checkpoint_of

    def noted(row: tuple[Any, ...]) -> checkpoints.TableCheckpoint:
        read.append(row[1])
        return checkpoint_of(row)

    monkeypatch.setattr("syncdata.apply.state.kept.checkpoint_of", noted)
    with running(world) as (_, run):
        for number in range(1, 6):
            archiver.changes(number, [(10 * number, [insert(names[number], id=number)])])
            read.clear()
            run.cycle(stop)
            if number > 2:
                assert read == [names[number]]
    assert world.rows("SELECT DISTINCT file, commit_lsn::text FROM data_sync_checkpoints") == [
        ("changes_20260205_000005.json", "0/32")
    ]


def test_what_is_kept_is_what_the_database_holds_whatever_happens_to_it(world: World) -> None:
    names = many_tables(world, 5)
    archiver, stop, chance = Writer(world.archive), threading.Event(), random.Random(7)
    number = 0

    def file_of(*records: dict[str, Any]) -> None:
        nonlocal number
        number += 1
        archiver.changes(number, [(10 * number, records)])

    def mark(kind: str) -> str:
        return f"marks = marks || jsonb_build_array(jsonb_build_object('kind', '{kind}', 'text', ''))"

    def set_one(what: str) -> None:
        world.execute(f"UPDATE data_sync_checkpoints SET {what} WHERE table_name = '{chance.choice(names)}'")

    actions: list[Callable[[], None]] = [
        *(3 * [lambda: file_of(insert(chance.choice(names), id=number))]),
        lambda: file_of(*(insert(name, id=number) for name in names)),
        lambda: file_of(truncate(chance.choice(names))),
        lambda: file_of(insert(chance.choice(names), id=number, unknown=1)),  # blocks the table
        lambda: set_one("state = 'paused'"),
        lambda: set_one("state = 'active', error = NULL"),
        lambda: set_one(mark("differs")),
        lambda: set_one("""skips = '[{"file": "changes_20260205_000001.json", "line": 9}]'"""),
        lambda: world.execute(
            f"DELETE FROM data_sync_checkpoints WHERE table_name = '{chance.choice(names)}'"
        ),
        lambda: world.execute(f"DELETE FROM tables_to_sync WHERE table_name = '{chance.choice(names)}'"),
        lambda: world.whitelist(*names),
        lambda: world.execute("UPDATE data_sync_checkpoints SET last_sync_at = now()"),
    ]
    with running(world) as (_, run), world.connect() as other:
        for _ in range(60):
            chance.choice(actions)()
            run.cycle(stop)
            sink = run._open_sink()
            found = {checkpoint.table: checkpoint for checkpoint in sink.checkpoints()}
            assert found == {c.table: c for c in checkpoints.open_checkpoints(other)}


def test_a_batch_does_not_go_on_with_a_checkpoint_that_is_replaced_meanwhile(world: World) -> None:
    many_tables(world, 2)
    tables = [TableName("public", "item_0"), TableName("public", "item_1")]
    moved: list[bool] = []
    with world.connect() as first, world.connect() as second:
        of_batch = kept.KeptCheckpoints(second)
        assert of_batch.read() == of_batch.read()

        def begin_a_batch() -> None:
            with second.transaction(), suppress(checkpoints.CheckpointMovedError):
                of_batch.locked(of_batch.send_locks(tables))
                moved.append(False)

        waiting = threading.Thread(target=begin_a_batch)
        with first.transaction():
            checkpoints.lock_checkpoints(first, tables)
            checkpoints.reset_checkpoints(first, tables[1:])
            waiting.start()
            wait_until(lambda: world.rows("SELECT FROM pg_locks WHERE NOT granted"))
        waiting.join(10)
        assert not moved
        assert of_batch.read() == checkpoints.open_checkpoints(first)
