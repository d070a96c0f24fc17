"""Makes files and their names survive a power cut. Knows paths; knows nothing of what the files hold."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Put *content* in the place of *path*; after a crash, the old file or the new one is there, never half.

    The file is readable by its owner alone. Raises OSError: then *path* is as it was or, where only the
    directory could not be flushed, holds *content* and may lose it in a power cut.
    """
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    fsync_directory(path.parent)


def private(path: str, flags: int) -> int:
    """Open *path* for `open`, as its opener: a file that is made is readable by its owner alone."""
    return os.open(path, flags, 0o600)


def fsync_file(path: Path) -> None:
    """Make what *path* holds survive a power cut, whoever wrote it. Raises OSError."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(directory: Path) -> None:
    """Make the names in *directory* survive a power cut. Raises OSError."""
    _fsync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
