"""Checks among the records of a file: where they stand, batches end, and nothing else changes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.plan import batches as batches_module
from syncdata.apply.plan.batches import BatchFile, Limits, Segment, cut_batches, no_check
from syncdata.changes.catalog import Announcement, catalog_comment
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.reader import BLOCK_BYTES, LocatedCheck, read_pieces, read_with_checks
from syncdata.changes.run import Piece, Run
from syncdata.changes.verification import Check, check_comment
from syncdata.errors import ParseError

FILE = BatchFile(name="f.json", is_plain=False)
NO_LIMITS = Limits(batch_records=10**9, batch_bytes=10**12)
FIRST, SECOND = "1" * 32, "2" * 32


def check(number: int, *, table: str = "t", keys: tuple[tuple[str, ...], ...] | None = None) -> Check:
    return Check(
        schema="public",
        table=table,
        columns=("id",),
        key=("id",),
        keys=keys,
        rows=1,
        lsn="0/FF",
        round=1,
        chunk=number,
        seen=number,
    )


def line(check: Check) -> bytes:
    return check_comment(check)


def record(commit: int | None, number: int = 0, *, table: str = "t") -> bytes:
    told = {} if commit is None else {"commit_lsn": format_lsn(commit)}
    made = {"table": table, "op": "INSERT", "data": {"id": number}} | told
    return json.dumps(made).encode() + b"\n"


def read(content: bytes, **options: Any) -> list[Piece | LocatedCheck]:
    return list(read_with_checks(io.BytesIO(content), "f.json", **options))


def shape(pieces: Iterable[Piece | LocatedCheck]) -> list[int | str]:
    """Return the chunks of the checks as texts, and between them the numbers of records."""
    found: list[int | str] = []
    for piece in pieces:
        if isinstance(piece, LocatedCheck):
            found.append(f"check {piece.check.chunk}")
            continue
        records = len(piece) if isinstance(piece, Run) else 1
        if found and isinstance(found[-1], int):
            found[-1] += records
        else:
            found.append(records)
    return found


def cut(
    content: bytes,
    *,
    is_wanted: Callable[[Check], bool] = lambda check: True,
    is_typed: bool = True,
    limits: Limits = NO_LIMITS,
    watermark: int | None = None,
    catalog: Announcement | None = None,
) -> list[Segment]:
    pieces = read(content)
    if not is_typed:
        pieces = [one for piece in pieces for one in (piece.records() if isinstance(piece, Run) else [piece])]
    return list(
        cut_batches(
            pieces,
            file=FILE,
            watermarks={TableName("public", "t"): watermark},
            limits=limits,
            catalog=catalog,
            is_wanted=is_wanted,
        )
    )


def ends(segments: Iterable[Segment]) -> list[tuple[int, list[int]]]:
    return [(segment.end_record, [check.chunk for check in segment.checks]) for segment in segments]


def test_checks_stand_among_the_records_where_they_stand_in_the_file() -> None:
    content = line(check(1)) + record(1) * 3 + line(check(2)) + b"# a word\n\n" + line(check(3))
    content += record(2) * 2 + line(check(4))
    assert shape(read(content)) == ["check 1", 3, "check 2", "check 3", 2, "check 4"]
    assert shape(read_pieces(io.BytesIO(content), "f.json")) == [5]


def test_a_check_parts_one_run_and_leaves_the_others_whole() -> None:
    pieces = read(record(1) * 50 + line(check(1)) + record(2) * 50)
    assert [type(piece) for piece in pieces] == [Run, LocatedCheck, Run]


@pytest.mark.parametrize("before", range(-40, 41, 8))
def test_a_check_that_the_end_of_a_block_cuts_in_two_is_read(before: int) -> None:
    lines = record(1) * (BLOCK_BYTES // len(record(1)) - 3)
    filler = b"#" + b" " * (BLOCK_BYTES - len(lines) + before - 2) + b"\n"
    content = lines + filler + line(check(1)) + record(2)
    assert shape(read(content)) == [lines.count(b"\n"), "check 1", 1]


def test_a_check_of_many_keys_is_read_where_it_is_longer_than_what_is_left_of_a_block() -> None:
    long = check(1, keys=tuple((f"{number:08}",) for number in range(4_000)))
    lines = record(1) * (BLOCK_BYTES // len(record(1)) - 10)
    content = lines + line(long) + record(2)
    (found,) = [piece for piece in read(content) if isinstance(piece, LocatedCheck)]
    assert found.check == long


def test_who_begins_behind_a_record_has_met_the_checks_there() -> None:
    content = line(check(1)) + record(1) + line(check(2)) + record(2) + line(check(3))
    assert shape(read(content, skip=0)) == ["check 1", 1, "check 2", 1, "check 3"]
    assert shape(read(content, skip=1)) == [1, "check 3"]
    assert shape(read(content, skip=2)) == []


def test_a_batch_ends_where_wanted_checks_stand_and_has_them() -> None:
    content = line(check(1)) + record(1) * 3 + line(check(2)) + line(check(3)) + record(2) + line(check(4))
    segments = cut(content)
    assert ends(segments) == [(0, [1]), (3, [2, 3]), (4, [4])]
    assert [segment.ends_file for segment in segments] == [False, False, True]
    assert [segment.commit_lsn for segment in segments] == [None, 1, 2]


def test_a_file_of_checks_alone_is_one_batch() -> None:
    (segment,) = cut(line(check(1)) + line(check(2)))
    assert (segment.end_record, segment.ends_file, len(segment.checks)) == (0, True, 2)


def test_unwanted_checks_end_no_batch() -> None:
    content = record(1) + line(check(1, table="other")) + record(2) + line(check(2)) + record(3)
    assert ends(cut(content, is_wanted=no_check)) == [(3, [])]
    assert ends(cut(content, is_wanted=lambda check: check.table == "t")) == [(2, [2]), (3, [])]


@pytest.mark.parametrize("is_typed", [True, False])
def test_a_check_inside_a_transaction_ends_no_batch(is_typed: bool) -> None:
    content = record(1) * 2 + line(check(1)) + record(1) + line(check(2)) + record(2)
    assert ends(cut(content, is_typed=is_typed)) == [(3, [2]), (4, [])]


def test_a_batch_ends_at_a_check_between_records_that_tell_no_transaction() -> None:
    assert ends(cut(record(None) * 2 + line(check(1)) + record(None))) == [(2, [1]), (3, [])]


def test_a_check_before_an_unreadable_line_is_passed_over() -> None:
    """The line may have been of the transaction before the check."""
    pieces = read_with_checks(io.BytesIO(record(1) + record(2) + line(check(1)) + b"{broken}\n"), "f.json")
    segments = cut_batches(
        pieces,
        file=FILE,
        watermarks={TableName("public", "t"): None},
        limits=NO_LIMITS,
        is_wanted=lambda check: True,
    )
    assert ends([next(segments)]) == [(1, [])]
    with pytest.raises(ParseError):
        next(segments)


def test_a_check_behind_a_new_catalog_is_under_that_one() -> None:
    content = record(1) + line(check(1)) + catalog_comment(SECOND, "0/5") + line(check(2)) + record(2)
    old, new = Announcement(FIRST), Announcement(SECOND, 5)
    segments = cut(content, catalog=old)
    assert ends(segments) == [(1, [1]), (1, [2]), (2, [])]
    assert [segment.catalog for segment in segments] == [old, new, new]
    without_first = record(1) + catalog_comment(SECOND, "0/5") + line(check(2))
    segments = cut(without_first, catalog=old)
    assert ends(segments) == [(1, []), (1, [2])]
    assert [(segment.catalog, segment.ends_file) for segment in segments] == [(old, False), (new, True)]


def test_of_many_checks_at_one_place_no_more_are_kept_than_memory_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches_module, "MAX_CHECK_BYTES", 3 * len(line(check(1))))
    (segment,) = cut(b"".join(line(check(number)) for number in range(1, 9)))
    assert [check.chunk for check in segment.checks] == [1, 2, 3]


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The lines of a file, and the same with checks between transactions and within them."""
    plain = with_checks = b""
    number = 0
    for commit in range(1, draw(st.integers(1, 6))):
        for _ in range(draw(st.integers(1, 6))):
            number += 1
            table = draw(st.sampled_from(["t", "t", "other"]))
            made = record(commit, number, table=table)
            plain += made
            with_checks += made + line(check(number)) * draw(st.sampled_from([0, 0, 0, 0, 1, 2]))
        with_checks += line(check(number)) * draw(st.integers(0, 1))
    return plain, with_checks


@given(
    files(),
    st.integers(1, 8),
    st.sampled_from([10**9, 1_500, 600]),
    st.booleans(),
    st.sets(st.integers(1, 36)),
    st.none() | st.integers(0, 5),
)
def test_with_checks_and_without_the_same_records_come_in_the_same_order(
    content: tuple[bytes, bytes],
    batch_records: int,
    batch_bytes: int,
    is_typed: bool,
    wanted: set[int],
    watermark: int | None,
) -> None:
    plain, with_checks = content

    def batches(text: bytes) -> list[Segment]:
        return cut(
            text,
            is_wanted=lambda check: check.chunk in wanted,
            is_typed=is_typed,
            limits=Limits(batch_records=batch_records, batch_bytes=batch_bytes),
            watermark=watermark,
        )

    def ids(segment: Segment) -> list[int]:
        return [(located.record.data or {})["id"] for located in segment.records]

    without, cut_at_checks = batches(plain), batches(with_checks)
    assert [i for segment in cut_at_checks for i in ids(segment)] == [
        i for segment in without for i in ids(segment)
    ]
    for name in ("skipped", "repeated", "size_bytes"):
        assert sum(getattr(s, name) for s in cut_at_checks) == sum(getattr(s, name) for s in without)
    assert cut_at_checks[-1].end_record == plain.count(b"\n")
    assert [s.ends_file for s in cut_at_checks] == [False] * (len(cut_at_checks) - 1) + [True]
    # Each wanted check between two transactions is at the end of a batch with exactly the records before it.
    commits = [json.loads(each)["commit_lsn"] for each in plain.splitlines()]
    stand = [piece.check.chunk for piece in read(with_checks) if isinstance(piece, LocatedCheck)]
    proper = [
        number
        for number in stand
        if number in wanted and (number == len(commits) or commits[number - 1] != commits[number])
    ]
    assert [(s.end_record, check.chunk) for s in cut_at_checks for check in s.checks] == [
        (number, number) for number in proper
    ]
