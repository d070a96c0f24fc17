"""How a file gets into an archive: whole, durable and once, however often it is tried.

Knows the steps and their order; knows nothing of disks or servers. The content is written under a
temporary name, made durable, and only then given its name, which never overwrites. So a name that is
taken is either ours, from a try whose end was lost, or somebody else's: the bytes tell.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from syncdata.changes.filenames import temporary_name
from syncdata.errors import DeliveryError, SpoolError


class Shelf(Protocol):
    """The directory of an archive, as deliveries see it. Raises OSError for what is refused."""

    BLOCK_BYTES: int

    def size_of(self, name: str) -> int | None:
        """Size in bytes; None when there is no such file."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """The content in order, in blocks."""
        ...

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        """Make a file of *blocks*, durable, in place of any there was; its directory, too, where missing."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Raises FileExistsError when there is a *new*; it is never overwritten."""
        ...

    def make_durable(self, name: str) -> None:
        """Let the file and its name survive a crash of the archive's host."""
        ...

    def discard(self, name: str) -> None:
        """Remove the file if there is one."""
        ...


def deliver(shelf: Shelf, name: str, content: BinaryIO, *, place: str) -> None:
    """Put all of *content*, which is seekable, under *name*; fine when it is there already.

    Raises DeliveryError, naming *place*, when another file has the name, SpoolError when *content*
    cannot be read, OSError for what the shelf refuses: then the temporary file may be left.
    """
    if not _is_new(shelf, name, content):
        is_ours = _is_held(shelf, name, content)
        shelf.discard(temporary_name(name))
        if not is_ours:
            raise DeliveryError(
                "the archive has a different file of this name",
                hint="two archivers write to this archive_dir: stop one, or give it a directory of its own;"
                " it is never overwritten",
                file=place,
            )
    # Also for a file that was there: it may come from a try that crashed just before this.
    shelf.make_durable(name)


def _is_new(shelf: Shelf, name: str, content: BinaryIO) -> bool:
    """Write *content* under *name*; False, and nothing is changed, when the name is taken."""
    if shelf.size_of(name) is not None:
        return False
    temporary = temporary_name(name)
    size_bytes = _size_of(content)
    shelf.write(temporary, _blocks(content, shelf.BLOCK_BYTES))
    if shelf.size_of(temporary) != size_bytes:
        raise OSError(f"{shelf.size_of(temporary)} of {size_bytes} bytes have arrived")
    try:
        shelf.rename(temporary, name)
    except FileExistsError:
        return False
    return True


def _is_held(shelf: Shelf, name: str, content: BinaryIO) -> bool:
    if shelf.size_of(name) != _size_of(content):
        return False
    content.seek(0)
    return all(_read(content, len(block)) == block for block in shelf.read(name)) and not _read(content, 1)


def _blocks(content: BinaryIO, block_bytes: int) -> Iterator[bytes]:
    content.seek(0)
    while block := _read(content, block_bytes):
        yield block


def _size_of(content: BinaryIO) -> int:
    return content.seek(0, io.SEEK_END)


def _read(content: BinaryIO, length: int) -> bytes:
    try:
        return content.read(length)
    except OSError as error:
        # Its own class, for an OSError would be taken for the archive's.
        raise SpoolError(
            f"the file that waits for delivery cannot be read: {error.strerror}",
            hint="check the disk of spool_dir",
        ) from error
