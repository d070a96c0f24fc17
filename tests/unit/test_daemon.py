"""The pid file and the signals, with real processes: what one process claims another must see."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncdata import daemon as daemon_module
from syncdata.daemon import PID_FILE_NAME, PidFile, running_pid, stop_daemon, stop_on_signals
from syncdata.errors import PidFileError

# Holds the pid file until its first signal, then takes a moment to finish, as a batch would.
DAEMON = """
import sys, time
from pathlib import Path
from syncdata.daemon import PidFile, stop_on_signals
with stop_on_signals() as stop, PidFile(Path(sys.argv[1])):
    print("running", flush=True)
    stop.wait()
    print("stopping", flush=True)
    time.sleep(float(sys.argv[2]))
print("stopped", flush=True)
"""

StartDaemon = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / PID_FILE_NAME


@pytest.fixture
def start_daemon(path: Path) -> Iterator[StartDaemon]:
    started: list[subprocess.Popen[str]] = []

    def start(finish_s: float = 0.0) -> subprocess.Popen[str]:
        daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(path), str(finish_s)], stdout=subprocess.PIPE, text=True
        )
        started.append(daemon)
        assert read_line(daemon) == "running"
        return daemon

    yield start
    for daemon in started:
        daemon.kill()
        daemon.communicate()


def read_line(daemon: subprocess.Popen[str]) -> str:
    assert daemon.stdout is not None
    return daemon.stdout.readline().strip()


def test_the_pid_file_holds_our_pid_while_we_run_and_is_gone_afterwards(path: Path) -> None:
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert running_pid(path) == os.getpid()

    assert not path.exists()
    assert running_pid(path) is None


def test_a_second_daemon_is_refused_and_told_who_runs(path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    told = rf"^SHD_SYN_081: another daemon is already running \(pid {daemon.pid}, "
    with pytest.raises(PidFileError, match=told), PidFile(path):
        pass

    assert running_pid(path) == daemon.pid


def test_a_killed_daemons_file_does_not_stop_a_start(path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.kill()
    daemon.wait()

    assert path.read_text() == f"{daemon.pid}\n"
    assert running_pid(path) is None
    with PidFile(path):
        assert running_pid(path) == os.getpid()


def test_a_recycled_pid_is_not_taken_for_a_running_daemon(path: Path) -> None:
    path.write_text("1\n")  # runs, and is not ours

    assert running_pid(path) is None


def test_probing_does_not_keep_a_daemon_from_starting(path: Path) -> None:
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            running_pid(path)

    path.touch()
    prober = threading.Thread(target=probe)
    prober.start()
    try:
        for _ in range(50):
            with PidFile(path):
                pass
    finally:
        done.set()
        prober.join()


def test_a_locked_file_without_a_pid_is_an_error(path: Path) -> None:
    with PidFile(path):
        path.write_text("no number")
        with pytest.raises(PidFileError, match=r"^SHD_SYN_081: .* is locked, but holds no process id"):
            running_pid(path)


def test_a_daemon_whose_file_was_deleted_leaves_its_successors_alone(path: Path) -> None:
    old = PidFile(path)
    with old:
        path.unlink()
        with PidFile(path):
            old.__exit__(None, None, None)
            assert running_pid(path) == os.getpid()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(PidFileError, match=r"^SHD_SYN_081: cannot use .*missing.*directory must be writable"),
        PidFile(tmp_path / "missing" / PID_FILE_NAME),
    ):
        pass


def test_stopping_waits_until_the_daemon_is_gone(path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(finish_s=0.4)
    told: list[str] = []
    reaper = threading.Thread(target=daemon.wait)
    reaper.start()

    assert stop_daemon(path, timeout_s=10, progress=told.append) == daemon.pid
    reaper.join(5)
    assert daemon.returncode == 0
    assert told == [f"asked the daemon (pid {daemon.pid}) to stop; it commits its running batch first"]
    assert not path.exists()


def test_stopping_gives_up_after_the_timeout_and_says_so(path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(finish_s=30)
    with pytest.raises(PidFileError, match=rf"^SHD_SYN_081: .*{daemon.pid}\) is still running after 0.2 s"):
        stop_daemon(path, timeout_s=0.2)


@pytest.mark.parametrize("content", [None, "1\n"], ids=["no file", "a stale file"])
def test_stopping_without_a_daemon_is_an_error_and_signals_nobody(path: Path, content: str | None) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises(PidFileError, match=r"^SHD_SYN_081: no daemon is running"):
        stop_daemon(path, timeout_s=1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell")
def test_a_pid_of_another_host_is_not_signalled(path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with PidFile(path):
            path.write_text(f"{bystander.pid}\n")
            with pytest.raises(PidFileError, match="another host or container"):
                stop_daemon(path, timeout_s=1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_sets_the_event(signum: int) -> None:
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signum)
        assert stop.wait(5)


def test_other_signals_do_not_stop_anything() -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop.wait(0.2)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signals():
        pass

    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(path: Path, start_daemon: StartDaemon, signum: int) -> None:
    daemon = start_daemon(finish_s=60)
    daemon.send_signal(signum)
    assert read_line(daemon) == "stopping"
    started_s = time.monotonic()
    daemon.send_signal(signum)

    assert daemon.wait(10) == 128 + signum
    assert time.monotonic() - started_s < 5
    assert running_pid(path) is None


def test_the_predecessors_daemon_keeps_ours_out_while_it_runs(tmp_path: Path) -> None:
    tool = tmp_path / "syncdata"
    shutil.copy(shutil.which("sleep") or "", tool)
    path = tmp_path / PID_FILE_NAME
    with subprocess.Popen([tool, "600"]) as running:
        try:
            path.write_text(str(running.pid))
            name = Path(f"/proc/{running.pid}/comm")
            deadline = time.monotonic() + 20
            while name.read_text() != "syncdata\n":  # Popen returns a moment before
                assert time.monotonic() < deadline
            with pytest.raises(PidFileError, match="predecessor's daemon is still running"), PidFile(path):
                pass
            assert path.read_text() == str(running.pid)
        finally:
            running.kill()
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"0", b"-1", b"99999999999999999999", b"1" * 2_000_000, b"soon"]
)
def test_a_pid_file_that_holds_no_process_signals_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(daemon_module, "_LOCK_PATIENCE_S", 0.1)
    path = tmp_path / PID_FILE_NAME
    path.write_bytes(content)

    with path.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PidFileError, match="holds no process id"):
            stop_daemon(path, timeout_s=1)
        with pytest.raises(PidFileError, match=r"already running \(pid unknown"), PidFile(path):
            pass


def test_a_pid_file_on_a_full_disk_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / PID_FILE_NAME
    path.symlink_to("/dev/full")

    with pytest.raises(PidFileError, match=re.escape(PID_FILE_NAME)), PidFile(path):
        pass
