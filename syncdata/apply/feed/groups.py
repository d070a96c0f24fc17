"""Tables at one position of the archive go on together, each with a watermark of its own. Pure.

Example: orders and customers both stand after file F3. customers has read every file up to there; orders
began with a snapshot that was taken at commit 0/500 and goes on from F3. File F4 still holds commit 0/480,
which is in the snapshot already: a repeat for orders, whose watermark is 0/500, and new for customers, whose
watermark is 0/470. So both read F4 together, and the record of 0/480 is left out for orders alone.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping
from dataclasses import dataclass, replace

from syncdata.apply.position import Advance, FileCounts, Position, Watermarks, watermark_after
from syncdata.changes.names import TableName


@dataclass(slots=True)
class Group:
    """Tables at one position, going on together.

    ``watermarks``: by table, the commit LSN up to which its rows hold everything of the source
    ``position.source_id``; None where that is not known.
    """

    position: Position
    watermarks: Watermarks

    @property
    def tables(self) -> KeysView[TableName]:
        return self.watermarks.keys()

    def position_of(self, table: TableName) -> Position:
        return replace(self.position, commit_lsn=self.watermarks[table])

    def watermarks_in(self, source_id: str) -> Watermarks:
        """Return the watermarks that hold for a file of *source_id*.

        LSNs of another source mean nothing here, so there are none then; nor for plain files, whose source
        is "". Test: test_transactions_that_the_archive_repeats_are_applied_once.
        """
        is_same = source_id != "" and source_id == self.position.source_id
        return dict(self.watermarks) if is_same else dict.fromkeys(self.watermarks)

    def is_with(self, other: Group) -> bool:
        """Tell whether both groups stand between the same two records of the same source."""
        return _order_and_source(self.position) == _order_and_source(other.position)

    def copy(self) -> Group:
        return Group(self.position, dict(self.watermarks))

    def advance_to(self, end: Position, *, files: tuple[FileCounts, ...] = ()) -> Advance:
        return Advance(watermarks=dict(self.watermarks), start=self.position, end=end, files=files)

    def move_to(self, end: Position) -> None:
        """Note that all records up to *end* are applied to all tables of the group."""
        after = {mark: watermark_after(mark, self.position, end) for mark in set(self.watermarks.values())}
        for table, watermark in self.watermarks.items():
            self.watermarks[table] = after[watermark]
        self.position = end

    def leave(self, tables: Iterable[TableName]) -> None:
        """Take *tables* out of the group, as far as they are in it."""
        for table in tables:
            self.watermarks.pop(table, None)


def group_by_position(positions: Mapping[TableName, Position]) -> list[Group]:
    """Return the tables grouped by their positions, the group that is farthest behind first."""
    groups: dict[tuple[object, ...], Group] = {}
    of_position: dict[int, Group] = {}  # by the position's id: most tables share one
    for table, position in positions.items():
        group = of_position.get(id(position))
        if group is None:
            group = groups.setdefault(_order_and_source(position), Group(position, {}))
            of_position[id(position)] = group
        group.watermarks[table] = position.commit_lsn
    return sorted(groups.values(), key=lambda group: (group.position.order, group.position.source_id))


def _order_and_source(position: Position) -> tuple[object, ...]:
    # The source is part of the key. After the plain file P9 stand users, which has read it, and orders, whose
    # snapshot of the next source begins there: the first file of that source continues orders, while for
    # users there is a gap before it. Test: test_the_way_from_the_predecessors_files_leads_over_snapshots.
    return (position.order, position.source_id)
