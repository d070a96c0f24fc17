"""Says for whom we wait at the source: sessions and prepared transactions, by name. Knows pg_locks; the
waiting itself is done elsewhere.

Making a slot waits for every transaction that has written, in any database of the server; locking a table,
for those that hold it. Neither has a limit: only a person can tell whether the other one may be ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from syncdata.capture.source import within_limits
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

_SAY_AFTER_S, _SAY_EVERY_S = 1.0, 60.0
_MOST_NAMED = 5
_TICK_S = 0.2

# Every role may read all of this; the start of another role's transaction shows to some roles only. A
# prepared transaction has no process; it is found by its lock on its own xid.
_HOLDERS = """
WITH waiting AS (
    SELECT database, relation FROM pg_locks
    WHERE pid = %(pid)s AND NOT granted AND locktype = 'relation'
), holding AS (
    SELECT DISTINCT l.virtualtransaction AS id, l.pid FROM pg_locks l
    WHERE CASE WHEN EXISTS (SELECT FROM waiting) THEN
        l.pid = ANY(pg_blocking_pids(%(pid)s)) OR (
            l.pid IS NULL AND l.mode = 'AccessExclusiveLock' AND EXISTS (
                SELECT FROM waiting w WHERE (w.database, w.relation) = (l.database, l.relation)))
    ELSE
        l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock'
        AND l.pid IS DISTINCT FROM %(pid)s
    END
)
SELECT h.pid, p.gid, coalesce(p.owner, a.usename)::text AS role,
       coalesce(p.database, a.datname)::text AS database,
       nullif(a.application_name, '') AS application,
       extract(epoch FROM clock_timestamp() - coalesce(p.prepared, a.xact_start))::float AS age_s
FROM holding h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN pg_prepared_xacts p ON h.pid IS NULL AND EXISTS (
    SELECT FROM pg_locks t
    WHERE t.virtualtransaction = h.id AND t.pid IS NULL AND t.locktype = 'transactionid'
      AND t.transactionid = p.transaction)
ORDER BY age_s DESC NULLS LAST
"""


class WaitTeller:
    """Logs for whom *subject* waits: soon after the wait has begun, and then rarely."""

    def __init__(self, params: Mapping[str, Any], subject: str, *, pid: int = 0) -> None:
        """*pid* is that of the session that waits, at the source."""
        self._params = params
        self._subject = subject
        self._pid = pid
        self._say_at_s = _SAY_AFTER_S

    def tell(self, waited_s: float) -> None:
        """Log for whom we wait, if it is time; *waited_s* is how long we have waited."""
        if waited_s >= self._say_at_s:
            self._say_at_s = waited_s + _SAY_EVERY_S
            logger.warning("%s waits for %s", self._subject, self._holders())

    def _holders(self) -> str:
        """Return those that we wait for; asked on a connection of its own."""
        try:
            given = within_limits(self._params)
            with psycopg.connect(**given, autocommit=True, row_factory=dict_row) as connection:
                holders = connection.execute(_HOLDERS, {"pid": self._pid}).fetchall()
        except psycopg.Error as error:
            return f"transactions at the source ({type(error).__name__} when asked which)"
        if not holders:
            return "the source"
        named = [_name(holder) for holder in holders[:_MOST_NAMED]]
        if more := len(holders) - len(named):
            named.append(f"{more} more")
        return "; ".join(named)


@contextmanager
def told_waits(params: Mapping[str, Any], subject: str) -> Iterator[None]:
    """Log for whom *subject* waits while the block runs. Ctrl-C ends the block as ever."""
    ended = threading.Event()
    teller = WaitTeller(params, subject)
    started_s = time.monotonic()

    def watch() -> None:
        try:
            while not ended.wait(_TICK_S):
                teller.tell(time.monotonic() - started_s)
        except Exception as error:  # the wait itself goes on, only nobody says for whom
            logger.warning("%s", unexpected_error(error))

    thread = threading.Thread(target=watch, name="syncdata-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _name(holder: Mapping[str, Any]) -> str:
    age = "" if holder["age_s"] is None else f" for {holder['age_s']:.0f} s"
    where = f"of role {holder['role']} in database {holder['database']}"
    if holder["gid"] is not None:
        gid = _literal(holder["gid"])
        return (
            f"the prepared transaction {gid} {where}{age}, which only COMMIT PREPARED {gid} or ROLLBACK"
            f" PREPARED {gid} there ends"
        )
    application = f", application {holder['application']}" if holder["application"] else ""
    return f"the transaction of pid {holder['pid']} {where}{application}{age}"


def _literal(text: str) -> str:
    """Return *text* as a literal of SQL on one line: it is pasted, and a gid may hold anything."""
    quoted = text.replace("'", "''")
    if text.isprintable():
        return f"'{quoted}'"
    escaped = quoted.replace("\\", "\\\\")
    return "E'" + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + "'"
