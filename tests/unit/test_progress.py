from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from syncdata.management.progress import (
    SNAPSHOT_WORDS,
    BarProgress,
    LineProgress,
    Tally,
    format_duration,
    make_progress,
)
from syncdata.runtime.progress import Progress


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def apply_file(progress: Progress, records: int = 10) -> None:
    progress.file_started("changes_1.json", 100)
    progress.batch_applied(records, 100)
    progress.file_finished("changes_1.json")


@given(st.lists(st.tuples(st.integers(0, 1000), st.lists(st.integers(0, 5000), max_size=5)), max_size=10))
def test_the_bytes_done_only_grow_and_end_at_the_total(files: list[tuple[int, list[int]]]) -> None:
    tally = Tally(len(files), sum(size for size, _ in files), 0.0)
    done = [tally.size_done]
    for size, batches in files:
        tally.start_file("changes_1.json", size)
        for batch in batches:
            tally.add_batch(1, batch)
            done.append(tally.size_done)
        tally.finish_file()
        done.append(tally.size_done)

    assert done == sorted(done)
    assert done[-1] == tally.size_total
    assert tally.is_finished


def test_the_time_left_follows_from_the_bytes_done() -> None:
    tally = Tally(2, 400, now_s=10.0)
    assert tally.left_s(20.0) is None

    tally.start_file("changes_1.json", 100)
    tally.add_batch(50, 100)
    assert tally.left_s(20.0) == pytest.approx(30.0)
    assert tally.rate(20.0) == pytest.approx(5.0)


def test_a_short_run_needs_no_line() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = LineProgress(lines.append, clock=clock)
    progress.files_found(3, 300)
    for _ in range(3):
        clock.now_s += 1
        apply_file(progress)
    progress.close()

    assert lines == []


def test_a_long_run_is_a_line_every_ten_seconds() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = LineProgress(lines.append, clock=clock)
    progress.files_found(25, 2500)
    for _ in range(25):
        clock.now_s += 1
        apply_file(progress, records=2000)

    assert lines == [
        "9 of 25 files, 20,000 records, 2,000 records/s, about 15 s left",
        "19 of 25 files, 40,000 records, 2,000 records/s, about 5.0 s left",
    ]


def test_each_cycle_counts_from_zero() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = LineProgress(lines.append, clock=clock)
    for _ in range(2):
        progress.files_found(1, 100)
        clock.now_s += 20
        apply_file(progress)

    assert lines == ["0 of 1 files, 10 records, 0 records/s"] * 2


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    assert isinstance(make_progress(Terminal()), BarProgress)
    assert isinstance(make_progress(io.StringIO()), LineProgress)


def test_the_bar_shows_counts_and_rate_on_one_line_and_gives_the_cursor_back() -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=80))
    progress.files_found(2, 200)
    apply_file(progress)
    progress.close()

    last_frame = screen.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert last_frame.count("\n") == 1
    assert "50%" in last_frame
    assert "1 of 2 files, 10 records, " in last_frame
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")


def test_the_bar_is_off_while_the_daemon_waits() -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=80))
    progress.files_found(0, 0)
    assert screen.getvalue() == ""

    progress.files_found(1, 100)
    apply_file(progress)
    written = screen.getvalue()
    progress.close()
    assert screen.getvalue() == written


def test_a_pipe_gets_a_line_every_ten_seconds_of_a_snapshot() -> None:
    lines: list[str] = []
    # When it is made, when the tables are found, at each batch, and when the table is finished.
    clock = iter((0.0, 0.0, 4.0, 11.0, 12.0, 22.0, 22.0))
    progress = LineProgress(lines.append, SNAPSHOT_WORDS, clock=lambda: next(clock))
    progress.files_found(1, 3_000)
    progress.file_started("users", 3_000)
    for rows in (1_000, 1_000, 500, 1_000):
        progress.batch_applied(rows, rows)
    progress.file_finished("users")
    progress.close()
    assert lines == [
        "snapshot of users: 2,000 of about 3,000 rows",
        "snapshot of users: 3,500 rows",  # more than the estimate, which is not shown any more
    ]


def test_the_bar_of_a_snapshot_ends_at_its_end_whatever_the_estimate_was() -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=80), SNAPSHOT_WORDS)
    progress.files_found(2, 150)
    for table, estimate, rows in (("users", 100, 180), ("orders", 50, 20)):
        progress.file_started(table, estimate)
        progress.batch_applied(rows, rows)
        progress.file_finished(table)
    progress.close()
    last = screen.getvalue().rsplit("\r", 1)[-1]
    assert "100%" in last
    assert "orders: 20 rows" in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (3.21, "3.2 s"), (45, "45 s"), (200, "3 min"), (7500, "2 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
