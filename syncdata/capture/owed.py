"""The snapshots that the archiver owes its readers: of tables whose rows changed without a record.

A partition was dropped, say: no record tells, so the rows stay at every reader, and the table is suspect
there until it is rebuilt from a newer snapshot. The archiver takes that snapshot by itself where the table is
not too large; however large it is, where it was asked for (``source.privacy.snapshot``). Knows the file in
the spool that remembers what is owed; leaves copying to snapshot.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from psycopg import sql

from syncdata.capture.source import connect
from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, SpoolError

OWED_FILE_NAME = "owed.json"

# The stream's thread adds what is owed while the housekeeper's settles what it has copied.
_lock = threading.Lock()

_SIZE = """
WITH RECURSIVE part (oid) AS (
    SELECT to_regclass({table})::oid
    UNION ALL SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
)
SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint FROM part WHERE oid IS NOT NULL
"""


class Asked(msgspec.Struct, frozen=True):
    """Since when a snapshot is owed that somebody has asked for: the table's size is no matter."""

    since: int


# Since when, in nanoseconds; an older version knows only numbers.
Since = int | Asked


def owe(directory: Path, tables: Collection[TableName], *, is_asked_for: bool = False) -> None:
    """Remember durably, in the spool *directory*, that *tables* need a snapshot from now on; *is_asked_for*:
    however large they are."""
    if tables:
        with _lock:
            owed, now = _load(directory), time.time_ns()
            for name in map(str, tables):
                was_asked_for = isinstance(owed.get(name), Asked)
                owed[name] = Asked(now) if is_asked_for or was_asked_for else now
            _save(directory, owed)


def load_owed(directory: Path) -> dict[TableName, Since]:
    """Return the tables whose snapshot is owed, each with the time since when, for `settle`."""
    with _lock:
        return {TableName.parse(name): since for name, since in _load(directory).items()}


def settle(directory: Path, copied: Mapping[TableName, Since]) -> None:
    """Forget what is owed of the tables in *copied*, unless they have changed since the time there."""
    with _lock:
        owed = _load(directory)
        left = {name: since for name, since in owed.items() if copied.get(TableName.parse(name)) != since}
        if left != owed:
            _save(directory, left)


def sizes_of(params: Mapping[str, Any], tables: Sequence[TableName]) -> dict[TableName, int]:
    """Return the bytes of each of *tables*, with all partitions. Raises SourceConnectionError."""
    with connect(params) as connection:
        connection.execute("SET lock_timeout = '5s'")
        sizes = {}
        for table in tables:
            name = sql.Identifier(table.schema, table.name).as_string(connection)
            row = connection.execute(sql.SQL(_SIZE).format(table=sql.Literal(name))).fetchone()
            assert row is not None
            sizes[table] = row[0]
        return sizes


def _load(directory: Path) -> dict[str, Since]:
    path = directory / OWED_FILE_NAME
    try:
        with translated(path):
            owed = read_document(path.read_bytes(), dict[str, Since])
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    except ValueError:
        return {}
    # A name that is none cannot be owed: nobody could ever take that snapshot.
    return {name: since for name, since in owed.items() if _is_name(name)}


def _is_name(name: str) -> bool:
    try:
        TableName.parse(name)
    except SchemaError:
        return False
    return True


def _save(directory: Path, owed: Mapping[str, Since]) -> None:
    replace_in_spool(directory / OWED_FILE_NAME, msgspec.json.encode(owed) + b"\n")
