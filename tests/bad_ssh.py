"""An SSH server that misbehaves on purpose: before the login over a bare socket, after it over SFTP packets.

`BadServer` listens on a loopback port and lets everybody in. Its behaviour can change while it runs, so that
a test can go on with a server that has been mended. Its archive is one directory with one file, in memory.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko import sftp as p

from syncdata.archive.sftp import SftpSettings
from tests.sshd import make_key, public_key

NAME = "changes_20260205_103000.json"
CONTENT = b'{"a line": "of a change file"}\n' * 20_000
DIRECTORY = "archive"

# What a server does with a connection that has just been accepted; True when it is through with it.
OnConnection = Callable[[socket.socket], bool]
# What it does with the channel of the subsystem, and what it answers to a request in place of a good answer.
OnChannel = Callable[[paramiko.Channel], bool]
OnRequest = Callable[[int, int, bytes, bytes], bytes | None]


@dataclass
class Behaviour:
    """All good unless something is given. An `on_request` returns the answer to send; None for silence."""

    on_connection: OnConnection = lambda connection: False
    on_login: Callable[[], object] = lambda: None
    on_open: Callable[[], object] = lambda: None
    on_subsystem: Callable[[], bool] = lambda: True
    on_channel: OnChannel = lambda channel: False
    on_request: OnRequest = lambda kind, request, rest, good: good


def packet(kind: int, *parts: bytes | int) -> bytes:
    body = bytes([kind]) + b"".join(struct.pack(">I", x) if isinstance(x, int) else x for x in parts)
    return struct.pack(">I", len(body)) + body


def text(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def status(request: int, code: int, message: bytes = b"") -> bytes:
    return packet(p.CMD_STATUS, request, code, text(message), text(b""))


def attributes(size_bytes: int, mode: int = 0o100644) -> bytes:
    return struct.pack(">IQI", 1 | 4, size_bytes, mode)


def names(request: int, *entries: bytes) -> bytes:
    listed = b"".join(text(name) + text(name) + attributes(len(CONTENT)) for name in entries)
    return packet(p.CMD_NAME, request, len(entries), listed)


@dataclass
class BadServer:
    folder: Path
    behaviour: Behaviour = field(default_factory=Behaviour)
    connections: int = 0
    ends: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        key_file = make_key(self.folder / "bad_host_key")
        self._key = paramiko.Ed25519Key(filename=str(key_file))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._known_hosts = self.folder / "bad_known_hosts"
        self._known_hosts.write_text(f"[127.0.0.1]:{self.port} {public_key(key_file)}\n")
        self._client_key = make_key(self.folder / "bad_client_key")
        self._open: list[paramiko.Transport | socket.socket] = []
        self.files = {NAME: CONTENT}
        threading.Thread(target=self._accept, daemon=True).start()

    def settings(self) -> SftpSettings:
        return SftpSettings(
            host="127.0.0.1",
            port=self.port,
            user="somebody",
            directory=DIRECTORY,
            key_file=self._client_key,
            known_hosts=self._known_hosts,
            ssh_config=Path("/dev/null"),
        )

    def wait(self) -> bool:
        """Be silent for as long as the test runs."""
        return self.ends.wait(60)

    def stop(self) -> None:
        self.ends.set()
        with suppress(OSError):
            # Without it, accept() goes on, and takes the connections of the next server on this port.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for item in self._open:
            item.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            if self.behaviour.on_connection(connection):
                connection.close()
                return
            transport = paramiko.Transport(connection)
            self._open.append(transport)
            transport.set_log_channel("tests.bad_ssh")
            transport.add_server_key(self._key)
            transport.start_server(server=_Door(self))

    def serve_sftp(self, channel: paramiko.Channel) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException), closing(channel.get_transport()):
            if self.behaviour.on_channel(channel):
                return
            while head := _read(channel, 4):
                body = _read(channel, struct.unpack(">I", head)[0])
                kind = body[0]
                if kind == p.CMD_INIT:
                    channel.sendall(packet(p.CMD_VERSION, 3))
                    continue
                request = struct.unpack(">I", body[1:5])[0]
                good = self._answer(kind, request, body[5:])
                answer = self.behaviour.on_request(kind, request, body[5:], good)
                if answer is None:
                    self.wait()
                    return
                channel.sendall(answer)

    def _answer(self, kind: int, request: int, rest: bytes) -> bytes:
        argument = rest[4 : 4 + struct.unpack(">I", rest[:4])[0]]
        name = argument.decode().removeprefix(f"{DIRECTORY}/")
        if kind == p.CMD_OPENDIR:
            self._is_listed = False
            return packet(p.CMD_HANDLE, request, text(b"directory"))
        if kind == p.CMD_READDIR:
            if self._is_listed:
                return status(request, p.SFTP_EOF)
            self._is_listed = True
            return names(request, b".", *(name.encode() for name in self.files))
        if kind == p.CMD_OPEN:
            flags = struct.unpack(">I", rest[4 + len(argument) :][:4])[0]
            if flags & 8:
                self.files[name] = b""
            if name not in self.files:
                return status(request, p.SFTP_NO_SUCH_FILE, b"No such file")
            return packet(p.CMD_HANDLE, request, text(argument))
        if kind in (p.CMD_FSTAT, p.CMD_STAT, p.CMD_LSTAT):
            if name not in self.files:
                return status(request, p.SFTP_NO_SUCH_FILE, b"No such file")
            return packet(p.CMD_ATTRS, request, attributes(len(self.files[name])))
        if kind == p.CMD_READ:
            offset, length = struct.unpack(">QI", rest[4 + len(argument) :])
            block = self.files[name][offset : offset + length]
            return packet(p.CMD_DATA, request, text(block)) if block else status(request, p.SFTP_EOF)
        if kind == p.CMD_WRITE:
            self.files[name] += rest[4 + len(argument) + 8 + 4 :]
        elif kind == p.CMD_REMOVE:
            if self.files.pop(name, None) is None:
                return status(request, p.SFTP_NO_SUCH_FILE, b"No such file")
        elif kind == p.CMD_RENAME:
            new = rest[4 + len(argument) + 4 :].decode().removeprefix(f"{DIRECTORY}/")
            if new in self.files:
                return status(request, p.SFTP_FAILURE, b"Failure")
            self.files[new] = self.files.pop(name)
        elif kind == p.CMD_EXTENDED:
            return status(request, p.SFTP_OP_UNSUPPORTED, b"Unsupported")
        return status(request, p.SFTP_OK)


class _Door(paramiko.ServerInterface):
    def __init__(self, server: BadServer) -> None:
        self._server = server

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._server.behaviour.on_login()
        return paramiko.common.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._server.behaviour.on_open()
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if not self._server.behaviour.on_subsystem():
            return False
        threading.Thread(target=self._server.serve_sftp, args=(channel,), daemon=True).start()
        return True


@contextmanager
def bad_server(folder: Path) -> Iterator[BadServer]:
    server = BadServer(folder)
    try:
        yield server
    finally:
        server.stop()


def says(*blocks: bytes, every_s: float = 0.0, again: bool = False) -> OnConnection:
    """Send *blocks*, slowly or *again* and again, and nothing more."""

    def on_connection(connection: socket.socket) -> bool:
        sent = 0
        while sent < 200_000_000:
            for block in blocks:
                connection.sendall(block)
                sent += len(block)
                time.sleep(every_s)
            if not again:
                break
        with suppress(OSError):
            while connection.recv(65536):  # Until the other end has had enough.
                pass
        return True

    return on_connection


def _read(channel: paramiko.Channel, length: int) -> bytes:
    content = b""
    while len(content) < length:
        block = channel.recv(length - len(content))
        if not block:
            return b""
        content += block
    return content
