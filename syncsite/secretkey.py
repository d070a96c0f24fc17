"""The site's SECRET_KEY where the operator has not set one: made once, kept beside the configuration."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from django.core.management.utils import get_random_secret_key

logger = logging.getLogger(__name__)

FILE_NAME = ".syncdata_secret_key"


def load_or_create_secret_key(directory: Path) -> str:
    """Return the key kept in *directory*; make it, readable by its owner only, where there is none.

    Processes that start at once end up with the same key. Where none can be kept or read (commands may
    run as another user), the key is good for this process alone.
    """
    path = directory / FILE_NAME
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        _create(path)
        return _read(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        logger.warning("%s cannot be used (%s): logins end with this process; set SECRET_KEY", path, why)
        return get_random_secret_key()


def _read(path: Path) -> str:
    key = path.read_text().strip()
    if not key:
        raise OSError(None, "it is empty")
    return key


def _create(path: Path) -> None:
    # mkstemp makes the file with O_EXCL and mode 0600; the link gives it its name only when it is whole,
    # and never replaces the key of a process that was faster.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(get_random_secret_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
