"""The storage in a directory of the backup host. Knows paths there, and what a refusal means.

Every method is one piece of work for the connection, which begins it again after a loss; `open` then goes on
with the bytes that are still missing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import paramiko

from syncdata.archive.content import Content
from syncdata.archive.fetched_copy import FetchedCopy
from syncdata.archive.login import Login
from syncdata.archive.sftp_files import (
    ReadAhead,
    WriteBehind,
    list_directories,
    list_files,
    replace_file,
    size_of,
    sync_file,
    write_new_file,
)
from syncdata.archive.ssh import SftpConnection
from syncdata.errors import DiscoveryError, FetchError


class SftpStorage:
    def __init__(self, login: Login, directory: str, *, spool_dir: Path | None) -> None:
        self._login = login
        self._given_directory = directory.rstrip("/")
        self._spool_dir = spool_dir
        self._connection = SftpConnection(login)

    @property
    def directory(self) -> str:
        # SFTP knows no "~", but a relative path starts at the home directory.
        directory = self._given_directory or "/"
        return directory.removeprefix("~/") if directory != "~" else "."

    def describe(self) -> str:
        login, directory = self._login, self._given_directory
        slash = "/" if directory and not directory.startswith("/") else ""
        return f"sftp://{login.user}@{login.host}:{login.port}{slash}{directory}"

    def list_files(self, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
        path = self._path(directory) if directory else self.directory
        with self._text_alone():
            return self._connection.persevere(lambda sftp: list_files(sftp, path, is_wanted))

    def list_directories(self, is_wanted: Callable[[str], bool]) -> list[str]:
        with self._text_alone():
            return self._connection.persevere(lambda sftp: list_directories(sftp, self.directory, is_wanted))

    def size_of(self, name: str) -> int | None:
        return self._connection.persevere(lambda sftp: size_of(sftp, self._path(name)))

    def open(self, name: str) -> BinaryIO:
        location = f"{self.describe()}/{name}"
        copy = FetchedCopy(self._spool_dir, location)

        def fetch_the_rest(sftp: paramiko.SFTPClient) -> None:
            with sftp.open(self._path(name), "rb") as remote:
                size_bytes = remote.stat().st_size or 0
                for block in ReadAhead(sftp, remote.handle).blocks(copy.size_bytes, size_bytes):
                    copy.write(block)
            if copy.size_bytes != size_bytes:
                raise _shrunk(location)

        try:
            self._connection.persevere(fetch_the_rest)
        except BaseException:
            copy.give_up()
            raise
        return copy.finish()

    def holds(self, name: str, content: Content) -> bool:
        def compare(sftp: paramiko.SFTPClient) -> bool:
            with sftp.open(self._path(name), "rb") as remote:
                return content.equals(ReadAhead(sftp, remote.handle).blocks(0, remote.stat().st_size or 0))

        return self._connection.persevere(compare)

    def create(self, name: str, content: Content) -> None:
        directory, path = name.rpartition("/")[0], self._path(name)

        def write(sftp: paramiko.SFTPClient) -> None:
            if directory:
                _make_directory(sftp, self._path(directory))
            _delete(sftp, path)
            write_new_file(sftp, path, content.blocks(WriteBehind.BLOCK_BYTES))

        self._connection.persevere(write)

    def rename(self, old: str, new: str) -> None:
        def rename(sftp: paramiko.SFTPClient) -> None:
            try:
                sftp.rename(self._path(old), self._path(new))
            except OSError:
                # The server does not say why.
                if size_of(sftp, self._path(new)) is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
                raise

        self._connection.persevere(rename)

    def replace(self, old: str, new: str) -> None:
        def replace(sftp: paramiko.SFTPClient) -> None:
            old_path, new_path = self._path(old), self._path(new)
            try:
                replace_file(sftp, old_path, new_path)
            except FileNotFoundError:
                # A try whose answer was lost may have done it.
                if size_of(sftp, new_path) is None:
                    raise

        self._connection.persevere(replace)

    def make_durable(self, name: str) -> None:
        # SFTP has no fsync of directories; file systems with a journal write the file's name before it.
        self._connection.persevere(lambda sftp: sync_file(sftp, self._path(name)))

    def delete(self, name: str) -> None:
        self._connection.persevere(lambda sftp: _delete(sftp, self._path(name)))

    def delete_directory(self, name: str) -> None:
        def delete(sftp: paramiko.SFTPClient) -> None:
            path = self._path(name)
            try:
                sftp.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                if not sftp.listdir(path):
                    raise

        self._connection.persevere(delete)

    def close(self) -> None:
        self._connection.close()

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    @contextmanager
    def _text_alone(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise DiscoveryError(
                "a name in the directory is not UTF-8", hint="rename that file", file=self.describe()
            ) from error


def _make_directory(sftp: paramiko.SFTPClient, path: str) -> None:
    if size_of(sftp, path) is not None:
        return
    try:
        sftp.mkdir(path)
    except OSError:
        if size_of(sftp, path) is None:
            raise


def _delete(sftp: paramiko.SFTPClient, path: str) -> None:
    with suppress(FileNotFoundError):
        sftp.remove(path)


def _shrunk(location: str) -> FetchError:
    return FetchError(
        "the file became shorter while it was fetched",
        hint="files of an archive must not be rewritten; it is fetched again in the next cycle",
        file=location,
    )
