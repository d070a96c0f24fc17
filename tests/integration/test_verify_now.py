"""A table is compared with what the archive says it is: built anew beside the live one, and thrown away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from syncdata.apply.postgres.shadow import ShadowTarget
from syncdata.apply.sink import Differences
from syncdata.errors import SyncError, VerificationError
from tests import catalogs
from tests.framed import Writer, file_name
from tests.integration.test_monitoring import embedded
from tests.world import World, delete, insert, update

COLUMNS = {"users": ("id integer", "name text"), "notes": ("id integer", "name text")}


class Source:
    """Production's files about users, with a key, and notes, without one."""

    def __init__(self, world: World) -> None:
        self.writer = Writer(world.archive)
        tables = [
            catalogs.table(name, *columns, oid=number, **({} if name == "users" else {"key": ()}))
            for number, (name, columns) in enumerate(COLUMNS.items(), start=100)
        ]
        self.catalog = catalogs.put(world.archive, *tables)

    def changes(self, number: int, *transactions: tuple[int, list[dict[str, Any]]]) -> None:
        self.writer.changes(number, transactions, catalog=self.catalog)

    def snapshot(self, table: str, lsn: int, rows: list[dict[str, Any]], *, prev: int = 1) -> None:
        self.writer.snapshot(lsn, table, lsn, rows, prev=prev, catalog=self.catalog)


@pytest.fixture
def source(world: World) -> Iterator[Source]:
    """Users 1 to 5 from a snapshot and two files; notes with one row twice."""
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text)", "CREATE TABLE notes (id int, name text)"
    )
    world.whitelist("users", "notes")
    source = Source(world)
    source.changes(1, (10, [insert("users", id=1, name="a"), insert("notes", id=1, name="n")]))
    rows = [{"id": number, "name": "a"} for number in (1, 2, 3)]
    source.snapshot("users", 15, rows)
    source.snapshot("notes", 15, [{"id": 1, "name": "n"}, {"id": 1, "name": "n"}])
    source.changes(2, (20, [update("users", id=2, name="b"), insert("users", id=4, name="a")]))
    source.changes(3, (30, [insert("users", id=5, name="a"), delete("users", id=3)]))
    world.sync()
    with override_settings(SYNCDATA=embedded(world)):
        yield source


def compare(world: World, *tables: str) -> dict[str, Differences | SyncError]:
    with world.service() as service:
        return service.verify_now(tables)


def outcome(world: World, table: str = "users") -> Differences | SyncError:
    return compare(world, table)[table]


def books(world: World) -> list[tuple[Any, ...]]:
    return [
        *world.rows("SELECT * FROM data_sync_checkpoints ORDER BY table_name"),
        *world.rows("SELECT * FROM data_sync_logs ORDER BY id"),
        *world.rows("SELECT xmin::text, * FROM users ORDER BY id"),
        *world.rows("SELECT relname FROM pg_class WHERE relname LIKE 'syncdata_rebuild%'"),
    ]


def test_equal_tables_are_said_to_be_so_and_nothing_is_changed(world: World, source: Source) -> None:
    before = books(world)
    assert compare(world, "users", "notes") == {"users": Differences(rows=4), "notes": Differences(rows=2)}
    assert books(world) == before


def test_rows_missing_too_many_and_different_are_counted_by_key(world: World, source: Source) -> None:
    world.execute(
        "DELETE FROM users WHERE id IN (1, 2)",
        "UPDATE users SET name = 'x' WHERE id = 4",
        "INSERT INTO users VALUES (7, 'a'), (8, 'a'), (9, NULL)",
    )
    assert outcome(world) == Differences(rows=4, missing=2, too_many=3, different=1)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO notes VALUES (1, 'n')", Differences(rows=2, too_many=1)),
        ("DELETE FROM notes", Differences(rows=2, missing=2)),
        ("UPDATE notes SET name = NULL", Differences(rows=2, missing=2, too_many=2)),
    ],
)
def test_rows_without_a_key_are_counted_as_often_as_they_are_there(
    world: World, source: Source, statement: str, expected: Differences
) -> None:
    world.execute(statement)
    assert outcome(world, "notes") == expected


def test_a_column_that_production_lacks_is_not_compared(world: World, source: Source) -> None:
    world.execute("ALTER TABLE users ADD mine text DEFAULT 'mine'", "UPDATE users SET mine = 'changed'")
    assert outcome(world) == Differences(rows=4)


def test_an_archive_that_does_not_say_what_production_has_is_no_measure(world: World) -> None:
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    world.whitelist("users")
    writer = Writer(world.archive)
    writer.changes(1, [(10, [insert("users", id=1, name="a")])])
    writer.snapshot(1, "users", 10, [{"id": 1, "name": "a"}], prev=1)
    world.sync()
    found = outcome(world)
    assert isinstance(found, VerificationError) and "does not say which of its columns" in str(found)


def test_a_table_is_compared_where_it_stands_though_the_archive_goes_on(world: World, source: Source) -> None:
    source.changes(4, (40, [insert("users", id=6, name="a")]))
    assert outcome(world) == Differences(rows=4)


def test_a_snapshot_that_is_newer_than_the_table_is_passed_over(world: World, source: Source) -> None:
    source.changes(4, (40, [insert("users", id=6, name="a")]))
    rows = [{"id": number, "name": "a"} for number in (1, 2, 4, 5, 6)]
    source.snapshot("users", 40, rows, prev=4)
    assert outcome(world) == Differences(rows=4)


@contextmanager
def just_before_comparing(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> Iterator[None]:
    """In the block, take one of *steps* before each comparison."""
    compare, left = ShadowTarget.compare, iter(steps)

    def late(shadow: ShadowTarget, position: Any) -> Differences | None:
        next(left, lambda: None)()
        return compare(shadow, position)

    with monkeypatch.context() as patched:
        patched.setattr(ShadowTarget, "compare", late)
        yield


def test_a_table_that_goes_on_meanwhile_is_followed(
    world: World, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on(number: int) -> None:
        source.changes(number, (10 * number, [insert("users", id=number + 2, name="a")]))
        world.sync()

    with just_before_comparing(monkeypatch, lambda: go_on(4), lambda: go_on(5)):
        assert outcome(world) == Differences(rows=6)


def test_a_table_that_never_stands_still_is_told_of(
    world: World, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncdata.apply.verify_now._MOST_ROUNDS", 2)

    def go_on(number: int) -> None:
        source.changes(number, (10 * number, [insert("users", id=number + 2, name="a")]))
        world.sync()

    with just_before_comparing(monkeypatch, lambda: go_on(4), lambda: go_on(5)):
        assert "pause_tables users" in str(outcome(world))


def test_a_daemon_goes_on_while_a_table_is_compared(
    world: World, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison has its snapshot, and a whole cycle commits before it has read a row."""
    columns = ShadowTarget._published_columns

    def late(shadow: ShadowTarget) -> list[str]:
        source.changes(4, (40, [insert("users", id=6, name="a"), delete("users", id=1)]))
        assert world.sync().records_synced == 2
        return columns(shadow)

    monkeypatch.setattr(ShadowTarget, "_published_columns", late)
    assert outcome(world) == Differences(rows=4)


def test_a_table_without_a_snapshot_or_a_beginning_says_what_to_do(world: World, source: Source) -> None:
    for path in world.archive.glob("snapshot_*/*"):
        path.unlink()
    assert "archive_changes --snapshot users" in str(outcome(world))
    world.execute("CREATE TABLE late (id int PRIMARY KEY)")
    world.whitelist("late")
    assert "it has not begun" in str(outcome(world, "late"))
    assert "it is not whitelisted" in str(outcome(world, "absent"))


def test_an_archive_that_ends_before_the_checkpoint_says_so(world: World, source: Source) -> None:
    (world.archive / file_name(3)).unlink()
    assert "ends before the table's checkpoint" in str(outcome(world))


def test_a_stop_ends_a_comparison(world: World, source: Source) -> None:
    stop = threading.Event()
    stop.set()
    with world.service() as service:
        found = service.verify_now(["users"], stop=stop)["users"]
    assert isinstance(found, VerificationError) and "interrupted" in str(found)


def test_the_command_counts_the_rows_and_fails_where_they_differ(
    world: World, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("syncdata_verify", now=True)
    assert (
        capsys.readouterr().out == "notes: 2 rows, as the archive says\nusers: 4 rows, as the archive says\n"
    )
    world.execute("DELETE FROM users WHERE id = 1", "UPDATE users SET name = 'x' WHERE id = 4")
    with pytest.raises(VerificationError, match="not production's rows: users"):
        call_command("syncdata_verify", "users", now=True)
    out = capsys.readouterr().out
    assert out == "users: differs: of 4 rows 1 missing here, 1 with other values here\n"
    with pytest.raises(VerificationError):
        call_command("syncdata_verify", now=True, json=True)
    (_, told) = json.loads(capsys.readouterr().out)
    assert told == {"table_name": "users", "rows": 4, "missing": 1, "too_many": 0, "different": 1}


def test_no_value_is_in_what_is_told(
    world: World, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    world.execute("UPDATE users SET name = 'a-secret'")
    with pytest.raises(VerificationError) as raised:
        call_command("syncdata_verify", now=True)
    captured = capsys.readouterr()
    assert "a-secret" not in captured.out + captured.err + str(raised.value)
