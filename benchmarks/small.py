"""The daemon with next to nothing to do: files of one record each, then none at all. CPU, not elapsed time.

It runs as `manage.py syncdata_start` does for days: what its start takes is left out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.archives import Stream
from benchmarks.figures import (
    MANAGE,
    Figures,
    manage_environment,
    peak_memory_mib,
    process_cpu_s,
    server_cpu_s,
)
from benchmarks.replay import Target
from syncsite.demo.postgres import dies_with_parent

A_FILE, AT_REST = "a file", "at rest"

_LOOK_EVERY_S = 0.05
_GIVE_UP_S = 120.0


def measure(target: Target, stream: Stream, *, files: int, idle_s: float) -> tuple[Figures, Figures]:
    """Return what *files* files of one record take, which come one after the other, and then *idle_s* seconds
    without any; `seconds` are those of CPU, of client and server together, and of the clock."""
    waiting, archive = target.folder / "waiting", target.folder / "one_by_one"
    for directory in (waiting, archive):
        directory.mkdir()
    first, *others = stream.write_one_record_each(waiting, archive, files + 1)
    with target.fresh() as database:
        config = target.write_config(database, {"archive_dir": str(archive)}, data_sync_freq=1)
        with _daemon(config) as pid, target.server.connect(database, autocommit=True) as connection:

            def take(path: Path, done: int) -> None:
                path.rename(archive / path.name)
                give_up_at = time.monotonic() + _GIVE_UP_S
                while time.monotonic() < give_up_at:
                    time.sleep(_LOOK_EVERY_S)
                    row = connection.execute("SELECT sum(records_synced) FROM data_sync_runs").fetchone()
                    if row and row[0] == done:
                        return
                raise RuntimeError(f"{path.name} was not applied")

            def cpu_s() -> tuple[float, float]:
                return process_cpu_s(pid), server_cpu_s(target.server)

            take(first, 1)  # finds everything new
            start = cpu_s()
            for done, path in enumerate(others, 2):
                take(path, done)
            busy = cpu_s()
            time.sleep(idle_s)
            idle = cpu_s()
            peak_mib = peak_memory_mib(pid)
    client_s, server_s = (after - before for before, after in zip(start, busy, strict=True))
    one_by_one = Figures(
        records=files,
        seconds=client_s + server_s,
        client_s=client_s,
        server_s=server_s,
        peak_mib=peak_mib,
    )
    client_s, server_s = (after - before for before, after in zip(busy, idle, strict=True))
    at_rest = Figures(records=0, seconds=idle_s, client_s=client_s, server_s=server_s, peak_mib=peak_mib)
    return one_by_one, at_rest


@contextmanager
def _daemon(config: Path) -> Iterator[int]:
    """The process id of a daemon that runs while the block does."""
    process = subprocess.Popen(
        [*dies_with_parent("TERM"), sys.executable, str(MANAGE), "syncdata_start", "-v", "0"],
        env=manage_environment(config),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)
