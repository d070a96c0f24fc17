"""The archiver's status, worked out from its slot and its spool, and its form as text. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from syncdata.capture.chain import Chain, format_moment
from syncdata.capture.policy_note import PolicyNote
from syncdata.capture.slot import Slot
from syncdata.capture.unmasked import Counts
from syncdata.capture.verify_walk import VerificationState
from syncdata.changes.catalog import WITHHELD, PublishedTable
from syncdata.changes.filenames import file_time
from syncdata.changes.names import TableName
from syncdata.errors import Problem

# The source keeps WAL for the slot up to a limit, and removes it beyond. From this share on, it is a warning.
RETENTION_WARNING_SHARE = 0.8
# Nothing has been confirmed for so long, although there is something to confirm: a problem.
_OVERDUE_ROTATIONS, _OVERDUE_GRACE_S = 3, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationStatus:
    """How far the checks are. ``round``: the last one that has begun (0: none), of whose tables ``share`` are
    done, with so many ``rows`` and ``chunks``, some of them ``unproved``. ``left_out`` says by table what
    cannot be verified, and why; ``trouble`` why nothing is, just now."""

    round: int
    began_at: str
    share: float
    rows: int
    rows_per_second: int
    chunks: int
    unproved: int
    longest_ms: int
    left_out: Mapping[str, str]
    trouble: str


def verification_status(state: VerificationState, *, rows_per_second: int) -> VerificationStatus:
    return VerificationStatus(
        round=state.rounds,
        began_at=state.began_at,
        share=1.0 if state.ended_at else state.tables_done / max(state.tables, 1),
        rows=state.rows,
        rows_per_second=rows_per_second,
        chunks=state.proved + state.unproved,
        unproved=state.unproved,
        longest_ms=state.longest_ms,
        left_out=dict(state.left_out),
        trouble=state.trouble,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStatus:
    """What the privacy policy comes to: names and kinds of rules, no value. ``unnamed``: what becomes of
    columns without a rule. ``since``: when it came into force; empty before an archiver has worked under it.
    ``masked``: by table, the kind of rule of each masked column; ``withheld``: the columns that stay behind.
    ``last_before``: the last change file of before, where such files may be in the archive still;
    ``older_until``: when they are as old as files are kept. ``unmasked``: by table and column, how often
    a mask was tried in vain on a value of the stream, so that something else has travelled."""

    unnamed: str
    since: str = ""
    masked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    withheld: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    withheld_tables: tuple[str, ...] = ()
    last_before: str | None = None
    older_until: str = ""
    unmasked: Counts = field(default_factory=dict)


def privacy_status(
    policy_id: str | None,
    unnamed: str,
    *,
    note: PolicyNote | None,
    tables: Sequence[PublishedTable],
    withheld_tables: Sequence[TableName],
    keep_days: int,
    unmasked: Counts | None = None,
) -> PrivacyStatus:
    """Return the status of the policy of that id (None: it cannot be loaded). *note*: which policy files are
    written under; *tables*: the published ones, as that one lets them travel."""
    if note is None or note.id != policy_id:
        return PrivacyStatus(unnamed=unnamed)
    rules = {str(table.table): {c.name: c.privacy for c in table.columns if c.privacy} for table in tables}
    masked = {
        table: {name: kind for name, kind in kinds.items() if kind != WITHHELD}
        for table, kinds in rules.items()
    }
    withheld = {
        table: tuple(name for name, kind in kinds.items() if kind == WITHHELD)
        for table, kinds in rules.items()
    }
    last_before = note.last_before if note.has_older_files else None
    moment = None if last_before is None else file_time(last_before)
    return PrivacyStatus(
        unnamed=unnamed,
        since=note.since,
        masked={table: kinds for table, kinds in masked.items() if kinds},
        withheld={table: names for table, names in withheld.items() if names},
        withheld_tables=tuple(map(str, withheld_tables)),
        last_before=last_before,
        older_until=format_moment(moment + dt.timedelta(days=keep_days)) if moment else "",
        unmasked=unmasked or {},
    )


def privacy_problems(
    policy_id: str | None, *, note: PolicyNote | None, troubles: Sequence[str], is_active: bool
) -> list[Problem]:
    """Return the problems of the policy of that id, empty where there is none. *troubles*: what of it cannot
    hold, so that it is withheld."""
    problems = []
    if is_active and note is not None and policy_id is not None and note.id != policy_id:
        text = "the archiver works under another privacy policy than the configured one: start it anew"
        problems.append(Problem(kind="other-policy", text=text))
    if troubles:
        text = f"withheld, for the privacy policy cannot hold: {'; '.join(troubles)}"
        problems.append(Problem(kind="policy", text=text))
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiverStatus:
    """The archiver's status. ``lag_bytes`` of WAL and ``lag_seconds`` of changes are not in the archive yet.
    ``retention_share``: of the WAL that may be kept for the slot (None: no limit). ``problems`` says why it
    is not healthy, and is empty when it is; a problem's ``str()`` is its text. ``left_out``: the commit LSNs
    of the transactions that an operator has left out. ``signs_with``: the fingerprint of the key, None where
    nothing is signed. ``verification``: how far the checks are, None where they are switched off.
    ``privacy``: what the policy comes to; None without one: all columns of published tables travel."""

    status: str
    slot: str
    lag_bytes: int | None = None
    lag_seconds: int | None = None
    last_file: str | None = None
    last_commit_lsn: str | None = None
    confirmed_lsn: str | None = None
    confirmed_at: str | None = None
    epoch: str | None = None
    waiting_files: int = 0
    waiting_bytes: int = 0
    retained_bytes: int | None = None
    limit_bytes: int | None = None
    retention_share: float | None = None
    problems: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()
    signs_with: str | None = None
    verification: VerificationStatus | None = None
    privacy: PrivacyStatus | None = None

    @property
    def is_healthy(self) -> bool:
        return not self.problems


def archiver_status(
    *,
    is_active: bool,
    slot_name: str,
    slot: Slot | None,
    chain: Chain | None,
    waiting: list[tuple[str, int]],
    rotate_s: int,
    now: dt.datetime,
    problems: tuple[Problem, ...] = (),
    left_out: tuple[str, ...] = (),
    signs_with: str | None = None,
    verification: VerificationStatus | None = None,
    privacy: PrivacyStatus | None = None,
) -> ArchiverStatus:
    """Return the status. *waiting*: name and size of the files in the spool. *problems*: those that the
    caller has found already."""
    lag_seconds = None
    if slot is not None and chain is not None and chain.confirmed_at:
        confirmed_at = dt.datetime.fromisoformat(chain.confirmed_at)
        lag_seconds = max(0, round((now - confirmed_at).total_seconds())) if slot.lag_bytes else 0
    return ArchiverStatus(
        status="active" if is_active else "not-started",
        slot=slot_name,
        lag_bytes=slot.lag_bytes if slot else None,
        lag_seconds=lag_seconds,
        last_file=chain.last_file if chain else None,
        last_commit_lsn=chain.last_commit_lsn if chain else None,
        confirmed_lsn=chain.confirmed_lsn if chain else None,
        confirmed_at=chain.confirmed_at if chain else None,
        epoch=chain.epoch if chain else None,
        waiting_files=len(waiting),
        waiting_bytes=sum(size for _, size in waiting),
        retained_bytes=slot.retained_bytes if slot else None,
        limit_bytes=slot.limit_bytes if slot else None,
        retention_share=slot.retention_share if slot else None,
        left_out=left_out,
        problems=(
            *problems,
            *_find_problems(slot, chain, lag_seconds, is_active=is_active, rotate_s=rotate_s),
        ),
        signs_with=signs_with,
        verification=verification,
        privacy=privacy,
    )


def _find_problems(
    slot: Slot | None, chain: Chain | None, lag_seconds: int | None, *, is_active: bool, rotate_s: int
) -> list[Problem]:
    problems = []
    if chain is not None and not is_active:
        text = f"no archiver runs here, nothing is archived since {chain.confirmed_at}: start archive_changes"
        if slot is not None and slot.reader is not None:
            text += f" (the slot {slot.name} is read by {slot.reader})"
        problems.append(Problem(kind="not-running", text=text))
    if slot is not None and (warning := retention_warning(slot)):
        problems.append(warning)
    if slot is not None and lag_seconds is None:
        text = "no archiver has run here yet: start archive_changes (or check spool_dir)"
        problems.append(Problem(kind="not-started", text=text))
    if (
        is_active
        and lag_seconds is not None
        and lag_seconds > _OVERDUE_ROTATIONS * rotate_s + _OVERDUE_GRACE_S
    ):
        text = f"nothing was confirmed for {lag_seconds} seconds; see the archiver's log"
        problems.append(Problem(kind="unconfirmed", text=text))
    return problems


def retention_warning(slot: Slot) -> Problem | None:
    """Return the warning that the WAL kept for *slot* nears its limit; None while it does not."""
    share, limit_bytes = slot.retention_share, slot.limit_bytes
    if share is None or limit_bytes is None or share < RETENTION_WARNING_SHARE:
        return None
    text = (
        f"the WAL kept for the slot {slot.name} is {format_bytes(slot.retained_bytes)},"
        f" {share:.0%} of max_slot_wal_keep_size ({format_bytes(limit_bytes)}): beyond it the slot is lost"
    )
    return Problem(kind="retention", text=text)


def unpublished_warning(tables: list[str]) -> Problem:
    """Return the warning that the publication lacks configured *tables*."""
    text = (
        f"not published, so their changes are lost to the archive: {', '.join(tables)}; run"
        " 'python manage.py setup_logical_replication', then archive_changes --snapshot, and resync them"
    )
    return Problem(kind="unpublished", text=text)


def format_archiver_status(status: ArchiverStatus) -> str:
    """Return *status* as the text that ``archive_changes --status`` prints."""
    kept = "-" if status.retained_bytes is None else format_bytes(status.retained_bytes)
    if status.retention_share is not None and status.limit_bytes is not None:
        kept += f", {status.retention_share:.0%} of {format_bytes(status.limit_bytes)}"
    lag = "-" if status.lag_bytes is None else format_bytes(status.lag_bytes)
    if status.lag_seconds is not None:
        lag += f", {status.lag_seconds} seconds"
    lines = [
        f"status: {status.status}",
        f"slot: {status.slot}",
        f"lag: {lag}",
        f"confirmed: {status.confirmed_lsn or '-'} at {status.confirmed_at or '-'}",
        f"last file: {status.last_file or '-'}",
        f"files waiting for the archive: {status.waiting_files}, {format_bytes(status.waiting_bytes)}",
        f"WAL kept for the slot: {kept}",
        f"signs with: {status.signs_with or 'nothing is signed'}",
    ]
    lines += _privacy_lines(status.privacy)
    lines += _verification_lines(status.verification)
    if status.left_out:
        lines.append(f"transactions left out: {len(status.left_out)}, the last at {status.left_out[-1]}")
    if status.problems:
        lines += ["", "problems:", *(f"  - {problem}" for problem in status.problems)]
    return "\n".join(lines)


_UNNAMED = {
    "withhold": "columns that no rule names are withheld",
    "keep": "columns that no rule names travel as they are",
    "halt": "a column that no rule names stops the archiver",
}


def _privacy_lines(privacy: PrivacyStatus | None) -> list[str]:
    if privacy is None:
        return ["privacy: no policy, every column of published tables travels as it is"]
    unnamed = _UNNAMED.get(privacy.unnamed, privacy.unnamed)
    if not privacy.since:
        return [f"privacy: the policy is not in force before archive_changes has started with it; {unnamed}"]
    lines = [f"privacy: the policy is in force since {privacy.since}; {unnamed}"]
    for table in sorted({*privacy.masked, *privacy.withheld}):
        masked = [f"{name} ({kind})" for name, kind in privacy.masked.get(table, {}).items()]
        parts = (("masked", masked), ("withheld", privacy.withheld.get(table, ())))
        told = [f"{word}: {', '.join(names)}" for word, names in parts if names]
        lines.append(f"  {table}: {'; '.join(told)}")
    if privacy.withheld_tables:
        lines.append(f"  withheld as a whole: {', '.join(privacy.withheld_tables)}")
    for table, counts in sorted(privacy.unmasked.items()):
        lines.append(f"  {table}: masks could not take all values of {', '.join(sorted(counts))}: replaced")
    if privacy.last_before is not None:
        lines.append(
            f"  files up to {privacy.last_before} may hold what it keeps back now: they are kept until"
            f" {privacy.older_until or '-'}, snapshots of before until there are newer ones;"
            " 'archive_changes --prune --before-policy' removes them earlier"
        )
    return lines


def _verification_lines(verification: VerificationStatus | None) -> list[str]:
    if verification is None:
        return ["verification: off"]
    if not verification.round:
        return [f"verification: not begun{'; ' * bool(verification.trouble)}{verification.trouble}"]
    lines = [
        f"verification: round {verification.round}, begun at {verification.began_at}",
        f"  {verification.share:.0%} of the tables, {verification.rows:,} rows,"
        f" at most {verification.rows_per_second:,} a second, longest read {verification.longest_ms} ms",
    ]
    if verification.unproved:
        lines.append(f"  not proved: {verification.unproved:,} of {verification.chunks:,} chunks")
    if verification.trouble:
        lines.append(f"  {verification.trouble}")
    return lines + [f"  {table}: {why}" for table, why in sorted(verification.left_out.items())]


def format_bytes(size: int) -> str:
    """Return a size as text: ``512 B``, ``12 kB``, ``3.4 GB``."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
