"""Measure what verification costs, how soon it finds a difference, and that it raises no false alarm.

    python -m benchmarks.verifying [--minutes N] [--rows N] [--rate N] [--verify-rate N]

Ten tables, one of them with so many rows, are changed so many times a second in production, while archiver
and daemon run in processes of their own, as in use, and verify round after round. After so many minutes,
while the changes go on, rows of the large table are tampered with here, each time in another way: the time
until the table shows `differs` is printed, and it is resynced. In the end all rows are compared.

Exit status 1 for a false alarm, for rows that differ, and for a difference that is not found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.figures import MANAGE
from benchmarks.latency import process, running
from benchmarks.servers import DURABLE, SETTINGS_OF_TEXT
from benchmarks.workloads import ACCOUNT, ACCOUNT_ROW
from syncsite.demo.postgres import PostgresServer, embedded_binaries, system_binaries

TABLES = [f"account{number}" for number in range(10)]
LARGE = TABLES[0]
TRANSACTION = 20
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

# How rows here are made to differ, by what a person would call it.
TAMPERINGS = {
    "a changed byte": f"UPDATE {LARGE} SET note = note || '.' WHERE id = %s",
    "a missing row": f"DELETE FROM {LARGE} WHERE id = %s",
    "a row too many": f"INSERT INTO {LARGE} SELECT id + 1000000000, customer_id FROM {LARGE} WHERE id = %s",
    "NULL for a text": f"UPDATE {LARGE} SET note = NULL WHERE id = %s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of traffic before the first tampering")
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"of {LARGE}")
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second")
    parser.add_argument("--verify-rate", type=int, default=20_000, help="source.verify_rows_per_second")
    options = parser.parse_args()
    binaries = next(iter(system_binaries()), None) or embedded_binaries()
    source = PostgresServer(binaries=binaries, settings=DURABLE | {"wal_level": "logical"})
    local = PostgresServer(binaries=binaries, settings=DURABLE)
    with tempfile.TemporaryDirectory() as folder, running(source), running(local):
        bench = Bench(source, local, Path(folder), options)
        bench.set_up()
        with ExitStack() as stack:
            archiver = stack.enter_context(
                process([sys.executable, str(MANAGE), "archive_changes", "-v", "0"], bench.production)
            )
            daemon = stack.enter_context(
                process(
                    [sys.executable, str(MANAGE), "syncdata_start", "--interval", "1", "-v", "0"],
                    bench.machine,
                )
            )
            assert archiver is None and daemon is None
            sys.exit(0 if bench.measure() else 1)


@dataclass(slots=True)
class Bench:
    source: PostgresServer
    local: PostgresServer
    folder: Path
    options: argparse.Namespace
    changed: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)
    _may_change: threading.Event = field(default_factory=threading.Event)

    @property
    def production(self) -> Path:
        return self.folder / "production" / "syncdata.toml"

    @property
    def machine(self) -> Path:
        return self.folder / "local" / "syncdata.toml"

    def set_up(self) -> None:
        archive = self.folder / "archive"
        archive.mkdir()
        common = {"archive_backend": "local", "archive_dir": str(archive)}
        connection = {
            "pg_host": self.source.host,
            "pg_port": self.source.port,
            "pg_user": self.source.user,
            "pg_password": self.source.password,
            "pg_database": "postgres",
            "tables": TABLES,
            "rotate_seconds": 1,
            "verify_rows_per_second": self.options.verify_rate,
            "verify_days": 0,
        }
        write_config(self.production, common, connection)
        names = ("pg_host", "pg_port", "pg_user", "pg_password")
        here = {name: getattr(self.local, name.removeprefix("pg_")) for name in names}
        write_config(self.machine, common | here | {"pg_database": "postgres"})
        for server in (self.source, self.local):
            with server.connect(autocommit=True) as session:
                for table in TABLES:
                    session.execute(ACCOUNT.format(table=table))
        manage(self.production, "setup_logical_replication")
        with self.source.connect(autocommit=True) as session:
            for table in TABLES:
                rows = self.options.rows if table == LARGE else self.options.rows // 100
                values = ACCOUNT_ROW.format(id="n")
                session.execute(f"INSERT INTO {table} SELECT {values} FROM generate_series(1, {rows}) n")
                session.execute(f"VACUUM ANALYZE {table}")
        manage(self.production, "archive_changes", "--snapshot")
        manage(self.machine, "migrate", "-v", "0")
        manage(self.machine, "add_tables", *TABLES)

    def measure(self) -> bool:
        changing = threading.Thread(target=self.change)
        changing.start()
        try:
            self.wait_for(lambda: self.state_of(LARGE) == "active", 600)
            self._may_change.set()
            started, cpu = time.monotonic(), 0.0
            while time.monotonic() - started < self.options.minutes * 60:
                time.sleep(1)
                cpu = max(cpu, self.verifier_cpu_s())
            took_s = time.monotonic() - started
            is_good = self.report(took_s, cpu)
            for name, statement in TAMPERINGS.items():
                is_good = self.tamper(name, statement) and is_good
            self._is_over.set()
            changing.join()
            are_equal = self.wait_for(lambda: self.rows_in(self.source) == self.rows_in(self.local), 120)
            print(
                f"in the end the rows of all tables are {'equal' if are_equal else 'DIFFERENT'}", flush=True
            )
            return is_good and are_equal
        finally:
            self._is_over.set()
            self._may_change.set()
            changing.join()

    def change(self) -> None:
        """Change rows of all tables, so many a second: three of five updates, inserts and deletes."""
        dice = random.Random(1)
        self._may_change.wait()
        started, begun = time.monotonic(), 0
        with self.source.connect(autocommit=True) as session:
            while not self._is_over.is_set():
                time.sleep(max(0.0, started + begun * TRANSACTION / self.options.rate - time.monotonic()))
                begun += 1
                with session.transaction(), session.pipeline():
                    for _ in range(TRANSACTION):
                        self.change_one(session, dice, begun)
                self.changed += TRANSACTION

    def change_one(self, session: psycopg.Connection[Any], dice: random.Random, number: int) -> None:
        table = dice.choice(TABLES)
        most = self.options.rows if table == LARGE else self.options.rows // 100
        row = dice.randint(1, most)
        match dice.randint(1, 5):
            case 1:
                new = most + number * TRANSACTION + dice.randint(0, TRANSACTION - 1)
                values = ACCOUNT_ROW.format(id=new)
                session.execute(f"INSERT INTO {table} SELECT {values} ON CONFLICT DO NOTHING")
            case 2:
                session.execute(
                    f"DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table}) AND id > {most}"
                )
            case _:
                session.execute(
                    f"UPDATE {table} SET amount = amount + 1, updated_at = now() WHERE id = {row}"
                )

    def report(self, took_s: float, cpu_s: float) -> bool:
        status = json.loads(manage(self.production, "archive_changes", "--status", "--json", fails=True))
        verification = status["verification"]
        with self.local.connect() as session:
            kept = session.execute(
                "SELECT coalesce(max(round), 0), count(*) FILTER (WHERE is_equal IS NULL)"
                " FROM data_sync_verifications"
            ).fetchone()
        assert kept is not None
        alarms = self.alarms()
        print(
            f"{self.changed / took_s:.0f} changes/s for {took_s:.0f} s; round {verification['round']} in"
            f" production ({kept[0]} here, {kept[1]} not compared); {verification['unproved']} of"
            f" {verification['chunks']} chunks of it unproved; longest read"
            f" {verification['longest_ms']} ms; the verifier's server process:"
            f" {100 * cpu_s / took_s:.1f} % of a core; false alarms: {len(alarms)} {alarms}",
            flush=True,
        )
        return not alarms and kept[0] > 0

    def tamper(self, name: str, statement: str) -> bool:
        victim = random.Random(name).randint(1, self.options.rows)
        with self.local.connect(autocommit=True) as session:
            session.execute("SET session_replication_role = replica")
            session.execute(statement, [victim])
        began = time.monotonic()
        is_found = self.wait_for(lambda: LARGE in self.alarms(), 900)
        print(
            f"{name}: {f'found after {time.monotonic() - began:.0f} s' if is_found else 'NOT FOUND'}",
            flush=True,
        )
        manage(self.machine, "resync", LARGE, "-v", "0")
        is_over = self.wait_for(lambda: not self.alarms(), 300)
        if not is_over:
            print(f"{LARGE} still differs after a resync", flush=True)
        return is_found and is_over

    def rows_in(self, server: PostgresServer) -> list[Any]:
        """Return number and hash of the rows of each table."""
        select = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {} t"
        with server.connect(options=SETTINGS_OF_TEXT) as session:
            return [session.execute(select.format(table)).fetchone() for table in TABLES]

    def alarms(self) -> list[str]:
        with self.local.connect() as session:
            rows = session.execute(
                "SELECT table_name, marks::text FROM data_sync_checkpoints WHERE marks::text LIKE '%differs%'"
            ).fetchall()
        return [row[0] for row in rows]

    def state_of(self, table: str) -> str:
        listed = json.loads(manage(self.machine, "list_tables", "--json"))
        tables = listed["tables"] if isinstance(listed, dict) else listed
        return next((info["state"] for info in tables if info["table_name"] == table), "")

    def verifier_cpu_s(self) -> float:
        """Return the seconds of CPU of the process that reads rows for checks in production's place."""
        with self.source.connect() as session:
            row = session.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'syncdata-verifier'"
            ).fetchone()
        if row is None:
            return 0.0
        fields = Path(f"/proc/{row[0]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND

    def wait_for(self, condition: Callable[[], bool], most_s: float) -> bool:
        deadline = time.monotonic() + most_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
        return True


def write_config(path: Path, keys: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> None:
    path.parent.mkdir()
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    if source is not None:
        lines += ["[source]", *(f"{key} = {json.dumps(value)}" for key, value in source.items())]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)


def manage(config: Path, *arguments: str, fails: bool = False) -> str:
    """Run a command; return its output. Ends where it fails, unless it may (*fails*)."""
    command = [sys.executable, str(MANAGE), *arguments]
    environment = {**os.environ, "DATA_SYNC_CONFIG": str(config)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and not fails:
        sys.exit(f"{arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
