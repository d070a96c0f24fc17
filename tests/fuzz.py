"""Feeds made-up input to everything that reads what comes from outside.

    python -m tests.fuzz --cases 5000000 --seed 1 [target …]

A case is a good sample that was damaged, at random but the same for the same seed. It may end well or in a
SyncError; anything else is a finding, and so is a case of more than a second, or a peak of more than 150 MiB.
The findings are printed with the input that shows them, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import hashlib
import io
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zstandard

from syncdata.apply.plan.batches import BatchFile, Limits, cut_batches
from syncdata.apply.plan.schema import ColumnType
from syncdata.apply.plan.types import is_held
from syncdata.apply.plan.values import to_text
from syncdata.capture import catalog_state, chain, owed
from syncdata.capture.pgoutput import Decoder
from syncdata.changes import filenames
from syncdata.changes.catalog import catalog_comment, digest_of, parse_announcement, parse_catalog
from syncdata.changes.head import parse_head
from syncdata.changes.header import parse_footer, parse_header
from syncdata.changes.names import TableName
from syncdata.changes.reader import inspect, read_with_checks
from syncdata.changes.record import parse_record
from syncdata.changes.run import by_table, pieces_of, records_in
from syncdata.changes.times import parse_time
from syncdata.changes.verification import parse_check
from syncdata.conf import config_from_toml, parse_toml, source_from_toml
from syncdata.errors import SyncError
from syncdata.predecessor.statefile import load_state
from tests.archive_once import peak_mib
from tests.unit import test_pgoutput as messages

LIMIT_S = 1.0
LIMIT_MIB = 150
_SHOWN_FINDINGS = 20

RECORDS = [
    b'{"table":"users","op":"INSERT","data":{"id":1,"name":"John","tags":["a",null],"j":{"a":[1.50,-0]}},'
    b'"lsn":"0/16B3D40","ts":"2026-02-05T10:30:00Z","xid":7,"commit_lsn":"0/16B3D50"}\n',
    b'{"table":"users","op":"UPDATE","data":{"id":"2"},"old_keys":{"id":1},"ts":"2026-02-05 10:31:00+00"}\n',
    b'{"table":"t","schema":"shop","op":"DELETE","old_keys":{"id":1e5,"b":true},"lsn":"0/16B3D60"}\n',
    b'{"table":"t","op":"T"}\n',
    b'{"table":"","op":"B","xid":"9"}\n',
    b'{"table":"","op":"C"}\n',
]
HEADERS = [
    b'# {"syncdata":1,"system_id":"7","timeline":1,"slot":"s","epoch":"e","seq":42,"prev":"changes_1.json",'
    b'"start_lsn":"0/1","created":"2026-02-05T10:30:00Z","catalog":"9f86d081884c7d65","catalog_lsn":"0/1"}\n',
    b'# {"syncdata":1,"system_id":7,"snapshot":"public.t","commit_lsn":"0/9","prev":null}\n',
]
FOOTERS = [
    b'# {"end":true,"records":3,"transactions":1,"first_commit_lsn":"0/1","last_commit_lsn":"0/2",'
    b'"end_lsn":"0/3","sha256":"' + b"0" * 64 + b'"}\n',
    b'# {"end":true,"records":0,"sha256":"x"}\n',
]
ANNOUNCEMENTS = [catalog_comment("9f86d081884c7d65"), catalog_comment("9f86d081884c7d65", "0/16B3D40")]
CHECKS = [
    b'# {"verify":{"schema":"public","table":"t","columns":["id"],"rows":2,"lsn":"0/16B3D40","round":1,'
    b'"chunk":2,"seen":9,"key":["id"],"after":["1"],"upto":["9"],"keys":[["2"]],"hash":"-46","is_last":true}}\n',
]
CATALOGS = [
    b'{"version":1,"publication":"p","tables":[{"schema":"public","name":"t","oid":1,"columns":[{"name":"id",'
    b'"number":1,"type":"numeric(10,2)[]","not_null":true}],"key":["id"],"identity_columns":["id"],'
    b'"partitions":[{"schema":"s","name":"p","oid":2,"storage":3,"filled":true}],"row_filter":"a > 1"}]}\n',
]
HEADS = [
    b'{"version":1,"time":"2026-02-05T10:30:00Z","every_s":60.0,"confirmed_lsn":"0/1","newest_file":"c.json",'
    b'"catalog":"9f86d081884c7d65","state":"waiting","error_code":"SHD_SYN_101","timeline":1}\n'
]
NAMES = [
    b"changes_20260205_103000.json.gz",
    b"snapshot_20260205_103000/public.users.json.gz",
    b"snapshot_20260205_103000/a%2Eb.%25c.json.gz",
    b"catalog/9f86d081884c7d65.json",
    b'"odd.schema"."a""b"',
    b"2026-02-05T10:30:00+00:00",
    b"numeric(10,2)[]",
]
TOMLS = [
    b'archive_backend = "local"\narchive_dir = "/a"\npg_database = "d"\npg_port = 5432\n[source]\n'
    b'pg_user = "u"\npg_database = "d"\ntables = ["a", "b.c"]\nslot_name = "s"\n',
    b'archive_host = "h"\narchive_user = "u"\narchive_dir = "d"\npg_database = "d"\njobs = [1, {a = 2}]\n',
]
STATES = [
    b'{"version":1,"last_file":"changes_20260205_103000.json","last_file_time":"2026-02-05T10:30:00Z",'
    b'"global_lsn":"0/1","tables":{"users":{"last_lsn":"0/1","last_synced_at":"2026-02-05T10:30:00Z",'
    b'"record_count":5}},"total_synced":7,"last_sync_cycle":null}'
]
CHAINS = [
    b'{"system_id":"7","timeline":1,"history":{"1":"0/5"},"slot":"s","epoch":"e","seq":5,"last_file":"c.json",'
    b'"last_commit_lsn":"0/1","last_end_lsn":"0/2","confirmed_lsn":"0/2","confirmed_at":"x"}'
]
OWED = [b'{"users":1700000000000,"shop.orders":5}']
CATALOG_STATES = [
    b'{"catalog":{"version":1,"publication":"p","tables":[]},"announced":"9f86d081884c7d65","lsn":"0/1"}'
]
RELATION = messages.relation("id", "name", "bio")
MESSAGES = [
    RELATION,
    messages.INSERT,
    messages.KEPT,
    messages.MOVED,
    messages.FULL,
    messages.DELETE,
    messages.DELETE_FULL,
    messages.BEGIN,
    messages.COMMIT,
    messages.TRUNCATE,
]

# What stands for trouble, in the formats that are read here.
TOKENS = [
    *(bytes([byte]) for byte in b'"\\{}[],:#\n\r\t 0-/.%\0\x01\x7f\xff\xfe\xc0'),
    *(b"null", b"true", b"-0", b"1e999999999", b"1E-99999", b"0.1", b"NaN", b"FFFFFFFF/FFFFFFFF", b"0/0"),
    *(b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"\\q", b"\xed\xa0\x80", b"\xef\xbb\xbf", "😀".encode()),
    *(b"1" * 400, b"9" * 5_000, b"-9223372036854775809", b"18446744073709551616", b"4294967296"),
    *(b"[" * 50, b"[" * 20_000, b'{"a":' * 5_000, b"((((", b"x" * 300, b"../", b"/etc/passwd", b"%00"),
    *(b'"table":', b'"op":', b'"data":', b'"old_keys":', b'"commit_lsn":', b'"catalog":', b'"syncdata":2'),
    *(b"9999-12-31T23:59:59-14:00", b"0001-01-01", b"\n# \n", b"[source]\n", b"'''", b"\x80\0\0\0"),
]

TYPES = [
    ColumnType(),
    ColumnType(kind="json"),
    ColumnType(kind="bytea"),
    ColumnType(kind="array", element=ColumnType()),
    ColumnType(kind="array", element=ColumnType(kind="composite", fields=(("a", ColumnType()),))),
    ColumnType(kind="composite", fields=(("a", ColumnType()), ("b", ColumnType(kind="json")))),
]


def damage(rng: random.Random, sample: bytes, samples: list[bytes]) -> bytes:
    """Return *sample* with one to four faults."""
    content = bytearray(sample)
    for _ in range(int(rng.random() * 4) + 1):
        size = len(content)
        at, what = int(rng.random() * (size + 1)), rng.random()
        if what < 0.4:
            content[at:at] = TOKENS[int(rng.random() * len(TOKENS))]
        elif what < 0.55 and at < size:
            content[at] = int(rng.random() * 256)
        elif what < 0.7:
            del content[at : at + int(rng.random() * 20)]
        elif what < 0.8:
            content[at : at + 5] = TOKENS[int(rng.random() * len(TOKENS))]
        elif what < 0.9:
            other = samples[int(rng.random() * len(samples))]
            content[at:] = other[int(rng.random() * len(other)) :]
        elif what < 0.95:
            content[at:at] = content[at : at + 30]
        elif what < 0.999:
            del content[at:]
        else:
            content[at:at] = content[at : at + 10] * 2_000
    return bytes(content)


@dataclass(frozen=True)
class Target:
    """``read`` reads a damaged sample; its cases are made *weight* times as often as others."""

    samples: list[bytes]
    read: Callable[[bytes], object]
    weight: int = 10


def read_record(content: bytes) -> None:
    record = parse_record(content)
    parse_time(record.ts)
    for values in (record.data, record.old_keys):
        for value in (values or {}).values():
            for column_type in TYPES:
                with suppress(SyncError):
                    to_text(value, column_type, is_plain_file=True)


def read_catalog(content: bytes) -> None:
    catalog = parse_catalog(content, f"catalog/{digest_of(content)}.json")
    for table in catalog.tables:
        for column in table.columns:
            is_held(column.type, "numeric(5)")


def read_name(content: bytes) -> None:
    name = content.decode(errors="surrogateescape")
    filenames.is_left_out(name)
    filenames.is_wanted(name, "changes_2")
    filenames.file_time(name)
    filenames.stamp_of(name)
    filenames.parse_snapshot_name(name)
    parse_time(name)
    is_held(name[:1_000], "numeric(5)")
    with suppress(ValueError):  # as it says
        filenames.check_name(name)
    for read in (TableName.parse, lambda text: filenames.next_name(dt.datetime.now(dt.UTC), text)):
        with suppress(SyncError):
            read(name)


def read_toml(content: bytes) -> None:
    path = Path("/nowhere/syncdata.toml")
    values = parse_toml(content, path)
    for read in (config_from_toml, source_from_toml):
        with suppress(SyncError):
            read(values, {}, path)


def read_message(content: bytes) -> None:
    decoder = Decoder()
    decoder.decode(RELATION)
    decoder.decode(content)
    for message in (messages.INSERT, messages.MOVED):
        with suppress(SyncError):
            decoder.decode(message)


def read_file(content: bytes) -> None:
    """Read *content* as the text of a change file: plain, with a header, or compressed and damaged again."""
    body = HEADERS[0] + content
    footer = b'# {"end":true,"records":1,"sha256":"%b"}\n' % hashlib.sha256(body).hexdigest().encode()
    kind = len(content) % 5
    name = ("f.json", "f.json", "f.json.gz", "f.json.zst", "f.json")[kind]
    text = content if kind in (0, 4) else body + footer
    if kind == 2:
        text = gzip.compress(text, compresslevel=1, mtime=0)
    elif kind == 3:
        text = zstandard.ZstdCompressor(level=1).compress(text)
    if len(text) % 3 == 0 and kind in (2, 3):
        at = int.from_bytes(hashlib.sha256(text).digest()[:4]) % len(text)
        text = text[:at] + bytes([text[at] ^ (1 << at % 8)]) + text[at + 1 :]
    stream = io.BytesIO(text)
    inspection = inspect(stream, name, max_record_bytes=50_000)
    if inspection.error is not None:
        raise inspection.error
    if inspection.unfinished:
        return
    # Lines of which one is ignored are no run.
    ignored = {2, 3} if len(text) % 2 else set[int]()
    pieces = read_with_checks(stream, name, ignored=ignored, max_record_bytes=50_000)
    limits = Limits(batch_records=2, batch_bytes=10_000, max_record_bytes=50_000)
    file = BatchFile(name=name, is_plain=inspection.header is None)
    watermarks = {TableName("public", "t"): 5, TableName("public", "users"): None}
    segments = cut_batches(
        pieces, file=file, watermarks=watermarks, limits=limits, is_wanted=lambda check: True
    )
    for segment in segments:
        parts = by_table(pieces_of(segment.records))
        read = sum(sum(1 for _ in records_in(piece)) for part in parts.values() for piece in part)
        if read != len(segment.records):
            raise AssertionError("sorted apart, they are not as many records")


def make_targets(folder: Path) -> dict[str, Target]:
    def from_file(name: str, read: Callable[[], object]) -> Callable[[bytes], None]:
        def write_and_read(content: bytes) -> None:
            (folder / name).write_bytes(content)
            read()

        return write_and_read

    files = [
        b"".join(RECORDS),
        b"# a\n\n" + RECORDS[0] + ANNOUNCEMENTS[0] + RECORDS[2],
        RECORDS[4] + RECORDS[5],
        b"".join(RECORDS[:3]),  # a run
        RECORDS[4] + RECORDS[0] * 14 + RECORDS[5],  # a run between marks
        RECORDS[0] + CHECKS[0] + RECORDS[1],
    ]
    return {
        "record": Target(RECORDS, read_record, 30),
        "header": Target(HEADERS, lambda content: parse_header(content, "f.json"), 20),
        "footer": Target(FOOTERS, parse_footer, 20),
        "announcement": Target(ANNOUNCEMENTS, parse_announcement),
        "check": Target(CHECKS, parse_check, 20),
        "catalog": Target(CATALOGS, read_catalog, 20),
        "head": Target(HEADS, parse_head, 20),
        "names": Target(NAMES, read_name),
        "toml": Target(TOMLS, read_toml, 2),
        "state": Target(STATES, from_file("state", lambda: load_state(folder / "state")), 5),
        "chain": Target(CHAINS, from_file(chain.CHAIN_FILE_NAME, lambda: chain.load_chain(folder)), 5),
        "owed": Target(OWED, from_file(owed.OWED_FILE_NAME, lambda: owed.load_owed(folder)), 5),
        "catalog-state": Target(
            CATALOG_STATES,
            from_file(catalog_state.STATE_FILE_NAME, lambda: catalog_state.load_state(folder)),
            5,
        ),
        "pgoutput": Target(MESSAGES, read_message, 30),
        "file": Target(files, read_file),
    }


def run(targets: dict[str, Target], cases: int, seed: int) -> list[str]:
    """Run *cases* cases; return the findings, of each kind the first."""
    rng = random.Random(seed)
    names = [name for name, target in targets.items() for _ in range(target.weight)]
    findings: dict[str, str] = {}
    for _ in range(cases):
        name = names[int(rng.random() * len(names))]
        target = targets[name]
        samples = target.samples
        content = damage(rng, samples[int(rng.random() * len(samples))], samples)
        started = time.thread_time()
        try:
            target.read(content)
        except SyncError as error:
            if len(str(error)) > 2_000:
                findings.setdefault(f"{name}: a long error", repr(content[:500]))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{name}: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            findings.setdefault(kind, repr(content[:500]))
        if time.thread_time() - started > LIMIT_S:
            findings.setdefault(f"{name}: more than {LIMIT_S:.0f} s", repr(content[:500]))
    return [f"{kind}\n    {content}" for kind, content in findings.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Feed made-up input to all parsers.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder))
        chosen = {name: targets[name] for name in arguments.targets or targets}
        findings = run(chosen, arguments.cases, arguments.seed)
    if (peak := peak_mib()) > LIMIT_MIB:
        findings.append(f"a peak of {peak:.0f} MiB")
    seconds = time.monotonic() - started
    print(f"{arguments.cases:,} cases in {seconds:.0f} s, peak {peak:.0f} MiB, {len(findings)} findings")
    for finding in findings[:_SHOWN_FINDINGS]:
        print(finding)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
