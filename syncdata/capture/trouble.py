"""The archiver's note of an error that nobody foresaw, ``trouble.json`` in the spool: for ``--status``.

It is there from the first such error until a session has gone on for a while. Knows the file; the archiver
knows when one begins and ends.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.errors import Problem, Reason, SpoolError, SyncError

TROUBLE_FILE_NAME = "trouble.json"


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """The error, how often it has come in a row, and when it came last."""

    code: str
    text: str
    count: int
    at: str


def note_trouble(directory: Path, error: SyncError, *, at: str) -> None:
    """Note *error* in the spool *directory*. Raises SpoolError."""
    before = load_trouble(directory)
    count = before.count if before else 0
    trouble = Trouble(code=error.code, text=str(error), count=count + 1, at=at)
    replace_in_spool(directory / TROUBLE_FILE_NAME, msgspec.json.encode(trouble) + b"\n")


def forget_trouble(directory: Path) -> None:
    """Remove the note, where there is one. Raises SpoolError."""
    path = directory / TROUBLE_FILE_NAME
    with translated(path):
        path.unlink(missing_ok=True)


def load_trouble(directory: Path) -> Trouble | None:
    """Return the note; None where there is none that can be read: it is for people alone."""
    path = directory / TROUBLE_FILE_NAME
    try:
        with translated(path):
            return read_document(path.read_bytes(), Trouble)
    except (SpoolError, ValueError):
        return None


def trouble_problems(directory: Path) -> list[Problem]:
    """Return the noted error as what `--status` tells."""
    trouble = load_trouble(directory)
    if trouble is None:
        return []
    times = "once" if trouble.count == 1 else f"{trouble.count} times"
    text = f"the archiver fails and tries again ({times} in a row, last at {trouble.at})"
    return [Problem(kind="unexpected", text=text, reason=Reason(text=trouble.text, code=trouble.code))]
