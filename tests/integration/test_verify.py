"""Rows here are held to checks of production: what differs is found, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from syncdata.apply.postgres import verify
from syncdata.apply.postgres.target import Target
from syncdata.apply.sink import Verdict
from syncdata.apply.state.checkpoints import read_checkpoint
from syncdata.apply.state.verifications import forget
from syncdata.changes.catalog import Catalog
from syncdata.changes.verification import Check
from tests.production import Production
from tests.verified import catalog_of, check_of, follow, hold, marks, outcome, summary
from tests.world import World

ITEMS = (
    "CREATE TABLE items (id int PRIMARY KEY, a text, b text, n numeric, f double precision)",
    "INSERT INTO items SELECT i, 'a' || i, CASE WHEN i % 10 = 0 THEN NULL ELSE '' END,"
    " (i || '.50')::numeric, i FROM generate_series(1, 100) i",
)
COLUMNS = ("id", "a", "b", "n", "f")


@pytest.fixture
def items(production: Production, world: World) -> Catalog:
    production.execute(*ITEMS)
    world.execute(ITEMS[0])
    follow(production, world, "items")
    return catalog_of(production)


def bounded(production: Production, after: int | None, upto: int | None, **options: Any) -> Check:
    return check_of(
        production,
        "items",
        *COLUMNS,
        key=("id",),
        after=None if after is None else (str(after),),
        upto=None if upto is None else (str(upto),),
        **options,
    )


DIFFERENCES = {
    "a changed byte": "UPDATE items SET a = 'a5O' WHERE id = 50",
    "a missing row": "DELETE FROM items WHERE id = 50",
    "the first row is missing": "DELETE FROM items WHERE id = 1",
    "the last row is missing": "DELETE FROM items WHERE id = 100",
    "a row before the first": "INSERT INTO items VALUES (-5, 'x')",
    "a row behind the last": "INSERT INTO items VALUES (1000, 'x')",
    "NULL for an empty text": "UPDATE items SET b = NULL WHERE id = 51",
    "an empty text for NULL": "UPDATE items SET b = '' WHERE id = 50",
    "two columns swapped": "UPDATE items SET a = b, b = a WHERE id = 51",
    "values of two rows swapped": "UPDATE items SET a = CASE id WHEN 50 THEN 'a51' ELSE 'a50' END"
    " WHERE id IN (50, 51)",
    "a space at the end": "UPDATE items SET a = a || ' ' WHERE id = 50",
    "a zero less behind the point": "UPDATE items SET n = trim_scale(n) WHERE id = 50",
    "a negative zero": "UPDATE items SET f = '-0' WHERE id = 50",
    "a row with the key of another": "UPDATE items SET id = 101 WHERE id = 100",
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_whatever_differs_is_found(production: Production, world: World, items: Catalog, kind: str) -> None:
    production.execute("UPDATE items SET f = 0 WHERE id = 50")
    world.execute("UPDATE items SET f = 0 WHERE id = 50")
    checks = [
        bounded(production, None, 30, chunk=1, seen=30),
        bounded(production, 30, 60, chunk=2, seen=60),
        bounded(production, 60, None, chunk=3, seen=100, is_last=True),
    ]
    assert [verdict.is_equal for verdict in hold(world, items, *checks)] == [True, True, True]
    assert marks(world, "items") == []
    world.execute(DIFFERENCES[kind])
    verdicts = hold(world, items, *checks)
    assert sorted(str(verdict.is_equal) for verdict in verdicts) == ["False", "True", "True"]
    assert marks(world, "items") == ["differs"]


def test_the_mark_says_where_and_how_many_and_no_value(
    production: Production, world: World, items: Catalog
) -> None:
    world.execute("DELETE FROM items WHERE id = 50", "UPDATE items SET a = 'secret' WHERE id = 70")
    checks = [
        bounded(production, 30, 60, chunk=2, seen=60),
        bounded(production, 60, 99, chunk=3, seen=99),
    ]
    hold(world, items, checks[0])
    (mark,) = world.value("SELECT marks FROM data_sync_checkpoints")
    assert mark["text"] == "rows are not production's: 30 at production, 29 here, in id above 30, up to 60"
    assert "resync items" in mark["hint"]
    hold(world, items, checks[1])
    (mark,) = world.value("SELECT marks FROM data_sync_checkpoints")
    assert mark["text"] == (
        "rows are not production's: of 39 some have other values, in id above 60, up to 99;"
        " and so in 1 more place"
    )
    assert "secret" not in str(
        world.rows("SELECT v.*, marks FROM data_sync_verifications v, data_sync_checkpoints")
    )
    assert summary(world, "items").differing == ("id above 30, up to 60", "id above 60, up to 99")
    with world.service() as service:
        (table,) = service.list_tables()
    assert table.state == "differs"


def whole_round(production: Production, number: int, *, without: int | None = None) -> list[Check]:
    checks = [
        bounded(production, None, 30, round=number, chunk=1, seen=30),
        bounded(production, 30, 60, round=number, chunk=2, seen=60),
        bounded(production, 60, None, round=number, chunk=3, seen=100, is_last=True),
    ]
    return [check for check in checks if check.chunk != without]


def test_a_whole_round_of_equal_rows_takes_the_mark_away(
    production: Production, world: World, items: Catalog
) -> None:
    world.execute("UPDATE items SET a = 'x' WHERE id = 50")
    hold(world, items, *whole_round(production, 1))
    assert marks(world, "items") == ["differs"]
    assert summary(world, "items").verified_at is None
    world.execute("UPDATE items SET a = 'a50' WHERE id = 50")
    first, second, third = whole_round(production, 2)
    hold(world, items, first, second)
    assert marks(world, "items") == ["differs"]
    hold(world, items, third)
    assert marks(world, "items") == []
    found = summary(world, "items")
    assert found.verified_at is not None
    assert (found.rows, found.share, found.differing) == (100, 1.0, ())


@pytest.mark.parametrize("missing", [1, 2])
def test_a_round_with_a_gap_leaves_the_mark(
    production: Production, world: World, items: Catalog, missing: int
) -> None:
    world.execute("UPDATE items SET a = 'x' WHERE id = 50")
    hold(world, items, *whole_round(production, 1))
    world.execute("UPDATE items SET a = 'a50' WHERE id = 50")
    hold(world, items, *whole_round(production, 2, without=missing))
    assert marks(world, "items") == ["differs"]
    found = summary(world, "items")
    assert found.share == 0.7
    hold(world, items, *whole_round(production, 3))
    assert marks(world, "items") == []


def test_a_round_that_begins_once_more_under_its_number_is_no_whole_round(
    production: Production, world: World, items: Catalog
) -> None:
    """The archiver has lost its spool, and its numbers with it."""
    hold(world, items, *whole_round(production, 1))
    world.execute("UPDATE items SET a = 'x' WHERE id = 50")
    _, second, third = whole_round(production, 1)
    hold(world, items, second)
    assert marks(world, "items") == ["differs"]
    world.execute("UPDATE items SET a = 'a50' WHERE id = 50")
    hold(world, items, second, third)
    assert marks(world, "items") == ["differs"], "the first chunk of this round was never seen"


def test_chunks_that_are_read_again_under_their_numbers_count_once(
    production: Production, world: World, items: Catalog
) -> None:
    first, second, third = whole_round(production, 1)
    hold(world, items, first, second, first, second, third)
    found = summary(world, "items")
    assert (found.rows, found.share) == (100, 1.0)
    assert found.verified_at is not None


def test_a_gap_behind_a_chunk_that_was_cut_otherwise_is_one(
    production: Production, world: World, items: Catalog
) -> None:
    """The archiver was started again behind chunk 1. It cuts chunk 2 otherwise, up to 80, but has no proof;
    meanwhile production has lost 20 rows, so the number of rows shows nothing."""
    world.execute("UPDATE items SET a = 'x' WHERE id = 70")
    first, second, third = whole_round(production, 1)
    hold(world, items, first, second, third)
    hold(world, items, *(_of_round(check, 2) for check in (first, second)))
    hold(world, items, bounded(production, 80, None, round=2, chunk=3, seen=80, is_last=True))
    assert marks(world, "items") == ["differs"]
    assert world.rows("SELECT chunk FROM data_sync_verifications ORDER BY 1") == [(1,), (3,)]


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_round_ends_with_a_check_that_is_passed_over(
    production: Production, world: World, items: Catalog, is_taken: bool
) -> None:
    hold(world, items, *whole_round(production, 1))
    world.execute("UPDATE data_sync_verifications SET verified_at = verified_at - interval '1 day'")
    before = summary(world, "items")
    first, second, third = whole_round(production, 2)
    if is_taken:
        hold(world, items, first, second)
    with world.connect() as connection:
        checkpoint = read_checkpoint(connection, third.name)
        assert checkpoint is not None
        Target(connection, metric_freq_hours=24).pass_over([third], position=checkpoint.position)
    found = summary(world, "items")
    assert (found.rows, found.not_comparable) == (100, "")
    if is_taken:
        assert found.share == 0.6 and found.verified_at != before.verified_at
    else:  # what is known of the round before is all that is known
        assert found.share == 1.0 and found.verified_at == before.verified_at


def test_of_checks_that_are_taken_together_one_in_trouble_holds_up_no_other(
    production: Production, world: World, items: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LOCK_LIMIT_S", 0.02)
    other = "CREATE TABLE others (id int PRIMARY KEY)"
    production.execute(other)
    world.execute(other)
    follow(production, world, "others")
    catalog = catalog_of(production)
    locked = check_of(production, "others", "id")
    around = [bounded(production, None, 50, seen=50), bounded(production, 50, None, chunk=2, is_last=True)]
    with world.connect() as connection, world.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE others IN ACCESS EXCLUSIVE MODE")
        checkpoint = read_checkpoint(connection, locked.name)
        assert checkpoint is not None
        verdicts = Target(connection, metric_freq_hours=24).verify(
            [around[0], locked, around[1]], catalog, position=checkpoint.position
        )
    assert [verdict.is_equal for verdict in verdicts] == [True, None, True]
    assert summary(world, "items").share == 1.0


TEXTS = "CREATE TABLE texts (k text COLLATE {} PRIMARY KEY, v int)"


def texts(production: Production, world: World, collation: str) -> tuple[Catalog, Check]:
    production.execute(
        TEXTS.format('"C"'),
        "INSERT INTO texts SELECT chr(65 + i % 58) || i, i FROM generate_series(1, 100) i",
    )
    world.execute(TEXTS.format(collation))
    follow(production, world, "texts")
    return catalog_of(production), check_of(production, "texts", "k", "v", key=("k",), upto=("Z",))


@pytest.mark.parametrize("collation", ['"C"', '"default"', '"C.utf8"'])
def test_texts_in_the_order_of_their_bytes_are_found_by_their_index(
    production: Production, world: World, monkeypatch: pytest.MonkeyPatch, collation: str
) -> None:
    catalog, check = texts(production, world, collation)
    assert outcome(world, catalog, check) is True
    statement = verify._statement
    plans: list[str] = []

    def explained(connection: Any, *arguments: Any) -> Any:
        text, values = statement(connection, *arguments)
        plans.append(str(connection.execute("EXPLAIN " + text.as_string(connection), values).fetchall()))
        return text, values

    monkeypatch.setattr(verify, "_statement", explained)
    is_by_itself = collation == '"C"' or (
        collation == '"default"'
        and world.value("SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C"
    )
    assert outcome(world, catalog, check) is True
    assert ("Index Cond" in plans[0]) is is_by_itself


def test_a_large_table_in_another_order_is_not_read_as_a_whole_for_each_chunk(
    production: Production, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, check = texts(production, world, '"C.utf8"')
    monkeypatch.setattr(verify, "_SMALL_BYTES", 0)
    (verdict,) = hold(world, catalog, check)
    assert verdict.is_equal is None and "column k of the key has another collation" in verdict.reason
    world.execute('CREATE INDEX ON texts (k COLLATE "C")')
    assert outcome(world, catalog, check) is True


def test_a_composite_whose_fields_are_spelled_otherwise_is_no_difference(
    production: Production, world: World
) -> None:
    table = "CREATE TABLE pairs (id int PRIMARY KEY, p pair)"
    production.execute("CREATE TYPE pair AS (n numeric(5,1))", table, "INSERT INTO pairs VALUES (1, '(1.5)')")
    world.execute("CREATE TYPE pair AS (n numeric(5,2))", table)
    follow(production, world, "pairs")
    catalog, check = catalog_of(production), check_of(production, "pairs", "id", "p")
    (verdict,) = hold(world, catalog, check)
    assert verdict.is_equal is None and "column p is of a composite type" in verdict.reason
    world.execute("ALTER TABLE pairs ALTER p TYPE text USING '(1.5)'")
    assert outcome(world, catalog, check) is True
    world.execute("DELETE FROM pairs")
    assert outcome(world, catalog, check) is False


def test_rows_of_two_rounds_at_most_are_kept(production: Production, world: World, items: Catalog) -> None:
    checks = [bounded(production, chunk, chunk + 1, chunk=chunk + 1) for chunk in range(20)]
    for number in range(1, 6):
        hold(world, items, *(_of_round(check, number) for check in checks[:-1]))
        assert world.value("SELECT count(DISTINCT round) FROM data_sync_verifications") <= 2
        hold(world, items, _of_round(checks[-1], number, is_last=True))
        assert world.rows("SELECT DISTINCT round FROM data_sync_verifications") == [(number,)]
    for number in range(6, 9):  # none of these ends
        hold(world, items, *(_of_round(check, number) for check in checks[:5]))
    assert world.rows("SELECT DISTINCT round FROM data_sync_verifications ORDER BY 1") == [(5,), (8,)]


def _of_round(check: Check, number: int, **options: Any) -> Check:
    return msgspec.structs.replace(check, round=number, **options)


def test_an_equal_number_of_rows_takes_no_mark_away(
    production: Production, world: World, items: Catalog
) -> None:
    def of_number(number: int) -> Check:
        return check_of(production, "items", of_number=True, round=number, seen=0, is_last=True)

    world.execute("DELETE FROM items WHERE id = 50")
    hold(world, items, of_number(1))
    assert marks(world, "items") == ["differs"]
    world.execute("INSERT INTO items VALUES (1000)")
    hold(world, items, of_number(2))
    assert marks(world, "items") == ["differs"]
    found = summary(world, "items")
    assert (found.rows, found.share, found.verified_at) == (100, 0.0, None)


def test_the_empty_end_of_a_round_verifies_nothing(
    production: Production, world: World, items: Catalog
) -> None:
    first, *_, last = whole_round(production, 1)
    hold(world, items, first)
    with world.connect() as connection:
        forget(connection, ["items"])
    rows = bounded(production, 100, None, chunk=last.chunk, seen=100, is_last=True)
    assert outcome(world, items, rows) is True and rows.rows == 0
    found = summary(world, "items")
    assert (found.verified_at, found.rows, found.share) == (None, 100, 0.0)
    assert found.newest_at is not None


def test_a_table_whose_keys_are_listed_is_proved_by_its_number_and_its_keys(
    production: Production, world: World, items: Catalog
) -> None:
    def checks(number: int) -> list[Check]:
        keys = [[(str(key),) for key in range(first, first + 50)] for first in (1, 51)]
        first, second = (
            check_of(
                production,
                "items",
                *COLUMNS,
                key=("id",),
                keys=listed,
                round=number,
                chunk=2 + place,
                seen=50 + 50 * place,
                is_last=place == 1,
            )
            for place, listed in enumerate(keys)
        )
        return [check_of(production, "items", of_number=True, round=number, seen=0), first, second]

    assert [verdict.is_equal for verdict in hold(world, items, *checks(1))] == [True, True, True]
    assert summary(world, "items").share == 1.0
    world.execute("INSERT INTO items VALUES (1000)")
    assert [verdict.is_equal for verdict in hold(world, items, *checks(2))] == [False, True, True]
    world.execute("DELETE FROM items WHERE id IN (1, 1000)", "UPDATE items SET a = 'x' WHERE id = 60")
    assert [verdict.is_equal for verdict in hold(world, items, *checks(3))] == [False, False, False]
    world.execute(
        "UPDATE items SET a = 'a60' WHERE id = 60", "INSERT INTO items VALUES (1, 'a1', '', 1.50, 1)"
    )
    assert marks(world, "items") == ["differs"]
    assert [verdict.is_equal for verdict in hold(world, items, *checks(4))] == [True, True, True]
    assert marks(world, "items") == []


def test_columns_that_are_in_no_check_are_named(production: Production, world: World, items: Catalog) -> None:
    assert summary(world, "items").left_out == ""
    whole = bounded(production, None, None, is_last=True)
    (verdict,) = hold(world, items, msgspec.structs.replace(whole, left_out=("price", "kind")))
    assert verdict.is_equal is True
    found = summary(world, "items")
    assert found.left_out == "without price, kind, whose text means something at production only"
    assert (found.share, found.not_comparable) == (1.0, "")
    hold(world, items, msgspec.structs.replace(whole, left_out=("price",), hash=None, chunk=2, round=2))
    assert "price" not in world.value("SELECT reason FROM data_sync_verifications WHERE round = 2")


def test_an_empty_table_is_verified(production: Production, world: World, items: Catalog) -> None:
    production.execute("TRUNCATE items")
    production.archive()
    assert world.sync().errors == ()
    hold(world, items, check_of(production, "items", *COLUMNS, is_last=True))
    found = summary(world, "items")
    assert (found.rows, found.share, found.verified_at is not None) == (0, 1.0, True)


# What a verdict stands on


def test_a_table_that_stands_elsewhere_has_no_verdict(
    production: Production, world: World, items: Catalog
) -> None:
    check = bounded(production, None, None)
    with world.connect() as connection:
        checkpoint = read_checkpoint(connection, check.name)
        assert checkpoint is not None
        target = Target(connection, metric_freq_hours=24)
        stands = checkpoint.position
        behind = replace(stands, file="changes_20990101_000000.json")
        within = replace(stands, is_finished=False)
        for elsewhere in (behind, within, replace(stands, source_id="another")):
            assert target.verify([check], items, position=elsewhere) == []
        is_ahead = msgspec.structs.replace(check, lsn="0/1")
        assert target.verify([is_ahead], items, position=stands) == []
        assert world.rows("SELECT * FROM data_sync_verifications") == []
        (verdict,) = target.verify([check], items, position=stands)
        assert verdict.is_equal


def test_a_verdict_on_rows_that_were_exchanged_meanwhile_is_dropped(
    production: Production, world: World, items: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resync ends between the reading of the rows and the writing of the verdict."""
    world.execute("DELETE FROM items WHERE id = 50")

    def judge(*args: Any) -> Verdict:
        with world.service() as service:
            service.resync("items")
        return judged(*args)

    judged = verify._judge
    monkeypatch.setattr(verify, "_judge", judge)
    assert hold(world, items, bounded(production, None, None)) == []
    assert marks(world, "items") == []


def test_a_check_that_takes_long_is_given_up(
    production: Production, world: World, items: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LIMIT_S", 0.05)
    monkeypatch.setattr(verify, "LOCK_LIMIT_S", 0.02)
    check = bounded(production, None, None)
    with world.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        (verdict,) = hold(world, items, check)
    assert (verdict.is_equal, verdict.reason) == (None, "others held a lock on the table")
    monkeypatch.setattr(verify, "hash_of_rows", lambda columns: "(SELECT pg_sleep(60)::text)")
    (verdict,) = hold(world, items, check)
    assert (verdict.is_equal, verdict.reason) == (None, "that took longer than 0.05 seconds")
    assert summary(world, "items").not_comparable == verdict.reason
    assert marks(world, "items") == []


@pytest.mark.parametrize("way", ["resync", "clear", "remove"])
def test_what_was_found_of_rows_goes_with_them(
    production: Production, world: World, items: Catalog, way: str
) -> None:
    world.execute("DELETE FROM items WHERE id = 50")
    hold(world, items, *whole_round(production, 1))
    with world.service() as service:
        if way == "resync":
            service.resync("items")
        elif way == "clear":
            service.clear()
        else:
            service.remove_tables(["items"])
    assert world.rows("SELECT * FROM data_sync_verifications") == []
    # Rows of a table that comes back are those that it had.
    assert marks(world, "items") == {"resync": [], "clear": ["partial"], "remove": ["differs"]}[way]
