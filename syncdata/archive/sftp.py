"""The archive in a directory of the backup host. Knows paths there, and what a refusal means here."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import paramiko

from syncdata.archive.put import deliver
from syncdata.archive.refusals import cannot_list, cannot_put, cannot_read, cannot_remove
from syncdata.archive.sftp_files import (
    ReadAhead,
    WriteBehind,
    list_directories,
    list_files,
    size_of,
    sync_file,
    write_new_file,
)
from syncdata.archive.ssh import SftpConnection, SftpSettings
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
from syncdata.errors import ArchiveConnectionError, DiscoveryError, FetchError, SpoolError


class SftpArchive:
    """A directory on the backup host."""

    def __init__(self, settings: SftpSettings, *, spool_dir: Path | None = None) -> None:
        self._settings = settings
        self._spool_dir = spool_dir
        self._connection = SftpConnection(settings)

    def discover(self, since: str | None) -> list[ChangeFile]:
        def listing(sftp: paramiko.SFTPClient) -> list[tuple[str, int]]:
            return list_files(sftp, self._remote_directory, lambda name: is_wanted(name, since))

        try:
            listed = self._connection.persevere(listing)
        except OSError as error:
            raise cannot_list(self.describe(), error) from error
        except UnicodeDecodeError as error:
            raise self._no_text() from error
        return in_order(ChangeFile(name=name, size_bytes=size) for name, size in listed)

    def discover_snapshots(self) -> list[SnapshotFile]:
        def listing(sftp: paramiko.SFTPClient) -> list[SnapshotFile]:
            directories = list_directories(sftp, self._remote_directory, is_snapshot_directory)
            return [file for directory in directories for file in self._snapshot_files(sftp, directory)]

        try:
            return newest_first(self._connection.persevere(listing))
        except OSError as error:
            raise cannot_list(self.describe(), error) from error
        except UnicodeDecodeError as error:
            raise self._no_text() from error

    def _snapshot_files(self, sftp: paramiko.SFTPClient, directory: str) -> Iterator[SnapshotFile]:
        def is_of_a_table(name: str) -> bool:
            return snapshot_file(f"{directory}/{name}", 0) is not None

        with suppress(FileNotFoundError):  # Removed since the archive was listed.
            for name, size in list_files(sftp, f"{self._remote_directory}/{directory}", is_of_a_table):
                if file := snapshot_file(f"{directory}/{name}", size):
                    yield file

    def fetch(self, file: ArchivedFile) -> BinaryIO:
        where = f"{self.describe()}/{file.name}"
        path = f"{self._remote_directory}/{file.name}"
        spool = _Spool(self._spool_dir, where)

        def rest(sftp: paramiko.SFTPClient) -> None:
            """Go on where the spool ends, also after a lost connection."""
            with sftp.open(path, "rb") as remote:
                size_bytes = remote.stat().st_size or 0
                for block in ReadAhead(sftp, remote.handle).blocks(spool.tell(), size_bytes):
                    spool.write(block)
            if spool.tell() != size_bytes:
                raise _shrunk(where)

        try:
            self._connection.persevere(rest)
        except OSError as error:
            spool.close()
            raise cannot_read(where, error) from error
        except BaseException:
            spool.close()
            raise
        return spool.rewound()

    def put(self, name: str, content: BinaryIO) -> None:
        check_name(name)
        place = f"{self.describe()}/{name}"
        try:
            self._connection.persevere(lambda sftp: deliver(self._shelf(sftp), name, content, place=place))
        except (OSError, SpoolError) as error:
            with suppress(OSError, ArchiveConnectionError):
                self._connection.persevere(lambda sftp: self._shelf(sftp).discard(temporary_name(name)))
            if isinstance(error, SpoolError):
                raise
            raise cannot_put(place, self._remote_directory, error) from error

    def remove(self, name: str) -> None:
        check_name(name)

        def removal(sftp: paramiko.SFTPClient) -> None:
            shelf = self._shelf(sftp)
            shelf.discard(name)
            shelf.discard(temporary_name(name))
            if "/" in name:
                shelf.discard_directory(name.partition("/")[0])

        try:
            self._connection.persevere(removal)
        except OSError as error:
            raise cannot_remove(f"{self.describe()}/{name}", self._remote_directory, error) from error

    def describe(self) -> str:
        settings = self._settings
        slash = "" if settings.directory.startswith("/") else "/"
        return (
            f"sftp://{settings.user}@{settings.host}:{settings.port}{slash}{settings.directory.rstrip('/')}"
        )

    def close(self) -> None:
        self._connection.close()

    def _shelf(self, sftp: paramiko.SFTPClient) -> _SftpShelf:
        return _SftpShelf(sftp, self._remote_directory)

    def _no_text(self) -> DiscoveryError:
        return DiscoveryError(
            "a name in the directory is not UTF-8", hint="rename that file", file=self.describe()
        )

    @property
    def _remote_directory(self) -> str:
        # SFTP knows no "~", but a relative path starts at the home directory.
        directory = self._settings.directory.rstrip("/") or "/"
        return directory.removeprefix("~/") if directory != "~" else "."


class _SftpShelf:
    BLOCK_BYTES = WriteBehind.BLOCK_BYTES

    def __init__(self, sftp: paramiko.SFTPClient, directory: str) -> None:
        self._sftp = sftp
        self._directory = directory

    def size_of(self, name: str) -> int | None:
        return size_of(self._sftp, self._path(name))

    def read(self, name: str) -> Iterator[bytes]:
        with self._sftp.open(self._path(name), "rb") as remote:
            yield from ReadAhead(self._sftp, remote.handle).blocks(0, remote.stat().st_size or 0)

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        path = self._path(name)
        directory = name.rpartition("/")[0]
        if directory and self.size_of(directory) is None:
            self._make_directory(directory)
        self.discard(name)
        # A file of its own: the old one may be a second name of a finished file, from a try cut short,
        # or still be written to by the server, for a connection that we have lost.
        write_new_file(self._sftp, path, blocks)

    def rename(self, old: str, new: str) -> None:
        try:
            self._sftp.rename(self._path(old), self._path(new))
        except OSError:
            # The server does not say why.
            if self.size_of(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
            raise

    def make_durable(self, name: str) -> None:
        # SFTP has no fsync of directories; file systems with a journal write the file's name before it.
        sync_file(self._sftp, self._path(name))

    def discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._sftp.remove(self._path(name))

    def discard_directory(self, name: str) -> None:
        """Remove the directory if it is there and empty."""
        try:
            self._sftp.rmdir(self._path(name))
        except FileNotFoundError:
            pass
        except OSError:
            if not self._sftp.listdir(self._path(name)):
                raise

    def _make_directory(self, name: str) -> None:
        try:
            self._sftp.mkdir(self._path(name))
        except OSError:
            if self.size_of(name) is None:
                raise

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"


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


def _shrunk(where: str) -> FetchError:
    return FetchError(
        "the file became shorter while it was fetched",
        hint="files of an archive must not be rewritten; it is fetched again in the next cycle",
        file=where,
    )
