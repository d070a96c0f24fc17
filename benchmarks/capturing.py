"""From a slot's changes to a file: the archiver, beside pg_recvlogical, which writes what the server sends.

    python -m benchmarks.capturing JOB

archives what the JSON text JOB names, in a process of its own, and prints the seconds without its start.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from psycopg.conninfo import make_conninfo

from benchmarks.figures import Figures, run, server_cpu_s
from benchmarks.source import PUBLICATION, Source
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.settings import CaptureSettings
from syncdata.management.interpreter import tune_interpreter


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


def archive(source: Source, records: int) -> Figures:
    """Let the archiver, with its default settings, put all changes into an archive."""
    folder = Path(tempfile.mkdtemp(dir=source.folder))
    job = {
        "params": source.server.params(source.database),
        "slot_name": source.copy_slot(),
        "publication": PUBLICATION,
        "spool_dir": str(folder / "spool"),
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
    settings = CaptureSettings(**json.loads(job))
    settings = replace(settings, spool_dir=Path(settings.spool_dir))
    directory = settings.spool_dir.with_name("archive")
    directory.mkdir()
    start_cpu_s, started = time.process_time(), time.monotonic()
    Archiver(settings, lambda: open_archive(LocalSettings(directory=directory))).run_once(threading.Event())
    print(time.monotonic() - started, start_cpu_s)


if __name__ == "__main__":
    main(sys.argv[1])
