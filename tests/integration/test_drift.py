"""What production did to a table without a record, and what would not fit here: said, and never green."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from syncdata.apply.bootstrap import settles
from syncdata.apply.plan.drift import quoted
from syncdata.apply.plan.types import is_held, is_widened
from syncdata.apply.position import START
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.state.marks import Mark, encode_marks
from syncdata.changes.catalog import Partition, PublishedTable, catalog_comment
from syncdata.changes.filenames import SnapshotFile, snapshot_name
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.errors import ResyncError
from syncsite.demo.postgres import PostgresServer, system_binaries
from tests.catalogs import column, put, table
from tests.framed import Writer, file_name
from tests.postgres import VERSIONS
from tests.world import World, delete, insert, truncate, update

FIELDS = ("orders", "id integer", "price numeric(10,2)")
ORDERS = table(*FIELDS)


@pytest.fixture
def shop(world: World) -> World:
    world.execute("CREATE TABLE orders (id int PRIMARY KEY, price numeric(10,2))")
    world.whitelist("orders")
    return world


@pytest.fixture
def source(shop: World) -> Writer:
    return Writer(shop.archive)


def state(world: World, name: str = "orders") -> str:
    with world.service() as service:
        (shown,) = [info.state for info in service.list_tables() if info.table_name == name]
    return shown


def problems(world: World, name: str = "orders") -> str:
    """What the status says of the table; empty when it is healthy."""
    with world.service() as service:
        return "\n".join(str(problem) for problem in service.get_status().problems if problem.table == name)


def blocked(world: World, name: str = "orders") -> str:
    """The error that blocks the table."""
    _, _, shown, error = world.checkpoint(name)
    assert (shown, state(world, name)) == ("blocked", "blocked")
    assert error is not None and error.startswith("SHD_SYN_050: ")
    return error


def begin(world: World, source: Writer, published: PublishedTable = ORDERS, **row: Any) -> None:
    """A table that began with a snapshot, and is active."""
    rows = [{"id": 1} | (row or {"price": "1.25"})]
    source.snapshot(1, published.name, 5, rows, prev=None, catalog=put(world.archive, published))
    source.changes(1, [(10, [insert(published.name, **(rows[0] | {"id": 2}))])], **under(world, published))
    world.sync()
    assert state(world, published.name) == "active", problems(world, published.name)


def under(world: World, *published: PublishedTable, lsn: int = 6) -> dict[str, Any]:
    return {"catalog": put(world.archive, *published), "catalog_lsn": lsn}


def comment(world: World, *published: PublishedTable, lsn: int) -> str:
    line = catalog_comment(put(world.archive, *published), format_lsn(lsn))
    return line.decode().rstrip("\n")


def resync(world: World, name: str = "orders") -> None:
    with world.service() as service:
        service.resync(name)


# What production did, without a record


def test_a_table_made_anew_blocks_until_a_snapshot_and_a_resync(shop: World, source: Writer) -> None:
    begin(shop, source)
    anew = table("orders", "id integer", "price numeric(10,2)", oid=20000)
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, anew, lsn=15))
    shop.sync()
    assert "dropped and made anew" in blocked(shop)
    assert "archive_changes --snapshot orders" in blocked(shop)
    assert shop.rows("SELECT id FROM orders ORDER BY 1") == [(1,), (2,)]
    # It stays so, from process to process, also when more arrives.
    source.changes(3, [(30, [insert("orders", id=10, price="10")])], **under(shop, anew, lsn=25))
    shop.sync()
    assert "dropped and made anew" in blocked(shop)
    # A resync from what the archive has leads to the same, and says so instead of doing it.
    with pytest.raises(ResyncError, match="first run 'archive_changes --snapshot orders'"):
        resync(shop)
    source.snapshot(
        2,
        "orders",
        35,
        [{"id": 9, "price": "9"}, {"id": 10, "price": "10"}],
        prev=3,
        catalog=put(shop.archive, anew),
    )
    resync(shop)
    assert shop.rows("SELECT id FROM orders ORDER BY 1") == [(9,), (10,)]
    assert (state(shop), problems(shop)) == ("active", "")
    source.changes(4, [(40, [insert("orders", id=11, price="11")])], **under(shop, anew, lsn=36))
    shop.sync()
    assert state(shop) == "active"


def test_a_table_that_heals_in_its_cycle_did_not_fail(shop: World, source: Writer) -> None:
    begin(shop, source)
    anew = table(*FIELDS, oid=20000)
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, anew, lsn=15))
    source.snapshot(2, "orders", 25, [{"id": 9, "price": "9"}], prev=2, catalog=put(shop.archive, anew))
    result = shop.sync()
    assert (state(shop), shop.rows("SELECT id FROM orders")) == ("active", [(9,)])
    assert (result.blocked, result.records_failed) == ((), 0)


@pytest.mark.parametrize(
    ("shown", "taken", "expected"),
    [(100, 100, True), (104, 100, True), (110, 100, False), (300, 100, True)],
    ids=["together", "a little ahead", "older", "ahead of its time"],
)
def test_a_snapshot_may_settle_what_files_ahead_of_their_time_have_shown(
    shown: int, taken: int, expected: bool
) -> None:
    def stamp(second: int) -> str:
        return f"{dt.datetime(2026, 2, 5, tzinfo=dt.UTC) + dt.timedelta(seconds=second):%Y%m%d_%H%M%S}"

    mark = Mark("suspect", "a partition was dropped", since=f"changes_{stamp(shown)}.json")
    name = TableName("public", "orders")
    snapshot = SnapshotFile(table=name, name=snapshot_name(stamp(taken), name), size_bytes=1)
    checkpoint = TableCheckpoint(table=name, position=START, marks=(mark,))
    now = dt.datetime(2026, 2, 5, 0, 2, tzinfo=dt.UTC)
    assert settles(snapshot, checkpoint, now=now) is expected


BEFORE = table(
    "orders",
    "id integer",
    "price numeric(10,2)",
    kind="partitioned table",
    partitions=(Partition("public", "orders_1", 201, 201), Partition("public", "orders_2", 202, 202)),
)
BLOCKING = [
    ("filter", table("orders", "id integer", "price numeric(10,2)", row_filter="(id > 5)"), "row filter"),
    ("columns", table("orders", "id integer", "price numeric(10,2)", column_list=("id",)), "without price"),
    ("volatile default", table("orders", "id integer", "price numeric(10,2)",
                               column("token", "uuid", number=3, filled=True)), "column token was added"),
    ("identity added", table("orders", "id integer", "price numeric(10,2)",
                             column("n", "bigint", number=3, identity="always", filled=True)), "column n"),
    ("column made anew", table("orders", "id integer", column("price", "numeric(10,2)", number=7)),
     "column price was dropped and added anew"),
]  # fmt: skip


@pytest.mark.parametrize(("now", "text"), [case[1:] for case in BLOCKING], ids=[case[0] for case in BLOCKING])
def test_a_change_that_gives_older_rows_other_values_blocks_until_a_resync(
    shop: World, source: Writer, now: PublishedTable, text: str
) -> None:
    shop.execute("ALTER TABLE orders ADD token uuid, ADD n bigint")
    begin(shop, source)
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, now, lsn=15))
    shop.sync()
    assert text in blocked(shop)
    source.snapshot(2, "orders", 25, [{"id": 9, "price": "9"}], prev=2, catalog=put(shop.archive, now))
    resync(shop)
    assert (state(shop), shop.rows("SELECT id FROM orders")) == ("active", [(9,)])


SUSPICIOUS = [
    ("truncated", (Partition("public", "orders_1", 201, 999), Partition("public", "orders_2", 202, 202)),
     "partition orders_1 was truncated"),
    ("dropped", (Partition("public", "orders_1", 201, 201),), "partition orders_2 was dropped or detached"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("leaves", "text"), [case[1:] for case in SUSPICIOUS], ids=[case[0] for case in SUSPICIOUS]
)
def test_rows_that_went_with_a_partition_make_the_table_suspect_while_it_goes_on(
    shop: World, source: Writer, leaves: tuple[Partition, ...], text: str
) -> None:
    begin(shop, source, BEFORE)
    now = table("orders", "id integer", "price numeric(10,2)", kind="partitioned table", partitions=leaves)
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, now, lsn=15))
    shop.sync()
    assert state(shop) == "suspect"
    assert text in problems(shop) and "archive_changes --snapshot orders" in problems(shop)
    assert shop.value("SELECT count(*) FROM orders") == 3
    with pytest.raises(ResyncError, match=r"partition .*first run 'archive_changes --snapshot orders'"):
        resync(shop)
    assert shop.value("SELECT count(*) FROM orders") == 3
    source.snapshot(2, "orders", 25, [{"id": 9, "price": "9"}], prev=2, catalog=put(shop.archive, now))
    resync(shop)
    assert (state(shop), shop.rows("SELECT id FROM orders")) == ("active", [(9,)])


def test_a_truncate_of_the_whole_table_settles_what_was_suspect(shop: World, source: Writer) -> None:
    """It gives each partition another storage, too; the catalog may show that before the record comes."""
    begin(shop, source, BEFORE)
    emptied = (Partition("public", "orders_1", 201, 301), Partition("public", "orders_2", 202, 302))
    now = table(*FIELDS, kind="partitioned table", partitions=emptied)
    source.changes(2, [(20, [truncate("orders"), insert("orders", id=3, price="3")])], **under(shop, BEFORE))
    source.changes(3, [(30, [insert("orders", id=4, price="4")])], **under(shop, now, lsn=25))
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    again = (Partition("public", "orders_1", 201, 401), Partition("public", "orders_2", 202, 402))
    later = table(*FIELDS, kind="partitioned table", partitions=again)
    source.changes(4, [(40, [insert("orders", id=5, price="5")])], **under(shop, later, lsn=35))
    shop.sync()
    assert state(shop) == "suspect"
    source.changes(5, [(50, [truncate("orders"), insert("orders", id=6, price="6")])],
                   **under(shop, later, lsn=35))  # fmt: skip
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    resync(shop)
    assert (state(shop), shop.rows("SELECT id FROM orders")) == ("active", [(6,)])


def with_leaves(first: Partition, second: Partition) -> PublishedTable:
    return table(*FIELDS, kind="partitioned table", partitions=(first, second))


def test_a_leaf_emptied_after_a_truncate_of_the_whole_table_is_not_missed(
    shop: World, source: Writer
) -> None:
    """The whole table is emptied by transaction 7 and filled again, one leaf by transaction 9: one look shows
    both. It may come with the records behind the TRUNCATE, or before it."""
    begin(shop, source, BEFORE)
    root = Partition("public", "orders_1", 201, 301, stored_by=7)
    now = with_leaves(root, Partition("public", "orders_2", 202, 402, stored_by=9))
    emptied = truncate("orders") | {"xid": 7}
    source.changes(2, [(20, [emptied, insert("orders", id=3, price="3")])], **under(shop, BEFORE))
    source.changes(3, [(30, [insert("orders", id=4, price="4")])], **under(shop, now, lsn=25))
    shop.sync()
    assert state(shop) == "suspect" and "partition orders_2 was truncated" in problems(shop)
    assert "orders_1" not in problems(shop)


def test_a_look_ahead_of_the_truncate_of_the_whole_table_does_not_hide_a_leafs(
    shop: World, source: Writer
) -> None:
    begin(shop, source, BEFORE)
    both = with_leaves(*(replace(leaf, storage=301, stored_by=7) for leaf in BEFORE.partitions))
    source.changes(2, [(20, [insert("orders", id=3, price="3")])], **under(shop, both, lsn=40))
    shop.sync()
    assert state(shop) == "suspect"
    source.changes(3, [(30, [truncate("orders") | {"xid": 7}])], **under(shop, both, lsn=40))
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    last = with_leaves(
        *(replace(leaf, storage=leaf.oid + 200, stored_by=leaf.oid) for leaf in BEFORE.partitions)
    )
    source.changes(4, [(50, [insert("orders", id=4, price="4")])], **under(shop, last, lsn=70))
    source.changes(5, [(60, [truncate("orders") | {"xid": 201}])], **under(shop, last, lsn=70))
    shop.sync()
    assert state(shop) == "suspect"


def test_a_table_written_anew_by_an_alter_using_is_suspect(shop: World, source: Writer) -> None:
    begin(shop, source, table(*FIELDS, storage=5))
    now = table(*FIELDS, storage=6, stored_by=9)
    source.changes(2, [(20, [truncate("orders") | {"xid": 9}])], **under(shop, now, lsn=15))
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    again = table(*FIELDS, storage=7, stored_by=11)
    source.changes(3, [(30, [insert("orders", id=9, price="9")])], **under(shop, again, lsn=25))
    shop.sync()
    assert state(shop) == "suspect" and "written all rows of the table anew" in problems(shop)


def test_a_partition_a_night_is_one_mark_that_counts(shop: World, source: Writer) -> None:
    nights = 80
    leaves = tuple(Partition("public", f"a{n}", 200 + n, 200 + n) for n in range(nights + 1))
    begin(shop, source, table(*FIELDS, kind="partitioned table", partitions=leaves))
    for night in range(1, nights + 1):
        left = table(*FIELDS, kind="partitioned table", partitions=leaves[night:])
        source.changes(night + 1, [(10 + 10 * night, [insert("orders", id=9 + night, price="9")])],
                       **under(shop, left, lsn=5 + 10 * night))  # fmt: skip
    shop.sync()
    with shop.service() as service:
        (marks,) = [info.marks for info in service.list_tables()]
    (mark,) = marks
    assert mark.text.startswith("partition a0 was dropped or detached")
    assert mark.text.endswith(
        f"; the same goes for a1, a2, a3, a4, a5 and {nights - 6} more ({nights} in all)"
    )
    assert mark.since == file_name(nights + 1)
    assert len(encode_marks(marks)) < 2_000


def test_a_truncate_that_may_be_older_than_what_made_a_table_suspect_settles_nothing(
    shop: World, source: Writer
) -> None:
    """The archiver was away: the table was emptied at 20 and filled again, a partition dropped at 35."""
    begin(shop, source, BEFORE)
    left = table(*FIELDS, kind="partitioned table", partitions=BEFORE.partitions[:1])
    source.changes(2, [(20, [truncate("orders"), insert("orders", id=3, price="3")])],
                   **under(shop, left, lsn=40))  # fmt: skip
    source.changes(3, [(30, [truncate("orders"), insert("orders", id=4, price="4")])],
                   **under(shop, left, lsn=41))  # fmt: skip
    shop.sync()
    assert state(shop) == "suspect" and "partition orders_2 was dropped" in problems(shop)
    with pytest.raises(ResyncError, match="first run 'archive_changes --snapshot orders'"):
        resync(shop)
    source.changes(4, [(50, [truncate("orders"), insert("orders", id=5, price="5")])],
                   **under(shop, left, lsn=45))  # fmt: skip
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    assert shop.rows("SELECT id FROM orders") == [(5,)]


def test_a_partition_attached_with_rows_blocks_and_an_empty_one_does_not(shop: World, source: Writer) -> None:
    begin(shop, source, BEFORE)
    empty = Partition("public", "orders_3", 203, 203)
    now = table("orders", "id integer", "price numeric(10,2)", kind="partitioned table",
                partitions=(*BEFORE.partitions, empty))  # fmt: skip
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, now, lsn=15))
    shop.sync()
    assert state(shop) == "active"
    full = Partition("public", "orders_4", 204, 204, filled=True)
    now = table("orders", "id integer", "price numeric(10,2)", kind="partitioned table",
                partitions=(*BEFORE.partitions, empty, full))  # fmt: skip
    source.changes(3, [(30, [insert("orders", id=10, price="9")])], **under(shop, now, lsn=25))
    shop.sync()
    assert "partition orders_4 was attached with rows" in blocked(shop)


@pytest.mark.parametrize(("there", "here"), [("text", "text"), ("smallint", "smallint")])
def test_a_type_changed_in_production_may_have_changed_older_values(
    shop: World, source: Writer, there: str, here: str
) -> None:
    begin(shop, source)
    shop.execute(f"ALTER TABLE orders ALTER price TYPE {here} USING price::{here}")
    now = table("orders", "id integer", f"price {there}")
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, now, lsn=15))
    shop.sync()
    assert state(shop) == "suspect"
    assert f"changed from numeric(10,2) to {there}" in problems(shop)


def test_a_renamed_column_waits_for_the_same_here_and_goes_on_by_itself(shop: World, source: Writer) -> None:
    begin(shop, source)
    now = table("orders", "id integer", "amount numeric(10,2)")
    source.changes(2, [(20, [insert("orders", id=9, amount="9")])], **under(shop, now, lsn=15))
    shop.sync()
    (remedy,) = re.findall(r"ALTER TABLE[^;]*", blocked(shop))
    shop.execute(remedy)
    shop.sync()
    assert state(shop) == "active"
    assert shop.rows("SELECT id, amount::text FROM orders ORDER BY 1") == [
        (1, "1.25"), (2, "1.25"), (9, "9.00")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("default", "expected"), [("'none'", "active"), ("'other'", "suspect"), ("NULL", "suspect")]
)
def test_a_column_with_a_constant_default_is_no_reason_to_stop_where_it_is_the_same_here(
    shop: World, source: Writer, default: str, expected: str
) -> None:
    begin(shop, source)
    note = column("note", "text", number=3, older=hashlib.sha256(b"{none}").hexdigest())
    now = table("orders", *ORDERS.columns, note)
    # Production may come first: the column is compared when it is here.
    source.changes(2, [(12, [insert("orders", id=3, price="3")])], **under(shop, now, lsn=15))
    shop.sync()
    assert state(shop) == "active"
    shop.execute(f"ALTER TABLE orders ADD note text DEFAULT {default}")
    source.changes(3, [(20, [insert("orders", id=9, price="9", note="x")])], **under(shop, now, lsn=15))
    shop.sync()
    assert state(shop) == expected
    assert ("another value than it did here" in problems(shop)) is (expected == "suspect")


def test_a_table_that_was_taken_off_the_publication_and_put_back_is_blocked(
    shop: World, source: Writer
) -> None:
    begin(shop, source, table("orders", *ORDERS.columns, membership=7))
    again = table("orders", *ORDERS.columns, membership=8)
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, again, lsn=15))
    shop.sync()
    assert "publishes the table again" in blocked(shop)


# Published or not


def test_a_table_that_production_does_not_publish_says_so_in_its_first_cycle(
    shop: World, source: Writer
) -> None:
    other = table("beside", "id integer")
    source.changes(1, [(10, [insert("beside", id=1)])], **under(shop, other))
    shop.sync()
    assert state(shop) in ("unpublished", "partial")
    assert "production does not publish it: nothing will arrive" in problems(shop)
    # Published now, its older rows are still missing.
    source.changes(2, [(20, [insert("orders", id=9, price="9")])], **under(shop, other, ORDERS, lsn=15))
    shop.sync()
    assert state(shop) == "partial"
    assert "does not publish" not in problems(shop)
    source.snapshot(2, "orders", 25, [{"id": 1, "price": "1"}, {"id": 9, "price": "9"}], prev=2,
                    catalog=put(shop.archive, other, ORDERS))  # fmt: skip
    resync(shop)
    assert state(shop) == "active"


def test_a_table_that_leaves_the_publication_goes_on_unpublished_and_comes_back_blocked(
    shop: World, source: Writer
) -> None:
    begin(shop, source)
    other = table("beside", "id integer")
    source.changes(2, [(20, [insert("beside", id=1)])], **under(shop, other, lsn=15))
    shop.sync()
    assert state(shop) == "unpublished"
    assert "does not publish it any more" in problems(shop)
    source.changes(3, [(30, [insert("orders", id=9, price="9")])], **under(shop, other, ORDERS, lsn=25))
    shop.sync()
    assert "publishes the table again" in blocked(shop)
    with pytest.raises(ResyncError, match="first run"):
        resync(shop)
    source.snapshot(2, "orders", 35, [{"id": 9, "price": "9"}], prev=3,
                    catalog=put(shop.archive, other, ORDERS))  # fmt: skip
    resync(shop)
    assert (state(shop), shop.rows("SELECT id FROM orders")) == ("active", [(9,)])


# Where the catalog holds


def test_a_catalog_announced_among_the_records_holds_from_its_transaction_on(
    shop: World, source: Writer
) -> None:
    begin(shop, source)
    anew = table("orders", "id integer", "price numeric(10,2)", oid=20000)
    line = comment(shop, anew, lsn=25)
    source.changes(
        2,
        [(20, [insert("orders", id=3, price="3")]),
         (30, [insert("orders", id=4, price="4"), line, insert("orders", id=5, price="5")])],
        **under(shop, ORDERS, lsn=15),
    )  # fmt: skip
    shop.sync()
    assert "dropped and made anew" in blocked(shop)
    assert shop.rows("SELECT id FROM orders ORDER BY 1") == [(1,), (2,), (3,)]
    assert shop.checkpoint("orders")[:2] == (file_name(2), 1)


def test_a_catalog_announced_behind_the_last_record_holds_from_there_on(shop: World, source: Writer) -> None:
    begin(shop, source, BEFORE)
    now = table("orders", "id integer", "price numeric(10,2)", kind="partitioned table")
    source.changes(
        2,
        [(20, [insert("orders", id=3, price="3"), comment(shop, now, lsn=25)])],
        **under(shop, BEFORE, lsn=15),
    )
    shop.sync()
    assert state(shop) == "suspect"
    assert shop.value("SELECT count(*) FROM orders") == 3
    assert shop.checkpoint("orders")[:3] == (file_name(2), 1, "active")
    # A file without records announces one, too.
    anew = table("orders", "id integer", "price numeric(10,2)", oid=20000)
    source.changes(3, [], **under(shop, anew, lsn=35))
    shop.sync()
    assert "dropped and made anew" in blocked(shop)


def test_a_catalog_that_is_older_than_the_snapshot_says_nothing_of_its_rows(
    shop: World, source: Writer
) -> None:
    """The file that was open while the snapshot was taken still names the catalog from before the change."""
    anew = table("orders", "id integer", "price numeric(10,2)", oid=20000)
    source.changes(1, [(10, [insert("orders", id=1, price="1")])], **under(shop, ORDERS, lsn=5))
    source.changes(
        2,
        [(20, [insert("orders", id=2, price="2")]), (30, [insert("orders", id=3, price="3")])],
        **under(shop, ORDERS, lsn=15),
    )
    source.snapshot(1, "orders", 25, [{"id": 2, "price": "2"}], prev=1, catalog=put(shop.archive, anew))
    source.changes(3, [(40, [insert("orders", id=4, price="4")])], **under(shop, anew, lsn=35))
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    assert shop.rows("SELECT id FROM orders ORDER BY 1") == [(2,), (3,), (4,)]
    # Read after the snapshot, the same catalog is a change back.
    source.changes(4, [(50, [insert("orders", id=5, price="5")])], **under(shop, ORDERS, lsn=45))
    shop.sync()
    assert "dropped and made anew" in blocked(shop)


def test_an_archive_without_catalogs_goes_on_as_before(shop: World, source: Writer) -> None:
    source.snapshot(1, "orders", 5, [{"id": 1, "price": "1"}], prev=None)
    source.changes(1, [(10, [insert("orders", id=2, price="2.345")])])
    shop.sync()
    assert (state(shop), problems(shop)) == ("active", "")
    assert shop.value("SELECT published FROM data_sync_checkpoints") is None
    # The first catalog is taken as what the rows agree with.
    source.changes(2, [(20, [insert("orders", id=3, price="3")])], **under(shop, ORDERS, lsn=15))
    shop.sync()
    assert state(shop) == "active"
    assert shop.value("SELECT published #>> '{table,oid}' FROM data_sync_checkpoints") == "16384"


@pytest.mark.parametrize("content", [None, b"broken"])
def test_a_catalog_that_is_missing_or_broken_blocks_until_it_is_there(
    shop: World, source: Writer, content: bytes | None
) -> None:
    begin(shop, source)
    more = table("orders", "id integer", "price numeric(12,2)")
    digest = put(shop.archive, more)
    path = shop.archive / "catalog" / f"{digest}.json"
    good = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    source.changes(2, [(20, [insert("orders", id=3, price="3")])], catalog=digest, catalog_lsn=15)
    shop.sync()
    _, _, shown, error = shop.checkpoint("orders")
    assert shown == "blocked" and error is not None and f"catalog/{digest}.json" in error
    path.write_bytes(good)
    shop.sync()
    assert "numeric(12,2)" not in (shop.checkpoint("orders")[3] or "")
    assert shop.value("SELECT count(*) FROM orders") == 3


def test_a_snapshot_whose_catalog_is_missing_is_passed_over(shop: World, source: Writer) -> None:
    source.snapshot(1, "orders", 5, [{"id": 1, "price": "1"}], prev=None, catalog=put(shop.archive, ORDERS))
    source.snapshot(2, "orders", 6, [{"id": 1, "price": "1"}], prev=None, catalog="0" * 32)
    source.changes(1, [(10, [insert("orders", id=2, price="2")])], **under(shop, ORDERS))
    shop.sync()
    logged = shop.value("SELECT archive_ref FROM data_sync_logs WHERE action = 'snapshot'")
    assert logged == "snapshot_20260205_000001/public.orders.json.gz"
    assert state(shop) == "active"


# What would not fit here

# (the type there, the type here, a value there as text)
CHANGED_SILENTLY = [
    ("numeric(12,4)", "numeric(10,2)", "1.2345"),
    ("numeric", "numeric(10,2)", "1.2345"),
    ("double precision", "real", "0.1234567890123456"),
    ("double precision", "numeric(10,2)", "0.125"),
    ("bigint", "double precision", "9007199254740993"),
    ("integer", "real", "16777217"),
    ("numeric", "double precision", "0.12345678901234567890"),
    ("timestamp without time zone", "timestamp(0) without time zone", "2026-01-01 10:00:00.654321"),
    ("timestamp with time zone", "timestamp without time zone", "2026-01-01 10:00:00+02"),
    ("timestamp without time zone", "date", "2026-01-01 10:00:00"),
    ("time(6) without time zone", "time(3) without time zone", "10:00:00.654321"),
    ("time with time zone", "time without time zone", "10:00:00+02"),
    ("interval", "interval(0)", "00:00:01.654321"),
    ("interval", "interval day to minute", "00:00:01"),
    ("numeric(8,3)[]", "numeric(8,2)[]", "{1.234}"),
    ("character varying(40)", "character(40)", "abc"),
    ("text", '"char"', "abc"),
    ("text", "integer", "007"),
    ("text", "date", "Jan 1 2026"),
    ("json", "jsonb", '{"a": 1, "a": 2}'),
    ("smallint", "boolean", "1"),
    ("text", "bytea", "abc"),
    ("text", "uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
    ("text", "inet", "10.0.0.1/32"),
    ("text", "macaddr", "08-00-2B-01-02-03"),
    ("text", "bit varying", "x1F"),
    ("text", "int4range", "[1,2]"),
    ("text", "tsvector", "b a"),
    ("text", "interval", "24 hours"),
    ("text", "boolean", "yes"),
    ("text", "public.pair", "( a ,b)"),
    ("public.mood", "boolean", "yes"),
    ("public.mood", "integer", "007"),
    ("inet", "cidr", "10.0.0.1"),
    ("text", "character varying(2)", "ab   "),
    ("character varying(9)", "character varying(2)", "ab   "),
]
HELD_OR_REFUSED = [
    ("numeric(10,2)", "numeric", "1.25"),
    ("numeric(10,2)", "integer", "1.25"),
    ("integer", "bigint", "7"),
    ("bigint", "integer", "3000000000"),
    ("integer", "double precision", "2147483647"),
    ("real", "numeric", "0.1"),
    ("character varying(20)", "text", "abc"),
    ("character varying(2)", "character varying(9)", "ab"),
    ("integer", "character varying(2)", "123"),
    ("text", "json", '{"a": 1,  "a": 2}'),
    ("int4range", "int8range", "[1,3)"),
    ("timestamp(0) without time zone", "timestamp without time zone", "2026-01-01 10:00:00"),
    ("interval day to minute", "interval", "3 days 00:01:00"),
    ("jsonb", "json", '{"a": 1}'),
    ("uuid", "text", "00000000-0000-0000-0000-000000000001"),
    ("integer[]", "text", "{1,2}"),
    ("public.mood", "text", "sad"),
]


def test_types_are_told_apart_by_whether_postgresql_changes_a_value_silently(world: World) -> None:
    world.execute("CREATE TYPE pair AS (a text, b text)", "CREATE TYPE mood AS ENUM ('sad', 'yes', '007')")
    with world.connect() as connection:
        for there, here, value in CHANGED_SILENTLY:
            assert copied(connection, value, here) not in (None, value), (there, here)
            assert not is_held(there, here), (there, here)
        for there, here, value in HELD_OR_REFUSED:
            assert copied(connection, value, here) in (None, value), (there, here)
            assert is_held(there, here), (there, here)


def copied(connection: psycopg.Connection[Any], value: str, kind: str) -> str | None:
    """Return what becomes of *value* in a column of that *kind*; None when it is refused."""
    connection.execute(f"DROP TABLE IF EXISTS pg_temp.t; CREATE TEMP TABLE t (v {kind})")
    try:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((value,))
    except psycopg.Error:
        return None
    row = connection.execute("SELECT format('%s', v) FROM t").fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("there", "here"),
    [
        pair[:2]
        for pair in CHANGED_SILENTLY
        if pair[1] in ("numeric(10,2)", "date", "integer", "jsonb", "uuid", "character varying(2)")
        and pair[0] != "public.mood"
    ],
)
def test_the_remedy_for_a_type_heals_to_the_letter(
    shop: World, source: Writer, there: str, here: str
) -> None:
    shop.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {here})")
    shop.whitelist("t")
    same, wider = (table("t", "id integer", f"v {kind}") for kind in (here, there))
    begin(shop, source, same, v=None)
    source.changes(2, [(20, [insert("t", id=9, v=None)])], **under(shop, wider, lsn=15))
    shop.sync()
    assert there in blocked(shop, "t") and "column v" in blocked(shop, "t")
    (remedy,) = re.findall(r"\((ALTER TABLE.*)\)$", blocked(shop, "t"))
    shop.execute(remedy)
    shop.sync()
    assert shop.checkpoint("t")[2] == "active"
    assert shop.value("SELECT count(*) FROM t") == 3
    # Where ALTER … TYPE may have changed older values in production, a resync must follow.
    assert state(shop, "t") == ("active" if is_widened(here, there) else "suspect")


def test_a_column_narrowed_here_stays_suspect_after_it_is_mended(shop: World, source: Writer) -> None:
    begin(shop, source)
    shop.execute("ALTER TABLE orders ALTER price TYPE numeric(10,1)")
    source.changes(2, [(20, [insert("orders", id=3, price="3.21")])], **under(shop, ORDERS, lsn=15))
    shop.sync()
    assert "numeric(10,1)" in blocked(shop)
    shop.execute("ALTER TABLE orders ALTER price TYPE numeric(10,2)")
    shop.sync()
    assert state(shop) == "suspect"
    assert "'python manage.py resync orders'" in problems(shop)
    resync(shop)
    assert state(shop) == "active"
    assert shop.value("SELECT sum(price)::text FROM orders") == "5.71"


def test_a_narrower_column_that_the_first_catalog_finds_was_narrow_before(
    shop: World, source: Writer
) -> None:
    source.snapshot(1, "orders", 5, [{"id": 1, "price": "1.239"}], prev=None)
    source.changes(1, [(10, [insert("orders", id=2, price="2")])])
    shop.sync()
    wide = table("orders", "id integer", "price numeric(10,3)")
    source.changes(2, [(20, [insert("orders", id=3, price="3")])], **under(shop, wide, lsn=15))
    shop.sync()
    assert "numeric(10,3)" in blocked(shop)
    shop.execute("ALTER TABLE orders ALTER price TYPE numeric(10,3)")
    shop.sync()
    assert state(shop) == "suspect"


def test_a_column_generated_there_and_plain_here_is_not_filled_with_nothing(
    shop: World, source: Writer
) -> None:
    there = table("orders", "id integer", column("price", "numeric(10,2)", number=2, generated="stored"))
    source.changes(1, [(10, [insert("orders", id=1)])], **under(shop, there))
    shop.sync()
    assert "column price is generated in production" in blocked(shop)
    # Where the publication sends generated columns, the list of columns says so.
    sent = table("orders", "id integer", column("price", "numeric(10,2)", number=2, generated="stored"),
                 column_list=("id", "price"))  # fmt: skip
    source.changes(1, [(10, [insert("orders", id=1, price="2.50")])], **under(shop, sent))
    shop.sync()
    assert shop.checkpoint("orders")[2] == "active"


def test_a_column_generated_here_and_plain_there_blocks_before_any_row(shop: World, source: Writer) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id * 2) STORED)")
    shop.whitelist("t")
    there = table("t", "id integer", "v integer")
    source.snapshot(1, "t", 5, [{"id": 1, "v": 7}], prev=None, catalog=put(shop.archive, there))
    source.changes(1, [(10, [insert("t", id=2, v=8)])], **under(shop, there))
    shop.sync()
    assert "column v is generated here" in blocked(shop, "t")
    (remedy,) = re.findall(r"ALTER TABLE[^;]*", blocked(shop, "t"))
    shop.execute(remedy)
    shop.sync()
    resync(shop, "t")
    assert shop.rows("SELECT id, v FROM t ORDER BY 1") == [(1, 7), (2, 8)]
    assert state(shop, "t") == "active"


KEYS = [
    ("narrower here", ("id", "price"), ("id", "price"), "default", "would take the other's place"),
    ("none there", (), ("id", "price"), "full", "would take the other's place"),
    ("identified by another index", ("id",), ("price",), "index", "CREATE UNIQUE INDEX ON public.orders"),
]


@pytest.mark.parametrize(
    ("key", "locating", "identity", "text"), [k[1:] for k in KEYS], ids=[k[0] for k in KEYS]
)
def test_a_key_that_would_merge_rows_blocks(
    shop: World, source: Writer, key: tuple[str, ...], locating: tuple[str, ...], identity: str, text: str
) -> None:
    there = table("orders", "id integer", "price numeric(10,2)", key=key, identity=identity,
                  identity_columns=locating)  # fmt: skip
    source.changes(1, [(10, [insert("orders", id=1, price="1"), insert("orders", id=1, price="2")])],
                   **under(shop, there))  # fmt: skip
    shop.sync()
    assert text in blocked(shop)
    assert shop.value("SELECT count(*) FROM orders") == 0


BLIND = "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
CITEXT = "CREATE EXTENSION citext"
# (what is made before, the key here, two of production's keys as text); the first three need the ICU library
# and contrib, which the embedded servers lack.
OF_THE_SYSTEM = [
    ((CITEXT,), "citext", ("Ann", "ann")),
    ((CITEXT, "CREATE DOMAIN name AS citext"), "name", ("Ann", "ann")),
    ((BLIND,), "text COLLATE blind", ("Ann", "ann")),
]
MERGING = [
    *(OF_THE_SYSTEM if system_binaries() else ()),
    ((), "inet", ("10.0.0.1", "10.0.0.1/32")),
    ((), "numeric", ("1.0", "1.00")),
    ((), "varchar(2)", ("a", "a   ")),
]


@pytest.fixture
def system_world(make_world: Callable[..., World], postgres_server: Callable[[str], PostgresServer]) -> World:
    """A world on the system's own server, if there is one."""
    return make_world(postgres_server(VERSIONS[-1]))


@pytest.mark.parametrize(("before", "kind", "keys"), MERGING, ids=[case[1] for case in MERGING])
def test_a_key_whose_texts_are_equal_here_alone_blocks_before_rows_are_merged(
    system_world: World, before: tuple[str, ...], kind: str, keys: tuple[str, str]
) -> None:
    world, source = system_world, Writer(system_world.archive)
    world.execute(*before, f"CREATE TABLE t (code {kind} PRIMARY KEY, v int)")
    world.whitelist("t")
    there = table("t", "code text", "v integer")
    rows = [insert("t", code=key, v=v) for v, key in enumerate(keys)]
    source.changes(1, [(10, rows)], **under(world, there))
    world.sync()
    (remedy,) = re.findall(r"\((ALTER TABLE.*)\)$", blocked(world, "t"))
    assert world.value("SELECT count(*) FROM t") == 0
    world.execute(remedy)
    world.sync()
    assert world.rows("SELECT code FROM t ORDER BY v") == [(key,) for key in keys]
    assert world.checkpoint("t")[2] == "active"


@pytest.mark.skipif(not system_binaries(), reason="no PostgreSQL with ICU: apt-get install postgresql-15")
def test_a_key_of_the_same_collation_on_both_sides_goes_on(system_world: World) -> None:
    world, source = system_world, Writer(system_world.archive)
    world.execute(BLIND, "CREATE TABLE t (code text COLLATE blind PRIMARY KEY)")
    world.whitelist("t")
    there = table("t", column("code", "text", number=1, collation="i:und-u-ks-level2"))
    source.changes(1, [(10, [insert("t", code="Ann")])], **under(world, there))
    world.sync()
    assert world.rows("SELECT code FROM t") == [("Ann",)]


@pytest.mark.skipif(not system_binaries(), reason="no PostgreSQL with ICU: apt-get install postgresql-15")
def test_a_unique_index_that_is_blind_for_case_does_not_merge_rows(system_world: World) -> None:
    world, source = system_world, Writer(system_world.archive)
    world.execute(BLIND, "CREATE TABLE t (code text PRIMARY KEY, v int)")
    world.execute("CREATE UNIQUE INDEX ON t (code COLLATE blind)")
    world.whitelist("t")
    there = table("t", "code text", "v integer")
    source.changes(1, [(10, [insert("t", code="Ann", v=1)])], **under(world, there))
    source.changes(2, [(20, [insert("t", code="ann", v=2)])], **under(world, there))
    world.sync()
    assert world.rows("SELECT code, v FROM t") == [("Ann", 1)]
    assert world.checkpoint("t")[2] == "blocked"


@pytest.mark.parametrize("declared", ["numeric(10,2)", "price"])
def test_a_domain_in_production_does_not_hide_that_values_would_be_rounded(
    shop: World, source: Writer, declared: str
) -> None:
    shop.execute("CREATE DOMAIN price AS numeric(10,2)", f"CREATE TABLE t (id int PRIMARY KEY, v {declared})")
    shop.whitelist("t")
    there = table("t", "id integer", column("v", "public.price", number=2, base="numeric(12,4)"))
    source.changes(1, [(10, [insert("t", id=1, v="1.2345")])], **under(shop, there))
    shop.sync()
    (remedy,) = re.findall(r"\((ALTER TABLE.*)\)$", blocked(shop, "t"))
    shop.execute(remedy)
    shop.sync()
    assert shop.value("SELECT v::text FROM t") == "1.2345"


def test_a_key_whose_old_values_are_in_no_record_blocks(shop: World, source: Writer) -> None:
    shop.execute("CREATE TABLE t (id int, mail text, PRIMARY KEY (id, mail))")
    shop.whitelist("t")
    there = table("t", "id integer", "mail text")
    source.changes(
        1, [(10, [insert("t", id=1, mail="a"), update("t", id=1, mail="b")])], **under(shop, there)
    )
    shop.sync()
    assert "a row whose key changes would not be found" in blocked(shop, "t")
    shop.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)")
    shop.sync()
    assert shop.rows("SELECT id, mail FROM t") == [(1, "b")]


def test_a_column_that_is_missing_here_is_named_with_the_statement_that_adds_it(
    shop: World, source: Writer
) -> None:
    begin(shop, source)
    now = table("orders", "id integer", "price numeric(10,2)", "Note character varying(9)")
    source.changes(2, [(20, [insert("orders", id=3, price="3", Note="x")])], **under(shop, now, lsn=15))
    shop.sync()
    assert 'ALTER TABLE public.orders ADD COLUMN "Note" character varying(9)' in blocked(shop)


def test_tables_beside_a_blocked_one_go_on_under_the_new_catalog(shop: World, source: Writer) -> None:
    shop.execute("CREATE TABLE beside (id int PRIMARY KEY)")
    shop.whitelist("beside")
    beside = table("beside", "id integer", oid=30000)
    source.changes(1, [(10, [insert("orders", id=1, price="1"), insert("beside", id=1)])],
                   **under(shop, ORDERS, beside))  # fmt: skip
    shop.sync()
    anew = table("orders", "id integer", "price numeric(10,2)", oid=20000)
    source.changes(2, [(20, [delete("orders", id=1), insert("beside", id=2)])],
                   **under(shop, anew, beside, lsn=15))  # fmt: skip
    shop.sync()
    assert "made anew" in blocked(shop)
    assert shop.value("SELECT count(*) FROM beside") == 2
    assert shop.checkpoint("beside")[2] == "active"


def test_a_blocked_table_of_which_no_record_comes_goes_on_once_it_is_altered(
    shop: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was looked at a moment ago is not looked at again before a file.
    for name in ("REST", "LOOK_AGAIN_S"):
        monkeypatch.setattr(f"syncdata.apply.postgres.definitions.{name}", 1_000_000)
    shop.execute(
        "CREATE TABLE beside (id int PRIMARY KEY)",
        "ALTER TABLE orders ADD n int GENERATED ALWAYS AS (id) STORED",
    )
    shop.whitelist("beside")
    beside = table("beside", "id integer", oid=30000)
    now = table(*FIELDS, "n integer")
    source.changes(1, [(10, [insert("orders", id=1, price="1"), insert("beside", id=1)])],
                   **under(shop, ORDERS, beside))  # fmt: skip
    stop = threading.Event()
    with shop.service() as service, service._worker.running(600) as run:
        run.cycle(stop)
        source.changes(2, [(20, [insert("beside", id=2)])], **under(shop, now, beside, lsn=15))
        run.cycle(stop)
        assert blocked(shop)
        shop.execute("ALTER TABLE orders ALTER n DROP EXPRESSION")
        run.cycle(stop)
    assert shop.checkpoint("orders")[2] == "active"


def test_names_that_sql_keeps_for_itself_are_quoted_in_remedies(world: World) -> None:
    kept = world.rows("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    assert {word for (word,) in kept if not quoted(word).startswith('"')} == set()
    assert (quoted("price"), quoted("Price"), quoted('a"b')) == ("price", '"Price"', '"a""b"')
