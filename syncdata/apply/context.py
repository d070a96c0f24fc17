"""The surroundings of all work on the local side: session, archive and settings, observer and mirror.

Knows no Django. The protocols here are ports: modules above `apply` implement them.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from psycopg import Connection

from syncdata.apply.feed.as_of import End
from syncdata.apply.plan.batches import Limits
from syncdata.apply.position import Position
from syncdata.apply.progress import NoProgress, Progress
from syncdata.apply.result import Activity, CycleResult, SyncResult
from syncdata.apply.sink import DaemonSink
from syncdata.apply.verifying import Budget
from syncdata.archive.archive import Archive
from syncdata.changes.names import TableName
from syncdata.errors import SyncError
from syncdata.runtime.told import Told

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The surroundings of one piece of work. ``requested_by`` names the person who asked for it, for the
    audit log. ``needs_snapshot``: a table without a good snapshot is not rebuilt. ``budget``: the time for
    verifying; without it nothing is verified. ``end``: no table goes beyond it."""

    archive: Archive
    limits: Limits
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    requested_by: str | None = None
    needs_snapshot: bool = False
    told: Told = field(default_factory=Told)
    budget: Budget | None = None
    end: End | None = None


def divided(limits: Limits, parts: int) -> Limits:
    """Return what each of *parts* pieces of work may hold that are at work at the same time."""
    return replace(
        limits,
        batch_records=max(limits.batch_records // parts, 1),
        batch_bytes=max(limits.batch_bytes // parts, 1),
    )


class LocalSession(Protocol):
    """The port of a connection to the local database, and of the lock that its only daemon holds."""

    @property
    def is_open(self) -> bool: ...

    def connect(self) -> Connection[Any]:
        """Return the connection; a new one, with the lock if that was held, where it has broken.

        Raises SyncError when that cannot be had.
        """
        ...

    def close(self) -> None: ...

    def lock(self) -> None:
        """Become the only daemon. Raises RunError when there is another."""
        ...

    def unlock(self) -> None: ...

    def another(self) -> LocalSession:
        """Return a session of its own on the same database, without the lock."""
        ...


class Observer(Protocol):
    """A listener that is told what was done, after its commit and outside of any transaction."""

    def cycle_finished(self, result: CycleResult, summary: SyncResult, error: SyncError | None) -> None:
        """A cycle has ended; *result* and *summary* hold what was applied even when *error* ended it."""
        ...

    def action_done(self, action: str, activity: Mapping[TableName, Activity]) -> None:
        """A ``resync`` or ``clear`` of the tables of *activity* is done."""
        ...


class Mirror(Protocol):
    """A copy of the state outside of the database, for tools that look there."""

    def adopt(self, connection: Connection[Any]) -> None:
        """Set the checkpoints to where the mirror says, if the database holds none. Raises psycopg.Error."""
        ...

    def save(self, connection: Connection[Any], position: Position, *, now: dt.datetime) -> None:
        """Write the state to the mirror; *position* is that of the farthest table. Raises SyncError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySettings:
    """``log_keep_days``: how long the audit log keeps its entries; 0: for ever. ``jobs``: how many tables are
    loaded at once. ``verifies``: rows are held to the archive's checks; ``heals``: and a resync is asked for
    where a table is found to differ."""

    limits: Limits
    interval_s: int
    log_keep_days: int = 0
    jobs: int = 1
    heals: bool = False
    verifies: bool = True


class Resources:
    """The resources of one process: a session, an archive and a sink, each opened at its first use, the
    settings, and the ports. *progress* is told of the progress of the work, if it is given.

    *open_sink* makes the sink on a connection, for the run whose number it is given, if any. All changes go
    through it, those of snapshots and resyncs too. ``parts``: among so many pieces of work that go on at the
    same time the limits are divided. ``budget``: the time that verifying may take of this process's.
    ``end``: no table goes beyond it, whatever is done, while it is set.
    """

    def __init__(
        self,
        session: LocalSession,
        open_archive: Callable[[], Archive],
        settings: ApplySettings,
        *,
        open_sink: Callable[[Connection[Any], int | None], DaemonSink[Any]],
        observer: Observer,
        mirror: Mirror,
        progress: Progress | None = None,
    ) -> None:
        self.session = session
        self.settings = settings
        self.observer = observer
        self.mirror = mirror
        self.progress = progress
        self.told = Told()
        self.parts = 1
        self.end: End | None = None
        self.budget = Budget(now_s=time.monotonic()) if settings.verifies else None
        self._open_archive = open_archive
        self._open_sink = open_sink
        self._archive: Archive | None = None

    def connect(self) -> Connection[Any]:
        """Return the session's connection, which may be another than before. Raises SyncError."""
        return self.session.connect()

    def open_sink(self, *, run_id: int | None = None) -> DaemonSink[Any]:
        """Return a new sink on the session's connection. Raises SyncError."""
        return self._open_sink(self.connect(), run_id)

    def archive(self) -> Archive:
        if self._archive is None:
            self._archive = self._open_archive()
        return self._archive

    def close_archive(self) -> None:
        if self._archive is not None:
            archive, self._archive = self._archive, None
            archive.close()

    def another(self) -> Resources:
        """Return the same resources once more, with a session and an archive of their own: for a thread."""
        other = Resources(
            self.session.another(),
            self._open_archive,
            self.settings,
            open_sink=self._open_sink,
            observer=self.observer,
            mirror=self.mirror,
            progress=self.progress,
        )
        other.told, other.parts, other.end = self.told, self.parts, self.end
        return other

    def give_up(self) -> None:
        """Let go of session and archive, whatever state they are in; both are opened again when they are next
        asked for."""
        for close in (self.session.close, self.close_archive):
            try:
                close()
            except Exception as error:  # it is being thrown away
                logger.debug("not closed cleanly: %s", type(error).__name__)

    def context(self, stop: threading.Event) -> Context:
        """Return the context of a piece of work, which ends early once *stop* is set."""
        return Context(
            archive=self.archive(),
            limits=divided(self.settings.limits, self.parts),
            progress=self.progress or NoProgress(),
            stop=stop,
            told=self.told,
            budget=self.budget,
            end=self.end,
        )
