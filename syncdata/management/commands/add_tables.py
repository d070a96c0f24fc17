from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from syncdata.management.base import SyncCommand, login_name


class Command(SyncCommand):
    help = """\
Add tables to the whitelist: the next cycle loads their newest snapshots from the archive and applies
what committed later; without a snapshot, all changes from the start of the archive. Such a table is
partial: rows that are older than the archive are not there, until a snapshot is.

A table that does not exist locally yet is accepted with a warning; create it (usually with migrate)
before its changes arrive, or it is blocked until you do. What is no table (a view, a sequence) is refused,
and left out of an app. Adding a table twice changes nothing.

A name that is both a table that exists and a model (schema.table, app_label.Model) is the table; one
in double quotes is always a table."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables",
            nargs="*",
            metavar="table",
            help="A table to sync: table or schema.table (the schema is public if not given), or a model of"
            " this project as app_label.Model.",
        )
        parser.add_argument(
            "--app",
            action="append",
            default=[],
            dest="apps",
            metavar="LABEL",
            help="Add the tables of all models of this app, also those between many-to-many models. May be"
            " given several times.",
        )
        parser.add_argument(
            "--creator", help="Who adds them; list_tables shows it (default: your login name)."
        )
        parser.add_argument(
            "--whole",
            action="store_true",
            help="Say that you have loaded all older rows of these tables yourself, by a dump say, so that"
            " they do not count as partial; the audit log keeps who said so. Tables that are in the whitelist"
            " already may be named, too.",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Also add tables that decide who may log in here, and what they may do (users, groups,"
            " permissions, sessions): who writes the archive can then make superusers of this project.",
        )

    def handle(
        self,
        *,
        tables: list[str],
        apps: list[str],
        creator: str | None,
        whole: bool,
        force: bool,
        **options: Any,
    ) -> None:
        if not tables and not apps:
            raise CommandError("the following arguments are required: table (or --app LABEL)", returncode=2)
        with self.open_service() as service:
            names = service.find_tables(tables, apps=apps, force=force)
            added = service.add_tables(tables, apps=apps, creator=creator or login_name(), force=force)
            believed = service.declare_whole(names, requested_by=login_name()) if whole else []
        for name in names:
            self.stdout.write(f"added: {name}" if name in added else f"already in the whitelist: {name}")
        for name in believed:
            self.stdout.write(f"taken for whole: {name}")
