"""Gives a table new rows: they grow in a temporary table until they are complete, then replace the old ones.

The temporary table vanishes with the connection. In the end the old rows are deleted and the new ones
inserted. Renaming the temporary table instead would lose the table's oid, rights, views and foreign keys;
truncating the old one would show readers with an older database snapshot an empty table. Test:
test_readers_never_see_a_half_built_table_during_a_resync. Knows snapshots and batches; knows nothing of which
file comes next.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from psycopg import Connection, sql

from syncdata.apply.counts import Counts
from syncdata.apply.feed.files import read_batches
from syncdata.apply.feed.snapshots import Snapshot, open_snapshot
from syncdata.apply.plan.batches import Batch, Limits
from syncdata.apply.plan.prepare import PreparedBatch, prepare
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import TableBatch
from syncdata.apply.position import START, Advance, Position
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.fallback import apply_table
from syncdata.apply.postgres.whole_table import advance_sequences, exchange
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.progress import Progress
from syncdata.apply.sink import Outcome, prepare_ahead
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import lock_checkpoints, require_position, reset_checkpoints
from syncdata.apply.state.runs import add_to_run
from syncdata.archive.archive import Archive, SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ParseError, SchemaError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)

_SHADOW = TableName("pg_temp", "syncdata_rebuild")


class ShadowTarget:
    """A sink like the real target, but into a temporary table, and without checkpoints, audit or metrics.

    ``began_with``: the snapshot it was filled from. ``broken``: the error of the newest snapshot, if that one
    was passed over.
    """

    def __init__(self, connection: Connection[Any], table: TableName) -> None:
        self._connection = connection
        self._schema = self._read_schema(table)
        self._writer = RowWriter(connection)
        self.counts = Counts()
        self.began_with: str | None = None
        self.broken: ParseError | None = None
        drop_shadow(connection)
        connection.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING INDEXES)"
            ).format(sql.Identifier(_SHADOW.name), _relation(table))
        )

    def _read_schema(self, table: TableName) -> TableSchema:
        schema = read_schemas(self._connection, [table]).get(table)
        if schema is None:
            raise SchemaError(
                "the table does not exist in the local database", hint="create it (migrate)", table=str(table)
            )
        return replace(schema, shadow=_SHADOW)

    @property
    def must_fit_others(self) -> bool:
        """Tell whether active foreign keys tie the table to others, so that all must be of one moment.
        Test: test_an_ordinary_role_loads_tables_that_refer_to_each_other."""
        return not self._writer.is_silent and bool(self._schema.parents or self._schema.has_inbound_keys)

    # From a snapshot

    def load_newest(
        self,
        archive: Archive,
        snapshots: Sequence[SnapshotFile],
        *,
        limits: Limits,
        progress: Progress,
        stop: threading.Event,
    ) -> Position:
        """Take the rows of the first good one of *snapshots*, newest first; return their position.

        When none is good, the shadow stays empty and the position is the archive's beginning. Raises
        FetchError, ArchiveConnectionError, ApplyError or SchemaError, psycopg.Error, and ReadingStopped.
        """
        for file in snapshots:
            progress.files_found(1, file.size_bytes)
            try:
                with closing(open_snapshot(archive, file, stop=stop)) as snapshot:
                    self._load(snapshot, limits=limits, progress=progress, stop=stop)
            except ParseError as error:
                logger.warning("this snapshot is passed over: %s", error)
                self.broken = self.broken or error
                self._connection.execute(sql.SQL("TRUNCATE {}").format(_relation(_SHADOW)))
                self.counts = Counts()
            else:
                self.began_with = file.name
                return snapshot.position
        return START

    def _load(self, snapshot: Snapshot, *, limits: Limits, progress: Progress, stop: threading.Event) -> None:
        fetched = snapshot.fetched
        progress.file_started(fetched.name, fetched.size_bytes)
        watermarks = {snapshot.table: None}
        batches = read_batches(fetched, snapshot.records(), watermarks=watermarks, limits=limits)
        advance = Advance(watermarks=watermarks, start=START, end=START)
        self.begin_file([snapshot.table])
        with prepare_ahead(self, batches) as planned:
            for batch, prepared in planned:
                if stop.is_set():
                    raise ReadingStopped
                self.apply(prepared, advance)
                progress.batch_applied(len(batch.records), fetched.share_of(batch.size_bytes))
        progress.file_finished(fetched.name)

    # From change files, as a cycle's sink

    def begin_file(self, tables: Collection[TableName]) -> None:
        self._writer.forget_failures()

    def prepare(self, batch: Batch) -> PreparedBatch:
        return prepare(batch, {self._schema.name: self._schema})

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        raise error

    def unblock(self, tables: Collection[TableName]) -> None:
        """Do nothing: the table's checkpoint, which `exchange` writes anew, is not blocked."""

    def apply(self, prepared: PreparedBatch, advance: Advance) -> Outcome:
        """Apply *prepared*; the checkpoint moves in `exchange`. Raises errors that would block a table."""
        outcome = Outcome()
        with self._connection.transaction():
            self._writer.begin()
            for table, share in prepared.shares.items():
                if isinstance(share.plan, SyncError):
                    raise share.plan
                batch = TableBatch(schema=share.plan.schema, records=share.records, file=prepared.file)
                outcome.counts[table] = apply_table(self._writer, batch, share.plan)
                self.counts.add(outcome.counts[table])
        return outcome

    # Into the table's place

    def exchange(
        self,
        position: Position,
        *,
        action: str,
        now: dt.datetime,
        duration_ms: int,
        only_from: Position | None = None,
        run_id: int | None = None,
        requested_by: str | None = None,
    ) -> None:
        """Put the new rows in the place of the old ones and the checkpoint at *position*, and audit it as
        *action*, in one transaction.

        Raises CheckpointMovedError unless the checkpoint is at *only_from*, where that is given.
        """
        live = replace(self._schema, shadow=None)
        with self._connection.transaction():
            if only_from is None:
                lock_checkpoints(self._connection, [live.name])
            else:
                require_position(self._connection, {live.name: only_from.commit_lsn}, only_from)
            self._writer.begin()
            exchange(self._writer.cursor, live, self._schema, is_silent=self._writer.is_silent)
            advance_sequences(self._writer.cursor, live)
            reset_checkpoints(self._connection, [live.name], position, counts=self.counts, now=now)
            log_action(
                self._connection,
                live.name,
                action=action,
                reference=self.began_with or position.file,
                now=now,
                counts=self.counts,
                duration_ms=duration_ms,
                requested_by=requested_by,
            )
            if run_id is not None:
                add_to_run(self._connection, run_id, records=self.counts.records)


def drop_shadow(connection: Connection[Any]) -> None:
    if not connection.closed:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_relation(_SHADOW)))


def _relation(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)
