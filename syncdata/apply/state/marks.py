"""Marks: what is known of a table that its rows, applied without an error, do not show. Pure.

A mark says why the table is not simply active, in text for people and with a remedy. It stands in the
checkpoint's row, so a rebuild, which replaces the row, takes it away; a mark whose cause is looked at again
(is it published? is it logged?) goes with the cause.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from syncdata.changes.names import TableName

# Of a table with several marks, the kind that comes first here is its state.
Kind = Literal["differs", "suspect", "partial", "unpublished"]
KINDS: tuple[Kind, ...] = ("differs", "suspect", "partial", "unpublished")


class Mark(msgspec.Struct, frozen=True, order=True):
    """``kind``: the state that the table shows while it has the mark.

    ``differs``: verification found rows that are not production's. ``suspect``: something happened that may
    have left rows different. ``partial``: it began without a snapshot, and nothing proves that the archive
    reaches back to its first row. ``unpublished``: production does not publish it, so nothing arrives.
    ``since``: the change file that showed it, where a rebuild from a newer snapshot settles it.
    """

    kind: Kind
    text: str
    hint: str = ""
    since: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text


def encode_marks(marks: tuple[Mark, ...]) -> str:
    """Return *marks* as the checkpoint's column holds them."""
    return msgspec.json.encode(marks).decode()


def decode_marks(column: str | list[dict[str, str]] | None) -> tuple[Mark, ...]:
    """Read the checkpoint's column, which a connection may have decoded already."""
    if not column:
        return ()
    if isinstance(column, str):
        return msgspec.json.decode(column, type=tuple[Mark, ...])
    return msgspec.convert(column, type=tuple[Mark, ...])


def partial(table: TableName) -> Mark:
    """Return the mark that a table has from its first checkpoint on, until its rows are known to be whole."""
    return Mark(
        kind="partial",
        text="it began without a snapshot, so rows that are older than the archive may be missing",
        hint=f"run 'archive_changes --snapshot {table}' at production: the table is then rebuilt by itself;"
        f" if you have loaded the older rows yourself, say so: 'add_tables --whole {table}'",
    )


def skipped(table: TableName, place: str, requested_by: str) -> Mark:
    """Return the mark of a table from which the record at *place* was left out."""
    return Mark(
        kind="suspect",
        text=f"the record at {place} was skipped" + (f" by {requested_by}" if requested_by else ""),
        hint=f"run 'archive_changes --snapshot {table}' at production, then 'resync {table}' here",
    )


def unlogged(table: TableName, part: str) -> Mark:
    """Return the mark of a table of which *part*, itself or a partition, was seen to be UNLOGGED."""
    return Mark(
        kind="suspect",
        text=f"{part} is or was UNLOGGED: a crash of the server empties it without a word",
        hint=f"run 'ALTER TABLE {part} SET LOGGED' in the local database, then 'resync {table}'",
    )


def worst(marks: tuple[Mark, ...]) -> Mark | None:
    """Return the mark that gives the table its state; None without any."""
    return min(marks, key=lambda mark: KINDS.index(mark.kind), default=None)
