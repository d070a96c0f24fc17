"""Keeps the checkpoints that were read last, and reads them again only where something has changed.

Knows whitelist and checkpoints as rows; knows nothing of what is done with them. Nothing has changed while
both tables hold the same versions of the same rows: whatever writes a row makes a version with another xmin,
the transaction that wrote it. Source: "System Columns" of the PostgreSQL documentation.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from syncdata.apply.state.checkpoints import TableCheckpoint, open_checkpoints, read_checkpoints

# The number of rows and the sum of their versions, of the whitelist and of the checkpoints.
Versions = tuple[tuple[int, str], tuple[int, str]]

_VERSIONS = """
SELECT w.number, w.versions::text, c.number, c.versions::text
FROM (SELECT count(*) AS number, sum(hashint8extended(id, xmin::text::bigint)) AS versions
      FROM tables_to_sync) AS w,
     (SELECT count(*) AS number, sum(hashint8extended(id, xmin::text::bigint)) AS versions
      FROM data_sync_checkpoints) AS c
"""


def read_versions(connection: Connection[Any]) -> Versions:
    """Return which versions whitelist and checkpoints have; equal while nothing in them has changed."""
    row = connection.execute(_VERSIONS).fetchone()
    assert row is not None
    return (row[0], row[1]), (row[2], row[3])


class KeptCheckpoints:
    """The checkpoints of all whitelisted tables. Works inside the caller's transaction."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._versions: Versions | None = None
        self._checkpoints: list[TableCheckpoint] = []

    def read(self) -> list[TableCheckpoint]:
        """Return what `open_checkpoints` would."""
        before = read_versions(self._connection)
        if before != self._versions:
            checkpoints = self._read_anew(before)
            # What this transaction has written itself is not kept, for it may be rolled back; nor what
            # another one wrote between the versions and the rows.
            is_settled = read_versions(self._connection) == before
            self._versions, self._checkpoints = before if is_settled else None, checkpoints
        return list(self._checkpoints)

    def _read_anew(self, versions: Versions) -> list[TableCheckpoint]:
        if self._versions is not None and self._versions[0] == versions[0]:
            # The whitelist is that of the last look, which found each name fit to be synced.
            checkpoints = read_checkpoints(self._connection)
            if len(checkpoints) == versions[0][0]:
                return checkpoints
        return open_checkpoints(self._connection)
