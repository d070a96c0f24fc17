"""The archive: lists its files, fetches one, puts one there once, removes one.

Knows names, their order, and the errors for a storage's refusals; knows nothing of where the storage is
(a directory of this machine, the backup host, …), nor of the files' contents.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from syncdata.archive.content import Content
from syncdata.archive.last_listing import LastListing
from syncdata.archive.put import put_once
from syncdata.archive.refusals import cannot_list, cannot_put, cannot_read, cannot_remove, cannot_watch
from syncdata.archive.signatures import PublicKeys
from syncdata.archive.storage import ArchiveSettings, Dated, InDirectory, Storage
from syncdata.changes.catalog import (
    CATALOG_DIRECTORY,
    MAX_CATALOG_BYTES,
    Catalog,
    catalog_name,
    is_catalog_name,
    parse_catalog,
)
from syncdata.changes.filenames import (
    ArchivedFile,
    ChangeFile,
    SnapshotFile,
    check_name,
    in_order,
    is_change_file,
    is_left_out,
    is_snapshot_directory,
    is_wanted,
    newest_first,
    parse_snapshot_name,
    snapshot_file,
    stem,
    temporary_name,
)
from syncdata.changes.head import HEAD_NAME, MAX_HEAD_BYTES, Head, parse_head
from syncdata.errors import ArchiveConnectionError, DiscoveryError, ParseError, SpoolError, shortened

logger = logging.getLogger(__name__)

__all__ = ["Archive", "ArchivedFile", "ChangeFile", "SnapshotFile", "Watch", "open_archive"]


# Those of a day with many migrations; each is as large as production's schema.
_KEPT_CATALOGS = 16

# By place, the names of files that a warning has named, beyond the life of one Archive: a daemon opens it
# anew after each loss of the connection. The names are from outside: after so many, no more are told.
_told: dict[str, set[str]] = {}
_MOST_TOLD = 1_000


class Watch(Protocol):
    """The watch over an archive. It ends by itself when the archive's directory becomes another one."""

    @property
    def is_watching(self) -> bool: ...

    def close(self) -> None: ...


class Archive:
    """The files of one storage. Safe to use from one thread at a time; `close` from any.

    Every method may be called again after any failure, and raises ArchiveConnectionError when the storage
    cannot be reached.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keys: PublicKeys | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """*keys*: those of them that signed it make a file to be believed; without it, none needs to be.

        *clock_s*: seconds that never go back.
        """
        self.keys = keys
        self._clock_s = clock_s
        self._last_listing = LastListing()
        self._head_time = ""
        self._storage = storage
        self._catalogs: dict[str, Catalog] = {}
        self._newest_stem = ""

    def discover(self, since: str | None) -> list[ChangeFile]:
        """Return the change files whose stem is not before *since*'s (all without it), in order.

        *since* itself is included, so that a file half applied is found again. Temporary, hidden and
        other names are left out; those that look like change files are named once in a warning. One file
        is returned for each stem. Raises DiscoveryError when the directory cannot be listed.

        While nothing has come or gone, that is found out by one request, and there is no listing.
        """
        try:
            changed_at = self._storage.root_changed_at() if isinstance(self._storage, Dated) else None
            if changed_at is None:
                return self._list(since)
            asked_s, first = self._clock_s(), "" if since is None else stem(since)
            names = self._last_listing.recall(changed_at, first, now_s=asked_s)
            known = None if names is None else self._as_they_are_now(names)
            if known is None:
                known = self._list(since)
                self._last_listing.note(changed_at, first, known, sign=self._head_time, now_s=asked_s)
            return known
        except OSError as error:
            raise cannot_list(self.describe(), error) from error

    def _list(self, since: str | None) -> list[ChangeFile]:
        """List the root. Raises OSError."""
        others: set[str] = set()
        first = "" if since is None else stem(since)
        told = _told.setdefault(self.describe(), set())

        def is_wanted_here(name: str) -> bool:
            # No more than are told: a server may list as many as it likes.
            if len(others) + len(told) < _MOST_TOLD and name not in told and is_left_out(name):
                others.add(name)
            return is_wanted(name, first)

        listed = self._storage.list_files("", is_wanted_here)
        self._tell_of_others(others)
        told |= others
        files = in_order(ChangeFile(name=name, size_bytes=size_bytes) for name, size_bytes in listed)
        if files:
            self._newest_stem = max(self._newest_stem, files[-1].stem)
        return files

    def _as_they_are_now(self, names: Iterable[str]) -> list[ChangeFile] | None:
        """Return those files with their present sizes; None when one of them has gone. Raises OSError."""
        files = []
        for name in names:
            size_bytes = self._storage.size_of(name)
            if size_bytes is None:
                return None
            files.append(ChangeFile(name=name, size_bytes=size_bytes))
        return files

    def watch(self, tell: Callable[[], object]) -> Watch | None:
        """Have *tell* called, from another thread, soon after a change file has come; None where the archive
        cannot tell. Some files may come untold. Raises DiscoveryError when it cannot be watched now."""
        if not isinstance(self._storage, InDirectory):
            return None
        # Here, for it takes commands that only ask longer to load than they run.
        from syncdata.runtime.watch import DirectoryWatch

        try:
            return DirectoryWatch(self._storage.path, is_change_file, tell)
        except Exception as error:  # the library's own errors have no common class
            raise cannot_watch(self.describe(), error) from error

    def reaches(self, name: str) -> bool:
        """Tell whether the archive holds, or has held since this was opened, the change file *name* or a
        later one. Raises as `discover` does."""
        return self._newest_stem >= stem(name) or bool(self.discover(name))

    def discover_snapshots(self) -> list[SnapshotFile]:
        """Return the snapshots' files, those of the newest snapshot first, by table within each.

        Temporary, hidden and other names are left out. A file that is returned may be unfinished: only its
        footer tells. A snapshot that vanishes meanwhile is not an error. Raises as `discover` does.
        """
        try:
            directories = self._storage.list_directories(is_snapshot_directory)
            return newest_first(file for name in directories for file in self._files_of_snapshot(name))
        except OSError as error:
            raise cannot_list(self.describe(), error) from error

    def fetch(self, file: ArchivedFile) -> BinaryIO:
        """Return the whole file, still compressed, as a seekable stream at its beginning.

        The content is that of now: a plain file that has grown since `discover` is longer than
        ``file.size_bytes``. Raises FetchError when the file is gone, unreadable or there is no room for it.
        """
        try:
            return self._storage.open(file.name)
        except OSError as error:
            raise cannot_read(self._location(file.name), error) from error

    def read_catalog(self, digest: str) -> Catalog:
        """Return the catalog of that *digest*, which is fetched once: its content never changes.

        Raises DiscoveryError when the archive does not have it, ParseError when it is broken, FetchError.
        """
        if digest not in self._catalogs:
            name = catalog_name(digest)
            try:
                catalog = parse_catalog(self._read_document(name, MAX_CATALOG_BYTES), name)
            except FileNotFoundError:
                raise DiscoveryError(
                    "the catalog that a file names is missing from the archive",
                    hint="bring it back from a copy of the archive, and syncing goes on by itself; if"
                    " there is none, take snapshots at production (archive_changes --snapshot), then resync"
                    " the tables",
                    file=name,
                ) from None
            except OSError as error:
                raise cannot_read(self._location(name), error) from error
            while len(self._catalogs) >= _KEPT_CATALOGS:
                del self._catalogs[next(iter(self._catalogs))]
            self._catalogs[digest] = catalog
        return self._catalogs[digest]

    def put(self, name: str, content: BinaryIO) -> None:
        """Put all of *content*, which is seekable, into the archive as *name*: whole, durable and once.

        *name* is a change file's, or a snapshot file's or catalog's, whose directory is made. Until
        all has arrived and is on the disk, there is only a hidden temporary file. When the name is taken
        by the same bytes, nothing is written. Nothing is ever overwritten: raises DeliveryError when
        other bytes have the name, or the archive refuses the file (disk full, no permission, …),
        SpoolError when *content* cannot be read.
        """
        check_name(name)
        location = self._location(name)
        try:
            put_once(self._storage, name, Content(content), location=location)
        except (OSError, SpoolError) as error:
            with suppress(OSError, ArchiveConnectionError):
                self._storage.delete(temporary_name(name))
            if isinstance(error, SpoolError):
                raise
            raise cannot_put(location, self._storage.directory, error) from error

    def write_head(self, content: bytes) -> None:
        """Put *content* in the place of ``head.json``: at once and durable.

        Raises DeliveryError when the archive refuses it; then the old one stays, where there was one.
        """
        temporary = temporary_name(HEAD_NAME)
        try:
            self._storage.create(temporary, Content(BytesIO(content)))
            self._storage.replace(temporary, HEAD_NAME)
            self._storage.make_durable(HEAD_NAME)
        except OSError as error:
            with suppress(OSError, ArchiveConnectionError):
                self._storage.delete(temporary)
            raise cannot_put(self._location(HEAD_NAME), self._storage.directory, error) from error

    def catalog_digests(self) -> list[str]:
        """Return the digests of the archive's catalogs, in no order. Raises as `discover` does."""
        try:
            listed = self._storage.list_files(
                CATALOG_DIRECTORY, lambda name: is_catalog_name(f"{CATALOG_DIRECTORY}/{name}")
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise cannot_list(self.describe(), error) from error
        return [name.partition(".")[0] for name, _ in listed]

    def remove(self, name: str) -> None:
        """Remove the file, and its snapshot's directory if it was the last one there; fine when it is gone.

        Raises RetentionError when it cannot be removed.
        """
        check_name(name)
        try:
            self._storage.delete(name)
            self._storage.delete(temporary_name(name))
            if parse_snapshot_name(name) is not None:
                self._storage.delete_directory(name.partition("/")[0])
        except OSError as error:
            raise cannot_remove(self._location(name), self._storage.directory, error) from error

    def describe(self) -> str:
        """Return where the archive is, for messages: without secrets."""
        return self._storage.describe()

    def read_head(self) -> Head | None:
        """Return the archiver's sign of life; None where the archive has none.

        Raises ParseError when it is broken, or not signed as it must be, FetchError when it cannot be read.
        """
        try:
            head = parse_head(self._read_document(HEAD_NAME, MAX_HEAD_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(self._location(HEAD_NAME), error) from error
        if self.keys is not None:
            self.keys.check_head(head, HEAD_NAME)
        self._head_time = head.time
        return head

    def close(self) -> None:
        """Let go of the archive; a fetch or put that is running fails soon."""
        self._storage.close()

    def _read_document(self, name: str, most_bytes: int) -> bytes:
        """Return the file's content; of one that has grown beyond *most_bytes*, one byte more than that.

        Raises ParseError for a file that is longer, OSError.
        """
        # Asked first, for `open` may fetch the whole file: one of a terabyte, which costs its writer nothing
        # where files can have holes, would fill this machine's disk.
        size_bytes = self._storage.size_of(name)
        if size_bytes is not None and size_bytes > most_bytes:
            raise ParseError(
                f"it has {size_bytes:,} bytes, and may have {most_bytes:,}",
                hint="find out who writes to the archive, and put the right file in its place",
                file=name,
            )
        with self._storage.open(name) as stream:
            return stream.read(most_bytes + 1)

    def _tell_of_others(self, names: Iterable[str]) -> None:
        """Warn, once for each in this process, of files that look as if they held changes, but have no
        change file's name. Theirs are from outside: they are shown as escapes, shortened."""
        others = sorted(names)
        if not others:
            return
        shown = ", ".join(shortened(ascii(name)) for name in others[:5]) + (", …" if len(others) > 5 else "")
        logger.warning(
            "%s: %d file(s) are not read, for their names are not changes_YYYYMMDD_HHMMSS.json with a date"
            " that there is: %s",
            self.describe(),
            len(others),
            shown,
        )

    def _files_of_snapshot(self, directory: str) -> list[SnapshotFile]:
        def is_of_a_table(name: str) -> bool:
            return snapshot_file(f"{directory}/{name}", 0) is not None

        try:
            listed = self._storage.list_files(directory, is_of_a_table)
        except (FileNotFoundError, NotADirectoryError):
            return []  # Removed since the archive was listed, or a file with a directory's name.
        named = (snapshot_file(f"{directory}/{name}", size_bytes) for name, size_bytes in listed)
        return [file for file in named if file is not None]

    def _location(self, name: str) -> str:
        return f"{self.describe().rstrip('/')}/{name}"


def open_archive(
    settings: ArchiveSettings, *, spool_dir: Path | None = None, keys: PublicKeys | None = None
) -> Archive:
    """Return the archive that *settings* describe, without connecting: the first use does.

    In *spool_dir* a storage keeps the anonymous temporary copies of fetched files. *keys*: as in `Archive`.
    """
    return Archive(settings.open_storage(spool_dir=spool_dir), keys=keys)
