from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg._copy_base import TextFormatter  # what Copy.write_row uses, without a server
from psycopg.adapt import Dumper, Transformer

from syncdata.apply.plan.copy_text import PIECE_BYTES, NulError, copy_text
from syncdata.changes.record import Json

# The driver also escapes a backspace and the like, which COPY reads either way; see
# test_all_characters_go_through_copy.
texts = st.text(
    st.sampled_from("\\\t\n\rN\x01.ä€😀\x7f\x85\u2028")
    | st.characters(codec="utf-8", exclude_characters="\0\b\f\v")
)
columns = st.sampled_from(
    [
        texts,
        st.none(),
        st.integers(),
        st.booleans(),
        st.none() | texts,
        st.none() | st.integers(),
        st.none() | st.booleans() | st.integers() | texts | texts.map(Json),
    ]
)
tables = st.lists(columns, min_size=1, max_size=4).flatmap(
    lambda columns: st.lists(st.tuples(*columns), max_size=100)
)


class _BooleanDumper(Dumper):
    """Text columns keep the text that they get, and the file says ``true``."""

    oid = 0

    def dump(self, obj: bool) -> bytes:
        return b"true" if obj else b"false"


def as_the_driver_writes(rows: list[tuple[Any, ...]]) -> bytes:
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    adapters.register_dumper(bool, _BooleanDumper)
    formatter = TextFormatter(Transformer(adapters))
    return b"".join(bytes(formatter.write_row(row)) for row in rows) + bytes(formatter.end())


@given(tables)
@example([("", ""), ("", "")])
@example([("\\N", "N"), ("\\.", "\t\n")])
def test_the_text_is_what_the_driver_would_write(rows: list[tuple[Any, ...]]) -> None:
    assert b"".join(copy_text(rows)) == as_the_driver_writes(rows)


@given(tables)
def test_a_prefix_is_one_more_value_of_each_row(rows: list[tuple[Any, ...]]) -> None:
    assert b"".join(copy_text(rows, prefix="7\t")) == as_the_driver_writes([("7", *row) for row in rows])


@pytest.mark.parametrize("value", ["\0", "a\0b", "\0\0"])
@pytest.mark.parametrize("others", [[], ["x"], [None], [1]])
@pytest.mark.parametrize("more", [("x",), (None,), (1,)])
def test_a_nul_is_refused(value: str, others: list[Any], more: tuple[Any, ...]) -> None:
    with pytest.raises(NulError):
        list(copy_text([*((other, *more) for other in others), (value, *more)]))


@pytest.mark.parametrize("value", ["x", None, 1])
def test_pieces_are_of_whole_rows_and_bounded_when_rows_grow(value: Any) -> None:
    def rows() -> Iterator[tuple[Any, ...]]:
        for length in (10, 100, 1_000, 10_000):
            yield from (("x" * length, value) for _ in range(2 * PIECE_BYTES // length))

    pieces = list(copy_text(rows()))
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert b"".join(pieces) == as_the_driver_writes(list(rows()))
    assert len(pieces) < 40


def test_a_source_of_rows_is_read_piece_by_piece() -> None:
    taken = 0

    def rows() -> Iterator[tuple[str]]:
        nonlocal taken
        while True:
            taken += 1
            yield ("x" * PIECE_BYTES,)

    next(copy_text(rows()))
    assert taken < 20
