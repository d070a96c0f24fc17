"""The newest good snapshot of a table, loaded into a rebuild of it. Knows snapshots; knows nothing of what
follows, or of where the rows go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from syncdata.apply.context import Context
from syncdata.apply.counts import Counts
from syncdata.apply.feed.files import read_batches
from syncdata.apply.feed.groups import Group
from syncdata.apply.feed.snapshots import Snapshot, open_snapshot
from syncdata.apply.position import START, Advance, Position
from syncdata.apply.sink import Rebuild, prepare_ahead
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ParseError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a rebuild has begun with. ``group``: the table, where its rows stand; it goes on from there.

    ``file`` is the snapshot, or None when none is good: then there are no rows, and the table stands at the
    archive's beginning. ``broken``: the error of the newest snapshot, where that was passed over.
    """

    group: Group
    file: str | None = None
    counts: Counts = field(default_factory=Counts)
    broken: ParseError | None = None


def load_newest(
    context: Context, rebuild: Rebuild[Any], table: TableName, snapshots: Sequence[SnapshotFile]
) -> Loaded:
    """Load the first good one of *snapshots* of *table*, newest first, into *rebuild*.

    Raises FetchError, ArchiveConnectionError, what *rebuild* raises, and ReadingStopped.
    """
    broken: ParseError | None = None
    for file in snapshots:
        context.progress.files_found(1, file.size_bytes)
        try:
            opened = open_snapshot(
                context.archive,
                file,
                stop=context.stop,
                max_record_bytes=context.limits.max_record_bytes,
            )
            with closing(opened) as snapshot:
                _require_not_newer(context, snapshot)
                counts = _load(context, rebuild, snapshot)
                if not rebuild.accept():
                    snapshot.fetched.stream.seek(0)
                    counts = _load(context, rebuild, snapshot)
        except ParseError as error:
            passed_over = f"this snapshot is passed over: {error}"
            context.told.trouble(logger, passed_over, f"snapshot {file.name}", level=logging.WARNING)
            broken = broken or error
            rebuild.restart()
        else:
            group = _group(table, snapshot.position)
            return Loaded(group=group, file=file.name, counts=counts, broken=broken)
    return Loaded(group=_group(table, START), broken=broken)


def _require_not_newer(context: Context, snapshot: Snapshot) -> None:
    """Raise ParseError where the snapshot shows what was committed beyond the end of the work."""
    end = context.end
    if end is not None and end.is_passed_by(snapshot.position):
        raise ParseError(
            f"the snapshot is newer than {end.point.text}",
            hint="no table can begin with it there: name a later point, or bring back an older snapshot",
            file=snapshot.fetched.name,
        )


def _load(context: Context, rebuild: Rebuild[Any], snapshot: Snapshot) -> Counts:
    counts = Counts()
    fetched, progress = snapshot.fetched, context.progress
    progress.file_started(fetched.name, fetched.size_bytes)
    watermarks = {snapshot.table: None}
    batches = read_batches(fetched, snapshot.records(), watermarks=watermarks, limits=context.limits)
    advance = Advance(watermarks=watermarks, start=START, end=START)
    rebuild.begin_file([snapshot.table])
    with prepare_ahead(rebuild, batches) as planned:
        for batch, prepared in planned:
            if context.stop.is_set():
                raise ReadingStopped
            for applied in rebuild.apply(prepared, advance).counts.values():
                counts.add(applied)
            progress.batch_applied(len(batch.records), fetched.share_of(batch.size_bytes))
    progress.file_finished(fetched.name)
    return counts


def _group(table: TableName, position: Position) -> Group:
    return Group(position, {table: position.commit_lsn})
