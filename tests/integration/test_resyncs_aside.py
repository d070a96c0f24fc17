"""A daemon's resync in its thread, and all that may happen beside it: every row is there once in the end.

Tables without a key show what is applied twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from syncdata.apply import progress, resync, worker
from syncdata.apply.context import Resources
from syncdata.apply.plan.batches import Limits
from syncdata.apply.position import Position
from syncdata.apply.postgres.shadow import ShadowTarget
from syncdata.apply.state import queue
from syncdata.apply.state.checkpoints import lock_checkpoints, reset_checkpoints
from syncdata.apply.worker import Worker
from syncdata.changes.names import TableName
from syncdata.connections import AliasSession
from syncdata.errors import RequestError, ServiceInitError
from tests.integration.test_requests import ask, daemon, is_over, outcome, wait_until
from tests.world import World, insert

FIRST, SECOND, THIRD = (f"changes_20260205_10300{n}.json" for n in range(3))


@pytest.fixture
def bags(world: World) -> World:
    """Two tables with a row each."""
    world.execute("CREATE TABLE bag (v int)", "CREATE TABLE other (v int)")
    world.whitelist("bag", "other")
    world.write(FIRST, [insert("bag", v=1), insert("other", v=1)])
    world.sync()
    return world


@dataclass
class Held:
    """Work that waits at a step: it has ``come`` there, and goes on once it may ``go_on``."""

    come: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.come.set()
        assert self.go_on.wait(60)


# Where the thread can be held: before it begins, with its snapshot loaded, and before the rows are exchanged.
STEPS: dict[str, tuple[Any, str]] = {
    "begin": (Resources, "open_sink"),
    "load": (resync, "load_newest"),
    "replay": (resync, "_follow"),
    "exchange": (ShadowTarget, "exchange"),
}


@contextmanager
def held(step: str) -> Iterator[Held]:
    """Hold the first thread of a resync that comes to *step*; at the end it may go on."""
    owner, name = STEPS[step]
    original = getattr(owner, name)
    work = Held()

    def wait_once(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith("syncdata-resync") and not work.come.is_set():
            work.wait()
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wait_once)
        try:
            yield work
        finally:
            work.go_on.set()


@contextmanager
def resyncing(world: World, step: str, *tables: str) -> Iterator[int]:
    """A daemon whose resync of *tables* waits at *step* in the block; afterwards it is carried out."""
    with ExitStack() as stack:
        stack.enter_context(daemon(world))
        with held(step) as work:
            request = ask(world, "resync", *(tables or ("bag",)))
            assert work.come.wait(30)
            yield request
        wait_until(lambda: is_over(world, request))


def rows(world: World, table: str = "bag") -> list[int]:
    return [v for (v,) in world.rows(f"SELECT v FROM {table} ORDER BY v")]


def write_more(world: World) -> None:
    """Add a file, and have the daemon apply it to the table that is not being resynced."""
    world.write(SECOND, [insert("bag", v=2), insert("other", v=2)])
    ask(world, "retry")
    wait_until(lambda: rows(world, "other") == [1, 2])


at_each_step = pytest.mark.parametrize("step", STEPS)


# What operators do beside it, without asking the daemon


@at_each_step
def test_a_clear_while_a_table_is_resynced_leaves_each_row_once(bags: World, step: str) -> None:
    with resyncing(bags, step) as request, bags.service() as service:
        service.clear(["bag"])
        write_more(bags)
    assert outcome(bags, request)[0] == "done"
    bags.sync()
    assert rows(bags) == [1, 2]
    assert bags.checkpoint("bag")[:3] == (SECOND, 2, "active")


@at_each_step
def test_a_pause_while_a_table_is_resynced_lasts(bags: World, step: str) -> None:
    with resyncing(bags, step) as request, bags.service() as service:
        service.pause_tables(["bag"])
    assert outcome(bags, request)[0] == "done"
    bags.write(SECOND, [insert("bag", v=2)])
    bags.sync()
    if step == "begin":  # it was paused before: a resync ends that
        assert bags.checkpoint("bag")[:3] == (SECOND, 1, "active")
        return
    assert bags.checkpoint("bag")[:3] == (FIRST, 2, "paused")
    assert rows(bags) == [1]


@at_each_step
def test_a_table_that_is_removed_while_it_is_resynced_keeps_its_rows(bags: World, step: str) -> None:
    with resyncing(bags, step) as request, bags.service() as service:
        service.remove_tables(["bag"])
        bags.execute("INSERT INTO bag VALUES (77)")  # it is the local side's own now
    state, _, error = outcome(bags, request)
    assert (state, rows(bags)) == ("failed", [1, 77])
    assert "whitelist" in (error or "")


@at_each_step
def test_tables_that_are_added_while_another_is_resynced_begin(bags: World, step: str) -> None:
    bags.execute("CREATE TABLE late (v int)")
    bags.write(SECOND, [insert("bag", v=2), insert("late", v=7)])
    with resyncing(bags, step) as request, bags.service() as service:
        service.add_tables(["late"])
        wait_until(lambda: rows(bags, "late") == [7])
    assert outcome(bags, request)[0] == "done"
    bags.sync()  # the daemon may have stopped between the exchange and the next cycle
    assert rows(bags) == [1, 2]


@at_each_step
def test_a_second_resync_by_a_command_leaves_each_row_once(bags: World, step: str) -> None:
    with resyncing(bags, step) as request, bags.service() as service:
        write_more(bags)
        service.resync_tables(["bag", "other"])
    assert outcome(bags, request)[0] == "done"
    bags.sync()
    assert rows(bags) == rows(bags, "other") == [1, 2]
    assert bags.rows("SELECT DISTINCT file, record_number FROM data_sync_checkpoints") == [(SECOND, 2)]


@pytest.mark.parametrize("change", ["ALTER v TYPE smallint", "ADD w int DEFAULT 5", "ADD CHECK (v > 0)"])
def test_a_table_that_is_altered_while_it_is_resynced_keeps_its_rows(bags: World, change: str) -> None:
    with resyncing(bags, "exchange") as request:
        bags.execute(f"ALTER TABLE bag {change}", "UPDATE bag SET v = 100 + v")
    state, _, error = outcome(bags, request)
    if "CHECK" in change:  # which is no part of what rows are made for
        assert (state, rows(bags)) == ("done", [1])
        return
    assert (state, rows(bags)) == ("failed", [101])
    assert "it was altered while its new rows were being loaded" in (error or "")
    with bags.service() as service:
        service.resync("bag")
    assert rows(bags) == [1]


# What goes wrong meanwhile


def test_a_file_that_breaks_in_the_middle_leaves_the_old_rows_until_it_is_mended(bags: World) -> None:
    good = [insert("bag", v=2), insert("other", v=2)]
    bags.write(SECOND, good)
    bags.write(THIRD, [insert("bag", v=3)])
    bags.sync()
    with resyncing(bags, "replay") as failing:
        bags.write(SECOND, [insert("bag", v=22), "no record"])
    with resyncing(bags, "replay") as request:
        assert rows(bags) == [1, 2, 3]
        bags.write(SECOND, good)
    state, _, error = outcome(bags, failing)
    assert state == "failed"
    assert f"{SECOND}:2" in (error or "")
    assert outcome(bags, request)[0] == "done"
    assert rows(bags) == [1, 2, 3]
    assert bags.checkpoint("bag")[:3] == (THIRD, 1, "active")


@at_each_step
def test_a_resync_whose_connection_is_lost_is_taken_again_and_no_cycle_fails(bags: World, step: str) -> None:
    with resyncing(bags, step) as request:
        terminate_all_but_the_daemon(bags)
    assert outcome(bags, request)[0] == "done"
    assert bags.value("SELECT attempts FROM data_sync_requests WHERE action = 'resync'") == 2
    assert bags.value("SELECT sum(errors) FROM data_sync_runs") == 0
    assert rows(bags) == [1]


def test_a_resync_whose_connection_is_lost_between_two_batches_is_taken_again(
    bags: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What notes its progress is the first to notice."""
    monkeypatch.setattr(progress, "_NOTE_EVERY_S", 0.0)
    noted = progress.RequestProgress.batch_applied
    lost: list[int] = []

    def lose_and_note(*args: Any) -> None:
        if not lost:
            lost.append(1)
            terminate_all_but_the_daemon(bags)
        noted(*args)

    monkeypatch.setattr(progress.RequestProgress, "batch_applied", lose_and_note)
    with daemon(bags):
        request = ask(bags, "resync", "bag")
        wait_until(lambda: is_over(bags, request))
    assert lost
    assert outcome(bags, request) == ("done", "1 records", None)
    assert bags.value("SELECT sum(errors) FROM data_sync_runs") == 0
    assert rows(bags) == [1]


def test_a_resync_that_keeps_losing_its_connection_says_so(bags: World) -> None:
    with pytest.MonkeyPatch.context() as patch, daemon(bags):

        def lose(*args: Any, **kwargs: Any) -> Any:
            raise psycopg.OperationalError("the connection is lost")

        patch.setattr(resync, "find_snapshots", lose)
        patch.setattr(worker, "_FIRST_RETRY_S", 0.01)
        request = ask(bags, "resync", "bag")
        wait_until(lambda: is_over(bags, request))
    state, _, error = outcome(bags, request)
    assert state == "failed"
    assert "the daemon, or its connection, ended 3 times" in (error or "")


@at_each_step
def test_a_resync_goes_on_while_the_cycles_connection_is_lost(bags: World, step: str) -> None:
    with resyncing(bags, step) as request:
        bags.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        write_more(bags)
    assert outcome(bags, request)[0] == "done"
    assert bags.value("SELECT attempts FROM data_sync_requests WHERE action = 'resync'") == 1
    bags.sync()
    assert rows(bags) == rows(bags, "other") == [1, 2]


def terminate_all_but_the_daemon(world: World) -> None:
    world.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory') AND pid <> pg_backend_pid()"
    )


def test_a_daemon_that_lost_its_lock_says_nothing_of_a_request_that_another_has_taken(bags: World) -> None:
    request = ask(bags, "resync", "bag")
    with bags.connect() as connection:
        first = queue.take(connection)
        second = queue.take(connection)
        assert first is not None
        assert second is not None
        queue.note_progress(connection, second, "42 %")
        queue.note_progress(connection, first, "7 %")
        queue.put_back(connection, first)
        queue.fail(connection, first, RequestError("it failed", hint=""))
        assert outcome(bags, request) == ("running", "42 %", None)
        queue.finish(connection, second, "1 records")
        queue.finish(connection, first, "9 records")
        assert outcome(bags, request) == ("done", "1 records", None)


def test_a_daemon_that_lost_its_lock_says_nothing_of_a_request_that_another_has_put_back(bags: World) -> None:
    request = ask(bags, "resync", "bag")
    with bags.connect() as connection:
        first = queue.take(connection)
        second = queue.take(connection)
        assert first is not None
        assert second is not None
        queue.put_back(connection, second)
        queue.fail(connection, first, RequestError("it failed", hint=""))
        assert outcome(bags, request) == ("waiting", "", None)
        assert queue.take(connection) == second


def test_a_checkpoint_that_is_replaced_meanwhile_is_locked_all_the_same(bags: World) -> None:
    """Two rebuilds of a table end at the same time."""
    table = TableName("public", "bag")
    locked: list[Position] = []
    with bags.connect() as first, bags.connect() as second:

        def lock() -> None:
            with second.transaction():
                locked.extend(checkpoint.position for checkpoint in lock_checkpoints(second, [table]))

        waiting = threading.Thread(target=lock)
        with first.transaction():
            lock_checkpoints(first, [table])
            reset_checkpoints(first, [table], Position(file=THIRD))
            waiting.start()
            wait_until(lambda: bags.rows("SELECT FROM pg_locks WHERE NOT granted"))
        waiting.join(10)
    assert [position.file for position in locked] == [THIRD]


def test_a_server_without_room_for_another_session_has_resyncs_between_cycles(
    bags: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoSession:
        def connect(self) -> Any:
            raise ServiceInitError("too many connections", hint="")

    with daemon(bags):
        monkeypatch.setattr(AliasSession, "another", lambda self: NoSession())
        request = ask(bags, "resync", "bag")
        wait_until(lambda: is_over(bags, request))
    assert outcome(bags, request) == ("done", "1 records", None)


def test_a_resync_for_which_there_is_no_thread_leaves_the_cycles_their_limits_and_no_session(
    bags: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    made: list[Limits] = []
    context = Resources.context

    def note(self: Resources, stop: threading.Event) -> Any:
        made.append(context(self, stop).limits)
        return context(self, stop)

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Resources, "context", note)
    with daemon(bags):
        before = bags.value(sessions)
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", refuse)
            request = ask(bags, "resync", "bag")
            wait_until(lambda: is_over(bags, request))
        write_more(bags)
        wait_until(lambda: bags.value(sessions) == before)
    assert outcome(bags, request)[0] == "failed"
    assert len(set(made)) == 1


# Beside the cycles


def test_a_cycle_and_the_resync_beside_it_share_one_batchs_limits(
    bags: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags.options |= {"batch_records": 1000, "batch_bytes": 10_000}
    limits: dict[str, Limits] = {}
    context = Resources.context

    def note(self: Resources, stop: threading.Event) -> Any:
        made = context(self, stop)
        limits[threading.current_thread().name.partition("_")[0]] = made.limits
        return made

    monkeypatch.setattr(Resources, "context", note)
    with resyncing(bags, "exchange"):
        limits.clear()
        write_more(bags)
        ((beside, bytes_beside),) = [(each.batch_records, each.batch_bytes) for each in limits.values()]
    bags.sync()
    assert (beside, bytes_beside) == (500, 5_000)
    assert limits["MainThread"].batch_records == 1000


def test_the_end_of_a_resync_is_noted_between_two_batches_of_a_long_cycle(
    bags: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what waits for it need not wait for the cycle."""
    bags.options["batch_records"] = 1
    states: list[str] = []
    workers: list[Worker] = []
    begin_aside = Worker._begin_aside

    def note(self: Worker, *args: Any) -> None:
        workers.append(self)
        begin_aside(self, *args)

    monkeypatch.setattr(Worker, "_begin_aside", note)

    class Watcher(progress.NoProgress):
        """Lets the resync go on, and end, in the middle of the cycle."""

        def batch_applied(self, records: int, size_bytes: int) -> None:
            if workers:
                states.append(outcome(bags, request)[0])
                work.go_on.set()
                wait_until(lambda: workers[0]._is_aside_over or states[-1] == "done")

    with daemon(bags, progress=Watcher()), held("exchange") as work:
        request = ask(bags, "resync", "bag")
        assert work.come.wait(30)
        bags.write(SECOND, [insert("other", ts=f"2026-02-05T10:30:0{n}Z", v=n) for n in range(2, 6)])
        ask(bags, "retry")
        wait_until(lambda: rows(bags, "other") == [1, 2, 3, 4, 5])
    assert states[:2] == ["running", "done"]
