"""Any history, in any files, with snapshots anywhere: each table gets the source's rows exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.framed import Record, Writer, file_name
from tests.world import World, delete, insert, update

MANAGE = Path(__file__).parents[2] / "manage.py"
TABLES = ("bag", "keyed", "other")  # without a key, which shows what is applied twice; and two with one

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Plan:
    """What the source did, how it lies in files, and what the local side does meanwhile.

    ``cuts``: transactions in each file. ``snapshots``: (table, after which transaction, files behind it,
    whether its LSN is that transaction's own, or one between it and the next).
    ``actions``: what happens after each file.
    """

    transactions: list[list[tuple[str, str, int]]]
    cuts: list[int]
    snapshots: list[tuple[str, int, int, bool]]
    actions: list[str]
    batch_records: int


_steps = st.tuples(
    st.sampled_from(TABLES), st.sampled_from(["insert", "insert", "update", "delete"]), st.integers(0, 4)
)
plans = st.builds(
    Plan,
    transactions=st.lists(st.lists(_steps, min_size=1, max_size=4), min_size=3, max_size=12),
    cuts=st.lists(st.integers(0, 4), max_size=6),
    snapshots=st.lists(
        st.tuples(st.sampled_from(TABLES), st.integers(0, 8), st.integers(0, 3), st.booleans()), max_size=6
    ),
    actions=st.lists(st.sampled_from(["sync", "nothing", "resync bag", "resync keyed", "clear"]), max_size=7),
    batch_records=st.sampled_from([1, 3, 1000]),
)


class Source:
    """The source's tables, played through *transactions*: the records of each, and the rows after each."""

    def __init__(self, transactions: list[list[tuple[str, str, int]]]) -> None:
        self.tables: dict[str, Rows] = {table: [] for table in TABLES}
        self.history = [self._copy()]
        self.records: list[tuple[int, list[Record]]] = []
        for number, steps in enumerate(transactions):
            records = [self._play(*step, number) for step in steps]
            self.records.append((10 * number + 10, [record for record in records if record]))
            self.history.append(self._copy())

    def _copy(self) -> dict[str, Rows]:
        return {table: list(rows) for table, rows in self.tables.items()}

    def _play(self, table: str, step: str, key: int, number: int) -> Record | None:
        rows, row = self.tables[table], (key, number)
        old = next((row for row in rows if row[0] == key), None)
        if step == "insert" and (old is None or table == "bag"):
            rows.append(row)
            return insert(table, id=key, v=number)
        if step == "update" and old is not None:
            rows[rows.index(old)] = row
            return update(table, {"id": old[0], "v": old[1]}, id=key, v=number)
        if step == "delete" and old is not None:
            rows.remove(old)
            return delete(table, id=old[0], v=old[1])
        return None


class Producer:
    """Writes *plan*'s files one by one, and each snapshot as soon as the files may have come so far."""

    def __init__(self, writer: Writer, plan: Plan) -> None:
        self._writer, self._plan = writer, plan
        self.source = Source(plan.transactions)
        self._rest = list(self.source.records)
        self._cuts = [*plan.cuts, len(self._rest)]
        self._snapshots = 0

    def files(self) -> int:
        return len(self._cuts)

    def write(self, number: int) -> None:
        count = self._cuts[number - 1]
        chunk, self._rest = self._rest[:count], self._rest[count:]
        self._writer.changes(number, chunk)
        written = len(self.source.records) - len(self._rest)
        for table, moment, behind, is_exact in self._plan.snapshots[self._snapshots :]:
            if moment < written and number < len(self._cuts):
                break  # This one is of an earlier moment than the files behind it may be.
            self._take(number, table, min(moment, len(self.source.records)), behind, is_exact)

    def _take(self, number: int, table: str, moment: int, behind: int, is_exact: bool) -> None:
        """All files up to ``prev`` must hold only what the snapshot contains."""
        self._snapshots += 1
        done, prev = 0, 0
        for file, count in enumerate(self._cuts[: max(number - behind, 0)], start=1):
            done = min(done + count, len(self.source.records))
            if done > moment:
                break
            prev = file
        rows = [{"id": key, "v": v} for key, v in self.source.history[moment][table]]
        lsn = 10 * moment + (0 if is_exact else 9)
        self._writer.snapshot(self._snapshots, table, lsn, rows, prev=prev or None)


def test_any_history_from_any_snapshots_gives_the_sources_rows_once(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.execute(
        "CREATE TABLE bag (id int, v int)",
        "CREATE TABLE keyed (id int PRIMARY KEY, v int)",
        "CREATE TABLE other (id int PRIMARY KEY, v int)",
    )
    world.whitelist(*TABLES)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(plan=plans)
    def check(plan: Plan) -> None:
        for path in world.archive.rglob("*.json*"):
            path.unlink()
        world.options["batch_records"] = plan.batch_records
        producer = Producer(Writer(world.archive), plan)
        with world.service() as service:
            service.clear()
            for number in range(1, producer.files() + 1):
                producer.write(number)
                action, _, table = dict(enumerate(plan.actions, start=1)).get(number, "sync").partition(" ")
                if action == "resync":
                    service.resync(table)
                elif action == "clear":
                    service.clear()
                elif action == "sync":
                    assert service.run_once().errors == ()
            assert service.run_once().errors == ()
        for table in TABLES:
            expected = Counter(producer.source.tables[table])
            assert Counter(world.rows(f"SELECT id, v FROM {table}")) == expected, table
        assert world.rows("SELECT DISTINCT file, state FROM data_sync_checkpoints") == [
            (file_name(producer.files()), "active")
        ]
        assert world.value("SELECT sum(records_missing) FROM data_sync_checkpoints") == 0

    check()


def test_a_kill_during_the_load_leaves_the_old_rows_and_the_next_start_loads_all(world: World) -> None:
    world.execute("CREATE TABLE bag (v int)", "INSERT INTO bag VALUES (-1)")
    world.whitelist("bag")
    world.options["batch_records"] = 500
    rows = 60_000
    source = Writer(world.archive)
    source.snapshot(1, "bag", 5, ({"v": n} for n in range(rows)), prev=None)
    source.changes(1, [(5, [insert("bag", v=5)]), (6, [insert("bag", v=rows)])])
    config = world.state_dir / "syncdata.toml"
    config.write_text(world.toml)
    config.chmod(0o600)
    command = [sys.executable, str(MANAGE), "syncdata_start", "--once", "-v", "0"]
    environment = {**os.environ, "DATA_SYNC_CONFIG": str(config)}
    for _ in range(3):
        process = subprocess.Popen(command, env=environment)
        if not _wait_for_the_shadow(world, process):
            pytest.fail("the load was never seen at work")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert world.rows("SELECT v FROM bag") == [(-1,)]
        assert world.checkpoint("bag")[:2] == ("", 0)
        _wait_for_the_lock(world)
    subprocess.run(command, env=environment, check=True)
    assert world.rows("SELECT count(*), count(DISTINCT v), min(v), max(v) FROM bag") == [
        (rows + 1, rows + 1, 0, rows)
    ]


def _wait_for_the_shadow(world: World, process: subprocess.Popen[bytes]) -> bool:
    with world.connect() as connection:
        while process.poll() is None:
            row = connection.execute(
                "SELECT count(*) FROM pg_class"
                " WHERE relname = 'syncdata_rebuild' AND pg_relation_size(oid) > 0"
            ).fetchone()
            if row and row[0]:
                return True
            time.sleep(0.005)
    return False


def _wait_for_the_lock(world: World) -> None:
    """The server needs a moment to notice that the killed session is gone."""
    until = time.monotonic() + 20
    while (
        world.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") and time.monotonic() < until
    ):
        time.sleep(0.02)
