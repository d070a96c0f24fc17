from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.capture import pgoutput
from syncdata.capture.pgoutput import Begin, Commit, Decoder, Relation, RowChange, Truncate
from syncdata.errors import CaptureError

OID = 16384


def text(value: str) -> bytes:
    return b"t" + struct.pack(">I", len(value.encode())) + value.encode()


def row(*values: bytes) -> bytes:
    return struct.pack(">H", len(values)) + b"".join(values)


def relation(
    *columns: str, key: int = 1, schema: str = "public", name: str = "users", oid: int = OID
) -> bytes:
    """The first *key* columns are the replica identity's."""
    described = b"".join(
        bytes([number < key]) + column.encode() + b"\0" + struct.pack(">Ii", 25, -1)
        for number, column in enumerate(columns)
    )
    head = b"R" + struct.pack(">I", oid) + schema.encode() + b"\0" + name.encode() + b"\0d"
    return head + struct.pack(">H", len(columns)) + described


def change(kind: bytes, *rows: bytes, oid: int = OID) -> bytes:
    return kind + struct.pack(">I", oid) + b"".join(rows)


INSERT = change(b"I", b"N" + row(text("1"), text("né 😀"), b"n"))
KEPT = change(b"U", b"N" + row(text("1"), text("new"), b"u"))
MOVED = change(b"U", b"K" + row(text("1"), b"n", b"n"), b"N" + row(text("2"), text("new"), b"u"))
FULL = change(
    b"U", b"O" + row(text("1"), text("old"), text("long")), b"N" + row(text("1"), text("new"), b"u")
)
LONG_KEY = change(b"U", b"K" + row(text("1"), b"n", b"n"), b"N" + row(b"u", text("new"), b"u"))
DELETE = change(b"D", b"K" + row(text("1"), b"n", b"n"))
DELETE_FULL = change(b"D", b"O" + row(text("1"), b"n", text("long")))
BEGIN = b"B" + struct.pack(">QqI", 0x100000020, 5, 77)
COMMIT = b"C" + struct.pack(">BQQq", 0, 0x100000020, 0x100000050, 5)
TRUNCATE = b"T" + struct.pack(">IBI", 1, 0, OID)


@pytest.fixture
def decoder() -> Decoder:
    decoder = Decoder()
    decoder.decode(relation("id", "name", "bio"))
    return decoder


CHANGES: list[tuple[bytes, str, Any, Any]] = [
    (INSERT, "INSERT", {"id": "1", "name": "né 😀", "bio": None}, None),
    (KEPT, "UPDATE", {"id": "1", "name": "new"}, None),
    (MOVED, "UPDATE", {"id": "2", "name": "new"}, {"id": "1"}),
    (FULL, "UPDATE", {"id": "1", "name": "new", "bio": "long"}, {"id": "1", "name": "old", "bio": "long"}),
    (LONG_KEY, "UPDATE", {"id": "1", "name": "new"}, {"id": "1"}),
    (DELETE, "DELETE", None, {"id": "1"}),
    (DELETE_FULL, "DELETE", None, {"id": "1", "name": None, "bio": "long"}),
]


@pytest.mark.parametrize(("message", "op", "data", "old_keys"), CHANGES)
def test_a_change_says_what_was_written(
    decoder: Decoder, message: bytes, op: str, data: Any, old_keys: Any
) -> None:
    decoded = decoder.decode(message)
    assert isinstance(decoded, RowChange)
    assert (decoded.op, decoded.data, decoded.old_keys) == (op, data, old_keys)
    assert str(decoded.relation) == "public.users"


def test_transactions_begin_and_end_at_their_commit(decoder: Decoder) -> None:
    assert decoder.decode(BEGIN) == Begin(commit_lsn=0x100000020, committed_at_us=5, xid=77)
    assert decoder.decode(COMMIT) == Commit(commit_lsn=0x100000020, end_lsn=0x100000050)


def test_a_truncate_names_all_its_tables(decoder: Decoder) -> None:
    decoder.decode(relation("id", schema="my schema", name="Order", oid=9))
    decoded = decoder.decode(b"T" + struct.pack(">IBII", 2, 3, OID, 9))
    assert isinstance(decoded, Truncate)
    assert [str(table) for table in decoded.relations] == ["public.users", "my schema.Order"]


def test_a_table_described_again_is_read_as_it_is_now(decoder: Decoder) -> None:
    decoder.decode(relation("bio", "id", key=0))
    decoded = decoder.decode(change(b"I", b"N" + row(b"n", text("1"))))
    assert isinstance(decoded, RowChange)
    assert decoded.data == {"bio": None, "id": "1"}
    assert isinstance(decoded.relation, Relation)
    assert decoded.relation.key == frozenset()


def test_an_empty_schema_is_the_catalog(decoder: Decoder) -> None:
    decoder.decode(relation("id", schema=""))
    decoded = decoder.decode(change(b"I", b"N" + row(text("1"))))
    assert isinstance(decoded, RowChange)
    assert decoded.relation.schema == "pg_catalog"


@pytest.mark.parametrize("kind", [b"Y", b"O", b"M"])
def test_what_a_change_file_does_not_say_is_left_out(decoder: Decoder, kind: bytes) -> None:
    assert decoder.decode(kind + b"whatever") is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"S\0\0\0\1\1",  # a streamed transaction: another version of the protocol
        b"?",
        change(b"I", b"N" + row(text("1")), oid=99),  # a table that was not described
        change(b"I", b"N" + row(text("1"), text("2"))),  # a row of another table
        change(b"I", b"N" + row(b"b\0\0\0\1x", b"n", b"n")),  # a value in binary
        change(b"D", b"N" + row(text("1"), b"n", b"n")),
        change(b"U", b"K" + row(text("1"), b"n", b"n"), b"K" + row(text("1"), b"n", b"n")),
        b"T" + struct.pack(">IBI", 1, 0, 99),
    ],
)
def test_what_is_not_of_the_protocol_is_refused(decoder: Decoder, message: bytes) -> None:
    with pytest.raises(CaptureError, match="SHD_SYN_105.*protocol version 1"):
        decoder.decode(message)


def test_a_value_that_is_not_utf8_is_named_by_its_table_and_not_shown(decoder: Decoder) -> None:
    message = change(b"I", b"N" + row(b"t\0\0\0\1\xe9", b"n", b"n"))
    with pytest.raises(CaptureError, match="SHD_SYN_112: table users: .* not UTF-8") as caught:
        decoder.decode(message)
    assert "e9" not in str(caught.value)


WHOLE = [
    *(message for message, *_ in CHANGES),
    *(BEGIN, COMMIT, TRUNCATE, relation("id", "name", "bio")),
]


@given(message=st.sampled_from(WHOLE), data=st.data())
def test_a_message_cut_anywhere_is_an_error_and_never_a_wrong_value(
    message: bytes, data: st.DataObject
) -> None:
    decoder = Decoder()
    decoder.decode(relation("id", "name", "bio"))
    cut = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(CaptureError):
        decoder.decode(message[:cut])


values = st.one_of(st.none(), st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))


@given(st.lists(values, min_size=1, max_size=8))
def test_every_text_comes_out_as_it_went_in(given_values: list[str | None]) -> None:
    names = [f"c{number}" for number in range(len(given_values))]
    decoder = Decoder()
    decoder.decode(relation(*names))
    encoded = [b"n" if value is None else text(value) for value in given_values]
    decoded = decoder.decode(change(b"I", b"N" + row(*encoded)))
    assert isinstance(decoded, RowChange)
    assert decoded.data == dict(zip(names, given_values, strict=True))


ODD_TEXTS = st.one_of(
    st.sampled_from(["", "t", "n", "u", "t\x01\x01", "nut", "tt", "ab" * 40_000, "\u06c0", '\x1f"\\']),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=300),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    kinds=st.lists(st.one_of(ODD_TEXTS.map(text), st.sampled_from([b"n", b"u"])), max_size=20),
    oid=st.sampled_from([OID, 0x74000000, 0x00740000, 0x00007400, 0x6E75DBDC]),
    damage=st.one_of(st.none(), st.tuples(st.integers(0), st.binary(min_size=1, max_size=3))),
    data=st.data(),
)
def test_a_row_that_is_decoded_at_once_is_the_row_that_is_read_value_by_value(
    kinds: list[bytes], oid: int, damage: tuple[int, bytes] | None, data: st.DataObject
) -> None:
    message = change(b"I", b"N" + row(*kinds), oid=oid)
    if damage is not None:
        at = 6 + damage[0] % (len(message) - 6)
        message = message[:at] + damage[1] + message[at + data.draw(st.integers(0, 3)) :]
    decoder = Decoder()
    described = decoder.decode(relation(*(f"c{number}" for number in range(len(kinds))), oid=oid))
    assert isinstance(described, Relation)
    try:
        expected, _ = pgoutput._read_row(message, 6, described)
    except (struct.error, IndexError, ValueError):
        expected = None

    if expected is None:
        with pytest.raises(CaptureError):
            decoder.decode(message)
        return
    decoded = decoder.decode(message)
    assert isinstance(decoded, RowChange)
    assert decoded.data == expected


def test_a_row_of_short_texts_is_decoded_at_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgoutput, "_read_row", None)  # what reads value by value
    for kept in (text("long"), b"n", b"u"):
        for kind in (b"I", b"U"):
            decoder.decode(change(kind, b"N" + row(text("1"), text("x" * 60_000), kept)))
