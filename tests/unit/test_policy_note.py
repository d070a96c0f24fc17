"""Since when the privacy policy is in force, as the spool remembers it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from syncdata.capture.policy_note import (
    POLICY_FILE_NAME,
    load_policy_note,
    note_clean,
    note_policy,
    require_noted_policy,
)
from syncdata.errors import SourceChangedError

NOW = dt.datetime(2026, 2, 5, 10, 30, tzinfo=dt.UTC)
FIRST, SECOND = "changes_20260205_103000.json.zst", "changes_20260205_104500.json.zst"


def test_another_policy_is_in_force_behind_the_last_file_of_before(tmp_path: Path) -> None:
    assert note_policy(tmp_path, "", last_file=None, now=NOW)
    assert note_policy(tmp_path, "a", last_file=FIRST, now=NOW)
    assert not note_policy(tmp_path, "a", last_file=SECOND, now=NOW + dt.timedelta(days=1))
    note = load_policy_note(tmp_path)
    assert note is not None
    assert (note.id, note.since, note.last_before) == ("a", "2026-02-05T10:30:00Z", FIRST)
    assert note.has_older_files


def test_no_file_is_older_than_the_policy_that_was_there_first(tmp_path: Path) -> None:
    note_policy(tmp_path, "a", last_file=None, now=NOW)
    note = load_policy_note(tmp_path)
    assert note is not None
    assert not note.has_older_files


def test_what_was_removed_is_remembered_until_the_next_policy(tmp_path: Path) -> None:
    note_policy(tmp_path, "a", last_file=FIRST, now=NOW)
    first = load_policy_note(tmp_path)
    assert first is not None
    note_clean(tmp_path, first)
    note = load_policy_note(tmp_path)
    assert note is not None
    assert not note.has_older_files
    note_policy(tmp_path, "b", last_file=SECOND, now=NOW)
    second = load_policy_note(tmp_path)
    assert second is not None
    assert second.has_older_files
    # The files that are gone are those of before another policy.
    note_clean(tmp_path, first)
    assert load_policy_note(tmp_path) == second


def test_no_other_policy_than_the_noted_one_will_do(tmp_path: Path) -> None:
    require_noted_policy(tmp_path, "a")
    note_policy(tmp_path, "a", last_file=None, now=NOW)
    require_noted_policy(tmp_path, "a")
    for other in ("b", ""):
        with pytest.raises(SourceChangedError, match="not the one that the archiver has last worked under"):
            require_noted_policy(tmp_path, other)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id":"a","since":"then"}'])
def test_a_broken_note_is_of_no_policy_until_an_archiver_notes_its_own(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / POLICY_FILE_NAME).write_bytes(content)
    for policy_id in ("a", ""):
        with pytest.raises(SourceChangedError):
            require_noted_policy(tmp_path, policy_id)
    assert note_policy(tmp_path, "a", last_file=FIRST, now=NOW)
    require_noted_policy(tmp_path, "a")
