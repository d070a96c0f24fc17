"""The worker of the local side: the daemon's loop, and the requests that it carries out between cycles.

Knows the order of cycles, requests and pauses, and who is told of them; knows nothing of the steps of a
cycle, or of Django.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply import actions
from syncdata.apply.context import Resources
from syncdata.apply.feed.arrivals import Arrivals
from syncdata.apply.position import START
from syncdata.apply.postgres.connection import translate, translated_errors
from syncdata.apply.progress import Progress, RequestProgress
from syncdata.apply.result import Activity, SyncResult
from syncdata.apply.resync import audit_failure, require_whitelisted, resync
from syncdata.apply.run import Run, foreseen
from syncdata.apply.state import queue
from syncdata.apply.state.queue import Listener, Request
from syncdata.changes.names import TableName
from syncdata.errors import RequestError, ResyncError, SchemaError, SyncError
from syncdata.runtime.retry import Backoff
from syncdata.runtime.unexpected import unexpected_error
from syncdata.runtime.wake import Wake

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# How soon a daemon that waits for its next cycle sees that it is to stop.
_LISTEN_S = 0.2
_OUTCOMES = {"retry": "a cycle is started", "skip": "skipped when its batch is applied"}
# After these requests there may be something to sync, so the next cycle begins at once.
_CALLS_FOR_CYCLE = frozenset({"resume", "retry", "skip", "clear"})


class Worker:
    """One process's work; not for several threads at once."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._listener: Listener | None = None

    # Cycles

    def run_loop(self, *, interval_s: int | None, stop: threading.Event) -> None:
        """Run cycles until *stop* is set; between them and their batches, carry out operators' requests.

        A cycle begins at every interval, and as soon as a file comes into an archive that can tell of it.

        A cycle that fails, for whatever reason, is logged, counted and tried again, soon at first. Raises
        RunError when another daemon runs on this database.
        """
        interval_s = interval_s or self._resources.settings.interval_s
        backoff, told = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S), self._resources.told
        with self.running(interval_s) as run, closing(Arrivals(told)) as arrivals:
            while not stop.is_set():
                try:
                    arrivals.watch(self._resources.archive())
                    run.cycle(stop, deadline=time.monotonic() + interval_s)
                    backoff.reset()
                    told.over(logger, "cycle", "the cycles go on: what made them fail is over")
                except Exception as error:
                    trouble = foreseen(error)
                    told.trouble(logger, trouble, "cycle", extra=trouble.fields)
                    # A new file does not end this rest: it is no reason to fail again at once.
                    self._rest(stop, min(interval_s, backoff.next_s()))
                else:
                    self._rest(stop, interval_s, arrivals.wake)

    def run_once(self, stop: threading.Event) -> SyncResult:
        """Run one cycle. Tables that are blocked are in the result; raises SyncError when the cycle fails."""
        with self.running(self._resources.settings.interval_s) as run:
            return run.cycle(stop)

    @contextmanager
    def running(self, interval_s: int) -> Iterator[Run]:
        """Be the one daemon of this database in the block. Raises RunError, SyncError or psycopg.Error."""
        connection, session = self._resources.connect(), self._resources.session
        run = None
        try:
            session.lock()
            if self._listener is not None:
                self._listener.look_again()  # for requests that a stopped run has left
            self._resources.mirror.adopt(connection)
            run = Run(self._resources, self._make_room, interval_s=interval_s)
            logger.info("process %d syncs from %s", os.getpid(), self._resources.archive().describe())
            yield run
        finally:
            if run is not None:
                run.end()
            try:
                session.unlock()
            except psycopg.Error as error:
                logger.warning("the lock goes with the lost session: %s", type(error).__name__)

    # Work that others ask for

    def resync(
        self,
        table: TableName,
        *,
        stop: threading.Event,
        progress: Progress | None = None,
        requested_by: str | None = None,
    ) -> SyncResult:
        """Rebuild *table* from its newest snapshot, else from the first change file.

        Raises ResyncError, after which the old rows are still there; or psycopg.Error before it begins.
        """
        started = time.monotonic()
        connection = self._resources.connect()
        require_whitelisted(connection, table)
        try:
            self._resources.mirror.adopt(connection)
            context = replace(self._resources.context(stop), requested_by=requested_by)
            context = replace(context, progress=progress or context.progress)
            result = resync(context, self._resources.open_sink, table)
        except ResyncError as error:
            audit_failure(self._resources.connect, table, error, requested_by)
            raise
        summary = SyncResult.of(result, duration_s=time.monotonic() - started)
        logger.info(
            "%s is rebuilt from %d files",
            table,
            summary.files_processed,
            extra={"table": str(table), "records": summary.records_synced},
        )
        self._resources.observer.action_done("resync", {table: Activity()} | result.activity)
        return summary

    def tell_of_clear(self, tables: Sequence[TableName]) -> None:
        """Mirror and announce, after the commit, that *tables* have been emptied."""
        self._resources.mirror.save(self._resources.connect(), START, now=_utcnow())
        self._resources.observer.action_done("clear", {table: Activity() for table in tables})

    def _rest(self, stop: threading.Event, seconds: float, wake: Wake | None = None) -> None:
        """Wait for the next cycle and carry out requests meanwhile; after some, and when *wake* is called,
        the cycle begins at once."""
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
            try:
                if self._work_off_requests(stop) & _CALLS_FOR_CYCLE or self._open_listener().take_call():
                    return
                if wake is not None and wake.take():
                    return
                self._open_listener().wait(min(left_s, _LISTEN_S), wake=wake)
            except (psycopg.Error, SyncError) as error:
                # The cycle that comes next reports a database that stays away.
                logger.debug("not listening for requests: %s", type(error).__name__)
                stop.wait(min(left_s, _FIRST_RETRY_S))
            except Exception as error:
                trouble = unexpected_error(error)
                self._resources.told.trouble(logger, trouble, "requests", extra=trouble.fields)
                self._resources.give_up()
                stop.wait(min(left_s, _FIRST_RETRY_S))

    def _make_room(self, stop: threading.Event) -> Callable[[], bool]:
        """Carry out the requests that wait; return a function that tells whether another has come in."""
        self._work_off_requests(stop)
        listener = self._open_listener()
        listener.take_call()  # the pass that begins now is the one that was called for
        return lambda: listener.has_requests

    def _work_off_requests(self, stop: threading.Event) -> set[str]:
        """Carry out the requests in the queue, oldest first; return their actions."""
        done = set()
        listener = self._open_listener()
        if listener.take_notice():
            connection = self._resources.connect()
            try:
                while not stop.is_set() and (request := queue.take(connection)) is not None:
                    self._attempt(connection, request, stop)
                    done.add(request.action)
            except psycopg.Error as error:
                listener.look_again()  # the requests that still wait were announced once, not again
                raise translate(error) from None
        return done

    def _attempt(self, connection: Connection[Any], request: Request, stop: threading.Event) -> None:
        """Carry *request* out, or note its error. Raises psycopg.Error when the database went away."""
        tables = ", ".join(request.table_names)
        logger.info("%s asks for: %s %s", request.requested_by or "somebody", request.action, tables)
        try:
            if request.attempts > queue.MOST_ATTEMPTS:
                raise RequestError(
                    f"the daemon ended {queue.MOST_ATTEMPTS} times in the middle of it",
                    hint="see the daemon's log, then ask again",
                )
            if request.action == "resync":
                self._resync_requested(connection, request, stop)
                tell = _nothing_to_tell
            else:
                with connection.transaction():  # the action and the end of its request commit together
                    tell = self._carry_out(connection, request)
                    queue.finish(connection, request, _OUTCOMES.get(request.action, ""))
        except SyncError as error:
            if stop.is_set():
                queue.put_back(connection, request)
                return
            logger.error("%s", error, extra=error.fields)
            queue.fail(connection, request, error)
        except psycopg.Error:
            raise
        except Exception as error:  # one request that fails so must not keep the others, or the daemon
            trouble = unexpected_error(error)
            self._resources.told.trouble(logger, trouble, f"request {request.id}", extra=trouble.fields)
            queue.fail(connection, request, trouble)
        else:
            tell()

    def _carry_out(self, connection: Connection[Any], request: Request) -> Callable[[], None]:
        """Do the action of *request*; return a function that announces it, to be called after the commit."""
        if request.action == "retry":
            return _nothing_to_tell  # the cycle that follows does it
        tables = _tables_of(request)
        match request.action:
            case "pause":
                actions.pause(connection, tables, requested_by=request.requested_by)
            case "resume":
                actions.resume(connection, tables, requested_by=request.requested_by)
            case "skip":
                actions.skip_record(connection, tables[0], request.place, requested_by=request.requested_by)
            case "clear":
                cleared = actions.empty(connection, tables, requested_by=request.requested_by)
                return lambda: self.tell_of_clear(cleared)
            case _:
                raise RequestError(f"{request.action!r} is unknown to this daemon", hint="restart the daemon")
        return _nothing_to_tell

    def _resync_requested(self, connection: Connection[Any], request: Request, stop: threading.Event) -> None:
        progress = RequestProgress(lambda text: queue.note_progress(connection, request, text))
        by = request.requested_by
        tables = _tables_of(request)
        results = [self.resync(table, stop=stop, progress=progress, requested_by=by) for table in tables]
        queue.finish(connection, request, f"{sum(result.records_synced for result in results):,} records")

    def _open_listener(self) -> Listener:
        connection = self._resources.connect()
        if self._listener is None or not self._listener.is_on(connection):
            with translated_errors():
                self._listener = Listener(connection)
        return self._listener


def _tables_of(request: Request) -> list[TableName]:
    """Return the tables of *request*. Raises RequestError for a name that is none: the whitelist may hold one
    that was put there by other means, and which is never synced."""
    try:
        return [TableName.parse(name) for name in request.table_names]
    except SchemaError as error:
        raise RequestError(
            error.message, hint="nothing was changed; take the name off the whitelist"
        ) from None


def _nothing_to_tell() -> None:
    """Announce nothing: the action needs neither the mirror nor a signal."""


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
