"""The archive as a small port: what files there are, the bytes of one, and how one gets there.

What lies behind it is a directory of this machine or of the backup host; who uses an archive imports
from here. It knows names, order and where files lie; it knows nothing of what is inside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

from syncdata.archive.local import LocalArchive, LocalSettings
from syncdata.archive.sftp import SftpArchive
from syncdata.archive.ssh import SftpSettings
from syncdata.changes.filenames import (
    ArchivedFile,
    ChangeFile,
    SnapshotFile,
    parse_snapshot_name,
    snapshot_name,
)

__all__ = [
    "Archive",
    "ArchivedFile",
    "ChangeFile",
    "LocalArchive",
    "LocalSettings",
    "SftpArchive",
    "SftpSettings",
    "SnapshotFile",
    "WritableArchive",
    "open_archive",
    "parse_snapshot_name",
    "snapshot_name",
]


class Archive(Protocol):
    """What readers need. Safe to use from one thread at a time; `close` from any."""

    def discover(self, since: str | None) -> list[ChangeFile]:
        """Return the change files whose stem is not before *since*'s (all without it), in order.

        *since* itself is included, so that a file half applied is found again. Temporary, hidden and
        other names are left out, and one file is returned for each stem. Raises DiscoveryError when
        the directory cannot be listed, ArchiveConnectionError when the host cannot be reached.
        """
        ...

    def discover_snapshots(self) -> list[SnapshotFile]:
        """Return the snapshots' files, those of the newest snapshot first, by table within each.

        Temporary, hidden and other names are left out; whether a file is finished, its footer tells.
        A snapshot that vanishes meanwhile is no error. Raises as `discover` does.
        """
        ...

    def fetch(self, file: ArchivedFile) -> BinaryIO:
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
        """Let go of the archive; a fetch or put that is running fails soon."""
        ...


class WritableArchive(Archive, Protocol):
    """What the production side needs, too. Both methods may be called again after whatever happened."""

    def put(self, name: str, content: BinaryIO) -> None:
        """Put all of *content*, which is seekable, into the archive as *name*: whole, durable and once.

        *name* is a change file's, or a snapshot file's (`snapshot_name`), whose directory is made. Until
        all has arrived and is on the disk, there is only a hidden temporary file. When the name is taken
        by the same bytes, nothing is written. Nothing is ever overwritten: raises DeliveryError when
        other bytes have the name, or the archive refuses the file (disk full, no permission, …),
        ArchiveConnectionError when the host cannot be reached, SpoolError when *content* cannot be read.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove the file, and its snapshot's directory if it was the last one; fine when it is gone.

        Raises RetentionError when it cannot be removed, ArchiveConnectionError as ever.
        """
        ...


def open_archive(settings: SftpSettings | LocalSettings, *, spool_dir: Path | None = None) -> WritableArchive:
    """Return the archive that *settings* describe, without connecting: the first use does.

    SFTP copies each file that is fetched into an anonymous temporary file in *spool_dir* (the system's
    temporary directory without it), which vanishes with the process.
    """
    if isinstance(settings, LocalSettings):
        return LocalArchive(settings)
    return SftpArchive(settings, spool_dir=spool_dir)
