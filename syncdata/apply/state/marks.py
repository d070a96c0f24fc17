"""Marks: what is known of a table that its rows, applied without an error, do not show. Pure.

A mark says why the table is not simply active, in text for people and with a remedy. It stands in the
checkpoint's row, so a rebuild, which replaces the row, takes it away; a mark whose cause is looked at again
(is it published? is it logged?) goes with the cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from psycopg import sql

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
    ``subjects``: what it is about, such as a partition, where many marks may differ in nothing else; of a
    mark that stands for ``count`` of them, the first ones (see `folded`).
    """

    kind: Kind
    text: str
    hint: str = ""
    since: str = ""
    subjects: tuple[str, ...] = ()
    count: int = 1

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
        hint=f"run 'archive_changes --snapshot {table.argument}' at production: the table is then rebuilt by"
        f" itself; if you have loaded the older rows yourself, say so: 'add_tables --whole {table.argument}'",
    )


def skipped(table: TableName, place: str, requested_by: str) -> Mark:
    """Return the mark of a table from which the record at *place* was left out."""
    return Mark(
        kind="suspect",
        text=f"the record at {place} was skipped" + (f" by {requested_by}" if requested_by else ""),
        hint=f"run 'archive_changes --snapshot {table.argument}' at production, then"
        f" 'resync {table.argument}' here",
        subjects=(place,),
    )


def unlogged(table: TableName, part: str) -> Mark:
    """Return the mark of a table of which *part*, itself or a partition, was seen to be UNLOGGED."""
    # A partition's name is PostgreSQL's own text already.
    spelled = sql.Identifier(table.schema, table.name).as_string(None) if part == str(table) else part
    return Mark(
        kind="suspect",
        text=f"{part} is or was UNLOGGED: a crash of the server empties it without a word",
        hint=f"run 'ALTER TABLE {spelled} SET LOGGED' in the local database, then 'resync {table.argument}'",
    )


def healed_in_vain(table: TableName, *, has_failed: bool) -> Mark:
    """Return the mark of a table that differs although verification has asked for a resync of it."""
    if has_failed:
        return Mark(
            kind="differs",
            text="the resync that verification asked for has failed",
            hint=f"its request says why; mend that, then run 'resync {table.argument}'",
        )
    return Mark(
        kind="differs",
        text="the resync that verification asked for did not help: rows differ again",
        hint="find what writes to the table here: a trigger, a program, a person; then run"
        f" 'resync {table.argument}'",
    )


_DIFFERENCE = "rows are not production's"


def differs(table: TableName, bounds: str, difference: str, *, others: int = 0) -> Mark:
    """Return the mark of a table in which verification found a *difference* between the rows in *bounds* and
    production's; *others*: in so many more places of the same round."""
    also = f"; and so in {others:,} more {'place' if others == 1 else 'places'}" if others else ""
    return Mark(
        kind="differs",
        text=f"{_DIFFERENCE}: {difference}, in {bounds}{also}",
        hint=f"run 'python manage.py resync {table.argument}'; if rows differ again afterwards, first run"
        f" 'archive_changes --snapshot {table.argument}' at production",
    )


def is_of_check(mark: Mark) -> bool:
    """Tell whether *mark* says what a check has found, which a later one may say anew."""
    return mark.kind == "differs" and mark.text.startswith(_DIFFERENCE)


# So many subjects of a folded mark are remembered, and so many named.
_MOST_SUBJECTS, _NAMED_SUBJECTS = 50, 5
_ALSO = "; the same goes for "


def folded(marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """Return *marks* with one in the place of all that differ in their subject alone: a table that loses a
    partition every night has one mark, not thousands. Each is said once, however often it is found again.

    A mark that stands for more than it remembers takes one that the same file shows for one of those.
    Tests: test_a_partition_a_night_is_one_mark_that_counts, test_a_finding_that_blocks_is_a_mark_once.
    """
    every: dict[tuple[str, str], Mark] = {}
    for mark in marks:
        key = (mark.kind, _without_subject(mark))
        known = every.get(key)
        every[key] = mark if known is None else _fold(known, mark)
    return tuple(every.values())


def _without_subject(mark: Mark) -> str:
    text = mark.text.partition(_ALSO)[0] if mark.subjects else mark.text
    return text.replace(f" {mark.subjects[0]} ", " … ", 1) if mark.subjects else text


def _fold(known: Mark, mark: Mark) -> Mark:
    new = tuple(subject for subject in mark.subjects if subject not in known.subjects)
    is_known = len(known.subjects) < known.count and mark.count == 1 and mark.since == known.since
    if not new or is_known:
        return known
    subjects = (known.subjects + new)[:_MOST_SUBJECTS]
    count = known.count + len(new) + max(0, mark.count - len(mark.subjects))
    named = ", ".join(subjects[1 : 1 + _NAMED_SUBJECTS])
    left = count - 1 - len(subjects[1 : 1 + _NAMED_SUBJECTS])
    also = f"{_ALSO}{named}" + (f" and {left} more" if left else "") + f" ({count} in all)"
    return msgspec.structs.replace(
        known,
        text=known.text.partition(_ALSO)[0] + also,
        since=max(known.since, mark.since),
        subjects=subjects,
        count=count,
    )


def worst(marks: tuple[Mark, ...]) -> Mark | None:
    """Return the mark that gives the table its state; None without any."""
    return min(marks, key=lambda mark: KINDS.index(mark.kind), default=None)
