"""New tables, cleared ones and resyncs start from the newest good snapshot, and replay what came later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from syncdata.apply.progress import NoProgress
from syncdata.apply.state import queue as requests
from syncdata.errors import ApplyError, DiscoveryError, ResyncError, SchemaError, SyncError
from tests.framed import Record, Writer, file_name
from tests.sshd import SshServer
from tests.world import World, delete, insert, update


@pytest.fixture
def bags(world: World) -> World:
    """Two whitelisted tables without a key, which show what is applied twice."""
    world.execute("CREATE TABLE a (v int)", "CREATE TABLE b (v int)")
    world.whitelist("a", "b")
    return world


@pytest.fixture
def source(bags: World) -> Writer:
    return Writer(bags.archive)


def both(lsn: int) -> tuple[int, list[Record]]:
    """A transaction that puts its own LSN into both tables."""
    return (lsn, [insert("a", v=lsn), insert("b", v=lsn)])


def values(world: World, table: str) -> list[int]:
    return [v for (v,) in world.rows(f"SELECT v FROM {table} ORDER BY v")]


def rows(*numbers: int) -> list[Record]:
    return [{"v": number} for number in numbers]


def only_error(world: World, kind: type[SyncError]) -> str:
    (error,) = world.sync().errors
    assert type(error) is kind
    return str(error)


# The first load


def test_a_new_table_starts_from_its_snapshot_and_takes_what_committed_later(
    bags: World, source: Writer
) -> None:
    source.changes(1, [both(10)])
    source.changes(2, [both(20), both(30), both(40)])
    source.snapshot(1, "a", 30, rows(1, 10, 20, 30), prev=1)
    source.snapshot(1, "b", 20, rows(2, 10, 20), prev=1)
    result = bags.sync()
    assert result.errors == ()
    assert values(bags, "a") == [1, 10, 20, 30, 40]
    assert values(bags, "b") == [2, 10, 20, 30, 40]
    assert result.records_added == 7 + 3
    logs = bags.rows(
        "SELECT table_name, status, archive_ref, rows_synced FROM data_sync_logs WHERE action = 'snapshot'"
        " ORDER BY 1"
    )
    assert logs == [
        ("a", "SUCCESS", "snapshot_20260205_000001/public.a.json.gz", 4),
        ("b", "SUCCESS", "snapshot_20260205_000001/public.b.json.gz", 3),
    ]
    assert bags.checkpoint("a") == bags.checkpoint("b") == (file_name(2), 6, "active", None)
    assert bags.value("SELECT records_synced FROM data_sync_runs") == 10
    assert bags.sync().records_added == 0


def test_the_boundary_itself_is_in_the_snapshot_and_the_next_commit_is_not(
    bags: World, source: Writer
) -> None:
    source.changes(1, [both(29), both(30), both(31)])
    source.snapshot(1, "a", 30, rows(29, 30), prev=None)
    bags.sync()
    assert values(bags, "a") == [29, 30, 31]


def test_a_snapshot_may_come_before_any_change_file(bags: World, source: Writer) -> None:
    source.snapshot(1, "a", 30, rows(1), prev=None)
    assert bags.sync().records_added == 1
    with bags.service() as service:
        assert {info.table_name: info.state for info in service.list_tables()} == {"a": "active", "b": "new"}
    assert bags.sync().records_added == 0
    source.changes(1, [both(30), both(40)])
    assert bags.sync().errors == ()
    assert values(bags, "a") == [1, 40]
    assert values(bags, "b") == [30, 40]


def test_watermarks_last_until_the_stream_is_beyond_them(bags: World, source: Writer) -> None:
    """The snapshot's commits may lie in several files, and cycles may end between them."""
    source.snapshot(1, "a", 45, rows(1), prev=None)
    source.snapshot(1, "b", 15, rows(2), prev=None)
    for number in range(1, 6):
        source.changes(number, [both(number * 10), both(number * 10 + 5)])
        assert bags.sync().errors == ()
    assert values(bags, "a") == [1, 50, 55]
    assert values(bags, "b") == [2, *range(20, 60, 5)]


def test_tables_at_work_do_not_wait_for_a_new_one(bags: World, source: Writer) -> None:
    source.changes(1, [both(10)])
    bags.sync()
    bags.execute("CREATE TABLE late (v int)")
    bags.whitelist("late")
    source.changes(2, [both(20)])
    source.snapshot(1, "late", 5, rows(5), prev=None)
    order: list[str] = []

    class Watcher(NoProgress):
        def file_started(self, name: str, size_bytes: int) -> None:
            order.append(name)

    with bags.service(progress=Watcher()) as service:
        assert service.run_once().errors == ()
    assert order == [file_name(2), "snapshot_20260205_000001/public.late.json.gz", file_name(1), file_name(2)]
    assert bags.checkpoint("late") == bags.checkpoint("a")


def test_a_cleared_table_comes_back_from_its_snapshot(bags: World, source: Writer) -> None:
    source.changes(1, [both(10)])
    source.changes(2, [both(20)])
    bags.sync()
    for table in "ab":
        source.snapshot(1, table, 10, rows(1, 10), prev=1)
    source.changes(1, [both(10)]).unlink()
    with bags.service() as service:
        service.clear()
    assert bags.sync().errors == ()
    assert values(bags, "a") == values(bags, "b") == [1, 10, 20]


# Snapshots that are no good


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"is_finished": False}, "it has no footer yet"),
        ({"named": "public.b"}, "names another table"),
        ({"records": [insert("b", v=9)]}, "no INSERT of the snapshot's table"),
        ({"records": [delete("a", v=1)]}, "no INSERT of the snapshot's table"),
        ({"records": [insert("a", v=1) | {"schema": "other"}]}, "no INSERT of the snapshot's table"),
    ],
)
def test_a_bad_snapshot_is_passed_over_for_the_next_older_one(
    bags: World, source: Writer, caplog: pytest.LogCaptureFixture, bad: dict[str, Any], words: str
) -> None:
    source.changes(1, [both(10)], prev=0)
    source.changes(2, [both(20), both(30)])
    source.snapshot(1, "a", 10, rows(10), prev=1)
    source.snapshot(2, "a", 20, rows(10, 20), prev=1, **bad)
    source.snapshot(1, "b", 10, rows(10), prev=1)
    assert bags.sync().errors == ()
    assert values(bags, "a") == values(bags, "b") == [10, 20, 30]
    assert words in caplog.text
    with bags.service() as service:
        service.resync("a")
    assert values(bags, "a") == [10, 20, 30]


def test_a_snapshot_cut_inside_its_compression_is_passed_over(bags: World, source: Writer) -> None:
    path = source.snapshot(1, "a", 10, rows(10), prev=None)
    path.write_bytes(path.read_bytes()[:-20])
    source.changes(1, [both(10)])
    assert bags.sync().errors == ()
    assert values(bags, "a") == [10]


def test_without_a_good_snapshot_and_a_beginning_the_table_says_so(bags: World, source: Writer) -> None:
    source.changes(2, [both(20)], prev=1)
    source.snapshot(2, "a", 20, rows(10, 20), prev=1, is_finished=False)
    errors = {error.table: error for error in bags.sync().errors}
    assert "there is no snapshot of it" in str(errors["b"])
    assert "archive_changes --snapshot b" in errors["b"].hint
    assert "no snapshot of it is good (snapshot_20260205_000002/public.a.json.gz: " in str(errors["a"])
    with bags.service() as service, pytest.raises(ResyncError, match="no snapshot of it is good"):
        service.resync("a")
    source.snapshot(3, "b", 20, rows(10, 20), prev=2)
    bags.sync()
    assert bags.checkpoint("b")[2:] == ("active", None)
    assert bags.checkpoint("a")[2] == "blocked"
    source.snapshot(3, "a", 20, rows(10, 20), prev=2)
    assert bags.sync().errors == ()
    assert values(bags, "a") == values(bags, "b") == [10, 20]


def test_a_snapshot_that_does_not_fit_blocks_its_table_alone_until_it_does(
    bags: World, source: Writer
) -> None:
    source.changes(1, [both(10)])
    source.snapshot(1, "a", 5, [{"v": 5, "w": 6}], prev=None)
    message = only_error(bags, SchemaError)
    assert "table a:" in message and "'w'" in message
    assert (values(bags, "a"), values(bags, "b")) == ([], [10])
    bags.execute("ALTER TABLE a ADD w int")
    assert bags.sync().errors == ()
    assert bags.rows("SELECT * FROM a ORDER BY v") == [(5, 6), (10, None)]
    assert bags.checkpoint("a") == bags.checkpoint("b")


def test_a_table_that_does_not_exist_yet_is_loaded_when_it_does(bags: World, source: Writer) -> None:
    bags.whitelist("later")
    source.snapshot(1, "later", 5, rows(5), prev=None)
    assert "does not exist" in only_error(bags, SchemaError)
    bags.execute("CREATE TABLE later (v int)")
    assert bags.sync().errors == ()
    assert values(bags, "later") == [5]


def test_a_table_without_a_snapshot_is_warned_of_once(
    bags: World, source: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    source.changes(1, [both(10)])
    for number in range(2, 4):
        bags.sync()
        source.changes(number, [both(number * 10)])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([text for text in warnings if text.startswith("a b: rows that are older than")]) == 1


# Chains and sources


def test_a_pruned_chain_lets_new_tables_start_and_stops_those_that_need_it(
    bags: World, source: Writer
) -> None:
    source.changes(1, [both(10)])
    bags.sync()
    for number in (2, 3, 4):
        source.changes(number, [both(number * 10)])
    for number in (1, 2, 3):
        (bags.archive / file_name(number)).unlink()
    source.snapshot(1, "a", 30, rows(10, 20, 30), prev=3)
    message = only_error(bags, DiscoveryError)
    assert "a gap" in message and "resync" in message
    with bags.service() as service:
        service.resync("a")
    assert values(bags, "a") == [10, 20, 30]  # where b stands is behind it, so it waits for nobody
    bags.sync()
    assert values(bags, "a") == [10, 20, 30, 40]
    assert bags.checkpoint("b")[2] == "blocked"


def test_a_snapshot_of_an_older_epoch_does_not_lead_into_a_newer_one(bags: World, source: Writer) -> None:
    source.changes(1, [both(10)])
    source.of_epoch(2).changes(2, [both(20)], seq=1)
    source.snapshot(1, "a", 10, rows(10), prev=1)
    source.of_epoch(2).snapshot(2, "b", 15, rows(10, 15), prev=1)
    errors = bags.sync().errors
    assert ["another source" in str(error) for error in errors] == [True]
    assert "archive_changes --snapshot" in errors[0].hint
    assert values(bags, "b") == [10, 15, 20]
    with bags.service() as service, pytest.raises(ResyncError, match="archive_changes --snapshot"):
        service.resync("a")
    source.of_epoch(2).snapshot(3, "a", 16, rows(10, 16), prev=1)
    with bags.service() as service:
        service.resync("a")
    assert values(bags, "a") == [10, 16, 20]
    assert bags.sync().errors == ()
    assert bags.checkpoint("a") == bags.checkpoint("b")


def test_the_way_from_the_predecessors_files_leads_over_snapshots(bags: World, source: Writer) -> None:
    bags.write(file_name(1), [insert("a", v=1), insert("b", v=1)])
    bags.sync()
    source.changes(2, [both(20), both(30)], seq=1)
    assert "a new source begins here" in only_error(bags, DiscoveryError)
    source.snapshot(1, "a", 20, rows(1, 15, 20), prev=1)
    with bags.service() as service:
        service.resync("a")
    assert bags.checkpoint("a")[0] == file_name(1)
    assert "a new source begins here" in only_error(bags, DiscoveryError)  # b is still there
    assert values(bags, "a") == [1, 15, 20, 30]
    source.snapshot(2, "b", 30, rows(1, 15, 20, 30), prev=1)
    with bags.service() as service:
        service.resync("b")
    assert bags.sync().errors == ()
    assert values(bags, "b") == [1, 15, 20, 30]


# Resync


def test_a_resync_replays_from_the_snapshot_to_where_the_others_stand(bags: World, source: Writer) -> None:
    source.changes(1, [both(10)], prev=0)
    for table in "ab":
        source.snapshot(1, table, 10, rows(10), prev=1)
    source.changes(2, [both(20), both(30)])
    bags.sync()
    bags.execute("UPDATE a SET v = 99")
    source.changes(3, [both(40)])
    source.snapshot(2, "a", 20, rows(10, 20), prev=1)
    with bags.service() as service:
        result = service.resync("a")
    assert (result.files_processed, result.records_added) == (2, 3)
    assert values(bags, "a") == [10, 20, 30]
    assert bags.checkpoint("a") == bags.checkpoint("b")
    bags.sync()
    assert values(bags, "a") == values(bags, "b") == [10, 20, 30, 40]


def test_a_snapshot_newer_than_where_the_others_stand_waits_for_them(bags: World, source: Writer) -> None:
    source.changes(1, [both(10)])
    bags.sync()
    source.changes(2, [both(20)])
    source.changes(3, [both(30), both(40)])
    source.snapshot(1, "a", 30, rows(10, 20, 30), prev=2)
    with bags.service() as service:
        service.resync("a")
    assert values(bags, "a") == [10, 20, 30]
    assert bags.sync().errors == ()
    assert values(bags, "a") == values(bags, "b") == [10, 20, 30, 40]
    assert bags.checkpoint("a") == bags.checkpoint("b")


def test_a_resync_while_the_others_are_blocked_inside_a_file_keeps_its_watermark(
    bags: World, source: Writer
) -> None:
    bags.options["batch_records"] = 1
    source.changes(1, [both(10), both(20), (25, [insert("b", v=25, w=1)]), both(30), both(40)])
    bags.sync()
    source.snapshot(1, "a", 30, rows(10, 20, 30), prev=None)
    assert bags.checkpoint("b")[1:3] == (4, "blocked")
    with bags.service() as service:
        service.resync("a")
    assert bags.checkpoint("a")[:2] == (file_name(1), 4)
    bags.sync()
    assert values(bags, "a") == [10, 20, 30, 40]
    bags.execute("ALTER TABLE b ADD w int")
    assert bags.sync().errors == ()
    assert values(bags, "b") == [10, 20, 25, 30, 40]


def test_a_resync_under_a_running_cycle_does_not_leave_it_an_old_watermark(
    bags: World, source: Writer
) -> None:
    """The resync ends at the same file, but its rows are newer: the cycle's next batch must notice."""
    source.changes(1, [both(10)])
    bags.sync()
    source.changes(2, [both(20), both(30)])
    source.snapshot(1, "a", 20, rows(10, 20), prev=1)

    class Meddler(NoProgress):
        is_done = False

        def file_started(self, name: str, size_bytes: int) -> None:
            if not self.is_done:
                self.is_done = True
                with bags.service() as other:
                    other.resync("a")

    with bags.service(progress=Meddler()) as service:
        assert service.run_once().errors == ()
    assert values(bags, "a") == values(bags, "b") == [10, 20, 30]


@pytest.mark.parametrize("what", ["added", "cleared", "cleared after its own load"])
def test_a_table_that_begins_while_another_is_loaded_waits_for_its_own_snapshot(
    bags: World, source: Writer, what: str
) -> None:
    bags.options["jobs"] = 1
    source.changes(1, [both(10)])
    source.snapshot(1, "a", 10, rows(1, 10), prev=1)
    source.snapshot(1, "b", 10, rows(2, 10), prev=1)
    bags.execute("CREATE TABLE last (v int)")
    source.snapshot(1, "last", 10, rows(3), prev=1)
    with bags.service() as service:
        if what == "added":
            service.remove_tables(["b"])
        elif what == "cleared":
            service.run_once()
        service.add_tables(["last"])

    class Meddler(NoProgress):
        is_done = False

        def file_finished(self, name: str) -> None:
            if "public.last" in name and not self.is_done:
                self.is_done = True
                with bags.service() as other:
                    other.add_tables(["b"])
                    other.clear(["b"])

    with bags.service(progress=Meddler()) as service:
        service.run_once()
    assert values(bags, "b") == []
    bags.sync()
    assert values(bags, "a") == [1, 10]
    assert values(bags, "b") == [2, 10]
    assert values(bags, "last") == [3]


def test_a_request_is_carried_out_between_the_loads_of_two_tables(bags: World, source: Writer) -> None:
    bags.options["jobs"] = 1
    source.changes(1, [both(10)])
    source.snapshot(1, "a", 10, rows(1, 10), prev=1)
    source.snapshot(1, "b", 10, rows(2, 10), prev=1)

    class PauseTheOther(NoProgress):
        is_asked = False

        def file_finished(self, name: str) -> None:
            if "public.a" in name and not self.is_asked:
                self.is_asked = True
                with bags.connect() as connection:
                    requests.submit(connection, "pause", ["b"])

    with bags.service(progress=PauseTheOther()) as service:
        service.run_once()
    assert bags.checkpoint("b") == ("", 0, "paused", None)
    assert values(bags, "a") == [1, 10]


# Stops and losses


@pytest.mark.parametrize("is_resync", [False, True])
def test_a_lost_connection_during_the_load_leaves_the_old_rows(
    bags: World, source: Writer, is_resync: bool
) -> None:
    bags.options["batch_records"] = 10
    bags.execute("INSERT INTO a VALUES (77)")
    source.snapshot(1, "a", 5, rows(*range(100)), prev=None)

    class Cutter(NoProgress):
        def batch_applied(self, records: int, size_bytes: int) -> None:
            bags.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with bags.service(progress=Cutter()) as service, pytest.raises(SyncError, match="SHD_SYN_0(55|64)"):
        service.resync("a") if is_resync else service.run_once()
    assert values(bags, "a") == [77]
    assert bags.checkpoint("a")[2:] == ("active", None)
    assert bags.sync().errors == ()
    assert values(bags, "a") == list(range(100))


def test_a_stop_during_the_load_ends_it_soon_with_nothing_half_done(bags: World, source: Writer) -> None:
    bags.options["batch_records"] = 10
    source.snapshot(1, "a", 5, rows(*range(5000)), prev=None)
    source.changes(1, [both(10)])
    stop = threading.Event()
    batches: list[int] = []

    class Stopper(NoProgress):
        def batch_applied(self, records: int, size_bytes: int) -> None:
            batches.append(records)
            stop.set()

    with bags.service(progress=Stopper()) as service:
        service.run_once(stop)
    assert 1 <= len(batches) <= 2
    assert values(bags, "a") == []
    assert bags.checkpoint("a")[:3] == ("", 0, "active")
    bags.sync()
    assert values(bags, "a") == [*range(10), 10, *range(10, 5000)]


# Roles and hosts


def test_an_ordinary_role_loads_tables_that_refer_to_each_other(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.execute(
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE c (id int PRIMARY KEY, p_id int REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
    )
    world.whitelist("p", "c")
    world.use_ordinary_role()
    source = Writer(world.archive)
    source.changes(1, [(10, [insert("p", id=1)]), (20, [insert("p", id=2), insert("c", id=1, p_id=2)])])
    source.snapshot(1, "p", 10, [{"id": 1}], prev=None)
    source.snapshot(1, "c", 20, [{"id": 1, "p_id": 2}], prev=None)
    # c's snapshot is younger than p's: its parent comes with the cycle, and then it fits.
    (error,) = world.sync().errors
    assert type(error) is ApplyError and "break the constraint" in str(error)
    source.changes(2, [(30, [update("c", {"id": 1}, id=1, p_id=1), delete("p", id=2)])])
    world.sync()
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM c") == [(1, 1)]
    assert world.rows("SELECT * FROM p") == [(1,)]
    assert world.checkpoint("c") == world.checkpoint("p")


def test_snapshots_come_over_sftp(bags: World, sshd: SshServer) -> None:
    settings = sshd.settings()
    bags.options |= {
        "archive_backend": "sftp",
        "archive_dir": settings.directory,
        "archive_host": settings.host,
        "archive_port": settings.port,
        "archive_user": settings.user,
        "archive_key_file": settings.key_file,
        "archive_known_hosts": settings.known_hosts,
    }
    source = Writer(sshd.archive_dir)
    source.changes(1, [both(10), both(20)])
    source.snapshot(1, "a", 10, rows(1, 10), prev=None)
    assert bags.sync().errors == ()
    assert values(bags, "a") == [1, 10, 20]
    with bags.service() as service:
        service.resync("a")
    assert values(bags, "a") == [1, 10, 20]
