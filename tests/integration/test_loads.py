"""First loads and resyncs of many tables: what is read, made and asked for, counted."""

from __future__ import annotations

from typing import Any

import pytest

from syncdata.apply.progress import NoProgress
from syncdata.errors import SyncError
from syncdata.service import SyncResult
from tests.framed import Writer, file_name
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
