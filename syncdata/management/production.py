"""The base of the production side's commands. Knows how snapshots are shown; takes none itself."""

from __future__ import annotations

from collections.abc import Sequence

from syncdata.capture.snapshot import PartlyTakenError
from syncdata.daemon import stop_on_signals
from syncdata.errors import SnapshotError
from syncdata.management.base import SyncCommand, format_count
from syncdata.management.progress import SNAPSHOT_WORDS
from syncdata.production import ProductionService


class ProductionCommand(SyncCommand):
    """A command that can take snapshots."""

    def take_snapshots(self, service: ProductionService, tables: Sequence[str], *, verbosity: int) -> None:
        """Take snapshots of *tables*, without any of all configured ones, and print those that were taken."""
        with stop_on_signals() as stop, self.show_progress(verbosity, SNAPSHOT_WORDS) as progress:
            failure: PartlyTakenError | None = None
            try:
                taken = service.take_snapshots(tables, stop=stop, progress=progress)
            except PartlyTakenError as error:
                taken, failure = error.taken, error
        for snapshot in taken:
            self.stdout.write(f"{snapshot.name}: {format_count(snapshot.records, 'row')}")
        if failure is not None:
            raise failure
        if stop.is_set():
            raise SnapshotError("stopped by a signal", hint="what is listed is in the archive; run it again")
