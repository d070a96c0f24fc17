"""Since when the present privacy policy is in force: ``policy.json`` in the spool.

A mask's results say nothing of the rules that made them, and a file that lies in the archive is not written
anew. So the archiver notes, before it writes the first file under another policy, which one is the last of
before: that one and the earlier ones may hold values that the present policy masks or withholds. Knows ids
and names of files; knows no rule, and no value.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from syncdata.capture.chain import format_moment
from syncdata.capture.spool import replace_in_spool, translated
from syncdata.capture.verify_walk import forget_key
from syncdata.changes.document import read_document
from syncdata.errors import SourceChangedError, SpoolError
from syncdata.privacy.policy import Policy

POLICY_FILE_NAME = "policy.json"

# No policy's id: the next archiver notes its own.
_UNREADABLE_ID = "unreadable"


class PolicyNote(msgspec.Struct, frozen=True, kw_only=True):
    """The policy (its ``id``, empty where there is none) that files are written under ``since`` a time (RFC
    3339, UTC). ``last_before``: the last change file that was finished before; None where there was none.
    ``is_clean``: that file and the earlier ones are gone from the archive."""

    id: str
    since: str
    last_before: str | None = None
    is_clean: bool = False

    @property
    def has_older_files(self) -> bool:
        """True while the archive may have files from before the policy."""
        return self.last_before is not None and not self.is_clean


def id_of(policy: Policy | None) -> str:
    return "" if policy is None else policy.id


def note_policy(directory: Path, policy_id: str, *, last_file: str | None, now: dt.datetime) -> bool:
    """Remember durably, in the spool *directory*, that files behind *last_file* are written under the policy
    of that id. Return False, and change nothing, where it is the policy that is noted already.

    What the verifier has noted of a row's key goes: it may be one that travels masked from now on.
    """
    known = load_policy_note(directory)
    if known is not None and known.id == policy_id:
        return False
    if policy_id:
        forget_key(directory)
    _save(directory, PolicyNote(id=policy_id, since=format_moment(now), last_before=last_file))
    return True


def note_clean(directory: Path, note: PolicyNote) -> None:
    """Remember that no file from before the policy of *note* is in the archive, unless another one came."""
    if load_policy_note(directory) == note:
        _save(directory, msgspec.structs.replace(note, is_clean=True))


def require_noted_policy(directory: Path, policy_id: str) -> None:
    """Raise SourceChangedError where the archiver has last written under another policy than *policy_id*.

    A snapshot under one policy would go on with change files under the other, and a masked key would then
    name other rows. Where no archiver has run yet, the first one notes the policy.
    Test: test_no_snapshot_is_taken_under_another_policy_than_the_archivers.
    """
    note = load_policy_note(directory)
    if note is not None and note.id != policy_id:
        raise SourceChangedError(
            "the privacy policy is not the one that the archiver has last worked under",
            hint="start archive_changes anew, so that it takes the policy up, then take the snapshot",
        )


def load_policy_note(directory: Path) -> PolicyNote | None:
    """Return the note in the spool *directory*; None where there is none. One that cannot be read is that of
    no policy."""
    path = directory / POLICY_FILE_NAME
    try:
        with translated(path):
            note = read_document(path.read_bytes(), PolicyNote)
        dt.datetime.fromisoformat(note.since)
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except ValueError:
        return PolicyNote(id=_UNREADABLE_ID, since="1970-01-01T00:00:00Z")
    return note


def _save(directory: Path, note: PolicyNote) -> None:
    replace_in_spool(directory / POLICY_FILE_NAME, msgspec.json.encode(note) + b"\n")
