from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.management.base import SyncCommand, login_name


class Command(SyncCommand):
    help = """\
Let a blocked table go on without the record that blocks it, and audit that.

The place must be the one at which the table is blocked, as list_tables shows it, so that no other
record is skipped by mistake. The record is left out, once, by the batch that meets it again and still
cannot apply it; what it would have changed then differs from production until a resync from an archive
in which the record is mended. A line that cannot be read blocks all tables, and is skipped for all."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("table", help="A blocked table: table, schema.table or app_label.Model.")
        parser.add_argument("place", metavar="file:line", help="The record's place, as the error names it.")

    def handle(self, *, table: str, place: str, **options: Any) -> None:
        with self.open_service() as service:
            tables = service.skip_record(table, place, requested_by=login_name())
        self.stdout.write(f"skipped with the next cycle: {place} for {', '.join(tables)}")
