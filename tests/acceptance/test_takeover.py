"""The whole takeover: files, tables, whitelist and state of the predecessor become a healthy local side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import call_command

from tests import predecessor
from tests.predecessor import QUERIES, SAMPLES, Run, expected
from tests.world import World

TABLES = ("users", "orders")


@pytest.fixture
def old(world: World) -> World:
    """A database as the predecessor leaves it: its own three tables, and those that it synced."""
    call_command("migrate", "syncdata", "zero", database=world.alias, verbosity=0)
    world.execute(predecessor.TABLES_OF_THE_TOOL, *predecessor.SCHEMA)
    return world


def take_over(world: World) -> None:
    call_command("migrate", database=world.alias, verbosity=0)


def rows_of(world: World) -> dict[str, list[tuple[object, ...]]]:
    return {table: world.rows(QUERIES[table]) for table in TABLES}


def states(world: World) -> dict[str, str]:
    with world.service() as service:
        return {info.table_name: info.state for info in service.list_tables()}


def put(world: World, *paths: Path) -> None:
    for path in paths:
        (world.archive / path.name).write_bytes(path.read_bytes())


def test_the_scripts_own_files_become_the_rows_that_they_tell_of(world: World) -> None:
    world.execute(*predecessor.SCHEMA)
    world.whitelist(*TABLES)
    put(world, *SAMPLES)
    result = world.sync()
    assert result.errors == () and result.records_failed == 0
    assert (result.records_added, result.records_updated, result.records_deleted) == (5, 1, 1)
    assert (result.records_truncated, result.records_skipped) == (1, 0)
    assert rows_of(world)["users"] == [(1, "Jane"), (3, "x")]
    assert [row[:2] for row in rows_of(world)["orders"]] == [(2, "5")]


@pytest.mark.parametrize("batch_records", [1, 7, 50_000])
def test_a_long_run_of_the_script_ends_in_productions_rows(
    make_world: Callable[..., World], batch_records: int
) -> None:
    world = make_world(batch_records=batch_records)
    world.execute(*predecessor.SCHEMA)
    world.whitelist(*TABLES)
    run = Run()
    run.files(world.archive, 6, 60)
    assert world.sync().errors == ()
    assert rows_of(world) == {table: expected(run.rows[table], table) for table in TABLES}


def test_a_takeover_goes_on_after_the_last_file_and_a_resync_makes_it_green(old: World) -> None:
    run = Run(seed=2, truncates=False)  # a TRUNCATE would settle what is suspect
    done = run.files(old.archive, 3, 30)
    # What the tool had applied by then; it took any spelling of a name, and it may have lost a row.
    old.execute(
        "INSERT INTO tables_to_sync (table_name, creator) VALUES ('public.users', ''), ('orders', NULL)",
        "INSERT INTO data_sync_logs (table_name, status, rows_synced) VALUES ('*', 'SUCCESS', 7)",
        "INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type, records_added)"
        " VALUES ('*', '2026-11-22Z', '2026-11-29Z', 'WEEK', 7)",
    )
    take_over(old)
    old.whitelist()
    run_so_far = {table: dict(run.rows[table]) for table in TABLES}
    predecessor.load(old, run_so_far)
    old.execute("DELETE FROM users WHERE id = (SELECT min(id) FROM users)")
    predecessor.write_state(old.state_dir, done[-1].name, TABLES)
    run.files(old.archive, 3, 30)

    result = old.sync()
    assert result.errors == () and result.files_processed == 3
    # The tool skipped what it could not apply, so nobody knows that its rows were production's.
    assert states(old) == {"users": "suspect", "orders": "suspect"}
    with old.service() as service:
        kinds = {(problem.table, problem.kind) for problem in service.get_status().problems}
        assert {("users", "suspect"), ("orders", "suspect")} <= kinds
        for table in TABLES:
            service.resync(table)
    assert rows_of(old) == {table: expected(run.rows[table], table) for table in TABLES}
    assert "suspect" not in states(old).values()
    assert old.value("SELECT count(*) FROM data_sync_logs WHERE table_name = '*'") == 1
    assert old.value("SELECT records_added FROM data_sync_metrics WHERE table_name = '*'") == 7


def test_a_last_file_that_no_archive_can_hold_is_not_gone_on_from(
    old: World, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(seed=3)
    run.files(old.archive, 2, 10)
    old.execute("INSERT INTO tables_to_sync (table_name) VALUES ('users'), ('orders')")
    take_over(old)
    predecessor.write_state(old.state_dir, "users.json", TABLES)
    old.sync()
    assert "users.json" in caplog.text
    assert rows_of(old) == {table: expected(run.rows[table], table) for table in TABLES}
