"""Exactly once, whatever happens beside or in the middle: lost answers, other processes, any batch size."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.errors import ApplyError
from tests.proxy import CommitLosingProxy
from tests.world import World, delete, insert, truncate, update

FILE = "changes_20260205_103000.json"


def moment(n: int) -> str:
    return f"2026-02-05T{n // 3600:02d}:{n // 60 % 60:02d}:{n % 60:02d}Z"


def wait_until_the_server_has_noticed(world: World) -> None:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    for _ in range(200):
        if world.value(query) == 0:
            return
        time.sleep(0.02)


def test_a_lost_answer_to_commit_applies_nothing_twice(make_world: Callable[..., World]) -> None:
    world = make_world(batch_records=10)
    world.execute("CREATE TABLE bag (v int)")
    world.whitelist("bag")
    world.write(FILE, [insert("bag", ts=moment(n), v=n) for n in range(100)])
    direct_port = connections.databases[world.alias]["PORT"]
    answers_lost = 0
    for number in range(3, 9):
        with CommitLosingProxy(world.database.server, lose_commit=number) as proxy:
            connections.databases[world.alias]["PORT"] = proxy.port
            try:
                world.sync()
            except ApplyError:
                answers_lost += proxy.is_cut.is_set()
            wait_until_the_server_has_noticed(world)
    connections.databases[world.alias]["PORT"] = direct_port
    world.sync()
    assert answers_lost >= 3
    assert world.rows("SELECT count(*), count(DISTINCT v) FROM bag") == [(100, 100)]
    assert world.rows("SELECT sum(records_added) FROM data_sync_logs WHERE action = 'sync'") == [(100,)]
    assert world.rows("SELECT records_added FROM data_sync_metrics WHERE period_type = 'MONTH'") == [(100,)]


def test_resyncs_and_clears_beside_a_running_daemon_leave_every_row_once(
    make_world: Callable[..., World],
) -> None:
    world = make_world(batch_records=5)
    world.execute("CREATE TABLE bag (v int)", "CREATE TABLE keyed (id int PRIMARY KEY, v int)")
    world.whitelist("bag", "keyed")
    stop = threading.Event()
    with world.service() as daemon, world.service() as operator:
        loop = threading.Thread(target=daemon.run_loop, kwargs={"interval_s": 1, "stop": stop})
        loop.start()
        for file_number in range(12):
            base = file_number * 40
            records = [insert("bag", ts=moment(n), v=n) for n in range(base, base + 40)]
            records += [insert("keyed", ts=moment(n), id=n % 50, v=n) for n in range(base, base + 40)]
            records.sort(key=lambda record: str(record["ts"]))
            world.write(f"changes_20260205_1030{file_number:02d}.json", records)
            if file_number % 3 == 1:
                operator.resync("bag")
            if file_number % 5 == 4:
                operator.clear()
            time.sleep(0.3)
        stop.set()
        loop.join(timeout=20)
        assert not loop.is_alive()
        operator.run_once()
    assert world.rows("SELECT count(*), count(DISTINCT v) FROM bag") == [(480, 480)]
    assert world.rows("SELECT count(*), min(v), max(v) FROM keyed") == [(50, 430, 479)]
    assert world.rows("SELECT DISTINCT state FROM data_sync_checkpoints") == [("active",)]


# What one session of the source can do to a table with a key and a unique column, as its records.
_steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "update", "partial", "move", "swap", "delete", "truncate"]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=25,
)


def _records(steps: list[tuple[str, int, int]]) -> tuple[list[dict[str, Any]], dict[int, tuple[str, str]]]:
    """Play *steps* on a model; return the records the source writes, and the rows it ends with."""
    rows: dict[int, tuple[str, str]] = {}
    records: list[dict[str, Any]] = []
    for number, (step, a, b) in enumerate(steps):
        ts, text = moment(number), f"t{number}"
        if step == "insert" and a not in rows:
            rows[a] = (f"u{number}", text)
            records.append(insert("t", ts=ts, id=a, u=rows[a][0], toast=text))
        elif step == "update" and a in rows:
            rows[a] = (rows[a][0], text)
            records.append(update("t", {"id": a}, ts=ts, id=a, u=rows[a][0], toast=text))
        elif step == "partial" and a in rows:
            rows[a] = (f"u{number}", rows[a][1])
            records.append(update("t", {"id": a}, ts=ts, id=a, u=rows[a][0]))
        elif step == "move" and a in rows and b not in rows:
            rows[b] = rows.pop(a)
            records.append(update("t", {"id": a}, ts=ts, id=b, u=rows[b][0]))
        elif step == "swap" and a in rows and b in rows and a != b:
            (ua, ta), (ub, tb) = rows[a], rows[b]
            rows[a], rows[b] = (ub, ta), (ua, tb)
            records.append(update("t", {"id": a}, ts=ts, id=a, u="swapping"))
            records.append(update("t", {"id": b}, ts=ts, id=b, u=ua))
            records.append(update("t", {"id": a}, ts=ts, id=a, u=ub))
        elif step == "delete" and a in rows:
            del rows[a]
            records.append(delete("t", ts=ts, id=a))
        elif step == "truncate" and a == b == 0:
            rows.clear()
            records.append(truncate("t", ts=ts))
    return records, rows


@pytest.mark.parametrize("is_ordinary_role", [False, True])
def test_any_history_gives_the_sources_rows_in_batches_of_any_size(
    make_world: Callable[..., World], is_ordinary_role: bool
) -> None:
    world = make_world()
    world.execute("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, toast text)")
    world.whitelist("t")
    if is_ordinary_role:
        world.use_ordinary_role()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps=_steps, batch_records=st.sampled_from([1, 3, 1000]))
    def check(steps: list[tuple[str, int, int]], batch_records: int) -> None:
        records, rows = _records(steps)
        world.options["batch_records"] = batch_records
        with world.service() as service:
            service.clear()
            world.write(FILE, records)
            assert service.run_once().errors == ()
        expected = sorted((key, u, toast) for key, (u, toast) in rows.items())
        assert world.rows("SELECT * FROM t ORDER BY id") == expected

    check()
