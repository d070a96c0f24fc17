from __future__ import annotations

import getpass
import sys
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError

from syncdata.changes.names import TableName
from syncdata.conf import NEW_PASSWORD_VARIABLE, load_source_config, new_source_password
from syncdata.errors import SourceSetupError
from syncdata.management.production import ProductionCommand
from syncdata.production import ProductionService
from syncdata.provision.findings import Finding
from syncdata.provision.provision import NewUser, list_problems

_NO_POLICY = (
    "there is no privacy policy: every column of the published tables leaves production, and so will one that"
    " a migration adds; 'python manage.py archive_changes --init' writes a first policy"
)


class Command(ProductionCommand):
    help = """\
Prepare the production database of [source] for archive_changes: check what logical replication
needs, create the publication of source.tables, and create the replication slot.

If anything is missing, all of it is listed, each with the statement that mends it, and nothing is
changed. Running it again changes nothing; after source.tables was changed it adds and drops tables
of the publication."""
    epilog = f"""\
The connection is that of [source] and SOURCE_PG_*. To set up as another role than the archiver's:

  SOURCE_PG_USER_NAME=postgres SOURCE_PG_PASSWORD=... manage.py setup_logical_replication \\
      --create-user archiver

The new role's password is asked for, or taken from the environment variable {NEW_PASSWORD_VARIABLE}.

From the moment the slot exists the server keeps all WAL until the archiver has read it: start
archive_changes soon, and drop the slot (--drop) when it is no longer wanted."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        action = parser.add_mutually_exclusive_group()
        action.add_argument(
            "--check",
            action="store_true",
            help="Only report; the exit status is 1 when something is missing.",
        )
        action.add_argument("--drop", action="store_true", help="Drop slot and publication, after asking.")
        parser.add_argument(
            "--all",
            action="store_true",
            dest="drops_all",
            help="With --drop: also the roles that --create-user has made, with their rights.",
        )
        action.add_argument(
            "--create-user",
            metavar="NAME",
            help="Also create the role the archiver logs in as, or give an existing one the rights it lacks.",
        )
        parser.add_argument(
            "--new-password",
            action="store_true",
            help="With --create-user: also set the password of a role that exists.",
        )
        parser.add_argument(
            "--identity-full",
            action="store_true",
            help="Give tables without a usable key REPLICA IDENTITY FULL.",
        )
        parser.add_argument(
            "--widen",
            action="store_true",
            dest="widens",
            help="Publish all of what somebody has published in part: every column and row of the tables,"
            " every kind of change, partitions as their root. Without it what was narrowed stays so.",
        )
        parser.add_argument(
            "--snapshot",
            action=BooleanOptionalAction,
            help="Take snapshots of the tables that are new, or do not (without either: ask on a terminal).",
        )
        parser.add_argument(
            "--noinput", "--no-input", action="store_false", dest="interactive", help="Never ask."
        )

    def handle(self, *, check: bool, drop: bool, drops_all: bool, interactive: bool, **options: Any) -> None:
        if drops_all and not drop:
            raise CommandError("--all goes with --drop", returncode=2)
        service = ProductionService(load_source_config())
        if check:
            self._check(service)
        elif drop:
            self._drop(service, drops_all, interactive)
        else:
            self._setup(service, interactive=interactive, **options)

    def _check(self, service: ProductionService) -> None:
        findings = service.check()
        for finding in findings:
            self.stdout.write(f"{finding.level:<8} {finding}")
        if not service.has_policy:
            self.stdout.write(f"note     {_NO_POLICY}")
        missing = [finding.text for finding in findings if finding.level == "missing"]
        if missing:
            raise list_problems(missing)

    def _drop(self, service: ProductionService, drops_all: bool, interactive: bool) -> None:
        if interactive:
            self.confirm(
                "This drops the replication slot and the publication: changes that are not archived yet"
                " never will be. Continue?",
                SourceSetupError,
            )
        if not service.drop(drops_all=drops_all, report=self.stdout.write):
            self.stdout.write("nothing to drop: neither slot nor publication is there")
        if drops_all:
            self.stdout.write(
                f"Not in the database: {service.spool_dir} holds the chain's state, and may go with the"
                f" archive."
                " Standbys drop their copies of the slot by themselves."
            )

    def _setup(
        self,
        service: ProductionService,
        *,
        identity_full: bool,
        widens: bool,
        create_user: str | None,
        new_password: bool,
        snapshot: bool | None,
        interactive: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        user = None
        if create_user is not None:
            user = NewUser(
                name=create_user,
                ask_password=lambda: _ask_password(create_user, interactive),
                sets_password=new_password,
            )
        elif new_password:
            raise SourceSetupError("--new-password needs --create-user", hint="name the role")
        result = service.setup(
            identity_full=identity_full, widens=widens, user=user, report=self.stdout.write
        )
        if not result.changes:
            self.stdout.write("nothing to change: the source is set up")
        self._write_notes(result.notes)
        if not service.has_policy:
            self.stdout.write(f"note: {_NO_POLICY}")
        if user is not None:
            self.stdout.write(
                f'The archiver logs in with source.pg_user = "{user.name}" (or SOURCE_PG_USER_NAME) and its'
                " password in source.pg_password (or SOURCE_PG_PASSWORD, or PGPASSFILE)."
            )
        if result.dropped_tables:
            self.stdout.write(
                f"Local copies of {_listed(result.dropped_tables)} stand still from here on, silently: run"
                " remove_tables on the local machines."
            )
        if result.creates_slot and service.has_chain:
            self.stdout.write(
                "The change files written so far cannot go on from a new slot. Begin anew, with snapshots:"
                " python manage.py archive_changes --new-epoch"
            )
        elif result.new_tables:
            self._offer_snapshots(
                service, result.new_tables, snapshot, interactive=interactive, verbosity=verbosity
            )

    def _offer_snapshots(
        self,
        service: ProductionService,
        tables: Sequence[TableName],
        wanted: bool | None,
        *,
        interactive: bool,
        verbosity: int,
    ) -> None:
        """Take the first snapshots of *tables*: local machines begin with them."""
        names = [str(table) for table in tables]
        if service.has_chain:
            self.stdout.write(
                f"Changes of {_listed(tables)} are archived from here on. A local machine that synced them"
                " before must resync them, once a snapshot is taken."
            )
        if wanted is None and interactive and sys.stdin.isatty():
            answer = input(f"Take the first snapshots ({', '.join(names)}) now? [y/N] ")
            wanted = answer.strip().lower() in ("y", "yes")
        if wanted:
            self.take_snapshots(service, names, verbosity=verbosity)
        else:
            self.stdout.write(
                "What the tables hold already is in no change file. Take the first snapshots with:"
                f" python manage.py archive_changes --snapshot {' '.join(table.argument for table in tables)}"
            )

    def _write_notes(self, notes: Sequence[Finding]) -> None:
        for note in notes:
            self.stdout.write(f"note: {note}")


def _listed(tables: Sequence[TableName]) -> str:
    return ", ".join(map(str, tables))


def _ask_password(role: str, interactive: bool) -> str:
    """Return the new password of *role*: from the environment, else asked for twice on the terminal."""
    if (password := new_source_password()) is not None:
        return password
    if not interactive or not sys.stdin.isatty():
        raise SourceSetupError(
            f"no password for role {role}; nothing was changed",
            hint=f"set {NEW_PASSWORD_VARIABLE}, or run it on a terminal",
        )
    password = getpass.getpass(f"Password for role {role}: ")
    if not password or password != getpass.getpass("Again: "):
        raise SourceSetupError("empty, or not the same twice; nothing was changed", hint="try again")
    return password
