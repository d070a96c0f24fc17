from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.engine.changes import TableName
from syncdata.management.base import SyncCommand, add_table_names


class Command(SyncCommand):
    help = """\
Remove tables from the whitelist: their changes are no longer applied.

The local data stays. A table that is added again later has to be rebuilt with resync, since the
changes in between were not applied."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table to stop syncing: table or schema.table.")

    def handle(self, *, tables: list[str], **options: Any) -> None:
        with self.open_service() as service:
            removed = service.remove_tables(tables)
        for name in dict.fromkeys(str(TableName.parse(table)) for table in tables):
            self.stdout.write(f"removed: {name}" if name in removed else f"not in the whitelist: {name}")
