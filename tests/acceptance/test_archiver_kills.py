"""SIGKILL of the archiver at every step, and crashes of the source: each transaction is archived once.

What really happened is read from a second slot, which nobody has touched until the end, and from the
source's tables.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest

from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.chain import load_chain
from syncdata.capture.pgoutput import Begin, Decoder, RowChange, Truncate
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import read_slot
from syncdata.changes.position import format_lsn
from syncdata.changes.record import ChangeRecord
from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests.archiver_runner import STEPS
from tests.chains import archived_records, named_catalogs

KILLS = 100
CRASHES = 4
WRITERS = 4
PUBLICATION, SLOT, TRUTH = "syncdata", "syncdata_slot", "truth"
TABLES = """
CREATE TABLE journal (number int PRIMARY KEY, writer int);
CREATE TABLE account (id int PRIMARY KEY, balance int, note text);
CREATE TABLE scratch (id int PRIMARY KEY);
CREATE TABLE private (id int);
"""


@pytest.fixture(scope="module")
def source() -> Iterator[PostgresServer]:
    server = PostgresServer(binaries=embedded_binaries())
    server.start()
    try:
        with server.connect(autocommit=True) as connection:
            connection.execute(TABLES)
            connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE journal, account, scratch")
            for slot in (SLOT, TRUTH):
                connection.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        yield server
    finally:
        server.stop()


class Traffic:
    """Writers whose transactions interleave, roll back, save and truncate; each journals its number."""

    def __init__(self, server: PostgresServer, seed: int) -> None:
        self._server = server
        self._numbers = count(1)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(writer, random.Random(seed + writer)))
            for writer in range(WRITERS)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, writer: int, chance: random.Random) -> None:
        while not self._stop.is_set():
            try:
                with self._server.connect(autocommit=True) as connection:
                    while not self._stop.is_set():
                        self._transaction(connection, writer, chance)
            except psycopg.OperationalError:  # a crash of the server, or a deadlock with a TRUNCATE
                self._stop.wait(0.05)

    def _transaction(self, connection: psycopg.Connection[Any], writer: int, chance: random.Random) -> None:
        with connection.transaction(force_rollback=chance.random() < 0.15):
            connection.execute("INSERT INTO journal VALUES (%s, %s)", (next(self._numbers), writer))
            for _ in range(chance.randint(0, 4)):
                self._stop.wait(chance.uniform(0, 0.01))
                with connection.transaction(force_rollback=chance.random() < 0.2):  # a savepoint
                    self._change(connection, writer, chance)

    def _change(self, connection: psycopg.Connection[Any], writer: int, chance: random.Random) -> None:
        row = chance.randint(1, 30) * WRITERS + writer  # of this writer alone: no two wait for each other
        match chance.randint(0, 9):
            case 0:
                connection.execute("DELETE FROM account WHERE id = %s", (row,))
            case 1:
                connection.execute("INSERT INTO private VALUES (%s)", (row,))
            case 2 if writer == 0:
                connection.execute("TRUNCATE scratch")
            case 3 if writer == 0:
                column = f"c{chance.randint(1, 3)}"
                connection.execute(f"ALTER TABLE scratch DROP IF EXISTS {column}, ADD {column} int")
            case 2 | 3:
                connection.execute("INSERT INTO scratch VALUES (%s) ON CONFLICT DO NOTHING", (row,))
            case _:
                upsert = "INSERT INTO account VALUES (%s, 1, %s) ON CONFLICT (id) DO UPDATE SET balance = %s"
                values = (row, "né " * chance.randint(0, 60), chance.randint(0, 99))
                connection.execute(upsert, values)


class Runner:
    """The process that lets archivers die."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._job = {
            "params": server.params(),
            "slot_name": SLOT,
            "publication": PUBLICATION,
            "spool_dir": str(folder / "spool"),
            "archive_dir": str(folder / "archive"),
        }
        command = [sys.executable, "-m", "tests.archiver_runner"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )

    def start(self, step: str, passage: int) -> None:
        self._to.write(json.dumps(self._job | {"step": step, "passage": passage}) + "\n")
        self._to.flush()

    def outcome(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._to.close()
        self._process.wait(timeout=40)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def _to(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path


@pytest.fixture
def runner(source: PostgresServer, folder: Path) -> Iterator[Runner]:
    runner = Runner(source, folder)
    yield runner
    runner.close()


def test_a_hundred_kills_and_crashes_of_the_source_lose_nothing_and_repeat_nothing(
    source: PostgresServer, runner: Runner, folder: Path
) -> None:
    chance = random.Random(20261124)
    steps = [*STEPS] * (KILLS // len(STEPS) + 1)
    chance.shuffle(steps)
    crash_before = set(range(KILLS // (CRASHES + 1), KILLS, KILLS // (CRASHES + 1)))
    went_back = 0
    with Traffic(source, seed=7):
        for number, step in enumerate(steps[:KILLS]):
            if number in crash_before:
                went_back += _crash_under_the_archiver(source, runner, folder)
            often = step.startswith(("a message", "before a line", "a line"))
            seldom = "catalog is kept" in step
            runner.start(step, chance.randint(1, 150 if often else 2 if seldom else 6))
            assert (outcome := runner.outcome()) == "killed", f"{step}: {outcome}"
    assert went_back, "no crash made the source forget what was confirmed"
    _archive_the_rest(source, folder)
    expected = _what_happened(source)
    found = archived_records(folder / "archive")
    assert [_told(record) for record in found] == expected
    assert len({commit for commit, *_ in expected}) > 200
    assert {op for _, op, *_ in expected} == {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}
    assert _replayed(found) == {
        table: _rows(source, f"SELECT * FROM {table}") for table in ("journal", "account", "scratch")
    }


def _crash_under_the_archiver(source: PostgresServer, runner: Runner, folder: Path) -> bool:
    """Crash the source under a running archiver, which goes on and then dies; tell whether the slot went
    back behind what was confirmed."""
    runner.start("the slot is confirmed", 60)
    time.sleep(0.4)
    source.crash()
    chain = load_chain(folder / "spool")
    source._launch()
    with source.connect(autocommit=True) as connection:
        slot = read_slot(connection, SLOT)
    assert slot is not None and slot.confirmed_lsn is not None and chain is not None
    assert runner.outcome() == "killed"
    return slot.confirmed_lsn < chain.confirmed


def _archive_the_rest(source: PostgresServer, folder: Path) -> None:
    settings = CaptureSettings(
        params=source.params(), slot_name=SLOT, publication=PUBLICATION, spool_dir=folder / "spool"
    )
    archive = LocalSettings(directory=folder / "archive")
    Archiver(settings, lambda: open_archive(archive)).run_once(threading.Event())
    # What the traffic's migrations owe is for the daemon to copy; nothing else stays.
    left = {str(path.relative_to(folder)) for path in (folder / "spool").rglob("*")}
    kept = {"catalog", "catalog.json", "chain.json", "policy.json"}
    assert left - {"spool/owed.json"} == {f"spool/{name}" for name in kept}
    assert not [path.name for path in (folder / "archive").iterdir() if path.name.startswith(".")]
    # Also after a death between a catalog and the file that names it.
    named = named_catalogs(folder / "archive")
    assert len(named) > 1
    assert named <= {path.stem for path in (folder / "archive" / "catalog").iterdir()}


def _what_happened(source: PostgresServer) -> list[tuple[Any, ...]]:
    """Return the source's changes in commit order, from the slot that nobody has read."""
    query = (
        f"SELECT lsn, data FROM pg_logical_slot_peek_binary_changes('{TRUTH}', NULL, NULL,"
        f" 'proto_version', '1', 'publication_names', '{PUBLICATION}')"
    )
    with source.connect(autocommit=True) as connection:
        messages = connection.execute(query).fetchall()
    happened: list[tuple[Any, ...]] = []
    decoder, commit = Decoder(), ""
    for lsn, content in messages:
        match decoder.decode(bytes(content)):
            case Begin(commit_lsn=commit_lsn):
                commit = format_lsn(commit_lsn)
            case RowChange(relation=relation, op=op, data=data, old_keys=old_keys):
                happened.append((commit, op, relation.name, lsn, data, old_keys))
            case Truncate(relations=relations):
                happened += [(commit, "TRUNCATE", relation.name, lsn, None, None) for relation in relations]
    return happened


def _told(record: ChangeRecord) -> tuple[Any, ...]:
    return (
        record.commit_lsn,
        record.op,
        record.table,
        record.lsn,
        record.data,
        record.old_keys,
    )


def _replayed(records: list[ChangeRecord]) -> dict[str, list[tuple[Any, ...]]]:
    """Play the records on empty tables; return their rows in the key's order."""
    tables: dict[str, dict[Any, tuple[Any, ...]]] = {"journal": {}, "account": {}, "scratch": {}}
    for record in records:
        rows = tables[record.table]
        if record.op == "TRUNCATE":
            rows.clear()
        elif record.data is None:
            assert record.old_keys is not None
            del rows[next(iter(record.old_keys.values()))]
        else:
            key, *_ = values = tuple(record.data.values())
            assert (key in rows) == (record.op == "UPDATE")
            rows[key] = values
    return {name: sorted(rows.values(), key=lambda row: int(row[0])) for name, rows in tables.items()}


def _rows(source: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    with source.connect(autocommit=True) as connection:
        rows = connection.execute(query).fetchall()
    return sorted(
        (tuple(None if value is None else str(value) for value in row) for row in rows),
        key=lambda row: int(row[0] or 0),
    )
