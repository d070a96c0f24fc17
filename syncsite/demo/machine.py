"""One machine of the demo: its configuration file, and syncdata's commands as its operator types them.

Knows processes and environments; knows nothing of what the commands do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncsite.demo.postgres import dies_with_parent

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
STOP_TIMEOUT_S = 20
LOG_TAIL_CHARS = 2_000

# An operator's own configuration must neither steer the demo nor be touched by it.
FOREIGN = (
    "ARCHIVE_",
    "PG",
    "SOURCE_PG_",
    "DATA_SYNC_",
    "METRIC_FREQ",
    "HTTPS",
    "SECRET_KEY",
    "ALLOWED_HOSTS",
)


class DemoError(Exception):
    """Something of the demo does not work; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A command that runs in the background, and where its output goes."""

    command: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise DemoError if it has ended. Status 0 is no error: somebody has stopped it."""
        if self.process.poll():
            tail = self.log.read_text(errors="replace")[-LOG_TAIL_CHARS:]
            raise DemoError(f"{self.command} ended by itself (status {self.process.returncode}):\n{tail}")

    def stop(self) -> None:
        """Stop it as an operator would, and wait. Raises DemoError unless it ends well."""
        _stop(self.process)
        self.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Has a folder of its own: in it are the configuration, the logs, and what syncdata keeps beside them."""

    name: str
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def configuration(self) -> Path:
        return self.folder / f"{self.name}.toml"

    def configure(self, text: str) -> None:
        self.folder.mkdir()
        self.configuration.touch(mode=0o600)
        self.configuration.write_text(text)

    def manage(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        """Run one management command to its end, its output where ours goes. Raises DemoError."""
        sys.stdout.flush()
        with self._spawn(arguments, variables or {}, stdout=None) as process:
            if process.wait() != 0:
                raise DemoError(f"manage.py {' '.join(arguments)} failed (exit status {process.returncode})")

    @contextmanager
    def background(self, *arguments: str) -> Iterator[Daemon]:
        """Keep one management command running inside the block, its output in a log file of its name."""
        log = self.folder / f"{arguments[0]}.log"
        with log.open("ab") as output, self._spawn(arguments, {}, stdout=output) as process:
            yield Daemon(command=arguments[0], process=process, log=log)

    @contextmanager
    def _spawn(
        self, arguments: tuple[str, ...], variables: Mapping[str, str], *, stdout: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [*dies_with_parent("TERM"), sys.executable, str(MANAGE), *arguments],
            env={**self._environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop the others in order
        )
        try:
            yield process
        finally:
            _stop(process)

    def _environment(self) -> dict[str, str]:
        # Empty counts as unset, and keeps a .env file from setting it.
        foreign = {name: "" for name in os.environ if name.startswith(FOREIGN)}
        return {**os.environ, **foreign, **self.variables, "DATA_SYNC_CONFIG": str(self.configuration)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
