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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply import actions
from syncdata.apply.context import Resources
from syncdata.apply.feed.arrivals import Arrivals
from syncdata.apply.feed.as_of import End, Point
from syncdata.apply.position import START
from syncdata.apply.postgres.connection import is_servers_fault, translate, translated_errors
from syncdata.apply.progress import Progress, RequestProgress
from syncdata.apply.result import Activity, CycleResult, SyncResult
from syncdata.apply.resync import audit_failure, refuse_unknown, resync
from syncdata.apply.run import Run, foreseen
from syncdata.apply.sink import Differences
from syncdata.apply.state import healing, queue
from syncdata.apply.state.queue import Listener, Request
from syncdata.apply.until import end_for, not_reached
from syncdata.apply.verify_now import verify_now
from syncdata.changes.names import TableName
from syncdata.errors import PointError, RequestError, ResyncError, SchemaError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.runtime.retry import Backoff
from syncdata.runtime.unexpected import unexpected_error
from syncdata.runtime.wake import Wake, called_by

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_OUTCOMES = {"retry": "a cycle is started", "skip": "skipped when its batch is applied"}
# After these requests there may be something to sync, so the next cycle begins at once.
_CALLS_FOR_CYCLE = frozenset({"resume", "retry", "skip", "clear", "resync"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of tables that were to be rebuilt. ``is_lost``: the connection was, at the end."""

    outcomes: dict[TableName, CycleResult | ResyncError]
    duration_s: float
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aside:
    """A resync that is carried out beside the cycles. ``stop`` ends it."""

    request: Request
    rebuilt: Future[Rebuilt]
    stop: threading.Event


class Worker:
    """One process's work; not for several threads at once. A daemon's resyncs are at work in a thread beside
    it, on a connection and an archive of their own: the other tables go on meanwhile."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._listener: Listener | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._aside: _Aside | None = None
        self._wake: Wake | None = None  # what is called by a stop, and by a resync in the thread that ends

    # Cycles

    def run_loop(
        self, *, interval_s: int | None, stop: threading.Event, point: Point | None = None
    ) -> SyncResult | None:
        """Run cycles until *stop* is set; between them and their batches, carry out operators' requests.

        A cycle begins at every interval, and as soon as a file comes into an archive that can tell of it.

        A cycle that fails, for whatever reason, is logged, counted and tried again, soon at first. Raises
        RunError when another daemon runs on this database.

        With a *point*, wait until the archive reaches it, stop there, and return the last cycle's result;
        raise PointError where a table is beyond it.
        """
        interval_s = interval_s or self._resources.settings.interval_s
        backoff, told = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S), self._resources.told
        with (
            self.running(interval_s, point) as run,
            self._waking(stop),
            self._resyncs_aside(),
            closing(Arrivals(told)) as arrivals,
        ):
            while not stop.is_set():
                started_s = time.monotonic()
                try:
                    arrivals.watch(self._resources.archive())
                    deadline = started_s + interval_s if point is None else None
                    applied = run.cycle(stop, deadline=deadline)
                    backoff.reset()
                    told.over(logger, "cycle", "the cycles go on: what made them fail is over")
                except PointError:
                    raise
                except Exception as error:
                    trouble = foreseen(error)
                    told.trouble(logger, trouble, "cycle", extra=trouble.fields)
                    # A new file does not end this rest: it is no reason to fail again at once.
                    self._rest(stop, min(interval_s, backoff.next_s()))
                else:
                    if run.is_there and not stop.is_set():
                        return applied
                    # While files come, cycles keep to the interval: the work does not add to it.
                    worked_s = time.monotonic() - started_s if applied.files_processed else 0.0
                    self._rest(stop, interval_s - worked_s, arrivals.wake)
        return None

    def run_once(self, stop: threading.Event, *, point: Point | None = None) -> SyncResult:
        """Run one cycle, up to *point*. Tables that are blocked are in the result; raises SyncError when the
        cycle fails."""
        with self.running(self._resources.settings.interval_s, point) as run:
            return run.cycle(stop)

    @contextmanager
    def running(self, interval_s: int, point: Point | None = None) -> Iterator[Run]:
        """Be the one daemon of this database in the block. Raises RunError, SyncError or psycopg.Error."""
        connection, session = self._resources.connect(), self._resources.session
        run = None
        try:
            session.lock()
            if self._listener is not None:
                self._listener.look_again()  # for requests that a stopped run has left
            self._resources.mirror.adopt(connection)
            run = Run(self._resources, self._make_room, interval_s=interval_s, point=point)
            logger.info("process %d syncs from %s", os.getpid(), self._resources.archive().describe())
            yield run
        finally:
            self._resources.end = None
            if run is not None:
                run.end()
            try:
                session.unlock()
            except psycopg.Error as error:
                logger.warning("the lock goes with the lost session: %s", type(error).__name__)

    @contextmanager
    def _waking(self, stop: threading.Event) -> Iterator[None]:
        """In the block, let a rest end when *stop* is set."""
        with closing(Wake()) as self._wake, called_by(stop, self._wake):
            yield

    @contextmanager
    def _resyncs_aside(self) -> Iterator[None]:
        """Carry out the resyncs of the block in a thread; at its end, have one that is at work put back."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="syncdata-resync") as self._threads:
            try:
                yield
            finally:
                self._threads = None
                if (aside := self._aside) is not None:
                    aside.stop.set()
                    wait([aside.rebuilt])
                    try:
                        self._end_aside(self._resources.connect())
                    except (psycopg.Error, SyncError) as error:  # the next daemon finds it running
                        logger.warning("a resync is left to the next daemon: %s", type(error).__name__)

    # Work that others ask for

    def resync(
        self,
        *tables: TableName,
        stop: threading.Event,
        progress: Progress | None = None,
        requested_by: str | None = None,
        point: Point | None = None,
    ) -> dict[TableName, SyncResult | ResyncError]:
        """Rebuild *tables* together, each from its newest snapshot, else from the first change file; with a
        *point*, up to there, and from snapshots that are not newer.

        Returns what was done to each, or the error after which its old rows are still there. Raises
        psycopg.Error before it begins, and SyncError when *point* cannot be found, with nothing done.
        """
        # A daemon did this when it began; beside its cycles it could set checkpoints that these have moved.
        self._resources.mirror.adopt(self._resources.connect())
        before = self._resources.end
        if point is not None:
            self._resources.end = self._find(point, stop)
        try:
            return self._announce(self._rebuild(self._resources, tables, stop, progress, requested_by))
        finally:
            self._resources.end = before

    def _find(self, point: Point, stop: threading.Event) -> End:
        try:
            end = end_for(self._resources.context(stop), point, ())
        except ReadingStopped:
            raise PointError("interrupted; nothing is changed", hint="run it again") from None
        if not end.is_reached:
            raise not_reached(end)
        return end

    def verify_now(
        self, tables: Sequence[TableName], *, stop: threading.Event
    ) -> dict[TableName, Differences | SyncError]:
        """Compare *tables* with what the archive says they are; change nothing. Raises psycopg.Error."""
        context = self._resources.context(stop)
        return verify_now(context, self._resources.open_sink, tables)

    def _rebuild(
        self,
        resources: Resources,
        tables: Sequence[TableName],
        stop: threading.Event,
        progress: Progress | None,
        requested_by: str | None,
    ) -> Rebuilt:
        """Rebuild *tables* with *resources*, which may be those of a thread; tell nobody yet."""
        started = time.monotonic()
        refused = refuse_unknown(resources.connect(), tables)
        context = replace(
            resources.context(stop),
            requested_by=requested_by,
            needs_snapshot=requested_by == healing.REQUESTED_BY,
        )
        context = replace(context, progress=progress or context.progress)
        chosen = [table for table in dict.fromkeys(tables) if table not in refused]
        outcomes = resync(context, resources.open_sink, chosen)
        is_lost = not resources.session.is_open
        for table, outcome in outcomes.items():
            if isinstance(outcome, ResyncError):
                audit_failure(resources.connect, table, outcome, requested_by)
        return Rebuilt(
            outcomes={**outcomes, **refused}, duration_s=time.monotonic() - started, is_lost=is_lost
        )

    def _announce(self, rebuilt: Rebuilt) -> dict[TableName, SyncResult | ResyncError]:
        """Tell of the tables that were rebuilt; return what was done, or the errors of the others."""
        told: dict[TableName, SyncResult | ResyncError] = {}
        for table, outcome in rebuilt.outcomes.items():
            if isinstance(outcome, ResyncError):
                told[table] = outcome
                continue
            told[table] = summary = SyncResult.of(outcome, duration_s=rebuilt.duration_s)
            logger.info(
                "%s is rebuilt from %d files",
                table,
                summary.files_processed,
                extra={"table": str(table), "records": summary.records_synced},
            )
            self._resources.observer.action_done("resync", {table: Activity()} | outcome.activity)
        return told

    def tell_of_clear(self, tables: Sequence[TableName]) -> None:
        """Mirror and announce, after the commit, that *tables* have been emptied."""
        self._resources.mirror.save(self._resources.connect(), START, now=_utcnow())
        self._resources.observer.action_done("clear", {table: Activity() for table in tables})

    def _rest(self, stop: threading.Event, seconds: float, wake: Wake | None = None) -> None:
        """Wait for the next cycle and carry out requests meanwhile; after some, and when *wake* is called,
        the cycle begins at once. Nothing is done while nothing happens."""
        assert self._wake is not None
        wakes = [self._wake] if wake is None else [self._wake, wake]
        deadline = time.monotonic() + seconds
        while True:
            self._wake.take()  # first: what it is called for from now on ends the wait below
            left_s = deadline - time.monotonic()
            if stop.is_set() or left_s <= 0:
                return
            try:
                if self._work_off_requests(stop) & _CALLS_FOR_CYCLE or self._open_listener().take_call():
                    return
                if wake is not None and wake.take():
                    return
                self._open_listener().wait(left_s, *wakes)
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
        return lambda: listener.has_requests or self._is_aside_over

    def _work_off_requests(self, stop: threading.Event) -> set[str]:
        """Carry out the requests in the queue, oldest first; return their actions."""
        done = set()
        listener = self._open_listener()
        if self._is_aside_over:
            self._end_aside(self._resources.connect())
            done.add("resync")
        if listener.take_notice():
            connection = self._resources.connect()
            try:
                while not stop.is_set() and (request := self._take(connection)) is not None:
                    self._attempt(connection, request, stop)
                    done.add(request.action)
            except psycopg.Error as error:
                listener.look_again()  # the requests that still wait were announced once, not again
                raise translate(error) from None
        return done

    @property
    def _is_aside_over(self) -> bool:
        return self._aside is not None and self._aside.rebuilt.done()

    def _take(self, connection: Connection[Any]) -> Request | None:
        return queue.take(connection, beside=None if self._aside is None else self._aside.request)

    def _end_aside(self, connection: Connection[Any]) -> None:
        """Note and announce what has become of the resync in the thread, which is over."""
        aside = self._aside
        assert aside is not None
        self._open_listener().look_again()  # for what had to wait for it
        self._aside = None  # Not before: where there is no listener, it is ended at the next look.
        self._resources.parts = 1
        with self._outcome_noted(connection, aside.request, aside.stop):
            rebuilt = aside.rebuilt.result()
            if rebuilt.is_lost:
                logger.warning("a resync has lost its connection: it begins again")  # it is found running
            else:
                self._finish_resync(connection, aside.request, self._announce(rebuilt))

    def _attempt(self, connection: Connection[Any], request: Request, stop: threading.Event) -> None:
        """Carry *request* out, or note its error; a daemon begins a resync only. Raises psycopg.Error when
        the database went away."""
        tables = ", ".join(request.table_names)
        logger.info("%s asks for: %s %s", request.requested_by or "somebody", request.action, tables)
        tell = _nothing_to_tell
        with self._outcome_noted(connection, request, stop):
            if request.attempts > queue.MOST_ATTEMPTS:
                raise RequestError(
                    f"the daemon, or its connection, ended {queue.MOST_ATTEMPTS} times in the middle of it",
                    hint="see the logs of the daemon and of PostgreSQL, then ask again",
                )
            if request.action != "resync":
                with connection.transaction():  # the action and the end of its request commit together
                    tell = self._carry_out(connection, request)
                    queue.finish(connection, request, _OUTCOMES.get(request.action, ""))
            elif self._threads is not None:
                self._begin_aside(self._threads, connection, request, stop)
            else:
                self._resync_requested(connection, request, stop)
        tell()

    @contextmanager
    def _outcome_noted(
        self, connection: Connection[Any], request: Request, stop: threading.Event
    ) -> Iterator[None]:
        """Note the error that ends the block, or put *request* back for a *stop*. Raises psycopg.Error."""
        try:
            yield
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
        outcomes = self.resync(*_tables_of(request), stop=stop, progress=progress, requested_by=by)
        self._finish_resync(connection, request, outcomes)

    def _begin_aside(
        self,
        threads: ThreadPoolExecutor,
        connection: Connection[Any],
        request: Request,
        stop: threading.Event,
    ) -> None:
        """Have *request* carried out beside the cycles, and let these share their limits with it; between
        two of them where the server has no connection to give."""
        resources = self._resources.another()
        try:
            resources.connect()
        except SyncError as error:
            logger.info("the other tables wait for the resync: %s", error)
            self._resync_requested(connection, request, stop)
            return
        resources.parts = 2
        end = threading.Event()
        try:
            rebuilt = threads.submit(self._resync_aside, resources, request, end)
        except RuntimeError:  # the system has no thread to give
            resources.give_up()
            raise
        self._resources.parts = 2
        self._aside = _Aside(request=request, rebuilt=rebuilt, stop=end)
        if self._wake is not None:
            rebuilt.add_done_callback(partial(_call, self._wake))

    def _resync_aside(self, resources: Resources, request: Request, stop: threading.Event) -> Rebuilt:
        """Carry *request* out in the caller's thread, whose own *resources* are. Where their connection is
        lost, rest a while: the request is taken again soon, and only so often."""
        rebuilt = self._rebuild_aside(resources, request, stop)
        if rebuilt.is_lost:
            stop.wait(_FIRST_RETRY_S * request.attempts)
        return rebuilt

    def _rebuild_aside(self, resources: Resources, request: Request, stop: threading.Event) -> Rebuilt:
        started = time.monotonic()
        try:
            connection = resources.connect()
            progress = RequestProgress(lambda text: queue.note_progress(connection, request, text))
            return self._rebuild(resources, _tables_of(request), stop, progress, request.requested_by)
        except psycopg.Error as error:
            # It is of this connection: no cycle must fail for it. Test:
            # test_a_resync_whose_connection_is_lost_between_two_batches_is_taken_again.
            if not is_servers_fault(error):
                raise translate(error) from None
            return Rebuilt(outcomes={}, duration_s=time.monotonic() - started, is_lost=True)
        finally:
            resources.give_up()

    def _finish_resync(
        self,
        connection: Connection[Any],
        request: Request,
        outcomes: Mapping[TableName, SyncResult | ResyncError],
    ) -> None:
        """Mark *request* as done. Raises the first of its errors, if there is one."""
        if errors := [outcome for outcome in outcomes.values() if isinstance(outcome, ResyncError)]:
            raise errors[0]
        records = sum(done.records_synced for done in outcomes.values() if isinstance(done, SyncResult))
        queue.finish(connection, request, f"{records:,} records")

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


def _call(wake: Wake, _: Future[Any]) -> None:
    wake.call()


def _nothing_to_tell() -> None:
    """Announce nothing: the action needs neither the mirror nor a signal."""


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
