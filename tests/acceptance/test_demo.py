"""`make demo` as a person meets it: it shows equality, goes on at a terminal, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard

ROOT = Path(__file__).resolve().parents[2]
StartDemo = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of which every process of a demo bears the name, and where PostgreSQL's account may go."""
    with tempfile.TemporaryDirectory(prefix="syncdata-demo-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def start_demo(place: Path) -> Iterator[StartDemo]:
    """`start_demo()` runs it into a pipe, `start_demo(terminal)` on that end of a pseudo terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "DATA_SYNC_CONFIG"}
    settings = {"TMPDIR": str(place), "PYTHONUNBUFFERED": "1", "DJANGO_COLORS": "nocolor"}
    with ExitStack() as started:

        def start(terminal: int | None = None) -> subprocess.Popen[bytes]:
            demo = subprocess.Popen(
                [sys.executable, "manage.py", "syncdata_demo", "--folder", str(place / "demo")],
                cwd=ROOT,
                env={**environment, **settings},
                stdin=terminal or subprocess.DEVNULL,
                stdout=terminal or subprocess.PIPE,
                stderr=terminal or subprocess.STDOUT,
            )
            started.enter_context(demo)
            started.callback(demo.kill)
            return demo

        yield start


def processes_in(place: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if bytes(place) in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def assert_no_process_stays(place: Path) -> None:
    deadline = time.monotonic() + 20
    while (left := processes_in(place)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def read_until(text: str, output: int, *, timeout_s: float = 120) -> str:
    deadline = time.monotonic() + timeout_s
    read = b""
    while text.encode() not in read:
        chunk = os.read(output, 4096)
        assert chunk and time.monotonic() < deadline, read.decode()
        read += chunk
    return read.decode()


def assert_nothing_stays(place: Path) -> None:
    assert_no_process_stays(place)
    assert [path.name for path in place.iterdir()] == ["demo"]


def assert_rows_are_equal(output: str) -> None:
    """Every whitelisted table was compared, and has rows; the others have none here. The carts may have been
    emptied at that moment."""
    report = output.rpartition("Are the local rows those of production?")[2]
    for table in ("customers", "products", "orders", "order_lines", "carts"):
        compared = re.search(rf"{table} +([\d,]+) rows in production = ([\d,]+) rows in local", report)
        assert compared, output
        assert compared[1] == compared[2] and (compared[1] != "0" or table == "carts")
    assert re.search(r"page_views +[1-9][\d,]* rows in production, 0 rows in local: not whitelisted", report)
    assert re.search(
        r"payment_tokens +[1-9][\d,]* rows in production, 0 rows in local: not published", report
    )


def assert_archive_has_what_was_published(archive: Path) -> None:
    """With all that production does in it, and nothing of the private table."""
    unzip = zstandard.ZstdDecompressor().decompressobj
    changes = b"".join(unzip().decompress(path.read_bytes()) for path in archive.glob("changes_*.json.zst"))
    for op in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
        assert f'"op":"{op}"'.encode() in changes
    assert b'"table":"page_views"' in changes
    assert b"tok_" not in changes
    assert len(list(archive.glob("snapshot_*/public.*.json.gz"))) == 6


def test_the_demo_ends_by_itself_with_equal_rows(place: Path, start_demo: StartDemo) -> None:
    demo = start_demo()
    output = demo.communicate(timeout=180)[0].decode()
    assert demo.returncode == 0, output
    assert_rows_are_equal(output)
    assert re.search(r"snapshot_\d+_\d+/public.customers.json.gz: 2,\d+ rows", output)
    assert len(re.findall(r"transactions +\d+ change files   local is [\d.]+ s behind\n", output)) >= 3
    assert output.count("status: active") == 2, "of the archiver, and of the local daemon"
    assert "http://127.0.0.1:8000/admin/  user demo  password" in output
    assert_nothing_stays(place)
    assert_archive_has_what_was_published(place / "demo" / "backup-host")


def test_on_a_terminal_the_demo_goes_on_until_ctrl_c(place: Path, start_demo: StartDemo) -> None:
    ours, theirs = pty.openpty()
    demo = start_demo(theirs)
    os.close(theirs)
    read_until("Ctrl-C ends it", ours)
    read_until(" s behind", ours)
    demo.send_signal(signal.SIGINT)
    output = read_until("not published", ours)
    assert_rows_are_equal(output)
    assert demo.wait(60) == 0
    os.close(ours)
    assert_nothing_stays(place)


@pytest.mark.parametrize("moment", ["older than any change file", "archive_changes --snapshot", " s behind"])
def test_ctrl_c_ends_the_demo_in_order_at_any_moment(place: Path, start_demo: StartDemo, moment: str) -> None:
    demo = start_demo()
    assert demo.stdout is not None
    read_until(moment, demo.stdout.fileno())
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGINT)
    rest = demo.communicate(timeout=60)[0].decode()
    assert demo.returncode == 130
    assert "Traceback" not in rest
    assert_nothing_stays(place)


@pytest.mark.parametrize("killer", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_demo_leaves_no_process(place: Path, start_demo: StartDemo, killer: signal.Signals) -> None:
    demo = start_demo()
    assert demo.stdout is not None
    read_until("older than any change file", demo.stdout.fileno())
    demo.send_signal(killer)
    assert_no_process_stays(place)


def test_the_demo_deletes_no_folder_that_it_did_not_make(place: Path, start_demo: StartDemo) -> None:
    (place / "demo").mkdir()
    (place / "demo" / "thesis.tex").touch()
    demo = start_demo()
    output = demo.communicate(timeout=60)[0].decode()
    assert demo.returncode == 1
    assert "is not empty, and not of an earlier demo" in output
    assert (place / "demo" / "thesis.tex").exists()
