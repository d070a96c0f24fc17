"""Holds the checks in an archive to the rows that its own records have left at their places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from syncdata.changes.names import TableName
from syncdata.changes.verification import Check, parse_check

# Options of an archiver that verifies round after round, and whose files can be read as they are.
ALL_THE_TIME: dict[str, Any] = {
    "compression": "none",
    "rotate_s": 0.2,
    "verify_rows_per_s": 1_000_000,
    "verify_days": 0,
}

Row = dict[str, str | None]
# What the texts of a key's column are compared by.
Order = Callable[[str], Any]


def lines_of(directory: Path) -> Iterator[bytes]:
    """Yield the lines of all change files in order; they are not compressed."""
    for path in sorted(directory.glob("changes_*.json")):
        yield from path.read_bytes().splitlines(keepends=True)


def checks_of(directory: Path) -> list[Check]:
    return [check for line in lines_of(directory) if (check := parse_check(line)) is not None]


def wrong_checks(
    directory: Path,
    *,
    keys: Mapping[str, tuple[str, ...]],
    orders: Mapping[str, Order] | None = None,
    filters: Mapping[str, Callable[[Row], bool]] | None = None,
) -> tuple[list[Check], int]:
    """Return the checks that the records before them do not fulfil, and how many there are in all.

    *keys*: the columns that tell the rows of each table apart; *orders*: what the values of a column are
    compared by, numbers unless it is here. All rows must have come with records.
    """
    tables: dict[str, dict[tuple[str | None, ...], Row]] = {name: {} for name in keys}
    wrong, count = [], 0
    for line in lines_of(directory):
        check = parse_check(line)
        if check is not None:
            count += 1
            rows = [row for row in tables[str(check.name)].values() if _is_within(check, row, orders or {})]
            if check.rows != len(rows) or (check.hash is not None and check.hash != hash_of(check, rows)):
                wrong.append(check)
        elif not line.startswith(b"#"):
            _replay(tables, keys, json.loads(line))
    return wrong, count


def hash_of(check: Check, rows: list[Row]) -> str:
    total = 0
    for row in rows:
        digest = hashlib.sha256(_as_record([row[name] for name in check.columns]).encode()).digest()
        total += int.from_bytes(digest[:8], "big", signed=True)
    return str(total)


def _as_record(values: list[str | None]) -> str:
    """Return the text of a record, as "record_out" of PostgreSQL spells it."""
    return "(" + ",".join("" if value is None else _quoted(value) for value in values) + ")"


def _quoted(value: str) -> str:
    if value and not any(c in '"\\(),' or c in " \t\n\r\v\f" for c in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '""') + '"'


def _is_within(check: Check, row: Row, orders: Mapping[str, Order]) -> bool:
    texts = tuple(row[name] or "" for name in check.key)
    if check.keys is not None:
        return texts in check.keys

    def compared(values: tuple[str, ...]) -> list[Any]:
        return [orders.get(name, float)(value) for name, value in zip(check.key, values, strict=True)]

    is_above = check.after is None or compared(texts) > compared(check.after)
    return is_above and (check.upto is None or compared(texts) <= compared(check.upto))


def _replay(
    tables: dict[str, dict[tuple[str | None, ...], Row]],
    keys: Mapping[str, tuple[str, ...]],
    record: dict[str, Any],
) -> None:
    name = str(TableName(record.get("schema", "public"), record["table"]))
    rows, key = tables[name], keys[name]
    if record["op"] == "TRUNCATE":
        rows.clear()
        return
    old = record.get("old_keys") or record["data"]
    before = rows.pop(tuple(old[column] for column in key), {})
    if record["op"] != "DELETE":
        row = before | record["data"]
        rows[tuple(row[column] for column in key)] = row
