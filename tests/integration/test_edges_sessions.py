"""Sessions that break at bad moments, several processes at one table, and who holds which lock."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from syncdata.apply.plan.batches import Batch, BatchFile, Segment
from syncdata.apply.position import Advance, Position
from syncdata.apply.postgres.target import Target
from syncdata.apply.state.checkpoints import (
    CheckpointMovedError,
    lock_checkpoints,
    open_checkpoints,
    require_position,
)
from syncdata.changes.names import TableName
from syncdata.errors import ServiceInitError, SyncError
from tests.world import World, delete, insert, update

FIRST, SECOND, THIRD = (f"changes_20260205_10300{n}.json" for n in range(3))
CUT_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def one(world: World) -> World:
    """One whitelisted table t with one row synced."""
    world.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    world.whitelist("t")
    world.write(FIRST, [insert("t", id=1, a="one", b="one")])
    world.sync()
    return world


def test_a_table_taken_off_the_whitelist_meanwhile_moves_nothing(one: World) -> None:
    one.execute("CREATE TABLE o (id int PRIMARY KEY)")
    one.whitelist("o")
    one.sync()
    with one.connect() as connection, one.service() as service:
        before = open_checkpoints(connection)
        service.remove_tables(["o"])
        with pytest.raises(CheckpointMovedError), connection.transaction():
            require_position(connection, {c.table: None for c in before}, before[0].position)


def test_a_batch_that_was_prepared_before_a_clear_is_not_applied(one: World) -> None:
    segment = Segment(
        file=BatchFile(name=FIRST, is_plain=True),
        records=[],
        end_record=2,
        commit_lsn=None,
        skipped=1,
        repeated=0,
        size_bytes=1,
        ends_file=True,
    )
    batch = Batch(segments=(segment,))
    with one.connect() as connection, one.service() as service:
        target = Target(connection, metric_freq_hours=24)
        (before,) = target.checkpoints()
        service.clear()
        with pytest.raises(CheckpointMovedError):
            target.apply(
                target.prepare(batch),
                Advance(
                    watermarks={before.table: None},
                    start=before.position,
                    end=Position(file=FIRST, is_finished=True, record_number=2),
                ),
            )
    assert one.checkpoint("t")[:2] == ("", 0)


def test_a_clear_waits_for_the_batch_that_is_running(one: World) -> None:
    with one.connect() as connection, one.service() as service:
        clearing = threading.Thread(target=service.clear)
        with connection.transaction():
            lock_checkpoints(connection, [TableName("public", "t")])  # as a batch begins
            clearing.start()
            clearing.join(0.5)
            assert clearing.is_alive()
            connection.execute("INSERT INTO t VALUES (2)")
        clearing.join()
    assert one.rows("SELECT * FROM t") == []


def test_counts_of_all_runs_in_order_are_in_the_books(world: World) -> None:
    world.execute(
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE c (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE CASCADE)",
        "INSERT INTO p VALUES (1), (2)",
    )
    world.whitelist("p", "c")
    world.use_ordinary_role()
    records = [insert("p", id=3), insert("c", id=1, p_id=3), delete("p", id=1)]
    world.write(FIRST, [*records, insert("p", id=4), delete("p", id=2)])
    result = world.sync()
    assert (result.records_added, result.records_deleted) == (3, 2)
    query = "SELECT table_name, records_added, records_deleted FROM data_sync_metrics"
    assert world.rows(f"{query} WHERE period_type = 'MONTH' ORDER BY 1") == [("c", 1, 0), ("p", 2, 2)]


def test_a_row_moves_to_the_key_that_a_missing_row_would_have_left(one: World) -> None:
    one.use_ordinary_role()
    one.write(SECOND, [update("t", {"id": 2}, id=9, a="x"), update("t", {"id": 1}, id=2, a="y", b="y")])
    assert one.sync().errors == ()
    assert one.rows("SELECT * FROM t") == [(2, "y", "y")]


def test_a_plain_foreign_key_passes_when_child_and_parent_go_together(world: World) -> None:
    world.execute(
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE c (id int PRIMARY KEY, p_id int REFERENCES p)",
        "INSERT INTO p VALUES (1)",
        "INSERT INTO c VALUES (1, 1)",
    )
    world.whitelist("p", "c")
    world.use_ordinary_role()
    world.write(FIRST, [delete("c", id=1), delete("p", id=1)])
    assert world.sync().errors == ()


def test_a_table_that_catches_up_and_blocks_anew_stays_blocked(world: World) -> None:
    for name in "abc":
        world.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    world.whitelist("a", "b", "c")
    world.execute("ALTER TABLE a ADD CHECK (id <> 1)", "ALTER TABLE b ADD CHECK (id <> 2)")
    for number, name in enumerate((FIRST, SECOND, THIRD), start=1):
        world.write(name, [insert(table, id=number) for table in "abc"])
    assert world.sync().blocked == ("a", "b")
    world.execute(
        "ALTER TABLE a DROP CONSTRAINT a_id_check, ADD CHECK (id <> 3)",
        "ALTER TABLE b DROP CONSTRAINT b_id_check",
    )
    assert world.sync().blocked == ("a",)
    assert world.checkpoint("a")[2] == "blocked"


def test_each_run_of_a_service_has_its_own_books(one: World) -> None:
    with one.service() as service:
        one.write(SECOND, [insert("t", id=2)])
        service.run_once()
        one.write(THIRD, [insert("t", id=3), insert("t", id=4)])
        service.run_once()
    assert one.rows("SELECT records_synced FROM data_sync_runs ORDER BY id") == [(1,), (1,), (2,)]


def test_a_run_that_cannot_begin_leaves_the_lock_to_others(one: World) -> None:
    with one.service() as service:
        one.execute("ALTER TABLE data_sync_runs RENAME TO elsewhere")
        with pytest.raises(ServiceInitError):
            service.run_once()
        one.execute("ALTER TABLE elsewhere RENAME TO data_sync_runs")
        one.sync()


def test_a_run_whose_connection_broke_leaves_the_lock_to_others(one: World) -> None:
    one.execute(
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'",
        "CREATE TRIGGER cut BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION cut()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER cut",
    )
    one.write(SECOND, [insert("t", id=2)])
    with one.service() as service:
        with pytest.raises(SyncError):
            service.run_once()
        one.execute("DROP TRIGGER cut ON t")
        assert service.get_status().status == "not-started"
        assert service.run_once().records_added == 1
        one.sync()


def test_the_loop_survives_a_connection_that_breaks_after_the_cycle(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, is_cut = threading.Event(), threading.Event()
    with one.service() as service:
        mirror = service._resources.mirror
        save = mirror.save

        def cut_and_save(*arguments: Any, **options: Any) -> None:
            if not is_cut.is_set():
                one.rows(CUT_ALL)
                is_cut.set()  # not before: the test's own next session must not be among them
            save(*arguments, **options)

        monkeypatch.setattr(mirror, "save", cut_and_save)
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 1, "stop": stop})
        loop.start()
        assert is_cut.wait(10)
        one.write(SECOND, [insert("t", id=2)])
        deadline = time.monotonic() + 15
        while one.value("SELECT count(*) FROM t") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        loop.join(timeout=10)
    assert one.value("SELECT count(*) FROM t") == 2
    assert one.value("SELECT max(errors) FROM data_sync_runs") >= 1
