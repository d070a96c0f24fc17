from __future__ import annotations

import io

from rich.console import Console

from syncdata.engine.changes import TableName
from syncdata.management.snapshot_progress import (
    BarSnapshotProgress,
    LineSnapshotProgress,
    make_snapshot_progress,
)

USERS, ORDERS = TableName("public", "users"), TableName("shop", "orders")


def test_a_pipe_gets_a_line_every_ten_seconds() -> None:
    lines: list[str] = []
    now_s = 0.0
    progress = LineSnapshotProgress(lines.append, lambda: now_s)
    progress.tables_found(2, 5_000)
    progress.table_started(USERS, 3_000)
    progress.rows_copied(1_000)
    assert lines == []
    now_s = 10.0
    progress.rows_copied(1_000)
    progress.rows_copied(1_000)
    assert lines == ["0 of 2 tables, users, 2,000 of about 5,000 rows"]
    now_s = 20.0
    progress.table_finished(USERS)
    assert lines[1:] == ["1 of 2 tables, 3,000 of about 5,000 rows"]


def test_more_rows_than_the_source_estimated_are_no_more_than_all() -> None:
    lines: list[str] = []
    progress = LineSnapshotProgress(lines.append, iter(range(0, 1000, 10)).__next__)
    progress.tables_found(1, 0)
    progress.table_started(ORDERS, 0)
    progress.rows_copied(7)
    assert lines[-1] == "0 of 1 tables, shop.orders, 7 rows"


def test_a_terminal_gets_a_bar_that_ends_at_a_hundred_percent() -> None:
    screen = io.StringIO()
    progress = BarSnapshotProgress(Console(file=screen, force_terminal=True, width=100))
    progress.tables_found(1, 10)
    progress.table_started(USERS, 10)
    progress.rows_copied(12)
    progress.table_finished(USERS)
    progress.close()
    progress.close()
    assert "100%" in screen.getvalue()
    assert "1 of 1 tables, 12 rows" in screen.getvalue()


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(make_snapshot_progress(io.StringIO()), LineSnapshotProgress)
