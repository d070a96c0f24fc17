"""The storage in a directory of this machine. Knows files, and what makes them durable; knows no archive."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from syncdata.archive.content import Content
from syncdata.archive.steady import open_steady
from syncdata.archive.storage import FILE_MODE
from syncdata.runtime.durable import fsync_directory, fsync_file, private
from syncdata.runtime.settings import a_file_mode, a_path, directory_mode, setting

_BLOCK_BYTES = 1 << 20

# The errors of link() where the file system has no hard links, or no more of them.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    directory: Path = field(metadata=setting("archive_dir", a_path))
    file_mode: str = field(default=f"{FILE_MODE:04o}", metadata=setting("archive_file_mode", a_file_mode))

    def open_storage(self, *, spool_dir: Path | None) -> LocalStorage:
        return LocalStorage(self.directory, file_mode=int(self.file_mode, 8))


class LocalStorage:
    def __init__(self, directory: Path, *, file_mode: int = FILE_MODE) -> None:
        self._directory = directory
        self._file_mode = file_mode

    @property
    def directory(self) -> str:
        return str(self._directory)

    @property
    def path(self) -> Path:
        return self._directory

    def describe(self) -> str:
        return str(self._directory)

    def list_files(self, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
        with os.scandir(self._directory / directory) as entries:
            wanted = [entry for entry in entries if is_wanted(entry.name)]
        sizes = ((entry.name, _size_of(entry)) for entry in wanted)
        return [(name, size_bytes) for name, size_bytes in sizes if size_bytes is not None]

    def root_changed_at(self) -> int | None:
        try:
            # Opened, for then NFS asks its server; stat() alone takes what it heard up to a minute ago.
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None  # The listing says why.
        try:
            # Not the time of the last write, which can be set.
            return os.fstat(descriptor).st_ctime_ns
        finally:
            os.close(descriptor)

    def list_directories(self, is_wanted: Callable[[str], bool]) -> list[str]:
        with os.scandir(self._directory) as entries:
            return [entry.name for entry in entries if is_wanted(entry.name)]

    def size_of(self, name: str) -> int | None:
        try:
            return (self._directory / name).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        return open_steady(self._directory / name)

    def holds(self, name: str, content: Content) -> bool:
        with self.open(name) as file:
            return content.equals(_blocks(file))

    def create(self, name: str, content: Content) -> None:
        path = self._directory / name
        if path.parent != self._directory:
            with suppress(FileExistsError):
                # Not 0700 first: a crash before the next line would leave a directory that no reader enters.
                path.parent.mkdir(mode=directory_mode(self._file_mode))
                self._open_to_readers(path.parent)
            fsync_directory(self._directory)
        self.delete(name)
        with open(path, "xb", buffering=0, opener=private) as file:
            os.fchmod(file.fileno(), self._file_mode)
            for block in content.blocks(_BLOCK_BYTES):
                rest = memoryview(block)
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def _open_to_readers(self, directory: Path) -> None:
        """Give a new *directory* its permissions, whatever the umask says, and keep its setgid bit, by which
        the files in it belong to the readers' group."""
        setgid = directory.stat().st_mode & stat.S_ISGID
        directory.chmod(directory_mode(self._file_mode) | setgid)

    def rename(self, old: str, new: str) -> None:
        # A hard link, since rename() overwrites.
        old_path, new_path = self._directory / old, self._directory / new
        try:
            os.link(old_path, new_path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(new_path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new_path)) from None
            old_path.rename(new_path)
        else:
            old_path.unlink()

    def replace(self, old: str, new: str) -> None:
        (self._directory / old).replace(self._directory / new)

    def make_durable(self, name: str) -> None:
        path = self._directory / name
        fsync_file(path)
        fsync_directory(path.parent)

    def delete(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def delete_directory(self, name: str) -> None:
        try:
            (self._directory / name).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _size_of(entry: os.DirEntry[str]) -> int | None:
    """Return the size in bytes; None for an entry that is not a regular file, or has gone."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None  # Removed since it was listed, or a dangling link.
    return status.st_size if stat.S_ISREG(status.st_mode) else None
