"""Measure how long a commit at production takes to be visible in the local database.

    python -m benchmarks.latency [--seconds N] [--rate N] [--rotate S] [--interval S]

Archiver and daemon run in processes of their own, as they do in use, between two servers that sync to disk,
with an archive on a local disk. Every transaction inserts 20 rows; each is timed from the moment when its
COMMIT has returned to the first look, 100 of them a second, that sees its last row. Prints the median and the
99th percentile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import MANAGE, manage
from benchmarks.servers import DURABLE
from benchmarks.workloads import ACCOUNT_ROW
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings
from syncdata.daemon import stop_on_signals
from syncsite.demo.postgres import PostgresServer, embedded_binaries

ROWS = 20  # a transaction
LOOK_EVERY_S = 0.01
WARM_UP_S = 3.0
DRAIN_S = 30.0
TABLE = """
CREATE TABLE account (id bigint PRIMARY KEY, customer_id int, status text, amount numeric(12,2), note text,
    tags jsonb, created_at timestamptz, updated_at timestamptz)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=2_000, help="changes a second")
    parser.add_argument("--rotate", type=float, default=1.0)
    parser.add_argument("--interval", type=int, default=1)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        archive(json.loads(options.job))
        return
    source = PostgresServer(binaries=embedded_binaries(), settings=DURABLE | {"wal_level": "logical"})
    local = PostgresServer(binaries=embedded_binaries(), settings=DURABLE)
    with tempfile.TemporaryDirectory() as folder, running(source), running(local):
        latencies = sorted(measure(source, local, Path(folder), options))
    ninety_ninth = latencies[int(len(latencies) * 0.99)]
    print(
        f"{len(latencies) * ROWS / options.seconds:.0f} changes/s, rotation {options.rotate:g} s, interval"
        f" {options.interval} s: p50 {statistics.median(latencies):.2f} s, p99 {ninety_ninth:.2f} s,"
        f" longest {latencies[-1]:.2f} s"
    )


def measure(
    source: PostgresServer, local: PostgresServer, folder: Path, options: argparse.Namespace
) -> list[float]:
    """Return the seconds that each transaction took, without those of the warm-up."""
    config = set_up(source, local, folder)
    job = {
        "params": source.params("postgres"),
        "slot_name": "bench",
        "publication": "bench",
        "spool_dir": str(folder / "spool"),
        "archive_dir": str(folder / "archive"),
        "rotate_s": options.rotate,
    }
    archiver = [sys.executable, "-m", "benchmarks.latency", "--job", json.dumps(job)]
    daemon = [sys.executable, str(MANAGE), "syncdata_start", "--interval", str(options.interval), "-v", "0"]
    with process(archiver, config), process(daemon, config):
        looks: list[tuple[float, int]] = []
        is_over = threading.Event()
        watcher = threading.Thread(target=look, args=(local, looks, is_over))
        watcher.start()
        try:
            change(source, range(1), options.rate)
            wait_for(looks, ROWS)  # archiver and daemon are there
            transactions = int((options.seconds + WARM_UP_S) * options.rate / ROWS)
            commits = change(source, range(1, transactions), options.rate)
            wait_for(looks, commits[-1][1])
        finally:
            is_over.set()
            watcher.join()
    seen = iter(looks)
    moment, visible = next(seen)
    latencies = []
    for committed, last_id in commits:
        while visible < last_id:
            moment, visible = next(seen)
        latencies.append(moment - committed)
    return latencies[int(WARM_UP_S * options.rate / ROWS) :]


def set_up(source: PostgresServer, local: PostgresServer, folder: Path) -> Path:
    """Return the configuration of the local side."""
    (folder / "archive").mkdir()
    with source.connect(autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute("CREATE PUBLICATION bench FOR TABLE account")
        connection.execute("SELECT pg_create_logical_replication_slot('bench', 'pgoutput')")
    keys = {
        "archive_backend": "local",
        "archive_dir": str(folder / "archive"),
        "pg_host": local.host,
        "pg_port": local.port,
        "pg_user": local.user,
        "pg_password": local.password,
        "pg_database": "postgres",
    }
    config = folder / "syncdata.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    config.chmod(0o600)
    manage(config, "migrate", "-v", "0")
    with local.connect(autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute("INSERT INTO tables_to_sync (table_name) VALUES ('account')")
    return config


def wait_for(looks: list[tuple[float, int]], last_id: int) -> None:
    deadline = time.monotonic() + DRAIN_S
    while not looks or looks[-1][1] < last_id:
        if time.monotonic() > deadline:
            sys.exit("not all rows have arrived")
        time.sleep(LOOK_EVERY_S)


def change(source: PostgresServer, transactions: range, rate: int) -> list[tuple[float, int]]:
    """Insert rows, *rate* a second; return for each transaction when it was committed, and its last id."""
    commits = []
    values = ACCOUNT_ROW.format(id="n").replace("%", "%%")
    insert = f"INSERT INTO account SELECT {values} FROM generate_series(%s::bigint, %s) n"
    with source.connect(autocommit=True) as connection:
        started = time.monotonic()
        for number in transactions:
            due_s = started + (number - transactions[0]) * ROWS / rate
            time.sleep(max(0.0, due_s - time.monotonic()))
            last_id = (number + 1) * ROWS
            connection.execute(insert, (last_id - ROWS + 1, last_id))
            commits.append((time.monotonic(), last_id))
    return commits


def look(local: PostgresServer, looks: list[tuple[float, int]], is_over: threading.Event) -> None:
    """Note again and again which id is the greatest that is visible."""
    with local.connect(autocommit=True) as connection:
        while not is_over.wait(LOOK_EVERY_S):
            row = connection.execute("SELECT coalesce(max(id), 0) FROM account").fetchone()
            assert row is not None
            looks.append((time.monotonic(), row[0]))


def archive(job: dict[str, Any]) -> None:
    """Be the archiver until a signal comes."""
    target = LocalSettings(directory=Path(job.pop("archive_dir")))
    settings = CaptureSettings(**job | {"spool_dir": Path(job["spool_dir"])})
    with stop_on_signals() as stop:
        Archiver(settings, lambda: open_archive(target)).run_loop(stop)


@contextmanager
def running(server: PostgresServer) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextmanager
def process(command: list[str], config: Path) -> Iterator[None]:
    started = subprocess.Popen(command, env={**os.environ, "DATA_SYNC_CONFIG": str(config)})
    try:
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait()


if __name__ == "__main__":
    main()
