"""Change files and snapshots as syncdata's own archiver writes them, at the LSNs that a test wants."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from syncdata.changes.filenames import snapshot_name
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn

Record = dict[str, Any]


def file_name(number: int) -> str:
    return f"changes_{stamp(number)}.json"


def stamp(number: int) -> str:
    """Return the stamp of that many seconds."""
    minutes, seconds = divmod(number, 60)
    return f"20260205_{minutes // 60:02}{minutes % 60:02}{seconds:02}"


@dataclass(frozen=True)
class Writer:
    """Writes into *archive* as one epoch of one source."""

    archive: Path
    epoch: int = 1
    system_id: str = "7000"

    def of_epoch(self, epoch: int) -> Writer:
        return replace(self, epoch=epoch)

    def changes(
        self,
        number: int,
        transactions: Sequence[tuple[int, Sequence[Record | str]]],
        *,
        seq: int | None = None,
        prev: str | int | None = -1,
        catalog: str | None = None,
        catalog_lsn: int | None = None,
    ) -> Path:
        """Write the change file of that *number*: (commit LSN, records) pairs, in commit order.

        It follows the file before, and 1 follows none, unless *prev* names another (a number or a name). A
        string among the records of a transaction is a comment line.
        """
        if prev == -1:
            prev = None if number == 1 else number - 1
        records = [
            record
            if isinstance(record, str)
            else record | {"commit_lsn": format_lsn(lsn), "lsn": format_lsn(lsn)}
            for lsn, changes in transactions
            for record in changes
        ]
        header = {"seq": number if seq is None else seq, "prev": _named(prev)} | _under(catalog, catalog_lsn)
        lsns = [lsn for lsn, changes in transactions if any(not isinstance(c, str) for c in changes)]
        path = self.archive / file_name(number)
        path.write_bytes(self._framed(header, records, lsns))
        return path

    def snapshot(
        self,
        number: int,
        table: str,
        lsn: int,
        rows: Iterable[Record],
        *,
        prev: str | int | None,
        named: str | None = None,
        records: Iterable[Record] = (),
        is_finished: bool = True,
        catalog: str | None = None,
    ) -> Path:
        """Write *table*'s file of the snapshot of that *number*: all that committed up to *lsn*.

        *named*, *records* (more of them) and *is_finished* make it a bad one.
        """
        name = TableName.parse(table)
        inserts = [{"table": name.name, "schema": name.schema, "op": "INSERT", "data": row} for row in rows]
        header = {
            "prev": _named(prev),
            "snapshot": named or f"{name.schema}.{name.name}",
            "commit_lsn": format_lsn(lsn),
        } | _under(catalog, None)
        content = self._framed(header, [*inserts, *records], [lsn])
        if not is_finished:
            content = content[: content.rindex(b"# {")]
        path = self.archive / snapshot_name(stamp(number), name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content))
        return path

    def _framed(self, header: dict[str, Any], records: Sequence[Record | str], lsns: Sequence[int]) -> bytes:
        source = {
            "syncdata": 1,
            "system_id": self.system_id,
            "timeline": 1,
            "slot": "syncdata_slot",
            "epoch": self.epoch,
        }
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        body = b"".join(line.encode() + b"\n" for line in lines)
        content = _comment(source | header) + body
        footer = {
            "end": True,
            "records": sum(not isinstance(record, str) for record in records),
            "transactions": len(lsns),
            "first_commit_lsn": format_lsn(lsns[0]) if lsns else None,
            "last_commit_lsn": format_lsn(lsns[-1]) if lsns else None,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return content + _comment(footer)


def _under(catalog: str | None, lsn: int | None) -> dict[str, str]:
    read_at = {} if lsn is None else {"catalog_lsn": format_lsn(lsn)}
    return {} if catalog is None else {"catalog": catalog} | read_at


def _named(prev: str | int | None) -> str | None:
    return file_name(prev) if isinstance(prev, int) else prev


def _comment(values: dict[str, Any]) -> bytes:
    return f"# {json.dumps(values, separators=(',', ':'))}\n".encode()
