"""Watches a directory for files that get a name there. Knows the system's file events; knows nothing of what
the files are.

Waits for events, and does nothing until one comes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileCreatedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """Calls *tell*, from a thread of its own, soon after a file with a wanted name has appeared in
    *directory*, until it is closed. Only the name's appearing counts, not that the file grows.

    It watches from the moment it is made. Events may be missed: file systems of other machines have none.
    Raises OSError where the system cannot watch it: it has no more watches to give, say.
    """

    def __init__(self, directory: Path, is_wanted: Callable[[str], bool], tell: Callable[[], object]) -> None:
        self._directory = directory
        self._identity = _identity_of(directory)
        if not os.access(directory, os.R_OK):  # the library says nothing of that
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
        self._observer = Observer()
        try:
            self._observer.start()
            # It returns, or raises, when the system has been told to watch.
            self._observer.schedule(
                _Handler(is_wanted, tell), str(directory), event_filter=[FileCreatedEvent, FileMovedEvent]
            )
        except BaseException:
            self.close()
            raise

    @property
    def is_watching(self) -> bool:
        """False once a thread has failed, or the directory is another one: a disk was mounted, say."""
        try:
            return (
                self._observer.is_alive()
                and all(emitter.is_alive() for emitter in self._observer.emitters)
                and _identity_of(self._directory) == self._identity
            )
        except OSError:
            return False

    def close(self) -> None:
        self._observer.stop()
        if self._observer.is_alive():
            self._observer.join()


class _Handler(FileSystemEventHandler):
    def __init__(self, is_wanted: Callable[[str], bool], tell: Callable[[], object]) -> None:
        self._is_wanted = is_wanted
        self._tell = tell

    def on_created(self, event: FileSystemEvent) -> None:
        self._look_at(event.src_path)

    def on_moved(self, event: FileSystemEvent) -> None:
        self._look_at(event.dest_path)

    def _look_at(self, path: bytes | str) -> None:
        try:
            if self._is_wanted(os.path.basename(os.fsdecode(path))):
                self._tell()
        except Exception as error:  # nothing but speed depends on it
            logger.warning("%s", unexpected_error(error))


def _identity_of(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino
