"""Changes that go together have the lines that they have one by one. For the bytes see `test_pgoutput`."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.capture.encoder import LineWriter
from syncdata.capture.pgoutput import Begin, Decoder, Relation, RowChange
from syncdata.capture.replication import opened
from syncdata.capture.runs import RunForms, encode_run
from syncdata.errors import CaptureError
from tests.unit.test_pgoutput import ODD_TEXTS, change, relation, row, text

RECORDED = Path(__file__).parents[1] / "data" / "pgoutput_lines.jsonl"
LINES = LineWriter(Begin(commit_lsn=0x1_0000_0020, committed_at_us=0, xid=77))
# By oid: the columns of a table, and how many of them are its key. Oids look like what rows are made of.
TABLES = {
    16384: (("id", "name", "bio"), 1),
    0x74000000: (("b", "a"), 2),
    0x6E75DBDC: (tuple(f"c{number}" for number in range(0x74)), 1),
    7: (("id", 'a "name"', "from"), 1),
    8: (("id", "note"), 0),
}

values = st.one_of(ODD_TEXTS.map(text), st.sampled_from([b"n", b"u"]))


def sent(message: bytes, lsn: int = 5) -> bytes:
    """Return *message* as the connection has it."""
    return b"w" + struct.pack(">QQQ", lsn, lsn, 0) + message


def described() -> tuple[Decoder, RunForms]:
    decoder, forms = Decoder(), RunForms()
    for oid, (columns, key) in TABLES.items():
        table = decoder.decode(relation(*columns, key=key, oid=oid))
        assert isinstance(table, Relation)
        forms.describe(table)
    return decoder, forms


def one_by_one(decoder: Decoder, messages: list[bytes]) -> bytes | None:
    """Return the lines of *messages*; None where one of them is refused."""
    lines = []
    try:
        for message in map(opened, messages):
            decoded = decoder.decode(message.message)
            assert isinstance(decoded, RowChange)
            lines.append(LINES.change(decoded, message.lsn))
    except CaptureError:
        return None
    return b"".join(lines)


@st.composite
def changes(draw: st.DrawFn) -> bytes:
    oid = draw(st.sampled_from([*TABLES]))
    columns, _ = TABLES[oid]
    kinds = draw(st.one_of(st.just([text("é")] * len(columns)), st.lists(values, max_size=4)))
    kinds = (kinds * len(columns))[: len(columns)] if kinds else [b"n"] * len(columns)
    kind, which = draw(st.sampled_from([(b"I", b"N"), (b"U", b"N"), (b"D", b"K"), (b"D", b"O")]))
    message = change(kind, which + row(*kinds), oid=oid)
    if draw(st.integers(0, 19)) == 0:
        at = 6 + draw(st.integers(0, len(message) - 6))
        damage = draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"t\0\0", b"\xdc\0\3", b"\xcd"])))
        message = message[:at] + damage + message[at + draw(st.integers(0, 3)) :]
    return sent(message, draw(st.integers(0, 2**64 - 1)))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(changes(), min_size=1, max_size=6))
def test_the_lines_of_a_run_are_those_of_its_changes_one_by_one(messages: list[bytes]) -> None:
    decoder, known = described()
    forms = known.of(messages, 0)
    run = messages[: len(forms)]
    block = encode_run(run, forms, LINES.end) if run else None
    assert block is None or block == one_by_one(decoder, run)


@pytest.mark.parametrize("first", [b"I", b"U", b"D"])
def test_whole_rows_and_keys_go_together_whatever_is_in_them(first: bytes) -> None:
    decoder, known = described()
    whole = [text("1"), text('a "line"\n'), text("")]
    messages = [
        sent(change(first, (b"O" if first == b"D" else b"N") + row(*whole))),
        sent(change(b"I", b"N" + row(text("2"), b"n", text("é"))), 1 << 40),
        sent(change(b"U", b"N" + row(text("2"), b"u", b"n"))),
        sent(change(b"D", b"K" + row(text("2"), b"n", b"n"))),
        sent(change(b"D", b"K" + row(text("2"), text("3")), oid=0x74000000)),
    ]
    for number in range(1, len(messages) + 1):
        run = messages[:number]
        forms = known.of(run, 0)
        assert len(forms) == number
        assert encode_run(run, forms, LINES.end) == one_by_one(decoder, run)


def test_a_run_ends_before_what_is_no_common_change() -> None:
    _, known = described()
    insert = sent(change(b"I", b"N" + row(text("1"), b"n", b"n")))
    ends = {
        "a table that was not described": change(b"I", b"N" + row(text("1")), oid=99),
        "a long value": change(b"I", b"N" + row(text("x" * 70_000), b"n", b"n")),
        "an old row": change(b"U", b"K" + row(text("1")), b"N" + row(text("1"))),
        "a name to be escaped": change(b"I", b"N" + row(*[text("1")] * 3), oid=7),
        "a key that is none": change(b"D", b"K" + row(text("1"), b"n"), oid=8),
        "a description": relation("id"),
        "a commit": b"C" + bytes(25),
    }
    for end in ends.values():
        assert len(known.of([insert, insert, sent(end), insert], 0)) == 2
        assert len(known.of([insert, sent(end), insert], 2)) == 1


def test_a_table_described_anew_has_its_new_forms_only() -> None:
    decoder, known = described()
    again = decoder.decode(relation("id", "a\\b"))
    assert isinstance(again, Relation)
    known.describe(again)
    assert known.of([sent(change(b"I", b"N" + row(text("1"), text("2"))))], 0) == []
    again = decoder.decode(relation("id", "new"))
    assert isinstance(again, Relation)
    known.describe(again)
    run = [sent(change(b"I", b"N" + row(text("1"), text("2"))))]
    block = encode_run(run, known.of(run, 0), LINES.end)
    assert block is not None and b'"data":{"id":"1","new":"2"}' in block


@pytest.mark.parametrize(
    "odd",
    [
        row(text("1"), b"t\0\0\0\1\xe9", b"n"),  # not UTF-8
        row(text("1"), b"b\0\0\0\1x", b"n"),
        row(text("1"), text("2")),
        row(text("1"), text("2"), text("3"), text("4")),
        row(text("1"), text("2"), b"\xcd"),  # a number that would take in the next row's beginning
        row(text("1"), text("2"), text("3"))[:-1],
        row(text("1"), text("2"), text("3")) + b"n",
    ],
)
def test_a_row_that_is_not_as_expected_makes_no_run(odd: bytes) -> None:
    _, known = described()
    good = sent(change(b"I", b"N" + row(text("1"), text("2"), text("3"))))
    for run in ([sent(change(b"I", b"N" + odd)), good], [good, sent(change(b"U", b"N" + odd))]):
        assert encode_run(run, known.of(run, 0), LINES.end) is None


def test_most_changes_of_a_recorded_stream_have_a_form() -> None:
    decoder, known = Decoder(), RunForms()
    common = rows = 0
    for entry in map(msgspec.json.decode, RECORDED.read_bytes().splitlines()):
        message = base64.b64decode(entry["message"])
        decoded = decoder.decode(message)
        if isinstance(decoded, Relation):
            known.describe(decoded)
        if isinstance(decoded, RowChange):
            run = [sent(message, entry["lsn"])]
            rows, forms = rows + 1, known.of(run, 0)
            common += len(forms)
            assert not forms or encode_run(run, forms, LINES.end) == one_by_one(decoder, run)
    assert common > rows / 2
