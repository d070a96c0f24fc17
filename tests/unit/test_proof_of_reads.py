"""The law of reads: what is proved is so, in whatever order transactions begin, commit and show."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncdata.capture.proof_of_reads import Snapshot, TouchedTables, Verdict

TABLES = (1, 2)
SETS = [frozenset[int](), frozenset({1}), frozenset({2}), frozenset(TABLES)]


class Server:
    """A model of the server: a commit stands in the WAL first, and shows later, perhaps much later.

    A snapshot has as ``xmax`` the xid behind the highest one that has ended, as PostgreSQL does it.
    """

    def __init__(self, first_xid: int) -> None:
        self.next_xid = first_xid
        self.highest_ended = first_xid - 1
        self.running: list[int] = []
        self.waiting: list[int] = []  # in the WAL, and not shown
        self.tables: dict[int, frozenset[int]] = {}
        self.shown: set[int] = set()
        self.wal: list[int | tuple[str, Snapshot, frozenset[int], int]] = []

    def begin(self) -> int:
        self.next_xid += 1
        self.running.append(self.next_xid - 1)
        return self.next_xid - 1

    def commit(self, number: int, tables: frozenset[int]) -> None:
        xid = self.running.pop(number)
        self.tables[xid] = tables
        self.wal.append(xid)
        self.waiting.append(xid)

    def show(self, number: int) -> None:
        xid = self.waiting.pop(number)
        self.shown.add(xid)
        self.highest_ended = max(self.highest_ended, xid)

    def abort(self, number: int) -> None:
        self.highest_ended = max(self.highest_ended, self.running.pop(number))

    def give_xid(self) -> int:
        self.next_xid += 1
        self.highest_ended = max(self.highest_ended, self.next_xid - 1)
        return self.next_xid - 1

    def snapshot(self) -> Snapshot:
        xmax = self.highest_ended + 1
        running = frozenset(xid for xid in (*self.running, *self.waiting) if xid < xmax)
        return Snapshot(min(running, default=xmax), xmax, running)

    def rows(self, table: int) -> frozenset[int]:
        """A row for each transaction that has changed the table, of those that show."""
        return frozenset(xid for xid in self.shown if table in self.tables[xid])


class Capture:
    """The stream, read up to a place, and a verifier that keeps to what the session answers."""

    def __init__(self, server: Server, most: int) -> None:
        self._server = server
        self._touched = TouchedTables(most=most)
        self._rows: dict[int, set[int]] = {table: set() for table in TABLES}
        self._read = 0
        self._first = len(server.wal)  # this session's stream begins here, the rows do not
        self._generation, self._since = 0, 0
        self._is_asking = False
        self.proved = 0

    def ask(self, table: int) -> None:
        if not self._is_asking:
            self._is_asking = True
            server = self._server
            asked = (server.snapshot(), server.rows(table), table)
            server.wal.append(("mark", *asked))

    def read_on(self, count: int) -> None:
        for entry in self._server.wal[self._read : self._read + count]:
            self._read += 1
            if isinstance(entry, int):
                tables = self._server.tables[entry]
                for table in tables:
                    self._rows[table].add(entry)
                if self._read > self._first:
                    self._touched.note(entry % (1 << 32), tables)
                continue
            _, snapshot, rows, table = entry
            self._is_asking = False
            verdict = self._touched.judge(snapshot, table, generation=self._generation, since=self._since)
            self._generation = self._touched.generation
            if verdict is Verdict.ANEW:
                self._since = self._server.give_xid()
            if verdict is Verdict.PROVED:
                self.proved += 1
                assert rows == self._rows[table]


STEPS = ["begin", "commit", "show", "abort", "ask", "read", "read"]
WEIGHTS = [20, 15, 15, 2, 20, 20, 20]


def go_on(server: Server, capture: Capture | None, chance: Random) -> None:
    """Let one thing happen."""
    (step,) = chance.choices(STEPS, WEIGHTS)
    match step:
        case "begin" if len(server.running) < 4:
            server.begin()
        case "commit" if server.running:
            server.commit(chance.randrange(len(server.running)), chance.choice(SETS))
        case "show" if server.waiting:
            server.show(chance.randrange(len(server.waiting)))
        case "abort" if server.running:
            server.abort(chance.randrange(len(server.running)))
        case "ask" if capture:
            capture.ask(chance.choice(TABLES))
        case "read" if capture:
            capture.read_on(chance.randrange(1, 6))


@settings(max_examples=150)
@given(chance=st.integers(0, 1 << 32).map(Random))
def test_a_check_that_is_proved_has_the_rows_of_its_place(chance: Random) -> None:
    server = Server(chance.choice([3, (7 << 32) - 20]))
    for _ in range(chance.randrange(20)):
        go_on(server, None, chance)
    capture = Capture(server, chance.choice([3, 50]))
    for _ in range(150):
        go_on(server, capture, chance)
    # When all has ended and shows, a few marks do.
    while server.running:
        server.abort(0)
    while server.waiting:
        server.show(0)
    proved = capture.proved
    for _ in range(3):
        capture.ask(1)
        capture.read_on(1_000)
    assert capture.proved > proved


@pytest.mark.parametrize("era", [1 << 32, 3 << 32])
@pytest.mark.parametrize(
    ("xid", "is_shown"),
    [(99, True), (100, False), (101, True), (103, False), (104, True), (105, False), ((1 << 32) - 5, True)],
)
def test_a_snapshot_shows_what_has_ended(xid: int, is_shown: bool, era: int) -> None:
    snapshot = Snapshot.parse(f"{era + 100}:{era + 105}:{era + 100},{era + 103}")
    assert snapshot.shows(xid) == is_shown
    assert Snapshot.parse("5:5:") == Snapshot(5, 5, frozenset())


def test_more_transactions_than_are_remembered_begin_all_anew() -> None:
    touched = TouchedTables(most=2)
    touched.begin()
    for xid in (10, 11, 12):
        touched.note(xid, {1})
    assert touched.generation == 2
    assert touched.judge(Snapshot(20, 20, frozenset()), 1, generation=1, since=5) is Verdict.ANEW


def test_nothing_is_remembered_until_somebody_asks() -> None:
    touched = TouchedTables()
    touched.note(10, {1})
    assert not touched.is_recording
    assert touched.judge(Snapshot(5, 5, frozenset()), 1, generation=0, since=0) is Verdict.ANEW
    assert touched.is_recording


@given(
    xid=st.integers(0, (1 << 32) - 1),
    xmax=st.integers(1 << 32, 1 << 34),
    running=st.sets(st.integers(1, 1 << 31), max_size=5),
    near=st.integers(-7, 7),
)
def test_what_is_forgotten_is_what_shows(xid: int, xmax: int, running: set[int], near: int) -> None:
    waiting = frozenset(xmax - distance for distance in running)
    snapshot = Snapshot(min(waiting, default=xmax), xmax, waiting)
    for one in (xid, *((other + near) % (1 << 32) for other in (xmax, *waiting))):
        touched = TouchedTables()
        touched.begin()
        touched.note(one, {1})
        touched.forget_shown(snapshot)
        verdict = touched.judge(snapshot, 1, generation=1, since=0)
        assert verdict is (Verdict.PROVED if snapshot.shows(one) else Verdict.TOUCHED)
