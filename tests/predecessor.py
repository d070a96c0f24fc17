"""The predecessor's side: its tables, its state file, and change files as its script wrote them."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.world import World

DATA = Path(__file__).parent / "data"
SAMPLES = sorted((DATA / "predecessor").glob("changes_*.json"))
TABLES_OF_THE_TOOL = (DATA / "predecessor-schema.sql").read_text()
SCHEMA = (
    "CREATE TABLE users (id int PRIMARY KEY, name text)",
    "CREATE TABLE orders (id int PRIMARY KEY, total numeric, at timestamptz, j jsonb, b bytea)",
)
# How `rows_of` reads a table, so that it can be compared with what a `Run` expects.
QUERIES = {
    "users": "SELECT id, name FROM users ORDER BY id",
    "orders": "SELECT id, total::text, at AT TIME ZONE 'UTC', j::text, encode(b, 'hex')"
    " FROM orders ORDER BY id",
}
Rows = dict[int, dict[str, Any]]


def script_line(table: str, op: str, lsn: int, ts: str, **parts: dict[str, Any]) -> str:
    """Return a line as the script writes it: these keys in this order, with blanks, and ASCII alone."""
    return json.dumps({"table": table, "op": op, "lsn": _lsn(lsn), "ts": ts, **parts})


def _lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _time(moment: dt.datetime) -> str:
    """Return a time as PostgreSQL writes it, without the zeros at the end."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".") + "+00"


@dataclass
class Run:
    """A run of the script over a small shop: `lines` of ever more transactions, and the `rows` they leave.

    The same *seed* gives the same run. Some transactions share a time, some tell of nothing, and messages
    stand within transactions and between them.
    """

    seed: int = 1
    truncates: bool = True
    rows: dict[str, Rows] = field(default_factory=lambda: {"users": {}, "orders": {}})
    _lsn: int = 0x1956308
    _now: dt.datetime = dt.datetime(2026, 11, 27, 15, 15, 20, 884740)
    _next_id: int = 1

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def files(self, directory: Path, count: int, transactions: int) -> list[Path]:
        """Write *count* files of *transactions* each; the rows of each moment are in ``rows`` afterwards."""
        return [self.write(directory, transactions) for _ in range(count)]

    def write(self, directory: Path, transactions: int) -> Path:
        lines = [line for _ in range(transactions) for line in self.transaction()]
        self._now += dt.timedelta(seconds=2)
        path = directory / f"changes_{self._now:%Y%m%d_%H%M%S}.json"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def transaction(self) -> Iterator[str]:
        """Yield the lines of one transaction, from its B to its C."""
        if self._random.random() < 0.8:
            self._now += dt.timedelta(microseconds=self._random.randrange(1, 900_000))
        ts = _time(self._now)
        inner = [self._change(ts) for _ in range(self._random.choice((0, 1, 1, 2, 3, 8)))]
        if self._random.random() < 0.1:
            inner.append(script_line("", "M", self._step(), ts))
        yield script_line("", "B", self._lsn, ts)
        yield from inner
        yield script_line("", "C", self._lsn, ts)
        if self._random.random() < 0.05:
            yield script_line("", "M", self._step(), "")

    def _step(self) -> int:
        self._lsn += self._random.randrange(40, 400)
        return self._lsn

    def _change(self, ts: str) -> str:
        table = self._random.choice(("users", "orders"))
        rows, dice = self.rows[table], self._random.random()
        if dice < 0.02 and self.truncates:
            rows.clear()
            return script_line(table, "T", self._step(), ts)
        if dice < 0.45 or not rows:
            key, self._next_id = self._next_id, self._next_id + 1
            rows[key] = self._row(table, key)
            return script_line(table, "INSERT", self._step(), ts, data=rows[key])
        key = self._random.choice(sorted(rows))
        if dice < 0.6:
            del rows[key]
            return script_line(table, "DELETE", self._step(), ts, old_keys={"id": key})
        new_key = key if dice < 0.95 else self._next_id
        self._next_id += new_key != key
        del rows[key]
        rows[new_key] = self._row(table, new_key)
        return script_line(table, "UPDATE", self._step(), ts, data=rows[new_key], old_keys={"id": key})

    def _row(self, table: str, key: int) -> dict[str, Any]:
        pick = self._random.choice
        if table == "users":
            return {"id": key, "name": pick(("Ann", "Jos\u00e9", 'say "hi"', "a\\b\n", "", None))}
        return {
            "id": key,
            "total": pick((5, 12.3, -0.25, 1234567890, None)),
            "at": pick((_time(self._now), None)),
            "j": pick(('{"a": [1, 2]}', "[]", "null", None)),
            "b": pick(("00ff", "", "616263", None)),
        }


def expected(rows: Rows, table: str) -> list[tuple[Any, ...]]:
    """Return *rows* as the query of *table* in `QUERIES` gives them."""
    return [tuple(_as_queried(name, value) for name, value in rows[key].items()) for key in sorted(rows)]


def _as_queried(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "total":
        return str(value)
    return dt.datetime.fromisoformat(value).replace(tzinfo=None) if name == "at" else value


def write_state(directory: Path, last_file: str, tables: Sequence[str]) -> None:
    """Write the state file as the tool leaves it after *last_file*."""
    state = {
        "version": 1,
        "last_file": last_file,
        "last_file_time": "2026-11-27T16:15:22.123456789+01:00",
        "global_lsn": "",
        "tables": {
            table: {"last_lsn": "", "last_synced_at": "0001-01-01T00:00:00Z", "record_count": 7}
            for table in tables
        },
        "total_synced": 14,
        "last_sync_cycle": "2026-11-27T16:15:30.987654321+01:00",
    }
    (directory / ".syncdata_state.json").write_text(json.dumps(state, indent=2))


def load(world: World, rows: dict[str, Rows]) -> None:
    """Put *rows* into the local tables."""
    for table, held in rows.items():
        for row in held.values():
            values = {**row, "b": "\\x" + row["b"]} if row.get("b") is not None else row
            names, holders = ", ".join(values), ", ".join(f"%({name})s" for name in values)
            with world.connect() as connection:
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({holders})", values)
