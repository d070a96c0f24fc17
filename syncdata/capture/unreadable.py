"""The transaction that the source cannot hand over, remembered in the spool; and those that were left out.

Knows two small files: ``unreadable.json``, the transaction that holds the stream now, with its error, and
``left_out.jsonl``, a line for each transaction that an operator has left out. What readers must know of those
stands in the catalog (`PublishedTable.left_out`).
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from syncdata.capture.chain import Chain
from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import Reason, SpoolError, UnreadableChangeError

UNREADABLE_FILE_NAME = "unreadable.json"
LEFT_OUT_FILE_NAME = "left_out.jsonl"


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction that could not be read: its commit LSN (``X/Y``), and the error as it is told."""

    commit_lsn: str
    error: str
    hint: str = ""

    @property
    def lsn(self) -> int:
        return parse_lsn(self.commit_lsn)

    @property
    def reason(self) -> Reason:
        return Reason(text=self.error, code=UnreadableChangeError.code, hint=self.hint)


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction that was left out: when (RFC 3339, UTC), by whom, and the error that it had."""

    commit_lsn: str
    at: str
    by: str
    error: str


def note_unreadable(directory: Path, commit_lsn: int, error: UnreadableChangeError) -> None:
    """Remember durably, in the spool *directory*, that *error* holds the stream."""
    held = Unreadable(commit_lsn=format_lsn(commit_lsn), error=str(error), hint=error.hint)
    replace_in_spool(directory / UNREADABLE_FILE_NAME, msgspec.json.encode(held) + b"\n")


def load_unreadable(directory: Path, chain: Chain | None) -> Unreadable | None:
    """Return the transaction that holds the stream; None where there is none, or *chain* is past it."""
    path = directory / UNREADABLE_FILE_NAME
    try:
        with translated(path):
            held = read_document(path.read_bytes(), Unreadable)
        is_past = chain is not None and max(chain.confirmed, chain.watermark + 1) > held.lsn
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except ValueError:
        return None  # the next try finds the transaction again
    return None if is_past else held


def forget_unreadable(directory: Path) -> None:
    """Remove the note of a transaction that holds the stream, where there is one. Raises SpoolError."""
    path = directory / UNREADABLE_FILE_NAME
    with translated(path):
        path.unlink(missing_ok=True)


def log_left_out(directory: Path, entry: LeftOut) -> None:
    """Add *entry* to the list of what was left out; durable on return."""
    path = directory / LEFT_OUT_FILE_NAME
    with translated(path), path.open("ab") as log:
        log.write(msgspec.json.encode(entry) + b"\n")
        log.flush()
        os.fsync(log.fileno())


def load_left_out(directory: Path) -> list[LeftOut]:
    """Return what was left out, oldest first; lines that cannot be read are passed over."""
    path = directory / LEFT_OUT_FILE_NAME
    try:
        with translated(path):
            lines = path.read_bytes().splitlines()
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    found = []
    for line in lines:
        try:
            found.append(read_document(line, LeftOut))
        except ValueError:
            continue
    return found
