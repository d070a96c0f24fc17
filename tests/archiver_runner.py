"""Archivers that die where they are told to: each line of standard input is one, as JSON.

A process of its own, without Django and without threads, so that it can fork: a child takes no time to
start, and SIGKILL ends it as it would end a daemon. Prints ``killed`` when the step was reached, else what
happened instead.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.local import LocalSettings, LocalStorage
from syncdata.capture import archiver, lifesign, opening, session, spool, stream_catalog, uploader
from syncdata.capture.archiver import Archiver
from syncdata.capture.pgoutput import Decoder
from syncdata.capture.replication import ReplicationConnection, XLogData
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.spool import FileWriter
from syncdata.capture.uploader import Uploader
from syncdata.changes import writer
from syncdata.changes.writer import ChangeFileWriter
from syncdata.privacy.key import from_text
from syncdata.privacy.policy import parse_policy
from syncdata.runtime import durable

TIME_LIMIT_S = 30

# Each step: the functions that take it, and whether we die before it or after it. A function that is
# imported by name stands here once for each module that calls it.
STEPS: dict[str, tuple[list[tuple[Any, str]], str]] = {
    "a message has arrived": ([(ReplicationConnection, "read")], "after"),
    "a message is decoded": ([(Decoder, "decode")], "after"),
    "before a line is written": ([(ChangeFileWriter, "write")], "before"),
    "a line is written": ([(ChangeFileWriter, "write")], "after"),
    "before lines go to the disk": ([(ChangeFileWriter, "_flush")], "before"),
    "lines are on the disk": ([(ChangeFileWriter, "_flush")], "after"),
    "before a file is finished": ([(FileWriter, "finish")], "before"),
    "a file is finished": ([(FileWriter, "finish")], "after"),
    "before an fsync": ([(os, "fsync")], "before"),
    "after an fsync": ([(os, "fsync")], "after"),
    "before a rename": ([(Path, "rename"), (os, "replace")], "before"),
    "after a rename": ([(Path, "rename"), (os, "replace")], "after"),
    "before a directory is flushed": ([(spool, "fsync_directory"), (durable, "fsync_directory")], "before"),
    "before a delivery": ([(Archive, "put")], "before"),
    "before the archive has the bytes": ([(LocalStorage, "create")], "before"),
    "the archive has the bytes": ([(LocalStorage, "create")], "after"),
    "before the archive has the name": ([(os, "link")], "before"),
    "the archive has two names": ([(os, "link")], "after"),
    "before the archive is flushed": ([(LocalStorage, "make_durable")], "before"),
    "after a delivery": ([(Archive, "put")], "after"),
    "before a catalog is kept": ([(stream_catalog, "keep_catalog")], "before"),
    "a catalog is kept": ([(stream_catalog, "keep_catalog")], "after"),
    "before the catalog's state is saved": ([(stream_catalog, "save_state")], "before"),
    "the catalog's state is saved": ([(stream_catalog, "save_state")], "after"),
    "the catalogs are delivered": ([(uploader, "put_catalogs")], "after"),
    "before the head is replaced": ([(LocalStorage, "replace")], "before"),
    "the head is replaced": ([(LocalStorage, "replace")], "after"),
    "a file is submitted": ([(Uploader, "submit")], "after"),
    "before the chain is saved": ([(opening, "save_chain"), (session, "save_chain")], "before"),
    "the chain is saved": ([(opening, "save_chain"), (session, "save_chain")], "after"),
    "before the slot is confirmed": ([(ReplicationConnection, "confirm")], "before"),
    "the slot is confirmed": ([(ReplicationConnection, "confirm")], "after"),
    "before the spool is cleared": ([(session, "remove_from_spool")], "before"),
    "the spool is cleared": ([(session, "remove_from_spool")], "after"),
}


def die_at(step: str, passage: int) -> None:
    """Let this process kill itself at the *passage*-th time that it comes to *step*."""
    places, moment = STEPS[step]
    countdown = _Countdown(passage)
    for owner, name in places:
        setattr(owner, name, _deadly(getattr(owner, name), name, moment, countdown))


def _deadly(
    original: Callable[..., Any], name: str, moment: str, countdown: _Countdown
) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            countdown.pass_by()
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        if name != "read" or isinstance(result, XLogData):
            countdown.pass_by()
        return result

    return wrapped


class _Countdown:
    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def pass_by(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict[str, Any]) -> None:
    """Archive as *job* says until we die, or its time is over."""
    # Everything happens often, so that every step comes up soon and between all others.
    session.FEEDBACK_EVERY_S = 0.05
    archiver._FIRST_RETRY_S = 0.02
    writer._BUFFER_BYTES = 500
    stream_catalog.LOOK_EVERY_S = 0.05
    lifesign._LEAST_EVERY_S = 0.05
    die_at(job["step"], job["passage"])
    stop = threading.Event()
    threading.Timer(TIME_LIMIT_S, stop.set).start()
    settings = CaptureSettings(
        params=job["params"],
        slot_name=job["slot_name"],
        publication=job["publication"],
        spool_dir=Path(job["spool_dir"]),
        rotate_s=0.1,
        rotate_bytes=4_000,
        policy=parse_policy(job["columns"], key=from_text(job["key"]))[0] if "columns" in job else None,
    )
    archive = LocalSettings(directory=Path(job["archive_dir"]))
    Archiver(settings, lambda: open_archive(archive)).run_loop(stop)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        started = time.monotonic()
        if (pid := os.fork()) == 0:
            try:
                run(job)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        outcome = "killed" if is_killed else f"status {status} after {time.monotonic() - started:.1f} s"
        print(outcome, flush=True)


if __name__ == "__main__":
    main()
