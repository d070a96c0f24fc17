"""Progress that is written down: what is waiting, and how far a rebuild is."""

from __future__ import annotations

import pytest

from syncdata.apply import progress
from syncdata.apply.progress import RequestProgress, WaitingProgress


@pytest.fixture(autouse=True)
def note_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_NOTE_EVERY_S", 0)


def test_what_waits_shrinks_with_each_file() -> None:
    notes: list[tuple[int, int]] = []
    waiting = WaitingProgress(lambda files, size: notes.append((files, size)))
    waiting.files_found(2, 30)
    for name, size in [("a", 10), ("b", 20)]:
        waiting.file_started(name, size)
        waiting.batch_applied(5, size)
        waiting.file_finished(name)
    waiting.files_found(0, 0)
    assert notes == [(2, 30), (1, 20), (0, 0), (0, 0)]


def test_what_one_group_could_not_go_through_still_waits_at_the_end() -> None:
    notes: list[tuple[int, int]] = []
    waiting = WaitingProgress(lambda files, size: notes.append((files, size)))
    waiting.files_found(3, 300)
    waiting.files_found(1, 10)
    waiting.file_started("a", 10)
    waiting.file_finished("a")
    waiting.files_found(0, 0)
    assert notes[-1] == (3, 300)


def test_a_rebuild_tells_its_share_and_its_records() -> None:
    notes: list[str] = []
    rebuild = RequestProgress(notes.append)
    rebuild.files_found(2, 200)
    rebuild.file_started("a", 100)
    rebuild.batch_applied(1500, 50)
    rebuild.batch_applied(1500, 900)
    rebuild.file_finished("a")
    assert notes == ["25% (1,500 records)", "100% (3,000 records)"]
