"""Small files that follow each other go to the tables together, and leave what they leave one by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.apply.cycle import Cycle
from syncdata.apply.feed import stretches
from syncdata.apply.position import Advance
from syncdata.apply.postgres.target import Target
from tests.world import World, delete, insert, truncate, update

COLUMNS = "id int PRIMARY KEY, u text, note text"


def name(number: int) -> str:
    return f"changes_20260205_10{number // 60:02d}{number % 60:02d}.json"


def moment(number: int) -> str:
    return f"2026-02-05T10:{number // 60:02d}:{number % 60:02d}Z"


@contextmanager
def advances(monkeypatch: pytest.MonkeyPatch, *, one_by_one: bool = False) -> Iterator[list[Advance]]:
    """Collect the advances that commit; with *one_by_one*, no file joins another."""
    seen: list[Advance] = []
    apply = Target.apply

    def applied(self: Target, prepared: Any, advance: Advance) -> Any:
        outcome = apply(self, prepared, advance)
        seen.append(advance)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Target, "apply", applied)
        if one_by_one:
            patch.setattr(stretches.Part, "goes_on", lambda self, before: False)
        yield seen


def write_files(world: World, files: Iterable[Iterable[dict[str, Any] | str]]) -> None:
    for number, records in enumerate(files):
        world.write(name(number), records)


def state(world: World, *tables: str) -> dict[str, Any]:
    """Return all that syncing has left, but for times."""
    left: dict[str, Any] = {table: world.rows(f"SELECT * FROM {table} ORDER BY 1") for table in tables}
    left["checkpoints"] = world.rows(
        "SELECT table_name, file, file_finished, record_number, file_size, commit_lsn, source_id, state,"
        " error, rows_synced, records_added, records_updated, records_deleted, records_truncated,"
        " records_missing, file_added, file_missing, last_lsn, last_change_at, marks::text"
        " FROM data_sync_checkpoints ORDER BY table_name"
    )
    left["logs"] = world.rows(
        "SELECT archive_ref, table_name, status, action, rows_synced, records_added, records_updated,"
        " records_deleted, records_truncated, records_missing, error_detail FROM data_sync_logs"
        " ORDER BY sync_time, table_name, archive_ref"
    )
    left["metrics"] = world.rows(
        "SELECT table_name, period_type, records_added, records_updated, records_deleted"
        " FROM data_sync_metrics ORDER BY 1, 2"
    )
    left["run"] = world.rows("SELECT sum(records_synced) FROM data_sync_runs")
    return left


def inserts(count: int, table: str = "t") -> list[list[dict[str, Any]]]:
    return [[insert(table, ts=moment(n), id=n, u=f"u{n}", note="x")] for n in range(count)]


@pytest.fixture
def one(world: World) -> World:
    world.execute(f"CREATE TABLE t ({COLUMNS})", f"CREATE TABLE s ({COLUMNS})")
    world.whitelist("t", "s")
    return world


def test_small_files_go_together_and_each_has_its_audit_row(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(one, inserts(40))
    with advances(monkeypatch) as seen:
        result = one.sync()
    assert (result.files_processed, result.records_added) == (40, 40)
    assert len(seen) < 10
    assert sum(len(advance.files) or 1 for advance in seen) == 40
    assert one.rows("SELECT archive_ref, records_added FROM data_sync_logs ORDER BY sync_time") == [
        (name(n), 1) for n in range(40)
    ]
    assert one.value("SELECT sum(records_added) FROM data_sync_metrics WHERE period_type = 'MONTH'") == 40
    assert one.rows("SELECT DISTINCT file, record_number, file_finished FROM data_sync_checkpoints") == [
        (name(39), 1, True)
    ]
