"""The law between the two sides: whatever the archiver can write, the reader takes, or blames on its table
alone. Messages of the source go through the decoder and the writer into a file, and from there through the
reader into plans; the table beside is planned as if nothing else were there.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.apply.plan.batches import Batch, BatchFile, Limits, cut_batches
from syncdata.apply.plan.prepare import prepare
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.capture.encoder import LineWriter
from syncdata.capture.pgoutput import Begin, Commit, Decoder, RowChange, Truncate
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.changes.reader import inspect, read_records
from syncdata.changes.writer import ChangeFileWriter
from syncdata.errors import SyncError

FILE = "changes_20260205_103000.json"
BESIDE = TableName("public", "beside")
TEXT_OID = 25

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# As PostgreSQL has them: never empty. Some are words of the format itself, or look like its lines.
names = st.sampled_from(
    ["id", "table", "op", "data", "# {", "a.b", 'a"b', "a\nb", "\u2028", " "]
) | texts.filter(bool)


@dataclass(frozen=True)
class Published:
    """A table as the source describes it: its columns, those that identify a row, and its identity."""

    oid: int
    name: TableName
    columns: tuple[str, ...]
    key: frozenset[str]
    identity: bytes

    @property
    def message(self) -> bytes:
        columns = [
            bytes([column in self.key]) + column.encode() + b"\0" + struct.pack(">Ii", TEXT_OID, -1)
            for column in self.columns
        ]
        names = self.name.schema.encode() + b"\0" + self.name.name.encode() + b"\0"
        head = b"R" + struct.pack(">I", self.oid) + names + self.identity
        return head + struct.pack(">H", len(columns)) + b"".join(columns)


def row(values: list[Any]) -> bytes:
    """Return a row as the protocol has it; an ellipsis is an unchanged TOASTed value."""
    fields = []
    for value in values:
        if value is None:
            fields.append(b"n")
        elif value is ...:
            fields.append(b"u")
        else:
            text = value.encode()
            fields.append(b"t" + struct.pack(">I", len(text)) + text)
    return struct.pack(">H", len(values)) + b"".join(fields)


@st.composite
def published_tables(draw: st.DrawFn) -> list[Published]:
    found = []
    taken = {BESIDE}
    for oid in range(1, draw(st.integers(1, 3)) + 1):
        name = TableName(draw(st.just("public") | names), draw(names))
        if name in taken:
            continue
        taken.add(name)
        columns = tuple(draw(st.lists(names, unique=True, max_size=4)))
        identity = draw(st.sampled_from([b"d", b"f", b"i", b"n"]))
        # Under DEFAULT the key may be gone, generated (and so not among the columns), or never have been.
        key = (
            frozenset(columns)
            if identity == b"f"
            else frozenset(draw(st.sets(st.sampled_from(columns or ("",)))))
        )
        found.append(Published(oid, name, columns, key if columns else frozenset(), identity))
    return found


@st.composite
def messages(draw: st.DrawFn, tables: list[Published]) -> list[bytes]:
    """Return the changes of one transaction, with other descriptions of the tables in between."""
    found = [table.message for table in tables]
    for _ in range(draw(st.integers(0, 6)) if tables else 0):
        table = draw(st.sampled_from(tables))
        values = st.lists(st.none() | texts, min_size=len(table.columns), max_size=len(table.columns))
        toasted = st.lists(
            st.none() | texts | st.just(...), min_size=len(table.columns), max_size=len(table.columns)
        )
        old_kind = b"O" if table.identity == b"f" else b"K"
        oid = struct.pack(">I", table.oid)
        match draw(st.sampled_from("IUDTR")):
            case "I":
                found.append(b"I" + oid + b"N" + row(draw(values)))
            case "U":
                old = old_kind + row(draw(values)) if draw(st.booleans()) or old_kind == b"O" else b""
                found.append(b"U" + oid + old + b"N" + row(draw(toasted)))
            case "D":
                found.append(b"D" + oid + old_kind + row(draw(values)))
            case "T":
                oids = draw(
                    st.lists(st.sampled_from([table.oid for table in tables]), min_size=1, unique=True)
                )
                options = bytes([draw(st.integers(0, 3))])
                numbers = b"".join(struct.pack(">I", each) for each in oids)
                found.append(b"T" + struct.pack(">I", len(oids)) + options + numbers)
            case "R":
                found.append(table.message)
    return found


@st.composite
def local_schemas(draw: st.DrawFn, tables: list[Published]) -> dict[TableName, TableSchema]:
    """Return the tables as they are here: like production's, or not, or not there at all."""
    found = {BESIDE: _schema(BESIDE, ("id",), ("id",))}
    for table in tables:
        if draw(st.integers(0, 9)) == 0:
            continue
        columns = tuple(c for c in table.columns if draw(st.integers(0, 9)))
        extra = tuple(name for name in draw(st.lists(names, max_size=1)) if name not in table.columns)
        every = (*columns, *extra)
        key = (
            tuple(sorted(table.key & set(every))) if draw(st.booleans()) else every[: draw(st.integers(0, 2))]
        )
        generated = (
            frozenset(draw(st.sets(st.sampled_from(every), max_size=1))) if every else frozenset[str]()
        )
        found[table.name] = _schema(table.name, every, key, generated)
    return found


def _schema(
    name: TableName, columns: tuple[str, ...], key: tuple[str, ...], generated: frozenset[str] = frozenset()
) -> TableSchema:
    made = tuple(
        Column(name=column, sql_type="text", type=ColumnType(), is_generated=column in generated)
        for column in columns
    )
    return TableSchema(name=name, oid=1, columns=made, key=key)


def write(transactions: list[list[bytes]]) -> tuple[bytes, int]:
    """Return the file that the archiver writes of *transactions*, and its number of records."""
    raw, records = io.BytesIO(), 0
    writer = ChangeFileWriter(raw, Header(syncdata=1, seq=1), "none")
    decoder = Decoder()
    for number, messages in enumerate(transactions, start=1):
        begin = Begin(commit_lsn=number * 16, committed_at_us=number, xid=number)
        lines = LineWriter(begin)
        for message in messages:
            match decoder.decode(message):
                case RowChange() as change:
                    writer.write(lines.change(change, number))
                    records += 1
                case Truncate() as truncate:
                    for line in lines.truncate(truncate, number):
                        writer.write(line)
                        records += 1
                case Begin() | Commit():
                    raise AssertionError
    writer.finish(
        records=records,
        transactions=len(transactions),
        first_commit_lsn=16,
        last_commit_lsn=16 * len(transactions),
        end_lsn=16 * len(transactions) + 8,
    )
    return raw.getvalue(), records


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data(), tables=published_tables())
def test_whatever_the_archiver_can_write_is_taken_or_blamed_on_its_table_alone(
    data: st.DataObject, tables: list[Published]
) -> None:
    beside = Published(99, BESIDE, ("id",), frozenset({"id"}), b"d")
    transactions = []
    for number in range(1, data.draw(st.integers(1, 3)) + 1):
        mine = [beside.message, b"I" + struct.pack(">I", 99) + b"N" + row([str(number)])]
        transactions.append([*mine, *data.draw(messages(tables))])
    schemas = data.draw(local_schemas(tables))
    content, written = write(transactions)

    inspection = inspect(io.BytesIO(content), FILE)
    assert (inspection.error, inspection.unfinished) == (None, "")
    located = list(read_records(io.BytesIO(content), FILE))
    assert len(located) == written
    watermarks = {BESIDE: None, **{table.name: None for table in tables}}
    (segment,) = cut_batches(
        located,
        file=BatchFile(name=FILE, is_plain=False),
        watermarks=watermarks,
        limits=Limits(batch_records=1_000, batch_bytes=1 << 30),
    )
    assert segment.skipped == 0
    shares = prepare(Batch(segments=(segment,)), schemas).shares
    for table, share in shares.items():
        if isinstance(share.plan, SyncError):
            assert share.plan.table == str(table)
            assert share.plan.file == FILE and share.plan.line is not None
    plan = shares[BESIDE].plan
    assert isinstance(plan, TablePlan) and plan.counts.added == len(transactions)
