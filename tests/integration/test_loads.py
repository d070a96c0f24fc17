"""First loads and resyncs of many tables: what is read, made and asked for, counted."""

from __future__ import annotations

from typing import Any

import pytest

from syncdata.apply.progress import NoProgress
from tests.framed import Writer
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
