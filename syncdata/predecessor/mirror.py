"""The worker's mirror in the form of the predecessor's state file: adopted once, written after each cycle.

Knows the state's queries and the file; knows nothing of cycles.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from psycopg import Connection

from syncdata.apply.position import Position
from syncdata.apply.postgres.connection import errors_as
from syncdata.apply.state.checkpoints import open_checkpoints, reset_checkpoints
from syncdata.apply.state.kept import Versions, read_versions
from syncdata.apply.state.marks import Mark, encode_marks
from syncdata.apply.state.queries import Progress, read_progress
from syncdata.changes.filenames import file_time, is_change_file
from syncdata.changes.position import parse_lsn
from syncdata.errors import StateLoadError, WhitelistListError, shortened
from syncdata.predecessor.statefile import (
    NEVER,
    STATE_FILE_NAME,
    SyncState,
    TableState,
    load_state,
    save_state,
)

logger = logging.getLogger(__name__)

_SAVED_AGAIN_AFTER = dt.timedelta(minutes=1)

_TAKEN_OVER = Mark(
    kind="suspect",
    text="its rows were taken over from the predecessor, which skipped records that it could not apply",
    hint="resync it once: from a snapshot (archive_changes --snapshot at production), or without one where"
    " the archive reaches back to its first row",
)


class StateFileMirror:
    """The state file in *directory*, for the worker."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STATE_FILE_NAME
        self._versions: Versions | None = None
        self._saved_at = NEVER

    def adopt(self, connection: Connection[Any]) -> None:
        """Go on where the predecessor's state file stopped, if the database holds no checkpoint.

        The tables are suspect from then on, since the predecessor skipped what it could not apply, and said
        so in its log alone. A file that cannot be read is logged and left alone. Raises psycopg.Error.
        """
        try:
            state = load_state(self._path)
        except StateLoadError as error:
            logger.warning("%s", error, extra=error.fields)
            return
        if state is None or not state.is_predecessors or not state.last_file:
            return
        with connection.transaction():
            row = connection.execute("SELECT EXISTS (SELECT FROM data_sync_checkpoints)").fetchone()
            if row and row[0]:
                return
            if not is_change_file(state.last_file):
                # Nothing, or all, might sort after it. Test:
                # test_a_last_file_that_no_archive_can_hold_is_not_gone_on_from.
                logger.warning(
                    "%s: its last_file is '%s', which is no name of a change file: syncing begins anew",
                    self._path,
                    shortened(state.last_file),
                )
                return
            names = [checkpoint.table for checkpoint in open_checkpoints(connection)]
            reset_checkpoints(connection, names, Position(file=state.last_file, is_finished=True))
            connection.execute(
                "UPDATE data_sync_checkpoints SET marks = %s WHERE table_name = ANY(%s)",
                (encode_marks((_TAKEN_OVER,)), [str(name) for name in names]),
            )
        logger.info(
            "the predecessor's state is adopted: syncing goes on after %s",
            state.last_file,
            extra={"file": state.last_file},
        )

    def save(self, connection: Connection[Any], position: Position, *, now: dt.datetime) -> None:
        """Write where the tables stand, the farthest at *position*, after the cycle that ended *now*. While
        nothing changes, the time of the last cycle in the file may be a minute old.

        Raises StateSaveError, or WhitelistListError when the database cannot be read.
        """
        # abs: the clock may have gone back.
        is_fresh = abs(now - self._saved_at) < _SAVED_AGAIN_AFTER
        with errors_as(WhitelistListError, "the whitelist cannot be read"):
            versions = read_versions(connection)
            if is_fresh and versions == self._versions and self._path.exists():
                return
            tables = read_progress(connection)
        if tables:  # Without tables, the predecessor's file may not be adopted yet, and must stay.
            save_state(self._path, _state_of(tables, position, now))
            self._versions, self._saved_at = versions, now


# After each file, those of the tables that it is not about are what they were.
_parse_lsn = lru_cache(maxsize=4096)(parse_lsn)


def _state_of(tables: Sequence[Progress], position: Position, now: dt.datetime) -> SyncState:
    # A cycle in which all tables are paused has no position; their own checkpoints say where they stand.
    last_file = position.file or max(file for _, file, *_ in tables)
    return SyncState(
        last_file=last_file,
        last_file_time=file_time(last_file) or NEVER,
        global_lsn=max((lsn for _, _, lsn, _, _ in tables if lsn), key=_parse_lsn, default=""),
        tables={
            name: TableState(last_lsn=lsn or "", last_synced_at=synced_at or NEVER, record_count=rows)
            for name, _, lsn, synced_at, rows in tables
        },
        total_synced=sum(rows for *_, rows in tables),
        last_sync_cycle=now,
    )
