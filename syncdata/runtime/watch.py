"""Watches a directory for files that get a name there. Knows the system's file events and a thread; knows
nothing of what the files are.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change

# Directly, as its documentation shows: `watchfiles.watch` does not say when it has begun to watch.
from watchfiles._rust_notify import RustNotify

from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

# How often the thread looks for events, and how long it gathers those that come one after the other.
_STEP_MS, _GATHER_MS = 100, 200


class DirectoryWatch:
    """Calls *tell*, from a thread of its own, soon after a file with a wanted name has appeared in
    *directory*, until it is closed. Only the name's appearing counts, not that the file grows.

    It watches from the moment it is made. Events may be missed: file systems of other machines have none.
    Raises OSError, or what the system's watching fails with.
    """

    def __init__(self, directory: Path, is_wanted: Callable[[str], bool], tell: Callable[[], object]) -> None:
        self._directory = directory
        self._is_wanted = is_wanted
        self._tell = tell
        self._closed = threading.Event()
        self._identity = _identity_of(directory)
        self._events = RustNotify([str(directory)], False, False, _STEP_MS, False, False)
        self._thread = threading.Thread(target=self._run, name="syncdata-watch", daemon=True)
        self._thread.start()

    @property
    def is_watching(self) -> bool:
        """False once the thread has failed, or the directory is another one: a disk was mounted, say."""
        try:
            return self._thread.is_alive() and _identity_of(self._directory) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._events.close()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                changes = self._events.watch(_GATHER_MS, _STEP_MS, 0, self._closed)
                if isinstance(changes, set) and any(map(self._is_new, changes)):
                    self._tell()
        except Exception as error:  # nothing but speed depends on it
            logger.warning("%s", unexpected_error(error))

    def _is_new(self, change: tuple[int, str]) -> bool:
        kind, path = change
        return kind == Change.added and self._is_wanted(os.path.basename(path))


def _identity_of(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino
