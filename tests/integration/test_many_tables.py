"""What a small file costs where many tables are whitelisted: nearly all of them have no record in it."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import psycopg
import pytest

from syncdata.apply.counts import Counts
from syncdata.apply.position import Position
from syncdata.apply.result import Effect
from syncdata.apply.state import checkpoints
from syncdata.apply.state.checkpoints import advance_checkpoints
from syncdata.changes.names import TableName
from tests.framed import Writer
from tests.integration.test_idle import many_tables, running
from tests.world import World, insert

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
