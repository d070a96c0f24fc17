from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.errors import ClearError
from syncdata.management.base import SyncCommand, format_count, login_name


class Command(SyncCommand):
    help = """\
Empty all synced tables, or those that are named, and forget how far they were: the next cycle syncs
them again, from their newest snapshots, else from the start of the archive.

Rows that exist only locally are lost, and so are, without a snapshot, those that are older than the
archive's first change file: load them anew before the next cycle. The whitelist, the audit log and the
metrics stay. To rebuild single tables without an empty moment, use resync."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables",
            nargs="*",
            metavar="table",
            help="Only these: table, schema.table or app_label.Model.",
        )
        parser.add_argument(
            "--noinput", "--no-input", action="store_false", dest="interactive", help="Do not ask first."
        )

    def handle(self, *, tables: list[str], interactive: bool, **options: Any) -> None:
        with self.open_service() as service:
            if interactive:
                self._confirm(tables or [table.table_name for table in service.list_tables()])
            cleared = service.clear(tables or None, requested_by=login_name())
        self.stdout.write(f"cleared: {', '.join(cleared)}" if cleared else "no tables are synced")

    def _confirm(self, tables: list[str]) -> None:
        """Ask the operator; raise ClearError unless the answer is yes."""
        self.stdout.write(
            f"This deletes ALL rows of {format_count(len(tables), 'table')}: {', '.join(tables) or '-'}."
            " The next cycle brings back what the archive holds: snapshots, and change files."
        )
        self.confirm("Continue?", ClearError)
