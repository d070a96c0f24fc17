from __future__ import annotations

import contextlib
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from syncdata.conf import load_config
from syncdata.daemon import PID_FILE_NAME, stop_daemon
from syncdata.management.base import SyncCommand


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")


class Command(SyncCommand):
    help = """\
Stop the daemon: ask it to end after its running batch, wait until it is gone, and say so.

Finds the daemon through the pid file beside the configuration, so it works for the daemon of this
host and this configuration. The exit status is 1 when none is running or when it is still there
after the timeout."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=60.0,
            metavar="S",
            help="Seconds to wait for the running batch (default: %(default)g).",
        )

    def handle(self, *, timeout: float, **options: Any) -> None:
        pid_file = load_config().state_dir / PID_FILE_NAME
        pid = stop_daemon(pid_file, timeout_s=timeout, progress=self.stdout.write)
        self.stdout.write(f"stopped (pid {pid})")
