from __future__ import annotations

import io

from rich.console import Console

from syncdata.changes.names import TableName
from syncdata.management.snapshotprogress import SnapshotBar, SnapshotLines, make_snapshot_progress

USERS, ORDERS = TableName("public", "users"), TableName("public", "orders")


def test_a_pipe_gets_a_line_every_ten_seconds_of_work() -> None:
    lines: list[str] = []
    clock = iter(
        (0.0, 0.0, 4.0, 11.0, 12.0, 22.0)
    )  # when it is made, when the tables are found, and each time
    progress = SnapshotLines(lines.append, clock=lambda: next(clock))
    progress.tables_found(1, 3_000)
    progress.table_started(USERS, 3_000)
    for rows in (1_000, 1_000, 500, 1_000):
        progress.rows_copied(rows)
    progress.table_finished(USERS)
    progress.close()
    assert lines == [
        "snapshot of users: 2,000 of about 3,000 rows",
        "snapshot of users: 3,500 rows",  # more than the estimate, which is not shown any more
    ]


def test_a_terminal_gets_a_bar_that_ends_at_its_end_whatever_the_estimate_was() -> None:
    screen = io.StringIO()
    progress = SnapshotBar(Console(file=screen, force_terminal=True, width=80))
    progress.tables_found(2, 150)
    for table, estimate, rows in ((USERS, 100, 180), (ORDERS, 50, 20)):
        progress.table_started(table, estimate)
        progress.rows_copied(rows)
        progress.table_finished(table)
    progress.close()
    last = screen.getvalue().rsplit("\r", 1)[-1]
    assert "100%" in last
    assert "orders: 20 rows" in last


def test_the_progress_suits_what_it_is_written_to() -> None:
    assert isinstance(make_snapshot_progress(io.StringIO()), SnapshotLines)
