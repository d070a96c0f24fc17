"""Archives with one and the same stream of changes: what the archiver wrote, rewritten in every form of file.

Knows the format of change files; knows nothing of who reads them.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec

from syncdata.changes.compression import decompress
from syncdata.changes.filenames import SUFFIXES, Compression
from syncdata.changes.header import Header, parse_header
from syncdata.changes.position import parse_lsn
from syncdata.changes.writer import ChangeFileWriter

# What wal2json writes as a JSON number or boolean, beside what it quotes.
_BARE = {"int2", "int4", "int8", "numeric", "float4", "float8"}
_FIRST = dt.datetime(2026, 2, 5, tzinfo=dt.UTC)
_END_MARK = b',"xid":'


class _Mark(msgspec.Struct):
    commit_lsn: str


class _Record(msgspec.Struct, omit_defaults=True):
    table: str
    op: str
    lsn: str
    ts: str
    data: dict[str, Any] | None = None
    old_keys: dict[str, Any] | None = None


class Stream:
    """The transactions in the change files of the directory *archive*, which the archiver wrote."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._files = sorted(archive.glob("changes_*"))
        self.records = self.transactions = 0
        self.last_commit_lsn = 0
        for lsn, lines in self:
            self.records += len(lines)
            self.transactions += 1
            self.last_commit_lsn = lsn

    def __iter__(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield each transaction's commit LSN and lines."""
        lsn, lines, mark = 0, list[bytes](), b""
        for line in self._lines():
            end = line[line.rindex(_END_MARK) :]
            if end != mark and lines:
                yield lsn, lines
                lines = []
            if end != mark:
                mark, lsn = end, parse_lsn(msgspec.json.decode(b"{" + end[1:], type=_Mark).commit_lsn)
            lines.append(line)
        if lines:
            yield lsn, lines

    def header(self) -> Header:
        with self._files[0].open("rb") as raw:
            header = parse_header(decompress(raw, self._files[0].name).readline(), self._files[0].name)
        assert header is not None
        return header

    def _lines(self) -> Iterator[bytes]:
        for path in self._files:
            with path.open("rb") as raw:
                yield from (line for line in decompress(raw, path.name) if not line.startswith(b"#"))

    def write_plain(self, directory: Path, bare: Mapping[str, Mapping[str, str]], *, files: int = 1) -> None:
        """Write files as wal2json's records make them: *bare* has the type of each table's columns."""
        for name, transactions in zip(_names(), self._cut(files), strict=False):
            with (directory / f"{name}.json").open("wb") as file:
                for _, lines in transactions:
                    file.writelines(_plain(line, bare) for line in lines)

    def write_headed(self, directory: Path, *, files: int = 1, compression: Compression = "none") -> None:
        """Write files as the archiver does, a chain of them."""
        shutil.copytree(self._archive / "catalog", directory / "catalog", dirs_exist_ok=True)
        self._write_chain(directory, self._cut(files), compression)

    def write_one_record_each(self, directory: Path, archive: Path, files: int) -> list[Path]:
        """Write *files* files into *directory*, of the first record of a transaction each; return them in
        order. They belong into *archive*."""
        shutil.copytree(self._archive / "catalog", archive / "catalog", dirs_exist_ok=True)
        self._write_chain(directory, ([(lsn, lines[:1])] for lsn, lines in islice(self, files)), "none")
        return sorted(directory.iterdir())

    def _write_chain(
        self,
        directory: Path,
        files: Iterable[Iterable[tuple[int, list[bytes]]]],
        compression: Compression,
    ) -> None:
        header, previous = self.header(), None
        for seq, name, transactions in zip(count(1), _names(), files, strict=False):
            with (directory / f"{name}{SUFFIXES[compression]}").open("wb") as raw:
                changed = msgspec.structs.replace(header, seq=seq, prev=previous)
                _write_headed(ChangeFileWriter(raw, changed, compression), transactions)
            previous = f"{name}.json"

    def _cut(self, files: int) -> Iterator[Iterable[tuple[int, list[bytes]]]]:
        """Yield the transactions of each file; the files have as many records, give or take a transaction."""
        size, part, done = self.records / files, list[tuple[int, list[bytes]]](), 0
        if files == 1:
            yield self
            return
        wanted = size
        for transaction in self:
            part.append(transaction)
            done += len(transaction[1])
            if done >= wanted:
                yield part
                part, wanted = [], wanted + size
        if part:
            yield part


def _write_headed(writer: ChangeFileWriter, transactions: Iterable[tuple[int, list[bytes]]]) -> None:
    lsns, records, last = 0, 0, 0
    first: int | None = None
    for last, lines in transactions:
        first = last if first is None else first
        lsns += 1
        records += len(lines)
        for line in lines:
            writer.write(line)
    writer.finish(
        records=records, transactions=lsns, first_commit_lsn=first, last_commit_lsn=last, end_lsn=last + 1
    )


def _plain(line: bytes, types: Mapping[str, Mapping[str, str]]) -> bytes:
    record = msgspec.json.decode(line, type=_Record)
    for values in (record.data, record.old_keys):
        for name, text in list((values or {}).items()):
            if values is not None and text is not None:
                values[name] = _plain_value(text, types[record.table][name])
    return msgspec.json.encode(record) + b"\n"


def _plain_value(text: str, type_: str) -> str | msgspec.Raw:
    if type_ in _BARE:
        return msgspec.Raw(text.encode())
    if type_ == "bool":
        return msgspec.Raw(b"true" if text == "t" else b"false")
    return text


def _names() -> Iterator[str]:
    return (f"changes_{_FIRST + dt.timedelta(seconds=number):%Y%m%d_%H%M%S}" for number in count())


def to_toml(keys: Mapping[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
