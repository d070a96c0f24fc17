"""What the privacy policy comes to at the source, ``privacy.json`` in the spool: for ``--status``.

The catalog has the columns of tables that travel. Which tables do not, and what of the policy cannot hold,
stands here alone. Names and rules only; knows no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from syncdata.capture.protection import problems_of, withheld_tables
from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError
from syncdata.privacy.policy import Policy, TableVerdict

PRIVACY_FILE_NAME = "privacy.json"


class PrivacyNote(msgspec.Struct, frozen=True, kw_only=True):
    """The policy, by its id; the tables that are withheld; and what cannot hold, each with its table."""

    policy: str
    withheld_tables: tuple[TableName, ...] = ()
    problems: tuple[str, ...] = ()


def note_privacy(directory: Path, policy: Policy | None, verdicts: Mapping[TableName, TableVerdict]) -> None:
    """Note in the spool *directory* what *policy* comes to; no note without one. Raises SpoolError."""
    path, known = directory / PRIVACY_FILE_NAME, load_privacy_note(directory)
    if policy is None:
        if known is not None:
            with translated(path):
                path.unlink(missing_ok=True)
        return
    note = PrivacyNote(
        policy=policy.id,
        withheld_tables=tuple(sorted(withheld_tables(verdicts))),
        problems=tuple(sorted(problems_of(verdicts))),
    )
    if note != known:
        replace_in_spool(path, msgspec.json.encode(note) + b"\n")


def load_privacy_note(directory: Path) -> PrivacyNote | None:
    """Return the note; None where there is none that can be read: it is for people alone."""
    path = directory / PRIVACY_FILE_NAME
    try:
        with translated(path):
            return read_document(path.read_bytes(), PrivacyNote)
    except (SpoolError, ValueError):
        return None
