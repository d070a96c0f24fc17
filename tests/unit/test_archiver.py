"""The archiver's loop: what is said again, and what is forgotten."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from syncdata.archive.archive import Archive
from syncdata.capture import archiver as archiver_module
from syncdata.capture import opening
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.unreadable import load_unreadable, note_unreadable
from syncdata.errors import SourceConnectionError, UnreadableChangeError


def no_archive() -> Archive:
    raise AssertionError("there is no chain, so nothing is told to the archive")


@pytest.fixture
def settings(tmp_path: Path) -> CaptureSettings:
    return CaptureSettings(params={}, slot_name="s", publication="p", spool_dir=tmp_path)


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), SourceConnectionError("x")], ids=["unforeseen", "known"]
)
def test_an_error_that_comes_back_after_a_long_good_session_is_said_again(
    settings: CaptureSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    moments = iter([0.0, 1.0, 2.0, 3.0, 10.0, 1_000.0])  # the start and the end of three sessions
    stop = threading.Event()
    pauses = iter([None, None, stop.set])

    def run(self: Archiver, stop: threading.Event, *, once: bool) -> None:
        raise error

    def pause(timeout: float | None = None) -> bool:
        if (last := next(pauses)) is not None:
            last()
        return stop.is_set()

    stop.wait = pause  # type: ignore[method-assign]
    monkeypatch.setattr(Archiver, "_run", run)
    monkeypatch.setattr(archiver_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))

    with caplog.at_level(logging.ERROR, "syncdata.capture.archiver"):
        Archiver(settings, no_archive).run_loop(stop)

    assert len(caplog.records) == 2


class Source:
    """A replication connection to which only epochs matter."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None: ...

    def identify(self) -> None: ...


def test_a_new_epoch_forgets_the_transaction_that_held_the_old_one(
    settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_unreadable(settings.spool_dir, 0x16B3D50, UnreadableChangeError("x"))
    monkeypatch.setattr(archiver_module, "ReplicationConnection", lambda params: Source())
    for step in ("require_primary", "find_slot", "require_free", "begin_epoch"):
        monkeypatch.setattr(opening, step, lambda *arguments: SimpleNamespace(last_file=None))

    Archiver(settings, lambda: SimpleNamespace(close=lambda: None)).begin_epoch()  # type: ignore[arg-type,return-value]

    assert load_unreadable(settings.spool_dir, None) is None
