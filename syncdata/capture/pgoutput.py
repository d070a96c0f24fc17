"""Decodes the messages of PostgreSQL's output plugin pgoutput. Knows the protocol's bytes; does no I/O.

Source: "Logical Replication Message Formats" of the PostgreSQL documentation, protocol version 1: the
server sends whole transactions, in the order of their commits, when they are committed.
"""

from __future__ import annotations

import datetime as dt
import struct
from dataclasses import dataclass
from typing import Literal

import msgspec

from syncdata.changes.names import TableName
from syncdata.errors import CaptureError, UnreadableChangeError

Values = dict[str, str | None]

# Times in the protocol are microseconds since then.
POSTGRES_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_UINT16 = struct.Struct(">H").unpack_from
_UINT32 = struct.Struct(">I").unpack_from
_LSN = struct.Struct(">Q").unpack_from
_TYPE = struct.Struct(">Ii").unpack_from

NULL, UNCHANGED, _TEXT = b"nut"
_OLD_KEY, _OLD_ROW, _NEW_ROW = b"KON"
_IS_KEY = 1

# See `_read_last_row`. A text of less than 64 KiB: its kind, and the two bytes of its length that are zero.
SHORT_TEXT, PACKED_TEXT, PACKED_ROW = b"t\0\0", b"\xdb\0\0", b"\xdc"
SHORT_BYTES = 1 << 16
_unpack_row = msgspec.msgpack.Decoder(list[str | int]).decode
# Left out of change files: types (the names of columns' types), origins, and messages of applications.
_IGNORED = frozenset(b"YOM")
# A mark: a message that is part of no transaction (0), its position, our prefix, and its length.
MARK_PREFIX = "syncdata"
_MARK_START, _MARK_LSN, _MARK_NAME, _MARK_CONTENT = b"M\0", 2, slice(10, 19), 23


class Begin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The beginning of a transaction. ``committed_at_us``: microseconds since 2000-01-01 UTC."""

    commit_lsn: int
    committed_at_us: int
    xid: int


class Commit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The end of a transaction. Once all up to here is stored, ``end_lsn`` may be confirmed to the source."""

    commit_lsn: int
    end_lsn: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relation:
    """A table as the changes that follow describe it. ``key``: the columns of its replica identity, which is
    of the kind ``identity`` (pg_class.relreplident); ``types``: each column's type and modifier.

    Compared by identity: after ALTER TABLE the source sends another description, which is another value.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    key: frozenset[str]
    oid: int = 0
    identity: str = ""
    types: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class RowChange(msgspec.Struct, frozen=True, gc=False):
    """An INSERT, UPDATE or DELETE of one row. Values are PostgreSQL's text forms. A TOASTed column that an
    UPDATE left unchanged is absent from ``data``, unless the old row has it.

    ``new`` is what ``data`` is made of: values by column, or the values of all columns in their order."""

    relation: Relation
    op: Literal["INSERT", "UPDATE", "DELETE"]
    new: Values | list[str] | None
    old_keys: Values | None

    @property
    def data(self) -> Values | None:
        if isinstance(self.new, list):
            return dict(zip(self.relation.columns, self.new, strict=True))
        return self.new


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """One TRUNCATE of one or more tables."""

    relations: tuple[Relation, ...]


class Mark(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the archiver itself has written into the WAL, at ``lsn``: it stands between two transactions."""

    lsn: int
    content: bytes


class Withheld(msgspec.Struct, frozen=True, gc=False):
    """A change of a table that a privacy policy withholds: that there was one, and nothing of it."""

    relation: Relation


Message = Begin | Commit | RowChange | Truncate | Relation | Mark | Withheld


class Decoder:
    """Decodes the messages of one replication session; knows the tables that it has described so far."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def decode(self, message: bytes) -> Message | None:
        """Return *message* decoded; None for a message that is left out of change files.

        Raises CaptureError for a message that is not of protocol version 1, and UnreadableChangeError for
        text that is not UTF-8.
        """
        kind = message[:1]
        try:
            if kind == b"I":
                relation = self._relation(message, 1)
                return RowChange(relation, "INSERT", _read_last_row(message, 6, relation), None)
            if kind == b"U":
                return self._update(message)
            return self._rare(kind, message)
        except UnicodeDecodeError as error:
            raise UnreadableChangeError(
                "a value of the change is not UTF-8 (the database's encoding does not check what it stores)",
                table=self._name(message),
            ) from error
        except (struct.error, IndexError, ValueError, KeyError) as error:
            raise CaptureError(f"a message of the kind {kind!r} is not of protocol version 1") from error

    def _rare(self, kind: bytes, message: bytes) -> Message | None:
        match kind:
            case b"D":
                relation = self._relation(message, 1)
                old_keys, _ = _read_old(message, 5, relation)
                return RowChange(relation, "DELETE", None, old_keys)
            case b"B":
                commit_lsn, committed_at_us, xid = _BEGIN.unpack_from(message, 1)
                return Begin(commit_lsn=commit_lsn, committed_at_us=committed_at_us, xid=xid)
            case b"C":
                _, commit_lsn, end_lsn, _ = _COMMIT.unpack_from(message, 1)
                return Commit(commit_lsn=commit_lsn, end_lsn=end_lsn)
            case b"R":
                (oid,) = _UINT32(message, 1)
                relation = self._relations[oid] = _read_relation(message, oid)
                return relation
            case b"T":
                (count,) = _UINT32(message, 1)
                return Truncate(
                    relations=tuple(self._relation(message, 6 + 4 * number) for number in range(count))
                )
            case b"M":
                return _read_mark(message)
        if message[0] in _IGNORED:
            return None
        raise ValueError(kind)

    def _update(self, message: bytes) -> RowChange:
        relation = self._relation(message, 1)
        if message[5] == _NEW_ROW:
            return RowChange(relation, "UPDATE", _read_last_row(message, 6, relation), None)
        old_keys, position = _read_old(message, 5, relation)
        if message[position] != _NEW_ROW:
            raise ValueError("no new row")
        new = _read_last_row(message, position + 1, relation)
        if isinstance(new, dict) and not old_keys.keys() <= new.keys():
            # An unchanged TOASTed value of the replica identity is in the old row only: of any column under
            # FULL; else of a key, without which a mask that depends on it could not be worked out.
            new = {**old_keys, **new}
        return RowChange(relation, "UPDATE", new, old_keys)

    def _relation(self, message: bytes, position: int) -> Relation:
        return self._relations[_UINT32(message, position)[0]]

    def _name(self, message: bytes) -> str | None:
        relation = self._relations.get(_UINT32(message, 1)[0]) if message[:1] in b"IUD" else None
        return None if relation is None else str(TableName(relation.schema, relation.name))


def _read_last_row(message: bytes, position: int, relation: Relation) -> Values | list[str]:
    """Return the values of the row that *message* ends with, by column; perhaps the list of them where every
    one is text.

    A row is nearly an array of MessagePack, which msgspec decodes in one call: a byte for the array and two
    for its length; each text is a byte, four for its length, and UTF-8; and the kinds ``n`` and ``u`` are the
    numbers 110 and 117 there. Only the bytes for the array and for a text differ. A text holds no NUL, so
    `SHORT_TEXT` is nothing but the beginning of one. Were it anywhere else, 0xDB and NUL would stand in its
    place, which is not UTF-8, and no text would be taken for another. Whatever does not come out even is read
    value by value. Law: test_a_row_that_is_decoded_at_once_is_the_row_that_is_read_value_by_value.
    """
    if len(message) < SHORT_BYTES:
        packed = message[position:].replace(SHORT_TEXT, PACKED_TEXT)
        try:
            row = _unpack_row(PACKED_ROW + packed)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _read_row(message, position, relation)[0]
        texts = message.count(SHORT_TEXT, position)
        if texts == len(row) == len(relation.columns):
            return row  # type: ignore[return-value]
        if texts + row.count(NULL) + row.count(UNCHANGED) == len(row) == len(relation.columns):
            return _by_column(row, relation)
    return _read_row(message, position, relation)[0]


def _by_column(row: list[str | int], relation: Relation) -> Values:
    return {
        column: value if isinstance(value, str) else None
        for column, value in zip(relation.columns, row, strict=True)
        if value != UNCHANGED
    }


def _read_row(message: bytes, position: int, relation: Relation) -> tuple[Values, int]:
    """Return the values of a row by column, without unchanged TOASTed ones, and the position after it."""
    columns = relation.columns
    (count,) = _UINT16(message, position)
    if count != len(columns):
        raise ValueError("a row of another table")
    position += 2
    values: Values = {}
    for column in columns:
        kind = message[position]
        position += 1
        if kind == _TEXT:
            start = position + 4
            position = start + _UINT32(message, position)[0]
            values[column] = message[start:position].decode()
        elif kind == NULL:
            values[column] = None
        elif kind != UNCHANGED:
            raise ValueError("a value in binary")
    if position > len(message):
        raise ValueError("a row that is cut short")
    return values, position


def _read_old(message: bytes, position: int, relation: Relation) -> tuple[Values, int]:
    """Return the old values that a row is located by, and the position after them."""
    kind = message[position]
    values, position = _read_row(message, position + 1, relation)
    if kind == _OLD_KEY:
        # The message has all other columns, too, but NULL in place of their values.
        values = {column: value for column, value in values.items() if column in relation.key}
    elif kind != _OLD_ROW:
        raise ValueError("no old row")
    return values, position


def _read_relation(message: bytes, oid: int) -> Relation:
    schema, position = _read_name(message, 5)
    name, position = _read_name(message, position)
    identity = message[position : position + 1].decode()
    (count,) = _UINT16(message, position + 1)
    position += 3
    types: list[tuple[int, int]] = []
    columns: list[str] = []
    key: set[str] = set()
    for _ in range(count):
        flags = message[position]
        column, position = _read_name(message, position + 1)
        types.append(_TYPE(message, position))
        position += 8
        columns.append(column)
        if flags & _IS_KEY:
            key.add(column)
    if position > len(message):
        raise ValueError("a table that is cut short")
    # An empty schema is how the protocol spells pg_catalog.
    return Relation(
        schema=schema or "pg_catalog",
        name=name,
        columns=tuple(columns),
        key=frozenset(key),
        oid=oid,
        identity=identity,
        types=tuple(types),
    )


def _read_mark(message: bytes) -> Mark | None:
    """Return the mark; None for the message of another application, whatever is in it."""
    if message[:2] != _MARK_START or message[_MARK_NAME] != MARK_PREFIX.encode() + b"\0":
        return None
    return Mark(lsn=_LSN(message, _MARK_LSN)[0], content=message[_MARK_CONTENT:])


def _read_name(message: bytes, position: int) -> tuple[str, int]:
    end = message.index(b"\0", position)
    return message[position:end].decode(), end + 1
