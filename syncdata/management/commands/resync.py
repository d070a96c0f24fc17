from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.daemon import stop_on_signals
from syncdata.errors import SyncError
from syncdata.management.base import SyncCommand, add_table_names, format_result


class Command(SyncCommand):
    help = """\
Rebuild synced tables from the archive: from the newest snapshot, else from the first change file.

Other sessions see the old rows until the new ones are complete, never an empty or half-built table;
a failure leaves the old rows. Rows that exist only locally are lost, and so are, without a snapshot,
those that are older than the archive's first change file. Unblocks a blocked table. The
tables are rebuilt one after the other; if one fails the others are still rebuilt, and the exit
status is 1."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table of the whitelist: table, schema.table or app_label.Model.")

    def handle(self, *, tables: list[str], verbosity: int, **options: Any) -> None:
        errors: list[SyncError] = []
        with (
            stop_on_signals() as stop,
            self.show_progress(verbosity) as progress,
            self.open_service(progress=progress) as service,
        ):
            for table in service.spelled(tables):
                try:
                    result = service.resync(table, stop=stop)
                except SyncError as error:
                    errors.append(error)
                else:
                    self.stdout.write(f"{table}: {format_result(result)}")
        self.fail(errors)
