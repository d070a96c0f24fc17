"""The spool: change files and snapshots as they are written on the production side, before they travel.

Knows the format's header and footer, compression, and how a file becomes durable; knows nothing of
PostgreSQL or the archive. A file is written under a hidden name, flushed to the disk, and renamed when it
is whole; so what has its name here is whole, whatever happens to the process.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import zstandard

from syncdata.changes.filenames import stem
from syncdata.changes.header import Footer, Header
from syncdata.changes.position import format_lsn
from syncdata.changes.reader import inspect
from syncdata.errors import SpoolError

Compression = Literal["none", "gzip", "zstd"]
SUFFIXES: dict[Compression, str] = {"none": ".json", "gzip": ".json.gz", "zstd": ".json.zst"}

_BUFFER_BYTES = 1 << 18
_TIME_IN_NAME = "%Y%m%d_%H%M%S"
_NAME = re.compile(r"changes_(\d{8}_\d{6})")


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
    """Writes one file: the header, lines, and a footer with the SHA-256 of all before it.

    Memory is bounded by a small buffer. Every method raises SpoolError when the disk refuses.
    """

    def __init__(self, directory: Path, part_name: str, header: Header, compression: Compression) -> None:
        self.header = header
        self._directory = directory
        self._part = directory / part_name
        self._compression = compression
        self._lines: list[bytes] = []
        self._buffered_bytes = self._flushed_bytes = 0
        self._digest = hashlib.sha256()
        with translated(self._part):
            self._raw = self._part.open("wb")
            self._out = _compress(self._raw, compression)
        self.write(comment(header))

    @property
    def text_bytes(self) -> int:
        """How much was written so far, before compression."""
        return self._flushed_bytes + self._buffered_bytes

    @property
    def suffix(self) -> str:
        return SUFFIXES[self._compression]

    def write(self, line: bytes) -> None:
        """Add *line*, which ends with a newline."""
        self._lines.append(line)
        self._buffered_bytes += len(line)
        if self._buffered_bytes >= _BUFFER_BYTES:
            self._flush()

    def finish(
        self,
        name: str,
        *,
        records: int,
        transactions: int,
        first_commit_lsn: int | None,
        last_commit_lsn: int | None,
        end_lsn: int | None,
    ) -> SpooledFile:
        """Write the footer and give the file *name*, without its suffix; then it is durable."""
        self._flush()
        footer = Footer(
            end=True,
            records=records,
            transactions=transactions,
            first_commit_lsn=_text(first_commit_lsn),
            last_commit_lsn=_text(last_commit_lsn),
            end_lsn=_text(end_lsn),
            sha256=self._digest.hexdigest(),
        )
        path = self._directory / f"{name}{self.suffix}"
        with translated(self._part):
            self._out.write(comment(footer))
            if self._out is not self._raw:
                self._out.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._part.rename(path)
            sync_directory(self._directory)
        return SpooledFile(path=path, header=self.header, footer=footer)

    def discard(self) -> None:
        """Give the file up and remove it, whatever the disk says to its rest."""
        for file in (self._out, self._raw):
            with suppress(OSError, ValueError):
                file.close()
        with translated(self._part):
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        block = b"".join(self._lines)
        self._lines.clear()
        self._buffered_bytes = 0
        self._flushed_bytes += len(block)
        self._digest.update(block)
        with translated(self._part):
            self._out.write(block)


def comment(content: Header | Footer) -> bytes:
    """Return a header or footer as the line that stands in the file; what is not set is left out."""
    fields = {name: value for name, value in msgspec.to_builtins(content).items() if value is not None}
    if isinstance(content, Header) and content.seq is not None:
        fields["prev"] = content.prev  # null, too, says something: nothing came before
    return b"# " + msgspec.json.encode(fields) + b"\n"


def next_name(now: dt.datetime, last_name: str | None) -> str:
    """Return a change file's name without suffix: that of *now*, or of the second after *last_name*'s.

    So names never repeat and never go back, however fast the files come and whatever the clock does.
    Raises SpoolError when *last_name* is none that can be followed.
    """
    if last_name is None:
        return f"changes_{next_stamp(now, None)}"
    match = _NAME.match(last_name)
    try:
        name = f"changes_{next_stamp(now, match[1] if match else None)}"
    except (ValueError, OverflowError):
        name = ""
    if name <= stem(last_name):
        raise SpoolError(
            f"no name of a change file can follow {last_name!r}",
            hint="rename that file in the archive to changes_YYYYMMDD_HHMMSS",
        )
    return name


def next_stamp(now: dt.datetime, last_stamp: str | None) -> str:
    """Return *now* as it stands in names, ``YYYYMMDD_HHMMSS``, or the second after *last_stamp* if that is
    not before it. Raises ValueError or OverflowError when *last_stamp* is no time, or the last one."""
    stamp = f"{now.astimezone(dt.UTC):{_TIME_IN_NAME}}"
    if last_stamp is None or stamp > last_stamp:
        return stamp
    return f"{dt.datetime.strptime(last_stamp, _TIME_IN_NAME) + dt.timedelta(seconds=1):{_TIME_IN_NAME}}"


def list_finished(directory: Path) -> list[tuple[str, int]]:
    """Return name and size in bytes of the change files that wait in the spool, in order. Read-only."""
    with translated(directory):
        if not directory.exists():
            return []
        return sorted((path.name, path.stat().st_size) for path in directory.iterdir() if _is_finished(path))


def take_over(directory: Path) -> list[SpooledFile]:
    """Return the finished change files in the spool, in order, and remove what was left unfinished.

    Only for the one who writes there.

    A file that is not what its footer says is removed, too: nothing of it was confirmed, so the source
    sends it again. Raises SpoolError for a file that is not of an archiver.
    """
    found = []
    with translated(directory):
        for path in sorted(directory.iterdir()):
            if path.name.startswith(".changes") and path.name.endswith(".part"):
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


def write_durably(path: Path, content: bytes) -> None:
    """Replace *path* by *content*, so that after a power cut it is the old or the new one, never half."""
    part = path.with_name(f".{path.name}.part")
    with translated(path):
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the disk says about *path* into a SpoolError."""
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"the spool cannot be used: {error.strerror or error}",
            hint="free space there, or let the archiver's user write to it; nothing is lost,"
            " for the source keeps what was not confirmed",
            file=str(path),
        ) from error


def _is_finished(path: Path) -> bool:
    return _NAME.match(path.name) is not None and path.name.endswith(tuple(SUFFIXES.values()))


def _compress(raw: BinaryIO, compression: Compression) -> BinaryIO:
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0)  # type: ignore[return-value]
        case "zstd":
            return zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(raw, closefd=False)
    return raw


def _text(lsn: int | None) -> str | None:
    return None if lsn is None else format_lsn(lsn)
