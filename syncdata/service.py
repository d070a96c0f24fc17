"""The service: what commands and the admin call. Composes configuration, whitelist, archive and target.

Leaves files to the archive, rows to the target, and the connection to the session.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import psycopg

from syncdata import operations, signals, whitelisting
from syncdata.apply.bootstrap import begin
from syncdata.apply.context import Tools
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.plan.batches import Limits
from syncdata.apply.plan.prepare import PreparedBatch
from syncdata.apply.plan.schema import parents_first
from syncdata.apply.position import START, Position
from syncdata.apply.postgres.connection import translate
from syncdata.apply.postgres.target import Outcome, Target
from syncdata.apply.progress import NoProgress, Progress, RequestProgress, WaitingProgress
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.resync import rebuild
from syncdata.apply.state import queue as requests
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import (
    Checkpoint,
    CheckpointMovedError,
    open_checkpoints,
    reset_checkpoints,
)
from syncdata.apply.state.metrics import forget_minutes
from syncdata.apply.state.queries import read_latest_run, read_tables
from syncdata.apply.state.queue import Listener, Request
from syncdata.apply.state.runs import end_cycle, end_run, note_waiting, start_run
from syncdata.apply.state.status import DaemonStatus, TableInfo, daemon_status, format_status
from syncdata.archive.archive import Archive, open_archive
from syncdata.changes.filenames import file_time
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.conf import SyncConfig
from syncdata.connections import EngineSession, init_error, is_locked
from syncdata.errors import (
    CloseError,
    CycleError,
    ParseError,
    RequestError,
    ResyncError,
    StateLoadError,
    StatusError,
    SyncError,
    WhitelistListError,
)
from syncdata.modelnames import resolve
from syncdata.predecessor.statefile import (
    NEVER,
    STATE_FILE_NAME,
    SyncState,
    TableState,
    load_state,
    save_state,
)
from syncdata.runtime.bounded_stream import ReadingStopped
from syncdata.whitelisting import parse_all

__all__ = ["DaemonStatus", "SyncDataService", "SyncResult", "TableInfo", "format_status"]

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# Resyncs and clears move checkpoints under a cycle; that many in a row are no coincidence any more.
_MOST_RESTARTS = 10
_MINUTES_KEPT = dt.timedelta(days=2)
# How soon a daemon that waits for its next cycle sees that it is to stop.
_LISTEN_S = 0.2
_OUTCOMES = {"retry": "a cycle is started", "skip": "skipped when its batch is applied"}
# After these requests there is something to sync.
_CALLS_FOR_CYCLE = frozenset({"resume", "retry", "skip", "clear"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a cycle or a resync did. ``records_skipped``: of tables that did not take part;
    ``records_failed``: of tables that are blocked now; ``duration`` in seconds; ``last_lsn`` as ``X/Y``.
    ``waiting_for``: the newest change file, while it is still being written."""

    files_processed: int = 0
    records_added: int = 0
    records_updated: int = 0
    records_deleted: int = 0
    records_truncated: int = 0
    records_skipped: int = 0
    records_failed: int = 0
    duration: float = 0.0
    last_lsn: str = ""
    blocked: tuple[str, ...] = ()
    errors: tuple[SyncError, ...] = ()
    waiting_for: str = ""

    @property
    def records_synced(self) -> int:
        return self.records_added + self.records_updated + self.records_deleted + self.records_truncated


class SyncDataService:
    """One configuration at work; a context manager. Not for use from several threads at once.

    *timeout_s*: for those who only look, the most that connecting to the database and any statement take.
    """

    def __init__(
        self, config: SyncConfig, *, progress: Progress | None = None, timeout_s: int | None = None
    ) -> None:
        self._config = config
        self._progress = progress
        self._session = EngineSession(config.database, timeout_s=timeout_s)
        self._archive: Archive | None = None
        self._run_id: int | None = None
        self._target: Target | None = None
        self._listener: Listener | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of database and archive. Raises CloseError; calling it again does nothing."""
        try:
            self._disconnect()
            self._close_archive()
        except (psycopg.Error, OSError, SyncError) as error:
            raise CloseError(
                f"the service was not closed cleanly ({type(error).__name__})",
                hint="nothing is lost: what was applied is committed",
            ) from error

    # Syncing

    def run_loop(self, *, interval_s: int | None = None, stop: threading.Event | None = None) -> None:
        """Run cycles until *stop* is set; the batch that is running then still commits. Between the cycles
        and the batches, do what operators ask for.

        A cycle that fails is logged, counted and tried again: soon when the archive or the database
        went away, else after the interval. Raises RunError when another daemon runs on this database.
        """
        stop = stop or threading.Event()
        interval_s = interval_s or self._config.data_sync_freq
        with self._run(interval_s):
            failures = 0
            while not stop.is_set():
                try:
                    self._run_cycle(stop, deadline=time.monotonic() + interval_s)
                    failures = 0
                except SyncError as error:
                    failures += 1
                    logger.error("%s", error, extra=error.fields)
                self._rest(stop, min(interval_s, _retry_delay_s(failures)) if failures else interval_s)

    def run_once(self, stop: threading.Event | None = None) -> SyncResult:
        """Run one cycle. Tables that are blocked are in the result; raises SyncError when the cycle fails."""
        with self._run(self._config.data_sync_freq):
            return self._run_cycle(stop or threading.Event())

    def resync(
        self,
        table: str,
        *,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
        requested_by: str | None = None,
    ) -> SyncResult:
        """Rebuild *table* (or ``app_label.Model``) from its newest snapshot, else from the first change file.

        Raises ResyncError; the old rows remain then.
        """
        whitelist = parse_all(info.table_name for info in self.list_tables())
        name = resolve(table, whitelist)
        if name not in whitelist:
            raise ResyncError(
                "the table is not whitelisted",
                hint=f"run 'python manage.py add_tables {name}'",
                table=str(name),
            )
        started = time.monotonic()
        connection = self._session.connect()
        try:
            self._adopt_predecessors_state(connection)
            tools = self._tools(connection, stop or threading.Event())
            tools = replace(tools, progress=progress or tools.progress, requested_by=requested_by)
            result = rebuild(tools, name)
        except ResyncError as error:
            self._log_failed_resync(name, error, requested_by)
            raise
        except psycopg.Error as error:
            raise init_error(error) from error
        sync_result = _sync_result(result, started)
        logger.info(
            "%s is rebuilt from %d files",
            name,
            result.files_processed,
            extra={"table": str(name), "records": sync_result.records_synced},
        )
        self._announce_action("resync", {name: Activity()} | result.activity)
        return sync_result

    def clear(self, tables: Sequence[str] | None = None, *, requested_by: str | None = None) -> list[str]:
        """Empty *tables* (all synced ones without it) and set their checkpoints back, so that the next cycle
        begins anew.

        Returns the tables' names. Raises ClearError; then nothing is changed.
        """
        names = operations.empty(self._session.connect(), tables, requested_by=requested_by)
        self._tell_of_clear(names)
        return [str(name) for name in names]

    def _tell_of_clear(self, names: Sequence[TableName]) -> None:
        self._save_state(Position(), _utcnow())
        self._announce_action("clear", {name: Activity() for name in names})

    # What else an operator may ask for

    def pause_tables(self, names: Sequence[str], *, requested_by: str | None = None) -> list[str]:
        """Keep tables where they stand until they are resumed; return those that were not paused before.

        A batch that is running commits first. Raises RequestError, with nothing changed, when one is not
        whitelisted.
        """
        return _texts(operations.pause(self._session.connect(), names, requested_by=requested_by))

    def resume_tables(self, names: Sequence[str], *, requested_by: str | None = None) -> list[str]:
        """Let paused tables go on from where they stand; return those that were paused.

        Raises RequestError, with nothing changed, when one is not whitelisted.
        """
        return _texts(operations.resume(self._session.connect(), names, requested_by=requested_by))

    def skip_record(self, table: str, place: str, *, requested_by: str | None = None) -> list[str]:
        """Let *table* go on without the record at which it is blocked, which must be the one at *place*
        (``file:line``); a line that no table can read is skipped for all tables that it blocks.

        Returns these tables. The skip happens, and is audited, in the transaction of the batch that meets
        the record again and still cannot apply it. Raises RequestError when the table is not blocked there.
        """
        connection = self._session.connect()
        return _texts(operations.skip_record(connection, table, place, requested_by=requested_by))

    # The whitelist

    def find_tables(self, names: Sequence[str], *, apps: Sequence[str] = ()) -> list[str]:
        """Return the tables, as the whitelist calls them, that *names* and app labels stand for.

        A name is a table's, or ``app_label.Model``; of both, a table that exists. Raises WhitelistAddError
        for what must not be synced.
        """
        return _texts(whitelisting.find_tables(self._session.connect(), names, apps))

    def add_tables(
        self, names: Sequence[str], *, apps: Sequence[str] = (), creator: str | None = None
    ) -> list[str]:
        """Whitelist tables; return those that were not before. All are added or, on an error, none.

        *names* and *apps* are as for `find_tables`. A table that does not exist locally is accepted with
        a warning. Raises WhitelistAddError.
        """
        connection = self._session.connect()
        tables = whitelisting.find_tables(connection, names, apps)
        return _texts(whitelisting.add_tables(connection, tables, creator=creator))

    def remove_tables(self, names: Sequence[str]) -> list[str]:
        """Take tables off the whitelist; return their names. Their rows and checkpoints stay.

        A name is a table's, or ``app_label.Model``. Raises WhitelistRemoveError, with nothing removed,
        when one is not whitelisted.
        """
        whitelist = parse_all(info.table_name for info in self.list_tables())
        return whitelisting.remove_tables(self._session.connect(), names, whitelist)

    def list_tables(self) -> list[TableInfo]:
        """Return the whitelist with each table's checkpoint. Raises WhitelistListError."""
        connection = self._session.connect()
        try:
            return read_tables(connection)
        except psycopg.Error as error:
            cause = translate(error)
            raise WhitelistListError(
                f"the whitelist cannot be read: {cause.message}", hint=cause.hint
            ) from error

    # Status

    def get_status(self) -> DaemonStatus:
        """Return how the daemon does, wherever it runs. Raises StatusError."""
        tables = tuple(self.list_tables())
        connection = self._session.connect()
        try:
            is_active, run = is_locked(connection), read_latest_run(connection)
        except psycopg.Error as error:
            cause = translate(error)
            raise StatusError(f"the status cannot be read: {cause.message}", hint=cause.hint) from error
        return daemon_status(is_active, run, tables, frequency_s=self._config.data_sync_freq, now=_utcnow())

    # Inside

    @property
    def _limits(self) -> Limits:
        return Limits(batch_records=self._config.batch_records, batch_bytes=self._config.batch_bytes)

    @contextmanager
    def _run(self, interval_s: int) -> Iterator[None]:
        """Be the one daemon of this database, and keep a run's books."""
        connection = self._session.connect()
        try:
            try:
                self._session.lock()
                if self._listener is not None:
                    self._listener.ring()  # for what a run that was stopped has left
                self._adopt_predecessors_state(connection)
                self._run_id = start_run(
                    connection, host=socket.gethostname(), pid=os.getpid(), sync_frequency_s=interval_s
                )
            except psycopg.Error as error:
                raise init_error(error) from error
            logger.info("process %d syncs from %s", os.getpid(), self._open_archive().describe())
            yield
        finally:
            self._end_run()

    def _end_run(self) -> None:
        run_id, self._run_id, self._target = self._run_id, None, None  # the target writes the run's books
        try:
            if self._session.is_open and run_id is not None:
                end_run(self._session.connect(), run_id, now=_utcnow())
        except psycopg.Error as error:
            logger.warning("the end of the run is not in the books: %s", type(error).__name__)
        try:
            self._session.unlock()
        except psycopg.Error as error:
            logger.warning("the lock goes with the lost session: %s", type(error).__name__)

    def _run_cycle(self, stop: threading.Event, *, deadline: float | None = None) -> SyncResult:
        """Run one cycle, and tell the books and the project how it went. Raises SyncError when it fails."""
        started = time.monotonic()
        result = CycleResult()
        failure: SyncError | None = None
        try:
            self._advance_tables(result, stop, deadline=deadline)
            sync_result = _sync_result(result, started)
            self._end_cycle(result, sync_result)
        except SyncError as error:
            failure, sync_result = error, _sync_result(result, started)
            self._note_failure(error)
        self._announce_cycle(result, sync_result, failure)
        if failure is not None:
            raise failure
        return sync_result

    def _advance_tables(self, result: CycleResult, stop: threading.Event, *, deadline: float | None) -> None:
        """Apply what is new, and add it to *result* as it commits."""
        restarts = 0
        while True:
            # Those that a pass found blocked are tried again by the next.
            result.blocked.clear()
            result.failed = 0
            self._work_off_requests(stop)
            target = self._open_target()
            try:
                self._sync(result, target, stop, deadline)
                break
            except _RequestedError:
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
            self._close_archive()  # It may have been closed in the middle of a fetch.

    def _sync(
        self, result: CycleResult, target: Target, stop: threading.Event, deadline: float | None
    ) -> None:
        """Bring all tables on, and add what was done to *result*.

        Those at work go first, for their freshness must not wait for a new table to be loaded from its
        snapshot; then these are, and go on with the others.
        """
        archive = self._open_archive()
        checkpoints = target.checkpoints()
        reasons = {checkpoint.table: checkpoint.error for checkpoint in checkpoints}
        new = {checkpoint.table for checkpoint in checkpoints if checkpoint.position == START}
        try:
            snapshots = find_snapshots(archive, new, stop=stop)
        except ReadingStopped:
            return
        self._cycle(result, target, [c for c in checkpoints if c.table not in snapshots], stop, deadline)
        if not snapshots:
            return
        broken: dict[TableName, ParseError] = {}
        schemas = target.schemas(snapshots.keys())
        parents = {name: schemas[name].parents if name in schemas else frozenset() for name in snapshots}
        waiting = parents_first(parents)
        while waiting and not stop.is_set():
            if self._open_listener().has_rung:
                raise _RequestedError
            table = waiting[0]
            try:
                beginning = begin(self._tools(self._session.connect(), stop), table, snapshots[table])
            except ReadingStopped:
                break
            waiting.pop(0)
            if beginning.broken is not None:
                broken[table] = beginning.broken
            if beginning.error is not None:
                logger.error("%s", beginning.error, extra=beginning.error.fields | {"table": str(table)})
                target.block({table: None}, beginning.error, start=START)
                result.note_blocked(table, beginning.error, reason_before=reasons.get(table))
                result.failed += 1
            elif beginning.result is not None:
                logger.info("%s begins with its newest snapshot", table)
                result.add(beginning.result)
            if deadline is not None and time.monotonic() > deadline:
                break
        # Those added or cleared since have not been looked for: they begin with the next cycle.
        from_files = new - snapshots.keys() | broken.keys()
        going_on = [
            c
            for c in target.checkpoints()
            if c.table not in result.blocked and (c.position != START or c.table in from_files)
        ]
        self._cycle(result, target, going_on, stop, deadline, broken)

    def _cycle(
        self,
        result: CycleResult,
        target: Target,
        checkpoints: Sequence[Checkpoint],
        stop: threading.Event,
        deadline: float | None,
        broken: Mapping[TableName, ParseError] | None = None,
    ) -> None:
        cycle = Cycle(
            self._open_archive(),
            _InterruptibleTarget(target, self._open_listener()),
            limits=self._limits,
            progress=self._watch(),
            stop=stop,
            deadline=deadline,
            broken=broken,
        )
        try:
            cycle.run(checkpoints)
        finally:
            result.add(cycle.result)  # what was applied before it failed, too

    def _tools(self, connection: psycopg.Connection[Any], stop: threading.Event) -> Tools:
        return Tools(
            archive=self._open_archive(),
            connection=connection,
            limits=self._limits,
            progress=self._progress or NoProgress(),
            stop=stop,
            run_id=self._run_id,
        )

    def _end_cycle(self, result: CycleResult, sync_result: SyncResult) -> None:
        self._open_target().rest()
        now = _utcnow()
        errors = [*sync_result.errors]
        try:
            self._save_state(result.position, now)
        except SyncError as error:
            logger.error("%s", error, extra=error.fields)
            errors.append(error)
        if self._run_id is not None:
            last_error = errors[-1] if errors else None
            try:
                connection = self._session.connect()
                end_cycle(connection, self._run_id, now=now, errors=len(errors), last_error=last_error)
                forget_minutes(connection, before=now - _MINUTES_KEPT)
            except psycopg.Error as error:
                raise translate(error) from error
        logger.log(
            logging.INFO if result.files_processed or errors else logging.DEBUG,
            "cycle done: %d file(s), %d added, %d updated, %d deleted, %d skipped, %d failed in %.1f s",
            sync_result.files_processed,
            sync_result.records_added,
            sync_result.records_updated,
            sync_result.records_deleted,
            sync_result.records_skipped,
            sync_result.records_failed,
            sync_result.duration,
            extra={"records": sync_result.records_synced},
        )

    def _announce_cycle(self, result: CycleResult, sync_result: SyncResult, error: SyncError | None) -> None:
        database = self._config.database
        with signals.fresh_connections():
            for table in sorted(result.activity):
                if result.activity[table].counts.records:
                    signals.announce_table(SyncDataService, database, table, "sync", result.activity[table])
            for table in sorted(result.newly_blocked):
                signals.announce_block(SyncDataService, database, table, result.newly_blocked[table])
            signals.sync_cycle_finished.send_robust(
                SyncDataService, database=database, result=sync_result, error=error
            )

    def _announce_action(self, action: str, activity: Mapping[TableName, Activity]) -> None:
        with signals.fresh_connections():
            for table in sorted(activity):
                signals.announce_table(SyncDataService, self._config.database, table, action, activity[table])

    def _note_failure(self, error: SyncError) -> None:
        """Put a failed cycle into the run's books, or drop the connection if that fails, too."""
        try:
            if self._run_id is not None:
                end_cycle(self._session.connect(), self._run_id, now=_utcnow(), errors=1, last_error=error)
        except (psycopg.Error, SyncError):
            # The cycle's own error has been reported; this one has the same cause.
            self._disconnect()

    def _log_failed_resync(self, table: TableName, error: ResyncError, requested_by: str | None) -> None:
        try:
            log_action(
                self._session.connect(),
                table,
                action="resync",
                reference=error.file or "",
                now=_utcnow(),
                error=error,
                requested_by=requested_by,
            )
        except (psycopg.Error, SyncError) as log_error:
            logger.warning("the failed resync is not in the audit log: %s", type(log_error).__name__)

    # Requests

    def _rest(self, stop: threading.Event, seconds: float) -> None:
        """Wait for the next cycle, and do what operators ask for meanwhile; some of it makes it come now."""
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
            try:
                if self._work_off_requests(stop) & _CALLS_FOR_CYCLE:
                    return
                self._open_listener().wait(min(left_s, _LISTEN_S))
            except (psycopg.Error, SyncError) as error:
                # The cycle that comes next reports a database that stays away.
                logger.debug("not listening for requests: %s", type(error).__name__)
                stop.wait(min(left_s, _FIRST_RETRY_S))

    def _work_off_requests(self, stop: threading.Event) -> set[str]:
        """Carry out what waits in the queue, oldest first; return the actions that were carried out."""
        actions = set()
        listener = self._open_listener()
        if listener.answer():
            connection = self._session.connect()
            try:
                while not stop.is_set() and (request := requests.take(connection)) is not None:
                    self._attempt(connection, request, stop)
                    actions.add(request.action)
            except psycopg.Error as error:
                listener.ring()  # what waits would go unheard otherwise
                raise translate(error) from error
        return actions

    def _attempt(self, connection: psycopg.Connection[Any], request: Request, stop: threading.Event) -> None:
        """Carry *request* out, or note why that failed. Raises psycopg.Error when the database went away."""
        tables = ", ".join(request.table_names)
        logger.info("%s asks for: %s %s", request.requested_by or "somebody", request.action, tables)
        try:
            if request.attempts > requests.MOST_ATTEMPTS:
                raise RequestError(
                    f"the daemon ended {requests.MOST_ATTEMPTS} times in the middle of it",
                    hint="see the daemon's log, then ask again",
                )
            if request.action == "resync":
                self._rebuild_requested(connection, request, stop)
                tell = _nothing_to_tell
            else:
                with connection.transaction():  # what is done, and that it is done
                    tell = self._carry_out(request)
                    requests.finish(connection, request, _OUTCOMES.get(request.action, ""))
        except SyncError as error:
            if stop.is_set():
                requests.put_back(connection, request)
                return
            logger.error("%s", error, extra=error.fields)
            requests.fail(connection, request, error)
        else:
            tell()

    def _carry_out(self, request: Request) -> Callable[[], None]:
        """Do what *request* asks for; return how to tell of it once it has committed."""
        names, by = request.table_names, request.requested_by
        match request.action:
            case "pause":
                self.pause_tables(names, requested_by=by)
            case "resume":
                self.resume_tables(names, requested_by=by)
            case "skip":
                self.skip_record(names[0], request.place, requested_by=by)
            case "clear":
                cleared = operations.empty(self._session.connect(), names, requested_by=by)
                return lambda: self._tell_of_clear(cleared)
            case "retry":
                pass  # the cycle that follows does it
            case _:
                raise RequestError(f"{request.action!r} is unknown to this daemon", hint="restart the daemon")
        return _nothing_to_tell

    def _rebuild_requested(
        self, connection: psycopg.Connection[Any], request: Request, stop: threading.Event
    ) -> None:
        progress = RequestProgress(lambda text: requests.note_progress(connection, request, text))
        records = 0
        for table in request.table_names:
            result = self.resync(table, stop=stop, progress=progress, requested_by=request.requested_by)
            records += result.records_synced
        requests.finish(connection, request, f"{records:,} records")

    def _open_listener(self) -> Listener:
        connection = self._session.connect()
        if self._listener is None or not self._listener.is_on(connection):
            try:
                self._listener = Listener(connection)
            except psycopg.Error as error:
                raise translate(error) from error
        return self._listener

    def _watch(self) -> Progress | None:
        """Put what a run has still to go through into its books, beside showing it."""
        run_id = self._run_id
        if run_id is None:
            return self._progress

        def note(files: int, size_bytes: int) -> None:
            try:
                note_waiting(self._session.connect(), run_id, files=files, size_bytes=size_bytes)
            except psycopg.Error as error:
                raise translate(error) from error

        return WaitingProgress(note, self._progress)

    def _disconnect(self) -> None:
        self._target = self._listener = None
        self._session.close()

    def _open_target(self) -> Target:
        connection = self._session.connect()
        if self._target is None or not self._target.is_on(connection):
            self._target = Target(connection, metric_freq_hours=self._config.metric_freq, run_id=self._run_id)
        return self._target

    def _close_archive(self) -> None:
        if self._archive is not None:
            archive, self._archive = self._archive, None
            archive.close()

    def _open_archive(self) -> Archive:
        if self._archive is None:
            # Beside the configuration, not in /tmp, which may be memory.
            self._archive = open_archive(self._config.archive, spool_dir=self._config.state_dir)
        return self._archive

    def _adopt_predecessors_state(self, connection: psycopg.Connection[Any]) -> None:
        """Where the database holds no checkpoint, go on where the predecessor's state file stopped."""
        try:
            state = load_state(self._config.state_dir / STATE_FILE_NAME)
        except StateLoadError as error:
            logger.warning("%s", error, extra=error.fields)
            return
        if state is None or not state.is_predecessors or not state.last_file:
            return
        with connection.transaction():
            row = connection.execute("SELECT EXISTS (SELECT FROM data_sync_checkpoints)").fetchone()
            if row and row[0]:
                return
            names = [checkpoint.table for checkpoint in open_checkpoints(connection)]
            reset_checkpoints(connection, names, Position(file=state.last_file, is_finished=True))
        logger.info(
            "the predecessor's state is adopted: syncing goes on after %s",
            state.last_file,
            extra={"file": state.last_file},
        )

    def _save_state(self, position: Position, now: dt.datetime) -> None:
        tables = self.list_tables()
        if not tables:
            return  # And above all, the predecessor's file is not adopted yet.
        # A cycle with all tables paused went nowhere; they stand where they stood.
        last_file = position.file or max(info.checkpoint.rpartition(":")[0] for info in tables)
        state = SyncState(
            last_file=last_file,
            last_file_time=file_time(last_file) or NEVER,
            global_lsn=max((info.last_lsn for info in tables if info.last_lsn), key=parse_lsn, default=""),
            tables={
                info.table_name: TableState(
                    last_lsn=info.last_lsn,
                    last_synced_at=info.last_sync_at or NEVER,
                    record_count=info.rows_synced,
                )
                for info in tables
            },
            total_synced=sum(info.rows_synced for info in tables),
            last_sync_cycle=now,
        )
        save_state(self._config.state_dir / STATE_FILE_NAME, state)


class _RequestedError(Exception):
    """A request has come in; the cycle makes room for it between two batches, or the loads of two tables."""


class _InterruptibleTarget:
    """The target, until the listener rings: then the next batch is not begun."""

    def __init__(self, target: Target, listener: Listener) -> None:
        self._target = target
        self._listener = listener
        self.schemas, self.block, self.unblock = target.schemas, target.block, target.unblock

    def apply(
        self,
        prepared: PreparedBatch,
        watermarks: Mapping[TableName, int | None],
        *,
        start: Position,
        end: Position,
    ) -> Outcome:
        if self._listener.has_rung:
            raise _RequestedError
        return self._target.apply(prepared, watermarks, start=start, end=end)


def _sync_result(result: CycleResult, started: float) -> SyncResult:
    counts = result.counts
    return SyncResult(
        files_processed=result.files_processed,
        records_added=counts.added,
        records_updated=counts.updated,
        records_deleted=counts.deleted,
        records_truncated=counts.truncated,
        records_skipped=result.skipped,
        records_failed=result.failed,
        duration=time.monotonic() - started,
        last_lsn=result.last_lsn,
        blocked=tuple(sorted(str(table) for table in result.blocked)),
        errors=tuple(dict.fromkeys(result.blocked.values())),
        waiting_for=result.waiting_for,
    )


def _nothing_to_tell() -> None:
    """What was done needs no mirror, and no signal."""


def _texts(tables: Iterable[TableName]) -> list[str]:
    return [str(table) for table in tables]


def _retry_delay_s(failures: int) -> float:
    """Exponential, with jitter, so that many machines do not return to a backup host at one moment."""
    delay_s = min(_FIRST_RETRY_S * 2 ** (failures - 1), _LAST_RETRY_S)
    return delay_s * random.uniform(0.5, 1.0)  # noqa: S311


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
