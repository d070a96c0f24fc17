"""Records that an operator has said to leave out: kept with the checkpoint until a batch meets them.

Every function works inside the caller's transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from syncdata.apply.position import Position
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import Skip, TableCheckpoint
from syncdata.apply.state.holds import add_mark
from syncdata.apply.state.marks import skipped
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.errors import SyncError


def remember_skip(connection: Connection[Any], table: TableName, skip: Skip) -> None:
    """Note that the batch of *table* that meets the record is to leave it out.

    A second *skip* of the same record changes nothing: the first one's ``requested_by`` stays.
    """
    connection.execute(
        "UPDATE data_sync_checkpoints SET skips = skips || %(skip)s WHERE table_name = %(name)s"
        " AND NOT skips @> %(place)s",
        {
            "skip": Jsonb([asdict(skip)]),
            "place": Jsonb([{"file": skip.file, "line": skip.line}]),
            "name": str(table),
        },
    )


def settle_skips(
    connection: Connection[Any],
    checkpoint: TableCheckpoint,
    used: Mapping[Skip, SyncError | None],
    end: Position,
    *,
    now: dt.datetime,
) -> None:
    """Audit the skips that a batch *used*, each with the error that the record would have raised.

    The table is suspect from then on, and they are forgotten. So are the skips in files that the table, which
    has got to *end*, has finished: their records were mended, and applied.
    """
    ahead = [s for s in checkpoint.skips if (stem(s.file), True) > (stem(end.file), end.is_finished)]
    left = [skip for skip in ahead if skip not in used]
    if len(left) == len(checkpoint.skips):
        return
    connection.execute(
        "UPDATE data_sync_checkpoints SET skips = %s WHERE table_name = %s",
        (Jsonb([asdict(skip) for skip in left]), str(checkpoint.table)),
    )
    for skip, error in used.items():
        place = f"{skip.file}:{skip.line}"
        add_mark(connection, checkpoint.table, skipped(checkpoint.table, place, skip.requested_by))
        log_action(
            connection,
            checkpoint.table,
            action="skip",
            reference=place,
            detail=str(error) if error else checkpoint.error,
            now=now,
            requested_by=skip.requested_by,
        )
