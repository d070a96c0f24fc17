"""Compares a table with what the archive says it is, at once: it is built anew beside the live one, compared,
and thrown away. Asks nothing of production, changes no row, and is in nobody's way.

The new rows come from a snapshot and the change files up to the table's checkpoint. Where the table goes on
meanwhile they follow, until both stand at one place: rows and checkpoint are read in one snapshot of the
database, so a daemon need not wait. Knows snapshots and the cycle; knows nothing of how rows are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.load import Loaded, load_newest
from syncdata.apply.position import START, Position
from syncdata.apply.resync import rebuilding, replay
from syncdata.apply.sink import DaemonSink, Differences, Purpose, Rebuild
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import SyncError, VerificationError
from syncdata.runtime.bounded_stream import ReadingStopped

# So often the new rows follow a table that has gone on meanwhile; each time the way is shorter.
_MOST_ROUNDS = 20


def verify_now(
    context: Context, open_sink: Callable[[], DaemonSink[Any]], tables: Sequence[TableName]
) -> dict[TableName, Differences | SyncError]:
    """Return by table in how many rows each of *tables* differs from what the archive holds, or why that
    cannot be said."""
    found: dict[TableName, Differences | SyncError] = {}
    for table in tables:
        try:
            found[table] = _compare(context, open_sink(), table)
        except ReadingStopped:
            found[table] = VerificationError("interrupted", table=str(table))
        except SyncError as error:
            found[table] = error
    return found


def _compare(context: Context, sink: DaemonSink[Any], table: TableName) -> Differences:
    begun = _checkpoint(sink, table)
    if begun == START:
        raise _refusal(table, "it has not begun", hint="let the daemon begin with it first")
    snapshots = find_snapshots(context.archive, [table], stop=context.stop).get(table, [])
    sink.begin_file([table])
    with rebuilding(context, sink, table, Purpose(action="verify")) as rows:
        group = _load(context, rows, table, snapshots, begun).group
        together = sink.together({table: rows})
        cycle = Cycle(
            context.archive, together, limits=context.limits, progress=context.progress, stop=context.stop
        )
        for _ in range(_MOST_ROUNDS):
            goal = _checkpoint(sink, table)
            replay(cycle, [group], goal)
            if context.stop.is_set():
                raise ReadingStopped
            if (failure := together.failed.get(table)) is not None:
                raise failure
            _require_there(table, group, goal)
            if (differences := rows.compare(group.position_of(table))) is not None:
                return differences
    raise _refusal(
        table,
        "it goes on faster than it can be followed",
        hint=f"try again later, or let it stand meanwhile: pause_tables {table.argument}",
    )


def _load(
    context: Context,
    rows: Rebuild[Any],
    table: TableName,
    snapshots: Sequence[SnapshotFile],
    begun: Position,
) -> Loaded:
    """Load the newest good snapshot that is not newer than the table, or raise VerificationError."""
    while True:
        loaded = load_newest(context, rows, table, snapshots)
        if loaded.file is None:
            raise _refusal(
                table,
                "the archive has no good snapshot of it that is as old as its rows",
                hint=f"run 'archive_changes --snapshot {table.argument}' at production, and let the daemon"
                " apply what follows",
            )
        if (loaded.group.watermarks[table] or 0) <= (begun.commit_lsn or 0):
            return loaded
        rows.restart()
        names = [file.name for file in snapshots]
        snapshots = snapshots[names.index(loaded.file) + 1 :]


def _require_there(table: TableName, group: Group, goal: Position) -> None:
    """Raise VerificationError unless *group* is where the table stands, with the same transactions."""
    if not group.position.has_reached(goal):
        raise _refusal(
            table,
            "the archive ends before the table's checkpoint",
            hint="bring the missing change files back, or see that it is the right archive",
        )
    if group.watermarks[table] != goal.commit_lsn:
        raise _refusal(
            table,
            "its rows come from a snapshot that is ahead of the change files",
            hint="try again when more of them have come",
        )


def _checkpoint(sink: DaemonSink[Any], table: TableName) -> Position:
    for checkpoint in sink.checkpoints():
        if checkpoint.table == table:
            return checkpoint.position
    raise _refusal(table, "it is not whitelisted", hint=f"run 'add_tables {table.argument}'")


def _refusal(table: TableName, message: str, *, hint: str) -> VerificationError:
    return VerificationError(f"cannot be verified: {message}", hint=hint, table=str(table))
