"""The end of work that is to stop at a point: found in the archive, and held against the tables.

Knows checkpoints; what a point is and where it lies is `feed.as_of`'s affair.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncdata.apply.context import Context
from syncdata.apply.feed.as_of import End, Point, find_end
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.changes.filenames import stem
from syncdata.errors import PointError


def end_for(context: Context, point: Point, checkpoints: Sequence[TableCheckpoint]) -> End:
    """Return where the tables of *checkpoints* are to stop; a table that has not begun, or none at all, may
    begin anywhere in the archive.

    Raises PointError when a table is beyond *point* already, or when plain files do not tell where it is;
    ParseError at a broken file; what the archive raises; and ReadingStopped.
    """
    begun = [checkpoint for checkpoint in checkpoints if checkpoint.has_begun]
    is_all = bool(begun) and len(begun) == len(checkpoints)
    ignored: dict[str, set[int]] = {}
    for checkpoint in checkpoints:
        for skip in checkpoint.skips:
            ignored.setdefault(stem(skip.file), set()).add(skip.line)
    end = find_end(
        context.archive,
        point,
        since=min((c.position.file for c in begun), key=stem) if is_all else "",
        ignored=ignored,
        stop=context.stop,
        max_record_bytes=context.limits.max_record_bytes,
    )
    beyond = sorted(c.table for c in begun if end.is_passed_by(c.position))
    if beyond:
        where = point.text if end.is_reached else "what the archive holds"
        tables = " ".join(table.argument for table in beyond)
        raise PointError(
            f"beyond {where} already: {', '.join(map(str, beyond))}; nothing is changed",
            hint=f"bring them back there first: python manage.py resync {tables} --until {point.text}",
        )
    return end


def not_reached(end: End) -> PointError:
    """Return the error that says how far the archive goes instead."""
    last = f"its last transaction is {end.last}" if end.last else "it holds no transaction that tells"
    return PointError(
        f"the archive does not reach {end.point.text} yet: {last}",
        hint="run it again when more files have come",
    )
