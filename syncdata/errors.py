"""The errors an operator can see, one class a code, and their form as data.

Knows codes and wording, nothing else. A text is for people alone: nothing in syncdata takes one apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

# Longer than any message of ours, statements that a hint spells out included. What comes from outside is cut
# where it is named, by `shortened`; this holds what was forgotten.
_LONGEST_TEXT = 10_000

# Longer than any file name.
_LONGEST_FILE = 300


def shortened(text: str, limit: int = 200) -> str:
    """Return text cut in the middle to at most limit characters, control characters shown as escapes."""
    return _shown(text, limit)


def _shown(text: str, limit: int, *, kept: str = "") -> str:
    """Return *text* cut and with escapes, but for the characters *kept*.

    A newline in a name would forge a line of the log, and no database keeps a NUL or half a pair.
    """
    text = _cut(text, limit)
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
    return _cut("".join(shown), limit)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - end - 1]}…{text[len(text) - end :]}"


def _long(text: str) -> str:
    """Return *text*, a message or hint of ours that may have lines, such that every book can keep it."""
    return _shown(text, _LONGEST_TEXT, kept="\n")


class SyncError(Exception):
    """An operator-visible error: what happened, where, and what to do about it.

    ``str()`` begins with the code, names ``file:line`` and the table where they are known, and ends
    with the hint. Messages never carry row values or secrets.
    """

    code: ClassVar[str] = "SHD_SYN_000"
    by_code: ClassVar[dict[str, type[SyncError]]] = {}

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        if code is not None:
            cls.code = code
            cls.by_code[code] = cls

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        table: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.table = table
        self.file = file
        self.line = line

    @property
    def place(self) -> str:
        return _place(self.file, self.line)

    @property
    def fields(self) -> dict[str, str | int]:
        """For ``extra=`` of a log record: ``code``, and ``table``, ``file`` and ``line`` where known."""
        fields = {
            "code": self.code,
            "table": self.table and shortened(self.table),
            "file": self.file and shortened(self.file, _LONGEST_FILE),
            "line": self.line,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        parts = [f"{self.code}:"]
        if self.place:
            parts.append(f"{self.place}:")
        if self.table:
            parts.append(f"table {shortened(self.table)}:")
        parts.append(_long(self.message))
        if self.hint:
            parts.append(f"({_long(self.hint)})")
        return " ".join(parts)


def _place(file: str | None, line: int | None) -> str:
    """Return ``file:line``, ``file`` or an empty string."""
    if file is None:
        return ""
    file = shortened(file, _LONGEST_FILE)
    return file if line is None else f"{file}:{line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """An error as syncdata's own tables keep it: its text, and beside it its code, file, line and hint."""

    text: str
    code: str = ""
    file: str | None = None
    line: int | None = None
    hint: str = ""

    @classmethod
    def of(cls, error: SyncError) -> Self:
        return cls(
            text=str(error),
            code=error.code,
            file=error.file and shortened(error.file, _LONGEST_FILE),
            line=error.line,
            hint=_long(error.hint),
        )

    @property
    def place(self) -> str:
        return _place(self.file, self.line)

    @property
    def message(self) -> str:
        """The text without the code before it and the hint after it, for pages that show these apart."""
        message = self.text.removeprefix(f"{self.code}: ")
        return message.removesuffix(f" ({self.hint})") if self.hint else message

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A condition that an operator should look at.

    ``kind`` is a word that stays the same when the text is reworded, or a number in it changes. ``table`` and
    ``reason`` are set where one table or one error is meant. ``str()`` is the whole sentence.
    """

    kind: str
    text: str = ""
    table: str = ""
    reason: Reason | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.text, str(self.reason or "")) if part)


class ConfigLoadError(SyncError, code="SHD_SYN_001"):
    """The configuration file cannot be found, read or parsed."""


class ConfigError(SyncError, code="SHD_SYN_002"):
    """The configuration was read, but a value is missing, unknown or wrong."""


class StateLoadError(SyncError, code="SHD_SYN_030"):
    """The state file cannot be read; a warning only, since the database is the truth."""


class StateSaveError(SyncError, code="SHD_SYN_031"):
    """The state file cannot be written."""


class SchemaError(SyncError, code="SHD_SYN_050"):
    """A table, column or key that the change records need is missing from the database."""


class WhitelistAddError(SyncError, code="SHD_SYN_051"):
    """A table cannot be added to the whitelist."""


class WhitelistRemoveError(SyncError, code="SHD_SYN_052"):
    """A table cannot be removed from the whitelist."""


class WhitelistListError(SyncError, code="SHD_SYN_053"):
    """The whitelist cannot be read."""


class ClearError(SyncError, code="SHD_SYN_054"):
    """The synced tables cannot be cleared."""


class ResyncError(SyncError, code="SHD_SYN_055"):
    """A table cannot be rebuilt from the archive; its old rows, if there are any, are still there."""


class RequestError(SyncError, code="SHD_SYN_056"):
    """An operator's request (pause, resume, retry, skip) cannot be carried out."""


class VerificationError(SyncError, code="SHD_SYN_057"):
    """A table's rows are not production's."""


class PointError(SyncError, code="SHD_SYN_058"):
    """The tables cannot be brought to the point of ``--until``, or only some of the way."""


class ArchiveConnectionError(SyncError, code="SHD_SYN_060"):
    """The backup host cannot be reached, or refuses us, or is not the host we know."""


class DiscoveryError(SyncError, code="SHD_SYN_061"):
    """The archive cannot be listed, or a change file is missing from its chain."""


class FetchError(SyncError, code="SHD_SYN_062"):
    """A change file cannot be fetched."""


class ParseError(SyncError, code="SHD_SYN_063"):
    """A change file, or one line of it, breaks the format."""


class ApplyError(SyncError, code="SHD_SYN_064"):
    """The database refuses a change, or goes away while changes are applied."""


class MetricsError(SyncError, code="SHD_SYN_070"):
    """The metrics cannot be written."""


class MonitoringError(SyncError, code="SHD_SYN_071"):
    """Metrics cannot be offered to a monitoring system."""


class StatusError(SyncError, code="SHD_SYN_080"):
    """The status cannot be read."""


class PidFileError(SyncError, code="SHD_SYN_081"):
    """The pid file cannot be used, or another daemon holds it."""


class ServiceInitError(SyncError, code="SHD_SYN_090"):
    """The service cannot start: no database, or no tables of its own."""


class RunError(SyncError, code="SHD_SYN_091"):
    """The daemon cannot run: another one does on this database."""


class CycleError(SyncError, code="SHD_SYN_092"):
    """A cycle ended early."""


class CloseError(SyncError, code="SHD_SYN_093"):
    """The service could not be closed cleanly."""


class UnexpectedError(SyncError, code="SHD_SYN_094"):
    """Something went wrong that syncdata does not know: a fault of its own, to be reported.

    ``traceback`` is for the log: where it happened, without the texts of exceptions, which can hold values.
    """

    traceback: str = ""


# The production side.


class SourceConnectionError(SyncError, code="SHD_SYN_101"):
    """The source cannot be reached, or refuses the login."""


class SourceSetupError(SyncError, code="SHD_SYN_102"):
    """Something that logical replication needs is missing at the source."""


class SlotError(SyncError, code="SHD_SYN_103"):
    """The replication slot is missing, in use, invalidated, recreated or moved by somebody else."""


class SourceChangedError(SyncError, code="SHD_SYN_104"):
    """The source is another system or timeline, or the archive is not the one that was written before."""


class CaptureError(SyncError, code="SHD_SYN_105"):
    """A replication message cannot be decoded."""


class SpoolError(SyncError, code="SHD_SYN_106"):
    """The spool directory cannot be read or written."""


class DeliveryError(SyncError, code="SHD_SYN_107"):
    """A file cannot be put into the archive, or a different one has its name there."""


class SnapshotError(SyncError, code="SHD_SYN_108"):
    """A snapshot cannot be taken."""


class RetentionError(SyncError, code="SHD_SYN_109"):
    """Files that nobody needs any more cannot be removed from the archive."""


class ArchiverStatusError(SyncError, code="SHD_SYN_110"):
    """The archiver is not healthy, or its status cannot be read."""


class ArchiverRunError(SyncError, code="SHD_SYN_111"):
    """The archiver cannot run: another one does."""


class UnreadableChangeError(CaptureError, code="SHD_SYN_112"):
    """The source cannot hand over a change, or hands over one that cannot be kept. ``commit_lsn``: where the
    change's transaction committed; None where that is not known."""

    commit_lsn: int | None = None


class PrivacyError(SyncError, code="SHD_SYN_113"):
    """The privacy policy cannot hold: a rule does not fit its column, or a column must have one."""
