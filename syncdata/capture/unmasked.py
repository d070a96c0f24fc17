"""Of which columns the stream had values that no mask could take: ``unmasked.json`` in the spool, for
``--status``.

Something harmless travels in the place of such a value. Somebody should know of it all the same: a column
may need another rule. Knows no value. The counts say how often a mask was tried in vain: what is sent
again, or is taken one by one after a run was tried, counts once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError
from syncdata.privacy.row_mask import RowMask

logger = logging.getLogger(__name__)

UNMASKED_FILE_NAME = "unmasked.json"

# By table and column.
Counts = Mapping[str, Mapping[str, int]]


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    counts: dict[str, dict[str, int]] = {}


class Unmasked:
    """Counts under the policy of that id, beginning with what the spool *directory* has of it."""

    def __init__(self, directory: Path, policy_id: str) -> None:
        self._directory = directory
        self._policy_id = policy_id
        self._counts = {table: dict(counts) for table, counts in load_unmasked(directory, policy_id).items()}
        self._masks: dict[int, tuple[str, RowMask]] = {}
        self._is_new = False

    def watch(self, oid: int, table: TableName, mask: RowMask) -> None:
        """Count what *mask* cannot take from now on, in the place of the one before for the table *oid*."""
        self._collect(oid)
        self._masks[oid] = (str(table), mask)

    def save(self) -> None:
        """Log each column that is new, and write the counts where there are new ones. Raises SpoolError."""
        for oid in self._masks:
            self._collect(oid)
        if self._is_new:
            note = _Note(policy=self._policy_id, counts=self._counts)
            replace_in_spool(self._directory / UNMASKED_FILE_NAME, msgspec.json.encode(note) + b"\n")
            self._is_new = False

    def _collect(self, oid: int) -> None:
        if oid not in self._masks or not self._masks[oid][1].unmasked:
            return
        table, mask = self._masks[oid]
        counts = self._counts.setdefault(table, {})
        for column, count in mask.unmasked.items():
            if column not in counts:
                logger.warning(
                    "%s: %s has values that its mask cannot take; something else stands in their place",
                    table,
                    column,
                )
            counts[column] = counts.get(column, 0) + count
        mask.unmasked.clear()
        self._is_new = True


def load_unmasked(directory: Path, policy_id: str | None) -> Counts:
    """Return the counts in the spool *directory*; none where they are another policy's, or cannot be read."""
    path = directory / UNMASKED_FILE_NAME
    try:
        with translated(path):
            note = read_document(path.read_bytes(), _Note)
    except (SpoolError, ValueError):
        return {}
    return note.counts if note.policy == policy_id else {}
