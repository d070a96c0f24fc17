"""What a way to do the work costs: seconds, CPU of the process and of the server, memory. Knows /proc.

The CPU of a server is that of its postmaster, of all processes it has now, and of those it had.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from syncsite.demo.postgres import PostgresServer

MANAGE = Path(__file__).parents[1] / "manage.py"
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_LOOK_EVERY_S = 0.01


class Figures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """*client_s* and *server_s* are seconds of CPU, *source_s* those of the server in production's place."""

    records: int
    seconds: float
    client_s: float | None = None
    server_s: float | None = None
    source_s: float | None = None
    peak_mib: float | None = None

    @property
    def rate(self) -> float:
        return self.records / self.seconds


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a process that has ended took, all told."""

    cpu_s: float
    peak_mib: float
    output: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run *command*; return what it took. Raises RuntimeError, with what it said, when it fails."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    peak_mib, status = 0.0, None
    # Not the exit's own peak: that counts this process's memory, too, which the child had until its exec.
    while status is None:
        peak_mib = max(peak_mib, peak_memory_mib(process.pid))
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        status = code if pid else None
        time.sleep(_LOOK_EVERY_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    with process.stdout:
        output = process.stdout.read().decode()
    if process.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{output}")
    return Usage(cpu_s=usage.ru_utime + usage.ru_stime, peak_mib=peak_mib, output=output)


def peak_memory_mib(pid: int) -> float:
    """Return the most memory that the process has had; 0 when it has ended."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        if found:
            return int(found[1]) / 1024
    return 0.0


def process_cpu_s(pid: int, *, with_ended_children: bool = False) -> float:
    """Return the seconds of CPU that the process has had; 0 when it has ended."""
    with suppress(OSError):
        fields = _stat(pid)
        return sum(map(int, fields[11:15] if with_ended_children else fields[11:13])) / _TICKS_A_SECOND
    return 0.0


def server_cpu_s(server: PostgresServer) -> float:
    """Return the seconds of CPU that all processes of *server* have had since its start."""
    postmaster = _postmaster(**server.params())
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(_stat(int(path.name))[1]) == postmaster:
                children.append(int(path.name))
    return process_cpu_s(postmaster, with_ended_children=True) + sum(map(process_cpu_s, children))


@lru_cache
def _postmaster(**params: Any) -> int:
    with psycopg.connect(**params) as connection:
        row = connection.execute(
            "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _stat(pid: int) -> list[str]:
    """Return the fields of the process from its state on; its name, which may hold blanks, is before them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def machine(server: PostgresServer) -> dict[str, str]:
    """Return what the figures depend on. No name of the machine is in it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    models = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    with server.connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": models[0] if models else platform.machine(),
        "memory": f"{pages / 2**30:.0f} GiB",
        "PostgreSQL": row[0].split()[0],
        "Python": platform.python_version(),
    }


def to_json(value: object) -> str:
    return json.dumps(msgspec.to_builtins(value), indent=1) + "\n"


def manage(config: Path, *arguments: str) -> Usage:
    """Run one of the project's commands with the configuration file *config*."""
    return run([sys.executable, str(MANAGE), *arguments], manage_environment(config))


def manage_environment(config: Path) -> dict[str, str]:
    return os.environ | {"DATA_SYNC_CONFIG": str(config), "ARCHIVE_SSH_CONFIG": "none"}
