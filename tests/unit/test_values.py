from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.plan.schema import ColumnType
from syncdata.apply.plan.values import converter, to_text
from syncdata.changes.record import Json
from syncdata.errors import SchemaError

PLAIN = ColumnType()
JSON = ColumnType(kind="json")
BYTEA = ColumnType(kind="bytea")
ARRAY = ColumnType(kind="array", element=PLAIN)
POINT = ColumnType(kind="composite", fields=(("x", PLAIN), ("y", PLAIN)))


def array_of(element: ColumnType) -> ColumnType:
    return ColumnType(kind="array", element=element)


@pytest.mark.parametrize("column_type", [PLAIN, JSON, ARRAY, POINT])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", ""),
        ("{1,2}", "{1,2}"),
        ("c0ffee", "c0ffee"),
        ("19.90", "19.90"),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (True, "true"),
        (False, "false"),
    ],
)
def test_a_string_is_the_text_form_and_the_rest_stands_for_itself(
    value: Any, text: str | None, column_type: ColumnType
) -> None:
    assert to_text(value, column_type, is_plain_file=True) == text


@pytest.mark.parametrize(
    ("value", "in_plain_file", "in_our_file"),
    [
        ("c0ffee", "\\xc0ffee", "c0ffee"),
        ("C0FFEE", "\\xC0FFEE", "C0FFEE"),
        ("", "\\x", ""),
        ("c0ffe", "c0ffe", "c0ffe"),
        ("\\xc0ffee", "\\xc0ffee", "\\xc0ffee"),
        ("cafe bar", "cafe bar", "cafe bar"),
        (None, None, None),
    ],
)
def test_bytes_in_bare_hex_are_understood_in_plain_files_only(
    value: str | None, in_plain_file: str | None, in_our_file: str | None
) -> None:
    assert to_text(value, BYTEA, is_plain_file=True) == in_plain_file
    assert to_text(value, BYTEA, is_plain_file=False) == in_our_file


@pytest.mark.parametrize(
    ("value", "column_type", "text"),
    [
        ('{"a": 1.50}', JSON, '{"a": 1.50}'),
        ("[1, 2]", JSON, "[1, 2]"),
        ('{"a": 1}', PLAIN, '{"a": 1}'),
        ("[]", ARRAY, "{}"),
        ("[1, 2.50, -0, 1e400]", ARRAY, '{"1","2.50","-0","1e400"}'),
        ('["a", "b c", "", "NULL", null]', ARRAY, '{"a","b c","","NULL",NULL}'),
        ('["\\"", "\\\\", "{,}"]', ARRAY, '{"\\"","\\\\","{,}"}'),
        ("[true, false]", ARRAY, '{"true","false"}'),
        ("[[1, 2], [3, 4]]", ARRAY, '{{"1","2"},{"3","4"}}'),
        ("[[]]", ARRAY, "{{}}"),
        ('["c0", "\\\\xff"]', array_of(BYTEA), '{"\\\\xc0","\\\\xff"}'),
        ('[{"a": "b"}, [1]]', array_of(JSON), '{"{\\"a\\": \\"b\\"}","[1]"}'),
        ('{"x": 1, "y": 2}', POINT, '("1","2")'),
        ('{"y": 2, "x": 1}', POINT, '("1","2")'),
        ('{"y": 2}', POINT, '(,"2")'),
        ("[1, 2]", POINT, '("1","2")'),
        ('["a\\"b", null]', POINT, '("a""b",)'),
        ('["a\\\\b", ""]', POINT, '("a\\\\b","")'),
        ('[{"x": 1, "y": "a b"}, [3, 4]]', array_of(POINT), '{"(\\"1\\",\\"a b\\")","(\\"3\\",\\"4\\")"}'),
        (
            '{"x": ["a", "b"], "y": {"c": 1}}',
            ColumnType(kind="composite", fields=(("x", ARRAY), ("y", JSON))),
            '("{""a"",""b""}","{""c"": 1}")',
        ),
        ('{"lower": 1}', ARRAY, '{"lower": 1}'),
    ],
)
def test_arrays_and_objects_become_json_array_and_row_literals(
    value: str, column_type: ColumnType, text: str
) -> None:
    assert to_text(Json(value), column_type, is_plain_file=True) == text


def test_plain_columns_need_no_conversion_nor_does_bytea_outside_plain_files() -> None:
    assert converter(PLAIN, is_plain_file=True) is None
    assert converter(BYTEA, is_plain_file=False) is None


@pytest.mark.parametrize(
    ("column_type", "is_plain_file"),
    [(BYTEA, True), *((kind, is_plain) for kind in (JSON, ARRAY, POINT) for is_plain in (True, False))],
)
def test_a_converter_does_what_to_text_does(column_type: ColumnType, is_plain_file: bool) -> None:
    convert = converter(column_type, is_plain_file=is_plain_file)
    assert convert is not None
    for value in (None, "c0ffee", 7, True, Json("[1]"), Json('{"x":1}')):
        assert convert(value) == to_text(value, column_type, is_plain_file=is_plain_file)


def test_a_char_that_would_lose_all_but_its_first_byte_is_refused() -> None:
    convert = converter(ColumnType(kind="byte"), is_plain_file=False)
    assert convert is not None
    assert [convert(value) for value in (None, "", "a", "\\")] == [None, "", "a", "\\"]
    with pytest.raises(SchemaError, match="PostgreSQL 14 cannot hold"):
        convert("\\200")


def parse_array(text: str) -> list[str | None]:
    """Read a one-dimensional array literal as the PostgreSQL documentation describes it."""
    items: list[str | None] = []
    rest = text[1:-1]
    while rest:
        item, quoted = "", rest.startswith('"')
        if quoted:
            rest = rest[1:]
            while not rest.startswith('"'):
                rest = rest.removeprefix("\\")
                item, rest = item + rest[0], rest[1:]
            rest = rest[1:]
        else:
            item, _, rest = rest.partition(",")
            rest = "," + rest if rest else ""
        items.append(item if quoted or item != "NULL" else None)
        rest = rest.removeprefix(",")
    return items


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\",{}N '))))
def test_any_texts_survive_an_array_literal(items: list[str | None]) -> None:
    literal = to_text(Json(msgspec.json.encode(items).decode()), ARRAY)
    assert literal is not None
    assert parse_array(literal) == items
