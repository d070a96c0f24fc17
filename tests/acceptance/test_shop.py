"""The real capture, applied in every way we promise, ends in the rows that production had."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests import shop
from tests.sshd import SshServer
from tests.world import World

MANAGE = Path(__file__).parents[2] / "manage.py"
KILLS = 20


def prepare(world: World) -> World:
    shop.load_base(world)
    world.whitelist(*shop.TABLES)
    return world


def put_whole_file(world: World) -> None:
    (world.archive / shop.CHANGES).write_bytes(shop.read(shop.CHANGES))


def put_ten_files(world: World) -> None:
    """Cut the capture into ten files at commits, in the three ways a file may be stored."""
    lines = shop.read(shop.CHANGES).splitlines(keepends=True)
    marks = [line.rpartition(b'"ts":')[2] for line in lines]
    borders = [n for n in range(1, len(lines)) if marks[n] != marks[n - 1]]
    cuts = [0, *(borders[len(borders) * n // 10] for n in range(1, 10)), len(lines)]
    pack: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("", bytes),
        (".gz", gzip.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ]
    for number in range(10):
        ending, compress = pack[number % 3]
        content = b"".join(lines[cuts[number] : cuts[number + 1]])
        (world.archive / f"changes_20260205_10300{number}.json{ending}").write_bytes(compress(content))


def assert_as_production(world: World) -> None:
    assert shop.differing_tables(world) == []
    assert shop.audited_counts(world) == shop.COUNTS
    without_truncates = {key: n for key, n in shop.COUNTS.items() if "TRUNCATE" not in key}
    for period_type in ("FREQ", "WEEK", "MONTH"):
        assert shop.metric_counts(world, period_type) == without_truncates


def test_the_capture_becomes_the_expected_rows(any_world: World) -> None:
    prepare(any_world)
    put_whole_file(any_world)
    assert any_world.sync().errors == ()
    assert_as_production(any_world)


@pytest.mark.parametrize("batch_records", [1, 100, 50_000])
@pytest.mark.parametrize("put", [put_whole_file, put_ten_files])
def test_batches_of_any_size_and_files_of_any_cut_give_the_same_rows(
    make_world: Callable[..., World], batch_records: int, put: Callable[[World], None]
) -> None:
    world = prepare(make_world(batch_records=batch_records))
    put(world)
    assert world.sync().errors == ()
    assert_as_production(world)


def test_the_capture_arrives_over_sftp(make_world: Callable[..., World], sshd: SshServer) -> None:
    world = prepare(make_world())
    put_ten_files(world)
    for path in world.archive.iterdir():
        shutil.copy(path, sshd.archive_dir)
    settings = sshd.settings()
    world.options |= {
        "archive_backend": "sftp",
        "archive_dir": settings.directory,
        "archive_host": settings.host,
        "archive_port": settings.port,
        "archive_user": settings.user,
        "archive_key_file": settings.key_file,
        "archive_known_hosts": settings.known_hosts,
    }
    assert world.sync().errors == ()
    assert_as_production(world)


def test_an_ordinary_role_gets_the_same_rows(make_world: Callable[..., World]) -> None:
    world = prepare(make_world())
    put_whole_file(world)
    world.use_ordinary_role()
    assert world.sync().errors == ()
    assert_as_production(world)


def test_twenty_kills_at_random_moments_lose_nothing_and_apply_nothing_twice(
    make_world: Callable[..., World],
) -> None:
    world = prepare(make_world(batch_records=25))
    put_ten_files(world)
    moments = random.Random(20260205)
    killed_at_work = 0
    for _ in range(KILLS):
        killed_at_work += run_and_kill(world, after_s=moments.uniform(0, 0.3))
    assert killed_at_work >= KILLS * 3 // 4, "most kills must hit a daemon that is applying"
    process = start(world)
    assert process.wait(timeout=120) == 0
    assert_as_production(world)


def run_and_kill(world: World, *, after_s: float) -> bool:
    """Start a sync, kill it *after_s* after its first statement, and tell whether it had work left."""
    runs = world.value("SELECT count(*) FROM data_sync_runs")
    process = start(world)
    with world.connect() as connection:
        while process.poll() is None:
            row = connection.execute("SELECT count(*) FROM data_sync_runs").fetchone()
            if row and row[0] > runs:
                break
            time.sleep(0.005)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def start(world: World) -> subprocess.Popen[bytes]:
    config = world.state_dir / "syncdata.toml"
    config.write_text(world.toml)
    config.chmod(0o600)
    environment: dict[str, Any] = {**os.environ, "DATA_SYNC_CONFIG": str(config)}
    command = [sys.executable, str(MANAGE), "syncdata_start", "--once", "-v", "0"]
    return subprocess.Popen(command, env=environment)
