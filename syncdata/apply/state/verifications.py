"""Keeps what came of the checks, and sums it up by table.

Knows the rows of ``data_sync_verifications`` and the mark ``differs``; not how rows are compared.
A round that ends takes all rows of other rounds away, so a table has those of two rounds at most: the newest
one that has ended, and the one that goes on.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How far one table's rows are known to be production's.

    ``verified_at``: when the newest round that has ended did so, if none of its rows differed; None without
    one. ``rows``: the table's rows in that round; ``share``: how many of them were proved to be production's,
    from 0 to 1. ``differing``: the bounds of the rows that differed, in words. ``newest_at``: the time of the
    newest check of any kind. ``not_comparable``: why rows were not compared, where some were not.
    """

    verified_at: dt.datetime | None = None
    rows: int = 0
    share: float = 0.0
    differing: tuple[str, ...] = ()
    newest_at: dt.datetime | None = None
    not_comparable: str = ""


_SUMMARIES = """
WITH ended AS (
    SELECT DISTINCT ON (table_name) table_name, round, seen, verified_at
    FROM data_sync_verifications WHERE is_last ORDER BY table_name, verified_at DESC, id DESC
), kept AS (
    SELECT v.*, e.seen AS ended_seen, e.verified_at AS ended_at,
        coalesce(v.round = e.round, false) AS has_ended
    FROM data_sync_verifications v LEFT JOIN ended e ON e.table_name = v.table_name
)
SELECT table_name, ended_seen, ended_at, max(verified_at) AS newest_at,
    coalesce(sum(rows) FILTER (WHERE has_ended AND is_equal AND NOT is_of_number), 0)::bigint AS proved,
    coalesce(bool_or(is_equal) FILTER (WHERE has_ended), false) AS has_equal,
    coalesce(bool_or(NOT is_equal) FILTER (WHERE has_ended), false) AS has_differing,
    array_agg(bounds ORDER BY verified_at, id) FILTER (WHERE NOT is_equal) AS differing,
    (array_agg(reason ORDER BY verified_at DESC, id DESC) FILTER (WHERE is_equal IS NULL))[1] AS reason
FROM kept GROUP BY table_name, ended_seen, ended_at
"""


def summaries(connection: Connection[Any]) -> dict[str, Verification]:
    """Return how far the tables are verified, by their names; a table without any check is not among them."""
    cursor = connection.cursor(row_factory=dict_row)
    cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
    return {row["table_name"]: _summary(row) for row in cursor.execute(_SUMMARIES).fetchall()}


def _summary(row: dict[str, Any]) -> Verification:
    rows = row["ended_seen"] or 0
    whole = 1.0 if row["has_equal"] else 0.0
    return Verification(
        verified_at=row["ended_at"] if row["has_equal"] and not row["has_differing"] else None,
        rows=rows,
        share=min(1.0, row["proved"] / rows) if rows else whole,
        differing=tuple(dict.fromkeys(row["differing"] or ())),
        newest_at=row["newest_at"],
        not_comparable=row["reason"] or "",
    )
