"""The port of a storage, which holds an archive's files: a directory, and directories in it, one level deep.

This is all that another kind of archive has to offer. A name here is ``file`` or ``directory/file``.
Contracts of every method:

- It may be called again after any failure, also when it is not known whether the call before succeeded (the
  connection was lost in the middle, say). Its answer is about the files as they are now.
- It raises OSError, with an errno where one is known, for what the storage refuses;
  ArchiveConnectionError when the storage cannot be reached. Where connections get lost, the storage tries
  again by itself before it gives up.
- One thread uses a storage at a time, but any may call `close`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from syncdata.archive.content import Content

# The permissions of an archive's files: they hold production's rows. The group is the readers', where the two
# are different accounts. On this machine they count whatever the umask says; a backup host's umask may take
# more away, for it is its administrator's word.
FILE_MODE = 0o640


class Storage(Protocol):
    @property
    def directory(self) -> str:
        """The directory as its own host knows it, so that commands in hints can be pasted there."""
        ...

    def describe(self) -> str:
        """Return where the storage is, for messages: without secrets."""
        ...

    def list_files(self, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
        """Return name and size in bytes of the wanted files of *directory* (its root: ``""``), in no order.

        For a name that is not wanted, no request is made. Links are followed. Entries that are not regular
        files, or that have gone since, are left out. A name that is not UTF-8 is text with lone surrogates,
        and hides no other. Raises FileNotFoundError or NotADirectoryError when there is no such directory.
        """
        ...

    def list_directories(self, is_wanted: Callable[[str], bool]) -> list[str]:
        """Return the wanted names in the root that may be directories, in no order. Raises as above."""
        ...

    def size_of(self, name: str) -> int | None:
        """Return the size in bytes; None when there is no such file."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Return the whole file as it is now, as a seekable stream at its beginning.

        Read again, it gives the same bytes, or raises FetchError: they are proved once, then applied. Raises
        FileNotFoundError when there is none, FetchError when there is no room for a copy.
        """
        ...

    def holds(self, name: str, content: Content) -> bool:
        """Tell whether the file is *content*, byte for byte. Raises FileNotFoundError when there is none."""
        ...

    def create(self, name: str, content: Content) -> None:
        """Make a file of *content*, durable on return; it replaces a file of that name.

        Others than its owner and, where the settings say so, its group cannot read it, at no moment.

        The old file is removed, never written over: it may have a second name, or the server may still be
        writing to it for a connection that was lost. The file's directory is made where it is missing. The
        root is not: a missing root is a disk that is not mounted. A failure may leave a part of the file.
        """
        ...

    def rename(self, old: str, new: str) -> None:
        """Give the file *old* the name *new*, at once, in the same directory.

        Nothing is ever overwritten: raises FileExistsError when there is a file *new*, also if it is the
        same file, renamed by a try whose answer was lost.
        """
        ...

    def replace(self, old: str, new: str) -> None:
        """Give the file *old* the name *new*, in the same directory, in place of the file of that name.

        A reader finds the one or the other file, and never a part. Where a storage cannot do that, there may
        be none for a moment. Fine when a try whose answer was lost has done it already.
        """
        ...

    def make_durable(self, name: str) -> None:
        """Let the file and its name survive a crash of its host."""
        ...

    def delete(self, name: str) -> None:
        """Remove the file; fine when it is gone."""
        ...

    def delete_directory(self, name: str) -> None:
        """Remove the directory if it is there and empty; leave it if it is not."""
        ...

    def close(self) -> None:
        """Let go of the storage for good; a call that is running in another thread fails soon."""
        ...


@runtime_checkable
class InDirectory(Protocol):
    """A storage that is a directory of this machine, whose events tell of new files."""

    @property
    def path(self) -> Path: ...


@runtime_checkable
class Dated(Protocol):
    """A storage that can tell, for little, whether names have appeared in its root, or gone from there."""

    def root_changed_at(self) -> int | None:
        """Return a time that every such change changes, in a unit of its own; None where none can be told.

        Two changes within a second may leave the same time. As fresh as a listing would be.
        """
        ...


class ArchiveSettings(Protocol):
    """The settings of one kind of storage: a frozen dataclass, each field declared by `setting`."""

    def open_storage(self, *, spool_dir: Path | None) -> Storage:
        """Return the storage without connecting to it: the first use does.

        A copy of a fetched file, where one is needed, is an anonymous temporary file in *spool_dir* (the
        system's temporary directory without it), which vanishes with the process.
        """
        ...
