"""Whole tables: a snapshot and the first load from it, beside pg_dump and pg_restore of the same tables."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from benchmarks.figures import Figures, Usage, run, server_cpu_s
from benchmarks.replay import Target
from benchmarks.servers import drop_database, execute, make_database
from benchmarks.source import Source
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.chain import load_chain
from syncdata.capture.snapshot import take_snapshots
from syncdata.changes.names import TableName
from syncsite.demo.postgres import PostgresServer


def take(source: Source, directory: Path, rows: int) -> Figures:
    """Put a snapshot of all tables into the archive *directory*; the source has been archived before."""
    spool = source.folder / "spool"
    chain = load_chain(spool)
    assert chain is not None
    settings = source.capture_settings(chain.slot, spool)
    started, cpu_s, before_s = time.monotonic(), time.process_time(), server_cpu_s(source.server)
    take_snapshots(
        settings,
        lambda: open_archive(LocalSettings(directory=directory)),
        chain,
        [TableName.parse(table) for table in source.workload.tables],
        stop=threading.Event(),
    )
    return Figures(
        records=rows,
        seconds=time.monotonic() - started,
        client_s=time.process_time() - cpu_s,
        source_s=server_cpu_s(source.server) - before_s,
    )


def dump(source: Source, path: Path, rows: int) -> Figures:
    """`pg_dump -Fc` of all tables into the file *path*."""
    before_s, started = server_cpu_s(source.server), time.monotonic()
    usage = _tool(source.server, "pg_dump", "-Fc", f"--file={path}", "--schema=public", source.database)
    return Figures(
        records=rows,
        seconds=time.monotonic() - started,
        client_s=usage.cpu_s,
        source_s=server_cpu_s(source.server) - before_s,
        peak_mib=usage.peak_mib,
    )


def restore(target: Target, path: Path, rows: int, jobs: int) -> Figures:
    """`pg_restore` of the dump *path* into an empty database, *jobs* tables at once."""
    name = "bench_restored"
    make_database(target.server, name)
    try:
        execute(target.server, name, "DROP SCHEMA public", "CHECKPOINT")
        before_s, started = server_cpu_s(target.server), time.monotonic()
        usage = _tool(target.server, "pg_restore", f"--jobs={jobs}", f"--dbname={name}", str(path))
        seconds = time.monotonic() - started
        server_s = server_cpu_s(target.server) - before_s
        target.check(name)
    finally:
        drop_database(target.server, name)
    return Figures(
        records=rows, seconds=seconds, client_s=usage.cpu_s, server_s=server_s, peak_mib=usage.peak_mib
    )


def load(target: Target, directory: Path, rows: int) -> tuple[Figures, Figures]:
    """Begin all tables, which are empty, with the newest snapshots of the archive *directory*, and then
    resync them all; return what each took."""
    with target.fresh() as database:
        tables = ", ".join(target.source.workload.tables)
        execute(target.server, database, f"TRUNCATE {tables}", "CHECKPOINT")
        config = target.write_config(database, {"archive_dir": str(directory)})
        figures = []
        for arguments in (("syncdata_start", "--once"), ("resync", "--all")):
            figures.append(target.timed(config, rows, *arguments))
            target.check(database)
    return figures[0], figures[1]


def _tool(server: PostgresServer, program: str, *arguments: str) -> Usage:
    """Run one of PostgreSQL's programs against *server*."""
    environment = {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
        "PGPASSWORD": server.password,
    }
    return run([str(server.binaries / program), *arguments], os.environ | environment)
