"""Each table's share of a batch, worked out before the server is asked for anything. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from syncdata.apply.plan.batches import Batch
from syncdata.apply.plan.net_change import TablePlan, make_plan
from syncdata.apply.plan.schema import TableSchema
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.errors import SchemaError, SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """One table's share of a batch: its records and their plan, or why there is none."""

    records: list[LocatedRecord]
    plan: TablePlan | SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """A batch with each table's share worked out."""

    batch: Batch
    parts: dict[TableName, TablePart]
    file: str
    is_plain_file: bool


def prepare(
    batch: Batch, schemas: Mapping[TableName, TableSchema], *, file: str, is_plain_file: bool
) -> PreparedBatch:
    """Work out each table's share of *batch*. Pure; a table that cannot be planned carries its error."""
    by_name: dict[tuple[str, str], list[LocatedRecord]] = {}
    for located in batch.records:
        record = located.record
        by_name.setdefault((record.schema, record.table), []).append(located)
    parts = {}
    for (schema_name, table_name), records in by_name.items():
        table = TableName(schema_name, table_name)
        parts[table] = TablePart(
            records=records, plan=plan_table(table, records, schemas, file=file, is_plain_file=is_plain_file)
        )
    return PreparedBatch(batch=batch, parts=parts, file=file, is_plain_file=is_plain_file)


def plan_table(
    table: TableName,
    records: list[LocatedRecord],
    schemas: Mapping[TableName, TableSchema],
    *,
    file: str,
    is_plain_file: bool,
) -> TablePlan | SyncError:
    schema = schemas.get(table)
    if schema is None:
        return SchemaError(
            "the table does not exist in the local database",
            hint="create it (migrate), or take it off the whitelist with remove_tables",
            table=str(table),
            file=file,
            line=records[0].line,
        )
    try:
        return make_plan(records, schema, file=file, is_plain_file=is_plain_file)
    except SyncError as error:
        return error


def without(
    prepared: PreparedBatch, table: TableName, line: int, schemas: Mapping[TableName, TableSchema]
) -> PreparedBatch:
    """Return *prepared* without the record of *table* in *line*."""
    records = [
        located
        for located in prepared.batch.records
        if located.line != line or (located.record.schema, located.record.table) != (table.schema, table.name)
    ]
    return prepare(
        replace(prepared.batch, records=records),
        schemas,
        file=prepared.file,
        is_plain_file=prepared.is_plain_file,
    )


def runs_of_one_table(
    records: Iterable[LocatedRecord], parts: Mapping[TableName, TablePart]
) -> Iterator[tuple[TableName, list[LocatedRecord]]]:
    """Cut *records* where the table changes, and between those that remove rows and the others."""
    last: tuple[TableName, bool] | None = None
    run: list[LocatedRecord] = []
    for located in records:
        record = located.record
        table = TableName(record.schema, record.table)
        if table not in parts:
            continue
        removes = record.op in ("DELETE", "TRUNCATE")
        if last is not None and last != (table, removes):
            yield last[0], run
            run = []
        last = (table, removes)
        run.append(located)
    if last is not None:
        yield last[0], run
