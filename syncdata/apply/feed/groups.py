"""Tables that stand at one position go on together; each has a watermark of its own. Pure.

Two tables may stand after the same file and yet differ: what a snapshot held already, a file that comes
later may hold once more. So each table has its watermark, and a transaction at or below it is a repeat for
that table alone.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Sequence
from dataclasses import dataclass, replace

from syncdata.apply.position import Position, Watermarks, watermark_after
from syncdata.apply.state.checkpoints import Checkpoint
from syncdata.changes.names import TableName


@dataclass(slots=True)
class Group:
    """Tables at one position, going on together. ``watermarks``: by table, the commit LSN in the stream
    ``position.source_id`` up to which it holds everything; None where none is known."""

    position: Position
    watermarks: Watermarks

    @property
    def tables(self) -> KeysView[TableName]:
        return self.watermarks.keys()

    def position_of(self, table: TableName) -> Position:
        return replace(self.position, commit_lsn=self.watermarks[table])

    def watermarks_in(self, source_id: str) -> Watermarks:
        """The watermarks as they hold for a file of *source_id*; plain files, of the source "", have none."""
        is_same = source_id != "" and source_id == self.position.source_id
        return dict(self.watermarks) if is_same else dict.fromkeys(self.watermarks)

    def is_with(self, other: Group) -> bool:
        """Whether both stand between the same two records of the same source."""
        return _place(self.position) == _place(other.position)

    def move_to(self, end: Position) -> None:
        """All records up to *end* are applied to all tables of the group."""
        for table, watermark in self.watermarks.items():
            self.watermarks[table] = watermark_after(watermark, self.position, end)
        self.position = end

    def leave(self, tables: Iterable[TableName]) -> None:
        """Those of *tables* that are in the group do not go on with it."""
        for table in tables:
            self.watermarks.pop(table, None)


def group_by_position(checkpoints: Sequence[Checkpoint]) -> list[Group]:
    """Return the tables by position, the farthest behind first."""
    groups: dict[tuple[object, ...], Group] = {}
    for checkpoint in checkpoints:
        position = checkpoint.position
        group = groups.setdefault(_place(position), Group(position, {}))
        group.watermarks[checkpoint.table] = position.commit_lsn
    return sorted(groups.values(), key=lambda group: (group.position.order, group.position.source_id))


def _place(position: Position) -> tuple[object, ...]:
    # After a plain file may stand tables that came with it, and tables whose snapshot of the next source
    # began there: what follows is a gap for the ones and not for the others.
    return (position.order, position.source_id)
