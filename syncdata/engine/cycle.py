"""One cycle: discover, fetch, parse, plan, apply. Knows the order of things; knows nothing of Django.

Tables that stand at one position advance together, so that the database shows only states that the
source showed. The group that is farthest ahead goes first, for its freshness must not wait; then those
behind (new tables, tables that were blocked) catch up, each group joining the next one it reaches.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from syncdata.engine.ahead import ahead
from syncdata.engine.archive import Archive, ChangeFile
from syncdata.engine.batch import Batch, Limits, cut_batches
from syncdata.engine.changefile import NO_TABLE, Header, Inspection, inspect, read_records, stem
from syncdata.engine.changes import TableName
from syncdata.engine.errors import DiscoveryError, ParseError, SyncError
from syncdata.engine.ledger import Checkpoint, Position, Skip
from syncdata.engine.plan import Counts
from syncdata.engine.reading import ReadingStopped, up_to
from syncdata.engine.schema import TableSchema
from syncdata.engine.target import Outcome, PreparedBatch, prepare

logger = logging.getLogger(__name__)


class BatchTarget(Protocol):
    """Where batches go: the local database, or a table that is being rebuilt."""

    def schemas(self, tables: Collection[TableName]) -> dict[TableName, TableSchema]: ...

    def block(self, tables: Collection[TableName], error: SyncError, *, start: Position) -> None: ...

    def unblock(self, tables: Collection[TableName]) -> None: ...

    def apply(
        self, prepared: PreparedBatch, tables: Collection[TableName], *, start: Position, end: Position
    ) -> Outcome: ...


class Progress(Protocol):
    """What someone who watches a cycle is told. Sizes are of files as stored, compressed ones too;
    each ``files_found`` begins anew, and one of no files ends."""

    def files_found(self, count: int, size_bytes: int) -> None: ...

    def file_started(self, name: str, size_bytes: int) -> None: ...

    def batch_applied(self, records: int, size_bytes: int) -> None: ...

    def file_finished(self, name: str) -> None: ...


class NoProgress:
    """Nobody watches."""

    def files_found(self, count: int, size_bytes: int) -> None: ...

    def file_started(self, name: str, size_bytes: int) -> None: ...

    def batch_applied(self, records: int, size_bytes: int) -> None: ...

    def file_finished(self, name: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class CycleResult:
    """What a cycle did. ``skipped``: records of tables that are not whitelisted. ``waiting_for``: the
    newest file, while it is being written."""

    files_processed: int = 0
    counts: Counts = field(default_factory=Counts)
    skipped: int = 0
    failed: int = 0
    last_lsn: str = ""
    position: Position = field(default_factory=Position)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)
    waiting_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A change file at hand."""

    file: ChangeFile
    stream: BinaryIO
    size_bytes: int
    inspection: Inspection


@dataclass(slots=True)
class Group:
    """Tables at one position, going on together."""

    tables: set[TableName]
    position: Position


class Cycle:
    """One pass over the archive. *deadline*: monotonic seconds after which tables behind wait for the
    next cycle."""

    def __init__(
        self,
        archive: Archive,
        target: BatchTarget,
        *,
        limits: Limits,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        deadline: float | None = None,
    ) -> None:
        self._archive = archive
        self._target = target
        self._limits = limits
        self._progress = progress or NoProgress()
        self._stop = stop or threading.Event()
        self._deadline = deadline
        self._at_end: set[TableName] = set()
        self._skips: dict[TableName, tuple[Skip, ...]] = {}
        self.result = CycleResult()

    def run(self, checkpoints: Sequence[Checkpoint]) -> CycleResult:
        """Apply what the archive holds beyond *checkpoints*, those of all whitelisted tables.

        Returns when all is applied, blocked or waited for, or soon after *stop* is set. Raises
        DiscoveryError, FetchError, ArchiveConnectionError or ApplyError when it cannot go on, and
        CheckpointMovedError when another process moved a checkpoint; what was applied stays applied.
        """
        self._skips = {checkpoint.table: checkpoint.skips for checkpoint in checkpoints}
        groups = _group_by_position(checkpoints)
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
        listing = ahead(
            (self._archive.discover(name) for name in [since]),
            name="syncdata-discover",
            stop=self._stop,
            interrupt=self._archive.close,
        )
        with closing(listing):
            return next(listing, [])

    def _catch_up(self, behind: list[Group], files: list[ChangeFile]) -> None:
        group = Group(set(), Position())
        for number, next_group in enumerate(behind):
            group = _join(group, next_group)
            until = behind[number + 1].position if number + 1 < len(behind) else None
            self.advance(group, files, until=until, deadline=self._deadline)

    def advance(
        self,
        group: Group,
        files: list[ChangeFile],
        *,
        until: Position | None = None,
        deadline: float | None = None,
    ) -> None:
        """Advance *group* through *files* to their end or *until*; tables that block leave it."""
        todo = _files_after(group.position, files)
        if (lost := _lost_part(group.position, files)) is not None:
            self._block_all(group, lost)
            return
        if until is not None:
            todo = [file for file in todo if (file.stem, False, 0) < until.order]
        self._progress.files_found(len(todo), sum(file.size_bytes for file in todo))
        fetching = ahead(
            self._fetch_all(todo),
            name="syncdata-fetch",
            discard=lambda fetched: fetched.stream.close(),
            stop=self._stop,
            interrupt=self._archive.close,
        )
        with closing(fetching) as fetched_files, suppress(ReadingStopped):
            for fetched in fetched_files:
                with closing(fetched.stream):
                    is_newest = fetched.file is files[-1]
                    if not self._apply_file(group, fetched, is_newest=is_newest, until=until):
                        return
                if self._stop.is_set() or (deadline is not None and time.monotonic() > deadline):
                    return
        if not self._stop.is_set():
            self._at_end |= group.tables

    def _fetch_all(self, files: list[ChangeFile]) -> Iterator[Fetched]:
        for file in files:
            stream = self._archive.fetch(file)
            size_bytes = stream.seek(0, os.SEEK_END)
            stream = up_to(stream, size_bytes, stop=self._stop)
            try:
                inspection = inspect(stream, file.name)
            except BaseException:  # a stop, too
                stream.close()
                raise
            yield Fetched(file=file, stream=stream, size_bytes=size_bytes, inspection=inspection)

    def _apply_file(self, group: Group, fetched: Fetched, *, is_newest: bool, until: Position | None) -> bool:
        """Apply one file to *group*; False when the group cannot go on to the next one."""
        name = fetched.file.name
        try:
            if not self._is_readable(group.position, fetched, is_newest=is_newest):
                self._at_end |= group.tables
                return False
            self._progress.file_started(name, fetched.size_bytes)
            self._apply_batches(group, fetched, until=until)
        except (ParseError, DiscoveryError) as error:
            self._block_all(group, error)
            return False
        if not group.tables or not group.position.is_finished:
            return False
        self.result.files_processed += 1
        self._progress.file_finished(name)
        return True

    def _is_readable(self, position: Position, fetched: Fetched, *, is_newest: bool) -> bool:
        """Whether the file is finished and follows *position*. Raises ParseError or DiscoveryError."""
        name, inspection = fetched.file.name, fetched.inspection
        if inspection.error:
            raise inspection.error
        if inspection.unfinished:
            if not is_newest:
                raise ParseError(
                    f"the file is cut short: {inspection.unfinished}, yet newer files are there",
                    hint="replace it in the archive by a good copy; syncing goes on by itself",
                    file=name,
                )
            logger.info("%s is still being written: %s", name, inspection.unfinished)
            self.result.waiting_for = name
            return False
        if inspection.header and stem(position.file) != fetched.file.stem:
            check_chain(position, inspection.header, name)
        return True

    def _apply_batches(self, group: Group, fetched: Fetched, *, until: Position | None) -> None:
        is_plain = fetched.inspection.header is None
        schemas = self._target.schemas(group.tables)
        ignored = self._ignored_lines(group, fetched.file)
        batches = _read_batches(group, fetched, limits=self._limits, until=until, ignored=ignored)
        prepared_batches = _prepare_all(batches, schemas, file=fetched.file.name, is_plain_file=is_plain)
        with closing(ahead(prepared_batches, name="syncdata-prepare")) as ready:
            for prepared in ready:
                _check_count(prepared.batch, fetched)
                end = _position_after(prepared.batch, fetched)
                outcome = self._target.apply(prepared, group.tables, start=group.position, end=end)
                self._note(prepared, outcome, fetched)
                group.tables -= outcome.blocked.keys()
                group.position = end
                if not group.tables or self._stop.is_set():
                    return

    def _ignored_lines(self, group: Group, file: ChangeFile) -> frozenset[int]:
        """Return the lines of *file* that an operator has said to skip, for all tables of *group*."""
        lines = (
            frozenset(skip.line for skip in self._skips.get(table, ()) if stem(skip.file) == file.stem)
            for table in group.tables
        )
        return frozenset.intersection(*lines)

    def _note(self, prepared: PreparedBatch, outcome: Outcome, fetched: Fetched) -> None:
        result, batch = self.result, prepared.batch
        for counts in outcome.counts.values():
            result.counts.add(counts)
        result.skipped += batch.skipped
        for table, error in outcome.blocked.items():
            logger.error("%s", error, extra={"table": str(table), "code": error.code})
            result.failed += len(prepared.parts[table].records)
            result.blocked[table] = error
        if batch.records:
            result.last_lsn = batch.records[-1].record.commit_lsn or batch.records[-1].record.lsn or ""
        records = len(batch.records) + batch.skipped + batch.repeated
        logger.debug("%s: %d records applied up to record %d", prepared.file, records, batch.end_record)
        share = batch.size_bytes / max(fetched.inspection.text_bytes, 1)
        self._progress.batch_applied(records, round(share * fetched.size_bytes))

    def _block_all(self, group: Group, error: SyncError) -> None:
        logger.error("%s", error, extra={"code": error.code})
        self._target.block(group.tables, error, start=group.position)
        self.result.blocked.update(dict.fromkeys(group.tables, error))
        self.result.failed += 1
        group.tables.clear()


def check_chain(position: Position, header: Header, name: str) -> None:
    """Raise DiscoveryError unless the file with *header* is the one that follows *position*."""
    if position.source_id and position.source_id != header.source_id:
        raise DiscoveryError(
            "the file comes from another source (system, timeline, slot or epoch) than those before it:"
            " changes between the two may be missing",
            hint="move the older source's files out of the archive, load the tables anew from the new source"
            " and clear or resync them",
            file=name,
        )
    expected = "" if header.prev is None else stem(header.prev)
    is_first_of_chain = header.prev is None and not position.source_id
    if not is_first_of_chain and expected != stem(position.file):
        raise DiscoveryError(
            f"a gap: it follows {header.prev or 'none'}, but {position.file or 'none'} was applied last",
            hint="bring the missing file into the archive and syncing goes on by itself",
            file=name,
        )


def _group_by_position(checkpoints: Sequence[Checkpoint]) -> list[Group]:
    """Return the tables by position, the farthest behind first."""
    groups: dict[tuple[str, bool, int], Group] = {}
    for checkpoint in checkpoints:
        group = groups.setdefault(checkpoint.position.order, Group(set(), checkpoint.position))
        group.position = _higher_lsn(group.position, checkpoint.position)
        group.tables.add(checkpoint.table)
    return [groups[order] for order in sorted(groups)]


def _join(group: Group, next_group: Group) -> Group:
    """Return the group that goes on from *next_group*'s position, with *group* if it has got there."""
    if group.position.order != next_group.position.order:
        return next_group
    position = _higher_lsn(group.position, next_group.position)
    return Group(group.tables | next_group.tables, position)


def _higher_lsn(a: Position, b: Position) -> Position:
    """All before one position is applied to all tables there, so the higher commit LSN holds for all."""
    return max(a, b, key=lambda position: position.commit_lsn or 0)


def _files_after(position: Position, files: list[ChangeFile]) -> list[ChangeFile]:
    """Those of *files* that hold records after *position*: newer ones, and its own if it goes on."""
    own = stem(position.file)
    return [file for file in files if file.stem > own or (file.stem == own and _goes_on(position, file))]


def _lost_part(position: Position, files: list[ChangeFile]) -> DiscoveryError | None:
    """Return the error when the file that *position* lies in has gone and newer ones are there."""
    own = stem(position.file)
    if not own or position.is_finished or not files or any(file.stem == own for file in files):
        return None
    return DiscoveryError(
        f"the file is gone from the archive, but only {position.record_number} of its records were applied",
        hint="put it back and syncing goes on by itself",
        file=position.file,
    )


def _goes_on(position: Position, file: ChangeFile) -> bool:
    """A file applied in part goes on; and so does a plain one that has grown since it was all applied."""
    if not position.is_finished:
        return True
    if position.file_size is None or position.source_id:
        return False
    # Compressed since, it may have grown before; only a look inside tells.
    return file.name != position.file or file.size_bytes > position.file_size


def _read_batches(
    group: Group, fetched: Fetched, *, limits: Limits, until: Position | None, ignored: frozenset[int]
) -> Iterator[Batch]:
    position, file = group.position, fetched.file
    start_record = position.record_number if stem(position.file) == file.stem else 0
    is_last = until is not None and stem(until.file) == file.stem and not until.is_finished
    header = fetched.inspection.header
    is_same_source = header is not None and header.source_id == position.source_id
    return cut_batches(
        read_records(fetched.stream, file.name, skip=start_record, ignored=ignored),
        wanted=frozenset(group.tables) | {NO_TABLE},
        limits=limits,
        start_record=start_record,
        until_record=until.record_number if until is not None and is_last else None,
        applied_lsn=position.commit_lsn if is_same_source else None,
    )


def _prepare_all(
    batches: Iterator[Batch], schemas: dict[TableName, TableSchema], *, file: str, is_plain_file: bool
) -> Iterator[PreparedBatch]:
    for batch in batches:
        yield prepare(batch, schemas, file=file, is_plain_file=is_plain_file)


def _check_count(batch: Batch, fetched: Fetched) -> None:
    footer = fetched.inspection.footer
    if footer and batch.ends_file and batch.end_record != footer.records:
        raise ParseError(
            f"the file holds {batch.end_record} records, but its footer says {footer.records}",
            hint="replace the file in the archive by a good copy; syncing goes on by itself",
            file=fetched.file.name,
        )


def _position_after(batch: Batch, fetched: Fetched) -> Position:
    header = fetched.inspection.header
    return Position(
        file=fetched.file.name,
        is_finished=batch.ends_file,
        record_number=batch.end_record,
        file_size=fetched.size_bytes if batch.ends_file else None,
        commit_lsn=batch.commit_lsn,
        source_id=header.source_id if header else "",
    )
