"""Starts processes of Python for the tests: `run` and `Process` are `subprocess.run` and `Popen`, but fast.

A start is a fork of a process that has imported Django and the other libraries (`tests.zygote`), where an
interpreter of its own takes most of a second to import them. The process is as real as any: a script run from
its first line, with its own arguments, environment, streams, signals and exit status, which
tests/unit/test_processes.py compares with those of subprocess. Every command is also started by an
interpreter of its own in some test (`is_cold`, or subprocess itself).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

Stream = IO[Any] | int | None


class Process(subprocess.Popen[str]):
    """`Process(["manage.py", "list_tables"], env=..., cwd=...)` is a Popen whose streams are text.

    The child of another process, it is waited for through the pipe that tells its wait status.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        zygote: socket.socket | None = None,
    ) -> None:
        self._zygote = zygote or _common_zygote()
        super().__init__(
            list(arguments), env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, text=True
        )

    # Popen's own three steps on POSIX: to start, to look, and to wait.

    def _execute_child(self, args: list[str], *others: Any) -> None:
        cwd, env, pipes = others[4], others[5], others[9:15]
        request = {"arguments": args, "directory": str(cwd), "environment": dict(env)}
        theirs = (pipes[0], pipes[3], pipes[5])
        status, its_status = os.pipe()
        self._status = os.fdopen(status, "rb", buffering=0)
        streams = [number if given == -1 else given for number, given in enumerate(theirs)]
        try:
            socket.send_fds(self._zygote, [json.dumps(request).encode()], [*streams, its_status])
        finally:
            os.close(its_status)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self.pid = int(self._status.readline())
        self._child_created = True

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        return self._look(0)

    def _wait(self, timeout: float | None) -> int | None:
        if self._look(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
            self._status.close()
        return self.returncode


def run(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path = ROOT,
    answer: str = "",
    timeout: float = 60,
    is_cold: bool = False,
    zygote: socket.socket | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments`, whose standard input is *answer*; return its status and what it wrote.

    A cold one is an interpreter of its own; *zygote* is one of `warm_zygote`.
    """
    if is_cold:
        return subprocess.run(
            [sys.executable, *arguments],
            env=env,
            cwd=cwd,
            input=answer,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    with Process(arguments, env=env, cwd=cwd, **streams, zygote=zygote) as process:
        try:
            output, errors = process.communicate(answer, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def warm_zygote(env: Mapping[str, str]) -> Iterator[socket.socket]:
    """A zygote that has set up Django as well, with the settings that *env* leads to; for programs with the
    same environment."""
    ours, process = _start_zygote("warm", env={**env, "DJANGO_SETTINGS_MODULE": "syncsite.settings"})
    try:
        yield ours
    finally:
        ours.close()
        process.wait(10)


@cache
def _common_zygote() -> socket.socket:
    """Start the process that forks; it ends when this one does."""
    ours, process = _start_zygote()

    def stop() -> None:
        ours.close()
        process.wait(10)

    atexit.register(stop)
    return ours


def _start_zygote(
    *options: str, env: Mapping[str, str] | None = None
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = str(Path(__file__).with_name("zygote.py"))
    command = [sys.executable, script, str(theirs.fileno()), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    return ours, process
