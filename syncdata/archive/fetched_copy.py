"""The temporary copy of a file that is fetched from far away. Knows this machine's disk and no network."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import BinaryIO

from syncdata.errors import FetchError


class FetchedCopy:
    """An anonymous temporary file in *directory*, or in the system's directory for them (TMPDIR), which grows
    while the file at *location* arrives.

    Nothing is left of it when the process ends. Raises FetchError, not OSError, when the disk is full:
    it is this machine's disk, not the archive's, nor is it the network that fails.
    """

    def __init__(self, directory: Path | None, location: str) -> None:
        self._directory = directory or Path(tempfile.gettempdir())
        self._location = location
        try:
            # Unbuffered, so that a full disk shows in write() and nowhere else.
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._no_room(error) from error

    @property
    def size_bytes(self) -> int:
        """The number of bytes that have arrived; after a lost connection, the transfer goes on from there."""
        return self._file.tell()

    def write(self, block: bytes) -> None:
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._no_room(error) from error

    def finish(self) -> BinaryIO:
        """Return all that has arrived as a stream at its beginning; it now belongs to the caller."""
        self._file.seek(0)
        return io.BufferedReader(self._file)

    def give_up(self) -> None:
        self._file.close()

    def _no_room(self, error: OSError) -> FetchError:
        return FetchError(
            f"the temporary copy cannot be written to {self._directory}: {error.strerror}",
            hint="free space there; the file is fetched again in the next cycle",
            file=self._location,
        )
