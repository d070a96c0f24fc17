from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.engine.changes import TableName
from syncdata.management.base import SyncCommand, add_table_names, login_name


class Command(SyncCommand):
    help = """\
Add tables to the whitelist: the next cycle loads their newest snapshots from the archive and applies
what committed later; without a snapshot, all changes from the start of the archive.

A table that does not exist locally yet is accepted with a warning; create it (usually with migrate)
before its changes arrive, or it is blocked until you do. Adding a table twice changes nothing."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table to sync: table or schema.table (the schema is public if not given).")
        parser.add_argument(
            "--creator", help="Who adds them; list_tables shows it (default: your login name)."
        )

    def handle(self, *, tables: list[str], creator: str | None, **options: Any) -> None:
        with self.open_service() as service:
            added = service.add_tables(tables, creator=creator or login_name())
        for name in dict.fromkeys(str(TableName.parse(table)) for table in tables):
            self.stdout.write(f"added: {name}" if name in added else f"already in the whitelist: {name}")
