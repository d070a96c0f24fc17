"""Watches the tables of a sink under the catalogs of its batches. Knows when a look is due; what is found is
state/published.py's.

A look costs a query, so it is taken only where something is new: another catalog, another table here, another
checkpoint (one that was set back, or a rebuilt table's). Nothing is done for each record or batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from psycopg import Connection

from syncdata.apply.plan.batches import Batch
from syncdata.apply.plan.drift import is_older
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.state.published import Emptied, Known, Look, after_truncate, keep_known, look, read_known
from syncdata.changes.catalog import Announcement, Catalog
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError

# The checkpoint's id, the catalog's digest and the table here, as they were when a look found nothing.
_Agreed = tuple[int, str, TableSchema | None]


class Watch:
    """Remembers under what each table was looked at last. Works inside the caller's transactions: call
    `settle` when the one of a look has committed."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._agreed: dict[TableName, _Agreed] = {}
        self._pending: dict[TableName, _Agreed] = {}
        self._found: dict[TableName, tuple[Known, Look]] = {}
        self._digest = ""

    def is_new(self, batch: Batch) -> bool:
        """Tell whether the catalog of *batch* is another than that of the last look."""
        return batch.catalog is not None and batch.catalog.digest != self._digest

    def look_at(
        self,
        batch: Batch,
        checkpoints: Mapping[TableName, TableCheckpoint],
        schemas: Mapping[TableName, TableSchema],
        *,
        with_records: Collection[TableName],
    ) -> dict[TableName, SchemaError]:
        """Look at the tables of *checkpoints* under the catalog of *batch*, which has records of the tables
        *with_records*; return the errors that block."""
        if batch.catalog is None or batch.published is None:
            self._pending, self._found = {}, {}
            return {}
        return self.look_under(
            batch.catalog,
            batch.published,
            checkpoints,
            schemas,
            file=batch.segments[0].file.name,
            commit_lsn=batch.commit_lsn,
            with_records=with_records,
        )

    def look_under(
        self,
        catalog: Announcement,
        published: Catalog,
        checkpoints: Mapping[TableName, TableCheckpoint],
        schemas: Mapping[TableName, TableSchema],
        *,
        file: str,
        commit_lsn: int | None,
        with_records: Collection[TableName],
    ) -> dict[TableName, SchemaError]:
        """Look at the tables of *checkpoints* under *catalog*, which *file* names beside *commit_lsn*.
        Records of the tables *with_records* come under it."""
        self._pending, self._found = {}, {}
        self._digest = catalog.digest
        now = {
            table: (checkpoint.id, catalog.digest, schemas.get(table))
            for table, checkpoint in checkpoints.items()
        }
        due = {table for table, state in now.items() if self._agreed.get(table) != state}
        # Equal, but read anew for this file: from now on, one object is compared with itself.
        self._agreed |= {table: state for table, state in now.items() if table not in due}
        if not due:
            return {}
        entries = {entry.table: entry for entry in published.tables}
        errors = {}
        for table, known in read_known(self._connection, due).items():
            older = is_older(catalog.lsn, known.baseline, commit_lsn=commit_lsn)
            found = look(
                table,
                known,
                entries.get(table),
                schemas.get(table),
                is_older=older,
                catalog_lsn=catalog.lsn,
                file=file,
                has_records=table in with_records,
                commit_lsn=commit_lsn,
            )
            self._found[table] = known, found
            if found.error is not None:
                found.error.file = file
                errors[table] = found.error
            elif not older:
                self._pending[table] = now[table]
        return errors

    def keep(self, healthy: Mapping[TableName, Any]) -> Collection[TableName]:
        """Write what the checkpoints know from now on: of *healthy* tables, and of those that it blocked.
        Return the tables whose checkpoints it wrote."""
        for table, (_, found) in list(self._found.items()):
            if found.error is None and table not in healthy:
                del self._found[table]
                self._pending.pop(table, None)
        changed = {
            table: found.known for table, (known, found) in self._found.items() if found.known != known
        }
        keep_known(self._connection, changed)
        return changed.keys()

    def note_truncated(self, tables: Mapping[TableName, Emptied]) -> None:
        """Take in that a TRUNCATE has emptied each of *tables* in this transaction; after `keep`."""
        if tables:
            known = read_known(self._connection, tables.keys())
            keep_known(
                self._connection,
                {table: after_truncate(entry, tables[table]) for table, entry in known.items()},
            )

    def settle(self) -> None:
        """Note that the transaction has committed: nothing is due until something is new."""
        self._agreed |= self._pending
        self._pending, self._found = {}, {}
