"""Starts programs of ours fast: a process that has imported the libraries, and forks for every start.

Run by `tests.processes`. Each request on the socket is one start: JSON, and the descriptors of the program's
standard streams and of a pipe that gets its process id and later its wait status. The libraries are
imported here, and of ours the modules below Django, which read neither environment nor settings; the app, the
settings and the script are read anew by every program. The program returns from
`main` and ends as any script does: exit status, traceback, signals and atexit are the interpreter's own.

Told to be warm, it has also set Django up, with the app and the settings that its own environment leads to:
for programs that all have that environment, and are started again and again.
"""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# What costs nearly all of a start. None of it reads the environment or Django's settings when it is imported.
LIBRARIES = (
    "django.contrib.admin.views.main",
    "django.contrib.auth.hashers",
    "django.contrib.auth.management",
    "django.contrib.messages.middleware",
    "django.contrib.postgres.fields",
    "django.contrib.sessions.middleware",
    "django.contrib.staticfiles.handlers",
    "django.core.checks",
    "django.core.files.storage",
    "django.core.handlers.wsgi",
    "django.core.management.commands.migrate",
    "django.core.servers.basehttp",
    "django.db.backends.postgresql.base",
    "django.db.migrations.executor",
    "django.db.models",
    "django.forms",
    "django.template.loader",
    "django.views.generic",
    "environ",
    "msgspec",
    "paramiko",
    "psycopg",
    "rich.console",
    "rich.live",
    "rich.progress",
    "tomllib",
    "whitenoise.middleware",
    "zstandard",
)
ROOT = Path(__file__).resolve().parents[1]
BELOW_DJANGO = ("apply", "archive", "capture", "changes", "privacy", "provision", "runtime")
STREAMS = ("stdin", "stdout", "stderr")


def main() -> list[str]:
    """Serve until the tests hang up; return, in the process of a program, what that is to run."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = str(ROOT)  # until the program puts its own directory there
    for module in (*LIBRARIES, *_ours()):
        import_module(module)
    if sys.argv[2:] == ["warm"]:
        _set_up_django()
    gc.freeze()  # a collection in a program leaves the pages that it shares with us alone
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for pytest to handle
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = descriptors.pop()
    if pid := os.fork():
        _keep(pid, status, descriptors)
    os.close(status)
    signal.signal(signal.SIGINT, interrupt)
    return _become(json.loads(message), descriptors)


def _ours() -> Iterator[str]:
    """Name our modules that know no Django: to define their classes takes longer than to start it."""
    for folder in BELOW_DJANGO:
        for path in sorted((ROOT / "syncdata" / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _set_up_django() -> None:
    """Load the settings and the app, with its commands; nothing of it connects."""
    django = import_module("django")
    django.setup()
    for path in sorted((ROOT / "syncdata" / "management" / "commands").glob("[a-z]*.py")):
        import_module(f"syncdata.management.commands.{path.stem}")


def _keep(pid: int, status: int, descriptors: list[int]) -> None:
    """Tell the tests the program's process id and, when it has ended, how."""
    for descriptor in (0, 1, 2, *descriptors):  # or a pipe would stay open that the program has closed
        os.close(descriptor)
    try:
        os.write(status, b"%d\n" % pid)
        os.write(status, b"%d\n" % os.waitpid(pid, 0)[1])
    finally:
        os._exit(0)


def _become(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Take over what a new interpreter would have been given."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    for number, (name, descriptor) in enumerate(zip(STREAMS, descriptors, strict=True)):
        os.dup2(descriptor, number)
        os.close(descriptor)
        stream = _text_stream(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return list(request["arguments"])


def _text_stream(number: int) -> io.TextIOWrapper:
    binary = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115 - it lives as long as we do
    is_interactive = binary.isatty()
    return io.TextIOWrapper(
        binary,
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "strict",
        line_buffering=number == 2 or is_interactive,
        write_through="PYTHONUNBUFFERED" in os.environ,
    )


if __name__ == "__main__":
    script, *arguments = main()
    if script == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        sys.path[0] = ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [script, *arguments]
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
