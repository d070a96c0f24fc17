"""The signals that the host project can listen to. Knows Django; knows nothing of files or rows.

All are sent by the process that syncs, after the commit of the work that they report and outside of any
transaction of the service. Their sender is the class ``SyncDataService``. A receiver that raises is logged,
once; the other receivers and the sync go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import close_old_connections
from django.dispatch import Signal

from syncdata.apply.result import Activity, CycleResult, SyncResult
from syncdata.changes.names import TableName
from syncdata.errors import SyncError
from syncdata.modelnames import find_model_of

logger = logging.getLogger(__name__)


class SyncSignal(Signal):
    """A signal whose failing receivers show in syncdata's log, where the daemon's operator looks.

    Django's own record of them goes to ``django.dispatch``, which a daemon without ``DEBUG`` prints nowhere.
    """

    def _log_robust_failure(self, receiver: Callable[..., Any], err: Exception) -> None:
        name = f"{receiver.__module__}.{getattr(receiver, '__qualname__', repr(receiver))}"
        logger.error("the receiver %s failed (%s)", name, type(err).__name__, exc_info=err)


table_synced = SyncSignal()
"""Rows of a table have changed: once a table and cycle with activity, resync or clear.

``database``: the alias. ``table``: its name as in the whitelist. ``model``: the host's model of that table,
or None. ``action``: ``sync``, ``resync`` or ``clear``. ``records_added``, ``records_updated``,
``records_deleted``, ``records_truncated``; ``files``: the change files they came from.
"""

table_blocked = SyncSignal()
"""A table has become blocked, or is for another reason than before; not again in each cycle.

``database``, ``table``, ``model`` as above. ``code``, ``message``, ``hint``; ``file`` and ``line`` or None.
"""

table_differs = SyncSignal()
"""Verification has found that rows of a table are not production's; not again while they are known to differ.

``database``, ``table``, ``model`` as above. ``message``: what was found, and what to do.
"""

table_equal = SyncSignal()
"""A table that differed does not any more: a whole round of checks was equal, or it was rebuilt.

``database``, ``table``, ``model`` as above.
"""

sync_cycle_finished = SyncSignal()
"""A cycle has ended. ``database``; ``result``: the ``SyncResult``, of what was applied even when the cycle
failed; ``error``: the ``SyncError`` that ended it, or None."""


class SignalObserver:
    """The worker's observer: it announces the work as signals of *sender* for the alias *database*."""

    def __init__(self, sender: type, database: str) -> None:
        self._sender = sender
        self._database = database

    def cycle_finished(self, result: CycleResult, summary: SyncResult, error: SyncError | None) -> None:
        with _fresh_connections():
            for table in sorted(result.activity):
                if result.activity[table].counts.records:
                    self._announce_table("sync", table, result.activity[table])
            for table in sorted(result.newly_blocked):
                self._announce_block(table, result.newly_blocked[table])
            for table, found in sorted(result.newly_differing.items()):
                self._send(table_differs, table, message=found)
            for table in sorted(result.equal_again):
                self._send(table_equal, table)
            sync_cycle_finished.send_robust(
                self._sender, database=self._database, result=summary, error=error
            )

    def action_done(self, action: str, activity: Mapping[TableName, Activity]) -> None:
        with _fresh_connections():
            for table in sorted(activity):
                self._announce_table(action, table, activity[table])

    def _announce_table(self, action: str, table: TableName, activity: Activity) -> None:
        counts = activity.counts
        self._send(
            table_synced,
            table,
            action=action,
            records_added=counts.added,
            records_updated=counts.updated,
            records_deleted=counts.deleted,
            records_truncated=counts.truncated,
            files=activity.files,
        )

    def _announce_block(self, table: TableName, reason: SyncError) -> None:
        self._send(
            table_blocked,
            table,
            code=reason.code,
            message=reason.message,
            hint=reason.hint,
            file=reason.file,
            line=reason.line,
        )

    def _send(self, signal: SyncSignal, table: TableName, **arguments: object) -> None:
        signal.send_robust(
            self._sender,
            database=self._database,
            table=str(table),
            model=find_model_of(table),
            **arguments,
        )


@contextmanager
def _fresh_connections() -> Iterator[None]:
    """Check Django's connections before and after the block, as before and after a request: receivers may use
    the ORM in a process that lives for weeks."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
