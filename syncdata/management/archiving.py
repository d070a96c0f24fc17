"""What the commands of the production side share: snapshots, with their progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from syncdata.archiving import ArchivingService
from syncdata.capture.snapshot import NO_PROGRESS
from syncdata.daemon import stop_on_signals
from syncdata.errors import SnapshotError
from syncdata.management.base import SyncCommand, format_count
from syncdata.management.snapshotprogress import make_snapshot_progress


class ArchivingCommand(SyncCommand):
    """A command that can take snapshots."""

    def take_snapshots(self, service: ArchivingService, tables: Sequence[str], *, verbosity: int) -> None:
        """Take snapshots of *tables*, without any of all configured ones, and print what was taken."""
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_on_signals())
            progress = NO_PROGRESS
            if verbosity:
                progress = stack.enter_context(contextlib.closing(make_snapshot_progress(sys.stderr)))
            taken = service.take_snapshots(tables, stop=stop, progress=progress)
        for snapshot in taken:
            self.stdout.write(f"{snapshot.name}: {format_count(snapshot.records, 'row')}")
        if stop.is_set():
            raise SnapshotError("stopped by a signal", hint="what is listed is in the archive; run it again")
