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
and the exit status is 1.

With --until the rows are those of that moment, or commit, and no later ones: from a snapshot that is
not newer. Let no daemon run meanwhile, it would bring the tables on; and let the others stand at the
same point (syncdata_start --until), or name them, too."""

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

        parser.add_argument(
            "--until",
            metavar="TIME|LSN",
            help="Stop there: at a time such as 2026-02-05T10:30:00Z, or a commit's LSN such as 1A/2B3C4D5E.",
        )

    def handle(
        self, *, tables: list[str], is_all: bool, until: str | None, verbosity: int, **options: Any
    ) -> None:
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
            outcomes = service.resync_tables(list(dict.fromkeys(chosen)), stop=stop, until=until)
            for table, outcome in outcomes.items():
                if isinstance(outcome, SyncError):
                    errors.append(outcome)
                else:
                    self.stdout.write(f"{table}: {format_result(outcome)}")
        self.fail(errors)
