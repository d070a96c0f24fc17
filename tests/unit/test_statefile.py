from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.errors import StateLoadError, StateSaveError
from syncdata.predecessor.statefile import (
    NEVER,
    STATE_FILE_NAME,
    SyncState,
    TableState,
    format_state,
    load_state,
    parse_state,
    save_state,
)

PREDECESSORS = b"""{
  "version": 1,
  "last_file": "changes_20260205_103000.json",
  "last_file_time": "2026-02-05T11:30:00.123456789+01:00",
  "global_lsn": "0/16B3D60",
  "tables": {
    "users": {
      "last_lsn": "0/16B3D60",
      "last_synced_at": "2026-02-05T10:35:00Z",
      "record_count": 1234
    }
  },
  "total_synced": 1234,
  "last_sync_cycle": "0001-01-01T00:00:00Z"
}"""

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))  # what PostgreSQL's text can hold
moments = st.datetimes(timezones=st.just(UTC))
states = st.builds(
    SyncState,
    last_file=texts,
    last_file_time=moments,
    global_lsn=texts,
    tables=st.dictionaries(
        texts,
        st.builds(TableState, last_lsn=texts, last_synced_at=moments, record_count=st.integers(0, 2**63 - 1)),
    ),
    total_synced=st.integers(0, 2**63 - 1),
    last_sync_cycle=moments,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / STATE_FILE_NAME


def test_the_predecessors_file_is_read_as_it_wrote_it() -> None:
    state = parse_state(PREDECESSORS)

    assert state.is_predecessors
    assert state.last_file == "changes_20260205_103000.json"
    assert state.last_file_time == datetime(2026, 2, 5, 10, 30, 0, 123457, tzinfo=UTC)
    assert state.tables["users"].record_count == state.total_synced == 1234
    assert state.last_sync_cycle == NEVER


def test_a_file_of_ours_has_the_predecessors_keys_and_a_mark() -> None:
    document = json.loads(format_state(SyncState(tables={"users": TableState()})))

    assert document.pop("written_by") == "syncdata-django"
    assert set(document) == set(json.loads(PREDECESSORS))
    assert set(document["tables"]["users"]) == set(json.loads(PREDECESSORS)["tables"]["users"])
    assert document["last_file_time"] == "0001-01-01T00:00:00Z"


@given(states)
def test_what_is_written_is_what_is_read(state: SyncState) -> None:
    assert parse_state(format_state(state)) == state


def test_our_own_file_is_never_taken_for_the_predecessors(path: Path) -> None:
    save_state(path, SyncState(last_file="changes_20260205_103000.json"))
    state = load_state(path)

    assert state is not None
    assert not state.is_predecessors


@pytest.mark.parametrize("content", [b'{"tables": null}', b'{"last_sync_cycle": null, "more": [1]}', b"{}"])
def test_missing_unknown_and_null_keys_are_accepted(content: bytes) -> None:
    assert parse_state(content) == SyncState(version=0, written_by="")


def test_no_file_is_no_state(path: Path) -> None:
    assert load_state(path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": "x"}', b'{"version": 2}', b'{"tables": {"users": 7}}'],
    ids=["empty", "cut off", "a list", "not UTF-8", "a wrong type", "a newer version", "a broken table"],
)
def test_a_broken_file_is_a_load_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateLoadError, match=r"^SHD_SYN_030: cannot read .*\.syncdata_state\.json: "):
        load_state(path)


def test_a_directory_in_the_files_place_is_a_load_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateLoadError, match="directory"):
        load_state(path)


def test_saving_replaces_the_file_as_a_whole_and_leaves_nothing_beside_it(path: Path) -> None:
    path.write_bytes(PREDECESSORS)
    inode = path.stat().st_ino
    save_state(path, SyncState(total_synced=7))

    assert load_state(path) == SyncState(total_synced=7)
    assert path.stat().st_ino != inode
    assert os.listdir(path.parent) == [STATE_FILE_NAME]


def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(path: Path) -> None:
    path.mkdir()  # a rename over a directory fails
    with pytest.raises(StateSaveError, match=r"^SHD_SYN_031: cannot write "):
        save_state(path, SyncState())

    assert os.listdir(path.parent) == [STATE_FILE_NAME]


def test_a_missing_directory_is_a_save_error(tmp_path: Path) -> None:
    with pytest.raises(StateSaveError, match="No such file or directory"):
        save_state(tmp_path / "missing" / STATE_FILE_NAME, SyncState())
