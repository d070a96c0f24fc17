"""The daemon's work beside reading: it looks at the source every minute, and prunes the archive now and then.

Knows when to work, and which warnings it has logged already; the two tasks are passed in. Its errors are
only logged: the archiver uses the same source and archive, and decides whether an error ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syncdata.archive.retention import Removals
from syncdata.capture.slot import Slot, published_tables, read_slot
from syncdata.capture.source import connect
from syncdata.capture.status import retention_warning, unpublished_warning
from syncdata.changes.names import TableName
from syncdata.errors import Problem, SyncError

logger = logging.getLogger(__name__)

_FIRST_WATCH_S, _WATCH_EVERY_S = 1.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """The slot as it stands now (None: there is none), and the configured tables that are not published."""

    slot: Slot | None
    unpublished: tuple[TableName, ...]

    @property
    def warnings(self) -> list[Problem]:
        """The warnings: the slot is about to be lost, or changes of an unpublished table are lost."""
        found = [retention_warning(self.slot)] if self.slot else []
        if self.unpublished:
            found.append(unpublished_warning([*map(str, self.unpublished)]))
        return [warning for warning in found if warning is not None]


def view_source(
    params: Mapping[str, Any], *, slot_name: str, publication: str, tables: Sequence[TableName]
) -> SourceView:
    """Look at the source, on a connection of its own. Raises SourceConnectionError."""
    with connect(params) as connection:
        published = published_tables(connection, publication)
        return SourceView(
            slot=read_slot(connection, slot_name),
            unpublished=tuple(table for table in tables if table not in published),
        )


class Housekeeper:
    """A thread for the block, beside a running archiver. It prunes every *prune_every_s*; 0: never."""

    def __init__(
        self,
        view: Callable[[], SourceView],
        prune: Callable[[], Removals],
        *,
        prune_every_s: float,
        stop: threading.Event,
    ) -> None:
        self._view = view
        self._prune = prune
        self._prune_every_s = prune_every_s
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="syncdata-housekeeper", daemon=True)
        self._ended = threading.Event()
        self._warned: frozenset[str] = frozenset()
        self._without_snapshot: tuple[TableName, ...] = ()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        prune_due_s = time.monotonic() + self._prune_every_s
        wait_s = _FIRST_WATCH_S
        while not self._ended.wait(wait_s):
            wait_s = _WATCH_EVERY_S
            try:
                self.watch_source()
                if self._prune_every_s and time.monotonic() >= prune_due_s and not self._stop.is_set():
                    prune_due_s = time.monotonic() + self._prune_every_s
                    self.prune_archive()
            except SyncError as error:
                logger.warning("%s", error, extra={"code": error.code})

    def watch_source(self) -> None:
        """Log each kind of warning when it comes up; while it lasts it is not logged again, even if its
        numbers change."""
        warnings = self._view().warnings
        for warning in warnings:
            if warning.kind not in self._warned:
                logger.warning("%s", warning)
        self._warned = frozenset(warning.kind for warning in warnings)

    def prune_archive(self) -> None:
        """Prune; log why no change file could be removed, unless it was for the same tables the last time."""
        removals = self._prune()
        if removals.reason and removals.without_snapshot != self._without_snapshot:
            logger.warning("%s", removals.reason)
        self._without_snapshot = removals.without_snapshot
