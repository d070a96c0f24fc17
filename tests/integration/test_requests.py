"""What operators ask for: paused tables, skipped records, and the queue that a real daemon works off."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from syncdata import signals
from syncdata.apply.progress import NoProgress
from syncdata.apply.state import queue as requests
from syncdata.apply.worker import Worker
from syncdata.changes.names import TableName
from syncdata.errors import ClearError, RequestError
from syncdata.predecessor.statefile import STATE_FILE_NAME
from syncdata.service import format_status
from tests.world import World, insert, update, with_header

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def users(world: World) -> World:
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY, n int)", "CREATE TABLE orders (id int PRIMARY KEY)"
    )
    world.whitelist("users", "orders")
    return world


def wait_until(condition: Callable[[], Any], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def daemon(world: World, **options: Any) -> Iterator[None]:
    """A daemon whose cycles are ten minutes apart."""
    stop = threading.Event()
    with world.service(**options) as service:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 600, "stop": stop})
        loop.start()
        try:
            wait_until(
                lambda: world.value("SELECT count(*) FROM data_sync_runs WHERE last_sync_at > '-infinity'")
            )
            yield
        finally:
            stop.set()
            loop.join()


def ask(world: World, action: str, *tables: str, place: str = "", by: str = "ada") -> int:
    with world.connect() as connection:
        return requests.submit(connection, action, tables, place=place, requested_by=by)


def outcome(world: World, request: int) -> tuple[str, str, str | None]:
    ((state, progress, error),) = world.rows(
        f"SELECT state, progress, error FROM data_sync_requests WHERE id = {request}"
    )
    return state, progress, error


def is_over(world: World, request: int) -> bool:
    return outcome(world, request)[0] in ("done", "failed")


def audit(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT table_name, action, status, archive_ref, requested_by FROM data_sync_logs"
        " WHERE action <> 'sync' ORDER BY sync_time, table_name"
    )


# Pause and resume


def test_a_paused_table_keeps_its_place_while_the_others_go_on(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    users.sync()
    with users.service() as service:
        assert service.pause_tables(["users"], requested_by="ada") == ["users"]
        assert service.pause_tables(["users"]) == []
    users.write(SECOND, [insert("users", id=2), insert("orders", id=2)])
    users.sync()
    assert users.checkpoint("users") == (FIRST, 2, "paused", None)
    assert users.checkpoint("orders")[:3] == (SECOND, 2, "active")
    with users.service() as service:
        assert service.resume_tables(["users", "orders"], requested_by="bob") == ["users"]
    users.sync()
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]
    assert audit(users) == [
        ("users", "pause", "SUCCESS", "", "ada"),
        ("users", "resume", "SUCCESS", "", "bob"),
    ]


def test_a_table_that_was_blocked_before_its_pause_is_blocked_after_it(users: World) -> None:
    users.write(FIRST, [insert("users", id="no number")])
    users.sync()
    blocked = users.checkpoint("users")
    with users.service() as service:
        service.pause_tables(["users"])
        users.sync()
        assert users.checkpoint("users")[2] == "paused"
        service.resume_tables(["users"])
    assert users.checkpoint("users") == blocked
    assert blocked[2] == "blocked"


def test_a_table_can_be_paused_before_its_first_cycle(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    with users.service() as service:
        service.pause_tables(["users"])
    users.sync()
    assert users.checkpoint("users") == ("", 0, "paused", None)


def test_a_blocked_table_that_is_paused_while_it_heals_stays_paused(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    bad = users.write(SECOND, ["no record"])
    users.sync()
    assert users.checkpoint("users")[2] == "blocked"
    bad.unlink()

    class PauseInTheMiddle(NoProgress):
        is_paused = False

        def files_found(self, count: int, size_bytes: int) -> None:
            if not self.is_paused:
                self.is_paused = True
                with users.service() as other:
                    other.pause_tables(["users"])

    with users.service(progress=PauseInTheMiddle()) as service:
        service.run_once()
    assert users.checkpoint("users")[2] == "paused"


def test_what_is_not_whitelisted_can_be_neither_paused_nor_cleared(users: World) -> None:
    with users.service() as service:
        with pytest.raises(RequestError, match="not whitelisted: nobody"):
            service.pause_tables(["users", "nobody"])
        with pytest.raises(ClearError, match="not whitelisted: nobody"):
            service.clear(["users", "nobody"])
    assert users.value("SELECT count(*) FROM data_sync_checkpoints WHERE state = 'paused'") == 0


def test_a_clear_of_one_table_leaves_the_others(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    users.sync()
    with users.service() as service:
        assert service.clear(["users"], requested_by="ada") == ["users"]
    assert users.rows("SELECT * FROM users") == []
    assert users.rows("SELECT * FROM orders") == [(1,)]
    assert users.checkpoint("orders")[0] == FIRST
    users.sync()
    assert users.rows("SELECT id FROM users") == [(1,)]
    assert audit(users) == [("users", "clear", "SUCCESS", "", "ada")]


def test_the_state_file_stays_where_it_was_while_all_tables_are_paused(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    users.sync()
    with users.service() as service:
        service.pause_tables(["users", "orders"])
    users.sync()
    assert json.loads((users.state_dir / STATE_FILE_NAME).read_text())["last_file"] == FIRST


# Skips


@pytest.mark.parametrize("role", ["superuser", "ordinary"])
def test_only_the_record_that_an_operator_names_is_skipped(users: World, role: str) -> None:
    if role == "ordinary":
        users.use_ordinary_role()
    lines = [
        insert("users", id=1, n=1),
        insert("users", id=2, n="first bad"),
        insert("orders", id=1),
        insert("users", id=3, n="second bad"),
        insert("users", id=4, n=4),
    ]
    users.write(FIRST, lines)
    users.sync()
    with users.service() as service:
        with pytest.raises(RequestError, match="not blocked at"):
            service.skip_record("users", f"{FIRST}:4")
        assert service.skip_record("users", f"{FIRST}:2", requested_by="ada") == ["users"]
    users.sync()
    assert users.rows("SELECT * FROM users") == []
    assert f"{FIRST}:4:" in (users.checkpoint("users")[3] or "")
    assert audit(users) == [], "nothing is skipped before its batch commits"
    with users.service() as service:
        service.skip_record("users", f"{FIRST}:4", requested_by="bob")
    users.sync()
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (4,)]
    assert users.checkpoint("users") == (FIRST, 5, "active", None)
    assert sorted(audit(users)) == [
        ("users", "skip", "SUCCESS", f"{FIRST}:2", "ada"),
        ("users", "skip", "SUCCESS", f"{FIRST}:4", "bob"),
    ]
    assert users.value("SELECT count(*) FROM data_sync_checkpoints WHERE skips <> '[]'") == 0
    assert users.value("SELECT sum(records_added) FROM data_sync_metrics WHERE period_type = 'WEEK'") == 3


def test_a_record_that_was_mended_meanwhile_is_applied_and_not_skipped(users: World) -> None:
    users.write(FIRST, [insert("users", id=1, n="bad"), insert("users", id=2, n=2)])
    users.sync()
    with users.service() as service:
        service.skip_record("users", f"{FIRST}:1")
    users.write(FIRST, [insert("users", id=1, n=1), insert("users", id=2, n=2)])
    users.sync()
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]
    assert audit(users) == []
    assert users.value("SELECT count(*) FROM data_sync_checkpoints WHERE skips <> '[]'") == 0


def test_a_line_that_no_table_can_read_is_skipped_for_all_that_it_blocks(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), "no record", insert("orders", id=1), insert("users", id=2)])
    users.sync()
    assert users.checkpoint("users")[2] == users.checkpoint("orders")[2] == "blocked"
    with users.service() as service:
        assert service.skip_record("users", f"{FIRST}:2", requested_by="ada") == ["orders", "users"]
        assert service.skip_record("users", f"{FIRST}:2", requested_by="bob") == ["orders", "users"]
    users.sync()
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]
    assert users.rows("SELECT id FROM orders") == [(1,)]
    assert users.checkpoint("users") == users.checkpoint("orders") == (FIRST, 4, "active", None)
    assert audit(users) == [
        ("orders", "skip", "SUCCESS", f"{FIRST}:2", "ada"),
        ("users", "skip", "SUCCESS", f"{FIRST}:2", "ada"),
    ]


def test_a_record_is_skipped_at_the_place_that_list_tables_shows(users: World) -> None:
    users.write(FIRST, [insert("users", id=1, n="bad"), insert("users", id=2, n=2)])
    users.sync()
    with users.service() as service:
        (place,) = (table.blocking_place for table in service.list_tables() if table.table_name == "users")
        assert place == f"{FIRST}:1"
        assert service.skip_record("users", place, requested_by="ada") == ["users"]
    users.sync()
    assert users.rows("SELECT id FROM users") == [(2,)]
    assert audit(users) == [("users", "skip", "SUCCESS", place, "ada")]


def test_a_skipped_line_counts_as_a_record_of_its_file(users: World) -> None:
    records = [insert("users", id=1), insert("users", id=2), insert("users", id=3)]
    text = with_header(records, seq=1, prev=None)
    broken = text.replace(b'"op": "INSERT", "data": {"id": 2}', b'"op": "NOTHING", "data": {"id": 2}')
    head, _, _ = broken.rpartition(b"# {")
    footer = (
        b'# {"end":true,"records":3,"transactions":3,"sha256":"%s"}\n'
        % hashlib.sha256(head).hexdigest().encode()
    )
    (users.archive / FIRST).write_bytes(head + footer)
    users.sync()
    place = f"{FIRST}:3"
    assert place in (users.checkpoint("users")[3] or "")
    with users.service() as service:
        service.skip_record("users", place)
    users.sync()
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (3,)]
    assert users.checkpoint("users")[:3] == (FIRST, 3, "active")


def test_a_resync_forgets_what_was_to_be_skipped(users: World) -> None:
    users.write(FIRST, [insert("users", id=1, n="bad")])
    users.sync()
    with users.service() as service:
        service.skip_record("users", f"{FIRST}:1")
        users.write(FIRST, [insert("users", id=1, n=1)])
        service.resync("users")
    assert users.value("SELECT count(*) FROM data_sync_checkpoints WHERE skips <> '[]'") == 0


# The queue


def test_a_waiting_daemon_takes_a_request_up_within_a_second(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    with daemon(users):
        users.execute("DELETE FROM users")
        asked = time.monotonic()
        request = ask(users, "resync", "users")
        wait_until(lambda: is_over(users, request))
        assert time.monotonic() - asked < 1
        assert outcome(users, request) == ("done", "1 records", None)
        assert [row[1:] for row in audit(users)] == [("resync", "SUCCESS", FIRST, "ada")]
        assert users.rows("SELECT id FROM users") == [(1,)]


def test_the_daemon_pauses_resumes_skips_and_clears(users: World) -> None:
    users.write(FIRST, [insert("users", id=1, n="bad"), insert("users", id=2), insert("orders", id=1)])
    with daemon(users):
        for action, place in [("pause", ""), ("resume", ""), ("skip", f"{FIRST}:1"), ("clear", "")]:
            request = ask(users, action, "users", place=place)
            wait_until(lambda: is_over(users, request))  # noqa: B023
            assert outcome(users, request)[0] == "done", action
            if action == "skip":
                wait_until(lambda: users.rows("SELECT id FROM users") == [(2,)])
        wait_until(lambda: users.checkpoint("users")[2] == "blocked")
    assert [row[1] for row in audit(users)] == ["pause", "resume", "skip", "clear"]
    assert {row[4] for row in audit(users)} == {"ada"}


def test_a_clear_that_was_asked_for_is_announced_when_it_has_committed(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    request = ask(users, "clear", "users")
    seen: list[tuple[str, int]] = []

    def look(**values: Any) -> None:
        if values["action"] == "clear":
            seen.append((outcome(users, request)[0], users.value("SELECT count(*) FROM users")))

    signals.table_synced.connect(look)
    try:
        users.sync()
    finally:
        signals.table_synced.disconnect(look)
    assert seen == [("done", 0)]


def test_a_retry_starts_a_cycle_at_once(users: World) -> None:
    users.write(FIRST, [insert("users", id=1, extra=1)])
    with daemon(users):
        assert users.checkpoint("users")[2] == "blocked"
        users.execute("ALTER TABLE users ADD COLUMN extra int")
        ask(users, "retry", "users")
        wait_until(lambda: users.checkpoint("users")[2] == "active")


def test_a_request_that_fails_says_why_and_the_next_is_taken(users: World) -> None:
    with daemon(users):
        failing = ask(users, "pause", "nobody")
        unknown = ask(users, "dance", "users")
        fine = ask(users, "pause", "users")
        wait_until(lambda: is_over(users, fine))
        assert outcome(users, failing)[0] == outcome(users, unknown)[0] == "failed"
        assert (outcome(users, failing)[2] or "").startswith("SHD_SYN_056: not whitelisted: nobody")
        assert outcome(users, fine)[0] == "done"


def test_a_request_waits_no_longer_when_taking_it_was_interrupted(users: World) -> None:
    with daemon(users):
        with users.connect() as other, other.transaction():
            other.execute("LOCK TABLE data_sync_requests IN SHARE ROW EXCLUSIVE MODE")
            with users.connect() as bell:
                bell.execute(f"NOTIFY {requests.CHANNEL}")
            wait_until(lambda: users.rows("SELECT pid FROM pg_locks WHERE NOT granted"))
            request = requests.submit(other, "pause", ["users"])
            users.execute("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted")
        wait_until(lambda: is_over(users, request))
    assert outcome(users, request)[0] == "done"


def test_a_name_that_is_none_keeps_a_retry_from_nothing_and_other_requests_from_all(users: World) -> None:
    users.execute("INSERT INTO tables_to_sync (table_name) VALUES ('a.b.c')")  # the predecessor took it
    retry, pause = ask(users, "retry", "a.b.c", "users"), ask(users, "pause", "a.b.c", "users")
    users.sync()
    assert outcome(users, retry) == ("done", "a cycle is started", None)
    assert outcome(users, pause)[0] == "failed"
    assert users.value(f"SELECT error_code FROM data_sync_requests WHERE id = {pause}") == RequestError.code
    assert users.checkpoint("users")[2] == "active"


def test_the_listener_hears_in_a_process_with_many_open_files(users: World) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    with ExitStack() as cleanup:
        cleanup.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            cleanup.enter_context(open(os.devnull))
        connection = cleanup.enter_context(users.connect())
        assert connection.fileno() > 1024
        listener = requests.Listener(connection)
        assert listener.take_notice()
        ask(users, "pause", "users")
        listener.wait(10)
        assert listener.take_notice()


def test_a_daemon_listens_again_after_its_connection_was_lost(users: World) -> None:
    with daemon(users):
        users.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        request = ask(users, "pause", "users")
        wait_until(lambda: is_over(users, request))
        later = ask(users, "resume", "users")
        wait_until(lambda: is_over(users, later))
    assert outcome(users, request)[0] == outcome(users, later)[0] == "done"


def test_a_request_left_running_by_a_daemon_that_was_killed_is_carried_out_once(users: World) -> None:
    request = ask(users, "pause", "users")
    users.execute(f"UPDATE data_sync_requests SET state = 'running', attempts = 1 WHERE id = {request}")
    with daemon(users):
        wait_until(lambda: is_over(users, request))
    assert outcome(users, request)[0] == "done"
    assert [row[1] for row in audit(users)] == ["pause"]


def test_a_request_that_keeps_ending_the_daemon_is_given_up(users: World) -> None:
    request = ask(users, "resync", "users")
    users.execute(f"UPDATE data_sync_requests SET state = 'running', attempts = 3 WHERE id = {request}")
    users.sync()
    state, _, error = outcome(users, request)
    assert state == "failed"
    assert "ended 3 times" in (error or "")


def test_one_cycle_by_hand_works_off_the_queue_first(users: World) -> None:
    users.write(FIRST, [insert("users", id=1)])
    request = ask(users, "pause", "users")
    users.sync()
    assert outcome(users, request)[0] == "done"
    assert users.rows("SELECT * FROM users") == []


def test_a_request_is_carried_out_between_the_batches_of_a_long_cycle(users: World) -> None:
    users.write(
        FIRST, [insert("users", id=n, ts=f"2026-02-05T10:{n // 60:02}:{n % 60:02}Z") for n in range(1800)]
    )

    class PauseInTheMiddle:
        """Asks once, when the first batch has been applied."""

        is_asked = False

        def files_found(self, count: int, size_bytes: int) -> None: ...
        def file_started(self, name: str, size_bytes: int) -> None: ...
        def file_finished(self, name: str) -> None: ...

        def batch_applied(self, records: int, size_bytes: int) -> None:
            if not self.is_asked:
                self.is_asked = True
                ask(users, "pause", "users")

    users.options["batch_records"] = 100
    with users.service(progress=PauseInTheMiddle()) as service:
        service.run_once()
    file, number, state, _ = users.checkpoint("users")
    assert (file, state) == (FIRST, "paused")
    assert 100 <= number < 1800
    assert users.value("SELECT count(*) FROM users") == number
    assert users.checkpoint("orders")[:2] == (FIRST, 1800)


def test_a_daemon_that_is_stopped_in_the_middle_of_a_resync_leaves_it_to_the_next(users: World) -> None:
    users.write(FIRST, [insert("users", id=n) for n in range(10)])
    users.sync()
    request = ask(users, "resync", "users")
    stop = threading.Event()

    with users.service() as service:
        original = service._worker.resync

        def resync(table: TableName, **options: Any) -> Any:
            stop.set()
            return original(table, **options)

        service._worker.resync = resync  # type: ignore[method-assign, assignment]
        service.run_once(stop)
    assert outcome(users, request)[0] == "waiting"
    users.sync()
    assert outcome(users, request)[0] == "done"
    assert users.value("SELECT count(*) FROM users") == 10


def test_what_a_stopped_run_left_is_carried_out_by_the_next_of_the_same_service(users: World) -> None:
    stop = threading.Event()
    with users.service() as service:
        service.run_once()
        stop.set()
        request = ask(users, "pause", "users")
        service.run_once(stop)
        assert outcome(users, request)[0] == "waiting"
        service.run_once()
    assert outcome(users, request)[0] == "done"


@pytest.fixture
def held_resync(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Events that a daemon's resync has begun, and that it may go on; a stop lets it go on, too."""
    begun, may_go_on = threading.Event(), threading.Event()
    rebuild = Worker._rebuild

    def held(worker: Worker, resources: Any, tables: Any, stop: threading.Event, *rest: Any) -> Any:
        begun.set()
        wait_until(lambda: may_go_on.is_set() or stop.is_set(), timeout_s=60)
        return rebuild(worker, resources, tables, stop, *rest)

    monkeypatch.setattr(Worker, "_rebuild", held)
    yield begun, may_go_on
    may_go_on.set()


def test_the_other_tables_go_on_while_a_table_is_resynced(
    users: World, held_resync: tuple[threading.Event, threading.Event]
) -> None:
    begun, may_go_on = held_resync
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    with daemon(users):
        resync = ask(users, "resync", "users")
        assert begun.wait(30)
        users.write(SECOND, [insert("users", id=2), insert("orders", id=2)])
        ask(users, "retry", "orders")
        wait_until(lambda: users.value("SELECT count(*) FROM orders") == 2)
        assert outcome(users, resync)[0] == "running"
        may_go_on.set()
        wait_until(lambda: is_over(users, resync))
        # It has followed the others, so readers of users have not gone back.
        assert users.checkpoint("users")[:3] == users.checkpoint("orders")[:3] == (SECOND, 2, "active")
    assert outcome(users, resync) == ("done", "2 records", None)
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]


def test_requests_for_a_table_keep_their_order(
    users: World, held_resync: tuple[threading.Event, threading.Event]
) -> None:
    begun, may_go_on = held_resync
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    with daemon(users):
        first = ask(users, "resync", "users")
        assert begun.wait(30)
        waiting = [ask(users, "pause", "users", "orders"), ask(users, "resume", "orders")]
        waiting.append(ask(users, "resync", "orders"))
        wait_until(lambda: is_over(users, ask(users, "retry")))
        assert [outcome(users, request)[0] for request in (first, *waiting)] == ["running", *["waiting"] * 3]
        may_go_on.set()
        wait_until(lambda: all(is_over(users, request) for request in (first, *waiting)))
        assert {outcome(users, request)[0] for request in (first, *waiting)} == {"done"}
    assert users.checkpoint("users")[2] == "paused"
    assert users.checkpoint("orders")[2] == "active"


def test_a_daemon_that_stops_during_a_resync_beside_it_puts_that_back(
    users: World, held_resync: tuple[threading.Event, threading.Event]
) -> None:
    users.write(FIRST, [insert("users", id=1)])
    with daemon(users):
        resync = ask(users, "resync", "users")
        assert held_resync[0].wait(30)
    assert outcome(users, resync)[0] == "waiting"
    held_resync[1].set()
    users.sync()
    assert outcome(users, resync)[0] == "done"


def test_a_resync_whose_connection_is_lost_is_taken_again(
    users: World, held_resync: tuple[threading.Event, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = held_resync
    users.write(FIRST, [insert("users", id=1)])
    with daemon(users):
        resync = ask(users, "resync", "users")
        assert begun.wait(30)
        users.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
            " AND pid <> pg_backend_pid()"
        )
        may_go_on.set()
        wait_until(lambda: is_over(users, resync))
    assert outcome(users, resync)[0] == "done"
    assert users.value("SELECT attempts FROM data_sync_requests") == 2


def test_a_resync_does_not_go_back_to_where_the_others_are_paused(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), insert("orders", id=1)])
    users.sync()
    with users.service() as service:
        service.pause_tables(["orders"])
    users.write(SECOND, [insert("users", id=2), insert("orders", id=2)])
    users.sync()
    with users.service() as service:
        service.resync("users")
    assert users.checkpoint("users")[:3] == (SECOND, 2, "active")
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (2,)]


def test_requests_and_lost_connections_beside_a_busy_daemon_lose_and_double_nothing(world: World) -> None:
    """Tables without a key show what is applied twice."""
    tables = ["a", "b"]
    world.execute(*(f"CREATE TABLE {table} (v int)" for table in tables))
    world.whitelist(*tables)
    world.options["batch_records"] = 20
    asked = ["pause", "resume", "clear", "resync", "pause", "clear", "resync", "pause", "resume"]
    last = ""
    with daemon(world):
        for number, action in enumerate(asked):
            last = f"changes_20260205_10300{number}.json"
            moments = [(n, f"2026-02-05T10:3{number}:{n // 6:02}.{n % 6}Z") for n in range(300)]
            world.write(last, [insert(t, ts=ts, v=number * 300 + n) for n, ts in moments for t in tables])
            ask(world, action, "a")
            ask(world, "retry", *tables)  # a cycle, for the next request to interrupt
            time.sleep(0.1 * (number % 4))
            if number % 2:
                world.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        ask(world, "retry", *tables)
        ends = [(last, 600, "active", None)] * 2
        wait_until(lambda: [world.checkpoint(table) for table in tables] == ends, timeout_s=60)
    everything = [(v,) for v in range(300 * len(asked))]
    for table in tables:
        assert world.rows(f"SELECT v FROM {table} ORDER BY v") == everything
    assert not world.rows("SELECT FROM data_sync_requests WHERE state <> 'done'")
    done = [action for _, action, status, _, _ in audit(world) if status == "SUCCESS"]
    assert (done.count("clear"), done.count("pause"), done.count("resume")) == (2, 3, 2)


# What the dashboard shows


def test_what_is_waiting_is_noted_with_the_run(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), "no record"])
    second = users.write(SECOND, [insert("users", id=2)])
    users.sync()
    waiting = users.rows("SELECT waiting_files, waiting_bytes FROM data_sync_runs")
    assert waiting == [(2, (users.archive / FIRST).stat().st_size + second.stat().st_size)]
    users.write(FIRST, [insert("users", id=1)])
    users.sync()
    assert users.rows("SELECT waiting_files, waiting_bytes FROM data_sync_runs ORDER BY id DESC")[0] == (0, 0)


def test_each_minute_counts_what_was_applied_in_it_and_how_old_it_was(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), update("users", id=1, n=2), insert("orders", id=1)])
    users.sync()
    ((added, updated, deleted, lag_s),) = users.rows(
        "SELECT records_added, records_updated, records_deleted, lag_s FROM data_sync_minutes"
    )
    assert (added, updated, deleted) == (2, 1, 0)
    assert lag_s > 3600, "the records are of February"


def test_what_a_command_leaves_to_do_wakes_a_daemon_that_rests(users: World) -> None:
    users.write(FIRST, [insert("users", id=1), insert("late", id=7), insert("users", id=2, n="no number")])
    users.execute("CREATE TABLE late (id int PRIMARY KEY)")
    with daemon(users), users.service() as service:
        service.add_tables(["late"])
        wait_until(lambda: users.rows("SELECT id FROM late") == [(7,)])
        service.skip_record("users", f"{FIRST}:3")
        wait_until(lambda: users.checkpoint("users")[2] == "active")
        service.pause_tables(["users"])
        users.write(SECOND, [insert("users", id=3)])
        service.resume_tables(["users"])
        wait_until(lambda: (3,) in users.rows("SELECT id FROM users"))
        service.clear(["late"])
        wait_until(lambda: users.rows("SELECT id FROM late") == [(7,)])


def test_how_fresh_a_table_is_survives_its_resync(users: World) -> None:
    users.write(FIRST, [insert("users", ts="2026-02-05T10:30:00Z", id=1)])
    users.sync()
    users.write(SECOND, [insert("orders", ts="2026-02-05T10:31:00Z", id=1)])
    users.sync()
    with users.service() as service:
        service.resync("users")
        service.resync("orders")
        fresh = {info.table_name: info.last_change_at for info in service.list_tables()}
        status = service.get_status()
    assert {name: f"{moment:%H:%M}" for name, moment in fresh.items() if moment} == {
        "users": "10:30",
        "orders": "10:31",
    }
    assert "newest change applied: 2026-02-05T10:31:00Z" in format_status(status)


def test_a_table_that_was_behind_is_as_fresh_as_its_resync_made_it(users: World) -> None:
    users.write(FIRST, [insert("users", ts="2026-02-05T10:30:00Z", id=1)])
    users.sync()
    with users.service() as service:
        service.pause_tables(["users"])
        users.write(SECOND, [insert("users", ts="2026-02-05T10:31:00Z", id=2), insert("orders", id=1)])
        service.run_once()
        service.resync("users")
        (_, info) = service.list_tables()
    assert f"{info.last_change_at:%H:%M}" == "10:31"
