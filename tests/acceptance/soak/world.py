"""Both sides, whole: two PostgreSQL servers, an sshd, and between them the archiver and the daemon.

Each of the four connections goes through a link that can be broken, and what writes files has small disks of
its own where this user may mount some. Knows how all this is started and asked; knows nothing of faults.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess
from typing import Any

import psycopg

from syncsite.demo.postgres import SETTINGS, PostgresServer, embedded_binaries
from tests import processes
from tests.acceptance.soak import model
from tests.postgres import Database, create_database, drop_database
from tests.processes import warm_zygote
from tests.proxy import Link
from tests.sshd import SshServer, running_server

PATIENCE_S = 400.0  # a busy machine is no failure
_TEMPLATE = "soak_template"
_MANAGE = "manage.py"
_DEADLY = str(Path(__file__).with_name("deadly.py"))
_FOREIGN = ("ARCHIVE_", "PG", "SOURCE_PG_", "DATA_SYNC_", "METRIC_FREQ", "BATCH_", "SSH_AUTH_SOCK", "DJANGO_")


class SoakError(AssertionError):
    """What must be so is not so; ``kind`` is one of KINDS."""

    KINDS = ("lost", "doubled", "wrong", "false alarm", "not found", "other")

    def __init__(self, complaint: str, kind: str = "other") -> None:
        super().__init__(complaint)
        self.kind = kind


@dataclass
class Program:
    """One of ours, started, killed, frozen and started again; what it says is appended to ``log``."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    zygote: socket.socket
    process: processes.Process | None = None
    ends: list[int] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *, dies_at: tuple[str, int] | None = None) -> None:
        """Start it; with *dies_at*, one that kills itself at the n-th passage of that step."""
        head = [_DEADLY, self.name, *map(str, dies_at or ("", 0))]
        with self.log.open("a") as log:
            log.write(f"--- start {dies_at or ''}\n")
            log.flush()
            self.process = processes.Process(
                [*head, *self.arguments],
                env=self.environment,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                zygote=self.zygote,
            )

    def set_clock(self, wrong_by_s: float) -> None:
        """Let its wall clock be wrong from now on."""
        clock = Path(self.environment["SOAK_CLOCK"])
        unfinished = clock.with_suffix(".tmp")
        unfinished.write_text(str(wrong_by_s))
        unfinished.rename(clock)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill(self) -> bool:
        """Tell whether it was this that ended it."""
        if self.process is None:
            return False
        is_running = self.is_running
        self.send(signal.SIGKILL)
        self.ends.append(self.process.wait(PATIENCE_S))
        self.process = None
        return is_running and self.ends[-1] == -signal.SIGKILL

    def ensure(self) -> None:
        """Let it run, as a supervisor does."""
        self.send(signal.SIGCONT)
        if not self.is_running:
            if self.process is not None:
                self.ends.append(self.process.wait(PATIENCE_S))
            self.start()


@dataclass
class Disk:
    """A directory with a file system of its own, if this user may mount one."""

    folder: Path
    is_mounted: bool = False

    def mount(self, size_mib: int) -> None:
        self.folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(self.folder)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    def fill(self) -> None:
        """Leave no room in it."""
        with (self.folder / ".filler.tmp").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"\0" * 65536):
                pass

    def empty(self) -> None:
        (self.folder / ".filler.tmp").unlink(missing_ok=True)

    def remount(self, option: str) -> bool:
        command = ["mount", "-o", f"remount,{option}", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass(kw_only=True)
class World:
    """``links`` are named by their ends; ``folder`` keeps configurations and logs. ``verifies``: production's
    rows are read for checks all the time, in small chunks, and the local rows are held to them."""

    source: Database
    local: Database
    folder: Path
    sshd: SshServer
    links: dict[str, Link]
    disks: dict[str, Disk]
    daemon: Program
    archiver: Program
    environments: dict[str, dict[str, str]]
    zygotes: dict[str, socket.socket]
    verifies: bool = False

    @property
    def archive(self) -> Path:
        return self.sshd.archive_dir

    def here(self, *arguments: str, timeout: float = PATIENCE_S) -> CompletedProcess[str]:
        """Run a command of the local side; its exit status may be any."""
        return self._manage("daemon", arguments, timeout)

    def there(self, *arguments: str, timeout: float = PATIENCE_S) -> CompletedProcess[str]:
        return self._manage("archiver", arguments, timeout)

    def _manage(self, side: str, arguments: tuple[str, ...], timeout: float) -> CompletedProcess[str]:
        environment, zygote = self.environments[side], self.zygotes[side]
        done = processes.run(_MANAGE, *arguments, env=environment, timeout=timeout, zygote=zygote)
        with (self.folder / "commands.log").open("a") as log:
            log.write(f"{' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return what list_tables says of each table. Raises SoakError when it cannot."""
        done = self.here("list_tables", "--json")
        require(done.returncode == 0, f"list_tables fails: {done.stderr}")
        return {table["table_name"]: table for table in json.loads(done.stdout)}

    def supervise(self) -> None:
        """Let both programs run."""
        self.daemon.ensure()
        self.archiver.ensure()


@contextmanager
def running_servers() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Two servers, production's and the local one, whose unflushed commits a crash really loses."""
    settings = SETTINGS | {"max_prepared_transactions": "20", "wal_writer_delay": "1s"}
    source = PostgresServer(binaries=embedded_binaries(), settings=settings)
    local = PostgresServer(binaries=embedded_binaries(), settings=dict(settings))
    try:
        source.start()
        local.start()
        yield source, local
    finally:
        source.stop()
        local.stop()


@contextmanager
def running_world(
    source: PostgresServer, local: PostgresServer, folder: Path, name: str, *, verifies: bool = False
) -> Iterator[World]:
    """A new world in the new directory *folder*, healthy and at work, as long as the block runs."""
    with ExitStack() as cleanup:
        folder.mkdir(parents=True)
        create_database(source, name)
        cleanup.callback(_drop, source, name)
        databases = Database(source, name), Database(local, name)
        disks = {kind: Disk(folder / kind) for kind in ("spool", "copies")}
        for disk in disks.values():
            disk.mount(64)
            cleanup.callback(disk.unmount)
        sshd = cleanup.enter_context(running_server(folder / "sshd"))
        disks["archive"] = Disk(sshd.archive_dir)
        disks["archive"].mount(64)
        cleanup.callback(disks["archive"].unmount)
        links = {
            "daemon to archive": Link(sshd.port),
            "daemon to database": Link(local.port),
            "archiver to archive": Link(sshd.port),
            "archiver to database": Link(source.port),
        }
        for link in links.values():
            cleanup.callback(link.close)
        environments = _environments(databases, folder, sshd, links, disks, verifies=verifies)
        zygotes = {
            side: cleanup.enter_context(warm_zygote(environment))
            for side, environment in environments.items()
        }
        world = World(
            source=databases[0],
            local=databases[1],
            folder=folder,
            sshd=sshd,
            links=links,
            disks=disks,
            daemon=_program("daemon", "syncdata_start", environments, zygotes, folder),
            archiver=_program("archiver", "archive_changes", environments, zygotes, folder),
            environments=environments,
            zygotes=zygotes,
            verifies=verifies,
        )
        _create_local(world)
        cleanup.callback(_drop, local, name)
        with world.source.connect(autocommit=True) as connection:
            connection.execute(model.SOURCE)
        cleanup.callback(_drop_slot, world)
        for arguments in (("setup_logical_replication",), ("archive_changes", "--snapshot")):
            done = world.there(*arguments)
            require(done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}")
        done = world.here("add_tables", *model.TABLES)
        require(done.returncode == 0, f"add_tables: {done.stdout}{done.stderr}")
        # A single cycle loads all tables; a daemon's cycles would leave some to the next, again and again.
        done = world.here("syncdata_start", "--once")
        require(done.returncode == 0, f"the first load: {done.stdout}{done.stderr}")
        cleanup.callback(world.daemon.kill)
        cleanup.callback(world.archiver.kill)
        world.supervise()
        yield world


def _program(
    name: str,
    command: str,
    environments: Mapping[str, dict[str, str]],
    zygotes: Mapping[str, socket.socket],
    folder: Path,
) -> Program:
    return Program(name, (command,), environments[name], folder / f"{name}.log", zygotes[name])


def _environments(
    databases: tuple[Database, Database],
    folder: Path,
    sshd: SshServer,
    links: Mapping[str, Link],
    disks: Mapping[str, Disk],
    *,
    verifies: bool,
) -> dict[str, dict[str, str]]:
    """Write the configurations of both sides; return the environments that lead to them."""
    host_key = sshd.known_hosts.read_text().split(" ", 1)[1]
    with sshd.known_hosts.open("a") as known_hosts:
        for link in links.values():
            known_hosts.write(f"[127.0.0.1]:{link.port} {host_key}")
    source, local = databases
    archive = {
        "archive_host": "127.0.0.1",
        "archive_user": sshd.user,
        "archive_dir": str(sshd.archive_dir),
        "archive_key_file": str(sshd.key_file),
        "archive_known_hosts": str(sshd.known_hosts),
        "archive_ssh_config": "none",
    }
    here = (
        archive
        | local.pg_keys
        | {
            "archive_port": links["daemon to archive"].port,
            "pg_port": links["daemon to database"].port,
            "data_sync_freq": 1,
            "batch_records": 500,
        }
    )
    production = source.pg_keys | {
        "pg_port": links["archiver to database"].port,
        "slot_name": f"slot_of_{source.name}",
        "failover": True,
        "tables": list(model.TABLES),
        "spool_dir": str(disks["spool"].folder / "spool"),
        "rotate_seconds": 1,
        "rotate_bytes": 200_000,
    }
    if verifies:
        production |= {"verify_rows_per_second": 5000, "verify_days": 0}
    there = archive | {"archive_port": links["archiver to archive"].port}
    environments = {
        "daemon": _environment(folder / "here", _toml(here), disks["copies"].folder),
        "archiver": _environment(folder / "there", f"{_toml(there)}[source]\n{_toml(production)}", None),
    }
    if verifies:
        for environment in environments.values():
            environment["SOAK_VERIFIES"] = "yes"
    return environments


def _toml(keys: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items())


def _environment(folder: Path, content: str, copies: Path | None) -> dict[str, str]:
    folder.mkdir()
    config = folder / "syncdata.toml"
    config.touch(mode=0o600)
    config.write_text(content)
    clock = folder / "clock"
    clock.write_text("0")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return (
        kept
        | {"DATA_SYNC_CONFIG": str(config), "SOAK_CLOCK": str(clock)}
        | ({"TMPDIR": str(copies)} if copies else {})
    )


def _create_local(world: World) -> None:
    """Make the local database, with our tables and the model's; the migrations of the first are kept."""
    server, name = world.local.server, world.local.name
    try:
        create_database(server, name, template=_TEMPLATE)
    except psycopg.errors.InvalidCatalogName:
        create_database(server, name)
        done = world.here("migrate", "-v", "0")
        require(done.returncode == 0, f"migrate: {done.stderr}")
        create_database(server, _TEMPLATE, template=name)
    with world.local.connect(autocommit=True) as connection:
        connection.execute(model.LOCAL)


def _drop(server: PostgresServer, name: str) -> None:
    with suppress(psycopg.Error):
        drop_database(server, name)


def _drop_slot(world: World) -> None:
    slot = f"slot_of_{world.source.name}"
    with suppress(psycopg.Error), world.source.connect(autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (slot,)
        )
        for _ in range(50):
            with suppress(psycopg.errors.ObjectInUse):
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                    " WHERE slot_name = %s",
                    (slot,),
                )
                return
            time.sleep(0.1)


def require(is_so: object, complaint: str, kind: str = "other") -> None:
    if not is_so:
        raise SoakError(complaint, kind)


def until(is_so: Callable[[], object], complaint: Callable[[], str], patience_s: float = PATIENCE_S) -> None:
    """Wait for what must come. Raises SoakError when it does not."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise SoakError(complaint())
        time.sleep(0.05)
