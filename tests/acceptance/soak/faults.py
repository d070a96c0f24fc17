"""What breaks: each fault is a block, broken while it runs and whole again after it, also after an error.

A block gives a function that tells whether the fault has bitten by now: whether there was something for it to
break. One that finds nothing to break raises Harmless.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from random import Random
from subprocess import CompletedProcess, TimeoutExpired
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

HasBitten = Callable[[], object]
Fault = Callable[[World, Random], AbstractContextManager[HasBitten]]
FAULTS: dict[str, Fault] = {}
_FRESH_S = 10.0
_LOCKED_S = 6.0
_SEEN_S = 1.5  # longer than a cycle of the daemon, and a file of the archiver
_KILLS = 15
_AT_WORK_S, _KILLING_S = 3.0, 40.0
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


class Harmless(Exception):
    """There was nothing to break."""


def _need(is_so: object) -> None:
    if not is_so:
        raise Harmless


def _always() -> bool:
    return True


def _after(seconds: float) -> HasBitten:
    """Tell whether it lasts that long by now."""
    then = time.monotonic() + seconds
    return lambda: time.monotonic() > then


def _fault(function: Callable[[World, Random], Iterator[HasBitten]]) -> Fault:
    made = contextmanager(function)
    FAULTS[function.__name__.strip("_").replace("_", " ")] = made
    return made


# Processes


@_fault
def daemon_killed(world: World, chance: Random) -> Iterator[HasBitten]:
    yield from _killed(world.daemon)


@_fault
def archiver_killed(world: World, chance: Random) -> Iterator[HasBitten]:
    yield from _killed(world.archiver)


def _killed(program: Program) -> Iterator[HasBitten]:
    _need(program.kill())
    try:
        yield _always
    finally:
        program.ensure()


@_fault
def daemon_killed_again_and_again(world: World, chance: Random) -> Iterator[HasBitten]:
    yield from _killed_often(world.daemon, world.links["daemon to database"], chance)


@_fault
def archiver_killed_again_and_again(world: World, chance: Random) -> Iterator[HasBitten]:
    yield from _killed_often(world.archiver, world.links["archiver to database"], chance)


def _killed_often(program: Program, link: Link, chance: Random) -> Iterator[HasBitten]:
    """As where memory is short: each start gets somewhat further, or not so far; it is at work when it has
    connected."""
    kills, ends_s = 0, time.monotonic() + _KILLING_S
    try:
        while kills < _KILLS and time.monotonic() < ends_s:
            connections, deadline = link.accepted, time.monotonic() + _AT_WORK_S
            kills += program.kill()
            program.ensure()
            while link.accepted == connections and program.is_running and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.4))
        yield lambda: kills == _KILLS
    finally:
        program.ensure()


@_fault
def daemon_killed_at_a_step(world: World, chance: Random) -> Iterator[HasBitten]:
    often = chance.choice((5, 50, 200))
    step = chance.choice(sorted(DAEMON_STEPS))
    is_rare = "file" in step or "cop" in step.lower()
    yield from _killed_at(world.daemon, step, chance.randint(1, 3 if is_rare else often))


@_fault
def archiver_killed_at_a_step(world: World, chance: Random) -> Iterator[HasBitten]:
    step = chance.choice(_ARCHIVER_STEPS)
    often = step.startswith(("a message", "before a line", "a line"))
    yield from _killed_at(world.archiver, step, chance.randint(1, 150 if often else 2))


def _killed_at(program: Program, step: str, passage: int) -> Iterator[HasBitten]:
    program.kill()
    program.start(dies_at=(step, passage))
    process = program.process
    try:
        yield lambda: process is not None and process.poll() == -signal.SIGKILL
    finally:
        program.kill()  # unless it has done so itself
        program.ensure()


@_fault
def daemon_frozen(world: World, chance: Random) -> Iterator[HasBitten]:
    _need(world.daemon.is_running)
    with _frozen(world.daemon):
        yield _after(chance.uniform(0.2, 2))


@_fault
def archiver_frozen(world: World, chance: Random) -> Iterator[HasBitten]:
    _need(world.archiver.is_running)
    with _frozen(world.archiver):
        yield _after(chance.uniform(0.2, 2))


# Servers


@_fault
def local_server_crashed(world: World, chance: Random) -> Iterator[HasBitten]:
    world.local.server.crash()
    try:
        yield _after(chance.uniform(0.2, 2))
    finally:
        world.local.server.restart()


@_fault
def production_crashed(world: World, chance: Random) -> Iterator[HasBitten]:
    world.source.server.crash()
    try:
        yield _after(chance.uniform(0.2, 2))
    finally:
        world.source.server.restart()


@_fault
def backends_terminated(world: World, chance: Random) -> Iterator[HasBitten]:
    database = chance.choice((world.source, world.local))
    with database.connect(autocommit=True) as connection:
        _need(_terminate_backends(connection))
    yield _always


def _terminate_backends(connection: psycopg.Connection[Any]) -> int:
    """End all other sessions in the database; return how many of them were those of our programs."""
    rows = connection.execute(
        "SELECT pg_terminate_backend(pid), application_name ~ 'syncdata' OR backend_type = 'walsender'"
        " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()
    return sum(is_ended and is_ours for is_ended, is_ours in rows)


@_fault
def table_locked(world: World, chance: Random) -> Iterator[HasBitten]:
    with _locked(world, chance.choice(model.SINGLE)) as is_waited_for:
        yield is_waited_for


@_fault
def table_locked_for_long(world: World, chance: Random) -> Iterator[HasBitten]:
    """Until the table is blocked, if records come for it."""
    table = chance.choice(("bag", "document", "filed", "scratch"))
    blocked = f"SELECT FROM data_sync_checkpoints WHERE table_name = '{table}' AND state = 'blocked'"
    with _locked(world, table) as is_waited_for, world.local.connect(autocommit=True) as connection:
        deadline, bites = time.monotonic() + _LOCKED_S, False
        while not connection.execute(blocked).fetchone() and time.monotonic() < deadline:
            bites = bites or bool(is_waited_for())
            time.sleep(0.1)
        yield lambda: bites or is_waited_for()


@contextmanager
def _locked(world: World, table: str) -> Iterator[HasBitten]:
    """Hold the table in ACCESS EXCLUSIVE; give whether the daemon has been seen to wait for it."""
    waits = (
        "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = 'syncdata'"
        f" AND relation = '{table}'::regclass AND NOT granted"
    )
    seen = False

    def is_waited_for() -> bool:
        nonlocal seen
        with suppress(psycopg.OperationalError), world.local.connect(autocommit=True) as observer:
            seen = seen or observer.execute(waits).fetchone() is not None
        return seen

    connection = world.local.connect()
    try:
        connection.execute("SET lock_timeout = '2s'")
        try:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        except psycopg.errors.LockNotAvailable:
            raise Harmless from None
        yield is_waited_for
    finally:
        connection.close()  # another fault may have ended it


@_fault
def lock_timeouts(world: World, chance: Random) -> Iterator[HasBitten]:
    """New sessions are given timeouts that are far too short; ours pin their own."""
    name = chance.choice(("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"))
    try:
        with world.local.connect(autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {world.local.name} SET {name} = '50ms'")
            _need(_terminate_backends(connection))
        connections, link = world.links["daemon to database"].accepted, world.links["daemon to database"]
        yield lambda: link.accepted > connections
    finally:
        with world.local.connect(autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {world.local.name} RESET {name}")


@_fault
def local_database_restored(world: World, chance: Random) -> Iterator[HasBitten]:
    """A backup of the local database comes back: rows, checkpoints and books are those of a while ago."""
    name, backup = world.local.name, f"{world.local.name}_backup"
    with _without_sessions(world) as connection:
        connection.execute(f"CREATE DATABASE {backup} TEMPLATE {name}")
    try:
        yield _after(_SEEN_S)
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
def spool_restored(world: World, chance: Random) -> Iterator[HasBitten]:
    """A backup of the archiver's spool comes back; what it lacks, the slot has let go."""
    spool, backup = world.disks["spool"].folder / "spool", world.folder / "spool backup"
    world.archiver.kill()
    shutil.copytree(spool, backup)
    world.archiver.ensure()
    has_lost = _fresh_file(world) is not None
    try:
        yield lambda: has_lost
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
def production_failed_over(world: World, chance: Random) -> Iterator[HasBitten]:
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
    yield _always


# Clocks


@_fault
def clock_stepped(world: World, chance: Random) -> Iterator[HasBitten]:
    """Forwards or backwards, and back again."""
    program = chance.choice((world.daemon, world.archiver))
    _need(program.is_running)
    program.set_clock(chance.choice((-86_400, -3_600, -30, -2, 2, 30, 3_600, 20_000)))
    try:
        yield _after(_SEEN_S)
    finally:
        program.set_clock(0)


# Connections


@_fault
def connection_cut(world: World, chance: Random) -> Iterator[HasBitten]:
    with _broken_link(world, chance) as (link, has_broken):
        link.cut()
        _need(has_broken())
        yield has_broken


@_fault
def connection_cut_in_a_transfer(world: World, chance: Random) -> Iterator[HasBitten]:
    with _broken_link(world, chance) as (link, has_broken):
        link.cut_after(chance.choice((1_000, 10_000, 50_000)) + chance.randrange(1_000))
        yield has_broken


@_fault
def connection_stalled(world: World, chance: Random) -> Iterator[HasBitten]:
    with _broken_link(world, chance) as (link, has_broken):
        link.stall()
        yield has_broken
        if chance.random() < 0.5:
            link.cut()


@_fault
def connection_slow(world: World, chance: Random) -> Iterator[HasBitten]:
    with _broken_link(world, chance) as (link, has_broken):
        link.slow_down(0.02)
        yield has_broken


@_fault
def connection_refused(world: World, chance: Random) -> Iterator[HasBitten]:
    with _broken_link(world, chance) as (link, has_broken):
        link.refuse()
        yield has_broken


@contextmanager
def _broken_link(world: World, chance: Random) -> Iterator[tuple[Link, HasBitten]]:
    link = world.links[chance.choice(sorted(world.links))]
    before = link.broken
    try:
        yield link, lambda: link.broken > before
    finally:
        link.mend()


# Files of the archive


@_fault
def file_half_visible(world: World, chance: Random) -> Iterator[HasBitten]:
    """As if it were still being written under its name, and then grew in place."""
    yield from _spoilt(world, lambda content: content[: chance.randrange(len(content))], in_place=True)


@_fault
def file_damaged(world: World, chance: Random) -> Iterator[HasBitten]:
    def flip(content: bytes) -> bytes:
        at = chance.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]

    yield from _spoilt(world, flip, in_place=False)


@_fault
def file_missing(world: World, chance: Random) -> Iterator[HasBitten]:
    """It comes later than the one after it."""
    aside = world.folder / "aside"
    with _frozen(world.daemon):
        path = _fresh_file(world)
        _need(path)
        assert path is not None
        shutil.move(path, aside)
    try:
        is_seen = _after(_SEEN_S)
        yield lambda: is_seen() and any(later.name > path.name for later in world.archive.glob("changes_*"))
    finally:
        unfinished = path.with_name(f".{path.name}.tmp")
        shutil.copy(aside, unfinished)
        unfinished.rename(path)
        aside.unlink()


@_fault
def file_duplicated(world: World, chance: Random) -> Iterator[HasBitten]:
    """A copy is there beside it, as a careless backup tool makes it."""
    path = _fresh_file(world)
    _need(path)
    assert path is not None
    copy = path.with_name(f"{path.name}.copy")
    shutil.copy(path, copy)
    try:
        yield _after(_SEEN_S)
    finally:
        copy.unlink()


def _spoilt(world: World, spoil: Callable[[bytes], bytes], *, in_place: bool) -> Iterator[HasBitten]:
    with _frozen(world.daemon):
        path = _fresh_file(world)
        _need(path)
        assert path is not None
        whole = path.read_bytes()
        _put(path, spoil(whole), in_place=in_place)
    try:
        yield _after(_SEEN_S)
    finally:
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
def disk_full(world: World, chance: Random) -> Iterator[HasBitten]:
    disk = world.disks[chance.choice(sorted(world.disks))]
    _need(disk.is_mounted)
    try:
        disk.fill()
        yield _after(_SEEN_S)
    finally:
        disk.empty()


@_fault
def disk_read_only(world: World, chance: Random) -> Iterator[HasBitten]:
    disk = world.disks[chance.choice(sorted(world.disks))]
    _need(disk.is_mounted)
    # A file that is open for writing keeps a file system from it: whoever writes is restarted.
    world.archiver.kill()
    world.daemon.kill()
    is_so = disk.remount("ro")
    world.supervise()
    try:
        _need(is_so)
        yield _after(_SEEN_S)
    finally:
        if is_so:
            disk.remount("rw")


# Operators

_COMMAND_S = 30.0


def _succeeds(command: Callable[..., CompletedProcess[str]], *arguments: str) -> bool:
    """Run the *command*; one that waits for long, for what another fault holds, is killed."""
    with suppress(TimeoutExpired):
        return command(*arguments, timeout=_COMMAND_S).returncode == 0
    return False


@_fault
def table_resynced(world: World, chance: Random) -> Iterator[HasBitten]:
    """Twice, with a pause or a clear of another table beside it at times."""
    tables = chance.sample((*model.SINGLE, "account", "order", "order_line"), chance.randint(1, 4))
    _need(_succeeds(world.here, "resync", *tables))
    yield _always
    if chance.random() < 0.3:
        _succeeds(world.here, "resync", *tables[:1])


@_fault
def resync_asked_of_the_daemon(world: World, chance: Random) -> Iterator[HasBitten]:
    """A request, as the admin makes it; another one, a clear or a pause comes while it is at work."""
    table = chance.choice(model.SINGLE)
    tables = [table, *chance.sample(("account", "order", "order_line"), 3)]
    _need(_request(world, "resync", tables))
    match chance.randint(0, 3):
        case 0:
            _request(world, "resync", [table])
        case 1:
            _request(world, "clear", [table])
        case 2:
            _request(world, "pause", [table])
    try:
        yield _always
    finally:
        _request(world, "resume", [table])


def _request(world: World, action: str, tables: list[str]) -> bool:
    with suppress(psycopg.Error), world.local.connect(autocommit=True) as connection:
        queue.submit(connection, action, tables, requested_by="soak")
        return True
    return False


@_fault
def table_cleared(world: World, chance: Random) -> Iterator[HasBitten]:
    _need(_succeeds(world.here, "clear", "--noinput"))
    yield _always


@_fault
def table_paused(world: World, chance: Random) -> Iterator[HasBitten]:
    table = chance.choice(model.SINGLE)
    try:
        _need(_succeeds(world.here, "pause_tables", table))
        yield _after(_SEEN_S)
    finally:
        _succeeds(world.here, "resume_tables", table)


@_fault
def table_off_the_whitelist(world: World, chance: Random) -> Iterator[HasBitten]:
    table = chance.choice(model.SINGLE)
    try:
        _need(_succeeds(world.here, "remove_tables", table))
        yield _after(_SEEN_S)
    finally:
        world.here("add_tables", table)  # nothing else does it


@_fault
def snapshot_taken(world: World, chance: Random) -> Iterator[HasBitten]:
    tables = chance.sample(model.SINGLE, 2)
    _need(_succeeds(world.there, "archive_changes", "--snapshot", *tables))
    yield _always


# Those that need all the rest to be whole, to begin or to end.
DELICATE = (
    "spool restored",
    "production failed over",
    "table off the whitelist",
    "local database restored",
    *("file half visible", "file damaged", "file missing", "file duplicated"),
)
# After these every table is rebuilt, and the audit log counts nothing that could be held to the archive.
REBUILDING = ("spool restored", "table cleared")
