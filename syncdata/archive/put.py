"""Puts a file into an archive: whole, durable and once, however often it is tried.

Knows the steps and their order; knows nothing of disks or servers. The content is written under a
temporary name, made durable, and only then given its name; giving a name never overwrites. If the name is
taken, the file there is either our own, from a try whose end we did not hear of, or somebody else's. A
comparison of the bytes tells which.
"""

from __future__ import annotations

from syncdata.archive.content import Content
from syncdata.archive.storage import Storage
from syncdata.changes.filenames import temporary_name
from syncdata.errors import DeliveryError


def put_once(storage: Storage, name: str, content: Content, *, location: str) -> None:
    """Put all of *content* under *name*; fine when it is there already.

    Raises DeliveryError, naming *location*, when another file has the name, SpoolError when *content*
    cannot be read, and the errors of *storage*; then the temporary file may be left.
    """
    if not _write_new(storage, name, content):
        is_ours = storage.size_of(name) == content.size_bytes and storage.holds(name, content)
        storage.delete(temporary_name(name))
        if not is_ours:
            raise DeliveryError(
                "the archive has a different file of this name",
                hint="two archivers write to this archive: stop one, or give it an archive of its own;"
                " it is never overwritten",
                file=location,
            )
    # Also when the file was there already: it may come from a try that crashed just before this line.
    storage.make_durable(name)


def _write_new(storage: Storage, name: str, content: Content) -> bool:
    """Write *content* under *name*; False, and nothing is changed, when the name is taken."""
    if storage.size_of(name) is not None:
        return False
    temporary = temporary_name(name)
    size_bytes = content.size_bytes
    storage.create(temporary, content)
    arrived_bytes = storage.size_of(temporary)
    if arrived_bytes != size_bytes:
        raise OSError(f"{arrived_bytes} of {size_bytes} bytes have arrived")
    try:
        storage.rename(temporary, name)
    except FileExistsError:
        return False
    return True
