"""A finding: one line of the report on a source. Knows the three levels; judges nothing itself.

``ok`` is as it should be, a ``note`` stops nothing, and ``missing`` must be mended before changes can be
captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``remedy`` tells what to do, as a statement where one suffices."""

    level: Literal["ok", "note", "missing"]
    text: str
    remedy: str = ""
    is_mended_by_setup: bool = False

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


def ok(text: str) -> Finding:
    return Finding(level="ok", text=text)


def note(text: str, remedy: str) -> Finding:
    return Finding(level="note", text=text, remedy=remedy)


def missing(text: str, remedy: str) -> Finding:
    return Finding(level="missing", text=text, remedy=remedy)


def by_setup(text: str) -> Finding:
    """Return a finding for something missing that the setup itself will make."""
    return Finding(
        level="missing", text=text, remedy="setup_logical_replication mends it", is_mended_by_setup=True
    )
