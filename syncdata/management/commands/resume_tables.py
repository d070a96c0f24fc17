from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.management.base import SyncCommand, add_table_names, login_name


class Command(SyncCommand):
    help = """\
Let paused tables go on from where they stand, with the next cycle.

A table that was blocked when it was paused is tried again. If one of the tables is not whitelisted,
none is resumed."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table of the whitelist: table, schema.table or app_label.Model.")

    def handle(self, *, tables: list[str], **options: Any) -> None:
        with self.open_service() as service:
            names = service.spelled(tables)
            changed = service.resume_tables(names, requested_by=login_name())
        for name in names:
            self.stdout.write(f"resumed: {name}" if name in changed else f"not paused: {name}")
