"""One cycle in five steps: discover, fetch, parse, plan, apply. Knows their order; knows neither Django nor
what becomes of a batch.

`Cycle.discover` lists the archive. `Cycle._fetch` fetches each file while the one before is at work.
`Cycle._parse` checks that a file is finished and is the next one, and cuts it into batches. The sink plans a
batch (`prepare`) in a thread of its own while it applies the one before (`apply`).

Small files go together: `feed.stretches` joins those that follow each other and about which nothing is out of
the ordinary, and the sink applies them as one batch, each with its own audit row. Where it finds that they do
not go through as they are (ApartError), it has done nothing, and they are applied one by one. Any other file
ends the stretch before it. So what a file does, counts and blocks is the same in a stretch as by itself.

A batch may end at checks of the archive: when it has committed, the rows are held to them (`verifying`).
Groups behind are to catch up first; what went into verifying does not shorten their time. Tests:
test_tables_behind_are_not_verified_while_they_catch_up, test_verifying_takes_no_time_of_tables_behind.

Tables that stand at one position advance together, so that the database shows only states that the
source showed. The group that is farthest ahead goes first, so that it does not grow stale. Then the groups
behind (new tables, tables that were blocked) catch up, and each joins the next one that it reaches.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import Any

from syncdata.apply.counts import Counts
from syncdata.apply.feed.continuity import check_position, files_after, lost_beginning, lost_part
from syncdata.apply.feed.files import Fetched, ask, fetch_all
from syncdata.apply.feed.groups import Group, group_by_position
from syncdata.apply.feed.stretches import (
    Pace,
    Part,
    Stretch,
    batches_for,
    gather,
    position_after,
    require_next,
    whole_part,
)
from syncdata.apply.plan.batches import Batch, Limits, no_check
from syncdata.apply.position import START, FileCounts, Position
from syncdata.apply.progress import NoProgress, Progress
from syncdata.apply.result import Activity, CycleResult, Verified
from syncdata.apply.sink import (
    LOCK_LIMIT_S,
    PREPARING,
    ApartError,
    LockedError,
    Outcome,
    Sink,
    prepare_ahead,
)
from syncdata.apply.state.checkpoints import Skip, TableCheckpoint
from syncdata.apply.verifying import Verifying
from syncdata.archive.archive import Archive, ChangeFile
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.changes.verification import Check
from syncdata.errors import DiscoveryError, ParseError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.runtime.prefetch import prefetch
from syncdata.runtime.told import Told

logger = logging.getLogger(__name__)


class Cycle:
    """The five steps for the tables of some checkpoints, from there to the end of the archive.

    *deadline*: monotonic seconds after which tables behind wait for the next cycle. *bad_snapshots*: for
    tables that have snapshots but no good one, the error of the newest; it is reported when such a table
    cannot begin with the change files either. Without *verifying*, rows are held to no checks.
    """

    def __init__(
        self,
        archive: Archive,
        sink: Sink[Any],
        *,
        limits: Limits,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        deadline: float | None = None,
        bad_snapshots: Mapping[TableName, ParseError] | None = None,
        told: Told | None = None,
        verifying: Verifying | None = None,
    ) -> None:
        self._archive = archive
        self._sink = sink
        self._limits = limits
        self._progress = progress or NoProgress()
        self._stop = stop or threading.Event()
        self._deadline = deadline
        self._bad_snapshots = bad_snapshots or {}
        self._told = told or Told()
        self._verifying = verifying
        self._at_end: set[TableName] = set()
        self._reasons: dict[TableName, str | None] = {}
        self._skips: dict[TableName, tuple[Skip, ...]] = {}
        self.result = CycleResult()

    def run(self, checkpoints: Sequence[TableCheckpoint], *, until: Position | None = None) -> CycleResult:
        """Apply what the archive holds beyond *checkpoints*, those of all whitelisted tables, up to *until*,
        which none of them is beyond.

        Returns when all is applied, blocked or waited for, or soon after *stop* is set. Raises
        DiscoveryError, FetchError, ArchiveConnectionError or ApplyError when it cannot go on, and
        CheckpointMovedError when another process moved a checkpoint; what was applied stays applied.
        """
        self._reasons = {checkpoint.table: checkpoint.error for checkpoint in checkpoints}
        self._skips = {checkpoint.table: checkpoint.skips for checkpoint in checkpoints}
        groups = group_by_position({checkpoint.table: checkpoint.position for checkpoint in checkpoints})
        if not groups:
            return self.result
        files = self.discover(since=groups[0].position.file or None)
        *behind, front = groups
        is_at_end = self._go_on(front, files, until)
        self.result.position = front.position
        verifying, self._verifying = self._verifying, None
        if verifying is not None:
            if is_at_end:
                verifying.note_ends(front)
            if self._deadline is not None:
                self._deadline += verifying.spent_s
        self._catch_up(behind, files, until, deadline=self._deadline)
        self._unblock_healed(checkpoints)
        for table in (self._at_end | self.result.activity.keys()) - self.result.blocked.keys():
            self._told.over(logger, f"table {table}", f"{table} goes on: what held it up is over")
        self._progress.files_found(0, 0)
        return self.result

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
        try:
            check_position(group.position)
        except DiscoveryError as error:
            self._block(group, list(group.tables), error)
            return False
        todo = files_after(group.position, files)
        if (lost := lost_part(group.position, files)) is not None:
            self._block(group, list(group.tables), lost)
            return False
        if until is not None:
            todo = [file for file in todo if (file.stem, False, 0) < until.order]
        self._progress.files_found(len(todo), sum(file.size_bytes for file in todo))
        newest = files[-1].name if files else ""
        with closing(self._fetch(todo)) as fetched_files, suppress(ReadingStopped):
            pace = Pace()
            with closing(self._in_turn(group, fetched_files, pace, until=until)) as items:
                for item in items:
                    if isinstance(item, Fetched):
                        with closing(item.stream):
                            is_newest = item.name == newest
                            goes_on = self._apply_file(group, item, is_newest=is_newest, until=until)
                    else:
                        goes_on = self._apply_stretch(group, *item, pace, deadline=deadline)
                    if not goes_on or self._must_end(deadline):
                        return False
        if self._stop.is_set():
            return False
        if until is None:
            self._at_end.update(group.tables)
        return True

    def _must_end(self, deadline: float | None) -> bool:
        return self._stop.is_set() or (deadline is not None and time.monotonic() > deadline)

    def _go_on(
        self,
        group: Group,
        files: list[ChangeFile],
        until: Position | None,
        *,
        deadline: float | None = None,
    ) -> bool:
        """Advance *group* as far as it may go, where it is at its end; return what `advance` does."""
        goes_on = self.advance(group, files, until=until, deadline=deadline)
        if until is not None and not self._stop.is_set() and group.position.has_reached(until):
            self._at_end.update(group.tables)
        return goes_on

    def _catch_up(
        self,
        behind: list[Group],
        files: list[ChangeFile],
        until: Position | None,
        *,
        deadline: float | None,
    ) -> None:
        """Let each group go up to those before it, one after the other, until it meets one and joins it."""
        for number, group in enumerate(behind):
            for next_group in behind[number + 1 :]:
                goes_on = self.advance(group, files, until=next_group.position, deadline=deadline)
                if group.is_with(next_group):
                    next_group.watermarks |= group.watermarks
                    break
                if not goes_on:
                    break
            else:
                self._go_on(group, files, until, deadline=deadline)

    def _apply_file(self, group: Group, fetched: Fetched, *, is_newest: bool, until: Position | None) -> bool:
        """Apply one file to *group*; False when the group cannot go on to the next one."""
        start = group.position
        try:
            batches = self._parse(group, fetched, is_newest=is_newest, until=until)
            if batches is None:
                self._at_end.update(group.tables)
                return False
            self._progress.file_started(fetched.name, fetched.size_bytes)
            self._plan_and_apply(group, fetched, batches)
        except (ParseError, DiscoveryError) as error:
            self._block(group, list(group.tables), error)
            return False
        if start == START and fetched.inspection.header:
            _warn_of_older_rows(group, fetched.name)
        if not group.tables or not group.position.is_finished:
            return False
        self._note_finished(fetched.name)
        return True

    # Discover

    def discover(self, since: str | None) -> list[ChangeFile]:
        """List the archive. When a stop comes first, return nothing at once: the host may take long."""
        try:
            return ask(self._archive, lambda: self._archive.discover(since), stop=self._stop)
        except ReadingStopped:
            return []

    # Fetch

    def _fetch(self, files: list[ChangeFile]) -> Generator[Fetched]:
        return fetch_all(
            self._archive, files, stop=self._stop, max_record_bytes=self._limits.max_record_bytes
        )

    # Parse

    def _parse(
        self, group: Group, fetched: Fetched, *, is_newest: bool, until: Position | None
    ) -> Iterator[Batch] | None:
        """Return the batches of the file that *group* lacks, or None while the file is being written.

        Raises ParseError when the file is broken, DiscoveryError when it is not the next one. Reading the
        batches raises ParseError, too, at a broken line. Tables whose beginning is lost leave *group*.
        """
        if not self._is_finished(fetched, is_newest=is_newest):
            return None
        if fetched.catalog_error is not None:
            raise fetched.catalog_error
        name, header = fetched.name, fetched.inspection.header
        if group.position == START and header is not None and header.prev is not None:
            # Test: test_a_pruned_chain_lets_new_tables_start_and_stops_those_that_need_it.
            for table in sorted(group.tables):
                self._block(group, [table], lost_beginning(table, name, self._bad_snapshots.get(table)))
            return None
        require_next(group.position, fetched, now=dt.datetime.now(dt.UTC))
        ignored = _ignored_lines(group, name, self._skips)
        return batches_for(
            group,
            fetched,
            limits=self._limits,
            until=until,
            ignored=ignored,
            is_wanted=self._wanted(group, fetched),
        )

    def _wanted(self, group: Group, fetched: Fetched) -> Callable[[Check], bool]:
        """Return what tells at which checks of the file a batch is to end."""
        if self._verifying is None:
            return no_check
        header = fetched.inspection.header
        return self._verifying.wanted(group.watermarks_in(header.source_id if header else ""))

    def _is_finished(self, fetched: Fetched, *, is_newest: bool) -> bool:
        """Tell whether the file is whole; False while it is being written. Raises ParseError if broken."""
        name, inspection = fetched.name, fetched.inspection
        if inspection.error:
            raise inspection.error
        if not inspection.unfinished:
            return True
        # Only the newest file may still be growing.
        # Test: test_a_truncated_file_with_newer_ones_behind_it_stops_loudly.
        if not is_newest:
            raise ParseError(
                f"the file is cut short: {inspection.unfinished}, yet newer files are there",
                hint="replace it in the archive by a good copy, and syncing goes on by itself; where there is"
                " none, take snapshots at production (archive_changes --snapshot) and resync the tables",
                file=name,
            )
        text = f"{name} is still being written: {inspection.unfinished}"
        self._told.trouble(logger, text, "unfinished file", level=logging.INFO, extra={"file": name})
        self.result.waiting_for = name
        return False

    # Plan and apply

    def _in_turn(
        self, group: Group, files: Iterator[Fetched], pace: Pace, *, until: Position | None
    ) -> Generator[tuple[Stretch, Any] | Fetched]:
        """Yield *files* in their order: small ones in stretches, each prepared, others by themselves.

        When the next one is asked for, *group* must have taken the last. The next stretch is read and
        prepared while the caller applies one.
        """
        while True:
            items = gather(
                files, partial(self._read_part, group.copy(), until), limits=self._limits, pace=pace
            )
            first = next(items, None)
            if first is None:
                return
            if isinstance(first, Fetched):
                yield first
                continue
            self._sink.begin_file(group.tables)
            last: Stretch | Fetched = first
            with closing(
                prefetch(self._prepared(chain([first], items)), name=PREPARING, discard=_let_go)
            ) as ready:
                for item in ready:
                    if isinstance(item, Fetched):
                        last = item
                    elif item[0] is not first:
                        # A table may have been altered since. Test:
                        # test_a_table_that_is_altered_between_two_stretches_takes_its_rows_as_it_is.
                        self._sink.begin_file(group.tables)
                    yield item
            if last is first:
                return

    def _prepared(self, items: Iterable[Stretch | Fetched]) -> Generator[tuple[Stretch, Any] | Fetched]:
        for item in items:
            yield item if isinstance(item, Fetched) else (item, self._sink.prepare(item.batch))

    def _read_part(self, ahead: Group, until: Position | None, fetched: Fetched) -> Part | None:
        """Read all of a file that may join a stretch, and move *ahead*, which stands before it, behind it."""
        with_skips = {stem(skip.file) for table in ahead.tables for skip in self._skips.get(table, ())}
        part = whole_part(
            ahead,
            fetched,
            limits=self._limits,
            until=until,
            with_skips=with_skips,
            is_wanted=self._wanted(ahead, fetched),
        )
        if part is not None:
            ahead.move_to(part.end)
        return part

    def _apply_stretch(
        self, group: Group, stretch: Stretch, prepared: Any, pace: Pace, *, deadline: float | None
    ) -> bool:
        """Apply *stretch* to *group*, one file after the other where they do not go together; False when the
        group cannot go on to the next file."""
        if len(stretch.parts) == 1:
            self._apply_part(group, stretch.parts[0], prepared)
        elif not self._apply_together(group, stretch, prepared):
            pace.went_badly()
            for part in stretch.parts:
                self._sink.begin_file(group.tables)
                self._apply_part(group, part, self._sink.prepare(part.batch))
                if not group.tables or self._must_end(deadline):
                    return False
            return True
        pace.went_well()
        return bool(group.tables)

    def _apply_together(self, group: Group, stretch: Stretch, prepared: Any) -> bool:
        """Apply the files of *stretch* as one batch. False, with nothing done, where they must be taken one
        by one. Test: test_files_together_leave_what_they_leave_one_by_one."""
        files = tuple(FileCounts(name=part.fetched.name, counts=part.counts()) for part in stretch.parts)
        try:
            outcome = self._apply(prepared, group, stretch.end, files=files)
        except ApartError:
            return False
        for part, file in zip(stretch.parts, files, strict=True):
            self._progress.file_started(file.name, part.fetched.size_bytes)
            counts = {table: count for table, count in file.counts.items() if table in outcome.counts}
            self._note(part.batch, counts, part.fetched)
            self._note_finished(file.name)
        self._note_failed(stretch.batch, outcome)
        group.leave(outcome.blocked)
        group.move_to(stretch.end)
        self._verify(stretch.batch, group)
        return True

    def _apply_part(self, group: Group, part: Part, prepared: Any) -> None:
        self._progress.file_started(part.fetched.name, part.fetched.size_bytes)
        self._apply_batch(group, part.fetched, part.batch, prepared)
        if group.tables:
            self._note_finished(part.fetched.name)

    def _plan_and_apply(self, group: Group, fetched: Fetched, batches: Iterator[Batch]) -> None:
        """Hand *batches* to the sink, and move *group* along as they are applied."""
        self._sink.begin_file(group.tables)
        with prepare_ahead(self._sink, batches) as planned:
            for batch, prepared in planned:
                self._apply_batch(group, fetched, batch, prepared)
                if not group.tables or self._stop.is_set():
                    return

    def _apply_batch(self, group: Group, fetched: Fetched, batch: Batch, prepared: Any) -> None:
        end = position_after(batch, fetched)
        outcome = self._apply(prepared, group, end)
        self._note(batch, outcome.counts, fetched)
        self._note_failed(batch, outcome)
        group.leave(outcome.blocked)
        group.move_to(end)
        self._verify(batch, group)

    def _verify(self, batch: Batch, group: Group) -> None:
        """Hold the rows to the checks at the end of *batch*, which has committed. After a crash in between
        they are not looked at again: only a round then lacks them."""
        if self._verifying is not None and batch.checks:
            for verdict in self._verifying.verify(batch, group):
                self.result.verified.setdefault(verdict.table, Verified()).add(verdict.is_equal)

    def _apply(
        self, prepared: Any, group: Group, end: Position, *, files: tuple[FileCounts, ...] = ()
    ) -> Outcome:
        """Hand a batch to the sink. While others hold a lock, wait; a table that they hold for too long is
        blocked, and the others go on. Raises ReadingStopped when a stop comes meanwhile.

        Tests: test_a_table_that_others_lock_is_blocked_and_the_others_go_on, test_a_stop_ends_the_wait.
        """
        # A table that was blocked before has had its wait: it must not hold up every cycle.
        is_new = not all(self._reasons.get(table) for table in group.tables)
        deadline = time.monotonic() + (LOCK_LIMIT_S if is_new else 0)
        while True:
            try:
                return self._sink.apply(prepared, group.advance_to(end, files=files))
            except LockedError as locked:
                if self._stop.is_set():
                    raise ReadingStopped from None
                if time.monotonic() < deadline:
                    continue
                if locked.table not in group.tables:
                    raise locked.error from None
                self._block(group, [locked.table], locked.error)
                if not group.tables:
                    return Outcome()

    def _note(self, batch: Batch, done: Mapping[TableName, Counts], fetched: Fetched) -> None:
        """Add what *batch* has *done* to the result, and tell log and progress."""
        result, file = self.result, fetched.name
        for table, counts in done.items():
            result.counts.add(counts)
            result.activity.setdefault(table, Activity()).add(counts, file=file)
        result.skipped += batch.skipped
        if batch.records:
            result.last_lsn = batch.records[-1].record.commit_lsn or batch.records[-1].record.lsn or ""
        records = len(batch.records) + batch.skipped + batch.repeated
        logger.debug(
            "%s: %d records applied up to record %d",
            file,
            records,
            batch.end_record,
            extra={"file": file, "records": records},
        )
        self._progress.batch_applied(records, fetched.share_of(batch.size_bytes))

    def _note_failed(self, batch: Batch, outcome: Outcome) -> None:
        for table, error in outcome.blocked.items():
            records = batch.count_of(table)
            extra = error.fields | {"table": str(table), "records": records}
            self._told.trouble(logger, error, f"table {table}", extra=extra)
            self.result.failed += records
            self._note_blocked(table, error)

    def _note_finished(self, name: str) -> None:
        self.result.files_processed += 1
        self._progress.file_finished(name)

    # Blocked tables

    def _block(self, group: Group, tables: Iterable[TableName], error: SyncError) -> None:
        """Block those *tables* of *group*, which leave it."""
        watermarks = {table: group.watermarks[table] for table in tables}
        self._told.trouble(logger, error, *(f"table {table}" for table in watermarks), extra=error.fields)
        self._sink.block(watermarks, error, start=group.position)
        for table in watermarks:
            self._note_blocked(table, error)
        self.result.failed += 1
        group.leave(watermarks)

    def _note_blocked(self, table: TableName, error: SyncError) -> None:
        self.result.note_blocked(table, error, reason_before=self._reasons.get(table))

    def _unblock_healed(self, checkpoints: Sequence[TableCheckpoint]) -> None:
        """Unblock the tables that got to the archive's end without a record to apply.

        The cause has gone: the broken file was withdrawn, say. (A batch that is applied unblocks its tables
        itself.) Tables that met another error after they had been noted at the end stay blocked; test:
        test_a_table_that_catches_up_and_blocks_anew_stays_blocked.
        """
        healed = self._at_end & {checkpoint.table for checkpoint in checkpoints if checkpoint.error}
        healed -= self.result.blocked.keys()
        if healed:
            self._sink.unblock(healed)


def _warn_of_older_rows(group: Group, name: str) -> None:
    """Warn that rows from before the archive's first file may be missing. The archive shows where it begins,
    but not whether the tables had rows by then."""
    tables = " ".join(map(str, sorted(group.tables)))
    if tables:
        logger.warning(
            "%s: rows that are older than the archive's first file, %s, are not there, for there is no"
            " snapshot: run 'archive_changes --snapshot %s' at production: they are rebuilt by themselves",
            tables,
            name,
            tables,
        )


def _ignored_lines(group: Group, file: str, skips: Mapping[TableName, Sequence[Skip]]) -> frozenset[int]:
    """Return the lines of *file* that an operator has said to skip, for all tables of *group*."""
    if any(not skips.get(table) for table in group.tables):
        return frozenset()
    lines = (
        frozenset(skip.line for skip in skips.get(table, ()) if stem(skip.file) == stem(file))
        for table in group.tables
    )
    return frozenset.intersection(*lines)


def _let_go(item: tuple[Stretch, Any] | Fetched) -> None:
    """Close a file that nobody has taken; those of a stretch are closed already."""
    if isinstance(item, Fetched):
        item.stream.close()
