"""The settings of an archive on the backup host. Knows keys; SSH is imported when a storage is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from syncdata.archive.login import Login
from syncdata.archive.storage import FILE_MODE
from syncdata.runtime.settings import a_file_mode, a_remote_path, setting

if TYPE_CHECKING:
    from syncdata.archive.sftp_storage import SftpStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class SftpSettings(Login):
    """A directory at the backup host; a relative one, or ``~/…``, begins at the login's home."""

    directory: str = field(metadata=setting("archive_dir", a_remote_path))
    file_mode: str = field(default=f"{FILE_MODE:04o}", metadata=setting("archive_file_mode", a_file_mode))

    def open_storage(self, *, spool_dir: Path | None) -> SftpStorage:
        # Here, since importing paramiko takes longer than reading the whole configuration.
        from syncdata.archive.sftp_storage import SftpStorage

        return SftpStorage(self, self.directory, spool_dir=spool_dir, file_mode=int(self.file_mode, 8))
