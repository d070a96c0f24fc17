"""Counts of records by operation, which audit rows, metrics and results add up. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Counts of records by operation. ``missing`` counts the rows that updates and deletes looked for and did
    not find, each once a batch."""

    added: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    missing: int = 0

    @property
    def records(self) -> int:
        return self.added + self.updated + self.deleted + self.truncated

    @property
    def rows(self) -> int:
        return self.added + self.updated + self.deleted

    def add(self, other: Counts) -> None:
        self.added += other.added
        self.updated += other.updated
        self.deleted += other.deleted
        self.truncated += other.truncated
        self.missing += other.missing
