"""First loads and resyncs of many tables: what is read, made and asked for, counted."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from syncdata.apply import bootstrap
from syncdata.apply.load import load_newest
from syncdata.apply.postgres import definitions, shadow
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.shadow import ShadowTarget
from syncdata.apply.progress import NoProgress
from syncdata.connections import AliasSession
from syncdata.errors import ServiceInitError, SyncError
from syncdata.service import SyncResult
from tests.framed import Writer, file_name
from tests.integration.test_fallback import counted
from tests.integration.test_round_trips import trips
from tests.world import World, insert, update


@pytest.fixture
def source(world: World) -> Writer:
    return Writer(world.archive)


def test_a_snapshot_with_a_key_twice_here_leaves_the_later_row(world: World, source: Writer) -> None:
    """Two rows of production may have one key here: the key is another, or other texts are equal."""
    world.options["batch_records"] = 10
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE)")
    world.whitelist("t")
    rows = [{"id": n % 40, "v": n} for n in range(50)]
    source.snapshot(1, "t", 5, rows, prev=None)
    assert world.sync().errors == ()
    assert world.rows("SELECT id, v FROM t ORDER BY id") == [
        *((n, n + 40) for n in range(10)),
        *((n, n) for n in range(10, 40)),
    ]


@pytest.mark.parametrize("key", ["PRIMARY KEY", "UNIQUE"])
def test_a_snapshots_rows_come_before_the_indexes_of_the_table_beside(
    world: World, source: Writer, key: str
) -> None:
    world.options["batch_records"] = 10
    world.execute(
        f'CREATE TABLE t (id int {key}, "V {{x}} ON" int, w int UNIQUE)',
        'CREATE INDEX ON t ("V {x} ON")',
        'CREATE UNIQUE INDEX "a {} ON public.t USING b" ON t (("V {x} ON" + 1)) WHERE w > 0',
        "ALTER TABLE t ADD EXCLUDE USING gist (int4range(id, id, '[]') WITH &&)",
    )
    world.whitelist("t")
    indexes: list[tuple[str, int]] = []

    class Watcher(NoProgress):
        name = ""

        def file_started(self, name: str, size_bytes: int) -> None:
            self.name = name.partition("_")[0]

        def batch_applied(self, records: int, size_bytes: int) -> None:
            count = (
                "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
                " WHERE relname = 'syncdata_rebuild'"
            )
            indexes.append((self.name, world.value(count)))

    rows = ({"id": n, "V {x} ON": n, "w": n} for n in range(30))
    source.snapshot(1, "t", 5, rows, prev=None)
    old: dict[str, Any] = {"id": 5, "V {x} ON": 5, "w": 5}
    new: dict[str, Any] = old | {"w": 1000}
    source.changes(1, [(6, [update("t", old, **new), insert("t", id=5000)])])
    with world.service(progress=Watcher()) as service:
        service.resync("t")
    without_key = 0 if key == "PRIMARY KEY" else 1
    assert indexes == [*[("snapshot", 0)] * 3, ("changes", 4 + without_key)]
    assert world.rows("SELECT * FROM t WHERE id >= 28 OR w > 100 ORDER BY id") == [
        (5, 5, 1000),
        (28, 28, 28),
        (29, 29, 29),
        (5000, None, None),
    ]


class Opens(NoProgress):
    """The files that a piece of work has begun to apply, in their order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def file_started(self, name: str, size_bytes: int) -> None:
        self.names.append(name)


def test_a_resync_of_many_tables_reads_each_file_once(world: World, source: Writer) -> None:
    """Some begin with a snapshot, of one moment or another, some with the archive's first file."""
    names = [f"t{n}" for n in range(12)]
    world.execute(*(f"CREATE TABLE {name} (v int)" for name in names))
    world.whitelist(*names)
    for number in range(1, 5):
        lsn = number * 10
        source.changes(number, [(lsn, [insert(name, v=lsn) for name in names])])
    world.sync()
    for name in names[:4]:
        source.snapshot(1, name, 10, [{"v": 1}], prev=1)
    for name in names[4:8]:
        source.snapshot(2, name, 30, [{"v": 3}], prev=3)
    opens = Opens()
    with world.service(progress=opens) as service:
        outcomes = service.resync_tables(names)
    assert [name for name in opens.names if name.startswith("changes")] == [file_name(n) for n in range(1, 5)]
    assert all(isinstance(outcome, SyncResult) for outcome in outcomes.values())
    for first, name in zip([[1, 20, 30, 40], [3, 40], [10, 20, 30, 40]], names[::4], strict=True):
        assert world.rows(f"SELECT v FROM {name} ORDER BY v") == [(v,) for v in first]
        assert world.checkpoint(name)[:3] == (file_name(4), 12, "active")
    assert world.sync().records_added == 0


def test_a_table_that_cannot_be_resynced_stops_none_of_those_beside_it(world: World, source: Writer) -> None:
    world.execute(*(f"CREATE TABLE {name} (id int PRIMARY KEY, v int)" for name in "abc"))
    world.whitelist("a", "b", "c")
    source.changes(1, [(10, [insert(name, id=1, v=1) for name in "abc"])])
    world.sync()
    world.execute("ALTER TABLE b ADD CHECK (v < 0) NOT VALID", "ALTER TABLE c DROP v")
    with world.service() as service:
        outcomes = service.resync_tables(["a", "b", "nobody", "c"])
    assert isinstance(outcomes["a"], SyncResult)
    for name, reason in {"b": "not rebuilt", "nobody": "not whitelisted", "c": "not rebuilt"}.items():
        assert isinstance(outcomes[name], SyncError)
        assert reason in str(outcomes[name])
    assert world.rows("SELECT * FROM b") == [(1, 1)]
    audited = "SELECT table_name, status FROM data_sync_logs WHERE action = 'resync' ORDER BY table_name"
    assert world.rows(audited) == [("a", "SUCCESS"), ("b", "FAILED"), ("c", "FAILED")]
    assert world.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'syncdata_rebuild%'") == 0


def test_a_resync_leaves_rows_that_do_not_differ_where_they_are(world: World, source: Writer) -> None:
    """Each of the others differs in its own way; some are equal to PostgreSQL, and yet not the same."""
    world.execute(
        "CREATE TABLE t (a int, b text, n numeric, j json, l int DEFAULT 7, PRIMARY KEY (a, b))",
        "CREATE INDEX ON t (n)",
        "CREATE UNIQUE INDEX ON t (l) WHERE l <> 7",
    )
    world.whitelist("t")
    rows: list[dict[str, Any]] = [
        {"a": a, "b": "x", "n": "1.0", "j": '{"v": 1}' if a else None} for a in range(9)
    ]
    source.snapshot(1, "t", 5, rows, prev=None)
    source.changes(1, [(6, [insert("t", a=9, b="y", n="2.0", j=None)])])
    assert world.sync().errors == ()
    before = dict(world.rows("SELECT a, t.ctid::text || t.xmin FROM t"))
    world.execute(
        "UPDATE t SET n = 1.00 WHERE a = 1",
        "UPDATE t SET j = '{ \"v\": 1}' WHERE a = 2",
        "UPDATE t SET j = '{}' WHERE a = 0",
        "UPDATE t SET l = NULL WHERE a = 3",
        "UPDATE t SET l = 8 WHERE a = 4",
        "UPDATE t SET b = 'X' WHERE a = 5",
        "DELETE FROM t WHERE a = 6",
        "INSERT INTO t VALUES (100, 'local')",
    )
    with world.service() as service:
        service.resync("t")
    assert world.rows("SELECT a, b, n::text, j::text, l FROM t ORDER BY a") == [
        *((a, "x", "1.0", '{"v": 1}' if a else None, 7) for a in range(9)),
        (9, "y", "2.0", None, 7),
    ]
    after = dict(world.rows("SELECT a, t.ctid::text || t.xmin FROM t"))
    assert {a for a in after if after[a] == before[a]} == {7, 8, 9}


def test_a_snapshots_batch_is_one_statement(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.options["batch_records"] = 10
    with_snapshots(world, source, ["t"])
    apply, costs = ShadowTarget.apply, []

    def counting(target: ShadowTarget, *arguments: Any) -> Any:
        with counted(target._connection) as cost:
            outcome = apply(target, *arguments)
        costs.append(cost.statements)
        return outcome

    monkeypatch.setattr(ShadowTarget, "apply", counting)
    assert world.sync().errors == ()
    assert costs == [1, 1, 1, 1]


@pytest.mark.parametrize("again", [False, True])
def test_a_table_more_is_loaded_in_a_few_round_trips(world: World, source: Writer, again: bool) -> None:
    """Its catalog is read together with that of the others."""
    costs = []
    for names in (["a"], [f"t{n}" for n in range(8)]):
        with_snapshots(world, source, names)
        world.options["jobs"] = 1
        if again:
            world.sync()
        with world.service() as service, counted(service._worker._resources.connect()) as cost:
            outcomes = service.resync_tables(names) if again else {"": service.run_once()}
        assert all(isinstance(outcome, SyncResult) for outcome in outcomes.values())
        costs.append(trips(cost))
    # In a resync the change file behind the snapshot is applied to each table by itself.
    assert (costs[1] - costs[0]) / 7 <= (33 if again else 26)


def test_only_the_exchange_of_a_loaded_tables_rows_waits_for_the_disk(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash takes the table beside away, whatever has come there. Its removal waits, so that goes with the
    exchange."""
    with_snapshots(world, source, ["t"])
    seen: list[tuple[str, str]] = []

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            connection = args[0]
            ((setting,),) = connection.execute("SHOW synchronous_commit").fetchall()
            seen.append((name, setting))
            return result

        monkeypatch.setattr(module, name, watched)

    for step in ("do_not_wait_for_disk", "read_late_indexes", "log_action", "_drop", "_let_go"):
        watch(shadow, step)
    with world.service() as service:
        service.resync("t")
    assert seen == [
        ("_drop", "on"),
        ("do_not_wait_for_disk", "off"),
        ("read_late_indexes", "off"),
        ("do_not_wait_for_disk", "off"),  # for the indexes
        ("log_action", "on"),
        ("_drop", "on"),
    ]
    assert world.value("SELECT count(*) FROM t") == 41


# Side by side


def with_snapshots(world: World, source: Writer, names: list[str], rows: int = 40) -> None:
    world.execute(*(f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in names))
    world.whitelist(*names)
    for name in names:
        source.snapshot(1, name, 5, [{"id": n} for n in range(rows)], prev=None)
    source.changes(1, [(6, [insert(name, id=1000) for name in names])])


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_tables_are_loaded_at_once_as_there_are_jobs(world: World, source: Writer, jobs: int) -> None:
    names = [f"t{n}" for n in range(8)]
    with_snapshots(world, source, names)
    world.options["jobs"] = jobs
    loads = threading.Barrier(jobs, timeout=30)
    at_work: set[int] = set()

    def together(*args: Any) -> Any:
        if threading.get_ident() not in at_work:
            at_work.add(threading.get_ident())
            loads.wait()  # It breaks unless so many are at work at once.
        return load_newest(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "load_newest", together)
        assert world.sync().errors == ()
    assert len(at_work) == jobs
    for name in names:
        assert world.rows(f"SELECT count(*), max(id) FROM {name}") == [(41, 1000)]
        assert world.checkpoint(name)[:3] == (file_name(1), 8, "active")
    assert world.value("SELECT sum(records_synced) FROM data_sync_runs") == 8 * 41


@pytest.mark.parametrize("jobs", [1, 2])
def test_new_tables_begin_together_however_short_the_interval_is(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """The time of the cycle is up before they begin."""
    monkeypatch.setattr(bootstrap, "_LEAST_LOADING_S", 600.0)
    names = [f"t{n}" for n in range(8)]
    with_snapshots(world, source, names)
    world.options["jobs"] = jobs
    with world.service() as service, service._worker.running(1) as run:
        run.cycle(threading.Event(), deadline=time.monotonic())
    assert [world.checkpoint(name)[:3] for name in names] == [(file_name(1), 8, "active")] * 8


@pytest.mark.parametrize(
    ("deadline", "now_s", "until_s"), [(None, 50, None), (41, 40.5, 45.5), (100, 60, 100), (41, 60, 80)]
)
def test_new_tables_have_as_long_as_the_others(
    deadline: float | None, now_s: float, until_s: float | None
) -> None:
    assert bootstrap.loading_deadline(deadline, started_s=40, now_s=now_s) == until_s


def test_tables_that_are_loaded_at_once_are_looked_up_once(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"t{n}" for n in range(8)]
    with_snapshots(world, source, names)
    world.options["jobs"] = 3
    looked_up: list[int] = []

    def counting(connection: Any, tables: Any) -> Any:
        looked_up.append(len(tables))
        return read_schemas(connection, tables)

    monkeypatch.setattr(definitions, "read_schemas", counting)
    assert world.sync().errors == ()
    assert looked_up == [8]
    looked_up.clear()
    with world.service() as service:
        service.resync_tables(names)
    assert looked_up == [8]


def test_a_bad_table_keeps_none_of_those_loaded_beside_it(world: World, source: Writer) -> None:
    world.options["jobs"] = 3
    names = [f"t{n}" for n in range(8)]
    with_snapshots(world, source, names)
    world.execute("ALTER TABLE t3 ADD CHECK (id < 20)")
    assert [error.fields["table"] for error in world.sync().errors] == ["t3"]
    assert [world.checkpoint(name)[2] for name in names] == [*["active"] * 3, "blocked", *["active"] * 4]
    assert world.rows("SELECT count(*) FROM t3") == [(0,)]
    assert all(world.value(f"SELECT count(*) FROM {name}") == 41 for name in names if name != "t3")


def test_a_stop_ends_all_loads_soon_with_nothing_half_done(world: World, source: Writer) -> None:
    world.options |= {"jobs": 2, "batch_records": 20}
    names = [f"t{n}" for n in range(4)]
    with_snapshots(world, source, names, rows=4000)
    stop = threading.Event()

    class Stopper(NoProgress):
        def batch_applied(self, records: int, size_bytes: int) -> None:
            stop.set()

    with world.service(progress=Stopper()) as service:
        service.run_once(stop)
    assert [world.checkpoint(name)[0] for name in names] == [""] * 4
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [0] * 4
    assert world.sync().errors == ()
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [4000] * 4


def test_a_server_without_room_for_more_sessions_is_loaded_by_one(world: World, source: Writer) -> None:
    names = [f"t{n}" for n in range(4)]
    with_snapshots(world, source, names)
    world.options["jobs"] = 4
    refused: list[int] = []

    def refuse(self: AliasSession) -> AliasSession:
        refused.append(1)
        raise ServiceInitError("too many connections", hint="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AliasSession, "another", refuse)
        assert world.sync().errors == ()
    assert len(refused) == 3
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [41] * 4


def test_tables_that_refer_to_each_other_begin_in_their_order_for_an_ordinary_role(
    world: World, source: Writer
) -> None:
    with_snapshots(world, source, [f"t{n}" for n in range(4)])
    world.execute(*(f"ALTER TABLE t{n} ADD FOREIGN KEY (id) REFERENCES t{n + 1}" for n in range(3)))
    world.use_ordinary_role()
    world.options["jobs"] = 4
    assert world.sync().errors == ()
    audit = "SELECT table_name FROM data_sync_logs WHERE action = 'snapshot' ORDER BY sync_time"
    assert world.rows(audit) == [("t3",), ("t2",), ("t1",), ("t0",)]
