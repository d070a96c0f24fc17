"""The status of the daemon and its tables, worked out from rows of syncdata's own tables; its text. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from syncdata.apply.state.marks import KINDS, Mark, decode_marks, worst
from syncdata.apply.state.reasons import read_reason
from syncdata.apply.state.silence import find_silence, find_wait
from syncdata.apply.state.verifications import Verification
from syncdata.changes.filenames import file_time, is_change_file
from syncdata.errors import Problem, Reason

Side = Literal["production", "here"]
STATES = ("new", "active", "paused", "blocked", *KINDS, "stale")

# A cycle counts as overdue when none has ended for so long.
_OVERDUE_INTERVALS, _OVERDUE_GRACE_S = 2, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPrivacy:
    """A column whose values are not production's own, by whose rule (``side``), and its ``kind``: a mask,
    such as ``email``, or ``withheld``."""

    column: str
    kind: str
    side: Side = "production"

    def __str__(self) -> str:
        return f"{self.column} ({self.kind}{' here' if self.side == 'here' else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A whitelisted table. ``state``: new, active, blocked, paused, the kind of its worst mark (differs,
    suspect, partial, unpublished), or stale. ``checkpoint``: ``file:records`` or empty. ``error`` is text for
    people; ``error_code`` and the others are its parts as data. ``marks``: why it is not simply active.

    ``verified_at``: when a round of checks ended, all of which were equal; ``verified_rows`` and
    ``verified_share``, from 0 to 1: how many rows that round had, and the part of them that it proved.
    ``checked_at``: the newest check of any kind. ``differing``: the bounds of the rows that differ.
    ``not_comparable``: why rows here cannot be compared with production's. ``left_out``: which columns are
    not, in rows that are equal otherwise, and why. ``privacy``: the columns that are masked or withheld; None
    where the archive does not say.
    """

    table_name: str
    creator: str | None
    created_at: dt.datetime | None
    state: str
    checkpoint: str = ""
    rows_synced: int = 0
    error: str | None = None
    last_sync_at: dt.datetime | None = None
    last_change_at: dt.datetime | None = None
    last_lsn: str = ""
    records_added: int = 0
    records_updated: int = 0
    records_deleted: int = 0
    records_truncated: int = 0
    error_code: str | None = None
    error_file: str | None = None
    error_line: int | None = None
    error_hint: str | None = None
    marks: tuple[Mark, ...] = ()
    verified_at: dt.datetime | None = None
    verified_rows: int = 0
    verified_share: float = 0.0
    checked_at: dt.datetime | None = None
    differing: tuple[str, ...] = ()
    not_comparable: str = ""
    left_out: str = ""
    privacy: tuple[ColumnPrivacy, ...] | None = None

    @property
    def differs(self) -> bool:
        """Whether verification found rows that are not production's."""
        return any(mark.kind == "differs" for mark in self.marks)

    @property
    def reason(self) -> Reason | None:
        """The error with its parts; None for a table without one."""
        return read_reason({name: getattr(self, name) for name in _ERROR_FIELDS})

    @property
    def is_doubtful(self) -> bool:
        """Whether its rows may differ from production's, or be old, though no error holds it."""
        return self.state not in ("new", "active", "blocked", "paused")

    @property
    def blocking_place(self) -> str:
        """The ``file:line`` of the record that blocks the table; empty where no record does."""
        return record_place(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """The daemon's status. ``records_synced`` and ``errors`` count since its start, and so do
    ``unexpected_errors``, those among them that are faults of syncdata; ``problems`` says why it
    is not healthy, and is empty when it is. A problem's ``str()`` is its text; its ``kind`` is one of
    ``blocked`` or that of a mark (then it names the ``table``), ``stale``, ``archiver-waits``,
    ``waiting-for-lock``, ``not-started``, ``cycle-failed``, ``overdue`` and ``rules`` (privacy
    rules for no table). ``verifies_with``: the fingerprints of the keys that files must be signed with; none
    where they need not be signed.
    ``verified``: how many of the tables are, and within what time; empty before the first check. ``privacy``:
    how many columns are masked or withheld; empty where the archive does not say."""

    status: str
    sync_frequency: int
    start_time: dt.datetime | None
    records_synced: int
    errors: int
    last_sync_time: dt.datetime | None
    tables: tuple[TableInfo, ...]
    last_error: str | None = None
    problems: tuple[Problem, ...] = ()
    unexpected_errors: int = 0
    verifies_with: tuple[str, ...] = ()
    verified: str = ""
    privacy: str = ""

    @property
    def is_active(self) -> bool:
        return self.status == "active"

    @property
    def is_healthy(self) -> bool:
        return not self.problems


_ERROR_FIELDS = ("error", "error_code", "error_file", "error_line", "error_hint")


def record_place(reason: Reason | None) -> str:
    """Return the ``file:line`` of the change record that *reason* is about; empty where it is about none.

    A line of a snapshot is no such place: a record there cannot be left out.
    """
    if reason is None or reason.line is None or not is_change_file(reason.file or ""):
        return ""
    return reason.place


def table_state(state: str | None, *, file: str, commit_lsn: object, marks: tuple[Mark, ...] = ()) -> str:
    """Return the state to show for a checkpoint with these columns; *state* is None without a checkpoint.

    An active table is new until it has begun: with a change file, or with a snapshot that is older than the
    first change file. Such a snapshot gives the checkpoint a commit LSN and no file. Of a table that would be
    active or new, the worst mark is the state.
    """
    has_begun = bool(file) or commit_lsn is not None
    shown = "new" if state is None or (state == "active" and not has_begun) else state
    mark = worst(marks) if shown in ("new", "active") else None
    return shown if mark is None else mark.kind


def lag_s(checkpoint: str, farthest: str) -> float | None:
    """Return how many seconds *checkpoint* is behind *farthest*, by the times in their files' names.

    Zero when both lie in one file; None where one of them names no file.
    """
    own, front = file_time(checkpoint), file_time(farthest)
    return None if own is None or front is None else (front - own).total_seconds()


def verification_of(info: TableInfo, *, now: dt.datetime) -> str:
    """Return what verification has found of a table in a few words: ``4 minutes ago, 2,159,331 rows``."""
    if info.differs:
        return "differs"
    if info.verified_at is None:
        if info.not_comparable:
            return f"cannot be compared: {info.not_comparable}"
        return "never" if info.checked_at is None else "no whole round yet"
    share = format_share(info.verified_share)
    proved = "" if share is None else f", {share} of them proved"
    columns = ", not all columns" if info.left_out else ""
    return f"{_in_words(now - info.verified_at)} ago, {_counted(info.verified_rows, 'row')}{proved}{columns}"


def describe_verified(tables: Sequence[TableInfo], *, now: dt.datetime) -> str:
    """Return how much of all *tables* is verified: ``11 of 12 tables, all within 26 hours``; empty while
    nothing has been checked at all, as with an archive whose archiver does not verify."""
    if not any(info.checked_at or info.verified_at for info in tables):
        return ""
    times = [info.verified_at for info in tables if info.verified_at and not info.differs]
    within = f" within {_in_words(now - min(times))}" if times else ""
    return f"{len(times):,} of {_counted(len(tables), 'table')}{within}"


def describe_privacy(tables: Sequence[TableInfo]) -> str:
    """Return how many columns of *tables* are masked or withheld: ``3 columns of 2 tables are masked or
    withheld at production``; empty where the archive says of none what it is."""
    if all(info.privacy is None for info in tables):
        return ""
    told = []
    for side, where in (("production", "at production"), ("here", "by the rules of this side")):
        counts = [sum(one.side == side for one in info.privacy or ()) for info in tables]
        if any(counts):
            ruled = _counted(sum(map(bool, counts)), "table")
            verb = "is" if sum(counts) == 1 else "are"
            told.append(f"{_counted(sum(counts), 'column')} of {ruled} {verb} masked or withheld {where}")
    return "; ".join(told) or "no policy: all columns of the published tables arrive as they are"


def format_share(share: float) -> str | None:
    """Return *share* as a percentage, None for all; rounded down, for what is not whole must not look so."""
    return None if share >= 1 else f"{math.floor(share * 1000) / 10:.1f} %"


def _in_words(span: dt.timedelta) -> str:
    seconds = max(int(span.total_seconds()), 0)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:  # "26 hours" says more than "1 day"
            return _counted(seconds // length, unit)
    return _counted(seconds, "second")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_status(status: DaemonStatus) -> str:
    """Return *status* as the text that ``syncdata_status`` prints."""
    lines = [
        f"status: {status.status}",
        f"sync frequency: {status.sync_frequency} seconds",
        f"start time: {_format_time(status.start_time)}",
        f"last sync: {_format_time(status.last_sync_time)}",
        f"records synced: {status.records_synced}",
        f"errors: {status.errors}",
        "",
        f"synced tables ({len(status.tables)}):",
        *(f"  - {info.table_name}" for info in status.tables),
    ]
    changes = [info.last_change_at for info in status.tables if info.last_change_at]
    if changes:
        lines += ["", f"newest change applied: {_format_time(max(changes))}"]
    if status.verified:
        lines += ["", f"verified: {status.verified}"]
    if status.privacy:
        lines += ["", f"privacy: {status.privacy}"]
    if status.verifies_with:
        lines += ["", f"applies only what is signed with: {', '.join(status.verifies_with)}"]
    if status.problems:
        lines += ["", "problems:", *(f"  - {problem}" for problem in status.problems)]
    return "\n".join(lines)


def daemon_status(
    is_active: bool,
    run: dict[str, Any] | None,
    tables: tuple[TableInfo, ...],
    *,
    frequency_s: int,
    now: dt.datetime,
    found: Sequence[Problem] = (),
) -> DaemonStatus:
    """Return the status that the columns of the newest *run* and the *tables* make. *found*: problems that
    were met elsewhere, with the archiver or with locks."""
    last_sync = run["last_sync_at"] if run else None
    frequency_s = run["sync_frequency"] if run and is_active else frequency_s
    return DaemonStatus(
        status="active" if is_active else "not-started",
        sync_frequency=frequency_s,
        start_time=run["started_at"] if run and is_active else None,
        records_synced=run["records_synced"] if run else 0,
        errors=run["errors"] if run else 0,
        last_sync_time=last_sync,
        tables=tables,
        last_error=run["last_error"] if run else None,
        unexpected_errors=run["unexpected_errors"] if run else 0,
        verified=describe_verified(tables, now=now),
        privacy=describe_privacy(tables),
        problems=(*_find_problems(is_active, run, tables, frequency_s=frequency_s, now=now), *found),
    )


def as_of_archiver(
    tables: Sequence[TableInfo], run: dict[str, Any] | None, *, stale_after_s: int
) -> tuple[list[TableInfo], list[Problem]]:
    """Return *tables*, the active ones as stale where the archiver is silent, and what is wrong with it."""
    silence, wait = find_silence(run, stale_after_s=stale_after_s), find_wait(run)
    if silence is not None:
        tables = [replace(t, state="stale") if t.state == "active" else t for t in tables]
    return list(tables), [problem for problem in (silence, wait) if problem is not None]


def _find_problems(
    is_active: bool,
    run: dict[str, Any] | None,
    tables: tuple[TableInfo, ...],
    *,
    frequency_s: int,
    now: dt.datetime,
) -> list[Problem]:
    problems = [
        Problem(
            kind="blocked", text=f"{info.table_name} is blocked", table=info.table_name, reason=info.reason
        )
        for info in tables
        if info.state == "blocked"
    ]
    problems += [
        Problem(kind=mark.kind, text=f"{info.table_name} {_said(mark)}: {mark}", table=info.table_name)
        for info in tables
        for mark in info.marks
        if info.state != "blocked"  # then the error says it
    ]
    if not is_active:
        text = "no daemon runs on this database: start one with syncdata_start"
        problems.append(Problem(kind="not-started", text=text))
    last_error = read_reason(run, text="last_error") if run else None
    if last_error and last_error not in [info.reason for info in tables]:
        problems.append(Problem(kind="cycle-failed", text="the last cycle failed", reason=last_error))
    if is_active and run and not run["is_busy"]:
        idle_s = (now - (run["last_sync_at"] or run["started_at"])).total_seconds()
        if idle_s > _OVERDUE_INTERVALS * frequency_s + _OVERDUE_GRACE_S:
            text = f"overdue: no cycle has ended for {idle_s:.0f} seconds; see the daemon's log"
            problems.append(Problem(kind="overdue", text=text))
    return problems


def _said(mark: Mark) -> str:
    return mark.kind if mark.kind == "differs" else f"is {mark.kind}"


def table_info(row: dict[str, Any], verification: Verification | None = None) -> TableInfo:
    """Return the table of *row*: a row of the whitelist, with the columns of its checkpoint or NULLs."""
    known = verification or Verification()
    marks = decode_marks(row["marks"])
    if not row["file"] and row["commit_lsn"] is None:
        marks = tuple(mark for mark in marks if mark.kind != "partial")  # it has not begun at all
    return TableInfo(
        table_name=row["table_name"],
        creator=row["creator"],
        created_at=row["created_at"],
        state=table_state(row["state"], file=row["file"] or "", commit_lsn=row["commit_lsn"], marks=marks),
        marks=marks,
        checkpoint=f"{row['file']}:{row['record_number']}" if row["file"] else "",
        rows_synced=row["rows_synced"] or 0,
        **{name: row[name] for name in _ERROR_FIELDS},
        last_sync_at=row["last_sync_at"],
        last_change_at=row["last_change_at"],
        last_lsn=row["last_lsn"] or "",
        records_added=row["records_added"] or 0,
        records_updated=row["records_updated"] or 0,
        records_deleted=row["records_deleted"] or 0,
        records_truncated=row["records_truncated"] or 0,
        verified_at=known.verified_at,
        verified_rows=known.rows,
        verified_share=known.share,
        checked_at=known.newest_at,
        differing=known.differing if any(mark.kind == "differs" for mark in marks) else (),
        not_comparable=known.not_comparable,
        left_out=known.left_out,
        privacy=_privacy_of(row["privacy"]),
    )


def _privacy_of(column: str | None) -> tuple[ColumnPrivacy, ...] | None:
    """Read what the checkpoint knows of rules: columns as production has them, and those of this side."""
    if column is None:
        return None
    there, here = msgspec.json.decode(column, type=tuple[list[_Ruled], list[_Ruled]])
    return (
        *(ColumnPrivacy(column=one.name, kind=one.privacy) for one in there),
        *(ColumnPrivacy(column=one.name, kind=one.privacy, side="here") for one in here),
    )


class _Ruled(msgspec.Struct):
    name: str
    privacy: str


def _format_time(moment: dt.datetime | None) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "-"
