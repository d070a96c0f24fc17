"""The storage in a directory of the backup host. Knows paths there, and what a refusal means.

Every method is one piece of work for the connection, which begins it again after a loss; `open` then goes on
with the bytes that are still missing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from syncdata.archive.content import Content
from syncdata.archive.fetched_copy import FetchedCopy
from syncdata.archive.login import Login
from syncdata.archive.sftp_files import (
    ReadAhead,
    WriteBehind,
    changed_at,
    is_empty,
    list_directories,
    list_files,
    make_directory,
    opened,
    remove_directory,
    remove_file,
    rename_file,
    replace_file,
    size_of,
    size_of_opened,
    sync_file,
    write_new_file,
)
from syncdata.archive.sftp_session import LOSSES, SftpSession
from syncdata.archive.ssh import SftpConnection
from syncdata.archive.storage import FILE_MODE
from syncdata.errors import FetchError
from syncdata.runtime.settings import directory_mode


class SftpStorage:
    def __init__(
        self, login: Login, directory: str, *, spool_dir: Path | None, file_mode: int = FILE_MODE
    ) -> None:
        self._login = login
        self._file_mode = file_mode
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
        # Without a key for it, ~/.ssh/config may name the port.
        port = f":{login.port}" if login.port else ""
        slash = "/" if directory and not directory.startswith("/") else ""
        return f"sftp://{login.user}@{login.host}{port}{slash}{directory}"

    def list_files(self, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
        path = self._path(directory) if directory else self.directory
        return self._connection.persevere(lambda sftp: list_files(sftp, path, is_wanted))

    def root_changed_at(self) -> int | None:
        return self._connection.persevere(lambda sftp: changed_at(sftp, self.directory))

    def list_directories(self, is_wanted: Callable[[str], bool]) -> list[str]:
        return self._connection.persevere(lambda sftp: list_directories(sftp, self.directory, is_wanted))

    def size_of(self, name: str) -> int | None:
        return self._connection.persevere(lambda sftp: size_of(sftp, self._path(name)))

    def open(self, name: str) -> BinaryIO:
        location = f"{self.describe()}/{name}"
        copy = FetchedCopy(self._spool_dir, location)

        def fetch_the_rest(sftp: SftpSession) -> None:
            with opened(sftp, self._path(name)) as handle:
                size_bytes = size_of_opened(sftp, handle)
                for block in ReadAhead(sftp, handle).blocks(copy.size_bytes, size_bytes):
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
        def compare(sftp: SftpSession) -> bool:
            with opened(sftp, self._path(name)) as handle:
                return content.equals(ReadAhead(sftp, handle).blocks(0, size_of_opened(sftp, handle)))

        return self._connection.persevere(compare)

    def create(self, name: str, content: Content) -> None:
        directory, path = name.rpartition("/")[0], self._path(name)

        def write(sftp: SftpSession) -> None:
            if directory:
                make_directory(sftp, self._path(directory), directory_mode(self._file_mode))
            remove_file(sftp, path)
            write_new_file(sftp, path, content.blocks(WriteBehind.BLOCK_BYTES), self._file_mode)

        self._connection.persevere(write)

    def rename(self, old: str, new: str) -> None:
        def rename(sftp: SftpSession) -> None:
            try:
                rename_file(sftp, self._path(old), self._path(new))
            except LOSSES:
                raise
            except OSError:
                # The server does not say why.
                if size_of(sftp, self._path(new)) is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
                raise

        self._connection.persevere(rename)

    def replace(self, old: str, new: str) -> None:
        def replace(sftp: SftpSession) -> None:
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
        self._connection.persevere(lambda sftp: remove_file(sftp, self._path(name)))

    def delete_directory(self, name: str) -> None:
        def delete(sftp: SftpSession) -> None:
            path = self._path(name)
            try:
                remove_directory(sftp, path)
            except (FileNotFoundError, *LOSSES) as error:
                if not isinstance(error, FileNotFoundError):
                    raise
            except OSError:
                if is_empty(sftp, path):
                    raise

        self._connection.persevere(delete)

    def close(self) -> None:
        self._connection.close()

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"


def _shrunk(location: str) -> FetchError:
    return FetchError(
        "the file became shorter while it was fetched",
        hint="files of an archive must not be rewritten; it is fetched again in the next cycle",
        file=location,
    )
