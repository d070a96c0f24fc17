from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.record import Json, odd_record, parse_record
from syncdata.errors import ParseError


def record(value: str) -> bytes:
    return f'{{"table":"t","op":"INSERT","data":{{"a":{value}}}}}'.encode()


NUMBERS = [
    "0",
    "7",
    "-7",
    "-0",
    "-0.0",
    "0.10",
    "1.00",
    "19.99",
    "0.1000000000000000055511151231257827",
    "1e400",
    "1E-7",
    "-1.5e+300",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "123456789012345678901234567890",
    "1" + "0" * 400,
    "9" * 5000,
    "-" + "9" * 5000,
    "9" * 400 + "." + "9" * 400,
]


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("spelling", ["{}", " {} ", "{}\t", '{},"b":[1]'])
def test_a_number_is_kept_digit_for_digit(text: str, spelling: str) -> None:
    data = parse_record(record(spelling.format(text))).data
    assert data is not None
    assert type(data["a"]) in (int, str)
    assert str(data["a"]) == text


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers())
def test_any_number_is_kept_digit_for_digit(number: Any) -> None:
    data = parse_record(record(str(number))).data
    assert data is not None
    assert str(data["a"]) == str(number)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"x"', "x"),
        ('""', ""),
        ('"7"', "7"),
        ('"{}"', "{}"),
        ('"\\u00e4\\n\\ud83d\\ude00"', "ä\n😀"),
        ("true", True),
        ("false", False),
        ("null", None),
    ],
)
def test_strings_booleans_and_nulls_are_themselves(text: str, value: object) -> None:
    for line in (record(text), record(f'{text},"b":{{}}'), record(f'{text},"b":-0')):
        data = parse_record(line).data
        assert data is not None
        assert data["a"] == value
        assert type(data["a"]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "[1, 2.50 ]",
        '{ "x" : 1e5, "x" : [ -0 ] }',
        '["\\u00e4", "ä", null]',
        "[" + "9" * 5000 + "]",
    ],
)
def test_arrays_and_objects_are_kept_verbatim(text: str) -> None:
    for line in (record(text), record(f" {text} "), record(f'{text},"b":{"9" * 5000}')):
        data = parse_record(line).data
        assert data is not None
        assert type(data["a"]) is Json
        assert data["a"] == text


def test_old_keys_are_as_exact_as_data() -> None:
    line = b'{"table":"t","op":"DELETE","old_keys":{"a":1.10,"b":-0,"c":[1.10],"d":1}}'
    assert parse_record(line).old_keys == {"a": "1.10", "b": "-0", "c": "[1.10]", "d": "1"}


def test_everything_a_record_says_is_read_on_both_ways() -> None:
    line = (
        b'{"schema":"shop","table":"t","op":"UPDATE","data":{"a":%s},"old_keys":{"a":"1"},"lsn":"0/1",'
        b'"ts":"2026-02-05 10:30:00+00","xid":7,"commit_lsn":"0/2","from the future":{"x":[1]}}\n'
    )
    plain, exact = parse_record(line % b'"1"'), parse_record(line % b"[1]")
    assert (plain.schema, plain.table) == ("shop", "t")
    assert (plain.op, plain.data, plain.old_keys) == ("UPDATE", {"a": "1"}, {"a": "1"})
    assert (plain.lsn, plain.ts, plain.xid, plain.commit_lsn) == ("0/1", "2026-02-05 10:30:00+00", 7, "0/2")
    for name in ("schema", "table", "op", "old_keys", "lsn", "ts", "xid", "commit_lsn"):
        assert getattr(exact, name) == getattr(plain, name)


@pytest.mark.parametrize(
    "line",
    [
        {"op": "INSERT", "data": {"a": 1}, "old_keys": None},
        {"op": "UPDATE", "data": {"a": 1}, "old_keys": None},
        {"op": "DELETE", "old_keys": {"a": 1}, "data": None},
        {"op": "DELETE", "data": {"a": 1}},
        {"op": "TRUNCATE"},
        {"op": "TRUNCATE", "data": None, "old_keys": None, "lsn": None, "ts": None, "commit_lsn": None},
        {"op": "TRUNCATE", "xid": "7"},
    ],
)
def test_optional_parts_may_be_absent_or_null(line: dict[str, Any]) -> None:
    record = parse_record(json.dumps({"table": "t", **line}).encode())
    assert (record.schema, record.table, record.op) == ("public", "t", line["op"])


@pytest.mark.parametrize("op", ["B", "C", "M"])
@pytest.mark.parametrize("rest", [b"", b', "ts": ""', b', "lsn": "", "ts": null', b', "data": {"a": [1]}'])
def test_the_scripts_marks_of_transactions_are_no_records_of_a_table(op: str, rest: bytes) -> None:
    mark = parse_record(b'{"table": "", "op": "%s"%s}' % (op.encode(), rest))
    assert (mark.table, mark.op) == ("", op)


def test_the_scripts_word_for_truncate_is_a_truncate() -> None:
    record = parse_record(
        b'{"table": "orders", "op": "T", "lsn": "0/1957200", "ts": "2026-11-27 15:15:20+00"}'
    )
    assert (record.table, record.op, record.ts) == ("orders", "TRUNCATE", "2026-11-27 15:15:20+00")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"table":"","op":"T"}', "not a change record: it names no table"),
        (b'{"table":"","op":"INSERT","data":{"a":1}}', "not a change record: it names no table"),
        (b'{"table":"t","op":"B"}', "not a change record: B names a table"),
        (b'{"op":"C"}', "not a change record"),
        (b'{"table":"","op":"X"}', "not a change record"),
        (b"", "not a line of JSON"),
        (b"nonsense", "not a line of JSON"),
        (b'{"table":"t","op":"INSERT","data":{"a":1}', "not a line of JSON"),
        (b'{"table":"t","op":"INSERT","data":{"a":' + b"9" * 5000 + b"}", "not a line of JSON"),
        (b'{"table":"t","op":"INSERT","data":{"a":1}} {}', "not a line of JSON"),
        (record("01"), "not a line of JSON"),
        (record("NaN"), "not a line of JSON"),
        (record("[01]"), "not a line of JSON"),
        (record('"\\ud800"'), "not a line of JSON"),
        (record("[" * 100_000 + "]" * 100_000), "not a line of JSON"),
        (record('"x"').replace(b"x", b"\xff"), "not a line of JSON"),
        (record('["x"]').replace(b"x", b"\xff"), "not a line of JSON"),
        (record('{"x":1}').replace(b"x", b"\xff"), "not a line of JSON"),
        (b"[]", "not a change record"),
        (b'{"op":"TRUNCATE"}', "not a change record"),
        (b'{"table":"t"}', "not a change record"),
        (b'{"table":"","op":"TRUNCATE"}', "not a change record"),
        (b'{"table":"t","schema":"","op":"TRUNCATE"}', "not a change record"),
        (b'{"table":"t","op":"truncate"}', "not a change record"),
        (b'{"table":"t","op":"INSERT","data":[1]}', "not a change record"),
        (b'{"table":"t","op":"TRUNCATE","lsn":1}', "not a change record"),
        (b'{"table":"t","op":"TRUNCATE","xid":' + b"9" * 5000 + b"}", "not a change record"),
        (b'{"table":"t","op":"TRUNCATE","commit_lsn":"17"}', "commit_lsn is not an LSN"),
    ],
)
def test_what_is_no_record_is_refused_and_says_what_to_do(line: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message) as caught:
        parse_record(line)
    assert caught.value.hint


@given(st.binary())
def test_no_line_raises_anything_but_a_parse_error(line: bytes) -> None:
    with pytest.raises(ParseError):
        parse_record(line)


@given(st.data())
def test_no_cut_or_damaged_line_raises_anything_but_a_parse_error(data: st.DataObject) -> None:
    line = bytearray(b'{"table":"t","op":"INSERT","data":{"a":[1,{"b":"\xc3\xa4"}],"c":%s}}' % (b"9" * 4400))
    place = data.draw(st.integers(0, 49) | st.integers(0, len(line) - 1))
    line[place] = data.draw(st.integers(0, 255))
    try:
        parse_record(bytes(line))
        parse_record(bytes(line[:place]))
    except ParseError:
        pass


@pytest.mark.parametrize(
    "line",
    [
        b'{"table":"t","op":"MERGE","ts":"1","commit_lsn":"0/17"}',
        b'{"table":"t","op":"INSERT","data":[1],"ts":"1","commit_lsn":"0/17"}',
        b'{"table":"t","op":"B","ts":"1","commit_lsn":"0/17"}',
    ],
)
def test_a_line_that_is_no_record_is_blamed_on_the_table_that_it_names(line: bytes) -> None:
    odd = odd_record(line, "why")
    assert odd is not None
    assert (odd.schema, odd.table, odd.ts, odd.commit_lsn, odd.problem) == ("public", "t", "1", "0/17", "why")


@pytest.mark.parametrize(
    "line",
    [
        b'{"table":"t","op":"MERGE"',
        b'{"table":"t","op":"MERGE","data":{"a":"\xff"}}',
        b'{"table":"t","op":"MERGE","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"table":"t","schema":"","op":"TRUNCATE"}',
        b'{"table":"","op":"MERGE"}',
        b'{"table":["t"],"op":"MERGE"}',
        b'{"table":"t","op":"MERGE","ts":5}',
        b'{"table":"t","op":"MERGE","commit_lsn":"17"}',
        b"[]",
    ],
)
def test_a_line_of_which_nobody_knows_table_and_transaction_is_blamed_on_none(line: bytes) -> None:
    assert odd_record(line, "why") is None
