from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from syncdata.daemon import stop_on_signals
from syncdata.errors import SyncError
from syncdata.management.base import SyncCommand, format_result


class Command(SyncCommand):
    help = """\
Rebuild synced tables from the archive: from the newest snapshot, else from the first change file.

Other sessions see the old rows until the new ones are complete, never an empty or half-built table;
a failure leaves the old rows. Rows that exist only locally are lost, and so are, without a snapshot,
those that are older than the archive's first change file. Unblocks a blocked table. The
tables are rebuilt together, and the change files read once for all of them; meanwhile their new
rows take their room on the disk beside the old ones. If one fails the others are still rebuilt,
and the exit status is 1."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables",
            nargs="*",
            metavar="table",
            help="A table of the whitelist: table, schema.table or app_label.Model.",
        )
        parser.add_argument(
            "--all",
            action="store_true",
            dest="is_all",
            help="All tables of the whitelist: after production has begun a new epoch, say.",
        )

    def handle(self, *, tables: list[str], is_all: bool, verbosity: int, **options: Any) -> None:
        if is_all == bool(tables):
            raise CommandError("name tables, or say --all", returncode=2)
        errors: list[SyncError] = []
        with (
            stop_on_signals() as stop,
            self.show_progress(verbosity) as progress,
            self.open_service(progress=progress) as service,
        ):
            chosen = (
                [table.table_name for table in service.list_tables()] if is_all else service.spelled(tables)
            )
            for table, outcome in service.resync_tables(list(dict.fromkeys(chosen)), stop=stop).items():
                if isinstance(outcome, SyncError):
                    errors.append(outcome)
                else:
                    self.stdout.write(f"{table}: {format_result(outcome)}")
        self.fail(errors)
