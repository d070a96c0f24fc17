"""The spool: change files and snapshots are written here, on the production side, before they are uploaded.

Knows files, and how one becomes durable; knows nothing of PostgreSQL, the archive, or the lines of a file.
A file is written under a hidden name, flushed to the disk, and renamed when it is whole. So a file with its
final name is whole, whatever happens to the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from syncdata.archive.signatures import Signer
from syncdata.changes.catalog import CATALOG_DIRECTORY, catalog_name, is_catalog_name
from syncdata.changes.filenames import SUFFIXES, Compression, is_change_file
from syncdata.changes.header import Footer, Header
from syncdata.changes.reader import DEFAULT_MAX_RECORD_BYTES, inspect
from syncdata.changes.writer import ChangeFileWriter
from syncdata.errors import SpoolError
from syncdata.runtime.durable import fsync_directory, private, replace_file

logger = logging.getLogger(__name__)

# The open change file, and new states of the chain that a crash left behind. Parts of snapshots are not among
# them: they belong to the process that takes the snapshot.
_OURS = (
    ".changes",
    ".chain.json.",
    ".catalog.json.",
    ".owed.json.",
    ".published.json.",
    ".trouble.json.",
    ".unreadable.json.",
    ".verification.json.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledFile:
    """A finished change file in the spool."""

    path: Path
    header: Header
    footer: Footer

    @property
    def name(self) -> str:
        return self.path.name


class FileWriter:
    """Writes one file of the spool: it has a hidden name while it grows, and its own once it is durable.
    *signer*, where there is one, signs it.

    Every method raises SpoolError when the disk refuses.
    """

    def __init__(
        self,
        directory: Path,
        part_name: str,
        header: Header,
        compression: Compression,
        *,
        signer: Signer | None = None,
    ) -> None:
        self.header = header
        self._signer = signer
        self._directory = directory
        self._part = directory / part_name
        self._suffix = SUFFIXES[compression]
        with translated(self._part):
            # Its rows are for its owner's eyes only, also in a spool that somebody else made.
            if self._part.is_file():
                self._part.unlink()
            self._raw = open(self._part, "wb", opener=private)  # noqa: SIM115
            self._content = ChangeFileWriter(self._raw, header, compression)

    @property
    def text_bytes(self) -> int:
        """The number of bytes written so far, before compression."""
        return self._content.text_bytes

    def write(self, line: bytes) -> None:
        """Add *line*, which ends with a newline; or several that are short."""
        try:  # Not `translated`: entering a context manager costs more than adding a line.
            self._content.write(line)
        except OSError as error:
            raise _spool_error(self._part, error) from error
        if len(line) > DEFAULT_MAX_RECORD_BYTES:
            # It is archived all the same: the row is production's, and nothing of it may be lost.
            logger.warning(
                "a record has %s bytes: readers need a max_record_bytes above that in their configuration, or"
                " they stop at it",
                f"{len(line):,}",
            )

    def finish(
        self,
        name: str,
        *,
        records: int,
        transactions: int,
        first_commit_lsn: int | None,
        last_commit_lsn: int | None,
        end_lsn: int | None,
        archived_as: str | None = None,
    ) -> SpooledFile:
        """Write the footer and rename the file to *name* with its suffix; it is durable on return.

        *archived_as*: its name in the archive, which is signed, where that is another.
        """
        signer, signed_name = self._signer, archived_as or name
        path = self._directory / f"{name}{self._suffix}"
        with translated(self._part):
            footer = self._content.finish(
                records=records,
                transactions=transactions,
                first_commit_lsn=first_commit_lsn,
                last_commit_lsn=last_commit_lsn,
                end_lsn=end_lsn,
                sign=lambda footer: signer.sign_footer(signed_name, footer) if signer else footer,
            )
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._part.rename(path)
            fsync_directory(self._directory)
        return SpooledFile(path=path, header=self.header, footer=footer)

    def discard(self) -> None:
        """Give the file up and remove it, even where the disk refuses to take its rest."""
        self._content.give_up()
        with suppress(OSError, ValueError):
            self._raw.close()
        with translated(self._part):
            self._part.unlink(missing_ok=True)


def list_finished(directory: Path) -> list[tuple[str, int]]:
    """Return name and size in bytes of the change files that wait in the spool, in order. Read-only."""
    with translated(directory):
        if not directory.exists():
            return []
        return sorted((path.name, path.stat().st_size) for path in directory.iterdir() if _is_finished(path))


def take_over(directory: Path) -> list[SpooledFile]:
    """Return the finished change files in the spool, in order, and remove unfinished ones.

    Only for the process that writes there. A file whose footer does not fit its contents is removed, too:
    nothing of it was confirmed, so the source sends it again. Raises SpoolError for a change file that no
    archiver wrote.
    """
    found = []
    with translated(directory):
        for path in (directory / CATALOG_DIRECTORY).glob(".*.part"):
            path.unlink()
        for path in sorted(directory.iterdir()):
            if path.name.startswith(_OURS) and path.name.endswith(".part"):
                path.unlink()
            elif _is_finished(path):
                with path.open("rb") as stream:
                    inspection = inspect(stream, path.name)
                if inspection.header is None and not inspection.unfinished and not inspection.error:
                    raise SpoolError(
                        "a change file in the spool is not the archiver's",
                        hint="move it elsewhere: spool_dir must be a directory of the archiver's own",
                        file=str(path),
                    )
                if inspection.header is None or inspection.footer is None:
                    path.unlink()
                    continue
                found.append(SpooledFile(path=path, header=inspection.header, footer=inspection.footer))
    return found


def make_spool(directory: Path) -> None:
    """Make the spool where it is missing, for its owner's eyes only."""
    with translated(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def remove_from_spool(file: SpooledFile) -> None:
    """Remove *file*, which is in the archive; nothing happens when it is gone already."""
    with translated(file.path):
        file.path.unlink(missing_ok=True)


def keep_catalog(directory: Path, digest: str, content: bytes) -> None:
    """Keep a catalog's *content* in the spool, durable, until it is in the archive."""
    kept = directory / CATALOG_DIRECTORY
    with translated(kept):
        if not kept.exists():
            kept.mkdir(mode=0o700)
            fsync_directory(directory)
        replace_file(directory / catalog_name(digest), content)


def waiting_catalogs(directory: Path) -> list[tuple[str, Path]]:
    """Return name in the archive and path of each catalog that the spool keeps."""
    kept = directory / CATALOG_DIRECTORY
    with translated(kept):
        if not kept.exists():
            return []
        named = ((f"{CATALOG_DIRECTORY}/{path.name}", path) for path in sorted(kept.iterdir()))
        return [(name, path) for name, path in named if is_catalog_name(name)]


def replace_in_spool(path: Path, content: bytes) -> None:
    """Replace *path* by *content*, so that after a power cut it is the old or the new file, never half."""
    with translated(path):
        replace_file(path, content)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the disk's errors in the block as a SpoolError about *path*."""
    try:
        yield
    except OSError as error:
        raise _spool_error(path, error) from error


def _spool_error(path: Path, error: OSError) -> SpoolError:
    return SpoolError(
        f"the spool cannot be used: {error.strerror or error}",
        hint="free space there, or let the archiver's user write to it; nothing is lost,"
        " for the source keeps what was not confirmed",
        file=str(path),
    )


def _is_finished(path: Path) -> bool:
    return is_change_file(path.name)
