"""What breaks: each fault is a block, broken while it runs and whole again after it, also after an error."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from syncdata.apply.state import queue
from tests.acceptance.soak import model
from tests.acceptance.soak.deadly import DAEMON_STEPS
from tests.acceptance.soak.world import Program, SoakError, World, require
from tests.archiver_runner import STEPS
from tests.proxy import Link
from tests.remedies import steps_of
from tests.standby import Pair, exchange, follow

Fault = Callable[[World, Random], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {}
_FRESH_S = 20.0
_LOCKED_S = 6.0
_TRIES = 5
# Steps of an archive on a disk of its own; ours is behind SFTP.
_LOCAL_STEPS = {
    "before the archive has the bytes",
    "the archive has the bytes",
    "before the archive has the name",
    "the archive has two names",
    "before the archive is flushed",
    "before the head is replaced",
    "the head is replaced",
}
_ARCHIVER_STEPS = sorted({*STEPS} - _LOCAL_STEPS)


def _fault(function: Callable[[World, Random], Iterator[None]]) -> Fault:
    made = contextmanager(function)
    FAULTS[function.__name__.strip("_").replace("_", " ")] = made
    return made


# Processes


@_fault
def daemon_killed(world: World, chance: Random) -> Iterator[None]:
    world.daemon.kill()
    try:
        yield
    finally:
        world.daemon.ensure()


@_fault
def archiver_killed(world: World, chance: Random) -> Iterator[None]:
    world.archiver.kill()
    try:
        yield
    finally:
        world.archiver.ensure()


@_fault
def daemon_killed_again_and_again(world: World, chance: Random) -> Iterator[None]:
    yield from _killed_often(world.daemon, chance)


@_fault
def archiver_killed_again_and_again(world: World, chance: Random) -> Iterator[None]:
    yield from _killed_often(world.archiver, chance)


def _killed_often(program: Program, chance: Random) -> Iterator[None]:
    """As where memory is short: each start gets somewhat further, or not so far."""
    try:
        for _ in range(chance.randint(5, 10)):
            program.kill()
            program.ensure()
            time.sleep(chance.uniform(0.1, 0.8))
        yield
    finally:
        program.ensure()


@_fault
def daemon_killed_at_a_step(world: World, chance: Random) -> Iterator[None]:
    often = chance.choice((5, 50, 500))
    step = chance.choice(sorted(DAEMON_STEPS))
    yield from _killed_at(world.daemon, step, chance.randint(1, 3 if "file" in step else often))


@_fault
def archiver_killed_at_a_step(world: World, chance: Random) -> Iterator[None]:
    step = chance.choice(_ARCHIVER_STEPS)
    often = step.startswith(("a message", "before a line", "a line"))
    yield from _killed_at(world.archiver, step, chance.randint(1, 150 if often else 4))


def _killed_at(program: Program, step: str, passage: int) -> Iterator[None]:
    program.kill()
    program.start(dies_at=(step, passage))
    try:
        yield
    finally:
        program.kill()  # unless it has done so itself
        program.ensure()


@_fault
def daemon_frozen(world: World, chance: Random) -> Iterator[None]:
    with _frozen(world.daemon):
        yield


@_fault
def archiver_frozen(world: World, chance: Random) -> Iterator[None]:
    with _frozen(world.archiver):
        yield


# Servers


@_fault
def local_server_crashed(world: World, chance: Random) -> Iterator[None]:
    world.local.server.crash()
    try:
        yield
    finally:
        world.local.server.restart()


@_fault
def production_crashed(world: World, chance: Random) -> Iterator[None]:
    world.source.server.crash()
    try:
        yield
    finally:
        world.source.server.restart()


@_fault
def backends_terminated(world: World, chance: Random) -> Iterator[None]:
    database = chance.choice((world.source, world.local))
    with database.connect(autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    yield


@_fault
def table_locked(world: World, chance: Random) -> Iterator[None]:
    table = chance.choice(model.SINGLE)
    with world.local.connect() as connection:
        with suppress(psycopg.errors.LockNotAvailable):
            connection.execute("SET lock_timeout = '2s'")
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@_fault
def table_locked_for_long(world: World, chance: Random) -> Iterator[None]:
    """Until the table is blocked, if records come for it."""
    table = chance.choice(("bag", "document", "filed", "scratch"))
    with world.local.connect() as connection:
        with suppress(psycopg.errors.LockNotAvailable):
            connection.execute("SET lock_timeout = '2s'")
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        deadline = time.monotonic() + _LOCKED_S
        blocked = f"SELECT FROM data_sync_checkpoints WHERE table_name = '{table}' AND state = 'blocked'"
        while not connection.execute(blocked).fetchone() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield


@_fault
def lock_timeouts(world: World, chance: Random) -> Iterator[None]:
    """New sessions are given timeouts that are far too short; ours pin their own."""
    name = chance.choice(("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"))
    try:
        with world.local.connect(autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {world.local.name} SET {name} = '50ms'")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        yield
    finally:
        with world.local.connect(autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {world.local.name} RESET {name}")


@_fault
def local_database_restored(world: World, chance: Random) -> Iterator[None]:
    """A backup of the local database comes back: rows, checkpoints and books are those of a while ago."""
    name, backup = world.local.name, f"{world.local.name}_backup"
    with _without_sessions(world) as connection:
        connection.execute(f"CREATE DATABASE {backup} TEMPLATE {name}")
    try:
        yield
        with _without_sessions(world) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            connection.execute(f"ALTER DATABASE {backup} RENAME TO {name}")
    finally:
        with world.local.server.connect(autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {backup}")


@contextmanager
def _without_sessions(world: World) -> Iterator[psycopg.Connection[Any]]:
    """Keep everyone out of the local database."""
    name = world.local.name
    with world.local.server.connect(autocommit=True) as connection:
        world.daemon.kill()
        try:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            yield connection
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            world.daemon.ensure()


@_fault
def spool_restored(world: World, chance: Random) -> Iterator[None]:
    """A backup of the archiver's spool comes back; what it lacks, the slot has let go."""
    spool, backup = world.disks["spool"].folder / "spool", world.folder / "spool backup"
    world.archiver.kill()
    shutil.copytree(spool, backup)
    world.archiver.ensure()
    _fresh_file(world)
    try:
        yield
    finally:
        world.archiver.kill()
        shutil.rmtree(spool)
        shutil.copytree(backup, spool)
        shutil.rmtree(backup)
        if world.there("archive_changes", "--once").returncode:
            _begin_anew(world)
        world.archiver.ensure()


def _begin_anew(world: World) -> None:
    """Do what the archiver says where something is missing."""
    for arguments in (("--new-epoch", "--noinput"), ("--snapshot",)):
        done = world.there("archive_changes", *arguments)
        require(done.returncode == 0, f"archive_changes {arguments}: {done.stderr}")
    world.archiver.ensure()
    done = world.here("resync", "--all")
    for _ in range(_TRIES):
        if not done.returncode:
            return
        # A backup of the local database lacks a column, or the table is altered while it is rebuilt.
        for kind, what in steps_of([done.stderr]):
            if kind == "sql":
                # The workload may migrate at the same time.
                with suppress(psycopg.Error), world.local.connect(autocommit=True) as connection:
                    connection.execute(what)
            elif kind == "resync":
                done = world.here("resync", what)
    raise SoakError(f"resync --all: {done.stdout}{done.stderr}")


@_fault
def production_failed_over(world: World, chance: Random) -> Iterator[None]:
    """A standby takes production's place, on a new timeline. It has all that is archived."""
    primary, slot = world.source.server, f"slot_of_{world.source.name}"
    standby = follow(primary)
    pair = Pair(primary, standby)
    try:
        pair.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'", "SELECT pg_reload_conf()")
        pair.wait_for_slot(slot, world.supervise)
        pair.wait_for_standby()
        pair.fail_over()
    except BaseException:
        standby.stop()
        raise
    exchange(primary, standby)  # everyone who knows production's server goes to the new one
    standby.stop()
    world.links["archiver to database"].lead_to(world.source.server.port)
    yield


# Clocks


@_fault
def clock_stepped(world: World, chance: Random) -> Iterator[None]:
    """Forwards or backwards, and back again."""
    program = chance.choice((world.daemon, world.archiver))
    program.set_clock(chance.choice((-86_400, -3_600, -30, -2, 2, 30, 3_600, 20_000)))
    try:
        yield
    finally:
        program.set_clock(0)


# Connections


@_fault
def connection_cut(world: World, chance: Random) -> Iterator[None]:
    with _broken_link(world, chance) as link:
        link.cut()
        yield


@_fault
def connection_cut_in_a_transfer(world: World, chance: Random) -> Iterator[None]:
    with _broken_link(world, chance) as link:
        link.cut_after(chance.choice((1_000, 10_000, 100_000)) + chance.randrange(1_000))
        yield


@_fault
def connection_stalled(world: World, chance: Random) -> Iterator[None]:
    with _broken_link(world, chance) as link:
        link.stall()
        yield
        if chance.random() < 0.5:
            link.cut()


@_fault
def connection_slow(world: World, chance: Random) -> Iterator[None]:
    with _broken_link(world, chance) as link:
        link.slow_down(0.02)
        yield


@_fault
def connection_refused(world: World, chance: Random) -> Iterator[None]:
    with _broken_link(world, chance) as link:
        link.refuse()
        yield


@contextmanager
def _broken_link(world: World, chance: Random) -> Iterator[Link]:
    link = world.links[chance.choice(sorted(world.links))]
    try:
        yield link
    finally:
        link.mend()


# Files of the archive


@_fault
def file_half_visible(world: World, chance: Random) -> Iterator[None]:
    """As if it were still being written under its name, and then grew in place."""
    yield from _spoilt(world, lambda content: content[: chance.randrange(len(content))], in_place=True)


@_fault
def file_damaged(world: World, chance: Random) -> Iterator[None]:
    def flip(content: bytes) -> bytes:
        at = chance.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]

    yield from _spoilt(world, flip, in_place=False)


@_fault
def file_missing(world: World, chance: Random) -> Iterator[None]:
    """It comes later than the one after it."""
    path = _fresh_file(world)
    aside = world.folder / "aside"
    with _frozen(world.daemon):
        if path is not None:
            shutil.move(path, aside)
    try:
        yield
    finally:
        if path is not None:
            unfinished = path.with_name(f".{path.name}.tmp")
            shutil.copy(aside, unfinished)
            unfinished.rename(path)
            aside.unlink()


@_fault
def file_duplicated(world: World, chance: Random) -> Iterator[None]:
    """A copy is there beside it, as a careless backup tool makes it."""
    path = _fresh_file(world)
    copy = None if path is None else path.with_name(f"{path.name}.copy")
    if path is not None and copy is not None:
        shutil.copy(path, copy)
    try:
        yield
    finally:
        if copy is not None:
            copy.unlink()


def _spoilt(world: World, spoil: Callable[[bytes], bytes], *, in_place: bool) -> Iterator[None]:
    with _frozen(world.daemon):
        path = _fresh_file(world)
        whole = b"" if path is None else path.read_bytes()
        if path is not None and whole:
            _put(path, spoil(whole), in_place=in_place)
    try:
        yield
    finally:
        if path is not None and whole:
            _put(path, whole, in_place=in_place)


def _put(path: Path, content: bytes, *, in_place: bool) -> None:
    if in_place:
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(content)
    unfinished.rename(path)


@contextmanager
def _frozen(program: Program) -> Iterator[None]:
    program.send(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send(signal.SIGCONT)


def _fresh_file(world: World) -> Path | None:
    """Wait for the next change file, of which there is one a second; None if none comes."""
    known = {path.name for path in world.archive.glob("changes_*")}
    deadline = time.monotonic() + _FRESH_S
    while time.monotonic() < deadline:
        for path in sorted(world.archive.glob("changes_*")):
            if path.name not in known:
                return path
        time.sleep(0.005)
    return None


# Disks


@_fault
def disk_full(world: World, chance: Random) -> Iterator[None]:
    disk = world.disks[chance.choice(sorted(world.disks))]
    try:
        if disk.is_mounted:
            disk.fill()
        yield
    finally:
        disk.empty()


@_fault
def disk_read_only(world: World, chance: Random) -> Iterator[None]:
    disk = world.disks[chance.choice(sorted(world.disks))]
    is_so = False
    with suppress(OSError):
        if disk.is_mounted:
            # A file that is open for writing keeps a file system from it: whoever writes is restarted.
            world.archiver.kill()
            world.daemon.kill()
            is_so = disk.remount("ro")
            world.supervise()
    try:
        yield
    finally:
        if is_so:
            disk.remount("rw")


# Operators


@_fault
def table_resynced(world: World, chance: Random) -> Iterator[None]:
    """Twice, with a pause or a clear of another table beside it at times."""
    tables = chance.sample((*model.SINGLE, "account", "order", "order_line"), chance.randint(1, 4))
    world.here("resync", *tables)
    yield
    if chance.random() < 0.3:
        world.here("resync", *tables[:1])


@_fault
def resync_asked_of_the_daemon(world: World, chance: Random) -> Iterator[None]:
    """A request, as the admin makes it; another one, a clear or a pause comes while it is at work."""
    table = chance.choice(model.SINGLE)
    tables = [table, *chance.sample(("account", "order", "order_line"), 3)]
    _request(world, "resync", tables)
    match chance.randint(0, 3):
        case 0:
            _request(world, "resync", [table])
        case 1:
            _request(world, "clear", [table])
        case 2:
            _request(world, "pause", [table])
    try:
        yield
    finally:
        _request(world, "resume", [table])


def _request(world: World, action: str, tables: list[str]) -> None:
    with suppress(psycopg.Error), world.local.connect(autocommit=True) as connection:
        queue.submit(connection, action, tables, requested_by="soak")


@_fault
def table_cleared(world: World, chance: Random) -> Iterator[None]:
    world.here("clear", "--noinput")
    yield


@_fault
def table_paused(world: World, chance: Random) -> Iterator[None]:
    table = chance.choice(model.SINGLE)
    world.here("pause_tables", table)
    try:
        yield
    finally:
        world.here("resume_tables", table)


@_fault
def table_off_the_whitelist(world: World, chance: Random) -> Iterator[None]:
    table = chance.choice(model.SINGLE)
    world.here("remove_tables", table)
    try:
        yield
    finally:
        world.here("add_tables", table)


@_fault
def snapshot_taken(world: World, chance: Random) -> Iterator[None]:
    world.there("archive_changes", "--snapshot", *chance.sample(model.SINGLE, 2))
    yield
