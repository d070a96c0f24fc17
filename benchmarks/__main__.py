"""Measure syncdata beside PostgreSQL's own tools, on servers that flush to the disk.

    python -m benchmarks                       everything, medians of five runs
    python -m benchmarks --quick               a first impression
    python -m benchmarks W1 W3 --runs 3        some workloads

Two new servers stand in for production and the local machine. Each workload runs once in production; then our
reader, a native subscription and COPY take turns with the same changes, and after each the rows are compared
with production's. So do the archiver and pg_recvlogical, and first load and pg_restore.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import capturing, loading, small
from benchmarks.archives import Stream
from benchmarks.figures import Figures, machine
from benchmarks.replay import Target, new_target
from benchmarks.report import Result, tables, write
from benchmarks.servers import Servers, running_servers
from benchmarks.source import Source, new_source
from benchmarks.workloads import NAMES, workload
from tests.sshd import SshServer

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
CAPTURED = ("W1", "W2", "W3")
OVER_SFTP = ("W1", "W2", "W3")
LOADED = ("W1", "W4")
RECORDS, QUICK_RECORDS = 500_000, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", help="W1 to W8; all of them without any")
    parser.add_argument("--records", type=int, help=f"of W1; others have a share of it ({RECORDS:,})")
    parser.add_argument("--runs", type=int, help="how often each way is measured (5)")
    parser.add_argument("--quick", action="store_true", help=f"once, with {QUICK_RECORDS:,} records")
    parser.add_argument(
        "--postgres", metavar="VERSION", help="the system's, or 16 or 18, which need no system's"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    options = parser.parse_args()
    names = [name for name in NAMES if not options.workloads or name.partition("/")[0] in options.workloads]
    if not names or {*options.workloads} - {name.partition("/")[0] for name in NAMES}:
        parser.error(f"no such workload; there are {', '.join(NAMES)}")
    with running_servers(options.postgres) as servers:
        result = Result(machine=machine(servers.target))
        bench = Bench(
            servers,
            result,
            records=options.records or (QUICK_RECORDS if options.quick else RECORDS),
            runs=options.runs or (1 if options.quick else 5),
        )
        for name in names:
            bench.measure(name)
    print(tables(result))
    if options.write:
        write(result, PAGE)


Way = Callable[[], Figures]


class Bench:
    """Measures workloads on *servers*, and adds what they took to *result*."""

    def __init__(self, servers: Servers, result: Result, *, records: int, runs: int) -> None:
        self.servers = servers
        self.result = result
        self.records = records
        self.runs = runs

    def measure(self, name: str) -> None:
        work = workload(name, self.records)
        self.result.titles[name] = work.title
        started = time.monotonic()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = stack.enter_context(new_source(self.servers.source, work, folder))
            target = stack.enter_context(new_target(self.servers.target, source, folder))
            source.work()
            stream = source.archive()
            ways = {**self._replays(name, source, target, stream, stack), **_captures(name, source, stream)}
            for run in range(self.runs):
                for way, measure in ways.items():
                    self._add(name, way, measure())
                if name in LOADED and run % 2 == 0:  # whole tables take long, and vary little
                    self._load(name, source, target)
            if name.startswith("W8"):
                self._small(name, target, stream)
        _say(f"{name}: {time.monotonic() - started:.0f} s in all")

    def _replays(
        self, name: str, source: Source, target: Target, stream: Stream, stack: ExitStack
    ) -> dict[str, Way]:
        """Return the ways in which the changes get into the target."""

        def ours(directory: Path, **keys: object) -> Way:
            return lambda: target.ours({"archive_dir": str(directory)} | keys)

        plain, headed = _directories(source.folder, "plain", "headed")
        stream.write_plain(plain, source.types())
        stream.write_headed(headed)
        ways: dict[str, Way] = {
            "native subscription": lambda: target.native(stream.records, stream.last_commit_lsn),
            "headed files": ours(headed),
        }
        if name.partition("/")[0] not in ("W5", "W8"):
            ways |= {"plain files": ours(plain), "COPY": target.copy}
        if name == "W5":
            for size in (250, 50):
                [directory] = _directories(source.folder, f"of_{size}")
                stream.write_headed(directory, files=max(stream.records // size, 1))
                ways[f"headed, {size} records a file"] = ours(directory)
        if name in OVER_SFTP and (program := sshd_program()):
            sshd = stack.enter_context(_running_sshd(program, source.folder))
            stream.write_headed(sshd.archive_dir, compression="zstd")
            ways[".json.zst over SFTP"] = ours(
                sshd.archive_dir,
                archive_backend="sftp",
                archive_host=sshd.host,
                archive_port=sshd.port,
                archive_user=sshd.user,
                archive_key_file=str(sshd.key_file),
                archive_known_hosts=str(sshd.known_hosts),
            )
        return ways

    def _load(self, name: str, source: Source, target: Target) -> None:
        rows = int(source.checksum.split()[0])
        with tempfile.TemporaryDirectory(dir=source.folder) as folder:
            path, archive = Path(folder) / "dump", Path(folder) / "archive"
            shutil.copytree(source.folder / "archive", archive)
            jobs = len(os.sched_getaffinity(0))
            whole = f"{name}, whole tables"
            self.result.titles[whole] = "its tables as they are at the end, with their indexes"
            self._add(whole, "pg_dump", loading.dump(source, path, rows))
            self._add(whole, "snapshot", loading.take(source, archive, rows))
            self._add(whole, "pg_restore", loading.restore(target, path, rows, jobs))
            loaded, resynced = loading.load(target, archive, rows)
            self._add(whole, "first load", loaded)
            self._add(whole, "resync", resynced)

    def _small(self, name: str, target: Target, stream: Stream) -> None:
        files, idle_s = (20, 20.0) if self.runs > 1 else (5, 5.0)
        one_by_one, at_rest = small.measure(target, stream, files=files, idle_s=idle_s)
        of_one = f"{name}, files of one record"
        self.result.titles[of_one] = "one after the other, to a daemon; CPU alone"
        self._add(of_one, small.A_FILE, one_by_one)
        self._add(of_one, small.AT_REST, at_rest)

    def _add(self, name: str, way: str, figures: Figures) -> None:
        self.result.add(name, way, figures)
        _say(f"{name}, {way}: {figures.records:,} records in {figures.seconds:.2f} s")


def _captures(name: str, source: Source, stream: Stream) -> dict[str, Way]:
    if name not in CAPTURED:
        return {}
    return {
        "pg_recvlogical": lambda: capturing.receive(source, stream.records),
        "archiver": lambda: capturing.archive(source, stream.records),
    }


def sshd_program() -> str | None:
    """Return the path of the OpenSSH server; None where there is none."""
    return shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def _running_sshd(program: str, folder: Path) -> Iterator[SshServer]:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    [directory] = _directories(folder, "sshd")
    server = SshServer(program=program, folder=directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _directories(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
