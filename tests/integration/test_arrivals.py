"""A new file wakes the daemon, where its archive can tell of it."""

from __future__ import annotations

import errno
import platform
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver

from syncdata.apply.state.queue import Listener
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.errors import DiscoveryError
from syncdata.runtime import watch as watch_module
from syncdata.runtime.wake import Wake
from tests.integration.test_requests import daemon, wait_until
from tests.world import World, insert

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def users(world: World) -> World:
    world.execute("CREATE TABLE users (id int PRIMARY KEY)")
    world.whitelist("users")
    return world


def ids(world: World) -> list[int]:
    return [row[0] for row in world.rows("SELECT id FROM users ORDER BY id")]


def test_a_new_file_is_applied_at_once_and_not_at_the_next_interval(users: World) -> None:
    with daemon(users):
        for number, name in enumerate((FIRST, SECOND), start=1):
            written = users.write(f".{name}.part", [insert("users", id=number)])
            written.rename(written.with_name(name))
            wait_until(lambda number=number: number in ids(users))  # type: ignore[misc]
    assert ids(users) == [1, 2]


def test_a_file_that_comes_while_a_cycle_runs_begins_the_next_one(users: World) -> None:
    """The cycle waits for a lock when the second file comes; it has listed only the first."""
    with users.connect() as other, daemon(users):
        other.execute("BEGIN")
        other.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        users.write(FIRST, [insert("users", id=1)])
        wait_until(lambda: is_waited_for(users))
        users.write(SECOND, [insert("users", id=2)])
        other.execute("COMMIT")
        wait_until(lambda: ids(users) == [1, 2])


def is_waited_for(world: World) -> bool:
    return bool(world.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))


def test_a_cycle_that_failed_is_not_begun_again_for_each_new_file(
    users: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a database that is away would be asked once a file, and the log would say so as often."""
    from syncdata.apply import worker

    rests: list[Wake | None] = []
    stop = threading.Event()

    def rest(self: object, stop: threading.Event, seconds: float, wake: Wake | None = None) -> None:
        rests.append(wake)
        shutil.rmtree(users.archive, ignore_errors=True)
        if len(rests) == 2:
            stop.set()

    monkeypatch.setattr(worker.Worker, "_rest", rest)
    with users.service() as service:
        service.run_loop(interval_s=600, stop=stop)
    assert [wake is not None for wake in rests] == [True, False]


def test_the_work_of_a_cycle_does_not_add_to_the_interval(
    users: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncdata.apply import worker

    rests: list[float] = []
    stop = threading.Event()

    def rest(self: object, stop: threading.Event, seconds: float, wake: Wake | None = None) -> None:
        rests.append(seconds)
        if len(rests) == 2:
            stop.set()

    monkeypatch.setattr(worker.Worker, "_rest", rest)
    users.write(FIRST, [insert("users", id=1)])
    with users.service() as service:
        service.run_loop(interval_s=600, stop=stop)
    assert rests[0] < 600
    assert rests[1] == 600, "after a cycle that found nothing"


# The watch itself


@pytest.fixture
def woken(tmp_path: Path) -> tuple[Path, threading.Event]:
    directory = tmp_path / "archive"
    directory.mkdir()
    return directory, threading.Event()


def test_only_the_whole_name_of_a_change_file_is_told_of(woken: tuple[Path, threading.Event]) -> None:
    directory, told = woken
    watch = open_archive(LocalSettings(directory=directory)).watch(told.set)
    assert watch is not None and watch.is_watching
    other = threading.Event()
    seen = watch_module.DirectoryWatch(directory, lambda name: name == "last", other.set)
    try:
        (directory / f".{FIRST}.part").write_text("{")
        (directory / "head.json").write_text("{}")
        (directory / "snapshot_20260205_103000").mkdir()
        (directory / "last").touch()
        assert other.wait(10), "what came before it has been seen as well"
        assert not told.is_set()
        (directory / f".{FIRST}.part").rename(directory / FIRST)
        assert told.wait(10)
    finally:
        seen.close()
        watch.close()


def test_a_file_that_is_linked_to_its_name_is_told_of(woken: tuple[Path, threading.Event]) -> None:
    directory, told = woken
    archive = open_archive(LocalSettings(directory=directory))
    watch = archive.watch(told.set)
    assert watch is not None
    try:
        with (directory.parent / "content").open("w+b") as content:
            archive.put(FIRST, content)
        assert told.wait(10)
    finally:
        watch.close()


def test_a_watch_ends_when_its_directory_is_another_one(woken: tuple[Path, threading.Event]) -> None:
    directory, told = woken
    watch = open_archive(LocalSettings(directory=directory)).watch(told.set)
    assert watch is not None
    try:
        directory.rename(directory.with_name("old"))
        assert not watch.is_watching
        directory.mkdir()
        assert not watch.is_watching
    finally:
        watch.close()


def test_an_idle_watch_does_nothing(woken: tuple[Path, threading.Event]) -> None:
    """Not even the clock wakes it: neither its threads nor those of what it is made of."""
    directory, told = woken
    before = {thread.native_id for thread in threading.enumerate()}
    watch = open_archive(LocalSettings(directory=directory)).watch(told.set)
    assert watch is not None
    try:
        (directory / FIRST).touch()
        assert told.wait(10)
        own = {thread.native_id for thread in threading.enumerate()} - before
        wait_until(lambda: all(is_waiting_for_ever(number) for number in own if number))
    finally:
        watch.close()


def is_waiting_for_ever(thread: int) -> bool:
    """Tell whether the system call in which the thread waits has no time at which it ends."""
    call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()
    if call[0] == "running":
        return False
    number, arguments = int(call[0]), [int(argument, 16) for argument in call[1:7]]
    if platform.machine() == "x86_64":
        futex, poll, read, for_ever = 202, 7, 0, 0xFFFFFFFF
    else:
        futex, poll, read, for_ever = 98, 73, 63, 0
    return (
        number == read
        or (number == futex and arguments[3] == 0)
        or (number == poll and arguments[2] & 0xFFFFFFFF == for_ever)
    )


def test_a_daemon_at_rest_waits_once_until_the_next_cycle(
    users: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    stop, wait = threading.Event(), Listener.wait

    def count(self: Listener, timeout_s: float, *wakes: Wake) -> None:
        waits.append(timeout_s)
        threading.Timer(0.5, stop.set).start()
        wait(self, timeout_s, *wakes)

    monkeypatch.setattr(Listener, "wait", count)
    with users.service() as service:
        service.run_loop(interval_s=600, stop=stop)
    (timeout_s,) = waits
    assert timeout_s > 500


def test_a_wait_may_be_as_long_as_an_interval_may_be(users: World) -> None:
    """A year has more milliseconds than the system takes."""
    with users.connect() as connection, closing(Wake()) as wake:
        listener = Listener(connection)
        listener.take_notice()
        wake.call()
        listener.wait(365 * 24 * 3600, wake)
        assert wake.take()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EMFILE, errno.ENFILE])
def test_a_system_that_has_no_more_watches_is_told_of_once_and_asked_again(
    users: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: int
) -> None:
    """Meanwhile files are found at the interval; when there are watches again, they wake it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(fault, "no more of them")

    schedule, stop = BaseObserver.schedule, threading.Event()
    monkeypatch.setattr(BaseObserver, "schedule", refuse)
    caplog.set_level("INFO", "syncdata")
    with users.service() as service:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 1, "stop": stop})
        loop.start()
        try:
            for number, name in enumerate((FIRST, SECOND), start=1):
                users.write(name, [insert("users", id=number)])
                wait_until(lambda number=number: number in ids(users))  # type: ignore[misc]
            monkeypatch.setattr(BaseObserver, "schedule", schedule)
            wait_until(lambda: "the archive is watched again" in caplog.messages)
        finally:
            stop.set()
            loop.join()
    (trouble,) = [text for text in caplog.messages if "cannot be watched" in text]
    assert "no more of them" in trouble and "max_user_watches" in trouble


def test_an_archive_that_vanishes_and_comes_back_is_watched_again(users: World) -> None:
    stop = threading.Event()
    with users.service() as service:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 1, "stop": stop})
        loop.start()
        try:
            users.write(FIRST, [insert("users", id=1)])
            wait_until(lambda: ids(users) == [1])
            away = users.archive.rename(users.archive.with_name("away"))
            wait_until(lambda: users.value("SELECT errors FROM data_sync_runs"))
            users.archive.mkdir()
            (away / FIRST).rename(users.archive / FIRST)
            users.write(SECOND, [insert("users", id=2)])
            wait_until(lambda: ids(users) == [1, 2])
        finally:
            stop.set()
            loop.join()


def test_a_directory_that_cannot_be_watched_is_no_reason_to_stop(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError, match="cannot be watched: No such file"):
        open_archive(LocalSettings(directory=tmp_path / "missing")).watch(lambda: None)
