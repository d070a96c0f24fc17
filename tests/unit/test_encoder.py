from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.capture.encoder import LineWriter, format_time
from syncdata.capture.pgoutput import POSTGRES_EPOCH, Begin, Decoder, Relation, RowChange, Truncate
from syncdata.changes.record import parse_record

USERS = Relation(schema="public", name="users", columns=("id",), key=frozenset({"id"}))
ORDER = Relation(schema='my "schema"', name="Örder", columns=("id",), key=frozenset({"id"}))
BEGIN = Begin(commit_lsn=0x1_0000_0020, committed_at_us=0, xid=77)

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
rows = st.dictionaries(texts.filter(bool), st.one_of(st.none(), texts), min_size=1)


@given(
    relation=st.sampled_from([USERS, ORDER]),
    values=st.one_of(
        st.tuples(st.just("INSERT"), rows, st.none()),
        st.tuples(st.just("UPDATE"), rows, st.one_of(st.none(), rows)),
        st.tuples(st.just("DELETE"), st.none(), rows),
    ),
    lsn=st.integers(0, 2**64 - 1),
)
def test_a_line_is_read_back_as_the_change_that_was_written(
    relation: Relation, values: tuple[Literal["INSERT", "UPDATE", "DELETE"], Any, Any], lsn: int
) -> None:
    op, data, old_keys = values
    line = LineWriter(BEGIN).change(RowChange(relation, op, data, old_keys), lsn)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    record = parse_record(line)
    assert (record.schema, record.table, record.op) == (relation.schema, relation.name, op)
    assert (record.data, record.old_keys) == (data, old_keys)
    assert (record.xid, record.commit_lsn) == (77, "1/20")
    assert record.lsn == f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
    assert record.ts == "2000-01-01T00:00:00.000000Z"


names = st.one_of(
    texts.filter(bool), st.sampled_from(["id", "from", 'a "b"', "a\\b", "c0", "Ö", "\x1f", "%b"])
)


@given(
    values=st.dictionaries(names, texts, max_size=10),
    op=st.sampled_from(["INSERT", "UPDATE"]),
    old_keys=st.one_of(st.none(), rows),
    lsn=st.integers(0, 2**64 - 1),
)
def test_a_row_that_came_as_a_list_has_the_line_of_one_that_came_by_column(
    values: dict[str, str], op: Literal["INSERT", "UPDATE"], old_keys: Any, lsn: int
) -> None:
    relation = Relation(schema="public", name="users", columns=tuple(values), key=frozenset())
    writer = LineWriter(BEGIN)
    line = writer.change(RowChange(relation, op, list(values.values()), old_keys), lsn)
    by_column = {
        "table": "users",
        "op": op,
        "data": values,
        **({} if old_keys is None else {"old_keys": old_keys}),
        "lsn": f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}",
        "xid": 77,
        "commit_lsn": "1/20",
        "ts": "2000-01-01T00:00:00.000000Z",
    }
    assert line == msgspec.json.encode(by_column) + b"\n"
    assert line == writer.change(RowChange(relation, op, dict(values), old_keys), lsn)


def test_a_row_may_have_as_many_columns_as_a_table_can() -> None:
    columns = tuple(f"c{number}" for number in range(1600, 0, -1))
    relation = Relation(schema="public", name="wide", columns=columns, key=frozenset())
    line = LineWriter(BEGIN).change(RowChange(relation, "INSERT", list(columns), None), 1)
    assert parse_record(line).data == {column: column for column in columns}


def test_the_lines_of_a_recorded_stream_are_the_same_to_the_byte() -> None:
    """The stream of a PostgreSQL 15, with every kind of message and of value, and lines that were written
    when each value was read and encoded by itself."""
    decoder, writer = Decoder(), LineWriter(BEGIN)
    recorded = (Path(__file__).parents[1] / "data" / "pgoutput_lines.jsonl").read_bytes().splitlines()
    for entry in map(msgspec.json.decode, recorded):
        message = decoder.decode(base64.b64decode(entry["message"]))
        lines = []
        match message:
            case Begin():
                writer = LineWriter(message)
            case RowChange():
                lines = [writer.change(message, entry["lsn"])]
            case Truncate():
                lines = writer.truncate(message, entry["lsn"])
        assert [line.decode() for line in lines] == entry["lines"]
    assert len(recorded) == 62


def test_a_truncate_is_a_line_for_each_table() -> None:
    lines = LineWriter(BEGIN).truncate(Truncate(relations=(USERS, ORDER)), 5)
    found = [parse_record(line) for line in lines]
    assert [(record.op, record.schema, record.table) for record in found] == [
        ("TRUNCATE", "public", "users"),
        ("TRUNCATE", 'my "schema"', "Örder"),
    ]
    assert {record.commit_lsn for record in found} == {"1/20"}
    assert {record.data for record in found} == {None}


def test_two_descriptions_of_one_table_are_not_confused() -> None:
    renamed = Relation(schema="public", name="people", columns=("id",), key=frozenset({"id"}))
    writer = LineWriter(BEGIN)
    names = [
        parse_record(writer.change(RowChange(relation, "INSERT", {"id": "1"}, None), 1)).table
        for relation in (USERS, renamed, USERS)
    ]
    assert names == ["users", "people", "users"]


@pytest.mark.parametrize(
    ("since_2000_us", "expected"),
    [
        (0, "2000-01-01T00:00:00.000000Z"),
        (1, "2000-01-01T00:00:00.000001Z"),
        (-1, "1999-12-31T23:59:59.999999Z"),
        (847_000_000_123_456, "2026-11-03T05:46:40.123456Z"),
    ],
)
def test_times_count_from_2000(since_2000_us: int, expected: str) -> None:
    assert format_time(since_2000_us) == expected


def test_a_time_that_no_date_holds_becomes_the_last_or_the_first_one() -> None:
    assert format_time(2**63 - 1) == "9999-12-31T23:59:59.999999Z"
    assert format_time(-(2**63)) == "0001-01-01T00:00:00.000000Z"


def test_every_year_has_four_digits() -> None:
    moment = dt.datetime(7, 2, 5, 10, 30, tzinfo=dt.UTC)
    assert (
        format_time((moment - POSTGRES_EPOCH) // dt.timedelta(microseconds=1))
        == "0007-02-05T10:30:00.000000Z"
    )
