"""The daemon's work beside reading: it looks at the source now and then, and prunes the archive.

Knows when to work, and which warnings it has logged already; the two tasks are passed in. Its errors are
only logged: the archiver uses the same source and archive, and decides whether an error ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from syncdata.archive.retention import Removals
from syncdata.capture.publication import (
    Part,
    Published,
    find_alterations,
    find_faults,
    load_parts,
    read_published,
    save_parts,
)
from syncdata.capture.slot import Slot, published_tables, read_slot
from syncdata.capture.source import connect, read_timeline
from syncdata.capture.status import retention_warning, unpublished_warning
from syncdata.changes.names import TableName
from syncdata.errors import Problem, SyncError
from syncdata.runtime.retry import Backoff
from syncdata.runtime.told import Told
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

_FIRST_WATCH_S, _WATCH_EVERY_S = 1.0, 10.0
# A copy reads whole tables, so one that fails is tried again soon, and then ever later.
_FIRST_COPY_AGAIN_S, _LAST_COPY_AGAIN_S = 10.0, 300.0
# PostgreSQL opens the published tables to answer: an ALTER TABLE must not keep us for as long as it takes.
_LOCK_TIMEOUT = "5s"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """The slot as it stands now (None: there is none), and the configured tables that are not published.

    ``published``: what is of the others; ``faults``: what of that is not as it should be. ``timeline`` is the
    server's, None for a standby.
    """

    slot: Slot | None
    unpublished: tuple[TableName, ...]
    published: Published = field(default_factory=Published)
    faults: tuple[Problem, ...] = ()
    timeline: int | None = None

    @property
    def warnings(self) -> list[Problem]:
        """The warnings: the slot is about to be lost, or changes of an unpublished table are lost."""
        found = [retention_warning(self.slot)] if self.slot else []
        if self.unpublished:
            found.append(unpublished_warning([*map(str, self.unpublished)]))
        found += self.faults
        return [warning for warning in found if warning is not None]


def view_source(
    params: Mapping[str, Any], *, slot_name: str, publication: str, tables: Sequence[TableName]
) -> SourceView:
    """Look at the source, on a connection of its own. Raises SourceConnectionError, soon also where somebody
    holds a table. Test: test_a_partition_that_is_held_does_not_keep_the_status_waiting."""
    with connect(params) as connection:
        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        names = published_tables(connection, publication)
        published = read_published(connection, publication, tables)
        return SourceView(
            slot=read_slot(connection, slot_name),
            unpublished=tuple(table for table in tables if table not in names),
            published=published,
            faults=tuple(find_faults(published, publication)),
            timeline=read_timeline(connection),
        )


def too_large_to_copy(tables: Sequence[TableName]) -> str:
    """Return the warning that *tables* are larger than what the archiver copies by itself."""
    names = ", ".join(map(str, tables))
    arguments = " ".join(table.argument for table in tables)
    return (
        f"rows changed without a record, and the tables are larger than source.snapshot_bytes: {names}"
        f" (run 'archive_changes --snapshot {arguments}' when production can bear it)"
    )


class Watch:
    """Looks at the source again and again, and sees what was altered since the first look.

    The first look is noted in *spool_dir*, for `--status`; it sees what was altered while no archiver ran.
    """

    def __init__(self, view: Callable[[], SourceView], spool_dir: Path) -> None:
        self._view = view
        self._spool_dir = spool_dir
        self._parts: Mapping[TableName, Part] | None = None

    def __call__(self) -> SourceView:
        view = self._view()
        parts = view.published.parts
        before = load_parts(self._spool_dir) if self._parts is None else self._parts
        # A table that is published later is as it should be when it comes.
        known = parts if self._parts is None else {**parts, **self._parts}
        if known != self._parts:
            save_parts(self._spool_dir, known)
            self._parts = known
        return replace(view, faults=(*view.faults, *find_alterations(before, parts)))


class Housekeeper:
    """A thread for the block, beside a running archiver. It prunes every *prune_every_s*; 0: never.

    *copy* takes the snapshots that are owed, and returns the tables that are too large for it.
    """

    def __init__(
        self,
        view: Callable[[], SourceView],
        prune: Callable[[], Removals],
        *,
        prune_every_s: float,
        copy: Callable[[], Sequence[TableName]] = tuple,
        stop: threading.Event,
    ) -> None:
        self._view = view
        self._prune = prune
        self._copy = copy
        self._copy_due_s = 0.0
        self._copy_backoff = Backoff(_FIRST_COPY_AGAIN_S, _LAST_COPY_AGAIN_S)
        self._too_large: Sequence[TableName] = ()
        self._prune_every_s = prune_every_s
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="syncdata-housekeeper", daemon=True)
        self._ended = threading.Event()
        self._told = Told()
        self._warned: frozenset[tuple[str, str]] = frozenset()
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
                self.copy_rewritten()
                if self._prune_every_s and time.monotonic() >= prune_due_s and not self._stop.is_set():
                    prune_due_s = time.monotonic() + self._prune_every_s
                    self.prune_archive()
            except SyncError as error:
                logger.warning("%s", error, extra={"code": error.code})
            except Exception as error:  # the thread goes on, whatever it is
                trouble = unexpected_error(error)
                self._told.trouble(logger, trouble, "housekeeper", extra=trouble.fields)

    def watch_source(self) -> None:
        """Log each kind of warning when it comes up; while it lasts it is not logged again, even if its
        numbers change."""
        warnings = self._view().warnings
        for warning in warnings:
            if (warning.kind, warning.table) not in self._warned:
                logger.warning("%s", warning)
        self._warned = frozenset((warning.kind, warning.table) for warning in warnings)

    def copy_rewritten(self) -> None:
        """Take the snapshots that are owed; after each failure in a row, not again for longer."""
        if time.monotonic() < self._copy_due_s or self._stop.is_set():
            return
        try:
            too_large = self._copy()
        except BaseException:
            self._copy_due_s = time.monotonic() + self._copy_backoff.next_s()
            raise
        self._copy_backoff.reset()
        if too_large and too_large != self._too_large:
            logger.warning("%s", too_large_to_copy(too_large))
        self._too_large = too_large

    def prune_archive(self) -> None:
        """Prune; log why no change file could be removed, unless it was for the same tables the last time."""
        removals = self._prune()
        if removals.reason and removals.without_snapshot != self._without_snapshot:
            logger.warning("%s", removals.reason)
        self._without_snapshot = removals.without_snapshot
