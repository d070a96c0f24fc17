from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.management.base import SyncCommand, add_table_names


class Command(SyncCommand):
    help = """\
Remove tables from the whitelist: their changes are no longer applied.

The local data and the checkpoint stay: a table that is added again goes on where it stopped. If
one of the tables is not whitelisted, none is removed."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table to stop syncing: table, schema.table or app_label.Model.")

    def handle(self, *, tables: list[str], **options: Any) -> None:
        with self.open_service() as service:
            removed = service.remove_tables(tables)
        for name in removed:
            self.stdout.write(f"removed: {name}")
