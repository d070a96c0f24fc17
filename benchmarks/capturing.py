"""From a slot's changes to a file: the archiver, beside pg_recvlogical, which writes what the server sends.

    python -m benchmarks.capturing JOB

archives what the JSON text JOB names, in a process of its own, and prints the seconds without its start.

    python -m benchmarks.capturing --masked [--records N] [--runs N]

measures what a privacy policy costs that masks five columns of eight: with and without take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from psycopg.conninfo import make_conninfo

from benchmarks.figures import Figures, run, server_cpu_s
from benchmarks.servers import running_servers
from benchmarks.source import PUBLICATION, Source, new_source
from benchmarks.workloads import Workload
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings
from syncdata.management.interpreter import tune_interpreter
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import Policy, parse_policy

# People, of whom five columns in eight are masked.
RULES = {
    "id": "keep",
    "email": "email",
    "full_name": "name",
    "phone": {"mask": "partial", "keep_end": 2},
    "birth_date": {"mask": "shift", "by": "id", "days": 30},
    "national_id": "token",
    "status": "keep",
    "amount": "keep",
}
_PERSON = (
    "n, 'person' || n || '@example.org', 'Ann Other ' || n % 5000, '+49 30 ' || 1000000 + n % 900000,"
    " date '1950-01-01' + (n % 20000)::int, 'X' || md5(n::text), 'active', n * 1.25"
)


def people(records: int) -> Workload:
    """Return the work that `RULES` are for: rows that are inserted, each unlike the others."""
    return Workload(
        name="masked",
        title="people are inserted, transactions of 10",
        tables=["person"],
        schema=[
            "CREATE TABLE person (id bigint PRIMARY KEY, email text UNIQUE, full_name text, phone text,"
            " birth_date date, national_id varchar(40), status text, amount numeric(12,2))"
        ],
        first_rows=[],
        changes=(
            f"FOR i IN 0 .. {records // 10 - 1} LOOP INSERT INTO person SELECT {_PERSON}"
            " FROM generate_series(i * 10, i * 10 + 9) n; COMMIT; END LOOP;"
        ),
    )


def receive(source: Source, records: int) -> Figures:
    """Let pg_recvlogical write all changes into a file, and flush it."""
    server, slot = source.server, source.copy_slot()
    target = source.folder / slot
    params = server.params(source.database)
    environment = os.environ | {"PGPASSWORD": params.pop("password")}
    command = [
        str(server.binaries / "pg_recvlogical"),
        *("--start", "--no-loop", f"--slot={slot}", f"--endpos={source.end_lsn}", f"--file={target}"),
        *("-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}"),
        f"--dbname={make_conninfo(**params)}",
    ]
    before_s, started = server_cpu_s(server), time.monotonic()
    usage = run(command, environment)
    seconds = time.monotonic() - started
    server_s = server_cpu_s(server) - before_s
    target.unlink()
    return Figures(
        records=records, seconds=seconds, client_s=usage.cpu_s, source_s=server_s, peak_mib=usage.peak_mib
    )


def archive(source: Source, records: int, *, is_masked: bool = False) -> Figures:
    """Let the archiver, with its default settings, put all changes into an archive."""
    folder = Path(tempfile.mkdtemp(dir=source.folder))
    job = {
        "params": source.server.params(source.database),
        "slot_name": source.copy_slot(),
        "publication": PUBLICATION,
        "spool_dir": str(folder / "spool"),
        "is_masked": is_masked,
    }
    before_s = server_cpu_s(source.server)
    usage = run([sys.executable, "-m", "benchmarks.capturing", json.dumps(job)])
    server_s = server_cpu_s(source.server) - before_s
    shutil.rmtree(folder)
    seconds, start_cpu_s = map(float, usage.output.split())
    return Figures(
        records=records,
        seconds=seconds,
        client_s=usage.cpu_s - start_cpu_s,
        source_s=server_s,
        peak_mib=usage.peak_mib,
    )


def main(job: str) -> None:
    tune_interpreter()
    keys = json.loads(job)
    policy = masking_policy() if keys.pop("is_masked", False) else None
    settings = CaptureSettings(**keys | {"policy": policy})
    settings = replace(settings, spool_dir=Path(settings.spool_dir))
    directory = settings.spool_dir.with_name("archive")
    directory.mkdir()
    start_cpu_s, started = time.process_time(), time.monotonic()
    Archiver(settings, lambda: open_archive(LocalSettings(directory=directory))).run_once(threading.Event())
    print(time.monotonic() - started, start_cpu_s)


def masking_policy() -> Policy:
    policy, problems = parse_policy({"person": RULES}, key=MaskKey(bytes(range(32))))
    assert not problems
    return policy


def compare(records: int, runs: int) -> None:
    """Print what a record costs the archiver as it is, and masked: medians, taken in turns."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_servers() as servers,
        new_source(servers.source, people(records), Path(folder)) as source,
    ):
        source.work()
        found: dict[bool, list[Figures]] = {False: [], True: []}
        for is_masked in [False, True] * runs:
            found[is_masked].append(archive(source, records, is_masked=is_masked))
    for is_masked, name in ((False, "as it is"), (True, "masked")):
        cpu_us = statistics.median((one.client_s or 0) / records * 1e6 for one in found[is_masked])
        rate = statistics.median(one.rate for one in found[is_masked])
        print(f"{name}: {cpu_us:.2f} us of CPU a record, {rate:,.0f} records/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--masked"]:
        parser = argparse.ArgumentParser(prog="python -m benchmarks.capturing --masked")
        parser.add_argument("--records", type=int, default=500_000)
        parser.add_argument("--runs", type=int, default=3)
        options = parser.parse_args(sys.argv[2:])
        compare(options.records, options.runs)
    else:
        main(sys.argv[1])
