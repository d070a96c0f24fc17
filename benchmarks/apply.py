"""Measure the whole local side: change files in, rows in PostgreSQL, on a server that syncs to disk.

    python -m benchmarks.apply [--records N] [--runs N] [--batch-records N] [--batch-bytes N] [W1 W2 W3]

W1: inserts, transactions of 100. W2: on N * 0.4 rows, 60 % updates, 25 % inserts, 15 % deletes, hot keys,
transactions of 5 to 15. W3: updates spread over N rows, transactions of 10. Each run is
``manage.py syncdata_start --once`` in a process of its own; its rate is without Django's start, its peak
memory with it. Beside it, in the same run, COPY of N rows into the empty indexed table: the ratio to that
is what moves least from machine to machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syncsite.demo.postgres import SETTINGS, PostgresServer, embedded_binaries

MANAGE = Path(__file__).parents[1] / "manage.py"
DURABLE = SETTINGS | {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "wal_level": "replica",
}
TABLE = """
CREATE TABLE account (id bigint PRIMARY KEY, customer_id int, status text, amount numeric(12,2), note text,
    tags jsonb, created_at timestamptz, updated_at timestamptz);
CREATE INDEX ON account (customer_id);
"""
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3"])
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-records", type=int)
    parser.add_argument("--batch-bytes", type=int)
    options = parser.parse_args()
    server = PostgresServer(binaries=embedded_binaries(), settings=DURABLE)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for workload in options.workloads:
                measure(server, Path(folder), workload, options)
    finally:
        server.stop()


def measure(server: PostgresServer, folder: Path, workload: str, options: argparse.Namespace) -> None:
    archive = folder / workload
    archive.mkdir()
    size_bytes = write_file(archive / "changes_20260205_103000.json", WORKLOADS[workload], options.records)
    rates, references, peaks = [], [], []
    for run in range(options.runs):
        references.append(options.records / copy_time(server, options.records))
        seconds, peak = sync_once(server, folder, archive, workload, options, f"run_{workload.lower()}_{run}")
        rates.append(options.records / seconds)
        peaks.append(peak)
    rate, reference = statistics.median(rates), statistics.median(references)
    print(
        f"{workload}: {size_bytes / 1e6:.0f} MB, {rate / 1000:.0f}k records/s"
        f" ({', '.join(f'{r / 1000:.0f}' for r in rates)}),"
        f" COPY {reference / 1000:.0f}k rows/s, ratio {rate / reference:.2f}, peak {max(peaks):.0f} MiB",
        flush=True,
    )


def sync_once(
    server: PostgresServer,
    folder: Path,
    archive: Path,
    workload: str,
    options: argparse.Namespace,
    database: str,
) -> tuple[float, float]:
    """Return the seconds of one sync and the peak memory of its process in MiB."""
    with server.connect(autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    keys: dict[str, Any] = {
        "archive_backend": "local",
        "archive_dir": str(archive),
        "pg_host": server.host,
        "pg_port": server.port,
        "pg_user": server.user,
        "pg_password": server.password,
        "pg_database": database,
    }
    keys |= {k: v for k in ("batch_records", "batch_bytes") if (v := getattr(options, k))}
    config = folder / "syncdata.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    config.chmod(0o600)
    manage(config, "migrate", "-v", "0")
    with server.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
        fill(connection, PREFILLED[workload](options.records))
        connection.execute("INSERT INTO tables_to_sync (table_name) VALUES ('account')")
        connection.execute("CHECKPOINT")
    peak = manage(config, "syncdata_start", "--once", "-v", "0")
    with server.connect(database, autocommit=True) as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM last_sync_at - started_at)::float, records_synced FROM data_sync_runs"
        ).fetchone()
        assert row is not None and row[1] == options.records, "every record must be applied"
    with server.connect(autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return row[0], peak


def manage(config: Path, *arguments: str) -> float:
    """Run a management command; return its process's peak memory in MiB."""
    command = [sys.executable, str(MANAGE), *arguments]
    environment = {**os.environ, "DATA_SYNC_CONFIG": str(config)}
    process = subprocess.Popen(command, env=environment)
    peak = 0.0
    # Not the exit's rusage: that counts this process's memory, too, which the child had until its exec.
    while process.poll() is None:
        peak = max(peak, _peak_mebibytes(process.pid))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed")
    return peak


def _peak_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def copy_time(server: PostgresServer, rows: int) -> float:
    """Return the seconds that COPY of *rows* rows, values made ready before, takes into the empty table."""
    lines = [text_row(n) for n in range(rows)]
    blocks = ["".join(lines[n : n + 1000]) for n in range(0, rows, 1000)]
    with server.connect(autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS account; {TABLE}")
        started = time.monotonic()
        with connection.cursor().copy("COPY account FROM STDIN") as copy:
            for block in blocks:
                copy.write(block)
        seconds = time.monotonic() - started
        connection.execute("DROP TABLE account")
    return seconds


def fill(connection: Any, rows: int) -> None:
    with connection.cursor().copy("COPY account FROM STDIN") as copy:
        for n in range(rows):
            copy.write(text_row(n))
    connection.execute("ANALYZE account")


def text_row(n: int) -> str:
    return "\t".join(str(value) for value in row(n, random.Random(n)).values()) + "\n"


def row(key: int, dice: random.Random) -> dict[str, Any]:
    return {
        "id": key,
        "customer_id": dice.randrange(100_000),
        "status": dice.choice(WORDS),
        "amount": f"{dice.randrange(10**8)}.{dice.randrange(100):02d}",
        "note": " ".join(dice.choices(WORDS, k=10)),
        "tags": f'{{"a": {dice.randrange(1000)}, "b": ["{dice.choice(WORDS)}"]}}',
        "created_at": "2026-02-05 10:30:00.123456+00",
        "updated_at": f"2026-02-05 10:{dice.randrange(60):02d}:{dice.randrange(60):02d}.5+00",
    }


def write_file(path: Path, workload: Any, records: int) -> int:
    """Write *records* records as the predecessor's archiver does; return the file's size in bytes."""
    dice = random.Random(5)
    with path.open("w") as file:
        for number, (transaction, op, key) in enumerate(workload(records, dice)):
            moment = f"2026-02-05 {transaction // 3_600_000 % 24:02d}:{transaction // 60_000 % 60:02d}"
            record: dict[str, Any] = {"table": "account", "op": op}
            if op != "DELETE":
                record["data"] = row(key, dice)
            if op != "INSERT":
                record["old_keys"] = {"id": key}
            record["lsn"] = f"0/{number * 64:X}"
            record["ts"] = f"{moment}:{transaction // 1000 % 60:02d}.{transaction % 1000:03d}+00"
            # An amount is a JSON number, digit for digit.
            text = json.dumps(record, separators=(",", ":"))
            if op != "DELETE":
                amount = record["data"]["amount"]
                text = text.replace(f'"amount":"{amount}"', f'"amount":{amount}')
            file.write(text + "\n")
    return path.stat().st_size


def inserts(records: int, dice: random.Random) -> Iterator[tuple[int, str, int]]:
    return ((n // 100, "INSERT", n) for n in range(records))


def mixed(records: int, dice: random.Random) -> Iterator[tuple[int, str, int]]:
    alive = list(range(int(records * 0.4)))
    next_key, transaction, left = len(alive), 0, 0
    for _ in range(records):
        if not left:
            transaction, left = transaction + 1, dice.randint(5, 15)
        left -= 1
        luck = dice.random()
        position = min(int(dice.paretovariate(0.5)) - 1, len(alive) - 1)
        if luck < 0.25:
            alive.append(next_key)
            yield transaction, "INSERT", next_key
            next_key += 1
        elif luck < 0.85:
            yield transaction, "UPDATE", alive[position]
        else:
            position = dice.randrange(len(alive))
            alive[position], alive[-1] = alive[-1], alive[position]
            yield transaction, "DELETE", alive.pop()


def spread_updates(records: int, dice: random.Random) -> Iterator[tuple[int, str, int]]:
    return ((n // 10, "UPDATE", dice.randrange(records)) for n in range(records))


WORKLOADS = {"W1": inserts, "W2": mixed, "W3": spread_updates}
PREFILLED = {"W1": lambda n: 0, "W2": lambda n: int(n * 0.4), "W3": lambda n: n}

if __name__ == "__main__":
    main()
