"""`make demo`: see production changes arrive in a local PostgreSQL, all of it thrown away afterwards."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from syncsite.demo.comparison import Comparison
from syncsite.demo.machine import Daemon, DemoError
from syncsite.demo.postgres import free_port
from syncsite.demo.scenario import ADMIN_USER, ARCHIVER_ROLE, Place, Stage, is_as_expected, set_stage
from syncsite.demo.traffic import PRIVATE, UNWANTED, WHITELIST, Traffic, trading

WRITERS = 4
BUSY_PAUSE_S, CALM_PAUSE_S = 0.015, 1.0
BUSY_S = 10
TRAVEL_TIMEOUT_S = 60
REASONS = {UNWANTED: "not whitelisted", PRIVATE: "not published"}  # why a table stays empty


class Command(BaseCommand):
    help = (
        "Shows syncdata at work: starts two PostgreSQL servers, production and local, and an SFTP server "
        "between them; lets a small shop trade in production, archives its changes, syncs them, and compares "
        "every row. Then, on a terminal, keeps all of it and the admin running until Ctrl-C. Needs no "
        "configuration and touches nothing of yours. Exit status 1 when any row differs."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="end after the comparison, also on a terminal"
        )
        parser.add_argument(
            "--folder", type=Path, default=settings.BASE_DIR / ".demo", help="where its files go"
        )
        parser.add_argument("--port", type=int, default=8000, help="of the admin (another if it is taken)")

    def handle(self, *, once: bool, folder: Path, port: int, **options: Any) -> None:
        _leave_in_order_on_signals()
        stays_up = not once and sys.stdin.isatty() and sys.stdout.isatty()
        try:
            with set_stage(folder.absolute()) as stage, ExitStack() as running:
                self._set_up(stage)
                daemons = self._begin(stage, running)
                is_equal = self._arrive(stage, daemons)
                if stays_up and is_equal:
                    is_equal = self._keep_up(stage, daemons, free_port(port))
                else:
                    self._show_login(f"http://127.0.0.1:{port}/admin/", stage)
                    self.stdout.write("It is up while `make demo` runs on a terminal; this run ends here.")
                for daemon in daemons:
                    daemon.stop()
        except DemoError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=130) from None
        if not is_equal:
            raise CommandError("some rows differ from what production has")

    # The acts

    def _set_up(self, stage: Stage) -> None:
        self._title("Two PostgreSQL servers, and a backup host that both sides reach by SFTP")
        sftp = stage.backup_host.reader
        self.stdout.write(f"  production   {stage.production.address}")
        self.stdout.write(f"  local        {stage.local.address}")
        self.stdout.write(f"  backup host  {sftp.host}:{sftp.port}")
        self._title("Production has rows that are older than any change file")
        for table, rows in stage.open_shop().items():
            self.stdout.write(f"  {table:<15}{rows:>8,} rows")
        arguments = ("setup_logical_replication", "--create-user", ARCHIVER_ROLE)
        self._title_of(stage.production, *arguments)
        stage.manage_as_administrator(*arguments)

    def _begin(self, stage: Stage, running: ExitStack) -> tuple[Daemon, Daemon]:
        """Archive and sync production while it trades; return the two daemons, which go on."""
        production, local = stage.production, stage.local
        self._title(f"From now on production trades, on {WRITERS} connections at a time")
        with trading(production.connect, writers=WRITERS, pause_s=BUSY_PAUSE_S) as traffic:
            self._title_of(production, "archive_changes")
            archiver = running.enter_context(production.machine.background("archive_changes"))
            self.stdout.write(f"in the background; its first file: {stage.first_change_file(archiver.check)}")
            self._run(production, "archive_changes", "--snapshot")

            stage.make_local_tables()
            self._run(local, "migrate", "--verbosity", "0")
            stage.make_admin_user()
            self._run(local, "add_tables", *WHITELIST)
            self._run(local, "syncdata_start", "--once")
            self._title_of(local, "syncdata_start")
            syncer = running.enter_context(local.machine.background("syncdata_start"))
            self.stdout.write("in the background; meanwhile, every two seconds:")
            self._watch(stage, traffic, archiver, syncer, every_s=2, for_s=BUSY_S)
        done, undone = traffic.committed, traffic.rolled_back
        self._title(f"Production pauses, after {done:,} transactions (and {undone:,} rolled back)")
        return archiver, syncer

    def _arrive(self, stage: Stage, daemons: tuple[Daemon, Daemon]) -> bool:
        """Let the last changes travel; show both sides, and whether they are equal."""

        def check() -> None:
            for daemon in daemons:
                daemon.check()

        delay_s = stage.wait_until_equal(check, timeout_s=TRAVEL_TIMEOUT_S)
        if delay_s is None:
            self.stdout.write(f"{TRAVEL_TIMEOUT_S} s later the local rows are still NOT production's")
        else:
            self.stdout.write(f"{delay_s:.1f} s later the local rows are those of production")
        self._run(stage.production, "archive_changes", "--status")
        self._run(stage.local, "syncdata_status")
        self._run(stage.local, "list_tables")
        return self._report(stage)

    def _keep_up(self, stage: Stage, daemons: tuple[Daemon, Daemon], port: int) -> bool:
        """Keep the admin and both daemons running on a calmer production until Ctrl-C; then compare again."""
        self._title("It goes on: production trades, the daemons run, and the admin is there")
        self._show_login(f"http://127.0.0.1:{port}/admin/", stage)
        self.stdout.write("For commands of your own:")
        for place in (stage.production, stage.local):
            self.stdout.write(f"  export DATA_SYNC_CONFIG={place.machine.configuration}")
        self.stdout.write("Ctrl-C ends it.\n")
        admin = ("runserver", "--noreload", f"127.0.0.1:{port}")
        with (
            stage.local.machine.background(*admin) as site,
            trading(stage.production.connect, writers=WRITERS, pause_s=CALM_PAUSE_S) as traffic,
        ):
            try:
                self._watch(stage, traffic, site, *daemons, every_s=1, for_s=None)
            except KeyboardInterrupt:
                self.stdout.write("\nproduction stops, and so do the daemons")
        _leave_in_order_on_signals()
        for daemon in daemons:
            daemon.stop()
        self._run(stage.production, "archive_changes", "--once")
        self._run(stage.local, "syncdata_start", "--once")
        return self._report(stage)

    # What is said

    def _watch(
        self, stage: Stage, traffic: Traffic, *daemons: Daemon, every_s: float, for_s: float | None
    ) -> None:
        """Tell now and then how far all are; without *for_s* always on the same line, and without end."""
        start_s = time.monotonic()
        while for_s is None or time.monotonic() - start_s < for_s:
            time.sleep(every_s)
            traffic.check()
            for daemon in daemons:
                daemon.check()
            line = _describe(traffic, files=stage.count_change_files(), lag_s=stage.lag_s())
            if for_s is None:
                self.stdout.write(f"{line:<76}", ending="\r")
            else:
                self.stdout.write(line)
            self.stdout.flush()

    def _report(self, stage: Stage) -> bool:
        """Print each table's comparison; return whether all are as they should be."""
        self._title("Are the local rows those of production?")
        compared = stage.compare()
        for table in compared:
            rows = f"{table.production:>7,} rows in production"
            self.stdout.write(f"  {table.table:<14}{rows}{self._verdict(table)}")
        return all(map(is_as_expected, compared))

    def _verdict(self, table: Comparison) -> str:
        local = f"{table.local:,} rows in local"
        if not is_as_expected(table):
            difference = f"{table.missing:,} missing, {table.unexpected:,} unexpected"
            return self.style.ERROR(f" <> {local}: {difference}")
        if table.table in WHITELIST:
            return self.style.SUCCESS(f" = {local}")
        return f", {local}: {REASONS[table.table]}"

    def _run(self, place: Place, *arguments: str) -> None:
        self._title_of(place, *arguments)
        place.machine.manage(*arguments)

    def _title_of(self, place: Place, *arguments: str) -> None:
        self._title(f"{place.machine.name}: manage.py {' '.join(arguments)}")

    def _title(self, text: str) -> None:
        self.stdout.write("\n" + self.style.MIGRATE_HEADING(f"== {text}"))

    def _show_login(self, address: str, stage: Stage) -> None:
        self.stdout.write(
            f"\nThe admin: {self.style.SUCCESS(address)}  user {ADMIN_USER}  password {stage.admin_password}"
        )


def _describe(traffic: Traffic, *, files: int, lag_s: float | None) -> str:
    lag = "has no orders yet" if lag_s is None else f"is {lag_s:.1f} s behind"
    return f"{traffic.committed:>8,} transactions {files:>5,} change files   local {lag}"


def _leave_in_order_on_signals() -> None:
    # Also SIGINT, which a script's background job ignores.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_in_order)


def _leave_in_order(signum: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, which a second signal may not interrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
