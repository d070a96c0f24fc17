"""Requests and answers over one SFTP channel, none of which can wait for ever, grow without end, or mislead.

Knows the packets of draft-ietf-secsh-filexfer-02; knows nothing of files. Not a subclass of paramiko's
SFTPClient: besides reading and asking that wait for ever, its parsing would have to be replaced too: it fills
up with zeros what is cut off, loops as often as a server says, and fails over text that is not UTF-8. All of
that is private, and nothing of the class would be left.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

import paramiko
from paramiko.sftp import (
    CMD_ATTRS,
    CMD_DATA,
    CMD_HANDLE,
    CMD_INIT,
    CMD_NAME,
    CMD_STATUS,
    CMD_VERSION,
    SFTP_EOF,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
    SFTP_OP_UNSUPPORTED,
    SFTP_PERMISSION_DENIED,
    int64,
)

from syncdata.errors import shortened

# OpenSSH's own limit (sftp-common.h). Text that a login's start-up files print reads as a far longer one.
MOST_PACKET_BYTES = 256 * 1024
_VERSION = 3
_ERROR_NUMBERS = {
    SFTP_NO_SUCH_FILE: errno.ENOENT,
    SFTP_PERMISSION_DENIED: errno.EACCES,
    SFTP_OP_UNSUPPORTED: errno.EOPNOTSUPP,
}


# The connection is gone, or as good as gone; any other OSError is what the server says of a path.
LOSSES = (ConnectionError, TimeoutError)


class ProtocolError(paramiko.SSHException):
    """The server sent what is no answer to what it was asked."""


class EndOfFile(ProtocolError):
    """The server's word that there is nothing more, which answers a read or a listing, and nothing else."""

    def __init__(self) -> None:
        super().__init__("the server says that there is nothing more, which is no answer here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a server tells of a file; it may leave out any of it. ``changed_at``: seconds since 1970."""

    size_bytes: int | None
    mode: int | None
    changed_at: int | None = None


# What OpenSSH sends of a file, taken at once, for a listing has many: its size, owner and group, mode, and
# when it was read and changed.
_USUAL = 1 | 2 | 4 | 8
_USUAL_ATTRIBUTES = struct.Struct(">QIIIII")
_NUMBER = struct.Struct(">I")


class Fields:
    """The parts of one packet, in their order. Raises ProtocolError where the packet has fewer."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, length: int) -> bytes:
        start, self._position = self._position, self._position + length
        if self._position > len(self._content):
            raise ProtocolError("an answer of the server is cut off")
        return self._content[start : self._position]

    def number(self) -> int:
        value: int = _NUMBER.unpack(self.take(4))[0]
        return value

    def large_number(self) -> int:
        value: int = struct.unpack(">Q", self.take(8))[0]
        return value

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return self.binary().decode("utf-8", "replace")

    def name(self) -> str:
        """A file's name; bytes that are no text stay what they are, as in `os.listdir`."""
        return self.binary().decode("utf-8", "surrogateescape")

    def attributes(self) -> Attributes:
        flags = self.number()
        if flags == _USUAL:
            usual = self.take(_USUAL_ATTRIBUTES.size)
            size_bytes, _, _, mode, _, changed_at = _USUAL_ATTRIBUTES.unpack(usual)
            return Attributes(size_bytes=size_bytes, mode=mode, changed_at=changed_at)
        size_bytes = self.large_number() if flags & 1 else None
        if flags & 2:
            self.take(8)
        mode = self.number() if flags & 4 else None
        changed_at = None
        if flags & 8:
            self.take(4)  # when it was read
            changed_at = self.number()
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.binary()
                self.binary()
        return Attributes(size_bytes=size_bytes, mode=mode, changed_at=changed_at)


class SftpSession:
    """Speaks over *channel*, whose subsystem has been started. Safe to use from one thread.

    A server that does not finish an answer within *silence_s* is lost: TimeoutError. Every other loss is a
    ConnectionError or a ProtocolError, and any other OSError is the server's refusal.
    """

    def __init__(self, channel: paramiko.Channel, silence_s: float) -> None:
        self._channel = channel
        self._silence_s = silence_s
        self._last = 0
        self._waiting: set[int] = set()
        self._abandoned: set[int] = set()
        self._arrived: dict[int, tuple[int, Fields]] = {}
        self._buffer = bytearray()

    def begin(self) -> None:
        self._send(struct.pack(">IBI", 5, CMD_INIT, _VERSION))
        kind, _ = self._packet()
        if kind != CMD_VERSION:
            raise ProtocolError("the server does not speak SFTP")

    def ask(self, kind: int, *arguments: object) -> int:
        """Send a request without waiting for its answer; return its number.

        A text is sent as UTF-8, an int as 32 bits, an `int64` as 64.
        """
        self._last += 1
        body = b"".join([struct.pack(">BI", kind, self._last), *map(_packed, arguments)])
        self._waiting.add(self._last)
        self._send(struct.pack(">I", len(body)) + body)
        return self._last

    def finish(self, request: int) -> None:
        """Wait for the answer to *request*, which carries nothing. Raises OSError for a refusal."""
        self._answer(request, CMD_STATUS)

    def data(self, request: int) -> bytes:
        """Return the bytes that answer *request*. Raises EndOfFile, and OSError for a refusal."""
        return self._answer(request, CMD_DATA).binary()

    def handle(self, request: int) -> bytes:
        return self._answer(request, CMD_HANDLE).binary()

    def attributes(self, request: int) -> Attributes:
        return self._answer(request, CMD_ATTRS).attributes()

    def names(self, request: int) -> list[tuple[str, Attributes]]:
        """Return the names in one part of a listing. Raises EndOfFile behind the last."""
        answer = self._answer(request, CMD_NAME)
        found = []
        for _ in range(answer.number()):
            name = answer.name()
            answer.binary()  # A line for people, as ls shows it.
            found.append((name, answer.attributes()))
        return found

    def abandon(self, requests: Iterable[int]) -> None:
        """Nobody will fetch the answers to *requests*: let go of them when they come."""
        for request in requests:
            if self._arrived.pop(request, None) is None and request in self._waiting:
                self._abandoned.add(request)

    @property
    def is_closed(self) -> bool:
        return bool(self._channel.closed)

    def _answer(self, request: int, expected: int) -> Fields:
        while request not in self._arrived:
            self._receive()
        kind, fields = self._arrived.pop(request)
        if kind == CMD_STATUS:
            _check_status(fields)
        if kind != expected:
            raise ProtocolError(f"the server's answer is of another kind ({kind}) than what it was asked for")
        return fields

    def _receive(self) -> None:
        kind, content = self._packet()
        fields = Fields(content)
        request = fields.number()
        if request not in self._waiting:
            raise ProtocolError("the server answered what it was not asked")
        self._waiting.remove(request)
        if request in self._abandoned:
            self._abandoned.remove(request)
        else:
            self._arrived[request] = (kind, fields)

    def _packet(self) -> tuple[int, bytes]:
        until = time.monotonic() + self._silence_s
        self._fill(4, until)
        length = int.from_bytes(self._buffer[:4], "big")
        if not 1 <= length <= MOST_PACKET_BYTES:
            raise self._garbage(length)
        self._fill(4 + length, until)
        packet = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return packet[0], packet[1:]

    def _garbage(self, length: int) -> ProtocolError:
        shown = shortened(bytes(self._buffer[:60]).decode("utf-8", "replace"), 60)
        return ProtocolError(
            f"the server sent no SFTP but {shown!r} (a packet of {length} bytes): the login's start-up files"
            " there must print nothing, see: ssh HOST true"
        )

    def _fill(self, length: int, until: float) -> None:
        while len(self._buffer) < length:
            self._set_timeout(until)
            try:
                block = self._channel.recv(MOST_PACKET_BYTES)
            except TimeoutError:
                raise TimeoutError(f"no whole answer came within {self._silence_s:g} seconds") from None
            if not block:
                raise ConnectionResetError("the server closed the connection")
            self._buffer += block

    def _send(self, packet: bytes) -> None:
        until = time.monotonic() + self._silence_s
        while packet:
            self._set_timeout(until)
            try:
                sent = self._channel.send(packet)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionResetError("the connection is closed") from error
            if not sent:
                raise ConnectionResetError("the server takes nothing more")
            packet = packet[sent:]

    def _set_timeout(self, until: float) -> None:
        remaining_s = until - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError(f"no whole answer came within {self._silence_s:g} seconds")
        self._channel.settimeout(remaining_s)


def _packed(argument: object) -> bytes:
    if isinstance(argument, int64):
        return struct.pack(">Q", argument)
    if isinstance(argument, int):
        return struct.pack(">I", argument)
    content = argument.encode("utf-8", "surrogateescape") if isinstance(argument, str) else bytes(argument)  # type: ignore[call-overload]
    return struct.pack(">I", len(content)) + content


def _check_status(fields: Fields) -> None:
    code = fields.number()
    if code == SFTP_OK:
        return
    if code == SFTP_EOF:
        raise EndOfFile
    try:
        text = shortened(fields.text()) or f"status {code}"
    except ProtocolError:
        text = f"status {code}"  # Version 3 servers send a text; older ones none.
    if code in _ERROR_NUMBERS:
        raise OSError(_ERROR_NUMBERS[code], text)
    raise OSError(text)
