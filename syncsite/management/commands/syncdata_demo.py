"""`make demo`: see production changes arrive in a local PostgreSQL, all of it thrown away afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from syncsite.demo.postgres import free_port
from syncsite.demo.scenario import ADMIN_USER, DemoError, Stage, set_stage
from syncsite.demo.shop import PRIVATE, WHITELIST

NEWS_INTERVAL_S = 4


class Command(BaseCommand):
    help = (
        "Shows syncdata at work: starts a PostgreSQL and an SFTP server of its own, writes change files as a "
        "production would, syncs them, and compares every row. Then, on a terminal, keeps the admin and the "
        "daemon running on new changes until Ctrl-C. Needs no configuration and touches nothing of yours. "
        "Exit status 1 when any row differs."
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
        signal.signal(signal.SIGTERM, _exit_in_order)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it
        stays_up = not once and sys.stdin.isatty() and sys.stdout.isatty()
        try:
            with set_stage(folder.absolute()) as stage:
                self._catch_up(stage)
                is_equal = self._report(stage)
                if stays_up and is_equal:
                    self._keep_up(stage, free_port(port))
                    is_equal = self._report(stage)
                else:
                    self._show_login(f"http://127.0.0.1:{port}/admin/", stage)
                    self.stdout.write("It is up while `make demo` runs on a terminal; this run ends here.")
        except DemoError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=130) from None
        if not is_equal:
            raise CommandError("some rows differ from what production has")

    def _catch_up(self, stage: Stage) -> None:
        self._title("A local database, and syncdata's own tables in it")
        self.stdout.write(f"PostgreSQL runs on {stage.postgres.host}:{stage.postgres.port}")
        stage.make_tables()
        stage.manage("migrate", "--verbosity", "0")
        stage.make_admin_user()

        self._title("A production that has written change files, and a backup host that serves them by SFTP")
        for path in stage.write_history():
            self.stdout.write(f"  {path.name:<34}{path.stat().st_size / 1000:>8,.0f} kB")
        self.stdout.write(
            f"sftp://{stage.sftp.user}@{stage.sftp.host}:{stage.sftp.port}{stage.sftp.archive_dir}"
        )

        self._run(stage, "add_tables", *WHITELIST)
        self._run(stage, "syncdata_start", "--once")
        self._run(stage, "syncdata_status")
        self._run(stage, "list_tables")

    def _report(self, stage: Stage) -> bool:
        """Print each table's comparison; return whether all are equal."""
        self._title("Are the local rows those of production?")
        compared = stage.compare()
        for table in compared:
            verdict = "equal" if table.table != PRIVATE else "not whitelisted, so left alone"
            if table.is_equal:
                verdict = self.style.SUCCESS(verdict)
            else:
                verdict = self.style.ERROR(f"DIFFERS: {table.missing} missing, {table.unexpected} unexpected")
            self.stdout.write(f"  {table.table:<16}{table.rows:>8,} rows   {verdict}")
        return all(table.is_equal for table in compared)

    def _keep_up(self, stage: Stage, port: int) -> None:
        """Keep the admin and the daemon running on news from production, until Ctrl-C."""
        self._title("It goes on: the daemon runs, production writes a file every few seconds")
        self._show_login(f"http://127.0.0.1:{port}/admin/", stage)
        self.stdout.write(f"For commands of your own:  export DATA_SYNC_CONFIG={stage.configuration}")
        self.stdout.write("Ctrl-C ends it.\n")
        admin = ("runserver", "--noreload", f"127.0.0.1:{port}")
        with stage.background(*admin) as site, stage.background("syncdata_start") as daemon:
            try:
                while site.poll() is None and daemon.poll() is None:
                    self._show_news(stage, daemon)
            except KeyboardInterrupt:
                self.stdout.write("\nstopping the daemon")
            if site.poll() is not None or daemon.poll():  # status 0: somebody tried syncdata_stop
                name = "runserver" if site.poll() is not None else "syncdata_start"
                raise DemoError(f"{name} ended by itself:\n{stage.log_of(name).read_text()[-2000:]}")
        self._run(stage, "syncdata_start", "--once")

    def _show_news(self, stage: Stage, daemon: subprocess.Popen[bytes]) -> None:
        """Let production write one file, and tell how soon the local rows were those of production again."""
        path = stage.write_news()
        delay_s = stage.wait_until_equal(daemon, timeout_s=30)
        news = "NOT in step" if delay_s is None else f"local rows in step after {delay_s:.1f} s"
        self.stdout.write(f"  {path.name}   {news}")
        time.sleep(NEWS_INTERVAL_S)

    def _run(self, stage: Stage, *arguments: str) -> None:
        self._title("manage.py " + " ".join(arguments))
        stage.manage(*arguments)

    def _title(self, text: str) -> None:
        self.stdout.write("\n" + self.style.MIGRATE_HEADING(f"== {text}"))

    def _show_login(self, address: str, stage: Stage) -> None:
        self.stdout.write(
            f"\nThe admin: {self.style.SUCCESS(address)}  user {ADMIN_USER}  password {stage.admin_password}"
        )


def _exit_in_order(signum: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, so that nothing stays running."""
    raise SystemExit(128 + signum)
