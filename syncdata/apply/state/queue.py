"""The queue of operators' requests to the daemon, as rows of ``data_sync_requests``. Knows psycopg.

Only the holder of the daemon's lock takes requests, one at a time. So a request that is found running was
left by a daemon that ended in the middle of it, and is taken again. That is safe because the work for it
either commits together with `finish`, as a pause does, or may be done twice, as a resync may. A daemon that
has lost the lock, and does not know yet, says nothing of a request that another one has taken since. Test:
test_a_daemon_that_lost_its_lock_says_nothing_of_a_request_that_another_has_taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.apply.state.reasons import error_parameters
from syncdata.errors import SyncError
from syncdata.runtime.wake import Wake

CHANNEL = "syncdata_requests"
_CYCLE = "cycle"  # what a notification says that announces no request
MOST_ATTEMPTS = 3
# Requests that are over are dropped after this time; the audit log keeps what was done.
_KEEP = "interval '90 days'"
# The system counts a wait in milliseconds, of which it takes 25 days; an interval may be a year.
_LONGEST_WAIT_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that was taken. ``place``: the record to skip, as ``file:line``. ``attempts``: how often it
    was taken, this time included."""

    id: int
    action: str
    table_names: tuple[str, ...]
    place: str = ""
    requested_by: str = ""
    attempts: int = 1


def submit(
    connection: Connection[Any],
    action: str,
    table_names: Collection[str],
    *,
    place: str = "",
    requested_by: str = "",
) -> int:
    """Put a request into the queue and wake the daemon, when the transaction commits; return its id."""
    row = connection.execute(
        "WITH request AS (INSERT INTO data_sync_requests (action, table_names, place, requested_by)"
        " VALUES (%s, %s::text[], %s, %s) RETURNING id) SELECT id, pg_notify(%s, '') FROM request",
        (action, list(table_names), place, requested_by, CHANNEL),
    ).fetchone()
    assert row is not None
    return int(row[0])


def call_for_cycle(connection: Connection[Any]) -> None:
    """Have the daemon begin a cycle when the transaction commits: the whitelist has grown."""
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, _CYCLE))


def take(connection: Connection[Any], *, beside: Request | None = None) -> Request | None:
    """Mark the oldest unfinished request as running and return it; None when there is none.

    While *beside* is at work, it is the oldest that is no resync, and shares no table with an older one: what
    was asked of one table is done in its order. Test: test_requests_for_a_table_keep_their_order.
    """
    row = (
        connection.cursor(row_factory=dict_row)
        .execute(
            "UPDATE data_sync_requests SET state = 'running', attempts = attempts + 1, progress = ''"
            " WHERE id ="
            " (SELECT id FROM data_sync_requests r WHERE state IN ('waiting', 'running')"
            " AND (%(beside)s::bigint IS NULL OR id <> %(beside)s AND action <> 'resync' AND NOT EXISTS"
            " (SELECT FROM data_sync_requests older WHERE older.id < r.id"
            " AND older.state IN ('waiting', 'running') AND older.table_names && r.table_names))"
            " ORDER BY id LIMIT 1)"
            " RETURNING id, action, table_names, place, requested_by, attempts",
            {"beside": beside and beside.id},
        )
        .fetchone()
    )
    return None if row is None else Request(**row | {"table_names": tuple(row["table_names"])})


def note_progress(connection: Connection[Any], request: Request, text: str) -> None:
    _update(connection, request, "progress = %(text)s", text=text)


def finish(connection: Connection[Any], request: Request, text: str = "") -> None:
    """Mark *request* as done, and forget those that are long over."""
    _update(connection, request, "state = 'done', progress = %(text)s, finished_at = now()", text=text)
    connection.execute(f"DELETE FROM data_sync_requests WHERE finished_at < now() - {_KEEP}")


def fail(connection: Connection[Any], request: Request, error: SyncError) -> None:
    _update(
        connection,
        request,
        "state = 'failed', finished_at = now(), error = %(error)s, error_code = %(error_code)s,"
        " error_file = %(error_file)s, error_line = %(error_line)s, error_hint = %(error_hint)s",
        **error_parameters(error),
    )


def put_back(connection: Connection[Any], request: Request) -> None:
    """Leave *request* for the next daemon, as if it had not been taken."""
    _update(connection, request, "state = 'waiting', attempts = attempts - 1, progress = ''")


def _update(
    connection: Connection[Any], request: Request, changes: LiteralString, **parameters: object
) -> None:
    """Note *changes* of *request*, unless it has been taken again since; or put back, too, which makes its
    attempts fewer again."""
    connection.execute(
        f"UPDATE data_sync_requests SET {changes}"
        " WHERE id = %(id)s AND attempts = %(attempts)s AND state = 'running'",
        {"id": request.id, "attempts": request.attempts, **parameters},
    )


class Listener:
    """Tells whether requests have come in since it was last asked, without asking the database."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._has_requests = True  # requests may have come in before we listened
        self._is_cycle_wanted = False
        connection.add_notify_handler(lambda notification: self._hear(notification.payload))
        connection.execute(f"LISTEN {CHANNEL}")

    def is_on(self, connection: Connection[Any]) -> bool:
        return self._connection is connection

    def _hear(self, payload: str) -> None:
        self._has_requests = True
        self._is_cycle_wanted = self._is_cycle_wanted or payload == _CYCLE

    def take_call(self) -> bool:
        """Return whether a cycle has been called for since the last call."""
        is_wanted, self._is_cycle_wanted = self._is_cycle_wanted, False
        return is_wanted

    def take_notice(self) -> bool:
        """Return whether requests may have come in since the last call."""
        has_requests, self._has_requests = self._has_requests, False
        return has_requests

    @property
    def has_requests(self) -> bool:
        """True when a request has come in; the driver learns of it with the result of the next statement."""
        return self._has_requests

    def wait(self, timeout_s: float, *wakes: Wake) -> None:
        """Wait until the server sends something, or until one of *wakes* is called, at most *timeout_s*, or a
        day.

        Raises psycopg.Error when the server has gone.
        """
        if self._has_requests:
            return
        poller = poll()  # select() would refuse the high file numbers of a large process
        poller.register(self._connection.fileno(), POLLIN)
        for wake in wakes:
            poller.register(wake, POLLIN)
        # One that ends a moment early would be followed by others of no length.
        ready = poller.poll(math.ceil(min(timeout_s, _LONGEST_WAIT_S) * 1000))
        if any(descriptor == self._connection.fileno() for descriptor, _ in ready):
            self._connection.execute("SELECT")

    def look_again(self) -> None:
        """Let the next `take_notice` return True: requests may wait that nothing announces any more."""
        self._has_requests = True
