"""Green means equal: what a beginning, a kind of table or a skipped record leaves in doubt is not active."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from syncdata import tables as tables_module
from syncdata.apply import cycle as cycle_module
from syncdata.apply import sink as sink_module
from syncdata.apply.postgres import shadow as shadow_module
from syncdata.apply.postgres import target as target_module
from syncdata.apply.postgres.target import Target
from syncdata.apply.sink import Fitness
from syncdata.apply.state.status import TableInfo
from syncdata.changes.head import Head, encode_head
from syncdata.changes.names import TableName
from syncdata.errors import ResyncError, SchemaError, StatusError, WhitelistAddError
from syncdata.service import DaemonStatus
from syncsite.demo.postgres import SETTINGS, PostgresServer
from tests.framed import Writer
from tests.integration.test_requests import daemon, wait_until
from tests.world import World, delete, insert, truncate, update

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def shop(world: World) -> World:
    world.execute("CREATE TABLE a (id int PRIMARY KEY, v text)", "CREATE TABLE b (id int PRIMARY KEY)")
    world.whitelist("a", "b")
    return world


@pytest.fixture
def source(shop: World) -> Writer:
    return Writer(shop.archive)


def info(world: World, table: str) -> TableInfo:
    with world.service() as service:
        return next(info for info in service.list_tables() if info.table_name == table)


def state(world: World, table: str) -> str:
    return info(world, table).state


def status(world: World) -> DaemonStatus:
    with world.service() as service:
        return service.get_status()


def kinds(world: World) -> set[tuple[str, str]]:
    return {(problem.kind, problem.table) for problem in status(world).problems if problem.table}


def ids(world: World, table: str) -> list[int]:
    return [number for (number,) in world.rows(f"SELECT id FROM {table} ORDER BY id")]


def only_error(world: World) -> str:
    (error,) = world.sync().errors
    assert type(error) is SchemaError
    return str(error)


# Beginnings that are not whole


def test_a_table_that_begins_without_a_snapshot_is_partial_until_one_heals_it_by_itself(
    shop: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("a", id=3, v="x")]), (20, [insert("b", id=1)])])
    shop.sync()
    assert state(shop, "a") == state(shop, "b") == "partial"
    assert kinds(shop) == {("partial", "a"), ("partial", "b")}
    assert "archive_changes --snapshot a" in str(info(shop, "a").marks[0])
    source.snapshot(1, "a", 30, [{"id": 1, "v": "old"}, {"id": 3, "v": "x"}], prev=1)
    shop.sync()
    assert (state(shop, "a"), ids(shop, "a")) == ("active", [1, 3])
    assert (state(shop, "b"), kinds(shop)) == ("partial", {("partial", "b")})


def test_every_view_of_a_table_in_doubt_says_so_with_the_remedy(
    shop: World, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    with override_settings(SYNCDATA=settings_of(shop)):
        call_command("list_tables", json=True)
        (first, _) = json.loads(capsys.readouterr().out)
        assert first["state"] == "partial" and first["marks"][0]["kind"] == "partial"
        call_command("list_tables")
        assert "archive_changes --snapshot a" in capsys.readouterr().out
        call_command("syncdata_status", json=True)
        told = json.loads(capsys.readouterr().out)
        assert not told["is_healthy"] and "a is partial" in "".join(told["problems"])
        with pytest.raises(StatusError, match="b is partial"):
            call_command("syncdata_status", check=True)
        capsys.readouterr()
        call_command("add_tables", "a", whole=True)
        assert capsys.readouterr().out == "already in the whitelist: a\ntaken for whole: a\n"


def settings_of(world: World) -> dict[str, Any]:
    return {
        "archive_backend": "local",
        "archive_dir": str(world.archive),
        "database": world.alias,
        "state_dir": str(world.state_dir),
    }


def test_a_partial_table_is_rebuilt_to_where_it_stands_and_never_goes_back(
    shop: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("a", id=3)]), (20, [insert("b", id=1)])])
    source.changes(2, [(30, [insert("a", id=4)]), (40, [insert("b", id=2), delete("a", id=3)])])
    shop.sync()
    source.snapshot(1, "a", 10, [{"id": 1, "v": "old"}, {"id": 3, "v": None}], prev=None)
    shop.sync()
    assert (ids(shop, "a"), state(shop, "a")) == ([1, 4], "active")
    assert shop.checkpoint("a")[:2] == shop.checkpoint("b")[:2]
    assert shop.rows("SELECT action FROM data_sync_logs WHERE table_name = 'a' AND action = 'snapshot'")


def test_a_broken_snapshot_leaves_a_partial_table_as_it_was_and_the_next_one_heals_it(
    shop: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("a", id=3)])])
    shop.sync()
    source.snapshot(1, "a", 20, [{"id": 1, "v": "x"}], prev=1, is_finished=False)
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), state(shop, "a")) == ([3], "partial")
    source.snapshot(2, "a", 20, [{"id": 1, "v": "x"}, {"id": 3, "v": "x"}], prev=1)
    shop.sync()
    assert (ids(shop, "a"), state(shop, "a")) == ([1, 3], "active")


def test_a_truncate_in_the_stream_proves_a_partial_table_whole(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    shop.write(SECOND, [truncate("a"), insert("a", id=2)])
    shop.sync()
    assert (state(shop, "a"), state(shop, "b")) == ("active", "partial")


def test_an_operator_who_loaded_the_older_rows_says_so_and_that_is_audited(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    with shop.service() as service:
        assert service.declare_whole(["a"], requested_by="ada") == ["a"]
        assert service.declare_whole(["a"]) == []
    assert (state(shop, "a"), state(shop, "b")) == ("active", "partial")
    assert shop.rows("SELECT table_name, requested_by FROM data_sync_logs WHERE action = 'whole'") == [
        ("a", "ada")
    ]
    with shop.service() as service:
        service.clear(["a"])
    shop.sync()
    assert state(shop, "a") == "partial", "the rows that were loaded by hand are gone"


def test_a_new_table_that_is_said_to_be_whole_begins_active(shop: World) -> None:
    with shop.service() as service:
        service.declare_whole(["a"])
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    assert (state(shop, "a"), state(shop, "b")) == ("active", "partial")


def test_a_resync_without_a_snapshot_leaves_a_table_partial_and_with_one_active(
    shop: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("a", id=3)])])
    shop.sync()
    with shop.service() as service:
        service.declare_whole(["a"])
        service.resync("a")
    assert state(shop, "a") == "partial"
    source.snapshot(1, "a", 20, [{"id": 1, "v": "x"}], prev=1)
    with shop.service() as service:
        service.resync("a")
    assert state(shop, "a") == "active"


def test_the_freshness_of_a_table_survives_its_resync(shop: World, source: Writer) -> None:
    source.changes(1, [(10, [insert("a", id=1, ts="2026-02-05T10:30:00Z")])])
    shop.sync()
    before = info(shop, "a")
    assert before.last_change_at is not None
    source.snapshot(1, "a", 20, [{"id": 1, "v": "x"}], prev=1)
    with shop.service() as service:
        service.resync("a")
    assert info(shop, "a").last_change_at == before.last_change_at
    source.changes(2, [(30, [insert("a", id=2, ts="2026-02-05T11:30:00Z")])])
    with shop.service() as service:
        service.remove_tables(["b"])  # a resync goes as far as the other tables
        service.resync("a")
    after = info(shop, "a").last_change_at
    assert after is not None and after - before.last_change_at == dt.timedelta(hours=1)


# Tables that are not the ones that the rows went to

ANEW = {
    "dropped and made anew": ["DROP TABLE a", "CREATE TABLE a (id int PRIMARY KEY, v text)"],
    "swapped by rename": [
        "CREATE TABLE fresh (LIKE a INCLUDING ALL)",
        "ALTER TABLE a RENAME TO gone",
        "ALTER TABLE fresh RENAME TO a",
    ],
    "swapped by schema": [
        "CREATE SCHEMA other",
        "CREATE TABLE other.a (LIKE a INCLUDING ALL)",
        "ALTER TABLE a RENAME TO gone",
        "ALTER INDEX a_pkey RENAME TO gone_pkey",
        "ALTER TABLE other.a SET SCHEMA public",
    ],
}


@pytest.mark.parametrize("how", ANEW)
def test_a_table_that_is_made_anew_is_blocked_and_begins_anew_from_its_snapshot(
    shop: World, source: Writer, how: str
) -> None:
    source.changes(1, [(10, [insert("a", id=1), insert("b", id=1)])])
    shop.sync()
    shop.execute(*ANEW[how])
    message = only_error(shop)  # also while nothing changes at production
    assert "made anew" in message and "archive_changes --snapshot a" in message
    source.changes(2, [(20, [insert("a", id=2), insert("b", id=2)])])
    assert "made anew" in only_error(shop)
    assert (ids(shop, "a"), state(shop, "a"), ids(shop, "b")) == ([], "blocked", [1, 2])
    source.snapshot(1, "a", 20, [{"id": 1, "v": "x"}, {"id": 2, "v": "x"}], prev=2)
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), state(shop, "a")) == ([1, 2], "active")
    assert shop.sync().errors == ()


def test_a_table_that_is_made_anew_is_also_mended_by_a_resync(shop: World, source: Writer) -> None:
    source.changes(1, [(10, [insert("a", id=1)])])
    shop.sync()
    shop.execute(*ANEW["dropped and made anew"])
    only_error(shop)
    with shop.service() as service:
        service.resync("a")
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), state(shop, "a")) == ([1], "partial")


def test_a_table_that_is_made_anew_after_the_cycle_has_looked_takes_no_rows(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    shop.execute(*ANEW["dropped and made anew"])
    shop.write(SECOND, [insert("a", id=2), insert("b", id=2)])
    monkeypatch.setattr(Target, "examine", lambda self, checkpoints: Fitness())
    assert "made anew" in only_error(shop)
    assert (ids(shop, "a"), ids(shop, "b")) == ([], [1, 2])


def test_work_on_a_table_that_keeps_its_rows_alarms_nobody(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    shop.execute("VACUUM FULL a", "ALTER TABLE a ADD COLUMN w int", "CLUSTER a USING a_pkey")
    shop.execute("ALTER TABLE a ALTER v TYPE varchar(20)", "REINDEX TABLE a")
    shop.write(SECOND, [update("a", id=1, v="x")])
    assert shop.sync().errors == ()
    assert (state(shop, "a"), shop.rows("SELECT v FROM a")) == ("partial", [("x",)])


def test_a_local_database_that_is_restored_from_a_dump_goes_on_from_there(
    shop: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("a", id=1), insert("b", id=1)])])
    shop.sync()
    dump = postgres_tool(shop, "pg_dump", "--clean", "--if-exists", stdout=subprocess.PIPE)
    source.changes(2, [(20, [insert("a", id=2), delete("a", id=1)])])
    shop.sync()
    postgres_tool(shop, "psql", "-Xqv", "ON_ERROR_STOP=1", "-f", "-", input=dump, stdout=subprocess.DEVNULL)
    assert ids(shop, "a") == [1]
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), ids(shop, "b")) == ([2], [1])
    shop.execute(*ANEW["dropped and made anew"])
    assert "made anew" in only_error(shop), "in the restored database, too"


def test_a_table_that_alone_is_restored_from_an_older_dump_is_noticed(shop: World, source: Writer) -> None:
    source.changes(1, [(10, [insert("a", id=1)])])
    shop.sync()
    dump = postgres_tool(shop, "pg_dump", "--clean", "-t", "a", stdout=subprocess.PIPE)
    source.changes(2, [(20, [insert("a", id=2)])])
    shop.sync()
    postgres_tool(shop, "psql", "-Xqv", "ON_ERROR_STOP=1", "-f", "-", input=dump, stdout=subprocess.DEVNULL)
    assert "made anew" in only_error(shop)


def postgres_tool(world: World, program: str, *arguments: str, **options: Any) -> bytes:
    params = world.database.params
    done = subprocess.run(
        [
            str(world.database.server.binaries / program),
            *("-h", params["host"], "-p", str(params["port"]), "-U", params["user"], "-d", params["dbname"]),
            *arguments,
        ],
        env={**os.environ, "PGPASSWORD": params["password"]},
        check=True,
        **options,
    )
    return done.stdout or b""


# What is no table that can be kept equal

OTHERS = {
    "a view": "CREATE VIEW other AS SELECT * FROM a",
    "a materialized view": "CREATE MATERIALIZED VIEW other AS SELECT * FROM a",
    "a sequence": "CREATE SEQUENCE other",
    "a composite type": "CREATE TYPE other AS (id int)",
    "an index": "CREATE INDEX other ON a (v)",
    "a foreign table": "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
    " CREATE FOREIGN TABLE other (id int) SERVER s",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_table_is_refused_and_blocked_as_what_it_is(shop: World, kind: str) -> None:
    shop.execute(OTHERS[kind])
    with shop.service() as service, pytest.raises(WhitelistAddError, match=f"other is {kind}"):
        service.add_tables(["other"])
    shop.execute("INSERT INTO tables_to_sync (table_name) VALUES ('other')")
    shop.write(FIRST, [insert("other", id=1), insert("a", id=1)])
    assert kind in only_error(shop)
    assert (state(shop, "other"), ids(shop, "a")) == ("blocked", [1])
    assert ("blocked", "other") in kinds(shop)
    with shop.service() as service, pytest.raises(ResyncError, match=kind):
        service.resync("other")


def test_a_materialized_view_of_an_app_is_left_out_with_a_word(
    shop: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop.execute(OTHERS["a materialized view"], "CREATE TABLE c (id int PRIMARY KEY)")
    of_app = [TableName("public", "c"), TableName("public", "other")]
    monkeypatch.setattr(tables_module, "tables_of_app", lambda label: of_app)
    with shop.service() as service:
        assert service.find_tables([], apps=["shop"]) == ["c"]
        assert service.add_tables([], apps=["shop"]) == ["c"]
    assert "left out" in caplog.text and "other" in caplog.text and "a materialized view" in caplog.text


def test_a_temporary_table_is_refused(shop: World) -> None:
    with shop.service() as service, pytest.raises(WhitelistAddError, match="temporary"):
        service.add_tables(["pg_temp_3.t"])


def test_a_table_that_does_not_exist_here_is_blocked_although_nothing_changes(shop: World) -> None:
    shop.whitelist("later")
    assert "does not exist" in only_error(shop)
    assert state(shop, "later") == "blocked"
    shop.execute("CREATE TABLE later (id int PRIMARY KEY)")
    assert shop.sync().errors == ()


def test_a_partition_is_blocked_where_the_archiver_writes_its_changes_as_those_of_the_root(
    shop: World, source: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    shop.execute(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    shop.whitelist("p1")
    assert "p1 is a partition of p" in caplog.text
    source.changes(1, [(10, [insert("p", id=1), insert("a", id=1)])])
    shop.sync()
    message = only_error(shop)
    assert "partition" in message and "add_tables p" in message
    assert state(shop, "p1") == "blocked"


def test_a_partition_goes_on_with_files_that_name_it(shop: World) -> None:
    shop.execute(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
    )
    shop.whitelist("p1")
    shop.write(FIRST, [insert("p1", id=1)])
    shop.sync()
    shop.write(SECOND, [insert("p1", id=2)])
    assert shop.sync().errors == ()
    assert ids(shop, "p") == [1, 2]


def test_a_table_that_was_unlogged_is_suspect_until_it_is_logged_and_rebuilt(
    shop: World, source: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    source.snapshot(1, "a", 5, [{"id": 1, "v": "x"}], prev=None)
    source.changes(1, [(10, [insert("a", id=2)])])
    shop.sync()
    assert state(shop, "a") == "active"
    shop.execute("ALTER TABLE a SET UNLOGGED")
    shop.whitelist("a")
    assert "table a is UNLOGGED" in caplog.text
    shop.sync()
    assert (state(shop, "a"), ("suspect", "a") in kinds(shop)) == ("suspect", True)
    with shop.service() as service:
        service.resync("a")
    assert state(shop, "a") == "suspect", "it is still UNLOGGED"
    shop.execute("TRUNCATE a", "ALTER TABLE a SET LOGGED")  # as a crash would
    shop.sync()
    assert state(shop, "a") == "suspect"
    with shop.service() as service:
        service.resync("a")
    shop.sync()
    assert (state(shop, "a"), ids(shop, "a")) == ("active", [1, 2])


def test_a_new_unlogged_table_takes_rows_and_is_never_active(shop: World, source: Writer) -> None:
    shop.execute("ALTER TABLE a SET UNLOGGED", "ALTER TABLE b SET UNLOGGED")
    source.snapshot(1, "a", 5, [{"id": 1, "v": "x"}], prev=None)
    source.changes(1, [(10, [insert("b", id=1)])])
    shop.sync()
    assert (state(shop, "a"), ids(shop, "a")) == ("suspect", [1])
    assert (state(shop, "b"), ids(shop, "b")) == ("suspect", [1])


def test_an_unlogged_partition_makes_its_whole_table_suspect(shop: World) -> None:
    shop.execute(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE mid PARTITION OF p FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
        "CREATE UNLOGGED TABLE leaf PARTITION OF mid FOR VALUES FROM (0) TO (50)",
    )
    shop.whitelist("p")
    shop.sync()
    (mark,) = info(shop, "p").marks
    assert (state(shop, "p"), mark.kind) == ("suspect", "suspect")
    assert "leaf is or was UNLOGGED" in mark.text and "ALTER TABLE leaf SET LOGGED" in mark.hint


# Content types


def test_tables_that_hold_numbers_of_content_types_or_permissions_are_warned_of(
    shop: World, caplog: pytest.LogCaptureFixture
) -> None:
    shop.execute(
        "CREATE TABLE tag (id int PRIMARY KEY, of_id int REFERENCES django_content_type)",
        "CREATE TABLE granted (id int PRIMARY KEY, permission_id int REFERENCES auth_permission)",
    )
    names = ["tag", "granted", "django_content_type", "auth_permission", "a"]
    with shop.service() as service:
        found = service.find_unusual(names)
    assert {(problem.kind, problem.table) for problem in found} == {
        ("content-types", name) for name in names if name != "a"
    }
    shop.whitelist("tag")
    assert "table tag holds numbers of django_content_type" in caplog.text


# Skipped records


def test_a_table_without_a_record_that_was_skipped_is_suspect_until_a_resync(
    shop: World, source: Writer
) -> None:
    source.snapshot(1, "a", 5, [], prev=None)
    source.changes(1, [(10, [insert("a", id="bad")]), (20, [insert("a", id=2)])])
    shop.sync()
    with shop.service() as service:
        place = info(shop, "a").blocking_place
        service.skip_record("a", place, requested_by="ada")
    shop.sync()
    assert (ids(shop, "a"), state(shop, "a")) == ([2], "suspect")
    (mark,) = info(shop, "a").marks
    assert place in mark.text and "ada" in mark.text and "resync a" in mark.hint
    source.snapshot(2, "a", 20, [{"id": 1, "v": "x"}, {"id": 2, "v": "x"}], prev=1)
    with shop.service() as service:
        service.resync("a")
    assert (ids(shop, "a"), state(shop, "a")) == ([1, 2], "active")


def test_a_line_of_no_table_that_was_skipped_makes_all_suspect_that_it_blocked(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), "no record", insert("b", id=1)])
    shop.sync()
    with shop.service() as service:
        service.skip_record("a", f"{FIRST}:2")
    shop.sync()
    assert state(shop, "a") == state(shop, "b") == "suspect"


# Silence


def write_head(world: World, time: str, **fields: Any) -> None:
    head = Head(version=1, time=time, every_s=60, **fields)
    (world.archive / "head.json").write_bytes(encode_head(head))


def let_pass(world: World, minutes: int) -> None:
    """Make the head's first sighting so much older."""
    world.execute(
        f"UPDATE data_sync_runs SET head_changed_at = head_changed_at - interval '{minutes} minutes'"
    )


def test_active_tables_are_stale_while_the_archiver_is_silent_and_recover(
    shop: World, source: Writer
) -> None:
    source.snapshot(1, "a", 5, [{"id": 1, "v": "x"}], prev=None)
    shop.sync()
    assert state(shop, "a") == "active", "an archive without a head says nothing"
    write_head(shop, "2026-02-05T10:30:00Z", state="stopped")
    shop.sync()
    assert state(shop, "a") == "active", "it was seen just now for the first time"
    let_pass(shop, 30)
    shop.sync()  # a run of its own, which knows what the one before has seen
    assert (state(shop, "a"), state(shop, "b")) == ("stale", "new")
    (problem,) = [problem for problem in status(shop).problems if problem.kind == "stale"]
    assert "2026-02-05T10:30:00Z" in str(problem) and "stopped" in str(problem)
    (shop.archive / "head.json").unlink()  # as when the archive has moved
    shop.sync()
    assert state(shop, "a") == "stale"
    write_head(shop, "2026-02-05T10:31:00Z")
    shop.sync()
    assert state(shop, "a") == "active"
    shop.options["stale_after"] = 3600
    let_pass(shop, 30)
    shop.sync()
    assert state(shop, "a") == "active"


def test_an_archiver_that_waits_is_told_with_its_code_and_a_broken_head_stops_nothing(shop: World) -> None:
    write_head(shop, "2026-02-05T10:30:00Z", state="waiting", error_code="SHD_SYN_101")
    shop.write(FIRST, [insert("a", id=1)])
    shop.sync()
    assert "SHD_SYN_101" in str([p for p in status(shop).problems if p.kind == "archiver-waits"])
    (shop.archive / "head.json").write_text("{")
    shop.write(SECOND, [insert("a", id=2)])
    assert shop.sync().errors == ()
    assert ids(shop, "a") == [1, 2]


# A daemon that runs


def test_a_table_that_is_added_beside_a_running_daemon_is_taken_up_at_once(shop: World) -> None:
    shop.execute("CREATE TABLE c (id int PRIMARY KEY)")
    shop.write(FIRST, [insert("c", id=1), insert("a", id=1)])
    with daemon(shop):
        shop.whitelist("c")
        wait_until(lambda: ids(shop, "c") == [1], timeout_s=5)


# Locks


def test_a_table_that_others_lock_is_blocked_and_the_others_go_on(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    with shop.connect() as other:
        other.execute("SET application_name = 'a developer'")
        other.execute("BEGIN")
        other.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        (error,) = shop.sync().errors
        assert "a developer" in str(error) and f"process {other.info.backend_pid}" in str(error)
        assert (state(shop, "a"), state(shop, "b"), ids(shop, "b")) == ("blocked", "partial", [1])
        other.execute("ROLLBACK")
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), state(shop, "a")) == ([1], "partial")


def test_a_partition_that_others_lock_blocks_its_table_alone(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    shop.execute(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        " CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (9)"
    )
    shop.whitelist("p")
    shop.write(FIRST, [insert("p", id=1), insert("b", id=1)])
    with shop.connect() as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE p_1 IN ACCESS EXCLUSIVE MODE")
        (error,) = shop.sync().errors
        assert "table p: it is locked by process" in str(error)
        assert (state(shop, "p"), ids(shop, "b")) == ("blocked", [1])
        other.execute("ROLLBACK")
    assert shop.sync().errors == ()
    assert ids(shop, "p") == [1]


def test_rows_that_others_lock_block_their_table_alone(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    shop.sync()
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    shop.write(SECOND, [update("a", id=1, v="x"), insert("b", id=2)])
    with shop.connect() as other:
        other.execute("BEGIN")
        other.execute("UPDATE a SET v = 'mine'")
        (error,) = shop.sync().errors
        assert "table a: it is locked by another transaction" in str(error)
        assert (state(shop, "a"), ids(shop, "b")) == ("blocked", [1, 2])
        other.execute("ROLLBACK")
    assert shop.sync().errors == ()
    assert shop.rows("SELECT v FROM a") == [("x",)]


def test_a_first_load_waits_for_a_lock_within_a_limit_and_says_for_whom(
    shop: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(shadow_module, "_WAIT_S", 0.1)
    source.snapshot(1, "a", 5, [{"id": 1, "v": "x"}], prev=None)
    source.changes(1, [(10, [insert("b", id=1)])])
    with shop.connect() as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        (error,) = shop.sync().errors
        assert f"process {other.info.backend_pid}" in str(error)
        assert ids(shop, "b") == [1]
        other.execute("ROLLBACK")
    assert shop.sync().errors == ()
    assert (ids(shop, "a"), state(shop, "a")) == ([1], "active")


def waits(world: World) -> list[str]:
    return [str(problem) for problem in status(world).problems if problem.kind == "waiting-for-lock"]


def test_a_status_says_for_whom_the_daemon_waits_and_a_stop_ends_the_wait(shop: World) -> None:
    shop.write(FIRST, [insert("a", id=1), insert("b", id=1)])
    stop = threading.Event()
    with shop.connect() as other, shop.service() as service:
        other.execute("BEGIN")
        other.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 600, "stop": stop})
        loop.start()
        try:
            holder = f"for a lock on a, which process {other.info.backend_pid} "
            wait_until(lambda: any(holder in wait for wait in waits(shop)), timeout_s=20)
        finally:
            stop.set()
            loop.join(timeout=20)
        assert not loop.is_alive(), "the lock is still held, and the daemon has stopped"
        other.execute("ROLLBACK")
    assert shop.sync().errors == ()
    assert ids(shop, "a") == [1]


@pytest.fixture
def preparing(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that allows prepared transactions."""
    settings = SETTINGS | {"max_prepared_transactions": "2"}
    server = PostgresServer(binaries=postgres.binaries, settings=settings)
    server.start()
    yield server
    server.stop()


def test_a_prepared_transaction_that_holds_a_lock_is_named(
    preparing: PostgresServer, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(preparing)
    world.execute("CREATE TABLE a (id int PRIMARY KEY)")
    world.whitelist("a")
    world.write(FIRST, [insert("a", id=1)])
    world.execute(
        "BEGIN",
        "LOCK TABLE a IN SHARE MODE",
        "SELECT pg_current_xact_id()",
        "PREPARE TRANSACTION 'migration-7'",
    )
    with daemon_begun(world):
        wait_until(lambda: any("'migration-7'" in wait for wait in waits(world)), timeout_s=20)
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    (error,) = world.sync().errors
    assert "ROLLBACK PREPARED 'migration-7'" in str(error)
    world.execute("ROLLBACK PREPARED 'migration-7'")
    assert world.sync().errors == ()
    assert ids(world, "a") == [1]


@contextmanager
def daemon_begun(world: World) -> Iterator[None]:
    """A daemon that may hang in its first cycle."""
    stop = threading.Event()
    with world.service() as service:
        loop = threading.Thread(target=service.run_loop, kwargs={"interval_s": 600, "stop": stop})
        loop.start()
        try:
            yield
        finally:
            stop.set()
            loop.join(timeout=20)
