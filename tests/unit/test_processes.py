"""The tests' own way to start processes behaves as subprocess does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest

from tests.processes import Process, run
from tests.zygote import BELOW_DJANGO

# A locale of its own: in that of C, which it would change, Python sets LC_CTYPE for its children.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "WORD": "größer"}


def cold(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], text=True, **options)


Start = Callable[..., subprocess.Popen[str]]
both = pytest.mark.parametrize("start", [cold, Process], ids=["subprocess", "ours"])

PROGRAMS = {
    "returns": ("print('out'); print('ü', file=sys.stderr)", 0),
    "exits": ("sys.exit(3)", 3),
    "exits with a message": ("sys.exit('no')", 1),
    "raises": ("raise ValueError('no')", 1),
    "is interrupted": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(9)", -signal.SIGKILL),
    "cleans up": ("atexit.register(print, 'at the end')", 0),
    "ends at once": ("print('lost'); os._exit(4)", 4),
    "waits for its threads": ("threading.Timer(0.2, print, ['later']).start()", 0),
    "says how it was called": ("print(sys.argv, __name__, os.getcwd(), *sorted(os.environ.items()))", 0),
    "reads": ("print(sys.stdin.read()[::-1])", 0),
    "warns": ("import warnings; warnings.warn('careful')", 0),
    "has no streams but its own": ("print(len(os.listdir('/proc/self/fd')))", 0),
    "handles signals as a new process": (
        "print(*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)))",
        0,
    ),
}


@pytest.mark.parametrize(("code", "status"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_ends_and_writes_as_in_a_process_of_subprocess(
    code: str, status: int, tmp_path: Path
) -> None:
    program = f"import atexit, os, signal, sys, threading, time\n{code}"
    ours, theirs = (
        run("-c", program, "one", "two", env=ENVIRONMENT, cwd=tmp_path, answer="abcß", is_cold=is_cold)
        for is_cold in (False, True)
    )
    assert ours.returncode == theirs.returncode == status
    assert ours.stdout == theirs.stdout
    # A traceback shows more frames; its last line is the same.
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


@both
def test_a_script_is_the_main_module_with_its_own_directory_first(start: Start, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("WORD = 'hello'")
    script = tmp_path / "script.py"
    script.write_text("import __main__, neighbour, sys\nprint(neighbour.WORD, sys.argv, __main__.__file__)")
    with start([str(script), "x"], env=ENVIRONMENT, stdout=PIPE) as process:
        assert process.communicate()[0] == f"hello {[str(script), 'x']} {script}\n"


@both
def test_a_terminal_is_one(start: Start) -> None:
    terminal, end = pty.openpty()
    try:
        code = "import os, sys; print(sys.stdout.isatty(), sys.stdout.line_buffering); os._exit(0)"
        with start(["-c", code], env=ENVIRONMENT, stdin=DEVNULL, stdout=end, stderr=end) as process:
            assert process.wait(20) == 0
        assert os.read(terminal, 1000) == b"True True\r\n"
    finally:
        os.close(end)
        os.close(terminal)


@both
def test_a_process_is_seen_to_run_waited_for_and_signalled(start: Start) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with start(["-c", code], env=ENVIRONMENT, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.terminate()
        assert process.wait(20) == process.poll() == process.returncode == -signal.SIGTERM


@both
def test_a_pipe_that_the_program_closes_is_closed(start: Start) -> None:
    code = "import os, time; os.close(1); time.sleep(60)"
    with start(["-c", code], env=ENVIRONMENT, stdin=DEVNULL, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.poll() is None
        process.kill()


def test_the_app_and_its_settings_are_read_anew_by_every_program() -> None:
    code = "import sys; print(*[name for name in sys.modules if name.startswith(('sync', 'tests'))])"
    ours = run("-c", code, env=ENVIRONMENT).stdout.split()
    folders = {name.split(".")[1] for name in ours if "." in name}
    assert folders == {*BELOW_DJANGO, "errors"}
    assert {name for name in ours if "." not in name} == {"syncdata"}
    code = "from django.conf import settings; print(settings.configured)"
    assert run("-c", code, env=ENVIRONMENT).stdout == "False\n"
