"""A check: what some rows of a table are at one place of a change file; readers hold their own to it. Pure.

The archiver writes it as a comment line between two transactions, which readers that do not know it skip:

    # {"verify":{"schema":"public","table":"orders","columns":["id","total"],"key":["id"],"after":["1000"],
      "upto":["2000"],"rows":1000,"hash":"-4634596583887657794003","lsn":"0/16B3D40","round":7,"chunk":2,
      "seen":2000}}

It holds exactly there: the rows are what all transactions before the line, and none behind it, have left.

How the hash is made is part of the format: `hash_of_rows` says it in SQL, for both sides. A row's text is
that of a record of the columns under `SESSION`, its hash the first 64 bits of the text's SHA-256 as a signed
number, and the hash of many rows is the sum of theirs, so it has no order. SHA-256 is in every PostgreSQL
and means the same on every machine, also where MD5 is forbidden; the server's own hash functions promise
neither.

The way of proving by watermarks is that of DBLog (Netflix, 2020) and of Debezium's incremental snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from syncdata.changes.document import DocumentError, read_document
from syncdata.changes.names import TableName

VERIFY_PREFIX = b'# {"verify":'
# A reader takes a longer comment for any comment (reader.MAX_COMMENT_BYTES); the archiver writes none.
LONGEST_CHECK = 60_000

# The settings under which the text of a value is that of the change files on either side.
SESSION = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
}

_Name = Annotated[str, msgspec.Meta(max_length=255)]
_Key = tuple[str, ...]


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The number of rows of a table in some bounds, and their hash; both as of the place where it stands.

    ``columns``: those that are hashed, in this order. Rows are those with a ``key`` above ``after`` and not
    above ``upto``, compared column by column as PostgreSQL compares rows; a bound that is None is open. Or,
    where the order of keys may differ between two servers, those with one of ``keys``. A check without
    either is of the whole table; without a ``hash`` it is of the number of rows alone. Values are
    PostgreSQL's text forms; ``hash`` is a decimal number. Rows that the publication leaves out do not count.
    ``left_out``: columns whose text means something on one server only, or whose values travel masked.

    ``lsn``: the position of the line in production's WAL: rows that come from a snapshot of a later commit
    are ahead of it. ``round`` counts the walks through the table, ``chunk`` the checks of one; one that could
    not be proved leaves a gap. ``seen``: the rows read so far in this round; ``is_last`` ends the round.
    """

    schema: _Name
    table: _Name
    columns: tuple[_Name, ...]
    rows: int
    lsn: str
    round: int
    chunk: int
    seen: int
    key: tuple[_Name, ...] = ()
    after: _Key | None = None
    upto: _Key | None = None
    keys: tuple[_Key, ...] | None = None
    hash: str | None = None
    left_out: tuple[_Name, ...] = ()
    is_last: bool = False

    @property
    def name(self) -> TableName:
        return TableName(self.schema, self.table)

    @property
    def is_of_whole_table(self) -> bool:
        return self.keys is None and self.after is None and self.upto is None

    @property
    def bounds(self) -> str:
        """The bounds in words: ``id above 1000, up to 2000``."""
        if self.keys is not None:
            return f"{len(self.keys):,} rows by their keys"
        parts = []
        if self.after is not None:
            parts.append("above " + _spelled(self.after))
        if self.upto is not None:
            parts.append("up to " + _spelled(self.upto))
        return f"{_spelled(self.key)} {', '.join(parts)}" if parts else "all rows"


class _Line(msgspec.Struct):
    verify: Check


def follows(check: Check, bounds: str) -> bool:
    """Tell whether *check* may go on where the one with those *bounds*, in words, ends."""
    return check.after is None or bounds.endswith(f"up to {_spelled(check.after)}")


def check_comment(check: Check) -> bytes:
    """Return the line for *check*."""
    return b"# %b\n" % msgspec.json.encode(_Line(check))


def parse_check(line: bytes | bytearray) -> Check | None:
    """Return the check of a comment line; None for every other comment, and for one that cannot be read."""
    if not line.startswith(VERIFY_PREFIX) or len(line) > LONGEST_CHECK:
        return None
    try:
        check = read_document(line[2:], _Line).verify
    except DocumentError:
        return None
    return check if _is_sound(check) else None


def _is_sound(check: Check) -> bool:
    width = len(check.key)
    bounds = (*(check.keys or ()), *(bound for bound in (check.after, check.upto) if bound is not None))
    has_number = check.hash is None or check.hash.removeprefix("-").isdecimal()
    return has_number and check.rows >= 0 and all(len(bound) == width > 0 for bound in bounds)


def _spelled(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def hash_of_rows(columns: Sequence[str]) -> str:
    """Return the SQL expression for the hash of the rows of a query, an aggregate; NULL for no rows.

    *columns* are SQL expressions, quoted by the caller: each column's value, cast to production's type where
    it is another one here.
    """
    text = f"convert_to(ROW({', '.join(columns)})::text, 'UTF8')"
    return f"sum(('x' || encode(substr(sha256({text}), 1, 8), 'hex'))::bit(64)::bigint)::text"
