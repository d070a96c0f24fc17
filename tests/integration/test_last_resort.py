"""Both daemons, when something goes wrong that nobody foresaw: they say so, and try again."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from syncdata.apply import actions, worker
from syncdata.apply.bootstrap import Pass
from syncdata.archive.retention import Removals
from syncdata.capture import archiver as archiver_module
from syncdata.capture import housekeeper, session
from syncdata.capture.assembler import Assembler
from syncdata.capture.chain import load_chain
from syncdata.capture.housekeeper import Housekeeper, SourceView
from syncdata.capture.trouble import load_trouble, trouble_problems
from syncdata.monitoring import status_metrics
from syncdata.service import DaemonStatus
from tests.chains import archived_records
from tests.production import Production
from tests.world import World, insert

VALUE = "hunter2-in-a-row"
PATIENCE_S = 20
FAULTS = [
    TypeError(VALUE),
    KeyError(VALUE),
    MemoryError(),
    RecursionError(VALUE),
    OSError(5, "Input/output error"),
    AssertionError(VALUE),
]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Fault:
    """Stands in the place of *original*, and fails with *error* as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException) -> None:
        self.calls = 0
        self.lasts = True
        original = getattr(owner, name)

        def faulty(*args: Any, **kwargs: Any) -> Any:
            if self.lasts:
                self.calls += 1
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, faulty)


@contextmanager
def running(loop: Callable[[threading.Event], object]) -> Iterator[None]:
    """Run *loop* beside the test, which it must outlive."""
    stop, ended = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            loop(stop)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        assert not ended and thread.is_alive()
    finally:
        stop.set()
        thread.join(PATIENCE_S)


@contextmanager
def daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "_FIRST_RETRY_S", 0.05)
    service = world.service()
    try:
        with running(lambda stop: service.run_loop(interval_s=1, stop=stop)):
            yield
    finally:
        service.close()


def status(world: World) -> DaemonStatus:
    with world.service() as service:
        return service.get_status()


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_daemon_outlives_an_error_that_nobody_foresaw(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    world.write("changes_20260205_103000.json", [insert("t", id=1)])
    fault = Fault(monkeypatch, Pass, "run", error)

    with caplog.at_level(logging.INFO, "syncdata"), daemon(world, monkeypatch):
        wait_until(lambda: fault.calls >= 3)
        (problem,) = [p for p in status(world).problems if p.kind == "cycle-failed"]
        assert "SHD_SYN_094" in str(problem) and f"unexpected: {type(error).__name__}" in str(problem)
        metrics = {
            sample.name: sample.value
            for family in status_metrics(status(world), now=dt.datetime.now(dt.UTC))
            for sample in family.samples
        }
        assert metrics["syncdata_unexpected_errors_total"] >= 2
        fault.lasts = False
        wait_until(lambda: world.value("SELECT count(*) FROM t") == 1)
        wait_until(lambda: not [p for p in status(world).problems if p.kind == "cycle-failed"])

    told = [record.getMessage() for record in caplog.records if "Traceback" in record.getMessage()]
    assert len(told) == 1, "once with its traceback"
    assert "the cycles go on" in caplog.text
    assert VALUE not in caplog.text
    assert world.value("SELECT count(*) FROM data_sync_runs WHERE unexpected_errors > 1") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__)
def test_what_ends_a_process_still_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    Fault(monkeypatch, Pass, "run", error)

    with world.service() as service, pytest.raises(type(error)):
        service.run_loop(interval_s=1, stop=threading.Event())


def test_a_request_that_fails_so_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE u (id int PRIMARY KEY)")
    world.whitelist("t", "u")
    Fault(monkeypatch, actions, "pause", TypeError(VALUE))
    world.execute(
        "INSERT INTO data_sync_requests (action, table_names, requested_by) VALUES"
        " ('pause', '{t}', 'jane'), ('retry', '{u}', 'jane')"
    )

    with daemon(world, monkeypatch):
        wait_until(
            lambda: (
                world.rows("SELECT state, error_code FROM data_sync_requests ORDER BY id")
                == [("failed", "SHD_SYN_094"), ("done", None)]
            )
        )

    assert VALUE not in caplog.text
    assert VALUE not in str(world.rows("SELECT * FROM data_sync_requests"))


def test_tables_of_syncdata_that_go_and_come_under_the_daemon_are_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")

    with caplog.at_level(logging.INFO, "syncdata"), daemon(world, monkeypatch):
        wait_until(lambda: world.value("SELECT count(last_sync_at) FROM data_sync_runs") == 1)
        call_command("migrate", "syncdata", "zero", database=world.alias, verbosity=0)
        wait_until(lambda: "run 'python manage.py migrate'" in caplog.text)
        call_command("migrate", "syncdata", database=world.alias, verbosity=0)
        connections[world.alias].close()
        world.whitelist("t")
        world.write("changes_20260205_103000.json", [insert("t", id=1)])
        wait_until(lambda: world.value("SELECT count(*) FROM t") == 1)
        wait_until(lambda: status(world).is_active and not status(world).problems)

    assert "SHD_SYN_094" not in caplog.text


def test_a_database_that_is_dropped_and_made_anew_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")

    with caplog.at_level(logging.INFO, "syncdata"), daemon(world, monkeypatch):
        wait_until(lambda: world.value("SELECT count(last_sync_at) FROM data_sync_runs") == 1)
        with world.database.server.connect(autocommit=True) as server:
            server.execute(f"DROP DATABASE {world.alias} WITH (FORCE)")
            wait_until(lambda: "SHD_SYN_090" in caplog.text)
            server.execute(f"CREATE DATABASE {world.alias}")
        wait_until(lambda: "run 'python manage.py migrate'" in caplog.text)
        call_command("migrate", database=world.alias, verbosity=0)
        connections[world.alias].close()
        world.execute("CREATE TABLE t (id int PRIMARY KEY)")
        world.whitelist("t")
        world.write("changes_20260205_103000.json", [insert("t", id=1)])
        wait_until(lambda: world.value("SELECT count(*) FROM t") == 1)
        wait_until(lambda: status(world).is_active)

    assert "SHD_SYN_094" not in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_an_archiver_outlives_an_error_that_nobody_foresaw(
    make_production: Callable[..., Production],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    monkeypatch.setattr(archiver_module, "_FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(archiver_module, "_SETTLED_S", 0.2)
    production = make_production(rotate_s=1)
    production.execute("CREATE TABLE t (id int PRIMARY KEY)")
    production.publish("t")
    fault = Fault(monkeypatch, Assembler, "take", error)

    with caplog.at_level(logging.INFO, "syncdata"), running(production.archiver().run_loop):
        wait_until(lambda: load_chain(production.spool_dir) is not None)
        production.execute("INSERT INTO t VALUES (1)")
        wait_until(lambda: fault.calls >= 3)
        (problem,) = trouble_problems(production.spool_dir)
        assert f"unexpected: {type(error).__name__}" in str(problem)
        head = production.open_archive().read_head()
        assert head is not None and (head.state, head.error_code) == ("waiting", "SHD_SYN_094")
        fault.lasts = False
        wait_until(lambda: len(archived_records(production.archive_dir)) == 1)
        wait_until(lambda: load_trouble(production.spool_dir) is None)

    assert len([r for r in caplog.records if "Traceback" in r.getMessage()]) == 1
    assert VALUE not in caplog.text


def test_an_errand_that_fails_so_keeps_no_file_from_the_archive(
    production: Production, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Fault(monkeypatch, session, "write_head", TypeError(VALUE))
    production.execute("CREATE TABLE t (id int PRIMARY KEY)")
    production.publish("t")
    production.execute("INSERT INTO t VALUES (1)")

    production.archive()

    assert len(archived_records(production.archive_dir)) == 1
    assert "SHD_SYN_094" in caplog.text and VALUE not in caplog.text


def test_the_housekeepers_thread_goes_on_after_such_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeper, "_FIRST_WATCH_S", 0.01)
    monkeypatch.setattr(housekeeper, "_WATCH_EVERY_S", 0.01)
    seen = list[int]()

    def view() -> SourceView:
        seen.append(1)
        if len(seen) < 4:
            raise TypeError(VALUE)
        return SourceView(slot=None, unpublished=())

    with Housekeeper(view, lambda: Removals(), prune_every_s=0, stop=threading.Event()):
        wait_until(lambda: len(seen) > 5)

    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert VALUE not in caplog.text
