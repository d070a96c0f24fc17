"""Each table's share of a batch, worked out before the server is asked for anything. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from syncdata.apply.plan import drift
from syncdata.apply.plan.batches import Batch, BatchFile
from syncdata.apply.plan.net_change import try_plan
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import TableBatch, TablePlan
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.errors import SchemaError, SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShare:
    """One table's share of a batch: its records and their plan, or the error that there is instead of one."""

    records: list[LocatedRecord]
    plan: TablePlan | SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """A batch with each table's share worked out."""

    batch: Batch
    shares: dict[TableName, TableShare]

    @property
    def file(self) -> BatchFile:
        return self.batch.file


def prepare(batch: Batch, schemas: Mapping[TableName, TableSchema]) -> PreparedBatch:
    """Work out each table's share of *batch*; a table that cannot be planned carries its error."""
    by_name: dict[tuple[str, str], list[LocatedRecord]] = {}
    for located in batch.records:
        record = located.record
        by_name.setdefault((record.schema, record.table), []).append(located)
    shares = {}
    for (schema_name, table_name), records in by_name.items():
        table = TableName(schema_name, table_name)
        shares[table] = _share(table, schemas.get(table), records, batch)
    return PreparedBatch(batch=batch, shares=shares)


def _share(
    table: TableName, schema: TableSchema | None, records: list[LocatedRecord], batch: Batch
) -> TableShare:
    if schema is None:
        # Test: test_a_missing_table_blocks_only_itself_until_it_is_created.
        error = SchemaError(
            "the table does not exist in the local database",
            hint="create it (migrate), or take it off the whitelist with remove_tables",
            table=str(table),
            file=batch.file.name,
            line=records[0].line,
        )
        return TableShare(records=records, plan=error)
    plan = try_plan(TableBatch(schema=schema, records=records, file=batch.file))
    if isinstance(plan, SchemaError):
        plan.hint = _with_statements(plan, schema, records, batch)
    return TableShare(records=records, plan=plan)


def _with_statements(
    error: SchemaError, schema: TableSchema, records: list[LocatedRecord], batch: Batch
) -> str:
    """Return the hint of *error* with the statements for the columns of its record that the table lacks,
    where the catalog has them."""
    entry = batch.published and batch.published.find(schema.name)
    carried: set[str] = set()
    for located in records:
        if located.line == error.line:
            carried |= {*(located.record.data or {}), *(located.record.old_keys or {})}
    missing = [c for c in drift.missing_columns(entry, schema) if c.name in carried] if entry else []
    statements = "; ".join(drift.add_column(schema.name, column) for column in missing)
    return f"{error.hint}: {statements}" if statements else error.hint


def without(
    prepared: PreparedBatch, table: TableName, line: int, schemas: Mapping[TableName, TableSchema]
) -> PreparedBatch:
    """Return *prepared* without the record of *table* in *line*."""
    records = [
        located
        for located in prepared.batch.records
        if located.line != line or (located.record.schema, located.record.table) != (table.schema, table.name)
    ]
    return prepare(replace(prepared.batch, records=records), schemas)


def cut_by_table(
    records: Iterable[LocatedRecord], shares: Mapping[TableName, TableShare]
) -> Iterator[tuple[TableName, list[LocatedRecord]]]:
    """Cut *records* where the table changes, and between those that remove rows and the others.

    Of orders 7, 8 inserted, customer 1 inserted, order 7 deleted this makes three runs: orders (two
    inserts), customers (one), orders (one delete). Records of tables that are not in *shares* are left out.
    """
    last: tuple[TableName, bool] | None = None
    run: list[LocatedRecord] = []
    for located in records:
        record = located.record
        table = TableName(record.schema, record.table)
        if table not in shares:
            continue
        removes = record.op in ("DELETE", "TRUNCATE")
        if last is not None and last != (table, removes):
            yield last[0], run
            run = []
        last = (table, removes)
        run.append(located)
    if last is not None:
        yield last[0], run
