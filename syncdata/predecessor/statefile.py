"""The state file: a mirror of the checkpoints for tools that read it, in the predecessor's format.

The database is the truth. Only the file that the predecessor left is ever read for its content, once,
to go on where it stopped; a file of ours carries a mark, so that it is never taken for one of those. Knows
the file; knows nothing of the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from syncdata.changes.document import read_document
from syncdata.errors import StateLoadError, StateSaveError, shortened
from syncdata.runtime.durable import replace_file

STATE_FILE_NAME = ".syncdata_state.json"
WRITTEN_BY = "syncdata-django"
NEVER = datetime(1, 1, 1, tzinfo=UTC)  # Go's zero time: how the predecessor writes "not yet"

_VERSION = 1


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    last_lsn: str = ""
    last_synced_at: datetime = NEVER
    record_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncState:
    """The content of the state file, with the file's names and order of fields."""

    version: int = _VERSION
    written_by: str = WRITTEN_BY
    last_file: str = ""
    last_file_time: datetime = NEVER
    global_lsn: str = ""
    tables: Mapping[str, TableState] = field(default_factory=dict)
    total_synced: int = 0
    last_sync_cycle: datetime = NEVER

    @property
    def is_predecessors(self) -> bool:
        return self.written_by != WRITTEN_BY


def parse_state(content: bytes) -> SyncState:
    """Parse a state file's content. Raises ValueError that names the place, never a value."""
    document = read_document(content, _Document)
    if document.version > _VERSION:
        raise ValueError(f"version {document.version} is newer than {_VERSION}, the newest known")
    return SyncState(
        version=document.version,
        written_by=document.written_by,
        last_file=document.last_file,
        last_file_time=document.last_file_time or NEVER,
        global_lsn=document.global_lsn,
        tables=document.tables or {},
        total_synced=document.total_synced,
        last_sync_cycle=document.last_sync_cycle or NEVER,
    )


def format_state(state: SyncState) -> bytes:
    return msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"


def load_state(path: Path) -> SyncState | None:
    """Return the content of the state file, None if there is no file.

    Raises StateLoadError when it cannot be read or parsed; nothing is lost by that.
    """
    try:
        return parse_state(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _load_error(path, error.strerror or type(error).__name__) from error
    except ValueError as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        raise _load_error(path, shortened(str(error))) from error


def save_state(path: Path, state: SyncState) -> None:
    """Replace the state file as a whole; a crash leaves the old one or the new one.

    Raises StateSaveError when the directory cannot be written.
    """
    try:
        replace_file(path, format_state(state))
    except OSError as error:
        raise StateSaveError(
            f"cannot write {path}: {error.strerror}",
            hint="make its directory writable and see to free space; the database has the checkpoints",
        ) from error


class _Document(msgspec.Struct):
    """The file's shape on reading: every key may be missing or unknown, and Go writes null."""

    version: int = 0
    written_by: str = ""
    last_file: str = ""
    last_file_time: datetime | None = None
    global_lsn: str = ""
    tables: dict[str, TableState] | None = None
    total_synced: int = 0
    last_sync_cycle: datetime | None = None


def _load_error(path: Path, reason: str) -> StateLoadError:
    return StateLoadError(
        f"cannot read {path}: {reason}",
        hint="the database has the checkpoints; delete the file or leave it to be rewritten",
    )
