"""Adds the counts of applied records to the metrics: by table and period, and by minute for the charts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from psycopg import Connection

from syncdata.apply.counts import Counts
from syncdata.apply.result import Effect
from syncdata.apply.state.audit import parameters_of
from syncdata.changes.names import TableName


def add_metrics(
    connection: Connection[Any],
    effects: Mapping[TableName, Effect],
    *,
    metric_freq_hours: int,
    now: dt.datetime,
) -> None:
    """Add *effects* to the periods that *now* falls in."""
    rows = [
        (str(table), start, end, kind, counts.added, counts.updated, counts.deleted)
        for table, effect in sorted(effects.items())
        if (counts := effect.counts).records
        for kind, start, end in periods(now, metric_freq_hours=metric_freq_hours)
    ]
    if rows:
        connection.execute(
            "INSERT INTO data_sync_metrics AS m (table_name, period_start, period_end, period_type,"
            " records_added, records_updated, records_deleted)"
            " SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[],"
            " %s::bigint[], %s::bigint[], %s::bigint[])"
            " ON CONFLICT (table_name, period_start, period_type) DO UPDATE SET"
            " records_added = coalesce(m.records_added, 0) + excluded.records_added,"
            " records_updated = coalesce(m.records_updated, 0) + excluded.records_updated,"
            " records_deleted = coalesce(m.records_deleted, 0) + excluded.records_deleted",
            [list(column) for column in zip(*rows, strict=True)],
        )


def add_to_minute(
    connection: Connection[Any], effects: Mapping[TableName, Effect], *, now: dt.datetime
) -> None:
    """Add *effects* to the minute that *now* falls in, for the dashboard."""
    counts = Counts()
    for effect in effects.values():
        counts.add(effect.counts)
    newest = max((e.last_change_at for e in effects.values() if e.last_change_at), default=None)
    connection.execute(
        "INSERT INTO data_sync_minutes AS m (minute, records_added, records_updated, records_deleted,"
        " records_truncated, lag_s) VALUES (date_trunc('minute', %(now)s), %(added)s, %(updated)s,"
        " %(deleted)s, %(truncated)s, %(lag_s)s) ON CONFLICT (minute) DO UPDATE SET"
        " records_added = m.records_added + excluded.records_added,"
        " records_updated = m.records_updated + excluded.records_updated,"
        " records_deleted = m.records_deleted + excluded.records_deleted,"
        " records_truncated = m.records_truncated + excluded.records_truncated,"
        " lag_s = greatest(m.lag_s, excluded.lag_s)",
        {
            "now": now,
            "lag_s": None if newest is None else max((now - newest).total_seconds(), 0.0),
            **parameters_of(Effect(counts=counts)),
        },
    )


def forget_minutes(connection: Connection[Any], *, before: dt.datetime) -> None:
    connection.execute("DELETE FROM data_sync_minutes WHERE minute < %s", (before,))


def periods(now: dt.datetime, *, metric_freq_hours: int) -> list[tuple[str, dt.datetime, dt.datetime]]:
    """Return (type, start, end) of the metric periods that hold *now*, all in UTC.

    ``FREQ`` periods are *metric_freq_hours* long and counted from 1970; weeks begin on Monday.
    """
    now = now.astimezone(dt.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    freq_s = metric_freq_hours * 3600
    freq_start = dt.datetime.fromtimestamp(int(now.timestamp()) // freq_s * freq_s, dt.UTC)
    week_start = midnight - dt.timedelta(days=midnight.weekday())
    month_start = midnight.replace(day=1)
    next_month = (month_start + dt.timedelta(days=31)).replace(day=1)
    return [
        ("FREQ", freq_start, freq_start + dt.timedelta(seconds=freq_s)),
        ("WEEK", week_start, week_start + dt.timedelta(days=7)),
        ("MONTH", month_start, next_month),
    ]
