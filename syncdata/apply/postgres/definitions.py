"""Keeps the schemas of tables from batch to batch, and reads them anew where the tables have changed.

Knows when a look is due; how the catalog is read is catalog.py's and stamps.py's affair.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from psycopg import Connection

from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.local_rules import read_local_rules
from syncdata.apply.postgres.stamps import read_stamps
from syncdata.changes.names import TableName
from syncdata.privacy.policy import Policy

# Tables that a batch writes to are looked at in its own transaction. The others are looked at all together
# before a file, for what a change of them here may mean for their rows. With 1,000 tables that takes a tenth
# of a second, so it is not done before each of many small files: looks take a fiftieth of the time at most,
# until the last one is as old as this.
LOOK_AGAIN_S = 10.0
REST = 50


class Definitions:
    """The schemas of tables as they were at the last look; ``current`` is another mapping when one of them
    has changed. Those that *policy* is about have its rules."""

    def __init__(self, connection: Connection[Any], policy: Policy | None = None) -> None:
        self._connection = connection
        self._policy = policy
        self._stamps: dict[TableName, str | None] = {}
        self._due_s = float("-inf")
        self.current: Mapping[TableName, TableSchema] = {}

    def learn_from(self, other: Definitions) -> None:
        """Know what *other*, of the same database, knows at this moment: its looks cost as much again, and
        its schemas as much memory. A table that changes is found by its stamp here as there."""
        # The stamps first: a schema that is newer than its stamp is read again, an older one would stay.
        self._stamps = dict(other._stamps)
        self.current = other.current

    def open(self, tables: Collection[TableName]) -> None:
        """Get ready for batches of *tables*: know all of them, and look again at those known for long."""
        began_s = time.monotonic()
        is_due = began_s >= self._due_s
        if is_due or not self._stamps.keys() >= set(tables):
            self.refresh(tables)
        if is_due:
            ended_s = time.monotonic()
            self._due_s = ended_s + min(LOOK_AGAIN_S, REST * (ended_s - began_s))

    def refresh(self, tables: Collection[TableName]) -> None:
        """Look at *tables*, and read the schemas of those that are new, or others than at the last look."""
        self.take_in(tables, read_stamps(self._connection, tables))

    def take_in(self, tables: Collection[TableName], stamps: Mapping[TableName, str]) -> None:
        """Do what `refresh` does with the *stamps* of *tables*, which have just been read."""
        # The stamps come first: what happens before the schemas are read shows at the next look.
        changed = {
            table for table in tables if table not in self._stamps or self._stamps[table] != stamps.get(table)
        }
        if changed:
            kept = {table: schema for table, schema in self.current.items() if table not in changed}
            self.current = self._ruled(kept | read_schemas(self._connection, changed))
            self._stamps |= {table: stamps.get(table) for table in changed}

    def _ruled(self, schemas: Mapping[TableName, TableSchema]) -> Mapping[TableName, TableSchema]:
        """Return *schemas* with the rules of each table; those of one may depend on another."""
        if self._policy is None or not self._policy.columns:
            return schemas
        rules = read_local_rules(self._connection, self._policy)
        return {table: replace(schema, rules=rules.get(table)) for table, schema in schemas.items()}
