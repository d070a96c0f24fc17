"""Measure the production side: a slot's backlog in, change files in a local archive out, synced to disk.

    python -m benchmarks.capture [--records N] [--runs N] [W1 W2 W3]

W1: inserts, transactions of 100. W2: on N * 0.4 rows, 60 % updates, 25 % inserts, 15 % deletes, hot keys,
transactions of 10. W3: updates spread over N rows, transactions of 10. One backlog is read again and again,
each time from a copy of its slot, in turns by

- ``pg_recvlogical``: writes pgoutput's messages to a file and flushes it;
- bare: our stream and decoder, nothing written;
- archiver: ``run_once`` with the default settings, in a process of its own, without that process's start.

Rates are medians; the ratios to ``pg_recvlogical`` move least from machine to machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from benchmarks.apply import DURABLE, TABLE
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.pgoutput import Decoder, RowChange
from syncdata.capture.replication import Keepalive, ReplicationConnection
from syncdata.capture.settings import CaptureSettings
from syncsite.demo.postgres import PostgresServer, embedded_binaries, system_binaries

PUBLICATION = "bench"
ROW = (
    "{id}, {id} % 1000, 'active', {id} * 1.25, repeat('some words ', 5) || {id},"
    " jsonb_build_object('n', {id}), now(), now()"
)
_slots = count(1)

# Each is a procedure's body: transactions that change the table, with the number of records as {n}.
WORKLOADS = {
    "W1": "FOR i IN 0 .. {n} / 100 - 1 LOOP INSERT INTO account SELECT " + ROW.format(id="n") + " FROM"
    " generate_series(i * 100 + 1, i * 100 + 100) n; COMMIT; END LOOP;",
    "W2": "FOR i IN 1 .. {n} / 10 LOOP FOR j IN 1 .. 10 LOOP"
    " k := 1 + floor(power(random(), 3) * {n} * 0.4); c := random();"
    " IF c < 0.6 THEN UPDATE account SET amount = amount + 1, updated_at = now() WHERE id = k;"
    " ELSIF c < 0.75 THEN DELETE FROM account WHERE id = k;"
    " ELSE INSERT INTO account SELECT " + ROW.format(id="({n} + i * 10 + j)") + "; END IF;"
    " END LOOP; COMMIT; END LOOP;",
    "W3": "FOR i IN 1 .. {n} / 10 LOOP FOR j IN 1 .. 10 LOOP k := 1 + floor(random() * {n});"
    " UPDATE account SET amount = amount + 1, status = 'changed' WHERE id = k;"
    " END LOOP; COMMIT; END LOOP;",
}
ROWS_BEFORE = {"W1": 0.0, "W2": 0.4, "W3": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=[*WORKLOADS])
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(archive(json.loads(options.job)))
        return
    binaries = [*system_binaries(), embedded_binaries()][0]
    server = PostgresServer(binaries=binaries, settings=DURABLE | {"wal_level": "logical"})
    server.start()
    try:
        print(f"{'records/s (thousands)':24}{'pg_recvlogical':>16}{'bare':>14}{'archiver':>14}")
        with tempfile.TemporaryDirectory() as folder:
            for workload in options.workloads:
                measure(server, Path(folder), workload, options)
    finally:
        server.stop()


def measure(server: PostgresServer, folder: Path, workload: str, options: argparse.Namespace) -> None:
    database = workload.lower()
    make_backlog(server, database, workload, options.records)
    ways: list[Callable[[str], float]] = [
        lambda slot: receive(server, database, folder, slot),
        lambda slot: read(server, database, slot)[0],
        lambda slot: archive_in_process(server, database, folder, slot),
    ]
    records = read(server, database, copy_slot(server, database))[1]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(options.runs):
        for way, times in zip(ways, seconds, strict=True):
            times.append(way(copy_slot(server, database)))
    rates = [records / statistics.median(times) for times in seconds]
    ratios = [f"{rate / 1000:.0f} ({rate / rates[0]:.2f})" for rate in rates[1:]]
    title = f"{workload}, {records} records"
    print(f"{title:24}{rates[0] / 1000:16.0f}{ratios[0]:>14}{ratios[1]:>14}", flush=True)


def make_backlog(server: PostgresServer, database: str, workload: str, records: int) -> None:
    with server.connect(autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")  # type: ignore[arg-type]
    statements = [
        TABLE,
        f"INSERT INTO account SELECT {ROW.format(id='n')}"
        f" FROM generate_series(1, {int(records * ROWS_BEFORE[workload])}) n",
        f"CREATE PUBLICATION {PUBLICATION} FOR TABLE account",
        f"SELECT pg_create_logical_replication_slot('backlog_{database}', 'pgoutput')",
        "CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ DECLARE k bigint; c float8;"
        f" BEGIN {WORKLOADS[workload].replace('{n}', str(records))} END $$",
        "SET synchronous_commit = off",
        "CALL work()",
        "CHECKPOINT",
    ]
    with server.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def copy_slot(server: PostgresServer, database: str) -> str:
    """Return the name of a new slot that stands where the backlog begins; those before it are dropped."""
    name = f"copy_{next(_slots)}"
    with server.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE slot_name LIKE 'copy%' AND active_pid IS NULL"
        )
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (f"backlog_{database}", name))
    return name


def receive(server: PostgresServer, database: str, folder: Path, slot: str) -> float:
    """Return the seconds that pg_recvlogical takes."""
    with server.connect(database, autocommit=True) as connection:
        end = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert end is not None
    target = folder / slot
    params = server.params(database)
    password = params.pop("password")
    command = [
        str(server.binaries / "pg_recvlogical"),
        *("--start", "--no-loop", f"--slot={slot}", f"--endpos={end[0]}", f"--file={target}"),
        *(
            "-o",
            "proto_version=1",
            "-o",
            f"publication_names={PUBLICATION}",
            f"--dbname={make_conninfo(**params)}",
        ),
    ]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PGPASSWORD": password})
    seconds = time.monotonic() - started
    target.unlink()
    return seconds


def read(server: PostgresServer, database: str, slot: str) -> tuple[float, int]:
    """Return the seconds that reading and decoding take, and the number of records."""
    decoder, records = Decoder(), 0
    started = time.monotonic()
    with ReplicationConnection(server.params(database)) as replication:
        end = replication.identify().wal_lsn
        replication.start(slot, PUBLICATION)
        while True:
            received = replication.read()
            if received is None:
                replication.wait(0.2)
            elif isinstance(received, Keepalive):
                if received.wal_end >= end:
                    break
            else:
                records += isinstance(decoder.decode(received.message), RowChange)
    return time.monotonic() - started, records


def archive_in_process(server: PostgresServer, database: str, folder: Path, slot: str) -> float:
    """Return the seconds that the archiver takes."""
    archive_dir = folder / f"archive_{slot}"
    archive_dir.mkdir()
    job = {
        "params": server.params(database),
        "slot_name": slot,
        "publication": PUBLICATION,
        "spool_dir": str(folder / f"spool_{slot}"),
        "archive_dir": str(archive_dir),
    }
    command = [sys.executable, "-m", "benchmarks.capture", "--job", json.dumps(job)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def archive(job: dict[str, Any]) -> float:
    target = LocalSettings(directory=Path(job.pop("archive_dir")))
    settings = CaptureSettings(**job | {"spool_dir": Path(job["spool_dir"])})
    started = time.monotonic()
    Archiver(settings, lambda: open_archive(target)).run_once(threading.Event())
    return time.monotonic() - started


if __name__ == "__main__":
    main()
