"""The names of an archive's files: their parts, the time in them, their order. Pure; lists nothing itself.

A change file is called ``changes_YYYYMMDD_HHMMSS.json``, and nothing else: a copy such as
``changes_backup.json`` would sort behind every other, be taken for the newest file, and nothing would ever
follow it. Its *stem* (its name without ``.json``, ``.json.gz``, ``.json.zst``) is its identity and its
place in the order, so a file that is compressed after it was applied is not a new file. A snapshot is a
directory named by its time, with one file for each table. A file whose name begins with a dot is still being
written. The time in a name is its *stamp*, ``YYYYMMDD_HHMMSS`` in UTC, a time that the calendar has.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias
from urllib.parse import unquote

from syncdata.changes.catalog import is_catalog_name
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError

Compression = Literal["none", "gzip", "zstd"]
SUFFIXES: dict[Compression, str] = {"none": ".json", "gzip": ".json.gz", "zstd": ".json.zst"}

_OWN_FILES = frozenset({"head.json"})
_STAMP = re.compile(r"[0-9]{8}_[0-9]{6}")
_CHANGE_FILE = re.compile(rf"changes_({_STAMP.pattern})\.json(?:\.gz|\.zst)?")
# What a person, a shell or a tool makes of the name of a change file, or of a snapshot.
_LOOKS_LIKE_CHANGES = re.compile(
    r"\s*(changes|snapshot)[ _-]?.*|.*\.json(\.gz|\.zst)?", re.DOTALL | re.IGNORECASE
)
_UNFINISHED = (".tmp", ".part")
_MOST_AHEAD = dt.timedelta(days=2)
_STAMP_FORMAT = "%Y%m%d_%H%M%S"
_STAMPED_CHANGE_FILE = re.compile(rf"changes_({_STAMP.pattern})")
_SNAPSHOT_DIRECTORY = re.compile(rf"snapshot_({_STAMP.pattern})")
_SNAPSHOT_FILE = re.compile(rf"snapshot_({_STAMP.pattern})/([^./]+)\.([^./]+)\.json\.gz", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFile:
    """A change file as the archive lists it. *size_bytes* is its size as stored, perhaps compressed."""

    name: str
    size_bytes: int

    @property
    def stem(self) -> str:
        return stem(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFile:
    """One table of a snapshot as the archive lists it. *name* includes the snapshot's directory."""

    table: TableName
    name: str
    size_bytes: int

    @property
    def stamp(self) -> str:
        """The snapshot's time, ``YYYYMMDD_HHMMSS``, by which the files of one snapshot belong together."""
        return self.name.removeprefix("snapshot_").partition("/")[0]


ArchivedFile: TypeAlias = ChangeFile | SnapshotFile


def is_change_file(name: str) -> bool:
    """Tell whether *name* is that of a finished change file: a stamp that is a time, and one of SUFFIXES."""
    match = _CHANGE_FILE.fullmatch(name)
    return match is not None and _is_time(match[1])


def is_wanted(name: str, since: str) -> bool:
    """Tell whether *name* is a change file's, and its stem is *since*, which is one, or comes after it."""
    # What is true of the stem is true of the name, and that is soon seen.
    return name >= since and is_change_file(name) and stem(name) >= since


def is_left_out(name: str) -> bool:
    """Tell whether *name*, of the archive's root, looks like a change file's or a snapshot's and is neither.

    Such as ``changes_20260205_103000 (copy).json``, ``changes_20260230_103000.json``, and every other
    ``*.json``: the predecessor read them all.
    """
    if name.startswith(".") or name.endswith(_UNFINISHED) or name in _OWN_FILES:
        return False
    is_ours = is_change_file(name) or is_snapshot_directory(name)
    return not is_ours and _LOOKS_LIKE_CHANGES.fullmatch(name) is not None


def is_snapshot_directory(name: str) -> bool:
    match = _SNAPSHOT_DIRECTORY.fullmatch(name)
    return match is not None and parse_stamp(match[1]) is not None


def snapshot_name(stamp: str, table: TableName) -> str:
    """Return the name of *table*'s file in the snapshot of *stamp* (``YYYYMMDD_HHMMSS``)."""
    if parse_stamp(stamp) is None:
        raise ValueError(f"{stamp!r} is no time of a snapshot")
    return f"snapshot_{stamp}/{_encode(table.schema)}.{_encode(table.name)}.json.gz"


def parse_snapshot_name(name: str) -> tuple[str, TableName] | None:
    """Return stamp and table of a name that `snapshot_name` makes; None for any other."""
    match = _SNAPSHOT_FILE.fullmatch(name)
    if match is None:
        return None
    stamp, schema, table = match.groups()
    if parse_stamp(stamp) is None:
        return None
    try:
        name.encode()  # A local name that is not UTF-8 is no text.
        found = TableName(unquote(schema, errors="strict"), unquote(table, errors="strict"))
    except UnicodeError:
        return None
    return (stamp, found) if snapshot_name(stamp, found) == name else None


def snapshot_file(name: str, size_bytes: int) -> SnapshotFile | None:
    """Return the snapshot file called *name*; None when no snapshot file is called so."""
    parsed = parse_snapshot_name(name)
    return parsed and SnapshotFile(table=parsed[1], name=name, size_bytes=size_bytes)


def check_name(name: str) -> None:
    """Raise ValueError for a name that is no change file's, snapshot file's or catalog's.

    A name like ``../secret`` could lead out of the archive.
    """
    if not is_change_file(name) and parse_snapshot_name(name) is None and not is_catalog_name(name):
        raise ValueError(f"{name!r} is no name of a change file, snapshot file or catalog")


def temporary_name(name: str) -> str:
    """Return the name that the file *name* has while it is written: hidden, in the same directory."""
    directory, slash, file = name.rpartition("/")
    return f"{directory}{slash}.{file}.part"


def in_order(files: Iterable[ChangeFile]) -> list[ChangeFile]:
    """Return *files* sorted by stem; of several with one stem, only the one with the shortest ending."""
    by_stem: dict[str, ChangeFile] = {}
    for file in files:
        key = file.stem
        if key not in by_stem or len(file.name) < len(by_stem[key].name):
            by_stem[key] = file
    return [by_stem[key] for key in sorted(by_stem)]


def newest_first(files: Iterable[SnapshotFile]) -> list[SnapshotFile]:
    """Return *files*, the newest snapshot's first, and sorted by table within a snapshot."""
    return sorted(sorted(files, key=lambda file: file.table), key=lambda file: file.stamp, reverse=True)


def _encode(identifier: str) -> str:
    """Return *identifier* with ``%XX`` for the bytes of each character that has no place in a file name.

    Those are the separators, the dot, which stands between schema and table, and control characters.
    """
    return "".join(
        "".join(f"%{byte:02X}" for byte in character.encode())
        if character in "%/\\." or unicodedata.category(character) == "Cc"
        else character
        for character in identifier
    )


def stem(name: str) -> str:
    """Return *name* without its ending: the file's identity and its place in the order.

    A file that is compressed in place gets another name, but is the same file: it must not look new.
    """
    for suffix in SUFFIXES.values():
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


# The time in a name.


@lru_cache(maxsize=1 << 12)
def parse_stamp(stamp: str) -> dt.datetime | None:
    """Return the moment that *stamp* stands for; None when it is no date and time."""
    if _STAMP.fullmatch(stamp) is None:
        return None
    day, time = stamp[:8], stamp[9:]
    try:  # Not strptime, which takes ten times as long; an archive may list a hundred thousand names.
        return dt.datetime(
            *(int(day[:4]), int(day[4:6]), int(day[6:])),
            *(int(time[:2]), int(time[2:4]), int(time[4:])),
            tzinfo=dt.UTC,
        )
    except ValueError:
        return None


def _is_time(stamp: str) -> bool:
    """Tell whether *stamp*, whose digits are where they must be, is a date and time: a listing has many."""
    return stamp[9:11] < "24" and stamp[11:13] < "60" and stamp[13:] < "60" and _is_day(stamp[:8])


@lru_cache(maxsize=1 << 12)
def _is_day(day: str) -> bool:
    return parse_stamp(f"{day}_000000") is not None


def file_time(name: str) -> dt.datetime | None:
    """Return the time in a change file's name, ``changes_YYYYMMDD_HHMMSS…``; None when there is none."""
    match = _STAMPED_CHANGE_FILE.match(name)
    return match and parse_stamp(match[1])


def is_ahead(name: str, now: dt.datetime) -> bool:
    """Tell whether a change file's name has a time that cannot be: days after *now*.

    Everything that is written from now on would sort before it. Names may run ahead by hours: the
    predecessor's have production's local time.
    """
    moment = file_time(name)
    return moment is not None and moment > now + _MOST_AHEAD


def stamp_of(name: str) -> str | None:
    """Return the stamp in a change file's or snapshot file's name; None where there is none."""
    match = _STAMPED_CHANGE_FILE.match(name) or _SNAPSHOT_FILE.fullmatch(name)
    return match and match[1]


def next_stamp(now: dt.datetime, last_stamp: str | None) -> str:
    """Return the stamp of *now*, or of the second after *last_stamp* where *now* is not later than it.

    Raises ValueError or OverflowError when *last_stamp* is no time, or the last one there is.
    """
    stamp = f"{now.astimezone(dt.UTC):{_STAMP_FORMAT}}"
    if last_stamp is None or stamp > last_stamp:
        return stamp
    return f"{dt.datetime.strptime(last_stamp, _STAMP_FORMAT) + dt.timedelta(seconds=1):{_STAMP_FORMAT}}"


def next_name(now: dt.datetime, last_name: str | None) -> str:
    """Return a new change file's name without suffix: by *now*, or by the second after *last_name*'s.

    Names therefore never repeat and never go back, even when files come fast or the clock is set back.
    Raises SpoolError when no name can follow *last_name*.
    """
    if last_name is None:
        return f"changes_{next_stamp(now, None)}"
    match = _STAMPED_CHANGE_FILE.match(last_name)
    try:
        name = f"changes_{next_stamp(now, match[1] if match else None)}"
    except (ValueError, OverflowError):
        name = ""
    if name <= stem(last_name):
        raise SpoolError(
            f"no name of a change file can follow {last_name!r}",
            hint="move that file out of the archive, then begin anew: 'archive_changes --new-epoch'",
        )
    return name
