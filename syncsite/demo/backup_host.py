"""A backup host on loopback: an archive directory, and SFTP access for those who write and who read there.

Knows SSH keys and asyncssh; knows nothing of PostgreSQL, nor what the files are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.sftp import SFTPAttrs

WRITER = "archiver"
READER = "reader"

_WRITING = asyncssh.FXF_WRITE | asyncssh.FXF_APPEND | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC


@dataclass(frozen=True, slots=True, kw_only=True)
class SftpAccess:
    """What a client needs to reach the archive."""

    host: str
    port: int
    user: str
    archive_dir: str
    key_file: Path
    known_hosts: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupHost:
    """Whoever writes there has one account, and whoever reads has another, which may not write."""

    writer: SftpAccess
    reader: SftpAccess


@contextmanager
def serve_sftp(folder: Path, keys: Path) -> Iterator[BackupHost]:
    """Serve *folder* by SFTP on a loopback port; the clients' keys are made in *keys*."""
    keys.mkdir(mode=0o700)
    authorized = {user: _make_key(keys / user) for user in (WRITER, READER)}
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    connections: set[asyncssh.SSHServerConnection] = set()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Door(authorized, connections),
            server_host_keys=[host_key],
            sftp_factory=lambda channel: _shelf(channel, folder),
        )
    )
    known_hosts = keys / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{server.get_port()} {_public(host_key)}")
    thread = threading.Thread(target=loop.run_forever, name="sftp", daemon=True)
    thread.start()

    def access(user: str) -> SftpAccess:
        return SftpAccess(
            host="127.0.0.1",
            port=server.get_port(),
            user=user,
            archive_dir="/",
            key_file=keys / user,
            known_hosts=known_hosts,
        )

    try:
        yield BackupHost(writer=access(WRITER), reader=access(READER))
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, connections), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Door(asyncssh.SSHServer):
    """Lets each account in with its own key only, and keeps track of who is there."""

    def __init__(self, authorized: dict[str, str], connections: set[asyncssh.SSHServerConnection]) -> None:
        self._authorized = authorized
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        keys = asyncssh.import_authorized_keys(self._authorized.get(username, ""))
        self._connection.set_authorized_keys(keys)
        return True


class _ReadOnlySFTPServer(asyncssh.SFTPServer):
    """Refuses whatever would change something."""

    def open(self, path: bytes, pflags: int, attrs: SFTPAttrs) -> object:
        return self._refuse() if pflags & _WRITING else super().open(path, pflags, attrs)

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise asyncssh.SFTPPermissionDenied("this account may only read")

    open56 = _refuse
    setstat = lsetstat = fsetstat = _refuse
    remove = rename = posix_rename = link = symlink = _refuse
    mkdir = rmdir = _refuse


def _shelf(channel: asyncssh.SSHServerChannel, folder: Path) -> asyncssh.SFTPServer:
    kind = asyncssh.SFTPServer if channel.get_extra_info("username") == WRITER else _ReadOnlySFTPServer
    return kind(channel, chroot=str(folder).encode())


def _make_key(key_file: Path) -> str:
    """Make a private key that only we may read; return the public one."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(key_file))
    key_file.chmod(0o600)
    return _public(key)


async def _close(server: asyncssh.SSHAcceptor, connections: set[asyncssh.SSHServerConnection]) -> None:
    server.close()
    await server.wait_closed()
    for connection in list(connections):
        connection.abort()
        await connection.wait_closed()
    await asyncio.sleep(0)  # in its next turn the loop closes their sockets


def _public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode()
