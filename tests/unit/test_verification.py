"""The line of a check: what is written is read, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.verification import Check, check_comment, parse_check

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)

ORDERS = Check(
    schema="public",
    table="orders",
    columns=("id", "total"),
    key=("id",),
    after=("1000",),
    upto=("2000",),
    rows=1000,
    hash="-46",
    lsn="0/16B3D40",
    round=7,
    chunk=2,
    seen=2000,
)


@given(bound=st.tuples(_TEXT, _TEXT), keys=st.none() | st.lists(st.tuples(_TEXT, _TEXT)).map(tuple))
def test_a_check_that_is_written_is_read(bound: tuple[str, str], keys: tuple[tuple[str, str], ...]) -> None:
    check = msgspec.structs.replace(ORDERS, key=("a", "b"), after=bound, upto=None, keys=keys)
    line = check_comment(check)
    assert line.count(b"\n") == 1 and parse_check(line) == check


@pytest.mark.parametrize(
    "line",
    [
        b'# {"catalog":"9f86d081884c7d65"}\n',
        b'# {"verify":1}\n',
        b'# {"verify":{"table":"orders"}}\n',
        check_comment(ORDERS)[:-5],
        check_comment(msgspec.structs.replace(ORDERS, hash="many")),
        check_comment(msgspec.structs.replace(ORDERS, upto=("1", "2"))),
        check_comment(msgspec.structs.replace(ORDERS, rows=-1)),
        check_comment(msgspec.structs.replace(ORDERS, columns=("c" * 200,) * 400)),
    ],
)
def test_another_comment_or_a_broken_one_is_no_check(line: bytes) -> None:
    assert parse_check(line) is None


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (ORDERS, "id above 1000, up to 2000"),
        (msgspec.structs.replace(ORDERS, after=None), "id up to 2000"),
        (msgspec.structs.replace(ORDERS, key=("a", "b"), after=("1", "2"), upto=None), "(a, b) above (1, 2)"),
        (msgspec.structs.replace(ORDERS, after=None, upto=None), "all rows"),
        (msgspec.structs.replace(ORDERS, after=None, upto=None, keys=(("x",),)), "1 rows by their keys"),
    ],
)
def test_the_bounds_are_said_in_words(check: Check, words: str) -> None:
    assert check.bounds == words
