"""The daemon as an operating system process: its pid file, its signals, and how to stop it.

Knows processes, files and signals; knows nothing of the database or of what the daemon does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from syncdata.errors import PidFileError

logger = logging.getLogger(__name__)

PID_FILE_NAME = ".syncdata.pid"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LOCK_PATIENCE_S = 0.5  # a probe holds the lock for microseconds; a daemon holds it for days
_POLL_S = 0.05
_LONGEST_PID = 32
_SHOW_CURSOR = b"\x1b[?25h\n"  # a progress bar hides the cursor, and _exit leaves it no time to clean up


class PidFile:
    """The daemon's claim on its state directory: a file with its pid, locked while it runs.

    The lock is the claim, the number is only for people and for ``stop_daemon``. The kernel drops the
    lock with the process, so a file left by a crash claims nothing, whoever has its pid now.
    """

    def __init__(self, path: Path, *, role: str = "daemon") -> None:
        """*role*: what messages call a process that holds it."""
        self.path = path
        self._role = role
        self._fd: int | None = None

    def __enter__(self) -> Self:
        """Lock the file and write our pid. Raises PidFileError when another daemon holds it."""
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while (fd := self._try_lock()) is None:
            if time.monotonic() > deadline:
                raise _already_running(self.path, self._role)
            time.sleep(_POLL_S)
        if (pid := _predecessor(self.path)) is not None:
            os.close(fd)
            raise PidFileError(
                f"the predecessor's daemon is still running (pid {pid}, {self.path})",
                hint="stop it first: syncdata stop",
            )
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk, or something else than a file
            os.close(fd)
            raise _unusable(self.path, error) from error
        self._fd = fd
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._fd is None:
            return
        try:
            if _is_open_as(self._fd, self.path):  # if not, ours was deleted, and this one is another's
                self.path.unlink(missing_ok=True)
        except OSError as error:  # without the lock it claims nothing
            logger.warning("%s is left behind: %s", self.path, error.strerror)
        os.close(self._fd)
        self._fd = None

    def _try_lock(self) -> int | None:
        """Return a descriptor that holds the lock on the file at ``path``, or None if it is taken."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        # The daemon before us may have deleted the file between our open and our lock.
        if _flock(fd, fcntl.LOCK_EX) and _is_open_as(fd, self.path):
            return fd
        os.close(fd)
        return None


def _predecessor(path: Path) -> int | None:
    """Return the pid in the file if it is that of a running Go tool, which wrote its pid and locked nothing.

    Test: test_the_predecessors_daemon_keeps_ours_out_while_it_runs.
    """
    try:
        pid = _read_pid(path)
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (ValueError, OSError):  # no pid, no such process, or a system without /proc
        return None
    return pid if name == "syncdata" else None


def _read_pid(path: Path) -> int:
    """Return the pid in the file. Raises OSError, and ValueError for what is no process: signals to 0 and
    below go to whole groups of them."""
    with path.open("rb") as file:
        pid = int(file.read(_LONGEST_PID).decode())
    if not 0 < pid < 2**31:
        raise ValueError("no process")
    return pid


def running_pid(path: Path) -> int | None:
    """Return the pid of the daemon that holds the pid file at *path*, or None if none does.

    Read-only. Asks the lock, not the process table. Raises PidFileError when the file is locked but
    holds no pid, or cannot be read.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while _is_locked(path):
        with contextlib.suppress(ValueError, OSError):
            return _read_pid(path)
        if time.monotonic() > deadline:  # longer than a starting daemon needs to write its pid
            raise PidFileError(
                f"{path} is locked, but holds no process id",
                hint="find the daemon with `pgrep -f syncdata_start` and stop it with `kill`",
            )
        time.sleep(_POLL_S)
    return None


def stop_daemon(
    path: Path,
    *,
    timeout_s: float,
    progress: Callable[[str], None] = logger.info,
    role: str = "daemon",
) -> int:
    """Send SIGTERM to the daemon that holds the pid file and wait until it is gone; return its pid.

    The daemon first commits its running batch. Raises PidFileError when none runs here, when it may
    not be signalled, or when it is still there after *timeout_s*; it then goes on stopping by itself.
    """
    pid = running_pid(path)
    if pid is None:
        raise PidFileError(
            f"no {role} is running: nothing holds {path}",
            hint="if syncdata_status says active, the daemon runs on another host or its pid file was"
            " deleted: stop it with `kill` where it runs",
        )
    _terminate(pid, path)
    progress(f"asked the {role} (pid {pid}) to stop; it commits its running batch first")
    deadline = time.monotonic() + timeout_s
    while running_pid(path) == pid:
        if time.monotonic() > deadline:
            raise PidFileError(
                f"the {role} (pid {pid}) is still running after {timeout_s:g} seconds",
                hint="it stops when its batch has committed: run syncdata_stop again (a second signal"
                " ends it at once and rolls the batch back), or wait with a longer --timeout",
            )
        time.sleep(_POLL_S)
    return pid


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    Ending at once is safe: the database rolls the running batch back. Main thread only.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # A thread at the end of a pipe, not a handler: Python runs handlers in the main thread and only
    # between bytecodes, where Event.set() can meet its own lock and where a blocked call never comes.
    watcher = threading.Thread(target=_watch, args=(reader, stop), name="syncdata-signals", daemon=True)
    watcher.start()
    handlers = {signum: signal.signal(signum, _leave_it_to_the_watcher) for signum in STOP_SIGNALS}
    wakeup_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, stop: threading.Event) -> None:
    while received := os.read(reader, 1):
        signum = received[0]
        if signum not in STOP_SIGNALS:
            continue
        if stop.is_set():
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(128 + signum)
        stop.set()
        name = signal.Signals(signum).name
        logger.info("%s: stopping when the running batch has committed; a second signal stops at once", name)


def _leave_it_to_the_watcher(signum: int, frame: FrameType | None) -> None:
    """Stand in for the default action; the signal's number is in the watcher's pipe already."""


def _terminate(pid: int, path: Path) -> None:
    if not _may_be_holder(pid, path):
        raise PidFileError(
            f"{path} is held by process {pid} of another host or container",
            hint="run syncdata_stop where the daemon runs",
        )
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return  # it ended by itself just now
    except PermissionError as error:
        raise PidFileError(
            f"the daemon (pid {pid}) belongs to another user", hint="run syncdata_stop as that user"
        ) from error


def _may_be_holder(pid: int, path: Path) -> bool:
    """Tell whether process *pid* has the pid file open, as far as this system can tell.

    A state directory on a network share or in a volume can be locked by another host or container; then the
    number belongs to an unrelated process here.
    """
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            return any(_is_same_file(entry.path, path) for entry in descriptors)
    except FileNotFoundError:
        return not Path("/proc/self/fd").exists()  # without /proc, the lock alone tells
    except PermissionError:
        return True  # another user's process: kill() will say so


def _is_same_file(descriptor: str, path: Path) -> bool:
    try:
        return os.path.samefile(descriptor, path)
    except OSError:  # closed, or a socket without a file
        return False


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        return not _flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        raise PidFileError(
            f"the pid file cannot be locked: {error.strerror}",
            hint="its directory must be on a file system with locks, such as a local disk",
        ) from error
    return True


def _is_open_as(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _already_running(path: Path, role: str) -> PidFileError:
    try:
        holder = str(_read_pid(path))
    except (ValueError, OSError):
        holder = "unknown"
    return PidFileError(
        f"another {role} is already running (pid {holder}, {path})",
        hint="stop it first with syncdata_stop",
    )


def _unusable(path: Path, error: OSError) -> PidFileError:
    return PidFileError(
        f"cannot use {path}: {error.strerror}",
        hint="the pid file lives beside the configuration file; that directory must be writable",
    )
