"""What stands under a whitelisted name in the local database, and whether rows can be kept equal there. Pure.

Only an ordinary or partitioned table can be kept equal to production's. A view shows other tables' rows, a
sequence has none. An UNLOGGED table can take them, but loses them in a crash while its checkpoint stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError

# By pg_class.relkind, all but 'r' (table) and 'p' (partitioned table): what it is, and what to do instead.
_OTHER_KINDS = {
    "v": ("a view", "add the tables behind it"),
    "m": ("a materialized view", "add the tables behind it, and refresh it here (REFRESH MATERIALIZED VIEW)"),
    "S": ("a sequence", "add its table: a sequence follows the rows of its table by itself"),
    "f": ("a foreign table", "its rows are those of another server: sync them there"),
    "c": ("a composite type", "add a table"),
    "i": ("an index", "add its table"),
    "I": ("an index", "add its table"),
    "t": ("a TOAST table", "add its table"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What stands under a name. ``kind`` and ``persistence``: those of ``pg_class``. ``root``: of a
    partition, the whole table. ``unlogged_part``: of a partitioned table, a partition that is UNLOGGED."""

    oid: int
    kind: str = "r"
    persistence: str = "p"
    root: TableName | None = None
    unlogged_part: str | None = None

    @property
    def other_kind(self) -> str | None:
        """The kind in words, with its article, where it is no table; None for tables."""
        if self.kind in "rp":
            return None
        return _OTHER_KINDS.get(self.kind, ("of another kind", ""))[0]

    @property
    def instead(self) -> str:
        """What to add to the whitelist instead of what is no table."""
        return _OTHER_KINDS.get(self.kind, ("", "add a table"))[1]

    def unlogged(self, table: TableName) -> str | None:
        """Return what is UNLOGGED: *table* itself, or the name of a partition; None where all is logged."""
        return str(table) if self.persistence == "u" else self.unlogged_part


def no_table(table: TableName, relation: Relation) -> SchemaError:
    """Return the error for a name that stands for something else than a table."""
    return SchemaError(
        f"it is {relation.other_kind}, not a table that changes could go to",
        hint=f"take it off the whitelist ('remove_tables {table.argument}') and {relation.instead}",
        table=str(table),
    )


def find_fault(table: TableName, relation: Relation | None, *, is_of_archiver: bool) -> SchemaError | None:
    """Return why rows of *table* cannot be kept equal in *relation*; None when they can be.

    *is_of_archiver*: the table follows files of syncdata's own archiver, which writes the changes of
    partitions as those of their root. (Files of the predecessor name the partition itself.)
    """
    if relation is None:
        # Test: test_a_missing_table_blocks_only_itself_until_it_is_created.
        return SchemaError(
            "the table does not exist in the local database",
            hint="create it (migrate), and it begins by itself; or take it off the whitelist with"
            " remove_tables",
            table=str(table),
        )
    if relation.other_kind is not None:
        return no_table(table, relation)
    if relation.persistence == "t":
        return SchemaError(
            "it is a temporary table, which ends with its session",
            hint=f"take it off the whitelist: 'remove_tables {table.argument}'",
            table=str(table),
        )
    if relation.root is not None and is_of_archiver:
        return SchemaError(
            f"it is a partition: the archive holds its changes as those of the whole table, {relation.root}",
            hint=f"whitelist the whole table instead: 'remove_tables {table.argument}',"
            f" 'add_tables {relation.root.argument}'",
            table=str(table),
        )
    return None


def made_anew(table: TableName) -> SchemaError:
    """Return the error for a table that is another than the one that the rows went to."""
    return SchemaError(
        "the table was dropped and made anew, or another took its name: this one does not hold the rows that"
        " were synced",
        hint=f"run 'archive_changes --snapshot {table.argument}' at production: the table is then rebuilt by"
        f" itself; or run 'resync {table.argument}', which loads what the archive holds",
        table=str(table),
    )
