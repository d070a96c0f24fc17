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
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of which every process of a demo bears the name, and where PostgreSQL's account may go."""
    with tempfile.TemporaryDirectory(prefix="syncdata-demo-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def start_demo(place: Path, *arguments: str, terminal: int | None = None) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "DATA_SYNC_CONFIG"}
    return subprocess.Popen(
        [sys.executable, "manage.py", "syncdata_demo", "--folder", str(place / "demo"), *arguments],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        stdin=terminal or subprocess.DEVNULL,
        stdout=terminal or subprocess.PIPE,
        stderr=terminal or subprocess.STDOUT,
    )


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


def test_the_demo_ends_by_itself_with_equal_rows(place: Path) -> None:
    demo = start_demo(place)
    output = demo.communicate(timeout=120)[0].decode()
    assert demo.returncode == 0, output
    for table in ("customers", "products", "orders", "order_lines", "carts"):
        assert re.search(rf"{table} +[\d,]+ rows +equal", output), output
    assert re.search(r"payment_tokens +0 rows +not whitelisted", output)
    assert "status: not-started" in output
    assert "http://127.0.0.1:8000/admin/  user demo  password" in output
    assert_no_process_stays(place)


def test_on_a_terminal_the_demo_follows_production_until_ctrl_c(place: Path) -> None:
    ours, theirs = pty.openpty()
    demo = start_demo(place, terminal=theirs)
    os.close(theirs)
    read_until("local rows in step after", ours)
    demo.send_signal(signal.SIGINT)
    read_until("payment_tokens", ours)
    assert demo.wait(60) == 0
    os.close(ours)
    assert_no_process_stays(place)


@pytest.mark.parametrize("killer", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_demo_leaves_no_process(place: Path, killer: signal.Signals) -> None:
    demo = start_demo(place)
    assert demo.stdout is not None
    with demo, demo.stdout:
        read_until("backup host that serves", demo.stdout.fileno())
        demo.send_signal(killer)
    assert_no_process_stays(place)


def test_the_demo_deletes_no_folder_that_it_did_not_make(place: Path) -> None:
    (place / "demo").mkdir()
    (place / "demo" / "thesis.tex").touch()
    demo = start_demo(place)
    output = demo.communicate(timeout=60)[0].decode()
    assert demo.returncode == 1
    assert "is not empty, and not of an earlier demo" in output
    assert (place / "demo" / "thesis.tex").exists()
