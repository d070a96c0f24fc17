"""Every command as an operator runs it: ``python manage.py …`` against a real PostgreSQL."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from syncsite.demo.postgres import PostgresServer
from tests import processes
from tests.postgres import Database

ROOT = Path(__file__).parents[2]

# The three example records of the manual.
EXAMPLE = """\
{"table":"users","op":"INSERT","data":{"id":1,"name":"John"},"lsn":"0/16B3D40","ts":"2026-02-05T10:30:00Z"}
{"table":"users","op":"UPDATE","data":{"id":1,"name":"Jane"},"old_keys":{"id":1},"lsn":"0/16B3D50","ts":"2026-02-05T10:31:00Z"}
{"table":"users","op":"DELETE","old_keys":{"id":1},"lsn":"0/16B3D60","ts":"2026-02-05T10:32:00Z"}
"""
EXAMPLE_FILE = "changes_20260205_103000.json"


@dataclass
class Site:
    """A configuration, an archive and a database of its own, and the commands run on them."""

    folder: Path
    database: Database
    daemons: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.archive = self.folder / "archive"
        self.archive.mkdir()
        self.pid_file = self.folder / ".syncdata.pid"
        self.configure()

    def configure(self, **keys: Any) -> None:
        keys = {"archive_backend": "local", "archive_dir": str(self.archive)} | self.database.pg_keys | keys
        config = self.folder / "syncdata.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
        config.chmod(0o600)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"DATA_SYNC_CONFIG": str(self.folder / "syncdata.toml"), "LOGNAME": "jane"}

    def run(self, *argv: str, answer: str = "", is_cold: bool = False) -> subprocess.CompletedProcess[str]:
        return processes.run("manage.py", *argv, env=self.environment, answer=answer, is_cold=is_cold)

    def output(self, *argv: str, answer: str = "") -> str:
        """Run a command that must succeed; return what it prints."""
        done = self.run(*argv, answer=answer)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *argv: str, answer: str = "", is_cold: bool = False) -> str:
        """Run a command that must fail; return its last line on stderr, which must begin with a code."""
        done = self.run(*argv, answer=answer, is_cold=is_cold)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        message = done.stderr.splitlines()[-1]
        assert re.match(r"SHD_SYN_\d{3}: ", message), done.stderr
        return message

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start a daemon and wait until it runs."""
        daemon = processes.Process(
            ["manage.py", "syncdata_start", *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.daemons.append(daemon)
        wait_until(lambda: self.value("SELECT count(*) FROM data_sync_runs WHERE stopped_at IS NULL") == 1)
        return daemon

    def execute(self, statement: str) -> None:
        with self.database.connect(autocommit=True) as connection:
            connection.execute(statement)

    def value(self, query: str) -> Any:
        with self.database.connect(autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def add_file(self, name: str, content: str) -> None:
        (self.archive / f"{name}.tmp").write_text(content)
        (self.archive / f"{name}.tmp").rename(self.archive / name)


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database on which the command has made our tables."""
    database = Database(postgres, "migrated_by_command")
    with postgres.connect(autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database.name}")
    Site(tmp_path_factory.mktemp("migrated"), database).output("migrate", "syncdata", "-v", "0")
    return database.name


@pytest.fixture
def site(tmp_path: Path, fresh_database: Callable[..., Database], migrated: str) -> Iterator[Site]:
    site = Site(tmp_path, fresh_database(template=migrated))
    site.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    yield site
    for daemon in site.daemons:
        daemon.kill()
        daemon.communicate()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def inserts(count: int, first: int = 1) -> str:
    """Return *count* transactions of one record each."""
    moments = (f"2026-02-05T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z" for n in range(count))
    return "".join(
        json.dumps({"table": "users", "op": "INSERT", "data": {"id": first + n, "name": "x"}, "ts": ts})
        + "\n"
        for n, ts in enumerate(moments)
    )


def test_the_example_records_through_every_command(site: Site) -> None:
    assert "No tables are synced yet" in site.output("list_tables")

    added = site.run("add_tables", "users", "orders", "products")
    assert added.stdout == "added: users\nadded: orders\nadded: products\n"
    assert "orders" in added.stderr  # the warning: it does not exist here yet
    assert "users" not in added.stderr
    assert site.output("add_tables", "public.users") == "already in the whitelist: users\n"
    site.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    site.execute("CREATE TABLE products (id int PRIMARY KEY)")
    whole = site.output("add_tables", "--whole", "users", "orders", "products")
    assert whole.endswith("taken for whole: orders\ntaken for whole: products\ntaken for whole: users\n")

    assert "status: not-started\n" in site.output("syncdata_status")
    assert "not healthy" in site.refusal("syncdata_status", "--check")

    site.add_file(EXAMPLE_FILE, EXAMPLE)
    daemon = site.start("--interval", "1")
    wait_until(lambda: site.value("SELECT count(*) FROM data_sync_logs WHERE action = 'sync'") == 1)
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    wait_until(lambda: "\nrecords synced: 3\n" in site.output("syncdata_status", "--check"))
    assert re.match(
        rf"status: active\nsync frequency: 1 seconds\nstart time: {moment}\nlast sync: {moment}\n"
        r"records synced: 3\nerrors: 0\n"
        r"\nsynced tables \(3\):\n  - orders\n  - products\n  - users\n",
        site.output("syncdata_status"),
    )
    status = json.loads(site.output("syncdata_status", "--json"))
    assert (status["status"], status["records_synced"], status["is_healthy"]) == ("active", 3, True)

    heading, *_, users = site.output("list_tables").splitlines()
    assert heading.split("  ")[0] == "TABLE"
    assert re.match(rf"users +active +{EXAMPLE_FILE}:3 +3 +jane +{moment} +never$", users)
    (listed,) = [
        table for table in json.loads(site.output("list_tables", "--json")) if table["table_name"] == "users"
    ]
    assert (listed["checkpoint"], listed["rows_synced"]) == (f"{EXAMPLE_FILE}:3", 3)

    site.add_file("changes_20260205_104000.json", inserts(5))
    wait_until(lambda: site.value("SELECT count(*) FROM users") == 5)

    stopped = site.output("syncdata_stop")
    assert f"asked the daemon (pid {daemon.pid}) to stop" in stopped
    assert stopped.endswith(f"stopped (pid {daemon.pid})\n")
    assert daemon.wait(5) == 0
    assert "status: not-started\n" in site.output("syncdata_status")
    assert "no daemon is running" in site.refusal("syncdata_stop")

    site.execute("INSERT INTO users VALUES (99, 'only here')")
    assert re.match(
        r"users: 8 records of 2 files .* 6 added, 1 updated, 1 deleted,", site.output("resync", "users")
    )
    assert site.value("SELECT array_agg(id ORDER BY id) FROM users") == [1, 2, 3, 4, 5]

    assert "nothing was changed" in site.refusal("clear", answer="n\n")
    assert site.value("SELECT count(*) FROM users") == 5
    assert "cleared: " in site.output("clear", answer="y\n")
    assert site.value("SELECT count(*) FROM users") == 0
    assert "8 records of 2 files" in site.output("syncdata_start", "--once")
    assert site.value("SELECT count(*) FROM users") == 5

    assert "nobody" in site.refusal("remove_tables", "orders", "nobody")
    assert site.output("remove_tables", "orders") == "removed: orders\n"
    assert site.value("SELECT count(*) FROM users") == 5
    assert "  - orders\n" not in site.output("syncdata_status")


def test_one_cycle_counts_the_example_records_by_operation(site: Site) -> None:
    site.output("add_tables", "users")
    site.add_file(EXAMPLE_FILE, EXAMPLE)
    first, again = site.run("syncdata_start", "--once"), site.run("syncdata_start", "--once")

    assert re.fullmatch(
        r"3 records of 1 file in [\d.]+ s: 1 added, 1 updated, 1 deleted, 0 truncated, 0 skipped .*,"
        r" 0 failed\n",
        first.stdout,
    )
    assert first.stderr == ""
    assert again.stdout.startswith("0 records of 0 files ")
    assert (first.returncode, again.returncode) == (0, 0)


def test_a_terminal_shows_a_progress_bar(site: Site) -> None:
    site.output("add_tables", "users")
    site.add_file(EXAMPLE_FILE, EXAMPLE)
    terminal, end = pty.openpty()
    try:
        arguments = [sys.executable, str(ROOT / "manage.py"), "syncdata_start", "--once"]
        done = subprocess.run(arguments, env=site.environment, stdout=end, stderr=end, timeout=60)
        screen = os.read(terminal, 100_000).decode()
    finally:
        os.close(end)
        os.close(terminal)

    assert done.returncode == 0
    assert "100%" in screen
    assert "1 of 1 files" in screen
    assert "3 records of 1 file" in screen


def test_a_blocked_table_fails_one_cycle_and_is_shown_with_its_reason(site: Site) -> None:
    site.output("add_tables", "--whole", "users")
    site.execute("ALTER TABLE users DROP COLUMN name")
    site.add_file(EXAMPLE_FILE, EXAMPLE)

    assert site.refusal("syncdata_start", "--once").startswith("SHD_SYN_050: ")
    assert "users" in site.refusal("syncdata_status", "--check")
    assert re.search(r"users +blocked .*\n    SHD_SYN_050: .*name", site.output("list_tables"))

    site.execute("ALTER TABLE users ADD COLUMN name text")
    assert "1 added, 1 updated, 1 deleted" in site.output("syncdata_start", "--once")
    assert re.search(r"users +active ", site.output("list_tables"))


@pytest.mark.parametrize("options", [[], ["--once"]], ids=["daemon", "once"])
@pytest.mark.parametrize("is_deleted", [False, True], ids=["with its pid file", "pid file deleted"])
def test_a_second_start_is_refused(site: Site, options: list[str], is_deleted: bool) -> None:
    daemon = site.start()
    if is_deleted:
        site.pid_file.unlink()

    code = (
        "SHD_SYN_091: another syncdata daemon runs"
        if is_deleted
        else "SHD_SYN_081: another daemon is already"
    )
    assert site.refusal("syncdata_start", *options).startswith(code)
    assert daemon.poll() is None
    assert "status: active\n" in site.output("syncdata_status")


def test_a_stale_pid_file_does_not_stop_a_start(site: Site) -> None:
    site.output("add_tables", "users")
    site.add_file(EXAMPLE_FILE, EXAMPLE)
    site.pid_file.write_text(f"{os.getpid()}\n")  # runs, and is no daemon

    assert "status: not-started\n" in site.output("syncdata_status")
    assert "3 records" in site.output("syncdata_start", "--once")
    assert not site.pid_file.exists()


def test_a_killed_daemon_does_not_stop_the_next_one(site: Site) -> None:
    site.start().kill()
    site.daemons[0].wait()

    assert "status: not-started\n" in site.output("syncdata_status")
    site.output("syncdata_start", "--once")


@pytest.fixture
def busy(site: Site) -> Iterator[tuple[Site, subprocess.Popen[str], psycopg.Connection[Any]]]:
    """A daemon in the middle of the first of ten batches, held there by a lock on the table."""
    site.configure(batch_records=100)
    site.output("add_tables", "users")
    site.add_file(EXAMPLE_FILE, inserts(1000))
    with site.database.connect() as connection:
        connection.execute("LOCK TABLE users IN SHARE MODE")  # readers pass, writers wait
        daemon = site.start()
        wait_until(lambda: site.value("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1)
        yield site, daemon, connection


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_first_signal_lets_the_running_batch_commit(busy: Any, signum: int) -> None:
    site, daemon, connection = busy
    daemon.send_signal(signum)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(0.5)
    connection.rollback()
    output, _ = daemon.communicate(timeout=10)

    assert daemon.returncode == 0
    assert "Traceback" not in output
    assert site.value("SELECT count(*) FROM users") == 100
    assert site.value("SELECT record_number FROM data_sync_checkpoints") == 100
    assert not site.pid_file.exists()
    assert "900 records" in site.output("syncdata_start", "--once")
    assert site.value("SELECT count(*) FROM users") == 1000


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_second_signal_ends_the_daemon_at_once_and_loses_nothing(busy: Any, signum: int) -> None:
    site, daemon, connection = busy
    daemon.send_signal(signum)
    time.sleep(0.3)
    daemon.send_signal(signum)

    assert daemon.wait(3) == 128 + signum
    connection.rollback()
    assert "1,000 records" in site.output("syncdata_start", "--once")
    assert site.value("SELECT count(*) FROM users") == 1000


def test_stopping_waits_for_the_running_batch(busy: Any) -> None:
    site, daemon, connection = busy
    assert f"{daemon.pid}) is still running after 0.2 s" in site.refusal("syncdata_stop", "--timeout", "0.2")
    connection.rollback()

    assert daemon.wait(10) == 0
    assert site.value("SELECT count(*) FROM users") == 100


def test_a_daemon_that_waits_for_its_next_cycle_stops_at_once(site: Site) -> None:
    daemon = site.start("--interval", "600")
    started_s = time.monotonic()
    site.output("syncdata_stop")

    assert daemon.wait(1) == 0
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize(
    "command",
    [
        "syncdata_start",
        "syncdata_status",
        "add_tables x",
        "remove_tables x",
        "list_tables",
        "clear",
        "resync x",
    ],
)
def test_a_database_that_is_away_is_an_error_that_says_so(
    tmp_path: Path, postgres: PostgresServer, command: str
) -> None:
    site = Site(tmp_path, Database(postgres, "absent"))
    site.configure(pg_port=1, pg_password="hidden")

    message = site.refusal(*command.split(), is_cold=True)
    assert "hidden" not in message
    assert "(" in message  # the hint


def test_a_database_without_our_tables_is_a_hint_to_migrate(
    tmp_path: Path, fresh_database: Callable[[], Database]
) -> None:
    assert "migrate" in Site(tmp_path, fresh_database()).refusal("list_tables")


def test_resync_of_a_table_that_is_not_whitelisted_is_refused(site: Site) -> None:
    assert "users" in site.refusal("resync", "users")


def test_verbose_may_stand_before_the_command_and_after_it_as_the_predecessor_had_it(site: Site) -> None:
    for argv in (("-v", "add_tables", "users"), ("add_tables", "-v", "users"), ("-v", "2", "list_tables")):
        assert "users" in site.output(*argv)


def test_a_role_that_may_not_create_tables_is_told_which_right_it_lacks(
    tmp_path: Path, fresh_database: Callable[..., Database]
) -> None:
    site = Site(tmp_path, fresh_database())
    site.execute("DROP ROLE IF EXISTS poor")
    site.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'")
    site.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        site.configure(pg_user="poor", pg_password="poor")
        message = site.refusal("migrate", "syncdata")
        assert "permission denied for schema public" in message
        site.execute(re.findall(r'GRANT CREATE ON SCHEMA public TO "poor"', message)[0])
        site.output("migrate", "syncdata")
    finally:
        site.execute("DROP OWNED BY poor CASCADE")
        site.execute("DROP ROLE poor")


def test_commands_call_a_table_what_the_whitelist_calls_it(site: Site) -> None:
    site.output("add_tables", "users")
    site.add_file(EXAMPLE_FILE, EXAMPLE)
    assert site.output("resync", "public.users").startswith("users: ")
    assert site.output("pause_tables", "public.users") == "paused: users\n"
    assert site.output("pause_tables", "users") == "already paused: users\n"
    assert site.output("resume_tables", "public.users", "users") == "resumed: users\n"
    assert site.output("resume_tables", "users") == "not paused: users\n"
