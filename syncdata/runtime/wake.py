"""A call that one thread makes and another one waits for, beside other things it waits for. Knows pipes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wake:
    """Calls are not counted: whoever was called several times takes them all at once."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()
        self._is_closed = False

    def fileno(self) -> int:
        """The descriptor that can be read while a call waits."""
        return self._reader

    def call(self) -> None:
        """Wake whoever waits; nobody does once it is closed, when another file may have its number."""
        with self._lock, suppress(BlockingIOError):  # full of calls already
            if not self._is_closed:
                os.write(self._writer, b"!")

    def take(self) -> bool:
        """Return whether there was a call since the last time."""
        was_called = False
        with suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                was_called = True
        return was_called

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            os.close(self._reader)
            os.close(self._writer)


@contextmanager
def called_by(event: threading.Event, wake: Wake) -> Iterator[None]:
    """In the block, have *wake* called when *event* is set.

    A thread waits for that: an event cannot be waited for beside other things. Where the event is never set,
    the thread waits for it to the end of the process.
    """

    def wait() -> None:
        event.wait()
        wake.call()

    thread = threading.Thread(target=wait, name="syncdata-wake", daemon=True)
    thread.start()
    yield
    if event.is_set():
        thread.join()
