"""What a snapshot copies of each table, and how its rows are masked, where there is a privacy policy. Pure.

The snapshot's transaction shows the catalog as it was at its point; COPY reads the columns that have these
names now. Say ``secret`` was renamed to ``name`` in the moment between: under the rule for ``name`` its
values would travel. So the tables are looked at once more when they are locked, and one that has changed in
between is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from syncdata.capture.exported_snapshot import CopiedTable
from syncdata.capture.protection import is_filtered_late, is_withheld, problems_of, require_no_halt, shown
from syncdata.capture.published import Look, SeenTable
from syncdata.changes.names import TableName
from syncdata.errors import SnapshotError
from syncdata.privacy.policy import TableVerdict
from syncdata.privacy.row_mask import RowMask


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """The ``tables`` to copy, each with the columns that travel, and the look as it may be seen. ``masks``:
    what masks the rows of a table. ``refused``: the errors of tables that cannot be copied. ``problems``:
    what of the policy cannot hold, so that it is withheld."""

    look: Look
    tables: tuple[CopiedTable, ...]
    masks: Mapping[TableName, RowMask] = field(default_factory=dict)
    refused: tuple[SnapshotError, ...] = ()
    problems: tuple[str, ...] = ()


def plan_copy(
    tables: Sequence[CopiedTable],
    look: Look,
    verdicts: Mapping[TableName, TableVerdict],
    now: Look,
) -> CopyPlan:
    """Return how *verdicts* of *look*, of what is published at the snapshot's point, let *tables* be copied.
    *now*: after the tables were locked.

    Raises PrivacyError where a column of one of them has no rule and must have one.
    """
    copied = {table.name: verdicts[table.name] for table in tables if table.name in verdicts}
    require_no_halt(copied)
    visible = shown(look, verdicts)
    refused, planned, masks = [], [], {}
    for table in tables:
        verdict = copied.get(table.name)
        if (refusal := _refusal(table.name, verdict, look, now)) is not None:
            refused.append(refusal)
            continue
        seen = _find(visible, table.name)
        assert seen is not None and verdict is not None
        sent = {column.name for column in seen.columns if column.is_sent}
        columns = tuple(name for name in table.columns if name in sent)
        planned.append(replace(table, columns=columns))
        if (mask := verdict.row_mask(columns)) is not None:
            masks[table.name] = mask
    return CopyPlan(
        look=visible,
        tables=tuple(planned),
        masks=masks,
        refused=tuple(refused),
        problems=tuple(problems_of(copied)),
    )


def _refusal(table: TableName, verdict: TableVerdict | None, look: Look, now: Look) -> SnapshotError | None:
    if _columns(_find(look, table)) != _columns(_find(now, table)):
        return SnapshotError(
            "the table was altered when the snapshot began", hint="take it again", table=str(table)
        )
    if (seen := _find(look, table)) is not None and verdict is not None and is_filtered_late(seen, verdict):
        return SnapshotError(
            "the row filter of the table is new, and the archiver may still read changes from before it",
            hint="take it again when the archiver says that the table travels",
            table=str(table),
        )
    if is_withheld(verdict):
        return SnapshotError(
            "the privacy policy withholds the table",
            hint="give its columns, those of its key among them, rules in [source.columns]",
            table=str(table),
        )
    return None


def _columns(seen: SeenTable | None) -> object:
    """Return what must not change between the point and the copy."""
    if seen is None:
        return None
    return seen.oid, [
        (column.number, column.name, column.type_oid, column.modifier, column.is_sent)
        for column in seen.columns
    ]


def _find(look: Look, table: TableName) -> SeenTable | None:
    return next((seen for seen in look.tables if seen.table == table), None)
