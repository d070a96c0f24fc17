"""A call that one thread makes and another one waits for, beside other things it waits for. Knows pipes."""

from __future__ import annotations

import os
from contextlib import suppress


class Wake:
    """Calls are not counted: whoever was called several times takes them all at once."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """The descriptor that can be read while a call waits."""
        return self._reader

    def call(self) -> None:
        with suppress(BlockingIOError):  # full of calls already
            os.write(self._writer, b"!")

    def take(self) -> bool:
        """Return whether there was a call since the last time."""
        was_called = False
        with suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                was_called = True
        return was_called

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
