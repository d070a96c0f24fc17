"""One cycle: discover, fetch, parse, plan, apply. Knows the order of things; knows nothing of Django.

Tables that stand at one position advance together, so that the database shows only states that the
source showed. The group that is farthest ahead goes first, for its freshness must not wait; then those
behind (new tables, tables that were blocked) catch up, each group joining the next one it reaches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Protocol

from syncdata.apply.feed.continuity import check_chain, files_after, lost_beginning, lost_part
from syncdata.apply.feed.files import Fetched, ask, fetch, prepare_all
from syncdata.apply.feed.groups import Group, group_by_position
from syncdata.apply.plan.batches import Batch, Limits, cut_batches
from syncdata.apply.plan.prepare import PreparedBatch
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.position import START, Position
from syncdata.apply.postgres.target import Outcome
from syncdata.apply.progress import NoProgress, Progress
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.state.checkpoints import Checkpoint, Skip
from syncdata.archive.archive import Archive, ChangeFile
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.changes.reader import NO_TABLE, read_records
from syncdata.errors import DiscoveryError, ParseError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.runtime.prefetch import prefetch

logger = logging.getLogger(__name__)


class BatchTarget(Protocol):
    """Where batches go: the local database, or a table that is being rebuilt."""

    def schemas(self, tables: Collection[TableName]) -> dict[TableName, TableSchema]: ...

    def block(
        self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position
    ) -> None: ...

    def unblock(self, tables: Collection[TableName]) -> None: ...

    def apply(
        self,
        prepared: PreparedBatch,
        watermarks: Mapping[TableName, int | None],
        *,
        start: Position,
        end: Position,
    ) -> Outcome: ...


class Cycle:
    """One pass over the archive. *deadline*: monotonic seconds after which tables behind wait for the
    next cycle. *broken*: why a table's newest snapshot is none, where it has no good one."""

    def __init__(
        self,
        archive: Archive,
        target: BatchTarget,
        *,
        limits: Limits,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        deadline: float | None = None,
        broken: Mapping[TableName, ParseError] | None = None,
    ) -> None:
        self._archive = archive
        self._target = target
        self._limits = limits
        self._progress = progress or NoProgress()
        self._stop = stop or threading.Event()
        self._deadline = deadline
        self._broken = broken or {}
        self._at_end: set[TableName] = set()
        self._reasons: dict[TableName, str | None] = {}
        self._skips: dict[TableName, tuple[Skip, ...]] = {}
        self.result = CycleResult()

    def run(self, checkpoints: Sequence[Checkpoint]) -> CycleResult:
        """Apply what the archive holds beyond *checkpoints*, those of all whitelisted tables.

        Returns when all is applied, blocked or waited for, or soon after *stop* is set. Raises
        DiscoveryError, FetchError, ArchiveConnectionError or ApplyError when it cannot go on, and
        CheckpointMovedError when another process moved a checkpoint; what was applied stays applied.
        """
        self._reasons = {checkpoint.table: checkpoint.error for checkpoint in checkpoints}
        self._skips = {checkpoint.table: checkpoint.skips for checkpoint in checkpoints}
        groups = group_by_position(checkpoints)
        if not groups:
            return self.result
        files = self.discover(since=groups[0].position.file or None)
        *behind, front = groups
        self.advance(front, files)
        self.result.position = front.position
        self._catch_up(behind, files)
        # What blocked them has gone without a record to apply: the file was withdrawn, say.
        healed = self._at_end & {checkpoint.table for checkpoint in checkpoints if checkpoint.error}
        healed -= self.result.blocked.keys()  # those that have met another error since they were noted
        if healed:
            self._target.unblock(healed)
        self._progress.files_found(0, 0)
        return self.result

    def discover(self, since: str | None) -> list[ChangeFile]:
        """List the archive; nothing when a stop comes first, however long the host takes to answer."""
        try:
            return ask(self._archive, lambda: self._archive.discover(since), stop=self._stop)
        except ReadingStopped:
            return []

    def _catch_up(self, behind: list[Group], files: list[ChangeFile]) -> None:
        """Let each group go up to those before it, one after the other, until it meets one and joins it."""
        for number, group in enumerate(behind):
            for next_group in behind[number + 1 :]:
                goes_on = self.advance(group, files, until=next_group.position, deadline=self._deadline)
                if group.is_with(next_group):
                    next_group.watermarks |= group.watermarks
                    break
                if not goes_on:
                    break
            else:
                self.advance(group, files, deadline=self._deadline)

    def advance(
        self,
        group: Group,
        files: list[ChangeFile],
        *,
        until: Position | None = None,
        deadline: float | None = None,
    ) -> bool:
        """Advance *group* through *files* to their end or *until*; tables that block leave it.

        False when it cannot go on from there: it is blocked, stopped, or a file is still being written.
        """
        todo = files_after(group.position, files)
        if (lost := lost_part(group.position, files)) is not None:
            self._block(group, list(group.tables), lost)
            return False
        if until is not None:
            todo = [file for file in todo if (file.stem, False, 0) < until.order]
        self._progress.files_found(len(todo), sum(file.size_bytes for file in todo))
        fetching = prefetch(
            self._fetch_all(todo),
            name="syncdata-fetch",
            discard=lambda fetched: fetched.stream.close(),
            stop=self._stop,
            interrupt=self._archive.close,
        )
        with closing(fetching) as fetched_files, suppress(ReadingStopped):
            for fetched in fetched_files:
                with closing(fetched.stream):
                    is_newest = fetched.name == files[-1].name
                    if not self._apply_file(group, fetched, is_newest=is_newest, until=until):
                        return False
                if self._stop.is_set() or (deadline is not None and time.monotonic() > deadline):
                    return False
        if self._stop.is_set():
            return False
        if until is None:
            self._at_end.update(group.tables)
        return True

    def _fetch_all(self, files: list[ChangeFile]) -> Iterator[Fetched]:
        for file in files:
            yield fetch(self._archive, file, stop=self._stop)

    def _apply_file(self, group: Group, fetched: Fetched, *, is_newest: bool, until: Position | None) -> bool:
        """Apply one file to *group*; False when the group cannot go on to the next one."""
        start = group.position
        try:
            if not self._is_readable(group, fetched, is_newest=is_newest):
                self._at_end.update(group.tables)
                return False
            self._progress.file_started(fetched.name, fetched.size_bytes)
            self._apply_batches(group, fetched, until=until)
        except (ParseError, DiscoveryError) as error:
            self._block(group, list(group.tables), error)
            return False
        if start == START and fetched.inspection.header:
            _warn_of_older_rows(group, fetched.name)
        if not group.tables or not group.position.is_finished:
            return False
        self.result.files_processed += 1
        self._progress.file_finished(fetched.name)
        return True

    def _is_readable(self, group: Group, fetched: Fetched, *, is_newest: bool) -> bool:
        """Whether the file is finished and follows *group*. Raises ParseError or DiscoveryError."""
        name, inspection = fetched.name, fetched.inspection
        if inspection.error:
            raise inspection.error
        if inspection.unfinished:
            if not is_newest:
                raise ParseError(
                    f"the file is cut short: {inspection.unfinished}, yet newer files are there",
                    hint="replace it in the archive by a good copy; syncing goes on by itself",
                    file=name,
                )
            logger.info("%s is still being written: %s", name, inspection.unfinished, extra={"file": name})
            self.result.waiting_for = name
            return False
        if inspection.header is None or stem(group.position.file) == stem(name):
            return True
        if group.position == START and inspection.header.prev is not None:
            for table in sorted(group.tables):
                self._block(group, [table], lost_beginning(table, name, self._broken.get(table)))
            return False
        check_chain(group.position, inspection.header, name)
        return True

    def _apply_batches(self, group: Group, fetched: Fetched, *, until: Position | None) -> None:
        schemas = self._target.schemas(group.tables)
        ignored = self._ignored_lines(group, fetched.name)
        batches = _read_batches(group, fetched, limits=self._limits, until=until, ignored=ignored)
        with closing(prefetch(prepare_all(batches, schemas, fetched), name="syncdata-prepare")) as ready:
            for prepared in ready:
                end = _position_after(prepared.batch, fetched)
                outcome = self._target.apply(prepared, group.watermarks, start=group.position, end=end)
                self._note(prepared, outcome, fetched)
                group.leave(outcome.blocked)
                group.move_to(end)
                if not group.tables or self._stop.is_set():
                    return

    def _ignored_lines(self, group: Group, file: str) -> frozenset[int]:
        """Return the lines of *file* that an operator has said to skip, for all tables of *group*."""
        lines = (
            frozenset(skip.line for skip in self._skips.get(table, ()) if stem(skip.file) == stem(file))
            for table in group.tables
        )
        return frozenset.intersection(*lines)

    def _note(self, prepared: PreparedBatch, outcome: Outcome, fetched: Fetched) -> None:
        result, batch = self.result, prepared.batch
        for table, counts in outcome.counts.items():
            result.counts.add(counts)
            result.activity.setdefault(table, Activity()).add(counts, file=prepared.file)
        result.skipped += batch.skipped
        for table, error in outcome.blocked.items():
            records = len(prepared.parts[table].records)
            logger.error("%s", error, extra=error.fields | {"table": str(table), "records": records})
            result.failed += records
            self._note_blocked(table, error)
        if batch.records:
            result.last_lsn = batch.records[-1].record.commit_lsn or batch.records[-1].record.lsn or ""
        records = len(batch.records) + batch.skipped + batch.repeated
        logger.debug(
            "%s: %d records applied up to record %d",
            prepared.file,
            records,
            batch.end_record,
            extra={"file": prepared.file, "records": records},
        )
        self._progress.batch_applied(records, fetched.share_of(batch.size_bytes))

    def _block(self, group: Group, tables: Iterable[TableName], error: SyncError) -> None:
        """Block those *tables* of *group*, which leave it."""
        watermarks = {table: group.watermarks[table] for table in tables}
        logger.error("%s", error, extra=error.fields)
        self._target.block(watermarks, error, start=group.position)
        for table in watermarks:
            self._note_blocked(table, error)
        self.result.failed += 1
        group.leave(watermarks)

    def _note_blocked(self, table: TableName, error: SyncError) -> None:
        self.result.note_blocked(table, error, reason_before=self._reasons.get(table))


def _warn_of_older_rows(group: Group, name: str) -> None:
    """The archive shows where it begins, but not whether the tables had rows before."""
    tables = " ".join(map(str, sorted(group.tables)))
    if tables:
        logger.warning(
            "%s: rows that are older than the archive's first file, %s, are not there, for there is no"
            " snapshot: if there are any, run 'archive_changes --snapshot %s' at production, and resync",
            tables,
            name,
            tables,
        )


def _read_batches(
    group: Group, fetched: Fetched, *, limits: Limits, until: Position | None, ignored: frozenset[int]
) -> Iterator[Batch]:
    position, own = group.position, stem(fetched.name)
    start_record = position.record_number if stem(position.file) == own else 0
    is_last = until is not None and stem(until.file) == own and not until.is_finished
    header = fetched.inspection.header
    return cut_batches(
        read_records(fetched.stream, fetched.name, skip=start_record, ignored=ignored),
        watermarks={**group.watermarks_in(header.source_id if header else ""), NO_TABLE: None},
        limits=limits,
        start_record=start_record,
        until_record=until.record_number if until is not None and is_last else None,
    )


def _position_after(batch: Batch, fetched: Fetched) -> Position:
    header = fetched.inspection.header
    return Position(
        file=fetched.name,
        is_finished=batch.ends_file,
        record_number=batch.end_record,
        file_size=fetched.size_bytes if batch.ends_file else None,
        commit_lsn=batch.commit_lsn,
        source_id=header.source_id if header else "",
    )
