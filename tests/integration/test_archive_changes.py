"""archive_changes as an operator runs it: processes, two configurations as on two machines, SFTP between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.production import Production
from tests.sshd import SshServer
from tests.world import World

ROOT = Path(__file__).resolve().parents[2]
TABLES = "CREATE TABLE users (id int PRIMARY KEY, name text)", "CREATE TABLE orders (id int PRIMARY KEY)"


@dataclass
class Site:
    """A configuration file and the commands on it."""

    configuration: Path

    def run(self, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        return processes.run("manage.py", *arguments, env=self._environment(), answer=answer or "")

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def daemon(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = processes.Process(
            ["manage.py", *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "DATA_SYNC_CONFIG": str(self.configuration), "NO_COLOR": "1"}


@dataclass
class Pair:
    """Production and one local machine, with a backup host between them."""

    production: Production
    world: World
    source: Site
    local: Site

    def rows(self, table: str = "users") -> tuple[list[Any], list[Any]]:
        query = f"SELECT * FROM {table} ORDER BY 1"
        return self.production.rows(query), self.world.rows(query)

    def sync(self) -> subprocess.CompletedProcess[str]:
        return self.local.run("syncdata_start", "--once")

    def wait_until_the_source_is_read(self) -> None:
        deadline = time.monotonic() + 60
        while not self.production.rows("SELECT FROM pg_replication_slots WHERE active"):
            assert time.monotonic() < deadline, "no archiver came"
            time.sleep(0.05)


@pytest.fixture
def pair(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    sshd: SshServer,
    tmp_path: Path,
) -> Pair:
    production, world = make_production(), make_world()
    production.execute(*TABLES)
    world.execute(*TABLES)
    production.execute("DROP PUBLICATION syncdata")
    production.drop_slot()
    archive = {
        "archive_host": sshd.host,
        "archive_port": sshd.port,
        "archive_user": sshd.user,
        "archive_dir": str(sshd.archive_dir),
        "archive_key_file": str(sshd.key_file),
        "archive_known_hosts": str(sshd.known_hosts),
    }
    source = production.database.pg_keys | {
        "slot_name": production.slot_name,
        "tables": ["users", "orders"],
        "rotate_seconds": 1,
        "keep_days": 0,
    }
    return Pair(
        production,
        world,
        _site(tmp_path / "source", archive, source),
        _site(tmp_path / "local", archive | world.database.pg_keys),
    )


def _site(folder: Path, keys: dict[str, Any], source: dict[str, Any] | None = None) -> Site:
    folder.mkdir()
    path = folder / "syncdata.toml"
    path.touch(mode=0o600)
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    if source is not None:
        lines += ["[source]", *(f"{name} = {json.dumps(value)}" for name, value in source.items())]
    path.write_text("\n".join(lines))
    return Site(path)


def test_from_an_empty_backup_host_to_equal_rows(pair: Pair) -> None:
    pair.production.execute("INSERT INTO users SELECT n, 'old' FROM generate_series(1, 50) n")
    assert "created slot" in pair.source.ok("setup_logical_replication", "--snapshot")
    assert pair.source.ok("setup_logical_replication").startswith("nothing to change: the source is set up\n")
    pair.production.execute("UPDATE users SET name = 'new' WHERE id <= 10", "DELETE FROM users WHERE id = 50")
    assert "11 records of 2 transactions in 1 file" in pair.source.ok("archive_changes", "--once")
    assert "0 records" in pair.source.ok("archive_changes", "--once")
    pair.local.ok("add_tables", "users", "orders")
    assert pair.sync().returncode == 0
    mine, theirs = pair.rows()
    assert mine == theirs
    assert len(mine) == 49


def test_the_daemon_archives_until_it_is_told_to_stop(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    pair.local.ok("add_tables", "users")
    with pair.source.daemon("archive_changes") as daemon:
        pair.wait_until_the_source_is_read()
        for number in range(3):
            pair.production.execute(f"INSERT INTO users VALUES ({number}, 'x')")
            time.sleep(0.5)
        second = pair.source.run("archive_changes", "--once")
        assert second.returncode == 1
        assert second.stderr.startswith("SHD_SYN_111: another archiver is already running")
        status = json.loads(pair.source.ok("archive_changes", "--status", "--json"))
        assert (status["status"], status["is_healthy"]) == ("active", True)
        pair.production.execute("INSERT INTO users VALUES (100, 'the last one')")
        time.sleep(0.3)
        assert "stopped (pid" in pair.source.ok("archive_changes", "--stop")
        output, _ = daemon.communicate(timeout=20)
        assert daemon.returncode == 0, output
        assert "is delivered in" in output
    assert pair.sync().returncode == 0
    assert pair.rows()[0] == pair.rows()[1]
    stopped = pair.source.run("archive_changes", "--status")
    assert (stopped.returncode, "status: not-started" in stopped.stdout) == (1, True)
    assert "no archiver runs here, nothing is archived since 20" in stopped.stderr


def test_a_snapshot_beside_the_running_daemon_frees_a_table_whose_history_is_gone(pair: Pair) -> None:
    pair.production.execute("INSERT INTO users VALUES (1, 'older than the slot')")
    pair.source.ok("setup_logical_replication", "--snapshot")
    for number in range(2, 5):
        pair.production.execute(f"INSERT INTO users VALUES ({number}, 'x')")
        pair.source.ok("archive_changes", "--once")
    with pair.source.daemon("archive_changes"):
        taken = pair.source.ok("archive_changes", "--snapshot")
        assert "public.users.json.gz: 4 rows" in taken
        # The newest change file stays; two others, and both tables of the first snapshot, go.
        assert "would remove 4 files" in pair.source.ok("archive_changes", "--prune", "--dry-run")
        assert "removed 4 files" in pair.source.ok("archive_changes", "--prune")
        assert "removed 0 files" in pair.source.ok("archive_changes", "--prune")
        pair.production.execute("INSERT INTO users VALUES (9, 'after the snapshot')")
        pair.source.ok("archive_changes", "--stop")
    pair.local.ok("add_tables", "users", "orders")
    assert pair.sync().returncode == 0
    assert pair.rows()[0] == pair.rows()[1]
    assert len(pair.rows()[1]) == 5


def test_a_recreated_slot_stops_everything_until_a_new_epoch_and_a_resync(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--snapshot")
    pair.local.ok("add_tables", "users", "orders")
    pair.production.execute("INSERT INTO users VALUES (1, 'a')")
    pair.source.ok("archive_changes", "--once")
    assert pair.sync().returncode == 0
    pair.production.drop_slot()
    pair.production.execute("INSERT INTO users VALUES (2, 'that nobody saw')")
    gone = pair.source.run("archive_changes", "--once")
    assert gone.returncode == 1
    assert gone.stderr.startswith("SHD_SYN_103: the source has no replication slot")
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    recreated = pair.source.run("archive_changes")
    assert recreated.returncode == 1
    assert "it was recreated, or somebody else moved it" in recreated.stderr
    assert "--new-epoch" in recreated.stderr
    refused = pair.source.run("archive_changes", "--new-epoch", answer="n\n")
    assert refused.returncode == 1
    assert "public.users.json.gz: 2 rows" in pair.source.ok("archive_changes", "--new-epoch", "--noinput")
    pair.production.execute("INSERT INTO users VALUES (3, 'c')")
    pair.source.ok("archive_changes", "--once")
    blocked = pair.sync()
    assert blocked.returncode == 1
    assert "the file comes from another source" in blocked.stderr
    assert "archive_changes --snapshot" in blocked.stderr
    pair.local.ok("resync", "users", "orders")
    assert pair.sync().returncode == 0
    assert pair.rows()[0] == pair.rows()[1]
    assert len(pair.rows()[1]) == 3


def test_moving_over_from_plain_files_leaves_no_gap(pair: Pair, sshd: SshServer) -> None:
    """The steps of "Migrating": the script's files stay in the archive, and hold less than production has."""
    pair.production.execute("INSERT INTO users VALUES (1, 'a'), (2, 'lost by the script')")
    record = {"table": "users", "op": "INSERT", "data": {"id": 1, "name": "a"}, "ts": "2026-02-05T10:30:00Z"}
    (sshd.archive_dir / "changes_20260205_103000.json").write_text(json.dumps(record) + "\n")
    pair.local.ok("add_tables", "users")
    assert pair.sync().returncode == 0
    assert pair.rows()[1] == [(1, "a")]
    pair.source.ok("setup_logical_replication", "--snapshot")
    pair.production.execute("INSERT INTO users VALUES (3, 'c')")
    pair.source.ok("archive_changes", "--once")
    stopped = pair.sync()
    assert stopped.returncode == 1
    assert "a new source begins here, after the plain file" in stopped.stderr
    pair.local.ok("resync", "users")
    assert pair.sync().returncode == 0
    assert pair.rows()[0] == pair.rows()[1]
    assert len(pair.rows()[1]) == 3


def test_status_without_a_source_says_so_and_fails(pair: Pair) -> None:
    text = pair.source.configuration.read_text()
    pair.source.configuration.write_text(text.replace(f'slot_name = "{pair.production.slot_name}"', ""))
    status = pair.source.run("archive_changes", "--status")
    assert status.returncode == 1
    assert "the source has no replication slot syncdata_slot" in status.stdout
    assert status.stderr.startswith("SHD_SYN_110: not healthy: ")


def test_a_table_that_is_not_configured_gets_no_snapshot(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    refused = pair.source.run("archive_changes", "--snapshot", "secrets")
    assert refused.returncode == 1
    assert refused.stderr.startswith("SHD_SYN_108: not in source.tables: secrets")


def test_ctrl_c_ends_the_daemon_in_order(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    with pair.source.daemon("archive_changes") as daemon:
        pair.wait_until_the_source_is_read()
        pair.production.execute("INSERT INTO users VALUES (1, 'x')")
        time.sleep(1)
        daemon.send_signal(signal.SIGINT)
        output, _ = daemon.communicate(timeout=20)
    assert daemon.returncode == 0, output
    assert "(records: 1, transactions: 1)" in output


@pytest.mark.parametrize("option", ["--dry-run", "--json", "--timeout=5"])
def test_an_option_of_another_action_does_not_start_the_archiver(pair: Pair, option: str) -> None:
    refused = pair.source.run("archive_changes", option)
    assert refused.returncode == 2
    assert "goes with --" in refused.stderr


def test_a_slot_in_use_by_another_archiver_begins_no_new_epoch(pair: Pair, tmp_path: Path) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    text = pair.source.configuration.read_text().replace("[source]", '[source]\nspool_dir = "elsewhere"')
    other = Site(tmp_path / "source" / "other.toml")
    other.configuration.touch(mode=0o600)
    other.configuration.write_text(text)
    with pair.source.daemon("archive_changes") as daemon:
        assert daemon.stdout is not None
        assert "archiving what commits after" in daemon.stdout.readline()
        for action in (("--new-epoch", "--noinput"), ("--once",), ("--snapshot",)):
            refused = other.run("archive_changes", *action)
            assert refused.returncode == 1
            assert refused.stderr.startswith("SHD_SYN_103: the slot")
            assert "is in use" in refused.stderr


def test_status_says_when_no_archiver_has_run_yet_or_its_slot_is_another(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    assert "no archiver has run here yet" in pair.source.run("archive_changes", "--status").stderr
    pair.source.ok("archive_changes", "--once")
    assert "no archiver runs here" in pair.source.run("archive_changes", "--status").stderr
    pair.production.drop_slot()
    pair.production.create_slot()
    assert "it was recreated" in pair.source.run("archive_changes", "--status").stderr


def test_a_configured_table_that_is_not_published_is_noticed(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    pair.source.ok("archive_changes", "--once")
    pair.production.execute("ALTER PUBLICATION syncdata DROP TABLE orders")
    assert "not published, so their changes are lost" in pair.source.run("archive_changes", "--status").stderr
    with pair.source.daemon("archive_changes") as daemon:
        assert daemon.stdout is not None
        lines = [daemon.stdout.readline(), daemon.stdout.readline()]
    assert any("not published, so their changes are lost to the archive: orders" in line for line in lines)


def test_the_setup_says_what_follows_from_tables_that_leave_and_slots_that_are_new(pair: Pair) -> None:
    pair.source.ok("setup_logical_replication", "--no-snapshot")
    pair.source.ok("archive_changes", "--once")
    text = pair.source.configuration.read_text()
    pair.source.configuration.write_text(text.replace('["users", "orders"]', '["users"]'))
    assert "Local copies of orders stand still" in pair.source.ok("setup_logical_replication")
    pair.source.configuration.write_text(text)
    assert "must resync them" in pair.source.ok("setup_logical_replication")
    pair.production.drop_slot()
    assert "archive_changes --new-epoch" in pair.source.ok("setup_logical_replication")


def state_of(pair: Pair, table: str = "users") -> str:
    tables = json.loads(pair.local.ok("list_tables", "--json"))
    return next(entry["state"] for entry in tables if entry["table_name"] == table)


def begin_with_snapshot(pair: Pair) -> None:
    pair.production.execute("INSERT INTO users SELECT n, 'old' FROM generate_series(1, 3) n")
    pair.source.ok("setup_logical_replication", "--snapshot")
    pair.local.ok("add_tables", "users", "orders")
    pair.source.ok("archive_changes", "--once")
    assert pair.sync().returncode == 0
    assert state_of(pair) == "active"


def give_older_rows_values(pair: Pair) -> None:
    """Add a column on both sides, by a migration that gives each older row a value of its own."""
    for side in (pair.production, pair.world):
        side.execute("ALTER TABLE users ADD token uuid DEFAULT gen_random_uuid()")
    pair.production.execute("INSERT INTO users (id, name) VALUES (4, 'new')")


def test_a_table_whose_rows_changed_without_a_record_heals_by_itself(pair: Pair, sshd: SshServer) -> None:
    begin_with_snapshot(pair)
    give_older_rows_values(pair)
    archived = pair.source.run("archive_changes", "--once")
    assert "users: the new column token got values in older rows" in archived.stderr + archived.stdout
    pair.sync()
    assert pair.rows()[0] == pair.rows()[1]
    assert state_of(pair) == "active"
    # Nothing is owed any more, and nothing is rebuilt again.
    snapshots = sorted(sshd.archive_dir.glob("snapshot_*"))
    assert len(snapshots) == 2
    pair.source.ok("archive_changes", "--once")
    assert sorted(sshd.archive_dir.glob("snapshot_*")) == snapshots
    assert "0 records" in pair.sync().stdout


def test_a_running_archiver_copies_what_no_record_says(pair: Pair) -> None:
    begin_with_snapshot(pair)
    with pair.source.daemon("archive_changes"):
        pair.wait_until_the_source_is_read()
        give_older_rows_values(pair)
        deadline = time.monotonic() + 60
        while pair.rows()[0] != pair.rows()[1]:
            assert time.monotonic() < deadline, "the table does not heal"
            pair.sync()
    assert state_of(pair) == "active"


def test_a_table_that_is_too_large_to_be_copied_by_itself_waits_for_a_person(pair: Pair) -> None:
    path = pair.source.configuration
    path.write_text(path.read_text() + "\nsnapshot_bytes = 0")
    begin_with_snapshot(pair)
    give_older_rows_values(pair)
    archived = pair.source.run("archive_changes", "--once")
    assert "larger than source.snapshot_bytes: users" in archived.stderr + archived.stdout
    assert pair.sync().returncode == 1
    assert state_of(pair) == "blocked"
    pair.source.ok("archive_changes", "--snapshot", "users")
    pair.sync()
    assert pair.rows()[0] == pair.rows()[1]
    assert state_of(pair) == "active"
