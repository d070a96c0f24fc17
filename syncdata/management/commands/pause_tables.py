from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from syncdata.management.base import SyncCommand, add_table_names, login_name


class Command(SyncCommand):
    help = """\
Keep tables where they stand: their changes wait in the archive until resume_tables.

The others go on. A batch that is running commits first. A resync or clear of a paused table ends its
pause. If one of the tables is not whitelisted, none is paused."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_table_names(parser, "A table of the whitelist: table, schema.table or app_label.Model.")

    def handle(self, *, tables: list[str], **options: Any) -> None:
        with self.open_service() as service:
            names = service.spelled(tables)
            changed = service.pause_tables(names, requested_by=login_name())
        for name in names:
            self.stdout.write(f"paused: {name}" if name in changed else f"already paused: {name}")
