"""The archive in a directory of this machine. Knows files and directories, and what makes them durable."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from syncdata.archive.put import deliver
from syncdata.archive.refusals import cannot_list, cannot_put, cannot_read, cannot_remove
from syncdata.changes.filenames import (
    ArchivedFile,
    ChangeFile,
    SnapshotFile,
    check_name,
    in_order,
    is_snapshot_directory,
    is_wanted,
    newest_first,
    snapshot_file,
    temporary_name,
)
from syncdata.errors import DiscoveryError, SpoolError

# What link() says where the file system has no hard links, or no more of them.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    directory: Path


class LocalArchive:
    """A directory of this machine. A name that is not wanted costs its directory entry, no more."""

    def __init__(self, settings: LocalSettings) -> None:
        self._directory = settings.directory
        self._shelf = _LocalShelf(settings.directory)

    def discover(self, since: str | None) -> list[ChangeFile]:
        try:
            with os.scandir(self._directory) as entries:
                wanted = [entry for entry in entries if is_wanted(entry.name, since)]
        except OSError as error:
            raise cannot_list(self.describe(), error) from error
        found = []
        for entry in wanted:
            if not entry.name.isprintable():
                raise DiscoveryError(
                    f"a file in {self.describe()} has a name that is no text: {entry.name!a}",
                    hint="rename it: the order of the files is the order of their names",
                )
            size_bytes = _size_of(entry)
            if size_bytes is not None:
                found.append(ChangeFile(name=entry.name, size_bytes=size_bytes))
        return in_order(found)

    def discover_snapshots(self) -> list[SnapshotFile]:
        try:
            with os.scandir(self._directory) as entries:
                directories = [entry.name for entry in entries if is_snapshot_directory(entry.name)]
            return newest_first(file for name in directories for file in self._snapshot_files(name))
        except OSError as error:
            raise cannot_list(self.describe(), error) from error

    def _snapshot_files(self, directory: str) -> Iterator[SnapshotFile]:
        # Not there any more, or a file with a directory's name.
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._directory / directory) as entries,
        ):
            for entry in entries:
                size_bytes = _size_of(entry)
                if size_bytes is not None and (
                    file := snapshot_file(f"{directory}/{entry.name}", size_bytes)
                ):
                    yield file

    def fetch(self, file: ArchivedFile) -> BinaryIO:
        path = self._directory / file.name
        try:
            return path.open("rb")
        except OSError as error:
            raise cannot_read(str(path), error) from error

    def put(self, name: str, content: BinaryIO) -> None:
        check_name(name)
        place = str(self._directory / name)
        try:
            deliver(self._shelf, name, content, place=place)
        except (OSError, SpoolError) as error:
            with suppress(OSError):
                self._shelf.discard(temporary_name(name))
            if isinstance(error, SpoolError):
                raise
            raise cannot_put(place, self.describe(), error) from error

    def remove(self, name: str) -> None:
        check_name(name)
        try:
            self._shelf.discard(name)
            self._shelf.discard(temporary_name(name))
            if "/" in name:
                self._shelf.discard_directory(name.partition("/")[0])
        except OSError as error:
            raise cannot_remove(str(self._directory / name), self.describe(), error) from error

    def describe(self) -> str:
        return str(self._directory)

    def close(self) -> None:
        """Nothing is held open between calls."""


class _LocalShelf:
    BLOCK_BYTES = 1 << 20

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def size_of(self, name: str) -> int | None:
        try:
            return (self._directory / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> Iterator[bytes]:
        with (self._directory / name).open("rb") as file:
            while block := file.read(self.BLOCK_BYTES):
                yield block

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        path = self._directory / name
        if path.parent != self._directory:
            with suppress(FileExistsError):
                path.parent.mkdir()
            _sync(self._directory)
        self.discard(name)
        # A file of its own: the old one may be a second name of a finished file, from a try cut short.
        with path.open("xb", buffering=0) as file:
            for block in blocks:
                rest = memoryview(block)
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def rename(self, old: str, new: str) -> None:
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

    def make_durable(self, name: str) -> None:
        _sync(self._directory / name)
        _sync((self._directory / name).parent)

    def discard(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def discard_directory(self, name: str) -> None:
        """Remove the directory if it is there and empty."""
        try:
            (self._directory / name).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


def _size_of(entry: os.DirEntry[str]) -> int | None:
    """Size in bytes; None for what is no regular file, or none any more."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None  # Removed since it was listed, or a dangling link.
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
