from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncdata.apply.plan.batches import BatchFile, Limits, Segment, cost_of, cut_batches
from syncdata.changes.catalog import Announcement
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord
from syncdata.errors import ParseError

T, OTHER = TableName("public", "t"), TableName("public", "other")
WANTED: dict[TableName, int | None] = {T: None}
FILE = BatchFile(name="f.json", is_plain=False)
NO_LIMITS = Limits(batch_records=10**9, batch_bytes=10**12)


def record(mark: int | None, *, table: str = "t", size: int = 100, is_plain: bool = False) -> LocatedRecord:
    """A record of transaction *mark*, which a plain file tells by time and the others by commit LSN."""
    text = None if mark is None else f"2026-02-05 10:30:{mark:02}" if is_plain else None
    lsn = None if mark is None or is_plain else format_lsn(mark)
    change = ChangeRecord(table=table, op="INSERT", data={"id": size}, ts=text, commit_lsn=lsn)
    return LocatedRecord(change, 1, size)


def cut(
    records: Iterable[LocatedRecord],
    limits: Limits = NO_LIMITS,
    *,
    watermark: int | None = None,
    **options: Any,
) -> list[Segment]:
    return list(cut_batches(records, file=FILE, watermarks={T: watermark}, limits=limits, **options))


def ends(batches: Iterable[Segment]) -> list[int]:
    return [batch.end_record for batch in batches]


@pytest.mark.parametrize(
    ("marks", "batch_records", "expected"),
    [
        ([], 2, [0]),
        ([1], 2, [1]),
        ([1, 1, 1], 2, [3]),
        ([1, 2, 3], 2, [2, 3]),
        ([1, 2, 2, 3], 2, [3, 4]),
        ([1, 1, 2, 2, 3], 2, [2, 4, 5]),
        ([1, 2], 2, [2]),
        ([None, None, None], 2, [2, 3]),
    ],
)
@pytest.mark.parametrize("is_plain", [True, False])
def test_a_batch_ends_at_the_first_commit_after_so_many_records(
    marks: list[int | None], batch_records: int, expected: list[int], is_plain: bool
) -> None:
    records = [record(mark, is_plain=is_plain) for mark in marks]
    batches = cut(records, Limits(batch_records=batch_records, batch_bytes=10**9))
    assert ends(batches) == expected
    assert [batch.ends_file for batch in batches] == [False] * (len(batches) - 1) + [True]


@pytest.mark.parametrize(
    ("transactions", "batch_bytes", "expected"),
    [
        ([(1, 10), (2, 10), (3, 10)], 20, [2, 3]),
        ([(1, 10), (2, 10), (2, 10)], 20, [1, 3]),
        ([(1, 10), (1, 10), (1, 10)], 20, [2, 3]),
        ([(1, 5), (2, 15), (2, 10)], 20, [1, 2, 3]),
        ([(1, 50), (2, 10)], 20, [1, 2]),
        ([(1, 10), (2, 50), (3, 10)], 20, [1, 2, 3]),
    ],
)
def test_a_batch_holds_no_more_bytes_than_it_may_and_cuts_only_what_alone_is_too_large(
    transactions: list[tuple[int, int]], batch_bytes: int, expected: list[int]
) -> None:
    unit = int(cost_of(0))
    records = [record(mark, size=int((size - 1) * unit // cost_of(1, 0))) for mark, size in transactions]
    assert ends(cut(records, Limits(batch_records=100, batch_bytes=batch_bytes * unit))) == expected


def test_records_of_unwanted_tables_are_counted_and_left_out() -> None:
    records = [record(1, table="other"), record(1), record(2, table="other")]
    (batch,) = cut(records)
    assert (batch.records, batch.skipped, batch.end_record, batch.size_bytes) == (records[1:2], 2, 3, 300)


def test_a_table_of_the_same_name_in_another_schema_is_unwanted() -> None:
    stranger = ChangeRecord(table="t", schema="other", op="TRUNCATE")
    assert cut([LocatedRecord(stranger, 1, 1)])[0].skipped == 1


def test_transactions_that_were_applied_already_are_left_out() -> None:
    records = [record(mark) for mark in (5, 5, 7, 9)]
    (batch,) = cut(records, watermark=7)
    assert (batch.records, batch.repeated, batch.commit_lsn) == (records[3:], 3, 9)


def test_each_table_has_a_watermark_of_its_own() -> None:
    records = [record(mark, table=table) for mark in (5, 7, 9) for table in ("t", "other", "stranger")]
    (batch,) = cut_batches(records, file=FILE, watermarks={T: 5, OTHER: 7}, limits=NO_LIMITS)
    assert batch.records == [records[3], records[6], records[7]]
    assert (batch.repeated, batch.skipped, batch.commit_lsn) == (3, 3, 9)


def test_a_table_without_a_watermark_takes_what_another_has_already() -> None:
    records = [record(5), record(5, table="other")]
    (batch,) = cut_batches(records, file=FILE, watermarks={T: 5, OTHER: None}, limits=NO_LIMITS)
    assert (batch.records, batch.repeated) == (records[1:], 1)


def test_a_record_that_does_not_tell_its_commit_is_never_taken_for_a_repeat() -> None:
    (batch,) = cut([record(5), record(6, is_plain=True), record(None)], watermark=7)
    assert (len(batch.records), batch.repeated) == (2, 1)


def test_the_commit_lsn_is_that_of_the_last_whole_transaction() -> None:
    records = [record(1), record(2), record(2), record(2), record(3)]
    limits = Limits(batch_records=100, batch_bytes=int(2 * cost_of(100)))
    batches = cut(records, limits)
    assert [(batch.end_record, batch.commit_lsn) for batch in batches] == [(1, 1), (3, 1), (5, 3)]


def test_a_transaction_in_which_another_table_stands_has_not_committed_there() -> None:
    (batch,) = cut([record(5), record(7), record(7)], until_record=2)
    assert (batch.end_record, batch.commit_lsn, batch.ends_file) == (2, 5, False)


@pytest.mark.parametrize("records", [[record(5), record(7)], [record(5), record(7), record(9)]])
def test_a_transaction_behind_which_reading_ends_has_committed_there(records: list[LocatedRecord]) -> None:
    (batch,) = cut(records, until_record=2)
    assert (batch.end_record, batch.commit_lsn, batch.ends_file) == (2, 7, False)


def test_whole_transactions_before_an_unreadable_line_are_a_batch() -> None:
    def source() -> Iterator[LocatedRecord]:
        yield from (record(1), record(2), record(2))
        raise ParseError("broken")

    batches = cut_batches(source(), file=FILE, watermarks=WANTED, limits=NO_LIMITS)
    assert next(batches).end_record == 1
    with pytest.raises(ParseError):
        next(batches)


def test_an_unreadable_first_transaction_leaves_nothing_to_apply() -> None:
    def source() -> Iterator[LocatedRecord]:
        yield record(1)
        raise ParseError("broken")

    with pytest.raises(ParseError):
        cut(source())


def marked(letters: str, *, times: str = "") -> list[LocatedRecord]:
    """The lines of a file with marks: ``B``, ``C``, ``M``, or ``t`` and ``o`` for records of two tables.

    *times* gives each line its second; without it all share one.
    """
    ts = [f"2026-11-27 15:15:2{second}+00" for second in times or "0" * len(letters)]
    tables = {"t": "t", "o": "other"}
    return [
        LocatedRecord(
            ChangeRecord(table=tables[letter], op="INSERT", data={"id": 1}, ts=time)
            if letter in tables
            else ChangeRecord(table="", op=letter, ts=time),  # type: ignore[arg-type]
            line,
            100,
        )
        for line, (letter, time) in enumerate(zip(letters, ts, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("letters", "times", "batch_records", "expected"),
    [
        ("BtCBtCBtC", "", 1, [3, 6, 9]),
        ("BtCBtCBtC", "", 2, [6, 9]),
        ("BttCBtC", "0123456", 1, [4, 7]),  # within a transaction, the time decides nothing
        ("BtMtC", "01234", 1, [5]),
        ("BtCMBtC", "", 1, [4, 7]),
        ("BoCBC", "", 1, [5]),
        ("tBtC", "", 1, [1, 4]),
        ("BtCt", "", 1, [3, 4]),
        ("tCBtC", "", 1, [2, 5]),  # read from a position inside a transaction
        ("BtBtC", "", 1, [2, 5]),  # two files in one: the first was cut short
    ],
)
def test_a_batch_ends_where_marks_say_that_a_transaction_ends(
    letters: str, times: str, batch_records: int, expected: list[int]
) -> None:
    batches = cut(marked(letters, times=times), Limits(batch_records=batch_records, batch_bytes=10**9))
    assert ends(batches) == expected
    assert sum(len(batch.records) for batch in batches) == letters.count("t")
    assert sum(batch.skipped for batch in batches) == letters.count("o")
    assert [batch.ends_file for batch in batches] == [False] * (len(batches) - 1) + [True]


def test_a_marked_transaction_is_cut_only_where_it_alone_outgrows_the_memory() -> None:
    unit = int(cost_of(100))
    batches = cut(marked("BtCBtttCBtC"), Limits(batch_records=100, batch_bytes=2 * unit))
    assert ends(batches) == [3, 6, 11]


def test_whole_marked_transactions_before_an_unreadable_line_are_a_batch() -> None:
    def source() -> Iterator[LocatedRecord]:
        yield from marked("BtCBt")
        raise ParseError("broken")

    batches = cut_batches(source(), file=FILE, watermarks=WANTED, limits=NO_LIMITS)
    assert next(batches).end_record == 3
    with pytest.raises(ParseError):
        next(batches)


records_of_files = st.builds(
    lambda transactions, is_plain: [
        record(2 * number + 1, table=table, size=size, is_plain=is_plain)
        for number, transaction in enumerate(transactions)
        for table, size in transaction
    ],
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["t", "t", "other"]), st.sampled_from([10, 500, 3_000])),
            min_size=1,
            max_size=5,
        ),
        max_size=8,
    ),
    st.booleans(),
)
all_limits = st.builds(
    Limits, batch_records=st.integers(1, 6), batch_bytes=st.sampled_from([1, 1_600, 3_100, 5_000, 9_000])
)


def cost(records: Iterable[LocatedRecord]) -> float:
    return sum(cost_of(item.size_bytes) for item in records if item.record.table == "t")


def lsn_of(item: LocatedRecord) -> int | None:
    return int(item.record.commit_lsn[2:], 16) if item.record.commit_lsn else None


def mark_of(item: LocatedRecord) -> str | None:
    """What all records of a transaction share."""
    return item.record.commit_lsn or item.record.ts


@settings(max_examples=400, deadline=None)
@given(records=records_of_files, limits=all_limits, watermark=st.none() | st.integers(0, 8))
def test_batches_together_are_the_records_and_each_keeps_its_promises(
    records: list[LocatedRecord], limits: Limits, watermark: int | None
) -> None:
    def is_repeat(item: LocatedRecord) -> bool:
        lsn = lsn_of(item)
        return item.record.table == "t" and lsn is not None and watermark is not None and lsn <= watermark

    batches = cut(records, limits, watermark=watermark)
    start = 0
    for batch in batches:
        own = records[start : batch.end_record]
        assert batch.records == [item for item in own if item.record.table == "t" and not is_repeat(item)]
        assert batch.repeated == sum(map(is_repeat, own))
        assert len(batch.records) + batch.skipped + batch.repeated == len(own)
        assert batch.size_bytes == sum(item.size_bytes for item in own)
        assert batch.ends_file is (batch is batches[-1])
        assert len(batch.records) <= 1 or cost(batch.records) <= limits.batch_bytes
        following = records[batch.end_record : batch.end_record + 1]
        mark = mark_of(following[0]) if following else None
        if following and own and mark_of(own[-1]) == mark:
            transaction = [item for item in records if mark_of(item) == mark]
            assert cost(transaction) > limits.batch_bytes
        whole = [item for item in records[: batch.end_record] if mark_of(item) != mark or not following]
        lsns = [lsn for item in whole if (lsn := lsn_of(item)) is not None]
        assert batch.commit_lsn == max(lsns, default=None)
        start = batch.end_record
    assert start == len(records)


@settings(max_examples=300, deadline=None)
@given(records=records_of_files, limits=all_limits)
def test_going_on_at_any_batchs_end_gives_the_rest(records: list[LocatedRecord], limits: Limits) -> None:
    for batch in cut(records, limits):
        end = batch.end_record
        rest = cut(records[end:], limits, start_record=end, watermark=batch.commit_lsn)
        assert [item for batch in rest for item in batch.records] == [
            item for item in records[end:] if item.record.table == "t"
        ]
        assert rest[-1].end_record == len(records)


@settings(max_examples=300, deadline=None)
@given(records=records_of_files, limits=all_limits, data=st.data())
def test_batches_end_where_another_table_stands(
    records: list[LocatedRecord], limits: Limits, data: st.DataObject
) -> None:
    until = data.draw(st.integers(0, len(records)))
    batches = cut(records, limits, until_record=until)
    assert [item for batch in batches for item in batch.records] == [
        item for item in records[:until] if item.record.table == "t"
    ]
    assert not any(batch.ends_file for batch in batches)
    assert ends(batches)[-1:] == ([until] if until else [])


def test_a_batch_ends_where_the_catalog_changes_but_never_inside_a_transaction() -> None:
    old, new, newer = Announcement("a" * 32), Announcement("b" * 32, 5), Announcement("c" * 32)
    records = [record(1), record(2), record(3), under(record(3), new), record(4), under(record(5), newer)]
    batches = cut(records, catalog=old)
    assert [(batch.end_record, batch.catalog) for batch in batches] == [(2, old), (5, new), (6, newer)]
    assert [batch.ends_file for batch in batches] == [False, False, True]


def test_a_file_that_begins_with_another_catalog_has_no_empty_batch_before_it() -> None:
    new = Announcement("b" * 32)
    (batch,) = cut([under(record(1), new), record(2)])
    assert (batch.end_record, batch.catalog) == (2, new)


def under(located: LocatedRecord, catalog: Announcement) -> LocatedRecord:
    return LocatedRecord(located.record, located.line, located.size_bytes, catalog)
