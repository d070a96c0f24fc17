"""A real OpenSSH server on a loopback port, with its own keys, for the tests that need one.

`sshd` is a fresh server with an empty archive directory; `ssh_agent` an agent without keys.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from syncdata.archive.sftp import SftpSettings
from syncsite.demo.postgres import free_port

CONFIGURATION = """\
ListenAddress {server.host}
Port {server.port}
{server.own_host_key_line}
PidFile none
AuthorizedKeysFile {server.authorized_keys}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
# The keys of a test lie below a directory that others may write to.
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
{server.more_configuration}
"""


@dataclass
class SshServer:
    """An sshd that lets `user` in with `key_file`; everything it owns lies in *folder*."""

    program: str
    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    process: subprocess.Popen[bytes] | None = None
    more_configuration: str = ""
    has_own_host_key: bool = True

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.archive_dir = self.folder / "archive"
        self.archive_dir.mkdir()
        self.known_hosts = self.folder / "known_hosts"
        self.authorized_keys = self.folder / "authorized_keys"
        self.key_file = make_key(self.folder / "client_key")
        self.other_key_file = make_key(self.folder / "other_client_key")
        self.host_key = make_key(self.folder / "host_key")
        self.other_host_key = make_key(self.folder / "other_host_key")
        self.authorize(self.key_file)
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {public_key(self.host_key)}\n")

    def settings(self, **changed: Any) -> SftpSettings:
        """What a correctly configured client uses, with some of it *changed*."""
        settings: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "directory": str(self.archive_dir),
            "key_file": self.key_file,
            "known_hosts": self.known_hosts,
            "ssh_config": Path(os.devnull),
        }
        return SftpSettings(**settings | changed)

    @property
    def own_host_key_line(self) -> str:
        return f"HostKey {self.host_key}" if self.has_own_host_key else ""

    def authorize(self, key_file: Path) -> None:
        with self.authorized_keys.open("a") as keys:
            keys.write(f"{public_key(key_file)}\n")

    def start(self) -> None:
        configuration = self.folder / "sshd_config"
        configuration.write_text(CONFIGURATION.format(server=self))
        with (self.folder / "sshd.log").open("ab") as log:
            command = [self.program, "-D", "-e", "-f", str(configuration)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self.process is None:
            return
        sessions = _descendants(self.process.pid)
        self.process.terminate()
        self.process.wait(timeout=10)
        self.process = None
        _signal(sessions, signal.SIGKILL)

    def cut(self) -> int:
        """Kill the processes that serve connections; new ones are accepted. Return how many."""
        return self._signal_sessions(signal.SIGKILL)

    def freeze(self) -> int:
        """Let the connections there are fall silent for good; new ones are served. Return how many."""
        return self._signal_sessions(signal.SIGSTOP)

    def _signal_sessions(self, number: signal.Signals) -> int:
        assert self.process is not None
        sessions = _descendants(self.process.pid)
        _signal(sessions, number)
        return len(sessions)

    def change_host_key(self) -> None:
        """Come back as a host that shows another key than the one in `known_hosts`."""
        self.stop()
        self.host_key, self.other_host_key = self.other_host_key, self.host_key
        self.start()

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def _wait_until_it_answers(self) -> None:
        assert self.process is not None
        until = time.monotonic() + 10
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1) as client:
                if client.recv(4) == b"SSH-":
                    return
            time.sleep(0.02)
        self.stop()
        pytest.fail(f"sshd did not start:\n{self.log}")


@dataclass(frozen=True)
class SshAgent:
    """A running ssh-agent; SSH_AUTH_SOCK names it while the fixture lives."""

    socket: Path

    def add(self, key_file: Path) -> None:
        environment = os.environ | {"SSH_AUTH_SOCK": str(self.socket)}
        subprocess.run(["ssh-add", "-q", str(key_file)], check=True, env=environment, capture_output=True)


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A running server. The SSH configuration of whoever runs the tests says nothing about it."""
    monkeypatch.setenv("ARCHIVE_SSH_CONFIG", "none")
    with running_server(tmp_path / "sshd") as server:
        yield server


@contextmanager
def running_server(
    folder: Path, more_configuration: str = "", *, own_host_key: bool = True
) -> Iterator[SshServer]:
    """A server in the new directory *folder*, as long as the block runs."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server on this machine; install it: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # An sshd of root wants it, also when it is not the system's.
    folder.mkdir()
    server = SshServer(
        program=program, folder=folder, more_configuration=more_configuration, has_own_host_key=own_host_key
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshAgent]:
    agent = SshAgent(socket=tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent.socket)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while not agent.socket.exists() and time.monotonic() < until:
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent.socket))
    yield agent
    process.terminate()
    process.wait(timeout=10)


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Make a key pair at *path* and *path*.pub."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def fingerprint(key_file: Path) -> str:
    """The SHA256 fingerprint, as ``ssh-keygen -l`` prints it."""
    command = ["ssh-keygen", "-l", "-f", f"{key_file}.pub"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def public_key(key_file: Path) -> str:
    kind, key, *_ = Path(f"{key_file}.pub").read_text().split()
    return f"{kind} {key}"


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It ended while we looked.
            # The name, in parentheses, may hold blanks: count from behind it.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
