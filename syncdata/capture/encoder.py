"""Writes decoded changes as the lines of a change file. Knows the records' format; does no I/O.

The format is that of :mod:`syncdata.changes.record`: every value is a string, PostgreSQL's text form, or
null. A transaction's xid, commit LSN and time are the same in all its records, so they stand at the end of
the line.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import msgspec

from syncdata.capture.pgoutput import POSTGRES_EPOCH, Begin, Relation, RowChange, Truncate
from syncdata.changes.names import DEFAULT_SCHEMA
from syncdata.changes.position import format_lsn

_encode = msgspec.json.Encoder().encode


class LineWriter:
    """The lines of one transaction's records."""

    def __init__(self, begin: Begin) -> None:
        mark = f'"xid":{begin.xid},"commit_lsn":"{format_lsn(begin.commit_lsn)}"'
        self._end = f'",{mark},"ts":"{format_time(begin.committed_at_us)}"}}\n'.encode()

    def change(self, change: RowChange, lsn: int) -> bytes:
        """Return the line of *change*, which stands at *lsn* in the WAL."""
        start = line_start(change.relation, change.op)
        data, old_keys = change.data, change.old_keys
        if old_keys is None:
            values = b'"data":' + _encode(data)
        elif data is None:
            values = b'"old_keys":' + _encode(old_keys)
        else:
            values = b'"data":' + _encode(data) + b',"old_keys":' + _encode(old_keys)
        return b"%b%b,%b%b" % (start, values, _lsn(lsn), self._end)

    def truncate(self, truncate: Truncate, lsn: int) -> list[bytes]:
        """Return a line for each table of *truncate*."""
        return [
            b"%b%b%b" % (line_start(relation, "TRUNCATE"), _lsn(lsn), self._end)
            for relation in truncate.relations
        ]


@lru_cache(maxsize=1024)
def line_start(relation: Relation, op: str) -> bytes:
    """Return a record's line up to where its values begin."""
    schema = b'"schema":%b,' % _encode(relation.schema) if relation.schema != DEFAULT_SCHEMA else b""
    return b'{"table":%b,%b"op":"%b",' % (_encode(relation.name), schema, op.encode())


def format_time(since_2000_us: int) -> str:
    """Return a time of the protocol, microseconds since 2000-01-01 UTC, as a record's ``ts``."""
    try:
        moment = POSTGRES_EPOCH + dt.timedelta(microseconds=since_2000_us)
    except OverflowError:
        # The server's clock was beyond the year 9999, or before the year 1. The rows are good all the same.
        # Test: test_a_time_that_no_date_holds_becomes_the_last_or_the_first_one.
        return "9999-12-31T23:59:59.999999Z" if since_2000_us > 0 else "0001-01-01T00:00:00.000000Z"
    # Not strftime: some C libraries write the year 999 with three digits, which no reader takes.
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _lsn(lsn: int) -> bytes:
    return b'"lsn":"%X/%X' % (lsn >> 32, lsn & 0xFFFFFFFF)
