from __future__ import annotations

import datetime as dt
from dataclasses import replace

from syncdata.capture.policy_note import PolicyNote
from syncdata.capture.slot import Slot
from syncdata.capture.status import (
    PrivacyStatus,
    archiver_status,
    format_archiver_status,
    privacy_problems,
    privacy_status,
    retention_warning,
)

NOON = dt.datetime(2026, 2, 5, 12, tzinfo=dt.UTC)
SLOT = Slot(
    name="syncdata_slot",
    plugin="pgoutput",
    database="shop",
    is_temporary=False,
    active_pid=None,
    reader=None,
    wal_status="reserved",
    confirmed_lsn=100,
    wal_lsn=100,
    retained_bytes=850,
    limit_bytes=1000,
)


def test_a_warning_whose_number_has_changed_is_the_same_problem() -> None:
    before, after = retention_warning(SLOT), retention_warning(replace(SLOT, retained_bytes=900))
    assert before is not None and after is not None
    assert str(before) != str(after)
    assert before.kind == after.kind == "retention"


def test_there_is_no_warning_while_the_slot_keeps_little_or_may_keep_all() -> None:
    assert retention_warning(replace(SLOT, retained_bytes=799)) is None
    assert retention_warning(replace(SLOT, limit_bytes=None)) is None


def test_problems_have_kinds_and_read_as_lines() -> None:
    status = archiver_status(
        is_active=False, slot_name="syncdata_slot", slot=SLOT, chain=None, waiting=[], rotate_s=60, now=NOON
    )
    assert [problem.kind for problem in status.problems] == ["retention", "not-started"]
    assert "  - no archiver has run here yet: start archive_changes" in format_archiver_status(status)


def test_a_policy_that_cannot_hold_or_is_not_the_archivers_is_a_problem() -> None:
    note = PolicyNote(id="a", since="2026-02-05T10:30:00Z")
    assert privacy_problems("a", note=note, troubles=(), is_active=True) == []
    assert privacy_problems("", note=None, troubles=(), is_active=True) == []
    # The next archiver takes it up, and a key that cannot be read is a problem of its own.
    assert privacy_problems("b", note=note, troubles=(), is_active=False) == []
    assert privacy_problems(None, note=note, troubles=(), is_active=True) == []
    (other,) = privacy_problems("", note=note, troubles=(), is_active=True)
    assert "another privacy policy than the configured one" in str(other)
    (broken,) = privacy_problems(
        "a", note=note, troubles=("users: email: an email is a text",), is_active=True
    )
    assert str(broken).endswith("cannot hold: users: email: an email is a text")


def test_a_policy_whose_key_cannot_be_read_is_not_called_none() -> None:
    note = PolicyNote(id="", since="2026-02-05T10:30:00Z")
    status = privacy_status(None, "halt", note=note, tables=(), withheld_tables=(), keep_days=14)
    assert status == PrivacyStatus(unnamed="halt")
