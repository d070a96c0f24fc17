"""Puts finished files into the archive, in their order, in a thread of its own.

Knows files and the archive; knows nothing of PostgreSQL. The replication connection must be answered
while an upload takes its time, or a backup host is away.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

from syncdata.archive.archive import Archive
from syncdata.capture.spool import SpooledFile, translated
from syncdata.errors import SpoolError, SyncError

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_POLL_S = 0.2


class Delivery:
    """A context manager; on leaving, the file that is under way is given up."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._queue: queue.Queue[SpooledFile] = queue.Queue()
        self._delivered: deque[SpooledFile] = deque()
        self._waiting = 0
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._error: SyncError | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="syncdata-delivery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        while self._thread.is_alive():
            self._archive.close()  # what is under way fails soon
            self._thread.join(_POLL_S)

    @property
    def waiting(self) -> int:
        """How many files are submitted and not taken as delivered."""
        return self._waiting

    @property
    def error(self) -> SyncError | None:
        """Why the file at the front is not delivered yet; it is tried again."""
        return self._error

    def submit(self, file: SpooledFile) -> None:
        self._waiting += 1
        self._queue.put(file)

    def take_delivered(self) -> list[SpooledFile]:
        """Return the files that have been delivered since this was asked last, in order.

        Raises what has ended the thread: SpoolError when the spool has lost a file, or a defect.
        """
        if self._failure is not None:
            raise self._failure
        files = []
        self._changed.clear()
        while self._delivered:
            files.append(self._delivered.popleft())
        self._waiting -= len(files)
        return files

    def wait(self, timeout_s: float) -> None:
        """Wait until a file has been delivered or a try has failed, at most so long."""
        self._changed.wait(timeout_s)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                file = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            try:
                self._deliver(file)
            except BaseException as error:
                self._failure = error
                self._changed.set()
                return

    def _deliver(self, file: SpooledFile) -> None:
        """Try until it is done or this is closed; each reason is logged once."""
        failures = 0
        while not self._closed.is_set():
            try:
                deliver(self._archive, file)
            except SpoolError:
                raise
            except SyncError as error:
                if str(error) != str(self._error) and not self._closed.is_set():
                    logger.error("%s", error, extra={"code": error.code, "file": file.name})
                self._error = error
                self._changed.set()
                delay_s = min(_FIRST_RETRY_S * 2**failures, _LAST_RETRY_S)
                failures = min(failures + 1, 10)
                self._closed.wait(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)
            else:
                self._error = None
                self._delivered.append(file)
                self._changed.set()
                return


def deliver(archive: Archive, file: SpooledFile) -> None:
    """Put *file* into *archive*; fine when it is there already. Raises as its ``put`` does."""
    started = time.monotonic()
    with translated(file.path):
        content = file.path.open("rb")
    with content:
        archive.put(file.name, content)
    logger.info(
        "%s is delivered in %.1f s (records: %d, transactions: %d)",
        file.name,
        time.monotonic() - started,
        file.footer.records,
        file.footer.transactions or 0,
        extra={"file": file.name, "records": file.footer.records},
    )
