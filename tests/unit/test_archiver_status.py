from __future__ import annotations

import datetime as dt
from dataclasses import replace

from syncdata.capture.slot import Slot
from syncdata.capture.status import archiver_status, format_archiver_status, retention_warning

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
