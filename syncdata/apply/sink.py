"""The ports that all changes go through: batches of many tables, and new rows for one. Knows batches and
positions; knows nothing of rows, plans or databases.

PostgreSQL's sinks are postgres/target.py (the tables) and postgres/shadow.py (one table being rebuilt).
Another consumer is one module with a `DaemonSink` and its `Rebuild`, and the line in service.py that makes
it. Where its checkpoints are kept is its own affair; state/checkpoints.py keeps them for whoever has a
connection.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import Batch
from syncdata.apply.position import Advance, Position
from syncdata.changes.catalog import Catalog
from syncdata.changes.names import TableName
from syncdata.changes.verification import Check
from syncdata.errors import ApplyError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.runtime.prefetch import prefetch

if TYPE_CHECKING:
    from syncdata.apply.state.checkpoints import TableCheckpoint

P = TypeVar("P")
T = TypeVar("T")

# The thread that prepares.
PREPARING = "syncdata-prepare"

# How long others may hold a lock on a table before the tables beside it go on without it.
LOCK_LIMIT_S = 30.0


class LockedError(Exception):
    """Others hold a lock, and nothing was done: try again, or go on without the ``table``. It is None where
    the lock is on none of the tables. ``error`` says who they are."""

    def __init__(self, table: TableName | None) -> None:
        super().__init__(table)
        self.table = table
        self.error: SyncError = ApplyError("others hold a lock", hint="let their transactions end")


class ApartError(Exception):
    """A batch of several files met something out of the ordinary, and nothing was done: apply its files one
    by one, so that what is found is that of the file and the line where it is."""


def patiently(step: Callable[[], T], *, stop: threading.Event) -> T:
    """Return what *step* does once others let go of their locks.

    Raises ReadingStopped once *stop* is set, and the error of the last LockedError after the limit.
    """
    deadline = time.monotonic() + LOCK_LIMIT_S
    while True:
        try:
            return step()
        except LockedError as locked:
            if stop.is_set():
                raise ReadingStopped from None
            if time.monotonic() > deadline:
                raise locked.error from None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of a batch: its effect by table, and the tables that it left blocked."""

    counts: dict[TableName, Counts] = field(default_factory=dict)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)


class Sink(Protocol[P]):
    """A consumer of batches. *P* is what `prepare` returns and `apply` takes; nobody else looks inside."""

    def begin_file(self, tables: Collection[TableName]) -> None:
        """Get ready for batches of one file, or of several small ones, for *tables*: look up what preparing
        them needs. Not called while `apply` is at work, but perhaps while `prepare` is."""
        ...

    def prepare(self, batch: Batch) -> P:
        """Return *batch* ready to be applied.

        Runs in a thread of its own while `apply` is at work on the batch before, so it touches no
        connection. An error in one table's records is not raised here: it is part of the result.
        """
        ...

    def apply(self, prepared: P, advance: Advance) -> Outcome:
        """Apply *prepared* and move the checkpoints of the tables of *advance*, all of it or nothing.

        Tables that fail stay at the start and are in the outcome's ``blocked``. The next batch may have been
        prepared with their records, so records of tables that are not in *advance* are left out. Raises, with
        nothing done, LockedError after a second or more in which others hold a lock, CheckpointMovedError
        when a table does not stand at the start with its watermark, and SyncError when the sink itself fails.
        Where the batch holds several files, it may raise ApartError; it must where their counts of missing
        rows cannot be told apart.
        """
        ...

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        """Mark the tables of *watermarks*, which stand at *start*, blocked by *error*.

        Raises CheckpointMovedError when one does not stand there any more.
        """
        ...

    def unblock(self, tables: Collection[TableName]) -> None:
        """Mark *tables* as not blocked any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of holding the rows of *table* to *check*. ``is_equal`` is None where they could not be
    compared; ``reason`` says why, or in what they differ, without any of their values."""

    table: TableName
    check: Check
    is_equal: bool | None
    rows_here: int = 0
    reason: str = ""


class Verifier(Protocol):
    """Holds rows to the checks of the archive."""

    def verify(
        self, checks: Sequence[Check], published: Catalog | None, *, position: Position
    ) -> list[Verdict]:
        """Compare the rows of each of *checks* with it, and keep the verdicts, which are returned.

        *position* is where the tables stand and the checks hold. *published* is what production
        publishes there, None where that is not known. Not called while `apply` is at work. A table
        that does not stand there any more, or cannot be read now, has no verdict or one without a result.
        Raises SyncError when the sink itself fails.
        """
        ...

    def pass_over(self, ends: Sequence[Check], *, position: Position) -> None:
        """Note that rounds ended with the checks *ends*, to which no rows were held; their tables stand at
        *position*. Of a round none of whose checks was taken nothing is noted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """What a look at the tables has found, by table as the error that says it. ``unfit``: they cannot take
    rows now. ``replaced``: they were made anew since rows went there, which a rebuild mends."""

    unfit: dict[TableName, SyncError] = field(default_factory=dict)
    replaced: dict[TableName, SyncError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a table gets new rows for: ``action`` (``snapshot`` or ``resync``), and ``requested_by`` for it.
    ``only_from``: where the table must still stand in the end, if that matters. ``ends_pause``: the table was
    paused when it was asked for, and is not to be in the end."""

    action: str
    only_from: Position | None = None
    ends_pause: bool = False
    requested_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """The result of comparing a table with new rows. ``rows``: the new ones. ``missing`` of them are not
    here, ``too_many`` here are not among them, ``different`` have the same key and other values."""

    rows: int
    missing: int = 0
    too_many: int = 0
    different: int = 0

    @property
    def are_none(self) -> bool:
        return not (self.missing or self.too_many or self.different)


class Rebuild(Sink[P], Protocol[P]):
    """New rows for one table, which nobody sees before `exchange`: a sink for batches of that table.

    Nothing is left blocked: `apply` raises what blocks a table elsewhere, and `block` what it is told. All of
    it raises an ApplyError that names no table when the sink itself fails, so that the table is not to blame.
    """

    @property
    def must_fit_others(self) -> bool:
        """Whether the rows must be of the moment that those of the other tables are of."""
        ...

    def restart(self) -> None:
        """Throw away what was applied: the snapshot that it came from is broken."""
        ...

    def accept(self) -> bool:
        """Check the rows of the snapshot that was loaded, as a whole. False when it must be loaded once more:
        its rows are thrown away, and from now on each is checked as it comes."""
        ...

    def compare(self, position: Position) -> Differences | None:
        """Compare the new rows, which stand at *position*, with the old ones, and change nothing.

        None where the table stands at another place, or has other transactions. Raises SyncError where it is
        not known which of its columns production has.
        """
        ...

    def exchange(
        self,
        position: Position,
        *,
        counts: Counts,
        reference: str,
        now: dt.datetime,
        duration_ms: int,
        is_whole: bool,
    ) -> None:
        """Put the new rows in the place of the old ones and the checkpoint at *position*, and audit it, all
        of it or nothing. *counts*: what was applied; *reference*: the file that the audit row names;
        *is_whole*: no older rows can be missing.

        Raises CheckpointMovedError unless the checkpoint is where it must be, and LockedError.
        """
        ...


class RebuildSink(Sink[P], Protocol[P]):
    """A sink for batches of several tables that are being rebuilt. A table that fails leaves the others, and
    its error is among those of ``failed``."""

    @property
    def failed(self) -> Mapping[TableName, SyncError]: ...


class DaemonSink(Sink[P], Verifier, Protocol[P]):
    """A sink for the daemon, which uses it for cycle after cycle; it knows where its tables stand, and holds
    their rows to the archive's checks."""

    def is_on(self, connection: Any) -> bool:
        """Tell whether the sink works on *connection*; if not, its own was lost, and the sink is replaced."""
        ...

    def learn_from(self, other: DaemonSink[P]) -> None:
        """Take over what *other*, a sink of the same kind, has looked up of the tables. It may be at work in
        another thread."""
        ...

    def checkpoints(self) -> list[TableCheckpoint]:
        """Return the checkpoint of every whitelisted table, paused ones too, new ones at the beginning."""
        ...

    def examine(self, checkpoints: Collection[TableCheckpoint]) -> Fitness:
        """Look at the tables of *checkpoints* before any record goes there."""
        ...

    def turns(self, tables: Collection[TableName]) -> list[list[TableName]]:
        """Return *tables* in the turns in which they are to begin: those that others refer to go first. The
        tables of one turn may begin side by side."""
        ...

    def open_rebuild(self, table: TableName, purpose: Purpose) -> AbstractContextManager[Rebuild[Any]]:
        """Begin to give *table* new rows; what has not been exchanged at the end is dropped.

        Raises LockedError.
        """
        ...

    def together(self, rebuilds: Mapping[TableName, Rebuild[Any]]) -> RebuildSink[Any]:
        """Return a sink for batches of all the tables of *rebuilds*, which are this sink's own."""
        ...

    def rest(self) -> None:
        """Let go of resources that are needed only within a cycle."""
        ...


def prepare_ahead(
    sink: Sink[P], batches: Iterator[Batch]
) -> AbstractContextManager[Iterator[tuple[Batch, P]]]:
    """Return *batches*, each with what *sink* made of it; the next is prepared while the caller applies one.

    The caller leaves the context before it begins another file.
    """
    return closing(prefetch(((batch, sink.prepare(batch)) for batch in batches), name=PREPARING))
