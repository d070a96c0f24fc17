"""A file system in memory for the data of the tests' servers.

On a disk, the system takes most of the time of a test to make its database and to remove it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

MEMORY = Path("/dev/shm")
# A run takes up to two GiB for each of its workers.
ROOM_BYTES = 8 << 30
# By then, a run that made something has ended, also one whose processes we cannot see from here.
LONG_AGO_S = 6 * 3600


def roomy_memory() -> Path | None:
    """Return the file system in memory, if it and the memory have room for the servers of a run."""
    try:
        free = shutil.disk_usage(MEMORY).free
        available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # there is none on this system
        return None
    is_roomy = available is not None and min(free, int(available[1]) * 1024) >= ROOM_BYTES
    if not is_roomy or not os.access(MEMORY, os.W_OK):
        return None
    remove_what_killed_runs_left(MEMORY)
    return MEMORY


def remove_what_killed_runs_left(memory: Path) -> None:
    """Give back the memory of servers whose test run is gone since long."""
    for home in memory.glob("syncdata-postgres-*"):
        process = home.name.split("-")[2]
        if (
            process.isdigit()
            and not Path("/proc", process).exists()
            and time.time() - home.stat().st_mtime > LONG_AGO_S
        ):
            shutil.rmtree(home, ignore_errors=True)
