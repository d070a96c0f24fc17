"""Puts finished files into the archive, in their order, in a thread of its own.

Knows files and the archive; knows nothing of PostgreSQL. It has its own thread because the replication
connection must be answered while an upload takes its time, or a backup host is away.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from syncdata.archive.archive import Archive
from syncdata.capture.spool import SpooledFile, translated, waiting_catalogs
from syncdata.errors import SpoolError, SyncError
from syncdata.runtime.retry import Backoff
from syncdata.runtime.told import Told
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_POLL_S = 0.2


class Uploader:
    """The thread that uploads; a context manager. Leaving it gives up the upload that is under way."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._queue: queue.Queue[SpooledFile] = queue.Queue()
        self._uploaded: deque[SpooledFile] = deque()
        self._waiting = 0
        self._errand: Callable[[Archive], None] | None = None
        self._errand_error = ""
        self._told = Told()
        self._has_errand = threading.Event()
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._error: SyncError | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="syncdata-uploader", daemon=True)

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
            self._archive.close()  # makes the upload that is under way fail soon
            self._thread.join(_POLL_S)

    @property
    def waiting(self) -> int:
        """The number of files that are submitted and not yet taken as uploaded."""
        return self._waiting

    @property
    def error(self) -> SyncError | None:
        """The reason why the file at the front is not in the archive yet; it is tried again."""
        return self._error

    def submit(self, file: SpooledFile) -> None:
        self._waiting += 1
        self._queue.put(file)

    def take_uploaded(self) -> list[SpooledFile]:
        """Return the files that have reached the archive since the last call, in order.

        Raises the error that ended the thread: SpoolError when the spool has lost a file, or a defect.
        """
        if self._failure is not None:
            raise self._failure
        files = []
        self._changed.clear()
        while self._uploaded:
            files.append(self._uploaded.popleft())
        self._waiting -= len(files)
        return files

    def wait(self, timeout_s: float) -> None:
        """Wait until a file has been uploaded or a try has failed, at most so long."""
        self._changed.wait(timeout_s)

    def run_errand(self, errand: Callable[[Archive], None]) -> None:
        """Let *errand* be done between two files, or while one is refused; a later one takes its place.

        Its errors are logged, each new reason once, and are no matter of the files.
        """
        self._errand = errand
        self._has_errand.set()

    def wait_for_errand(self, timeout_s: float) -> None:
        """Wait until the last errand is done or has failed, at most so long."""
        deadline_s = time.monotonic() + timeout_s
        while self._has_errand.is_set() and self._thread.is_alive() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S / 10)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._do_errand()
                with suppress(queue.Empty):
                    self._upload_with_patience(self._queue.get(timeout=_POLL_S))
        except BaseException as error:  # whatever it is, the session raises it
            self._failure = error
            self._changed.set()

    def _upload_with_patience(self, file: SpooledFile) -> None:
        """Try until the file is in the archive or this is closed; log each new reason once."""
        backoff = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S)
        while not self._closed.is_set():
            try:
                upload(self._archive, file)
            except SpoolError:
                raise
            except SyncError as error:
                if str(error) != str(self._error) and not self._closed.is_set():
                    logger.error("%s", error, extra={"code": error.code, "file": file.name})
                self._error = error
                self._changed.set()
                self._do_errand()
                self._closed.wait(backoff.next_s())
            else:
                self._error = None
                self._uploaded.append(file)
                self._changed.set()
                return

    def _do_errand(self) -> None:
        errand, self._errand = self._errand, None
        if errand is None or self._closed.is_set():
            return
        try:
            errand(self._archive)
            self._errand_error = ""
        except SyncError as error:
            if str(error) != self._errand_error and not self._closed.is_set():
                logger.warning("%s", error, extra={"code": error.code})
            self._errand_error = str(error)
        except Exception as error:  # a defect there must keep no file from the archive
            trouble = unexpected_error(error)
            self._told.trouble(logger, trouble, "errand", extra=trouble.fields)
        finally:
            if self._errand is None:
                self._has_errand.clear()


def put_catalogs(archive: Archive, spool_dir: Path) -> None:
    """Put the catalogs that wait in the spool into *archive*. Raises as its ``put`` does."""
    for name, path in waiting_catalogs(spool_dir):
        with translated(path):
            content = path.open("rb")
        with content:
            archive.put(name, content)
        with translated(path):
            path.unlink(missing_ok=True)


def upload(archive: Archive, file: SpooledFile) -> None:
    """Put *file* into *archive*, and before it the catalogs that it names; nothing happens when it is there
    already. Raises as the archive's ``put`` does."""
    started_s = time.monotonic()
    put_catalogs(archive, file.path.parent)
    with translated(file.path):
        content = file.path.open("rb")
    with content:
        archive.put(file.name, content)
    logger.info(
        "%s is delivered in %.1f s (records: %d, transactions: %d)",
        file.name,
        time.monotonic() - started_s,
        file.footer.records,
        file.footer.transactions or 0,
        extra={"file": file.name, "records": file.footer.records},
    )
