"""COPY's text form as a snapshot's lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.capture import copied_rows
from syncdata.capture.copied_rows import LineMaker, blocks_of, values_of
from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import parse_policy

_ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\\N\t\nbnt")
)
_rows = st.integers(0, 4).flatmap(
    lambda width: st.tuples(
        st.just(width), st.lists(st.lists(st.none() | _texts, min_size=width, max_size=width), min_size=1)
    )
)


def copied(row: list[str | None]) -> bytes:
    """Return *row* as the server sends it."""
    values = ("\\N" if v is None else "".join(_ESCAPES.get(c, c) for c in v) for v in row)
    return ("\t".join(values) + "\n").encode()


@given(_rows)
def test_values_are_those_that_were_copied(drawn: tuple[int, list[list[str | None]]]) -> None:
    width, rows = drawn
    block = b"".join(map(copied, rows))
    assert values_of(block, width) == rows


@pytest.mark.parametrize("columns", [[], ["id"], ["id", "a b", "ä"], ["id", 'a "quoted" one']])
def test_a_line_is_the_row_as_json(columns: list[str]) -> None:
    rows: list[list[str | None]] = [[f"{n}\n{column}" for column in columns] for n in range(3)]
    maker = LineMaker(b'{"table":"t","op":"INSERT","data":', columns)
    lines, count = maker.lines(b"".join(map(copied, rows)))
    assert count == 3
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"table": "t", "op": "INSERT", "data": dict(zip(columns, row, strict=True))} for row in rows
    ]
    assert lines.endswith(b"}\n")


def test_a_line_of_a_masked_row_is_the_masked_row() -> None:
    columns = ("id", "email", "note")
    policy, _ = parse_policy(
        {"users": {"id": "keep", "email": "email", "note": "null"}}, key=MaskKey(b"k" * 32)
    )
    facts = TableFacts(
        table=TableName("public", "users"),
        columns=tuple(ColumnFacts(name=name, type="text") for name in columns),
    )
    mask = policy.judge([facts])[facts.table].row_mask(columns)
    assert mask is not None
    rows: list[list[str | None]] = [["1", "a\tb\\@c", "x"], ["2", None, "y"], ["3", "a\tb\\@c", None]]
    lines, count = LineMaker(b'{"data":', columns, mask).lines(b"".join(map(copied, rows)))
    assert count == 3
    assert [json.loads(line)["data"] for line in lines.splitlines()] == [
        dict(zip(columns, mask.row(row), strict=True)) for row in rows
    ]
    assert b"a\\tb" not in lines


def test_no_line_is_made_of_a_column_that_is_withheld() -> None:
    facts = TableFacts(table=TableName("public", "users"), columns=(ColumnFacts(name="id", type="text"),))
    verdict = parse_policy({"users": {"id": "keep"}})[0].judge([facts])[facts.table]
    columns = ("id", "unknown")
    with pytest.raises(ValueError, match="withheld"):
        LineMaker(b'{"data":', columns, verdict.row_mask(columns))


def test_a_large_row_is_a_block_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_rows, "_BLOCK_BYTES", 6)
    assert list(blocks_of([b"a\n", b"b\n", b"c\n", b"large row\n", b"d\n"])) == [
        *(b"a\nb\nc\n", b"large row\n", b"d\n")
    ]
    assert list(blocks_of([])) == []
