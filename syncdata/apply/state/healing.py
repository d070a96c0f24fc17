"""Tables whose rows are known not to be production's: which they are, and a resync of them, asked for once.

Knows the marks and the queue of requests; knows nothing of how rows are compared, or rebuilt.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from syncdata.apply.state import queue
from syncdata.apply.state.holds import add_mark
from syncdata.apply.state.marks import decode_marks, healed_in_vain
from syncdata.apply.state.verifications import summaries
from syncdata.apply.whitelist import parse_all
from syncdata.changes.names import TableName

# Who asks for such a resync. It needs a snapshot: it must not cost rows that are older than the archive.
REQUESTED_BY = "verification"

_DIFFERING = """
SELECT table_name, marks::text FROM data_sync_checkpoints JOIN tables_to_sync USING (table_name)
WHERE marks @> '[{"kind": "differs"}]'
"""

# With each table the newest resync that was asked for it in this way. Tables that are paused or blocked are
# left alone, and so are those for which a resync waits.
_TO_HEAL = """
SELECT c.table_name, tried.state, tried.requested_at
FROM data_sync_checkpoints c JOIN tables_to_sync w ON w.table_name = c.table_name
LEFT JOIN LATERAL (
    SELECT state, requested_at FROM data_sync_requests
    WHERE action = 'resync' AND requested_by = %(by)s AND table_names @> ARRAY[c.table_name]
    ORDER BY id DESC LIMIT 1
) AS tried ON true
WHERE c.state = 'active' AND c.marks @> '[{"kind": "differs"}]' AND NOT EXISTS (
    SELECT FROM data_sync_requests
    WHERE action = 'resync' AND state IN ('waiting', 'running') AND table_names @> ARRAY[c.table_name]
)
ORDER BY c.table_name
"""


def read_differing(connection: Connection[Any]) -> dict[TableName, str]:
    """Return the whitelisted tables that are known to differ, each with what was found and what to do."""
    return {
        table: "; ".join(str(mark) for mark in decode_marks(marks) if mark.kind == "differs")
        for name, marks in connection.execute(_DIFFERING).fetchall()
        for table in parse_all([name])
    }


def ask_for_resyncs(connection: Connection[Any]) -> list[TableName]:
    """Ask the daemon for a resync of the tables that differ; return them.

    One that differs again before a whole round of checks was equal is not resynced again: its marks say that
    it did not help. Test: test_a_table_that_differs_again_after_its_resync_is_left_to_the_operator.
    """
    with connection.transaction():
        rows = connection.execute(_TO_HEAL, {"by": REQUESTED_BY}).fetchall()
        verified = summaries(connection) if rows else {}
        chosen = []
        for name, outcome, requested_at in rows:
            known = verified.get(name)
            equal_at = known.verified_at if known is not None and known.share >= 1 else None
            for table in parse_all([name]):
                if requested_at is None or (equal_at is not None and equal_at > requested_at):
                    chosen.append(table)
                else:
                    add_mark(connection, table, healed_in_vain(table, has_failed=outcome == "failed"))
        if chosen:
            queue.submit(connection, "resync", [str(table) for table in chosen], requested_by=REQUESTED_BY)
    return chosen
