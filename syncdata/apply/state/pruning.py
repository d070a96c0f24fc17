"""Removes old entries of the audit log, in small transactions. Nothing else ever changes or removes an entry.

Entries without a time, which only the predecessor left, stay.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from psycopg import Connection

# So many that removing them delays no cycle, nor any reader of the log.
BATCH_ENTRIES = 5_000


def count_before(connection: Connection[Any], before: dt.datetime) -> int:
    row = connection.execute("SELECT count(*) FROM data_sync_logs WHERE sync_time < %s", (before,)).fetchone()
    assert row is not None
    return int(row[0])


def prune_batch(connection: Connection[Any], before: dt.datetime) -> int:
    """Remove the oldest entries from before *before*, at most `BATCH_ENTRIES`; return how many they were."""
    return connection.execute(
        "DELETE FROM data_sync_logs WHERE id IN"
        " (SELECT id FROM data_sync_logs WHERE sync_time < %s ORDER BY sync_time, id LIMIT %s)",
        (before, BATCH_ENTRIES),
    ).rowcount


def prune(connection: Connection[Any], before: dt.datetime) -> Iterator[int]:
    """Remove all entries from before *before*; yield the size of each batch when it has committed."""
    while True:
        with connection.transaction():
            removed = prune_batch(connection, before)
        if removed:
            yield removed
        if removed < BATCH_ENTRIES:
            return
