"""The walk of a round: which table comes next, how much is read at once, and what is said of it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from syncdata.capture.pgoutput import Decoder, Mark
from syncdata.capture.status import archiver_status, format_archiver_status, verification_status
from syncdata.capture.verify_walk import (
    VERIFICATION_FILE_NAME,
    ChunkSize,
    VerificationState,
    fitting_keys,
    load_verification,
    pause_s,
    save_verification,
)
from syncdata.changes.names import TableName

NOW = dt.datetime(2026, 2, 5, 10, tzinfo=dt.UTC)
A, B, C = (TableName("public", name) for name in "abc")


def test_a_round_reads_each_table_once_by_name() -> None:
    state = VerificationState().begun(NOW)
    seen = []
    while (table := state.next_table([C, A, B])) is not None:
        seen.append(table)
        state = state.at(table).past_chunk(rows=5, after=("5",), is_proved=True, is_last=False)
        assert state.next_table([C, A, B]) == table and state.at(table) == state
        state = state.past_chunk(rows=2, after=None, is_proved=False, is_last=True)
        assert (state.chunks, state.seen) == (2, 7)
    assert seen == [A, B, C]
    assert (state.tables_done, state.rows, state.proved, state.unproved) == (3, 21, 3, 3)


def test_a_table_that_is_no_longer_published_is_passed_over() -> None:
    state = VerificationState().begun(NOW).at(B)
    assert state.next_table([A, C]) == C


@pytest.mark.parametrize(("hours", "is_due"), [(0, False), (23, False), (24, True)])
def test_the_next_round_begins_so_many_days_after_the_last_one_did(hours: int, is_due: bool) -> None:
    begun = VerificationState().begun(NOW)
    later = NOW + dt.timedelta(hours=hours)
    assert VerificationState().is_due(NOW, 1) and begun.is_due(NOW, 1)
    assert begun.ended(later).is_due(later, 1) == is_due


def test_a_round_that_began_by_a_clock_that_was_ahead_does_not_put_the_next_one_off() -> None:
    years_ahead = VerificationState().begun(NOW + dt.timedelta(days=3_650))
    assert years_ahead.ended(NOW + dt.timedelta(days=3_650, hours=1)).is_due(NOW, 1)


def test_a_reason_goes_when_the_table_is_read_again() -> None:
    state = VerificationState().begun(NOW).at(A).past_table(left_out="permission denied")
    again = state.ended(NOW).begun(NOW)
    assert again.left_out == {"a": "permission denied"}
    assert again.at(A).left_out == {}


def test_a_slow_read_halves_the_next_one_and_a_quick_one_lets_it_grow() -> None:
    size = ChunkSize(1_000)
    assert size.note_slow() and size.rows == 500
    size.note_read(0.09)
    assert size.rows == 500
    size.note_read(0.01)
    size.note_read(0.01)
    size.note_read(0.01)
    assert size.rows == 1_000
    for _ in range(20):
        may_go_on = size.note_slow()
    assert size.rows == 1 and not may_go_on


def test_the_rate_is_kept_and_small_tables_do_not_follow_without_a_pause() -> None:
    assert pause_s(10_000, 1.0, rows_per_second=1_000) == 9.0
    assert pause_s(1, 1.0, rows_per_second=1_000) > 0


def test_keys_fill_a_line_and_no_more() -> None:
    keys = [("x" * 10,)] * 5
    assert fitting_keys(keys, most_bytes=1_000) == 5
    assert fitting_keys(keys, most_bytes=2 * 15) == 2
    assert fitting_keys(keys, most_bytes=1) == 1
    assert fitting_keys([], most_bytes=1) == 0


def test_the_state_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    state = VerificationState().begun(NOW).at(A)
    assert load_verification(tmp_path) == VerificationState()
    save_verification(tmp_path, state)
    path = tmp_path / VERIFICATION_FILE_NAME
    assert load_verification(tmp_path) == state and path.stat().st_mode & 0o077 == 0
    path.write_text("{")
    assert load_verification(tmp_path) == VerificationState()


def test_the_status_says_how_far_the_checks_are() -> None:
    state = VerificationState().begun(NOW).at(A).past_table(left_out="permission denied for table a")
    state = msgspec.structs.replace(state, tables=4, rows=12_000, proved=3, unproved=1, longest_ms=42)

    def text(verification: object) -> str:
        status = archiver_status(
            is_active=True,
            slot_name="s",
            slot=None,
            chain=None,
            waiting=[],
            rotate_s=60,
            now=NOW,
            verification=verification,  # type: ignore[arg-type]
        )
        return format_archiver_status(status)

    shown = text(verification_status(state, rows_per_second=1_000))
    assert "verification: round 1, begun at 2026-02-05T10:00:00Z\n" in shown
    assert "  25% of the tables, 12,000 rows, at most 1,000 a second, longest read 42 ms\n" in shown
    assert "not proved: 1 of 4 chunks" in shown
    assert "  a: permission denied for table a" in shown
    assert "verification: off" in text(None)
    assert "verification: not begun" in text(verification_status(VerificationState(), rows_per_second=1))


MARK = b"M\x00" + (0x0001_0000_0005).to_bytes(8, "big") + b"syncdata\0" + b"\0\0\0\x03a-1"


def test_only_our_own_message_between_two_transactions_is_a_mark() -> None:
    decode = Decoder().decode
    assert decode(MARK) == Mark(lsn=0x0001_0000_0005, content=b"a-1")
    assert decode(b"M\x01" + MARK[2:]) is None
    assert decode(MARK.replace(b"syncdata", b"\xff\xfe others")) is None
    assert decode(MARK[:12]) is None
