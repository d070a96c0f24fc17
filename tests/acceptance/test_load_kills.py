"""SIGKILL at every step of first loads and resyncs, several at once: each row is there once.

Tables without a key show what comes twice.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framed import Writer, file_name
from tests.integration.test_requests import ask, outcome
from tests.processes import Process
from tests.world import World, insert

NAMES = [f"t{n}" for n in range(6)]
ROWS = 50
SCRIPT = Path(__file__).parents[1] / "dying_daemon.py"

LOAD_STEPS = [
    "a table is made beside",
    "some of the rows are there",
    "before the indexes",
    "the snapshot of a new table is loaded",
    "before the exchange",
    "the rows are exchanged",
    "before the exchange commits",
    "the exchange is committed",
]
RESYNC_STEPS = [
    *(step.replace("a new table", "an old table") for step in LOAD_STEPS),
    "before the request is done",
    "the request is done",
]


@pytest.fixture
def bags(make_world: Callable[..., World]) -> World:
    """Tables with a snapshot each, and two records behind it."""
    world = make_world(jobs=4, batch_records=80)
    world.execute(*(f"CREATE TABLE {name} (v int)" for name in NAMES), "CREATE INDEX ON t0 (v)")
    world.whitelist(*NAMES)
    source = Writer(world.archive)
    for name in NAMES:
        source.snapshot(1, name, 5, [{"v": v} for v in range(ROWS)], prev=None)
    source.changes(1, [(6, [insert(name, v=ROWS) for name in NAMES])])
    source.changes(2, [(7, [insert(name, v=ROWS + 1) for name in NAMES])])
    return world


def kill_at(world: World, step: str, passage: int, *arguments: str) -> None:
    """Run a command that dies at *step*, and wait until the server knows."""
    config = world.state_dir / "syncdata.toml"
    config.write_text(world.toml)
    config.chmod(0o600)
    process = Process(
        [str(SCRIPT), step, str(passage), *arguments],
        env=os.environ | {"DATA_SYNC_CONFIG": str(config), "DJANGO_SETTINGS_MODULE": "syncsite.settings"},
    )
    assert process.wait(timeout=60) == -signal.SIGKILL
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + 20
    while world.value(others):
        assert time.monotonic() < deadline, "the server still has a session of it"
        time.sleep(0.02)


def require_each_row_once(world: World) -> None:
    for name in NAMES:
        assert world.rows(f"SELECT v FROM {name} ORDER BY v") == [(v,) for v in range(ROWS + 2)]
        assert world.checkpoint(name)[:3] == (file_name(2), 6, "active")
    assert world.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'syncdata_rebuild%'") == 0


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_first_loads_that_are_killed_together_leave_each_row_once(bags: World, step: str) -> None:
    for passage in (1, 2):
        kill_at(bags, step, passage, "syncdata_start", "--once", "-v", "0")
        # What has come is whole; those that have begun go on before the others begin.
        counts = {bags.value(f"SELECT count(*) FROM {name}") for name in NAMES}
        assert counts <= {0, ROWS, ROWS + 2}
    assert bags.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'syncdata_rebuild%'") == 0
    assert bags.sync().errors == ()
    require_each_row_once(bags)
    audited = "SELECT table_name FROM data_sync_logs WHERE action = 'snapshot' ORDER BY table_name"
    assert [name for (name,) in bags.rows(audited)] == NAMES


@pytest.mark.parametrize("step", RESYNC_STEPS)
def test_a_resync_beside_the_cycles_that_is_killed_is_carried_out_by_the_next_daemon(
    bags: World, step: str
) -> None:
    bags.sync()
    request = ask(bags, "resync", *NAMES[:4])
    kill_at(bags, step, 1, "syncdata_start", "-v", "0")
    require_each_row_once(bags)
    expected = "done" if step == "the request is done" else "running"
    assert outcome(bags, request)[0] == expected
    assert bags.sync().errors == ()
    assert outcome(bags, request)[0] == "done"
    require_each_row_once(bags)
