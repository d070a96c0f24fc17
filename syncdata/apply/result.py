"""The results of work as values: of a batch in one table, of a cycle, of a resync; and their sums. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Self

from syncdata.apply.counts import Counts
from syncdata.apply.position import Position
from syncdata.changes.names import TableName
from syncdata.errors import SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The effect of one batch on one table. ``last_change_at`` and ``last_lsn``: of its newest record."""

    counts: Counts = field(default_factory=Counts)
    last_change_at: dt.datetime | None = None
    last_lsn: str | None = None
    duration_ms: int = 0


@dataclass(slots=True, kw_only=True)
class Activity:
    """The records applied to one table. ``files``: the number of files, or snapshots, that held them."""

    counts: Counts = field(default_factory=Counts)
    files: int = 0
    first_file: str = ""
    last_file: str = ""

    def add(self, counts: Counts, *, file: str) -> None:
        self.counts.add(counts)
        self.files += file != self.last_file
        self.first_file = self.first_file or file
        self.last_file = file

    def join(self, later: Activity) -> None:
        """Add the activity of a later pass, perhaps in the same file."""
        self.counts.add(later.counts)
        self.files += later.files - (later.first_file == self.last_file != "")
        self.first_file = self.first_file or later.first_file
        self.last_file = later.last_file or self.last_file


@dataclass(slots=True, kw_only=True)
class Verified:
    """How many checks one table's rows were held to: those that they were equal to, those that they differed
    from, and those that they could not be compared with."""

    equal: int = 0
    differing: int = 0
    not_compared: int = 0

    def add(self, is_equal: bool | None) -> None:
        self.equal += is_equal is True
        self.differing += is_equal is False
        self.not_compared += is_equal is None

    def join(self, later: Verified) -> None:
        self.equal += later.equal
        self.differing += later.differing
        self.not_compared += later.not_compared


@dataclass(slots=True, kw_only=True)
class CycleResult:
    """The result of a cycle. ``skipped``: records of tables that are not whitelisted. ``waiting_for``: the
    newest file, while it is being written. ``activity``: by table, what has been committed. ``verified``: by
    table, what its rows were held to. ``newly_blocked``: tables that were not blocked before, or for another
    reason. ``newly_differing``: those whose rows came to be known not to be production's, with what was
    found; ``equal_again``: those of which that is over. ``short_of``: the archive does not reach the point
    yet up to which the cycle was to go."""

    files_processed: int = 0
    counts: Counts = field(default_factory=Counts)
    activity: dict[TableName, Activity] = field(default_factory=dict)
    verified: dict[TableName, Verified] = field(default_factory=dict)
    skipped: int = 0
    failed: int = 0
    last_lsn: str = ""
    position: Position = field(default_factory=Position)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)
    newly_blocked: dict[TableName, SyncError] = field(default_factory=dict)
    waiting_for: str = ""
    newly_differing: dict[TableName, str] = field(default_factory=dict)
    equal_again: set[TableName] = field(default_factory=set)
    short_of: SyncError | None = None

    def add(self, later: CycleResult) -> None:
        """Add the result of a *later* pass."""
        self.files_processed += later.files_processed
        self.counts.add(later.counts)
        for table, activity in later.activity.items():
            self.activity.setdefault(table, Activity()).join(activity)
        for table, verified in later.verified.items():
            self.verified.setdefault(table, Verified()).join(verified)
        self.skipped += later.skipped
        self.failed += later.failed
        self.last_lsn = later.last_lsn or self.last_lsn
        self.position = max(self.position, later.position, key=lambda position: position.order)
        self.blocked |= later.blocked
        self.newly_blocked |= later.newly_blocked
        self.waiting_for = later.waiting_for

    def note_blocked(self, table: TableName, error: SyncError, *, reason_before: str | None) -> None:
        self.blocked[table] = error
        if str(error) != reason_before:
            self.newly_blocked[table] = error


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """The result of a cycle or a resync. ``records_skipped``: of tables that did not take part;
    ``records_failed``: of tables that are blocked now; ``duration`` in seconds; ``last_lsn`` as ``X/Y``.
    ``waiting_for``: the newest change file, while it is still being written. ``short_of``: the archive does
    not reach the point yet up to which it was to go."""

    files_processed: int = 0
    records_added: int = 0
    records_updated: int = 0
    records_deleted: int = 0
    records_truncated: int = 0
    records_skipped: int = 0
    records_failed: int = 0
    duration: float = 0.0
    last_lsn: str = ""
    blocked: tuple[str, ...] = ()
    errors: tuple[SyncError, ...] = ()
    waiting_for: str = ""
    short_of: SyncError | None = None

    @classmethod
    def of(cls, result: CycleResult, *, duration_s: float) -> Self:
        counts = result.counts
        return cls(
            files_processed=result.files_processed,
            records_added=counts.added,
            records_updated=counts.updated,
            records_deleted=counts.deleted,
            records_truncated=counts.truncated,
            records_skipped=result.skipped,
            records_failed=result.failed,
            duration=duration_s,
            last_lsn=result.last_lsn,
            blocked=tuple(sorted(str(table) for table in result.blocked)),
            errors=tuple(dict.fromkeys(result.blocked.values())),
            waiting_for=result.waiting_for,
            short_of=result.short_of,
        )

    @property
    def records_synced(self) -> int:
        return self.records_added + self.records_updated + self.records_deleted + self.records_truncated
