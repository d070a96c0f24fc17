"""Files over an open SFTP connection: listings, and transfers that never wait for a round trip.

Knows the protocol's requests (draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for ``fsync``); knows
nothing of change files, nor of what to do when the connection is lost.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import paramiko
from paramiko.sftp import (
    CMD_DATA,
    CMD_EXTENDED,
    CMD_READ,
    CMD_STATUS,
    CMD_WRITE,
    SFTP_EOF,
    SFTP_NO_SUCH_FILE,
    SFTP_OK,
    SFTP_OP_UNSUPPORTED,
    SFTP_PERMISSION_DENIED,
    int64,
)

_ERROR_NUMBERS = {
    SFTP_NO_SUCH_FILE: errno.ENOENT,
    SFTP_PERMISSION_DENIED: errno.EACCES,
    SFTP_OP_UNSUPPORTED: errno.EOPNOTSUPP,
}


def list_files(
    sftp: paramiko.SFTPClient, directory: str, is_wanted: Callable[[str], bool]
) -> list[tuple[str, int]]:
    """Return name and size in bytes of the wanted regular files of *directory*, in no order."""
    files = []
    for item in _list(sftp, directory, is_wanted):
        status = _followed(sftp, f"{directory}/{item.filename}", item)
        if status is not None:
            files.append((item.filename, status.st_size or 0))
    return files


def list_directories(
    sftp: paramiko.SFTPClient, directory: str, is_wanted: Callable[[str], bool]
) -> list[str]:
    """Return the names of the wanted entries that are directories, or may lead to one, in no order."""
    return [item.filename for item in _list(sftp, directory, is_wanted) if _may_be_directory(item.st_mode)]


def write_new_file(sftp: paramiko.SFTPClient, path: str, blocks: Iterable[bytes]) -> None:
    """Make the file *path*, which must not be there, of *blocks*, and let the server put it on its disk."""
    with sftp.open(path, "wbx") as remote:
        WriteBehind(sftp, remote.handle).write(blocks)
        _sync(sftp, remote.handle)


def sync_file(sftp: paramiko.SFTPClient, path: str) -> None:
    """Let the server put the file, and with it its name, on the disk; nothing happens where it cannot."""
    with sftp.open(path, "rb") as remote:
        _sync(sftp, remote.handle)


def replace_file(sftp: paramiko.SFTPClient, old: str, new: str) -> None:
    """Give *old* the name *new*, whether or not there is a file of that name.

    With OpenSSH's ``posix-rename`` at once; where the server lacks it, the old file goes first.
    """
    requests = _Requests(sftp, None)
    try:
        requests.finish(requests.ask(CMD_EXTENDED, "posix-rename@openssh.com", old, new))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        with suppress(FileNotFoundError):
            sftp.remove(new)
        sftp.rename(old, new)


def size_of(sftp: paramiko.SFTPClient, path: str) -> int | None:
    """Return the size in bytes; None when there is no such file."""
    try:
        return sftp.stat(path).st_size or 0
    except FileNotFoundError:
        return None


def _sync(sftp: paramiko.SFTPClient, handle: Any) -> None:
    requests = _Requests(sftp, handle)
    try:
        requests.finish(requests.ask(CMD_EXTENDED, "fsync@openssh.com", handle))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _list(
    sftp: paramiko.SFTPClient, directory: str, is_wanted: Callable[[str], bool]
) -> list[paramiko.SFTPAttributes]:
    # Names come by the hundred; asking ahead saves the round trips between the hundreds. All answers are
    # read before the next request is made, which would take those still under way for its own.
    return [item for item in sftp.listdir_iter(directory, read_aheads=200) if is_wanted(item.filename)]


def _followed(
    sftp: paramiko.SFTPClient, path: str, status: paramiko.SFTPAttributes
) -> paramiko.SFTPAttributes | None:
    """Return *status*, for a symbolic link that of its target; None when that is not a regular file."""
    mode = status.st_mode
    if mode is not None and stat.S_ISLNK(mode):
        try:
            status = sftp.stat(path)
        except FileNotFoundError:
            return None
        mode = status.st_mode
    # A server may leave the mode out; then only the name tells what the entry is.
    return status if mode is None or stat.S_ISREG(mode) else None


def _may_be_directory(mode: int | None) -> bool:
    return mode is None or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


class _Requests:
    """Requests under way for one open file, answered in any order.

    paramiko's own pipelining piles up a whole file or polls with sleeps, and loses the errors of answers
    that come out of order; this speaks to the two methods of SFTPClient that it is built on.
    """

    # Every server has to take and to answer this size (draft-ietf-secsh-filexfer-02, 3).
    BLOCK_BYTES = 32 * 1024
    REQUESTS = 128

    def __init__(self, sftp: Any, handle: Any) -> None:
        self._sftp = sftp
        self._handle = handle
        self._arrived: dict[int, tuple[int, paramiko.Message]] = {}

    def ask(self, kind: int, *arguments: object) -> int:
        request: int = self._sftp._async_request(self, kind, *arguments)
        return request

    def finish(self, request: int) -> None:
        """Wait for *request*, whose answer carries nothing."""
        kind, _ = self._answer(request)
        if kind != CMD_STATUS:
            raise paramiko.SFTPError("expected a status")

    def _answer(self, request: int) -> tuple[int, paramiko.Message]:
        """Return kind and content of the answer to *request*.

        Raises OSError when it is a refusal, EOFError at a file's end.
        """
        while request not in self._arrived:
            self._sftp._read_response()
        kind, message = self._arrived.pop(request)
        if kind == CMD_STATUS:
            _check_status(message)
        return kind, message

    def _async_response(self, kind: int, message: paramiko.Message, request: int) -> None:
        """Called by SFTPClient with each answer."""
        self._arrived[request] = (kind, message)


class ReadAhead(_Requests):
    """Reads an open remote file with REQUESTS requests under way, which bound the memory."""

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from *start* to *end* in order; fewer when the file ends earlier."""
        waiting: deque[tuple[int, int, int]] = deque()
        asked = start
        while asked < end or waiting:
            while asked < end and len(waiting) < self.REQUESTS:
                length = min(self.BLOCK_BYTES, end - asked)
                waiting.append((self._ask_for(asked, length), asked, length))
                asked += length
            request, offset, length = waiting.popleft()
            block = self._block(request)
            if not block:
                return
            if missing := length - len(block):  # A server may send less than it was asked for.
                offset += len(block)
                waiting.appendleft((self._ask_for(offset, missing), offset, missing))
            yield block

    def _ask_for(self, offset: int, length: int) -> int:
        return self.ask(CMD_READ, self._handle, int64(offset), length)

    def _block(self, request: int) -> bytes:
        """Return the block that answers *request*; empty at the end of the file."""
        try:
            kind, message = self._answer(request)
        except EOFError:
            return b""
        if kind != CMD_DATA:
            raise paramiko.SFTPError("expected data")
        return message.get_string()


class WriteBehind(_Requests):
    """Writes an open remote file with REQUESTS requests under way, which bound the memory."""

    # A request of 32 KiB would just not fit into one SSH packet: a quarter of the rate.
    BLOCK_BYTES = 32 * 1024 - 128

    def write(self, blocks: Iterable[bytes]) -> None:
        """Write *blocks*, none longer than BLOCK_BYTES, one behind the other from the file's beginning."""
        waiting: deque[int] = deque()
        offset = 0
        for block in blocks:
            if len(waiting) == self.REQUESTS:
                self.finish(waiting.popleft())
            waiting.append(self.ask(CMD_WRITE, self._handle, int64(offset), block))
            offset += len(block)
        for request in waiting:
            self.finish(request)


def _check_status(message: paramiko.Message) -> None:
    code, text = message.get_int(), message.get_text()
    if code == SFTP_EOF:
        raise EOFError(text)
    if code in _ERROR_NUMBERS:
        raise OSError(_ERROR_NUMBERS[code], text)
    if code != SFTP_OK:
        raise OSError(text)
