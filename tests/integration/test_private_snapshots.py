"""Snapshots under a privacy policy: what is withheld is not read, and what is masked is never written raw."""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from syncdata.capture.exported_snapshot import ConsistentSource
from syncdata.capture.policy_note import load_policy_note
from syncdata.capture.snapshot import PartlyTakenError, TakenSnapshot
from syncdata.changes.catalog import Catalog, PublishedTable, parse_catalog
from syncdata.changes.reader import inspect, read_records
from syncdata.errors import PrivacyError, SnapshotError, SourceChangedError
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import Policy, parse_policy
from tests.production import Production
from tests.world import World

KEY = MaskKey(b"k" * 32)
USERS: dict[str, Any] = {"id": "keep", "email": "email", "name": "token", "city": "keep"}
TABLE = "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE, name text, city text, notes text)"
ROWS = """INSERT INTO users
    SELECT n, 'secret' || n || '@example.com', E'secret\\tname\\\\' || n, 'Bern', 'secret notes ' || n
    FROM generate_series(1, 300) AS n"""
SECRET = b"secret"


def policy_of(rules: dict[str, object], *, key: MaskKey = KEY, **options: Any) -> Policy:
    policy, problems = parse_policy(rules, key=key, **options)
    assert problems == ()
    return policy


@pytest.fixture
def private(make_production: Callable[..., Production]) -> Production:
    """A production with 300 users, whose archiver has worked under the policy."""
    made = make_production(policy=policy_of({"users": USERS}))
    made.execute(TABLE, ROWS)
    made.publish("users")
    made.archive()
    return made


def texts_of(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what is in each file below *directory*, without compression."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".zst":
                content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            elif path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            yield str(path), content


def leaks(production: Production) -> list[str]:
    directories = (production.archive_dir, production.spool_dir)
    return [name for directory in directories for name, text in texts_of(directory) if SECRET in text]


def rows_of(production: Production, taken: TakenSnapshot) -> list[dict[str, Any]]:
    with (production.archive_dir / taken.name).open("rb") as stream:
        return [located.record.data or {} for located in read_records(stream, taken.name)]


def published(production: Production, taken: TakenSnapshot) -> PublishedTable:
    """Return the table as the snapshot's own catalog has it."""
    with (production.archive_dir / taken.name).open("rb") as stream:
        header = inspect(stream, taken.name).header
    assert header is not None
    path = production.archive_dir / f"catalog/{header.catalog}.json"
    catalog: Catalog = parse_catalog(path.read_bytes(), f"catalog/{path.name}")
    found = catalog.find(taken.table)
    assert found is not None
    return found


def test_a_snapshot_has_masked_values_and_none_that_are_withheld(private: Production) -> None:
    (taken,) = private.snapshot("users")
    rows = rows_of(private, taken)
    assert [row["id"] for row in rows] == [str(n) for n in range(1, 301)]
    assert {tuple(row) for row in rows} == {("id", "email", "name", "city")}
    assert {row["city"] for row in rows} == {"Bern"}
    assert len({row["email"] for row in rows}) == 300
    assert all(row["email"].endswith("@example.invalid") for row in rows)
    entry = published(private, taken)
    assert {column.name: column.privacy for column in entry.columns if column.privacy} == {
        "email": "email",
        "name": "token",
        "notes": "withheld",
    }
    assert entry.column_list == ("id", "email", "name", "city")
    assert leaks(private) == []


def test_snapshot_and_stream_mask_alike(private: Production, make_world: Callable[..., World]) -> None:
    """The rows of the stream find those of the snapshot, and the catalogs of both are of one policy."""
    (taken,) = private.snapshot("users")
    before = {row["id"]: row for row in rows_of(private, taken)}
    private.execute(
        "UPDATE users SET city = 'Thun' WHERE id <= 100",
        "UPDATE users SET email = 'secret0@example.com' WHERE id = 7",
        "DELETE FROM users WHERE id = 8",
        "INSERT INTO users VALUES (301, 'secret8@example.com', 'secret', 'Basel', 'secret')",
    )
    private.archive()
    (again,) = private.snapshot("users")
    world = make_world()
    world.archive = private.archive_dir
    world.execute(TABLE.replace(", notes text", ""))
    world.whitelist("users")
    assert world.sync().errors == ()
    rows = world.rows("SELECT id::text, email, name, city FROM users")
    assert sorted(rows) == sorted(tuple(row.values()) for row in rows_of(private, again))
    # The address of the row that was deleted went to another one, in another record.
    assert world.value("SELECT email FROM users WHERE id = 301") == before["8"]["email"]
    assert leaks(private) == []


def test_what_is_withheld_is_not_even_asked_for(private: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[bytes] = []
    original = ConsistentSource.blocks

    def noting(self: ConsistentSource, table: Any) -> Iterator[bytes]:
        for block in original(self, table):
            blocks.append(block)
            yield block

    monkeypatch.setattr(ConsistentSource, "blocks", noting)
    private.snapshot("users")
    assert b"Bern" in b"".join(blocks)
    assert b"secret notes" not in b"".join(blocks)


def test_a_withheld_table_has_no_snapshot_and_keeps_none_from_others(private: Production) -> None:
    private.execute(
        "CREATE TABLE diary (id int PRIMARY KEY, text text)", "INSERT INTO diary VALUES (1, 'secret')"
    )
    private.publish("diary")
    private.archive()
    with pytest.raises(SnapshotError, match="the privacy policy withholds the table") as failure:
        private.snapshot("diary")
    assert failure.value.table == "diary"
    with pytest.raises(PartlyTakenError) as partly:
        private.snapshot("diary", "users")
    assert [taken.table.name for taken in partly.value.taken] == ["users"]
    assert leaks(private) == []


def test_a_rule_that_cannot_hold_withholds_its_column_in_a_snapshot(
    private: Production, caplog: pytest.LogCaptureFixture
) -> None:
    private.execute("ALTER TABLE users ALTER COLUMN name TYPE bytea USING convert_to(name, 'UTF8')")
    private.options["policy"] = policy_of({"users": USERS | {"name": "email"}})
    private.spool_dir.joinpath("policy.json").unlink()
    (taken,) = private.snapshot("users")
    assert {tuple(row) for row in rows_of(private, taken)} == {("id", "email", "city")}
    assert "is withheld: users: name" in caplog.text
    assert leaks(private) == []


def test_a_column_without_a_rule_stops_a_snapshot_where_it_must_have_one(private: Production) -> None:
    private.options["policy"] = policy_of({"users": USERS}, unnamed="halt")
    private.spool_dir.joinpath("policy.json").unlink()
    with pytest.raises(PrivacyError, match="users: no rule names notes"):
        private.snapshot("users")


def test_no_snapshot_is_taken_under_another_policy_than_the_archivers(private: Production) -> None:
    """A snapshot process that reads a new configuration while the archiver works under the old one."""
    for other in (
        policy_of({"users": USERS | {"name": "keep"}}),
        policy_of({"users": USERS}, key=MaskKey(b"q" * 32)),
        None,
    ):
        private.options["policy"] = other
        with pytest.raises(SourceChangedError, match="not the one that the archiver has last worked under"):
            private.snapshot("users")
        assert private.open_archive().discover_snapshots() == []
    private.archive()
    private.snapshot("users")


def test_a_new_epoch_takes_the_policy_up_at_once(private: Production) -> None:
    private.options["policy"] = policy_of({"users": USERS | {"name": "null"}})
    private.drop_slot()
    private.create_slot()
    private.archiver().begin_epoch()
    (taken,) = private.snapshot("users")
    assert {row["name"] for row in rows_of(private, taken)} == {None}


def test_a_policy_that_comes_while_a_snapshot_is_taken_ends_it(
    private: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ConsistentSource.blocks

    def meanwhile(self: ConsistentSource, table: Any) -> Iterator[bytes]:
        yield from original(self, table)
        other = Production(**vars(private) | {"options": {"policy": policy_of({"users": {"id": "keep"}})}})
        other.archive()

    monkeypatch.setattr(ConsistentSource, "blocks", meanwhile)
    with pytest.raises(SourceChangedError, match="not the one that the archiver has last worked under"):
        private.snapshot("users")
    assert private.open_archive().discover_snapshots() == []


def test_columns_that_change_places_when_the_snapshot_begins_are_not_copied(
    private: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the point and the lock, the text under a name that may travel is another one."""
    original = ConsistentSource._lock

    def too_late(self: ConsistentSource, tables: Any) -> None:
        private.execute(
            "ALTER TABLE users RENAME city TO town",
            "ALTER TABLE users RENAME notes TO city",
        )
        monkeypatch.setattr(ConsistentSource, "_lock", original)
        original(self, tables)

    monkeypatch.setattr(ConsistentSource, "_lock", too_late)
    with pytest.raises(SnapshotError, match="the table was altered when the snapshot began"):
        private.snapshot("users")
    assert leaks(private) == []


def test_the_files_of_before_a_policy_are_known(make_production: Callable[..., Production]) -> None:
    production = make_production()
    production.execute(TABLE)
    production.publish("users")
    production.archive()
    production.execute("INSERT INTO users VALUES (1, 'secret')")
    production.archive()
    last = production.open_archive().discover(None)[-1].name
    production.options["policy"] = policy_of({"users": USERS})
    production.archive(clock=lambda: dt.datetime(2040, 1, 2, tzinfo=dt.UTC))
    note = load_policy_note(production.spool_dir)
    assert note is not None
    assert (note.last_before, note.since) == (last, "2040-01-02T00:00:00Z")
    assert note.id == production.settings.policy.id  # type: ignore[union-attr]
    assert [Path(name).name for name in leaks(production)] == [last]
