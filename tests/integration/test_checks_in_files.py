"""Checks in the files of an archive, and the rows of a real database that a daemon brings to them."""

from __future__ import annotations

from typing import Any

import pytest

from syncdata.apply.postgres.target import Target
from syncdata.apply.verifying import Budget
from syncdata.changes.position import format_lsn
from syncdata.changes.verification import Check, check_comment, hash_of_rows
from syncdata.errors import SyncError
from tests.catalogs import put, table
from tests.framed import Writer
from tests.verified import marks
from tests.world import World, insert, update

Transactions = list[tuple[int, list[Any]]]

ORDERS = table("orders", "id integer", "price numeric(10,2)")


@pytest.fixture
def source(world: World) -> Writer:
    """A source with a table that begins with a snapshot of no rows."""
    world.execute("CREATE TABLE orders (id int PRIMARY KEY, price numeric(10,2))")
    world.whitelist("orders")
    source = Writer(world.archive)
    source.snapshot(1, "orders", 5, [], prev=None, catalog=put(world.archive, ORDERS))
    return source


def check(world: World, chunk: int, lsn: int, rows: dict[int, str], **options: Any) -> str:
    """Return the line of a check of all *rows*, prices by their ids."""
    values = ", ".join(f"({number}, {price}::numeric(10,2))" for number, price in rows.items())
    digest = world.value(f"SELECT {hash_of_rows(['id', 'price'])} FROM (VALUES {values}) AS v (id, price)")
    made = Check(
        schema="public",
        table="orders",
        columns=("id", "price"),
        key=("id",),
        rows=len(rows),
        hash=digest,
        lsn=format_lsn(lsn),
        round=1,
        chunk=chunk,
        seen=len(rows),
        **options,
    )
    return check_comment(made).decode().rstrip()


def under(world: World) -> dict[str, Any]:
    return {"catalog": put(world.archive, ORDERS), "catalog_lsn": 5}


def found(world: World) -> list[tuple[int, bool | None]]:
    return world.rows("SELECT chunk, is_equal FROM data_sync_verifications ORDER BY id")


def test_rows_are_equal_to_each_check_at_its_place_however_files_go_together(
    world: World, source: Writer
) -> None:
    rows: dict[int, str] = {}
    chunk = 0

    def checks(lsn: int, is_due: bool) -> Transactions:
        nonlocal chunk
        if not is_due:
            return []
        chunk += 1
        return [(lsn, [check(world, chunk, lsn, rows)])]

    for number in range(1, 41):
        lsn = number * 100
        transactions: Transactions = checks(lsn, number % 10 == 9)
        rows[number] = "1"
        transactions.append((lsn + 10, [insert("orders", id=number, price="1")]))
        transactions += checks(lsn + 20, number % 8 == 3)
        rows[number] = "2"
        transactions.append((lsn + 30, [update("orders", id=number, price="2")]))
        transactions += checks(lsn + 40, number % 7 == 0)
        source.changes(number, transactions, **under(world))
    assert world.sync().errors == ()
    assert world.value("SELECT count(*) FROM orders WHERE price = 2") == 40
    assert found(world) == [(number, True) for number in range(1, chunk + 1)] and chunk == 14
    assert marks(world, "orders") == []


def test_a_row_that_was_changed_here_differs_from_the_next_check(world: World, source: Writer) -> None:
    begun: Transactions = [(10, [insert("orders", id=1, price="1")]), (20, [check(world, 1, 20, {1: "1"})])]
    source.changes(1, begun, **under(world))
    world.sync()
    world.execute("UPDATE orders SET price = 1.01")
    source.changes(2, [(30, [check(world, 2, 30, {1: "1"})])], **under(world))
    assert world.sync().errors == ()
    assert found(world) == [(1, True), (2, False)]
    assert marks(world, "orders") == ["differs"]


def test_a_check_at_which_the_daemon_dies_is_passed_over_and_nothing_else(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions: Transactions = [
        (10, [insert("orders", id=1, price="1")]),
        (20, [check(world, 1, 20, {1: "1"})]),
        (30, [insert("orders", id=2, price="2")]),
        (40, [check(world, 2, 40, {1: "1", 2: "2"})]),
    ]
    source.changes(1, transactions, **under(world))

    def die(*args: object, **options: object) -> None:
        raise SyncError("the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Target, "verify", die)
        with pytest.raises(SyncError, match="the power is gone"):
            world.sync()
    assert world.rows("SELECT id FROM orders") == [(1,)]
    assert world.sync().errors == ()
    assert world.rows("SELECT id FROM orders ORDER BY id") == [(1,), (2,)]
    assert found(world) == [(2, True)]


def test_without_verify_checks_are_passed_over(world: World, source: Writer) -> None:
    transactions: Transactions = [
        (10, [insert("orders", id=1, price="1")]),
        (20, [check(world, 1, 20, {1: "1"})]),
    ]
    source.changes(1, transactions, **under(world))
    world.options["verify"] = False
    world.sync()
    assert found(world) == [] and world.value("SELECT count(*) FROM orders") == 1


def test_a_daemon_that_has_spent_its_time_passes_checks_over(
    world: World, source: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those whose turn it is: of this round of the table, the first."""
    monkeypatch.setattr(Budget, "AT_FIRST_S", -60.0)
    transactions: Transactions = [
        (10, [insert("orders", id=1, price="1")]),
        (20, [check(world, 1, 20, {1: "1"}), check(world, 2, 20, {1: "1"})]),
    ]
    source.changes(1, transactions, **under(world))
    world.sync()
    assert found(world) == [(1, True)] and world.value("SELECT count(*) FROM orders") == 1
