"""What goes wrong has a code and a place, loses nothing, and goes on by itself once it is mended."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from syncdata.apply.counts import Counts
from syncdata.apply.state.audit import log_action
from syncdata.changes.names import TableName
from syncdata.errors import (
    ApplyError,
    DiscoveryError,
    ParseError,
    RunError,
    SchemaError,
    ServiceInitError,
    SyncError,
)
from syncsite.demo.postgres import PostgresServer
from tests.world import World, delete, insert, truncate, update, with_header

FIRST, SECOND, THIRD = (f"changes_20260205_10300{n}.json" for n in range(3))


@pytest.fixture
def shop(world: World) -> World:
    """Three whitelisted tables: a, b, c."""
    for name in "abc":
        world.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
    world.whitelist("a", "b", "c")
    return world


def only_error(world: World, kind: type[SyncError]) -> str:
    (error,) = world.sync().errors
    assert type(error) is kind
    assert str(error).startswith(f"{kind.code}: ")
    assert error.hint
    return str(error)


def counts(world: World, *tables: str) -> list[int]:
    return [world.value(f"SELECT count(*) FROM {table}") for table in tables]


def failures(world: World) -> list[tuple[str, str, str]]:
    return world.rows(
        "SELECT table_name, archive_ref, error_detail FROM data_sync_logs WHERE status = 'FAILED' ORDER BY 1"
    )


def test_a_broken_line_blocks_the_file_after_the_whole_transactions_before_it(shop: World) -> None:
    good = [insert("a", ts="2026-02-05T10:30:00Z", id=1), insert("b", ts="2026-02-05T10:30:01Z", id=1)]
    torn = '{"table":"c","op":"INSERT","data":{"id":1'
    tail = insert("c", ts="2026-02-05T10:30:02Z", id=2)
    shop.write(FIRST, [*good, torn, tail])
    message = only_error(shop, ParseError)
    assert f"{FIRST}:3" in message
    # b's transaction may go on in the broken line, so only a's is whole.
    assert counts(shop, "a", "b", "c") == [1, 0, 0]
    assert {table for table, *_ in failures(shop)} == {"a", "b", "c"}
    shop.sync()
    assert len(failures(shop)) == 3, "the same reason is audited once"
    shop.write(FIRST, [*good, insert("c", ts="2026-02-05T10:30:02Z", id=1), tail])
    assert shop.sync().errors == ()
    assert counts(shop, "a", "b", "c") == [1, 1, 2]
    assert shop.checkpoint("a") == (FIRST, 4, "active", None)


ODD = {
    "no operation": '{"table":"a"}',
    "another operation": '{"table":"a","op":"UPSERT","data":{"id":1}}',
    "values without names": '{"table":"a","op":"INSERT","data":[1,2]}',
    "a transaction's mark": '{"table":"a","op":"B"}',
    "a position that is none": '{"table":"a","op":"DELETE","old_keys":{"id":1},"lsn":17}',
}


@pytest.mark.parametrize("line", [*ODD.values(), "[]", "x"])
def test_a_line_that_is_no_record_is_never_skipped(shop: World, line: str) -> None:
    shop.write(FIRST, [insert("a", id=1), line])
    assert f"{FIRST}:2" in only_error(shop, ParseError)


@pytest.mark.parametrize("kind", ODD)
def test_a_line_that_names_its_table_blocks_that_table_alone(shop: World, kind: str) -> None:
    shop.write(FIRST, [insert("a", id=1), ODD[kind], insert("b", id=1), insert("c", id=1)])
    assert "table a: " in only_error(shop, ParseError)
    assert counts(shop, "a", "b", "c") == [0, 1, 1]
    assert {table for table, *_ in failures(shop)} == {"a"}
    with shop.service() as service:
        service.skip_record("a", f"{FIRST}:2")
    assert shop.sync().errors == ()
    assert counts(shop, "a") == [1]
    # Nobody who does not sync the table is held up by the line.
    with shop.service() as service:
        service.remove_tables(["a"])
    shop.write(SECOND, [ODD[kind], insert("b", id=2)])
    assert shop.sync().errors == ()
    assert counts(shop, "b") == [2]


def test_a_plain_file_that_is_still_being_written_is_waited_for(shop: World) -> None:
    path = shop.archive / FIRST
    path.write_text('{"table":"a","op":"INSERT","data":{"id":1},"ts":"1"}\n{"table":"a","op":"INS')
    result = shop.sync()
    assert (result.errors, result.waiting_for) == ((), FIRST)
    assert counts(shop, "a") == [0]
    shop.write(FIRST, [insert("a", id=1), insert("a", id=2)])
    assert shop.sync().waiting_for == ""
    assert counts(shop, "a") == [2]


def test_a_plain_file_cut_at_a_line_end_goes_on_when_it_grows(shop: World) -> None:
    shop.execute("CREATE TABLE bag (v int)")
    shop.whitelist("bag")
    shop.write(FIRST, [insert("bag", v=1)])
    shop.sync()
    shop.write(FIRST, [insert("bag", v=1), insert("bag", v=2)])
    shop.sync()
    assert shop.rows("SELECT v FROM bag ORDER BY v") == [(1,), (2,)]


def test_a_truncated_file_with_newer_ones_behind_it_stops_loudly(shop: World) -> None:
    whole = with_header([insert("a", id=1), insert("a", id=2)], seq=1, prev=None)
    (shop.archive / FIRST).write_bytes(whole[:-40])
    (shop.archive / SECOND).write_bytes(with_header([insert("a", id=3)], seq=2, prev=FIRST, start=2))
    message = only_error(shop, ParseError)
    assert "cut short" in message and FIRST in message
    assert counts(shop, "a") == [0]
    (shop.archive / FIRST).write_bytes(whole)
    assert shop.sync().records_added == 3


def test_bytes_that_contradict_the_footer_are_refused(shop: World) -> None:
    whole = with_header([insert("a", id=1)], seq=1, prev=None)
    (shop.archive / FIRST).write_bytes(whole.replace(b'"id": 1', b'"id": 7'))
    assert "SHA-256" in only_error(shop, ParseError)
    assert counts(shop, "a") == [0]


def test_a_missing_file_of_the_chain_is_waited_for_loudly(shop: World) -> None:
    one, two, three = (
        with_header([insert("a", id=n)], seq=n, prev=prev, start=n)
        for n, prev in ((1, None), (2, FIRST), (3, SECOND))
    )
    (shop.archive / FIRST).write_bytes(one)
    (shop.archive / THIRD).write_bytes(three)
    message = only_error(shop, DiscoveryError)
    assert "gap" in message and SECOND in message and FIRST in message
    assert counts(shop, "a") == [1]
    (shop.archive / SECOND).write_bytes(two)
    assert shop.sync().errors == ()
    assert counts(shop, "a") == [3]


def test_a_file_from_another_source_is_refused(shop: World) -> None:
    (shop.archive / FIRST).write_bytes(with_header([insert("a", id=1)], seq=1, prev=None))
    other = with_header([insert("a", id=2)], seq=2, prev=FIRST, system_id="7001", start=5)
    (shop.archive / SECOND).write_bytes(other)
    assert "another source" in only_error(shop, DiscoveryError)
    assert counts(shop, "a") == [1]


def test_transactions_that_the_archive_repeats_are_applied_once(shop: World) -> None:
    shop.execute("CREATE TABLE bag (v int)")
    shop.whitelist("bag")
    records = [insert("bag", v=n) for n in range(4)]
    (shop.archive / FIRST).write_bytes(with_header(records[:3], seq=1, prev=None))
    (shop.archive / SECOND).write_bytes(with_header(records[1:], seq=2, prev=FIRST, start=1))
    result = shop.sync()
    assert result.records_added == 4
    assert shop.rows("SELECT v FROM bag ORDER BY v") == [(0,), (1,), (2,), (3,)]


def test_a_missing_column_blocks_its_table_while_the_others_go_on(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1, v="x", extra=2), insert("c", id=1)])
    message = only_error(shop, SchemaError)
    assert f"{FIRST}:2" in message and "'extra'" in message and "table b" in message
    assert counts(shop, "a", "b", "c") == [1, 0, 1]
    assert shop.checkpoint("b")[:3] == ("", 0, "blocked")
    shop.write(SECOND, [insert("a", id=2), insert("b", id=2, v="y", extra=3), insert("c", id=2)])
    assert len(shop.sync().errors) == 1
    assert counts(shop, "a", "b", "c") == [2, 0, 2]
    shop.execute("ALTER TABLE b ADD COLUMN extra int")
    result = shop.sync()
    assert (result.errors, result.records_added) == ((), 2)
    assert shop.rows("SELECT * FROM b ORDER BY id") == [(1, "x", 2), (2, "y", 3)]
    assert len({shop.checkpoint(table)[:2] for table in "abc"}) == 1


def test_a_missing_table_blocks_only_itself_until_it_is_created(shop: World) -> None:
    shop.whitelist("later")
    shop.write(FIRST, [insert("later", id=1), insert("a", id=1)])
    assert "does not exist" in only_error(shop, SchemaError)
    assert counts(shop, "a") == [1]
    shop.execute("CREATE TABLE later (id int PRIMARY KEY)")
    assert shop.sync().errors == ()
    assert counts(shop, "later") == [1]


def test_a_bad_value_is_found_to_the_line_and_never_shown(shop: World) -> None:
    records = [insert("a", ts=f"2026-02-05T10:30:{n:02d}Z", id=n, v="fine") for n in range(50)]
    records[31]["data"]["id"] = "s3cret-value"
    shop.write(FIRST, [*records, insert("b", id=1)])
    message = only_error(shop, ApplyError)
    assert f"{FIRST}:32" in message and "22P02" in message
    assert "s3cret" not in message and "s3cret" not in failures(shop)[0][2]
    assert counts(shop, "a", "b") == [0, 1]
    records[31]["data"]["id"] = 31
    shop.write(FIRST, [*records, insert("b", id=1)])
    assert shop.sync().records_added == 50


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("others", [{"v": "fine"}, {"v": None}])
def test_a_nul_in_a_text_is_corruption_and_stops_the_table(
    shop: World, rows: int, others: dict[str, Any]
) -> None:
    records = [insert("a", id=n, **others) for n in range(1, rows)]
    shop.write(FIRST, [*records, insert("a", id=rows, v="s3cret\0y"), insert("b", id=1)])
    message = only_error(shop, ApplyError)
    assert f"{FIRST}:{rows}" in message and "(DataError)" in message and "s3cret" not in message
    assert counts(shop, "a", "b") == [0, 1]


def test_a_record_without_the_key_stops_the_table(shop: World) -> None:
    shop.write(FIRST, [update("a", v="whose?")])
    assert "key column(s) id" in only_error(shop, SchemaError)


def test_a_missing_archive_directory_has_a_code_and_a_hint(shop: World) -> None:
    shop.archive.rmdir()
    with pytest.raises(DiscoveryError) as caught:
        shop.sync()
    assert str(caught.value).startswith("SHD_SYN_061: ") and caught.value.hint
    assert shop.value("SELECT errors FROM data_sync_runs") == 1
    shop.archive.mkdir()
    shop.write(FIRST, [insert("a", id=1)])
    assert shop.sync().records_added == 1


def test_a_database_that_goes_away_in_the_middle_of_a_batch_loses_nothing(shop: World) -> None:
    shop.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.01); RETURN new; END'",
        "CREATE TRIGGER slow BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION slow()",
        "ALTER TABLE a ENABLE ALWAYS TRIGGER slow",
    )
    shop.write(FIRST, [insert("b", id=1), *(insert("a", id=n) for n in range(200))])
    killer = threading.Thread(target=_terminate_the_engine, args=(shop,))
    killer.start()
    with pytest.raises(ApplyError, match="the database failed or went away"):
        shop.sync()
    killer.join()
    assert counts(shop, "a", "b") == [0, 0]
    shop.execute("ALTER TABLE a DISABLE TRIGGER slow")
    assert shop.sync().records_added == 201
    assert shop.rows("SELECT sum(records_added) FROM data_sync_logs WHERE status = 'SUCCESS'") == [(201,)]


def _terminate_the_engine(world: World) -> None:
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'active' AND query ~ '^INSERT INTO .public...a. '"
    )
    for _ in range(200):
        if world.rows(query):
            return
        time.sleep(0.02)


def test_the_loop_goes_on_by_itself_when_the_database_is_back(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1)])
    stop = threading.Event()
    with shop.service() as service:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 1, "stop": stop})
        loop.start()
        _wait_for(lambda: counts(shop, "a") == [1])
        shop.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        shop.write(SECOND, [insert("a", id=2)])
        _wait_for(lambda: counts(shop, "a") == [2])
        assert service.get_status().status == "active" if not loop.is_alive() else True
        stop.set()
        loop.join(timeout=10)
    assert not loop.is_alive()


def _wait_for(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_second_daemon_on_the_same_database_refuses_to_run(shop: World) -> None:
    stop = threading.Event()
    with shop.service() as service, shop.service() as second:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 60, "stop": stop})
        loop.start()
        _wait_for(lambda: shop.value("SELECT count(*) FROM data_sync_runs") == 1)
        with pytest.raises(RunError, match="another syncdata daemon"):
            second.run_once()
        assert second.get_status().status == "active"
        stop.set()
        loop.join(timeout=10)
        assert second.get_status().status == "not-started"


def test_a_database_without_syncdatas_tables_says_migrate(shop: World) -> None:
    shop.execute("DROP TABLE data_sync_runs")
    with pytest.raises(ServiceInitError, match="migrate"):
        shop.sync()


# Where the role may not silence triggers and foreign keys


@pytest.fixture
def plain_role(make_world: Any, any_postgres: PostgresServer) -> World:
    """A world whose engine is an ordinary owner, not a superuser."""
    world: World = make_world(any_postgres)
    world.execute(
        "CREATE TABLE parent (id int PRIMARY KEY, v text UNIQUE)",
        "CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL REFERENCES parent"
        " DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE other (id int PRIMARY KEY)",
    )
    world.use_ordinary_role()
    return world


def test_ordinary_django_foreign_keys_pass_for_an_ordinary_role(plain_role: World) -> None:
    plain_role.whitelist("parent", "child")
    plain_role.write(
        FIRST,
        [
            insert("child", id=1, parent_id=1),
            insert("parent", id=1, v="a"),
            insert("parent", id=2, v="b"),
            update("child", {"id": 1}, id=1, parent_id=2),
            delete("parent", id=1),
            update("parent", {"id": 2}, id=3, v="b"),
            update("child", {"id": 1}, id=1, parent_id=3),
        ],
    )
    assert plain_role.sync().errors == ()
    assert plain_role.rows("SELECT * FROM parent") == [(3, "b")]
    assert plain_role.rows("SELECT * FROM child") == [(1, 3)]


def test_a_moved_key_and_a_swap_work_for_an_ordinary_role(plain_role: World) -> None:
    plain_role.whitelist("parent", "child")
    plain_role.execute("INSERT INTO parent VALUES (1, 'a'), (2, 'b')", "INSERT INTO child VALUES (1, 1)")
    plain_role.write(
        FIRST,
        [
            update("parent", {"id": 1}, id=1, v="tmp"),
            update("parent", {"id": 2}, id=2, v="a"),
            update("parent", {"id": 1}, id=1, v="b"),
            update("parent", {"id": 1}, id=7),
            update("child", {"id": 1}, id=1, parent_id=7),
        ],
    )
    assert plain_role.sync().errors == ()
    assert plain_role.rows("SELECT * FROM parent ORDER BY id") == [(2, "a"), (7, "b")]


def test_a_key_that_changes_does_not_cascade_to_children_for_an_ordinary_role(plain_role: World) -> None:
    plain_role.execute(
        "CREATE TABLE pet (id int PRIMARY KEY, parent_id int REFERENCES parent"
        " ON DELETE CASCADE ON UPDATE CASCADE, toast text)",
        "INSERT INTO parent VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO pet VALUES (1, 1, 'only here')",
    )
    plain_role.use_ordinary_role()
    plain_role.whitelist("parent", "pet")
    plain_role.write(
        FIRST,
        [
            update("parent", {"id": 1}, id=7, v="a"),
            update("pet", {"id": 1}, id=1, parent_id=7),
            insert("parent", id=9, v="c"),
            update("parent", {"id": 9}, id=10, v="c"),
            update("parent", {"id": 2}, id=9, v="b"),
        ],
    )
    assert plain_role.sync().errors == ()
    assert plain_role.rows("SELECT * FROM pet") == [(1, 7, "only here")]
    assert plain_role.rows("SELECT * FROM parent ORDER BY id") == [(7, "a"), (9, "b"), (10, "c")]


def test_a_row_that_moves_to_a_key_its_batch_has_used_is_not_lost(plain_role: World) -> None:
    plain_role.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, toast text)", "INSERT INTO t VALUES (2, 2, 'x')"
    )
    plain_role.use_ordinary_role()
    plain_role.whitelist("t")
    plain_role.write(
        FIRST,
        [
            insert("t", id=1, a=1, toast="y"),
            update("t", {"id": 1}, id=9, a=1),
            update("t", {"id": 2}, id=1, a=3),
        ],
    )
    assert plain_role.sync().errors == ()
    assert plain_role.rows("SELECT * FROM t ORDER BY id") == [(1, 3, "x"), (9, 1, "y")]


def test_a_child_whose_parent_is_not_whitelisted_blocks_alone(plain_role: World) -> None:
    plain_role.whitelist("child", "other")
    plain_role.write(FIRST, [insert("child", id=1, parent_id=1), insert("other", id=1)])
    message = only_error(plain_role, ApplyError)
    assert "table child" in message and "child_parent_id_fkey" in message
    assert counts(plain_role, "child", "other") == [0, 1]
    plain_role.execute("INSERT INTO parent VALUES (1, 'a')")
    assert plain_role.sync().errors == ()
    assert counts(plain_role, "child", "other") == [1, 1]


# Resync and clear


def test_a_resync_rebuilds_the_table_and_keeps_what_hangs_on_it(shop: World) -> None:
    shop.execute("CREATE VIEW seen AS SELECT * FROM a")
    shop.write(FIRST, [insert("a", id=1, v="x"), insert("b", id=1)])
    shop.write(SECOND, [update("a", id=1, v="y"), insert("a", id=2, v="z")])
    shop.sync()
    shop.execute("UPDATE a SET v = 'damaged'", "INSERT INTO a VALUES (9, 'stray')")
    with shop.service() as service:
        result = service.resync("a")
    assert result.files_processed == 2
    assert shop.rows("SELECT * FROM seen ORDER BY id") == [(1, "y"), (2, "z")]
    assert shop.checkpoint("a")[:2] == shop.checkpoint("b")[:2]
    assert shop.sync().files_processed == 0
    assert shop.rows("SELECT status, records_added FROM data_sync_logs WHERE action = 'resync'") == [
        ("SUCCESS", 2)
    ]


def test_a_failed_resync_leaves_the_old_rows_and_is_audited(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1, v="x")])
    shop.sync()
    shop.write(SECOND, [insert("b", id=1), "broken"])
    shop.write(FIRST, [insert("a", id=1, v="x"), "broken"])
    with shop.service() as service, pytest.raises(SyncError) as caught:
        service.resync("a")
    assert str(caught.value).startswith(f"SHD_SYN_055: {FIRST}:2: table a: ")
    assert shop.rows("SELECT * FROM a") == [(1, "x")]
    assert shop.checkpoint("a")[:2] == (FIRST, 1)
    assert ("FAILED",) in shop.rows("SELECT status FROM data_sync_logs WHERE action = 'resync'")


@pytest.mark.parametrize("records", [30_000, 2**30])
def test_an_action_on_any_number_of_records_is_audited(shop: World, records: int) -> None:
    # Their sum is beyond the type that the server takes each number for, or beyond the column's.
    counts = Counts(added=records, updated=records, deleted=records)
    with shop.connect() as connection:
        moment = dt.datetime.now(dt.UTC)
        log_action(
            connection, TableName("public", "a"), action="resync", reference="", now=moment, counts=counts
        )
    written = "SELECT rows_synced, records_added, records_updated, records_deleted FROM data_sync_logs"
    assert shop.rows(written) == [(min(3 * records, 2**31 - 1), records, records, records)]


def test_readers_never_see_a_half_built_table_during_a_resync(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=n, v="x") for n in range(3000)])
    shop.sync()
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        with shop.connect() as connection:
            while not done.is_set():
                row = connection.execute("SELECT count(*) FROM a").fetchone()
                seen.add(row[0] if row else -1)

    reader = threading.Thread(target=read)
    reader.start()
    with shop.service() as service:
        service.resync("a")
    done.set()
    reader.join()
    assert seen == {3000}


def test_clear_empties_the_tables_and_the_next_cycle_begins_anew(shop: World) -> None:
    shop.execute("CREATE TABLE outside (id int PRIMARY KEY, a_id int REFERENCES a)")
    shop.write(FIRST, [insert("a", id=1), truncate("b"), insert("b", id=1)])
    shop.sync()
    shop.execute("INSERT INTO a VALUES (5, 'local')")
    with shop.service() as service:
        assert service.clear() == ["a", "b", "c"]
        assert counts(shop, "a", "b") == [0, 0]
        assert [info.state for info in service.list_tables()] == ["new"] * 3
        service.run_once()
    assert counts(shop, "a", "b") == [1, 1]
    assert shop.rows("SELECT DISTINCT status FROM data_sync_logs WHERE action = 'clear'") == [("SUCCESS",)]
