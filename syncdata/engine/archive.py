"""The archive as a small port: what change files there are, and the bytes of one.

Knows names, order and where files lie; knows nothing of what is inside them. A file's *stem* (its name
without ``.json``, ``.json.gz``, ``.json.zst``) is its identity and its place in the order, so a file that
is compressed after it was applied is not a new file.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from syncdata.engine.changefile import stem
from syncdata.engine.errors import DiscoveryError, FetchError
from syncdata.engine.sftp import SftpConnection, SftpSettings

# The order of the endings is the order of preference among files of one stem.
_ENDINGS = (".json", ".json.gz", ".json.zst")
_CHANGE_FILE = re.compile(r"changes_[^/]*\.json(\.gz|\.zst)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFile:
    """A change file as the archive lists it; *size_bytes* as stored, so compressed where it is."""

    name: str
    size_bytes: int

    @property
    def stem(self) -> str:
        return stem(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    directory: Path


class Archive(Protocol):
    """Read-only access to the change files. Safe to use from one thread at a time; `close` from any."""

    def discover(self, since: str | None) -> list[ChangeFile]:
        """Return the change files whose stem is not before *since*'s (all without it), in order.

        *since* itself is included, so that a file half applied is found again. Temporary, hidden and
        other names are left out, and one file is returned for each stem. Raises DiscoveryError when
        the directory cannot be listed, ArchiveConnectionError when the host cannot be reached.
        """
        ...

    def fetch(self, file: ChangeFile) -> BinaryIO:
        """Return the whole file, still compressed, as a seekable stream at its beginning.

        It is what the archive holds now: a plain file that has grown since `discover` is longer than
        ``file.size_bytes``. Raises FetchError when the file is gone, unreadable or there is no room for
        it, ArchiveConnectionError when the host cannot be reached.
        """
        ...

    def describe(self) -> str:
        """Where the archive is, for messages; without secrets."""
        ...

    def close(self) -> None:
        """Let go of the archive; a fetch that is running fails soon."""
        ...


def open_archive(settings: SftpSettings | LocalSettings, *, spool_dir: Path | None = None) -> Archive:
    """Return the archive that *settings* describe, without connecting: the first use does.

    SFTP copies each file into an anonymous temporary file in *spool_dir* (the system's temporary
    directory without it), which vanishes with the process.
    """
    if isinstance(settings, LocalSettings):
        return LocalArchive(settings)
    return SftpArchive(settings, spool_dir=spool_dir)


class LocalArchive:
    """A directory of this machine. A name that is not wanted costs its directory entry, no more."""

    def __init__(self, settings: LocalSettings) -> None:
        self._directory = settings.directory

    def discover(self, since: str | None) -> list[ChangeFile]:
        try:
            with os.scandir(self._directory) as entries:
                wanted = [entry for entry in entries if _is_wanted(entry.name, since)]
        except OSError as error:
            raise _cannot_list(self.describe(), error) from error
        found = []
        for entry in wanted:
            if not entry.name.isprintable():
                raise DiscoveryError(
                    f"a file in {self.describe()} has a name that is no text: {entry.name!a}",
                    hint="rename it: the order of the files is the order of their names",
                )
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # Removed since it was listed, or a dangling link.
            if stat.S_ISREG(status.st_mode):
                found.append(ChangeFile(name=entry.name, size_bytes=status.st_size))
        return _in_order(found)

    def fetch(self, file: ChangeFile) -> BinaryIO:
        path = self._directory / file.name
        try:
            return path.open("rb")
        except OSError as error:
            raise _cannot_read(str(path), error) from error

    def describe(self) -> str:
        return str(self._directory)

    def close(self) -> None:
        """Nothing is held open between calls."""


class SftpArchive:
    """A directory on the backup host."""

    def __init__(self, settings: SftpSettings, *, spool_dir: Path | None = None) -> None:
        self._settings = settings
        self._spool_dir = spool_dir
        self._connection = SftpConnection(settings)

    def discover(self, since: str | None) -> list[ChangeFile]:
        try:
            listed = self._connection.list_files(self._remote_directory, lambda name: _is_wanted(name, since))
        except OSError as error:
            raise _cannot_list(self.describe(), error) from error
        except UnicodeDecodeError as error:
            raise DiscoveryError(
                "a name in the directory is not UTF-8", hint="rename that file", file=self.describe()
            ) from error
        return _in_order(ChangeFile(name=name, size_bytes=size) for name, size in listed)

    def fetch(self, file: ChangeFile) -> BinaryIO:
        where = f"{self.describe()}/{file.name}"
        spool = _Spool(self._spool_dir, where)
        try:
            self._connection.download(f"{self._remote_directory}/{file.name}", spool)
        except OSError as error:
            spool.close()
            raise _cannot_read(where, error) from error
        except BaseException:
            spool.close()
            raise
        return spool.rewound()

    def describe(self) -> str:
        settings = self._settings
        slash = "" if settings.directory.startswith("/") else "/"
        return (
            f"sftp://{settings.user}@{settings.host}:{settings.port}{slash}{settings.directory.rstrip('/')}"
        )

    def close(self) -> None:
        self._connection.close()

    @property
    def _remote_directory(self) -> str:
        # SFTP knows no "~", but a relative path starts at the home directory.
        directory = self._settings.directory.rstrip("/") or "/"
        return directory.removeprefix("~/") if directory != "~" else "."


class _Spool:
    """The anonymous temporary file a download goes to; a full disk is a FetchError, not the network's."""

    def __init__(self, directory: Path | None, where: str) -> None:
        self._directory = directory or Path(tempfile.gettempdir())
        self._where = where
        try:
            # Unbuffered, so that a full disk shows in write() and nowhere else.
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._no_room(error) from error

    def write(self, block: bytes) -> None:
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._no_room(error) from error

    def tell(self) -> int:
        return self._file.tell()

    def rewound(self) -> BinaryIO:
        self._file.seek(0)
        return io.BufferedReader(self._file)

    def close(self) -> None:
        self._file.close()

    def _no_room(self, error: OSError) -> FetchError:
        return FetchError(
            f"the temporary copy cannot be written to {self._directory}: {error.strerror}",
            hint="free space there; the file is fetched again in the next cycle",
            file=self._where,
        )


def _is_wanted(name: str, since: str | None) -> bool:
    return _CHANGE_FILE.fullmatch(name) is not None and (since is None or stem(name) >= stem(since))


def _in_order(files: Iterable[ChangeFile]) -> list[ChangeFile]:
    """One file for each stem, the most preferred ending, sorted by stem."""
    by_stem: dict[str, ChangeFile] = {}
    # Endings sort by length, and the least preferred is written first and overwritten.
    for file in sorted(files, key=lambda file: len(file.name) - len(file.stem), reverse=True):
        by_stem[file.stem] = file
    return [by_stem[key] for key in sorted(by_stem)]


_HINTS = {
    errno.ENOENT: "check archive_dir",
    errno.ENOTDIR: "check archive_dir",
    errno.EACCES: "give the login read and search permission on the directory",
}


def _cannot_list(where: str, error: OSError) -> DiscoveryError:
    hint = _HINTS.get(error.errno or 0, "check archive_dir and the archive's disk")
    return DiscoveryError(f"the archive cannot be listed: {_reason(error)}", hint=hint, file=where)


def _cannot_read(where: str, error: OSError) -> FetchError:
    hint = {
        errno.ENOENT: "it was there when the archive was listed; put it back",
        errno.EACCES: "give the login read permission on the file",
    }.get(error.errno or 0, "check the archive's disk; the file is fetched again in the next cycle")
    return FetchError(f"the change file cannot be read: {_reason(error)}", hint=hint, file=where)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
