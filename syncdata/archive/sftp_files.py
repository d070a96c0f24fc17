"""Files over an SFTP session: listings, and transfers that never wait for a round trip.

Knows the protocol's requests (draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for ``fsync`` and
``posix-rename``); knows nothing of change files, nor of what to do when the connection is lost.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import paramiko
from paramiko.sftp import (
    CMD_CLOSE,
    CMD_EXTENDED,
    CMD_FSTAT,
    CMD_MKDIR,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READ,
    CMD_READDIR,
    CMD_REMOVE,
    CMD_RENAME,
    CMD_RMDIR,
    CMD_STAT,
    CMD_WRITE,
    int64,
)

from syncdata.archive.sftp_session import LOSSES, Attributes, EndOfFile, ProtocolError, SftpSession
from syncdata.errors import DiscoveryError, shortened

# More are no archive: one file a minute makes them in nine years.
MOST_ENTRIES = 5_000_000
# No file system has longer names, and a server that sends them is not to fill our memory.
_LONGEST_NAME = 255

_READ = 1
_CREATE_NEW = 2 | 8 | 32  # write, create, and only if it is not there
_NO_ATTRIBUTES = (0,)
_PERMISSIONS = 4  # the flag before them


def list_files(sftp: SftpSession, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
    """Return name and size in bytes of the wanted regular files of *directory*, in no order.

    Raises DiscoveryError for a link among them that cannot be followed: what it stands for is not known.
    """
    files = []
    for name, listed in _list(sftp, directory, is_wanted):
        status = _followed(sftp, f"{directory}/{name}", listed)
        if status is not None:
            files.append((name, status.size_bytes or 0))
    return files


def list_directories(sftp: SftpSession, directory: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """Return the names of the wanted entries that are directories, or may lead to one, in no order."""
    return [name for name, status in _list(sftp, directory, is_wanted) if _may_be_directory(status.mode)]


def is_empty(sftp: SftpSession, directory: str) -> bool:
    return not _list(sftp, directory, lambda name: True)


@contextmanager
def opened(sftp: SftpSession, path: str) -> Iterator[bytes]:
    """The handle of the file *path* for reading, as long as the block runs."""
    with _handle(sftp, sftp.ask(CMD_OPEN, path, _READ, *_NO_ATTRIBUTES)) as handle:
        yield handle


def size_of_opened(sftp: SftpSession, handle: bytes) -> int:
    return sftp.attributes(sftp.ask(CMD_FSTAT, handle)).size_bytes or 0


def write_new_file(sftp: SftpSession, path: str, blocks: Iterable[bytes], mode: int) -> None:
    """Make the file *path*, which must not be there, of *blocks*, and let the server put it on its disk.

    Its permissions are those of *mode* that the server's umask leaves, from the beginning.
    """
    with _handle(sftp, sftp.ask(CMD_OPEN, path, _CREATE_NEW, _PERMISSIONS, mode)) as handle:
        WriteBehind(sftp, handle).write(blocks)
        _sync(sftp, handle)


def sync_file(sftp: SftpSession, path: str) -> None:
    """Let the server put the file, and with it its name, on the disk; nothing happens where it cannot."""
    with opened(sftp, path) as handle:
        _sync(sftp, handle)


def rename_file(sftp: SftpSession, old: str, new: str) -> None:
    """Give *old* the name *new*. Raises OSError, which seldom says why, when *new* is there."""
    sftp.finish(sftp.ask(CMD_RENAME, old, new))


def replace_file(sftp: SftpSession, old: str, new: str) -> None:
    """Give *old* the name *new*, whether or not there is a file of that name.

    With OpenSSH's ``posix-rename`` at once; where the server lacks it, the old file goes first.
    """
    try:
        sftp.finish(sftp.ask(CMD_EXTENDED, "posix-rename@openssh.com", old, new))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if size_of(sftp, old) is None:
            # A try whose answer was lost has renamed it: what would be removed now is the new file.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old) from None
        remove_file(sftp, new)
        rename_file(sftp, old, new)


def remove_file(sftp: SftpSession, path: str) -> None:
    """Remove the file; fine when there is none."""
    with suppress(FileNotFoundError):
        sftp.finish(sftp.ask(CMD_REMOVE, path))


def make_directory(sftp: SftpSession, path: str, mode: int) -> None:
    """Make the directory; fine when it is there.

    Its permissions are those of *mode* that the server's umask leaves. A setgid bit, by which its files
    belong to the readers' group, comes from the directory around it.
    """
    if size_of(sftp, path) is not None:
        return
    try:
        sftp.finish(sftp.ask(CMD_MKDIR, path, _PERMISSIONS, mode))
    except LOSSES:
        raise
    except OSError:
        if size_of(sftp, path) is None:
            raise


def remove_directory(sftp: SftpSession, path: str) -> None:
    sftp.finish(sftp.ask(CMD_RMDIR, path))


def size_of(sftp: SftpSession, path: str) -> int | None:
    """Return the size in bytes; None when there is no such file."""
    try:
        return sftp.attributes(sftp.ask(CMD_STAT, path)).size_bytes or 0
    except FileNotFoundError:
        return None


def changed_at(sftp: SftpSession, path: str) -> int | None:
    """Return the time of the last change, in seconds since 1970; None when the server tells none."""
    try:
        return sftp.attributes(sftp.ask(CMD_STAT, path)).changed_at
    except LOSSES:
        raise
    except OSError:
        return None


@contextmanager
def _handle(sftp: SftpSession, request: int) -> Iterator[bytes]:
    """The handle that answers *request*; it is closed at the end, without waiting after a failure."""
    handle = sftp.handle(request)
    try:
        yield handle
    except BaseException:
        with suppress(OSError, paramiko.SSHException):
            sftp.abandon([sftp.ask(CMD_CLOSE, handle)])
        raise
    sftp.finish(sftp.ask(CMD_CLOSE, handle))


def _sync(sftp: SftpSession, handle: bytes) -> None:
    try:
        sftp.finish(sftp.ask(CMD_EXTENDED, "fsync@openssh.com", handle))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


# Names come by the hundred; asking ahead saves the round trips between the hundreds.
_LISTINGS_AHEAD = 64


def _list(
    sftp: SftpSession, directory: str, is_wanted: Callable[[str], bool]
) -> list[tuple[str, Attributes]]:
    with _handle(sftp, sftp.ask(CMD_OPENDIR, directory)) as handle:
        waiting = deque(sftp.ask(CMD_READDIR, handle) for _ in range(_LISTINGS_AHEAD))
        found: list[tuple[str, Attributes]] = []
        count = 0
        try:
            while True:
                listed = sftp.names(waiting.popleft())
                waiting.append(sftp.ask(CMD_READDIR, handle))
                # Empty answers count as full ones: a server could send them for ever.
                count += len(listed) or 1_000
                if count > MOST_ENTRIES:
                    raise ProtocolError(f"the directory has more than {MOST_ENTRIES} entries")
                found += [item for item in listed if _is_name(item[0]) and is_wanted(item[0])]
        except EndOfFile:
            return found
        finally:
            sftp.abandon(waiting)


def _is_name(name: str) -> bool:
    return name not in (".", "..") and len(name) <= _LONGEST_NAME


def _followed(sftp: SftpSession, path: str, status: Attributes) -> Attributes | None:
    """Return *status*, for a symbolic link that of its target; None when that is not a regular file."""
    if status.mode is not None and stat.S_ISLNK(status.mode):
        try:
            status = sftp.attributes(sftp.ask(CMD_STAT, path))
        except LOSSES:
            raise
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiscoveryError(
                f"the link cannot be followed: {error.strerror or error}",
                hint="it leads in a circle, or to where the login may not look: mend or remove it",
                file=shortened(path),
            ) from error
    # A server may leave the mode out; then only the name tells what the entry is.
    return status if status.mode is None or stat.S_ISREG(status.mode) else None


def _may_be_directory(mode: int | None) -> bool:
    return mode is None or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


# How many requests may be under way for one file, which bounds the memory.
REQUESTS = 128


class ReadAhead:
    """Reads an open remote file with REQUESTS requests under way."""

    # Every server has to take and to answer this size (draft-ietf-secsh-filexfer-02, 3).
    BLOCK_BYTES = 32 * 1024

    def __init__(self, sftp: SftpSession, handle: bytes) -> None:
        self._sftp = sftp
        self._handle = handle

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from *start* to *end* in order; fewer when the file ends earlier."""
        waiting: deque[tuple[int, int, int]] = deque()
        asked = start
        try:
            while asked < end or waiting:
                while asked < end and len(waiting) < REQUESTS:
                    length = min(self.BLOCK_BYTES, end - asked)
                    waiting.append((self._ask_for(asked, length), asked, length))
                    asked += length
                request, offset, length = waiting.popleft()
                block = self._block(request, length)
                if not block:
                    return
                if missing := length - len(block):  # A server may send less than it was asked for.
                    offset += len(block)
                    waiting.appendleft((self._ask_for(offset, missing), offset, missing))
                yield block
        finally:
            self._sftp.abandon(request for request, _, _ in waiting)

    def _ask_for(self, offset: int, length: int) -> int:
        return self._sftp.ask(CMD_READ, self._handle, int64(offset), length)

    def _block(self, request: int, length: int) -> bytes:
        """Return the block that answers *request*; empty at the end of the file."""
        try:
            block = self._sftp.data(request)
        except EndOfFile:
            return b""
        if len(block) > length:
            raise ProtocolError("the server sent more than it was asked for")
        return block


class WriteBehind:
    """Writes an open remote file with REQUESTS requests under way."""

    # A request of 32 KiB would just not fit into one SSH packet: a quarter of the rate.
    BLOCK_BYTES = 32 * 1024 - 128

    def __init__(self, sftp: SftpSession, handle: bytes) -> None:
        self._sftp = sftp
        self._handle = handle

    def write(self, blocks: Iterable[bytes]) -> None:
        """Write *blocks*, none longer than BLOCK_BYTES, one behind the other from the file's beginning."""
        waiting: deque[int] = deque()
        offset = 0
        try:
            for block in blocks:
                if len(waiting) == REQUESTS:
                    self._sftp.finish(waiting.popleft())
                waiting.append(self._sftp.ask(CMD_WRITE, self._handle, int64(offset), block))
                offset += len(block)
            while waiting:
                self._sftp.finish(waiting.popleft())
        finally:
            self._sftp.abandon(waiting)
