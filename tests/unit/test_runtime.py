from __future__ import annotations

import os
from pathlib import Path

import pytest

from syncdata.runtime.durable import replace_file
from syncdata.runtime.retry import Backoff


def test_pauses_double_up_to_the_last_and_are_shortened_by_half_at_most() -> None:
    backoff = Backoff(first_s=1.0, last_s=8.0)
    for longest_s in (1, 2, 4, 8, 8, 8):
        assert longest_s / 2 <= backoff.next_s() <= longest_s


def test_after_success_the_pauses_begin_anew() -> None:
    backoff = Backoff(first_s=1.0, last_s=60.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_many_machines_do_not_return_at_one_moment() -> None:
    assert len({Backoff().next_s() for _ in range(20)}) > 1


def test_a_file_is_replaced_as_a_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]
