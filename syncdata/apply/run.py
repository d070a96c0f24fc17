"""One run of a daemon: cycle after cycle, each noted in the state, mirrored and announced.

A cycle is one pass over the tables, or several: a request ends a pass early, and another pass goes on.
Knows when a cycle begins anew and how it ends; knows nothing of what happens between two cycles.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from syncdata.apply.bootstrap import Pass, RequestedError
from syncdata.apply.context import Resources
from syncdata.apply.feed.as_of import Point
from syncdata.apply.feed.files import ask
from syncdata.apply.hands import Hand
from syncdata.apply.position import Position
from syncdata.apply.postgres.connection import is_servers_fault, translate, translated_errors
from syncdata.apply.progress import WaitingProgress
from syncdata.apply.result import CycleResult, SyncResult
from syncdata.apply.sink import DaemonSink
from syncdata.apply.state.checkpoints import CheckpointMovedError
from syncdata.apply.state.healing import ask_for_resyncs, read_differing
from syncdata.apply.state.metrics import forget_minutes
from syncdata.apply.state.pruning import BATCH_ENTRIES, prune_batch
from syncdata.apply.state.runs import (
    end_cycle,
    end_run,
    note_head,
    note_waiting,
    seconds_since_cycle,
    start_run,
)
from syncdata.apply.until import end_for, not_reached
from syncdata.changes.names import TableName
from syncdata.errors import CycleError, ParseError, SyncError, UnexpectedError
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

# A resync or clear moves checkpoints under a cycle, which then starts again. After so many times in a row,
# something is wrong.
_MOST_RESTARTS = 10
_MINUTES_KEPT = dt.timedelta(days=2)
_PRUNE_EVERY = dt.timedelta(days=1)


class Run:
    """A run of this process, which holds the daemon's lock.

    *make_room* is called before each pass: it carries out the requests that wait, and returns a function that
    tells, in the middle of the pass, whether another one has come in.
    """

    def __init__(
        self,
        resources: Resources,
        make_room: Callable[[threading.Event], Callable[[], bool]],
        *,
        interval_s: int,
        point: Point | None = None,
    ) -> None:
        """Note in the database that the run begins. Raises psycopg.Error. No cycle goes beyond *point*."""
        self._resources = resources
        self._make_room = make_room
        self._sink: DaemonSink[Any] | None = None
        self._tried: dict[TableName, tuple[str, float]] = {}
        self._pruned_at: dt.datetime | None = None
        self._interval_s = interval_s
        self._noted_waiting: tuple[int, int, int] | None = None
        if (budget := resources.budget) is not None:
            budget.begin(seconds_since_cycle(resources.connect()), now_s=time.monotonic())
        self._point = point
        self.id = self._start()
        self._must_look = False
        self._differing = read_differing(resources.connect())

    def _start(self) -> int:
        return start_run(
            self._resources.connect(),
            host=socket.gethostname(),
            pid=os.getpid(),
            sync_frequency_s=self._interval_s,
        )

    def end(self) -> None:
        """Note in the database that the run has ended, unless the connection has broken."""
        try:
            if self._resources.session.is_open:
                end_run(self._resources.connect(), self.id, now=_utcnow())
        except psycopg.Error as error:
            logger.warning("the end of the run is not noted: %s", type(error).__name__)

    def cycle(self, stop: threading.Event, *, deadline: float | None = None) -> SyncResult:
        """Run one cycle, note its result and announce it. Raises SyncError when it fails."""
        started = time.monotonic()
        result = CycleResult()
        failure: SyncError | None = None
        try:
            self._look_at_head(stop)
            if self._may_go_on(stop):
                self._advance_tables(result, stop, deadline)
            if (end := self._resources.end) is not None and not end.is_reached:
                result.short_of = not_reached(end)
            summary = SyncResult.of(result, duration_s=time.monotonic() - started)
            self._end_cycle(result, summary)
        except Exception as error:
            failure = foreseen(error)
            self._must_look = True
            summary = SyncResult.of(result, duration_s=time.monotonic() - started)
            if isinstance(failure, UnexpectedError):
                # Nobody knows what state it left them in.
                self._resources.give_up()
            self._note_failure(failure)
        self._resources.observer.cycle_finished(result, summary, failure)
        if failure is not None:
            raise failure from None  # what led to it can hold the server's DETAIL, and so a row's values
        return summary

    def _look_at_head(self, stop: threading.Event) -> None:
        """Note the archiver's sign of life. Nothing depends on it, so an error is none of the cycle's; an
        archive that cannot be reached is told of by the cycle itself."""
        archive = self._resources.archive()
        try:
            head = ask(archive, archive.read_head, stop=stop)
        except ParseError as error:
            logger.warning("%s", error)
            head = None
        except (ReadingStopped, SyncError):
            return
        connection = self._resources.connect()
        with translated_errors():
            note_head(connection, self.id, head, now=_utcnow())

    @property
    def is_there(self) -> bool:
        """Whether the archive holds all up to the point, so that the last cycle has gone there."""
        return self._resources.end is not None and self._resources.end.is_reached

    def _may_go_on(self, stop: threading.Event) -> bool:
        """Look for the point in the archive, as long as it is not there; False when a stop comes first.

        Files that come meanwhile are not gone into: the tables stop where the archive ended just now.
        """
        if self._point is None or self.is_there:
            return True
        checkpoints = [c for c in self._open_sink().checkpoints() if not c.is_paused]
        try:
            self._resources.end = end_for(self._resources.context(stop), self._point, checkpoints)
        except ReadingStopped:
            return False
        return True

    def _advance_tables(self, result: CycleResult, stop: threading.Event, deadline: float | None) -> None:
        """Apply the new records to the tables, and add them to *result* as they commit."""
        restarts = 0
        while True:
            # Tables that the last pass found blocked are tried again by the next one.
            result.blocked.clear()
            result.failed = 0
            is_called = self._make_room(stop)
            one_pass = Pass(
                context=self._resources.context(stop),
                sink=self._open_sink(),
                result=result,
                watch=lambda: WaitingProgress(self._note_waiting, self._resources.progress),
                is_called=is_called,
                open_hand=self._open_hand,
                jobs=self._resources.settings.jobs,
                deadline=deadline,
                tried=self._tried,
            )
            try:
                one_pass.run()
                break
            except RequestedError:
                logger.debug("the cycle makes room for a request")
            except CheckpointMovedError:
                logger.info("a checkpoint was moved by another process; the cycle begins again")
                restarts += 1
                if restarts == _MOST_RESTARTS:
                    raise CycleError(
                        "other processes keep moving the checkpoints",
                        hint="let running resync and clear commands finish; the next cycle tries again",
                    ) from None
        if stop.is_set():
            self._resources.close_archive()  # It may have been closed in the middle of a fetch.

    def _end_cycle(self, result: CycleResult, summary: SyncResult) -> None:
        self._open_sink().rest()
        # Else nothing can have been found since the last look, nor be over. Tests:
        # test_a_difference_is_told_though_the_cycle_that_found_it_failed,
        # test_the_end_of_a_difference_is_told_though_no_file_comes.
        if result.files_processed or result.verified or self._differing or self._must_look:
            self._look_at_differences(result)
            self._must_look = False
        now = _utcnow()
        errors = [*summary.errors, *self._save_mirror(result.position, now)]
        self._note_cycle(errors, now=now)
        self._prune_logs(now)
        logger.log(
            logging.INFO if summary.files_processed or errors else logging.DEBUG,
            "cycle done: %d file(s), %d added, %d updated, %d deleted, %d skipped, %d failed in %.1f s",
            summary.files_processed,
            summary.records_added,
            summary.records_updated,
            summary.records_deleted,
            summary.records_skipped,
            summary.records_failed,
            summary.duration,
            extra={"records": summary.records_synced},
        )

    def _look_at_differences(self, result: CycleResult) -> None:
        """Add to *result* which tables have begun to differ from production, and which do not any more; have
        those that differ resynced, where that is wanted."""
        connection = self._resources.connect()
        with translated_errors():
            differing = read_differing(connection)
            asked_for = ask_for_resyncs(connection) if differing and self._resources.settings.heals else []
        result.newly_differing = {t: why for t, why in differing.items() if t not in self._differing}
        result.equal_again = self._differing.keys() - differing.keys()
        self._differing = differing
        for table, why in result.newly_differing.items():
            logger.warning("%s differs from production: %s", table, why, extra={"table": str(table)})
        for table in asked_for:
            logger.info("a resync of %s is asked for, since it differs", table, extra={"table": str(table)})

    def _save_mirror(self, position: Position, now: dt.datetime) -> list[SyncError]:
        """Save the mirror; return its error instead of raising it: the state is safe in the database."""
        try:
            self._resources.mirror.save(self._resources.connect(), position, now=now)
        except SyncError as error:
            self._resources.told.trouble(logger, error, "state file", extra=error.fields)
            return [error]
        self._resources.told.over(logger, "state file", "the state file can be written again")
        return []

    def _note_failure(self, error: SyncError) -> None:
        """Note that a cycle failed. If that fails, too, the cause is the same: drop the connection."""
        try:
            self._note_cycle([error], now=_utcnow())
        except Exception as failure:
            logger.debug("the cycle's failure is not noted: %s", type(failure).__name__)
            self._resources.give_up()

    def _note_cycle(self, errors: Sequence[SyncError], *, now: dt.datetime) -> None:
        last_error = errors[-1] if errors else None
        connection = self._resources.connect()

        def note() -> bool:
            return end_cycle(
                connection,
                self.id,
                now=now,
                errors=len(errors),
                unexpected=sum(isinstance(error, UnexpectedError) for error in errors),
                last_error=last_error,
            )

        with translated_errors():
            if not note():
                # syncdata's tables were made anew under us. Test:
                # test_tables_of_syncdata_that_go_and_come_under_the_daemon_are_waited_for.
                self.id, self._sink = self._start(), None
                note()
            forget_minutes(connection, before=now - _MINUTES_KEPT)

    def _prune_logs(self, now: dt.datetime) -> None:
        """Remove a batch of old entries of the audit log with each cycle until none is left; then rest a day.

        Test: test_the_daemon_prunes_the_log_in_small_batches_and_then_rests.
        """
        keep_days = self._resources.settings.log_keep_days
        if not keep_days or (self._pruned_at is not None and now < self._pruned_at + _PRUNE_EVERY):
            return
        connection = self._resources.connect()
        with translated_errors(), connection.transaction():
            removed = prune_batch(connection, now - dt.timedelta(days=keep_days))
        if removed:
            logger.info("%d entries of the audit log are older than %d days: removed", removed, keep_days)
        if removed < BATCH_ENTRIES:
            self._pruned_at = now

    def _note_waiting(self, files: int, size_bytes: int) -> None:
        """Test: test_what_waits_is_noted_when_it_changes."""
        waiting = (self.id, files, size_bytes)
        if waiting != self._noted_waiting:
            connection = self._resources.connect()
            with translated_errors():
                note_waiting(connection, self.id, files=files, size_bytes=size_bytes)
            self._noted_waiting = waiting

    @contextmanager
    def _open_hand(self, stop: threading.Event) -> Iterator[Hand]:
        """Lend a hand, with a session and an archive of its own, that counts for this run."""
        resources = self._resources.another()
        try:
            sink = resources.open_sink(run_id=self.id)
            if self._sink is not None:
                sink.learn_from(self._sink)
            yield Hand(context=resources.context(stop), sink=sink)
        finally:
            resources.give_up()

    def _open_sink(self) -> DaemonSink[Any]:
        connection = self._resources.connect()
        if self._sink is None or not self._sink.is_on(connection):
            self._sink = self._resources.open_sink(run_id=self.id)
        return self._sink


def foreseen(error: Exception) -> SyncError:
    """Return *error* as one of ours: the last resort for an exception that nobody translated."""
    if isinstance(error, SyncError):
        return error
    if isinstance(error, psycopg.Error) and is_servers_fault(error):
        return translate(error)
    return unexpected_error(error)


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
