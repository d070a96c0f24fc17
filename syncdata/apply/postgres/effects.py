"""The effect of a table's share of a batch, with the time and LSN of its newest record. Pure."""

from __future__ import annotations

from syncdata.apply.counts import Counts
from syncdata.apply.plan.prepare import TableShare
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.result import Effect
from syncdata.apply.state.published import Emptied
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.changes.times import parse_time


def effect_of(share: TableShare, counts: Counts, *, duration_ms: int = 0) -> Effect:
    """Return the effect of *share*, which was applied with *counts*."""
    return Effect(
        counts=counts,
        last_change_at=parse_time(share.plan.last_ts) if isinstance(share.plan, TablePlan) else None,
        last_lsn=_valid_lsn(share.records[-1].record.lsn),
        duration_ms=duration_ms,
    )


def last_truncate(share: TableShare) -> Emptied:
    """Return when and by whom *share* empties its table last."""
    last = next((r.record for r in reversed(share.records) if r.record.op == "TRUNCATE"), None)
    commit_lsn = parse_lsn(last.commit_lsn) if last and last.commit_lsn else None
    return Emptied(commit_lsn, last.xid if last and isinstance(last.xid, int) else 0)


def _valid_lsn(text: str | None) -> str | None:
    """Return *text* if it is an LSN, else None. A record's own LSN is for information, and may be missing."""
    try:
        return format_lsn(parse_lsn(text)) if text else None
    except ValueError:
        return None
