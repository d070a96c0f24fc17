"""A daemon on a hostile archive: it ends soon, in bounded memory, and says in few words what is wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from syncdata.changes.catalog import catalog_name, digest_of
from tests.framed import Writer
from tests.world import World, insert

LIMIT_MIB = 300
LIMIT_S = 60
ROOT = Path(__file__).parents[2]
FILE = "changes_20260205_103000.json"
MIB = 1 << 20
DEEP = "[" * 100_000

# As the command line does, and then its own peak on standard error.
SYNC = """
import sys
from django.core.management import execute_from_command_line
from tests.archive_once import peak_mib
try:
    execute_from_command_line(["manage.py", "syncdata_start", "--once"])
finally:
    sys.stderr.write(f"peak {peak_mib()}")
"""


def sync(world: World, tmp_path: Path, *, limit_mib: int = LIMIT_MIB) -> str:
    """Run a daemon for one cycle; return what it says, once its time and its memory have been looked at."""
    toml = tmp_path / "syncdata.toml"
    toml.write_text(world.toml)
    toml.chmod(0o600)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SYNC],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=2 * LIMIT_S,
        env={"PATH": "", "DATA_SYNC_CONFIG": str(toml), "DJANGO_SETTINGS_MODULE": "syncsite.settings"},
    )
    said, _, peak = done.stderr.rpartition("peak ")
    assert time.monotonic() - started < LIMIT_S
    assert float(peak) < limit_mib, said
    assert "Traceback" not in said
    return said


def zstd_of(pieces: list[bytes], times: int = 1) -> bytes:
    writer = zstandard.ZstdCompressor().compressobj()
    return b"".join(writer.compress(piece) for _ in range(times) for piece in pieces) + writer.flush()


def gzip_of(piece: bytes, times: int) -> bytes:
    """Return a member of eight pieces, as often as it takes: members are faster to make than their text."""
    return gzip.compress(piece * 8, compresslevel=1, mtime=0) * (times // 8)


def record(**keys: object) -> bytes:
    return json.dumps(insert("t", id=1) | keys).encode() + b"\n"


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "2 GiB of zeros, zstd": (
        f"{FILE}.zst",
        lambda: zstd_of([bytes(MIB)], 2048),
        "zst:1: the record is longer than 134,217,728 bytes",
    ),
    "2 GiB of zeros, gzip": (
        f"{FILE}.gz",
        lambda: gzip_of(bytes(MIB), 2048),
        "gz:1: the record is longer than 134,217,728 bytes",
    ),
    "zeros behind a header": (
        f"{FILE}.zst",
        lambda: zstd_of([b'# {"syncdata":1}\n', *[bytes(MIB)] * 256]),
        "is still being written: it has no footer yet",
    ),
    "a record of 200 MB": (
        f"{FILE}.zst",
        lambda: zstd_of([record(), b'{"table":"t","data":{"v":"', *[b"x" * MIB] * 200, b'"}}\n']),
        "zst:2: the record is longer than 134,217,728 bytes, the limit that max_record_bytes sets",
    ),
    "a column name of 2 MB": (
        FILE,
        lambda: record(data={"id": 1, "n" * 2_000_000: 1}),
        "the records have a column",
    ),
    "a key name of 2 MB": (
        FILE,
        lambda: record(op="DELETE", data=None, old_keys={"n" * 2_000_000: 1}),
        "lacks the key column(s) id",
    ),
    "a column name that forges a line": (
        FILE,
        lambda: record(data={"id": 1, "a\n2026-02-05 ERROR forged\0": 1}),
        r"a column 'a\n2026-02-05 ERROR forged\x00'",
    ),
    "an operation of 2 MB": (FILE, lambda: record(op="n" * 2_000_000), "not a change record"),
    "a deeply nested value": (
        FILE,
        lambda: f'{{"table":"t","op":"INSERT","data":{{"id":{DEEP}}}}}\n'.encode(),
        "json:1: not a line of JSON",
    ),
    "a deeply nested header": (FILE, lambda: f'# {{"syncdata":1,"odd":{DEEP}}}\n'.encode(), "broken header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_an_error_in_bounded_memory(kind: str, world: World, tmp_path: Path) -> None:
    name, content, expected = HOSTILE[kind]
    (world.archive / name).write_bytes(content())
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    said = sync(world, tmp_path)
    assert len(said) < 5_000
    assert "\n2026-02-05 ERROR forged" not in said
    if kind == "zeros behind a header":
        return  # It is not said on standard error.
    assert expected in said
    (kept,) = world.rows("SELECT error FROM data_sync_checkpoints")
    assert expected in kept[0]
    assert len(kept[0]) < 2_000


@pytest.mark.parametrize(
    ("comment", "mib"), [(b"# of some words, as people write them\n", 1024), (b"#\n", 128), (b"\n", 128)]
)
def test_a_gigabyte_of_comment_lines_is_skipped(
    comment: bytes, mib: int, world: World, tmp_path: Path
) -> None:
    many = comment * (MIB // len(comment))
    (world.archive / f"{FILE}.zst").write_bytes(zstd_of([record(), *[many] * mib, record(data={"id": 2})]))
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    sync(world, tmp_path)
    assert world.rows("SELECT id FROM t") == [(1,), (2,)]


def test_tables_that_nobody_wants_may_have_any_name(world: World, tmp_path: Path) -> None:
    content = record(table="n" * 2_000_000) + record(schema="s" * 2_000_000) + record()
    (world.archive / FILE).write_bytes(content)
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    assert len(sync(world, tmp_path)) < 5_000
    assert world.rows("SELECT id FROM t") == [(1,)]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ('{"version":1,"time":"x","every_s":1,"odd":' + "[" * 30_000 + "]" * 30_000 + "}", "broken head"),
        ('{"version":1,"time":"x","every_s":1,"state":"\\u0000"}', "broken head"),
        ('{"version":1,"time":"' + "x" * 2_000_000 + '","every_s":1}', "may have 65,536"),
    ],
    ids=["nested", "NUL", "long"],
)
def test_a_hostile_head_stops_nothing(head: str, words: str, world: World, tmp_path: Path) -> None:
    (world.archive / "head.json").write_text(head)
    (world.archive / FILE).write_bytes(record())
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    assert words in sync(world, tmp_path)
    assert world.rows("SELECT id FROM t") == [(1,)]


def test_a_hostile_catalog_is_an_error_with_its_file(world: World, tmp_path: Path) -> None:
    catalog = f'{{"version":1,"publication":"p","tables":[],"odd":{DEEP}}}'.encode()
    digest = digest_of(catalog)
    (world.archive / "catalog").mkdir()
    (world.archive / catalog_name(digest)).write_bytes(catalog)
    Writer(world.archive).changes(1, [(1, [insert("t", id=1)])], catalog=digest)
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    assert f"{catalog_name(digest)}: broken catalog" in sync(world, tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text", "x" * 50_000_000),
        ("text", "\n" * 50_000_000),
        ("jsonb", '["' + "x" * 50_000_000 + '"]'),
        ("bytea", "\\x" + "ab" * 25_000_000),
    ],
    ids=["text", "escapes", "jsonb", "bytea"],
)
def test_a_value_of_50_mb_takes_a_few_times_its_size(
    column: str, value: str, world: World, tmp_path: Path
) -> None:
    lines = record() + record(data={"id": 2, "v": value}) + record(data={"id": 3})
    (world.archive / f"{FILE}.zst").write_bytes(zstd_of([lines]))
    world.execute(f"CREATE TABLE t (id int PRIMARY KEY, v {column})")
    world.whitelist("t")
    sync(world, tmp_path, limit_mib=250 if column != "text" or value[0] == "x" else LIMIT_MIB)
    assert world.value("SELECT count(*) FROM t") == 3
    assert world.value("SELECT octet_length(v::text) FROM t WHERE id = 2") == len(value)
