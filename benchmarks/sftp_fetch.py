"""Measure listing and fetching through a real OpenSSH server on loopback.

    python -m benchmarks.sftp_fetch [MEGABYTES]

Prints the rate of each fetch, the growth of this process's peak memory over all of them, and the time to
list 100,000 names.
"""

from __future__ import annotations

import datetime as dt
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from syncdata.archive.archive import open_archive
from tests.sshd import SshServer

RUNS = 5
NAMES = 100_000


def main(megabytes: int) -> None:
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        sys.exit("no OpenSSH server on this machine; install it: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = SshServer(program=program, folder=Path(folder))
        server.start()
        try:
            measure(server, megabytes)
        finally:
            server.stop()


def _name(number: int) -> str:
    moment = dt.datetime(2026, 1, 1) + dt.timedelta(seconds=number)
    return f"changes_{moment:%Y%m%d_%H%M%S}.json"


def measure(server: SshServer, megabytes: int) -> None:
    with (server.archive_dir / _name(0)).open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    archive = open_archive(server.settings(), spool_dir=server.folder)
    [large] = archive.discover(None)
    before_mib = peak_mib()
    for _ in range(RUNS):
        started = time.monotonic()
        archive.fetch(large).close()
        print(f"fetch: {megabytes / (time.monotonic() - started):.0f} MB/s")
    print(f"peak memory: {before_mib:.0f} MiB before, {peak_mib():.0f} MiB after")

    for number in range(1, NAMES):
        (server.archive_dir / _name(number)).touch()
    started = time.monotonic()
    found = archive.discover(_name(NAMES - 3))
    print(f"list: {len(found)} of {NAMES} names in {time.monotonic() - started:.2f} s")
    archive.close()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
