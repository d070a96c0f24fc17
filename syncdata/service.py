"""The service, which commands and the admin call. Gives the local side its session, archive and observers.

Leaves the whitelist and the state to `TablesService`, the work to the worker, and files to the archive.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

import psycopg

from syncdata.apply.context import ApplySettings, Resources
from syncdata.apply.feed.as_of import Point
from syncdata.apply.postgres.connection import errors_as
from syncdata.apply.postgres.target import Target
from syncdata.apply.progress import NoProgress, Progress
from syncdata.apply.result import SyncResult
from syncdata.apply.sink import Differences
from syncdata.apply.state.pruning import count_before, prune
from syncdata.apply.state.status import DaemonStatus, TableInfo, format_status
from syncdata.apply.worker import Worker
from syncdata.archive.archive import open_archive
from syncdata.archive.signatures import PublicKeys
from syncdata.changes.names import TableName
from syncdata.conf import SyncConfig
from syncdata.connections import AliasSession, init_error
from syncdata.errors import CloseError, RequestError, SyncError
from syncdata.modelnames import resolve
from syncdata.predecessor.mirror import StateFileMirror
from syncdata.signals import SignalObserver
from syncdata.tables import TablesService

__all__ = ["DaemonStatus", "SyncDataService", "SyncResult", "TableInfo", "format_status"]


class SyncDataService(TablesService):
    """One configuration at work; a context manager. Not for use from several threads at once.

    *timeout_s*: for those who only look, the most that connecting to the database and any statement take.
    """

    def __init__(
        self, config: SyncConfig, *, progress: Progress | None = None, timeout_s: int | None = None
    ) -> None:
        keys = PublicKeys(config.archive_public_keys) if config.archive_public_keys else None
        session = AliasSession(config.database, timeout_s=timeout_s)
        super().__init__(session, frequency_s=config.data_sync_freq, stale_after_s=config.stale_after)
        self._verifies_with = tuple(keys.fingerprints) if keys else ()
        self._resources = Resources(
            session,
            lambda: open_archive(config.archive, keys=keys),
            ApplySettings(
                limits=config.limits,
                interval_s=config.data_sync_freq,
                log_keep_days=config.log_keep_days,
                jobs=config.jobs,
                heals=config.heal == "auto",
                verifies=config.verify,
            ),
            open_sink=lambda connection, run_id: Target(
                connection,
                metric_freq_hours=config.metric_freq,
                run_id=run_id,
                waits_for_disk=config.apply_synchronous_commit == "on",
                policy=None if config.privacy is None else config.privacy.load_policy(),
            ),
            observer=SignalObserver(SyncDataService, config.database),
            mirror=StateFileMirror(config.state_dir),
            progress=progress,
        )
        self._worker = Worker(self._resources)

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
            self._resources.session.close()
            self._resources.close_archive()
        except (psycopg.Error, OSError, SyncError) as error:
            raise CloseError(
                f"the service was not closed cleanly ({type(error).__name__})",
                hint="nothing is lost: what was applied is committed",
            ) from error

    def get_status(self) -> DaemonStatus:
        """Return the daemon's status, and whose signatures this configuration asks for."""
        return replace(super().get_status(), verifies_with=self._verifies_with)

    def run_loop(
        self,
        *,
        interval_s: int | None = None,
        stop: threading.Event | None = None,
        until: str | None = None,
    ) -> SyncResult | None:
        """Run cycles until *stop* is set; the batch that is running then still commits. Between cycles and
        batches, carry out operators' requests.

        A cycle that fails is logged, counted and tried again: soon when the archive or the database
        went away, else after the interval. Raises RunError when another daemon runs on this database.

        With *until*, a time or a commit's LSN as text, wait until the archive reaches that, stop exactly
        there and return the last cycle's result; None where *stop* came first. Raises PointError when a table
        is beyond it already.
        """
        point = None if until is None else Point.parse(until)
        with _translated():
            return self._worker.run_loop(interval_s=interval_s, stop=stop or threading.Event(), point=point)

    def run_once(self, stop: threading.Event | None = None, *, until: str | None = None) -> SyncResult:
        """Run one cycle, to the archive's end or up to *until* (see `run_loop`). Tables that are blocked are
        in the result, and whether the archive does not reach that point yet; raises SyncError when the cycle
        fails."""
        point = None if until is None else Point.parse(until)
        with _translated():
            return self._worker.run_once(stop or threading.Event(), point=point)

    def resync(
        self,
        table: str,
        *,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
        requested_by: str | None = None,
        until: str | None = None,
    ) -> SyncResult:
        """Rebuild *table* (or ``app_label.Model``) from its newest snapshot, else from the first change file;
        with *until* (see `run_loop`) from a snapshot that is not newer, and exactly up to there.

        Raises ResyncError, or PointError; the old rows are still there then.
        """
        ((_, outcome),) = self.resync_tables(
            [table], stop=stop, progress=progress, requested_by=requested_by, until=until
        ).items()
        if isinstance(outcome, SyncError):
            raise outcome
        return outcome

    def resync_tables(
        self,
        tables: Sequence[str],
        *,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
        requested_by: str | None = None,
        until: str | None = None,
    ) -> dict[str, SyncResult | SyncError]:
        """Rebuild *tables* as `resync` does, but together: each change file is read once for all of them.

        Returns, by the name given, what was done to it, or the error that has left its old rows there. Raises
        SyncError, with nothing done, when *until* cannot be found in the archive.
        """
        point = None if until is None else Point.parse(until)
        outcomes: dict[str, SyncResult | SyncError] = {}
        names: dict[str, TableName] = {}
        whitelist = self._whitelist()
        for table in tables:
            try:
                names[table] = resolve(table, whitelist)
            except SyncError as error:
                outcomes[table] = error
        if names:
            with _translated():
                done = self._worker.resync(
                    *names.values(),
                    stop=stop or threading.Event(),
                    progress=progress,
                    requested_by=requested_by,
                    point=point,
                )
            outcomes |= {table: done[name] for table, name in names.items()}
        return {table: outcomes[table] for table in tables}

    def verify_now(
        self, tables: Sequence[str], *, stop: threading.Event | None = None
    ) -> dict[str, Differences | SyncError]:
        """Compare *tables* with what the archive says they are at their checkpoints: each is built anew
        beside the live one. Nothing is changed, and a daemon goes on.

        Returns, by the name given, in how many rows each differs, or the error that kept it from being
        compared: it has no snapshot, say. Raises SchemaError for a name that cannot be a table's.
        """
        whitelist = self._whitelist()
        names = {table: resolve(table, whitelist) for table in tables}
        with _translated():
            found = self._worker.verify_now(list(names.values()), stop=stop or threading.Event())
        return {name: found[table] for name, table in names.items()}

    def clear(self, tables: Sequence[str] | None = None, *, requested_by: str | None = None) -> list[str]:
        """Empty *tables* (all synced ones without it) and set their checkpoints back, so that the next cycle
        begins anew; then mirror and announce that.

        Returns the tables' names. Raises ClearError; then nothing is changed.
        """
        names = super().clear(tables, requested_by=requested_by)
        self._worker.tell_of_clear([TableName.parse(name) for name in names])
        return names

    def prune_logs(self, keep_days: int, *, dry_run: bool = False) -> tuple[int, dt.datetime]:
        """Remove the entries of the audit log that are older than *keep_days*; *dry_run* only counts them.

        Returns how many they were, and the moment before which they were made. Raises RequestError; the
        batches that were removed before stay removed.
        """
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=keep_days)
        connection, progress = self._resources.connect(), self._resources.progress or NoProgress()
        with errors_as(RequestError, "the audit log cannot be pruned"):
            count = count_before(connection, before)
            if dry_run or not count:
                return count, before
            progress.files_found(1, count)
            progress.file_started("data_sync_logs", count)
            removed = 0
            for batch in prune(connection, before):
                removed += batch
                progress.batch_applied(batch, batch)
            progress.file_finished("data_sync_logs")
        return removed, before


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors before the work begins into a ServiceInitError."""
    try:
        yield
    except psycopg.Error as error:
        raise init_error(error) from None
