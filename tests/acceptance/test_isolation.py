"""Isolation seen from outside: a reader of the local database sees only states that production showed.

Every transaction of production numbers the state that it leaves, and keeps a digest of each table as of
there. The reader takes the number and the digests in one repeatable-read transaction, again and again.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import psycopg
import pytest

from syncdata.apply import cycle
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group, group_by_position
from syncdata.apply.postgres.at_once import AtOnceWriter
from tests.integration.test_requests import ask, is_over, outcome
from tests.production import Production
from tests.world import World

COUNTERS = tuple(f"counter_{n}" for n in range(8))
TABLES = ("account", "orders", "order_line", "parent", "child", "version", *COUNTERS)
ACCOUNTS, BALANCE = 12, 100
PATIENCE_S = 60.0

SCHEMA = [
    "CREATE TABLE account (id int PRIMARY KEY, balance int)",
    "CREATE TABLE orders (id int PRIMARY KEY, total int)",
    "CREATE TABLE order_line (id int PRIMARY KEY, order_id int REFERENCES orders, amount int)",
    "CREATE TABLE parent (id int PRIMARY KEY)",
    "CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL)",
    "CREATE TABLE version (id int PRIMARY KEY, n int)",
    *(f"CREATE TABLE {name} (id int PRIMARY KEY, n int)" for name in COUNTERS),
]
ROWS = [
    f"INSERT INTO account SELECT n, {BALANCE} FROM generate_series(1, {ACCOUNTS}) n",
    "INSERT INTO version VALUES (1, 0)",
    *(f"INSERT INTO {name} VALUES (1, 0)" for name in COUNTERS),
]

PROMISES = {
    "the balances have one sum": f"(SELECT sum(balance) FROM account) = {ACCOUNTS * BALANCE}",
    "an order's total is that of its lines": "NOT EXISTS (SELECT FROM orders o WHERE total IS DISTINCT FROM"
    " (SELECT sum(amount) FROM order_line WHERE order_id = o.id))",
    "a line has its order": "NOT EXISTS (SELECT FROM order_line l LEFT JOIN orders o ON o.id = order_id"
    " WHERE o.id IS NULL)",
    "a parent comes and goes with its child": "NOT EXISTS (SELECT FROM parent p FULL JOIN child c"
    " ON c.parent = p.id WHERE p.id IS NULL OR c.id IS NULL)",
    "all counters are equal": "(SELECT count(DISTINCT n) FROM ("
    + " UNION ALL ".join(f"SELECT n FROM {name}" for name in COUNTERS)
    + ") counter) = 1",
}
_DIGESTS = "SELECT (SELECT n FROM version), " + ", ".join(
    f"(SELECT coalesce(md5(string_agg(row::text, '|' ORDER BY row::text)), '') FROM {name} row)"
    for name in TABLES
)
Digests = dict[str, str]


@dataclass
class History:
    """The states that production has shown, by their numbers."""

    production: Production
    states: dict[int, Digests] = field(default_factory=dict)

    def write(self, seed: str, *, count: int | None = None, stop: threading.Event | None = None) -> None:
        """Run *count* random transactions, or until *stop* is set. Several threads may do so."""
        chance = Random(seed)
        with self.production.database.connect() as connection:
            for _ in itertools.count() if count is None else range(count):
                if stop is not None and stop.is_set():
                    return
                self._transact(connection, chance)

    def _transact(self, connection: psycopg.Connection[Any], chance: Random) -> None:
        connection.execute("SELECT")  # begins it: the blocks below are savepoints
        for step in chance.sample(STEPS, chance.randint(1, 3)):
            try:
                with connection.transaction():
                    for statement in step(chance):
                        connection.execute(statement)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.IntegrityError):
                continue  # another writer was first
        # Whoever has numbered its state holds the row until it commits: what it sees then is that state.
        connection.execute("UPDATE version SET n = n + 1")
        number, digests = read_state(connection)
        if chance.random() < 0.1:
            connection.rollback()
            return
        self.states[number] = digests
        connection.commit()

    def showed(self, table: str) -> set[str]:
        return {digests[table] for digests in [*self.states.values()]}


def read_state(connection: psycopg.Connection[Any]) -> tuple[int, Digests]:
    row = connection.execute(_DIGESTS).fetchone()
    assert row is not None
    return row[0], dict(zip(TABLES, row[1:], strict=True))


def transfer(chance: Random) -> list[str]:
    one, other = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    amount = chance.randint(-50, 50)
    return [
        f"UPDATE account SET balance = balance - {amount} WHERE id = {one}",
        f"UPDATE account SET balance = balance + {amount} WHERE id = {other}",
    ]


def order(chance: Random) -> list[str]:
    number, amounts = chance.randint(1, 30), [chance.randint(1, 9) for _ in range(chance.randint(1, 4))]
    lines = ", ".join(f"({number * 10 + n}, {number}, {amount})" for n, amount in enumerate(amounts))
    return [
        f"DELETE FROM order_line WHERE order_id = {number}",
        f"INSERT INTO orders VALUES ({number}, {sum(amounts)}) ON CONFLICT (id) DO UPDATE SET total ="
        " excluded.total",
        f"INSERT INTO order_line VALUES {lines}",
    ]


def family(chance: Random) -> list[str]:
    key = chance.randint(1, 20)
    if chance.random() < 0.5:
        return [f"DELETE FROM child WHERE parent = {key}", f"DELETE FROM parent WHERE id = {key}"]
    return [f"INSERT INTO parent VALUES ({key})", f"INSERT INTO child VALUES ({key}, {key})"]


def count_all(chance: Random) -> list[str]:
    return [f"UPDATE {name} SET n = n + 1" for name in COUNTERS]


STEPS = (transfer, order, family, count_all)


class Reader:
    """Looks in the block, in a thread. ``complaints``: what production never showed; ``seen``: the numbers of
    the states that were looked at. *resynced*: tables that may stand apart from the others for a moment."""

    def __init__(self, world: World, history: History, *, resynced: tuple[str, ...] = ()) -> None:
        self._world, self._history, self._resynced = world, history, resynced
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.complaints: list[str] = []
        self.seen: Counter[int] = Counter()
        self.failure: Exception | None = None

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            with self._world.database.connect() as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                while not self._stop.is_set():
                    self.complaints += self._look(connection)
                    connection.rollback()
        except Exception as error:
            self.failure = error

    def _look(self, connection: psycopg.Connection[Any]) -> Iterator[str]:
        """Everything is read in one snapshot, statement by statement, so batches commit in between."""
        places = {
            name: place
            for name, *place in connection.execute(
                "SELECT table_name, file, record_number, commit_lsn FROM data_sync_checkpoints"
            )
        }
        number, digests = read_state(connection)
        apart = {name for name in TABLES if places[name] != places["version"]}
        if not number and len(apart) == 0:
            return  # nothing has arrived yet
        self.seen[number] += 1
        for name in sorted(apart - {*self._resynced}):
            yield f"{name} stands apart"
        for name in {*TABLES} - (apart & {*self._resynced}):
            if digests[name] != self._history.states[number][name]:
                yield f"{name} is not as production had it then"
        for name in apart & {*self._resynced}:
            if digests[name] not in self._history.showed(name):
                yield f"{name} has rows that production never had together"
        if not apart:
            for promise, query in PROMISES.items():
                if connection.execute(f"SELECT {query}").fetchone() != (True,):
                    yield f"broken: {promise}"

    def wait_for(self, states: int) -> None:
        until(lambda: self.failure or len(self.seen) >= states)

    def require_nothing(self) -> None:
        assert (self.failure, self.complaints[:5]) == (None, [])


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@dataclass
class Both:
    """Both sides, with all tables loaded and in step, and whether the ways of a batch were gone."""

    production: Production
    world: World
    history: History
    ways: Counter[str] = field(default_factory=Counter)
    written: int = 0

    def write_files(self) -> None:
        """Archive one file of many transactions, and behind it many small ones."""
        for rotate_bytes in (1 << 20, 1_000):
            self.production.options["rotate_bytes"] = rotate_bytes
            self.written += 1
            self.history.write(f"files {self.written}", count=40)
            self.production.archive()

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """In the block several writers are at work, and an archiver and a daemon."""
        stop = threading.Event()
        threads = [
            *(
                threading.Thread(target=self.history.write, args=(f"{n}",), kwargs={"stop": stop})
                for n in range(2)
            ),
            threading.Thread(target=self.production.archiver().run_loop, args=(stop,)),
        ]
        with self.world.service() as service:
            threads.append(threading.Thread(target=service.run_loop, kwargs={"interval_s": 1, "stop": stop}))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()


@pytest.fixture
def both(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
) -> Both:
    production = make_production(rotate_s=0.1)
    production.execute(*SCHEMA, *ROWS)
    production.publish(*TABLES)
    production.archive()
    production.snapshot(*TABLES)
    production.execute("UPDATE version SET n = n")
    production.archive()
    world = make_world(archive_dir=str(production.archive_dir), batch_records=60)
    world.execute(*SCHEMA)
    world.whitelist(*TABLES)
    world.sync()
    history = History(production)
    with production.connect() as connection:
        number, digests = read_state(connection)
    history.states[number] = digests
    made = Both(production, world, history)
    _count_calls(monkeypatch, Cycle, "_apply_together", made.ways)
    _count_calls(monkeypatch, AtOnceWriter, "write", made.ways)
    return made


def _count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, calls: Counter[str]) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def test_a_reader_sees_only_what_production_showed_while_files_are_caught_up_with(both: Both) -> None:
    with Reader(both.world, both.history) as reader:
        deadline = time.monotonic() + PATIENCE_S
        while len(reader.seen) < 20:
            assert time.monotonic() < deadline, f"too little was seen: {reader.failure or reader.seen}"
            both.write_files()
            assert both.world.sync().errors == ()
    reader.require_nothing()
    assert both.ways["_apply_together"] and both.ways["write"]


def test_a_reader_sees_only_what_production_showed_while_tables_are_resynced(both: Both) -> None:
    resynced = ("account", "order_line", "counter_3")
    with both.traffic(), Reader(both.world, both.history, resynced=resynced) as reader:
        for table in resynced:
            request = ask(both.world, "resync", table)
            until(partial(is_over, both.world, request))
            assert outcome(both.world, request)[0] == "done"
            reader.wait_for(len(reader.seen) + 3)
    reader.require_nothing()
    assert len(reader.seen) > 12


def test_a_reader_finds_tables_that_are_committed_apart(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader would see it: each table's rows, with its checkpoint, in a transaction of their own."""

    def each_by_itself(positions: Any) -> list[Group]:
        groups = group_by_position(positions)
        return [
            Group(group.position, {table: mark})
            for group in groups
            for table, mark in group.watermarks.items()
        ]

    monkeypatch.setattr(cycle, "group_by_position", each_by_itself)
    with Reader(both.world, both.history) as reader:
        deadline = time.monotonic() + PATIENCE_S
        while not {"orders stands apart", "orders is not as production had it then"} <= {*reader.complaints}:
            assert time.monotonic() < deadline, f"it was not found: {reader.failure or reader.seen}"
            both.write_files()
            both.world.sync()


def test_a_reader_finds_a_row_that_is_changed_here_for_a_moment(both: Both) -> None:
    with Reader(both.world, both.history) as reader:
        both.write_files()
        both.world.sync()
        both.world.execute("UPDATE account SET balance = balance - 1 WHERE id = 1")
        until(lambda: "broken: the balances have one sum" in reader.complaints)
    assert "account is not as production had it then" in reader.complaints
