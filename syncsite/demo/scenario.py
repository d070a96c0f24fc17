"""The demo's stage: production and a local machine, each with a PostgreSQL, and the backup host between them.

Everything lives in one throw-away folder and dies with this process. syncdata itself is used from outside
only, by its commands. Knows who has which tables and which configuration.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from syncsite.demo.comparison import Comparison, compare
from syncsite.demo.machine import DemoError, Machine
from syncsite.demo.postgres import SETTINGS, PostgresServer, embedded_binaries
from syncsite.demo.traffic import PRIVATE, PUBLISHED, SCHEMA, UNWANTED, WHITELIST, open_shop

if TYPE_CHECKING:
    from syncsite.demo.backup_host import BackupHost, SftpAccess

MARKER = ".syncdata-demo"
DATABASE = "shop"
ARCHIVER_ROLE = "syncdata"
ADMIN_USER = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine and the PostgreSQL that belongs to it."""

    machine: Machine
    postgres: PostgresServer

    @property
    def address(self) -> str:
        return f"{self.postgres.host}:{self.postgres.port}"

    def connect(self) -> psycopg.Connection[Any]:
        return self.postgres.connect(DATABASE, options="-c timezone=UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that is up while the demo runs."""

    archive: Path
    backup_host: BackupHost
    production: Place
    local: Place
    admin_password: str

    def open_shop(self) -> dict[str, int]:
        """Let production have been there before us; return how many rows each of its tables has."""
        open_shop(self.production.connect)
        with self.production.connect() as connection:
            return {
                table: _value(connection, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
                for table in (*PUBLISHED, PRIVATE)
            }

    def make_local_tables(self) -> None:
        """What the migrations of the local application would do."""
        with self.local.connect() as connection:
            connection.execute(SCHEMA)

    def make_admin_user(self) -> None:
        login = ("--username", ADMIN_USER, "--email", f"{ADMIN_USER}@example.com")
        self.local.machine.manage("createsuperuser", "--noinput", "--verbosity", "0", *login)

    def manage_as_administrator(self, *arguments: str) -> None:
        """Run a command of production as who may do all there; the archiver's own role is no superuser."""
        postgres = self.production.postgres
        administrator = {"SOURCE_PG_USER_NAME": postgres.user, "SOURCE_PG_PASSWORD": postgres.password}
        self.production.machine.manage(*arguments, variables=administrator)

    def first_change_file(self, check: Callable[[], None], *, timeout_s: float = 60) -> str:
        """Wait for the first file in the archive, and return its name; *check* as below."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            check()
            if files := sorted(self.archive.glob("changes_*")):
                return files[0].name
            time.sleep(0.1)
        raise DemoError(f"nothing was archived within {timeout_s:.0f} s")

    def count_change_files(self) -> int:
        return sum(1 for _ in self.archive.glob("changes_*"))

    def lag_s(self) -> float | None:
        """For how long production has had an order that is not here yet; None when no order is here."""
        with self.local.connect() as local, self.production.connect() as production:
            newest = _value(local, "SELECT max(placed) FROM orders")
            if newest is None:
                return None
            missing = "SELECT clock_timestamp() - min(placed) FROM orders WHERE placed > %s"
            age: timedelta | None = _value(production, missing, newest)
        return age.total_seconds() if age else 0.0

    def compare(self) -> list[Comparison]:
        """Hold the local rows against production's, table by table."""
        with self.local.connect() as local, self.production.connect() as production:
            return [compare(production, local, table) for table in (*WHITELIST, UNWANTED, PRIVATE)]

    def wait_until_equal(self, check: Callable[[], None], *, timeout_s: float) -> float | None:
        """Return how long it took until the whitelisted tables were equal; None if it takes longer.

        *check* raises when there is no use in waiting.
        """
        start = time.monotonic()
        while (elapsed_s := time.monotonic() - start) < timeout_s:
            check()
            if all(table.is_equal for table in self.compare() if table.table in WHITELIST):
                return elapsed_s
            time.sleep(0.2)
        return None


def is_as_expected(table: Comparison) -> bool:
    """Whitelisted tables have production's rows, and the others none."""
    return table.is_equal if table.table in WHITELIST else table.local == 0


@contextmanager
def set_stage(folder: Path) -> Iterator[Stage]:
    """Start the servers and write the configurations; stop them all at the end."""
    try:
        # Not above: the rest of the site, and this command's --help, work without the demo's packages.
        from syncsite.demo.backup_host import serve_sftp

        binaries = embedded_binaries()
    except ModuleNotFoundError as error:
        raise DemoError(f"the demo needs {error.name or 'more packages'}: pip install '.[demo]'") from error
    _make_empty(folder)
    with ExitStack() as stack:
        production = _start_postgres(stack, binaries, max_slot_wal_keep_size="1GB")
        local = _start_postgres(stack, binaries)
        archive = folder / "backup-host"
        archive.mkdir()
        host = stack.enter_context(serve_sftp(archive, folder / "ssh"))
        archiver_password, admin_password = secrets.token_urlsafe(12), secrets.token_urlsafe(9)
        stage = Stage(
            archive=archive,
            backup_host=host,
            production=Place(
                machine=Machine(
                    name="production",
                    folder=folder / "production",
                    variables={"SOURCE_PG_NEW_PASSWORD": archiver_password},
                ),
                postgres=production,
            ),
            local=Place(
                machine=Machine(
                    name="local",
                    folder=folder / "local",
                    variables={"DJANGO_SUPERUSER_PASSWORD": admin_password},
                ),
                postgres=local,
            ),
            admin_password=admin_password,
        )
        stage.production.machine.configure(_production_toml(host.writer, production, archiver_password))
        stage.local.machine.configure(_local_toml(host.reader, local))
        yield stage


def _make_empty(folder: Path) -> None:
    """Make *folder* anew. Raises DemoError rather than delete what no demo made."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise DemoError(f"{folder} is not empty, and not of an earlier demo; name another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _start_postgres(stack: ExitStack, binaries: Path, **settings: str) -> PostgresServer:
    postgres = PostgresServer(binaries=binaries, settings={**SETTINGS, **settings})
    stack.callback(postgres.stop)
    postgres.start()
    with postgres.connect(autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    return postgres


def _production_toml(sftp: SftpAccess, postgres: PostgresServer, password: str) -> str:
    return f"""\
{_archive_toml(sftp)}
# The production database
[source]
pg_host = "{postgres.host}"
pg_port = {postgres.port}
pg_user = "{ARCHIVER_ROLE}"
pg_password = "{password}"
pg_database = "{DATABASE}"
tables = [{", ".join(f'"{table}"' for table in PUBLISHED)}]

# How many seconds a change file may cover
rotate_seconds = 1
"""


def _local_toml(sftp: SftpAccess, postgres: PostgresServer) -> str:
    return f"""\
{_archive_toml(sftp)}
# The local database
pg_host = "{postgres.host}"
pg_port = {postgres.port}
pg_user = "{postgres.user}"
pg_password = "{postgres.password}"
pg_database = "{DATABASE}"

# How often to look for new files, in seconds
data_sync_freq = 1
"""


def _archive_toml(sftp: SftpAccess) -> str:
    return f"""\
# Where the change files are
archive_host = "{sftp.host}"
archive_port = {sftp.port}
archive_user = "{sftp.user}"
archive_dir = "{sftp.archive_dir}"
archive_key_file = "{sftp.key_file}"
archive_known_hosts = "{sftp.known_hosts}"
# Whoever looks at the demo may have an SSH configuration of their own; it is not asked
archive_ssh_config = "none"
"""


def _value(
    connection: psycopg.Connection[Any], query: sql.Composed | LiteralString, *parameters: object
) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
