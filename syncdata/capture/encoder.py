"""Writes decoded changes as the lines of a change file. Knows the records' format; does no I/O.

The format is that of :mod:`syncdata.changes.record`: every value is a string, PostgreSQL's text form, or
null. A transaction's xid, commit LSN and time are the same in all its records, so they stand at the end of
the line.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache

import msgspec

from syncdata.capture.pgoutput import POSTGRES_EPOCH, Begin, Relation, RowChange, Truncate
from syncdata.changes.names import DEFAULT_SCHEMA
from syncdata.changes.position import format_lsn

_encode = msgspec.json.Encoder().encode


class LineWriter:
    """The lines of one transaction's records. ``end``: what each ends with, from behind its LSN on."""

    def __init__(self, begin: Begin) -> None:
        mark = f'"xid":{begin.xid},"commit_lsn":"{format_lsn(begin.commit_lsn)}"'
        self.end = f'",{mark},"ts":"{format_time(begin.committed_at_us)}"}}\n'.encode()
        self._lsn_high, self._lsn_start = -1, b""

    def change(self, change: RowChange, lsn: int) -> bytes:
        """Return the line of *change*, which stands at *lsn* in the WAL."""
        start, row_type = change_form(change.relation, change.op)
        new, old_keys = change.new, change.old_keys
        if new is None:
            values = _encode(old_keys)
        elif row_type and isinstance(new, list):
            values = _encode(row_type(*new))
        else:
            values = _encode(change.data)
        if old_keys is not None and new is not None:
            values = b'%b,"old_keys":%b' % (values, _encode(old_keys))
        if (high := lsn >> 32) != self._lsn_high:
            # Nearly always, the records of a transaction share it.
            self._lsn_high, self._lsn_start = high, b',"lsn":"%X/' % high
        return b"%b%b%b%X%b" % (start, values, self._lsn_start, lsn & 0xFFFFFFFF, self.end)

    def truncate(self, truncate: Truncate, lsn: int) -> list[bytes]:
        """Return a line for each table of *truncate*."""
        return [
            b"%b%b%b" % (line_start(relation, "TRUNCATE"), _lsn(lsn), self.end)
            for relation in truncate.relations
        ]


@lru_cache(maxsize=1024)
def line_start(relation: Relation, op: str) -> bytes:
    """Return a record's line up to where its values begin."""
    schema = b'"schema":%b,' % _encode(relation.schema) if relation.schema != DEFAULT_SCHEMA else b""
    return b'{"table":%b,%b"op":"%b",' % (_encode(relation.name), schema, op.encode())


@lru_cache(maxsize=1024)
def change_form(relation: Relation, op: str) -> tuple[bytes, Callable[..., msgspec.Struct] | None]:
    """Return a change's line up to its first values, and the type of *relation*'s rows, see `_row_type`."""
    member = b'"old_keys":' if op == "DELETE" else b'"data":'
    return line_start(relation, op) + member, _row_type(relation)


@lru_cache(maxsize=1024)
def _row_type(relation: Relation) -> Callable[..., msgspec.Struct] | None:
    """Return a type for *relation*'s rows, which becomes JSON faster than a dict does; None where a name
    would have to be escaped, which msgspec does not do there."""
    fields = [(f"c{number}", object) for number in range(len(relation.columns))]
    names = {field: column for (field, _), column in zip(fields, relation.columns, strict=True)}
    try:
        return msgspec.defstruct("Row", fields, rename=names, gc=False)
    except ValueError:
        return None


def format_time(since_2000_us: int) -> str:
    """Return a time of the protocol, microseconds since 2000-01-01 UTC, as a record's ``ts``."""
    seconds, microseconds = divmod(since_2000_us, 1_000_000)
    try:
        return f"{_format_second(seconds)}.{microseconds:06d}Z"
    except OverflowError:
        # The server's clock was beyond the year 9999, or before the year 1. The rows are good all the same.
        # Test: test_a_time_that_no_date_holds_becomes_the_last_or_the_first_one.
        return "9999-12-31T23:59:59.999999Z" if since_2000_us > 0 else "0001-01-01T00:00:00.000000Z"


@lru_cache(maxsize=16)  # many transactions commit within a second
def _format_second(since_2000_s: int) -> str:
    moment = POSTGRES_EPOCH + dt.timedelta(seconds=since_2000_s)
    # Not strftime: some C libraries write the year 999 with three digits, which no reader takes.
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")


def _lsn(lsn: int) -> bytes:
    return b'"lsn":"%X/%X' % (lsn >> 32, lsn & 0xFFFFFFFF)
