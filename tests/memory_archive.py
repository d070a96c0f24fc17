"""A kind of archive that syncdata does not come with: all that it takes to add one, and a storage that fails.

A site would name it in its configuration: ``archive_backend = "tests.memory_archive.MemorySettings"``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from syncdata.archive.content import Content
from syncdata.errors import ArchiveConnectionError
from syncdata.runtime.settings import a_secret, a_text, setting, whole_number

BUCKETS: dict[str, dict[str, bytes]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    bucket: str = field(metadata=setting("archive_bucket", a_text))
    token: str | None = field(default=None, repr=False, metadata=setting("archive_token", a_secret))
    copies: int = field(default=1, metadata=setting("archive_copies", whole_number(1, 9), "COPIES"))

    def open_storage(self, *, spool_dir: Path | None) -> MemoryStorage:
        return MemoryStorage(self.bucket)


class MemoryStorage:
    """Files in a dictionary. *disturb* is called before and after the effect of every method."""

    def __init__(self, bucket: str, disturb: Callable[[], None] = lambda: None) -> None:
        self._bucket = bucket
        self._disturb = disturb
        self.files = BUCKETS.setdefault(bucket, {})
        self.durable: set[str] = set()

    @property
    def directory(self) -> str:
        return self._bucket

    def describe(self) -> str:
        return f"memory://{self._bucket}"

    def list_files(self, directory: str, is_wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
        self._disturb()
        parts = [(name.rpartition("/"), len(content)) for name, content in self.files.items()]
        return [(part[2], size) for part, size in parts if part[0] == directory and is_wanted(part[2])]

    def list_directories(self, is_wanted: Callable[[str], bool]) -> list[str]:
        self._disturb()
        found = {name.partition("/")[0] for name in self.files if "/" in name}
        return [name for name in found if is_wanted(name)]

    def size_of(self, name: str) -> int | None:
        self._disturb()
        return len(self.files[name]) if name in self.files else None

    def open(self, name: str) -> BinaryIO:
        self._disturb()
        return io.BytesIO(self._content(name))

    def holds(self, name: str, content: Content) -> bool:
        self._disturb()
        return content.equals([self._content(name)])

    def create(self, name: str, content: Content) -> None:
        self.files.pop(name, None)
        for block in content.blocks(3):
            self._disturb()
            self.files[name] = self.files.get(name, b"") + block
        self.files.setdefault(name, b"")
        self._disturb()

    def rename(self, old: str, new: str) -> None:
        self._disturb()
        if new in self.files:
            raise FileExistsError
        self.files[new] = self._content(old)
        self._disturb()
        del self.files[old]
        self._disturb()

    def replace(self, old: str, new: str) -> None:
        self._disturb()
        if old in self.files:
            self.files[new] = self.files.pop(old)
        elif new not in self.files:
            raise FileNotFoundError(2, "No such file", old)
        self._disturb()

    def make_durable(self, name: str) -> None:
        self._disturb()
        self._content(name)
        self.durable.add(name)
        self._disturb()

    def delete(self, name: str) -> None:
        self._disturb()
        self.files.pop(name, None)
        self._disturb()

    def delete_directory(self, name: str) -> None:
        """There are no directories but in names."""

    def close(self) -> None:
        """Nothing is held open."""

    def _content(self, name: str) -> bytes:
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(2, "No such file", name) from None


class Outage:
    """Lets a storage be lost when it is disturbed for the *at*-th time, once."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.has_come = False

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.has_come = True
            raise ArchiveConnectionError("lost")
