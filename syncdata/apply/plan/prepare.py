"""Each table's share of a batch, worked out before the server is asked for anything. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from syncdata.apply.plan import drift
from syncdata.apply.plan.batches import Batch, BatchFile
from syncdata.apply.plan.local_rules import LocalRules
from syncdata.apply.plan.net_change import try_plan
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import TableBatch, TablePlan, note_size
from syncdata.apply.plan.transform import transformed
from syncdata.changes.names import TableName
from syncdata.changes.run import LocatedRecord, Piece, Run, by_table, pieces_of, records_of
from syncdata.errors import SchemaError, SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShare:
    """One table's share of a batch: its records and their plan, or the error that there is instead of one."""

    records: Sequence[LocatedRecord]
    plan: TablePlan | SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """A batch with each table's share worked out, for tables that are as *schemas* says."""

    batch: Batch
    shares: dict[TableName, TableShare]
    schemas: Mapping[TableName, TableSchema]

    @property
    def file(self) -> BatchFile:
        return self.batch.file


def prepare(batch: Batch, schemas: Mapping[TableName, TableSchema]) -> PreparedBatch:
    """Work out each table's share of *batch*; a table that cannot be planned carries its error."""
    shares = {}
    for (schema_name, table_name), pieces in by_table(batch.pieces).items():
        table = TableName(schema_name, table_name)
        shares[table] = _share(table, schemas.get(table), records_of(pieces), batch)
    return PreparedBatch(batch=batch, shares=shares, schemas=schemas)


def _share(
    table: TableName, schema: TableSchema | None, records: Sequence[LocatedRecord], batch: Batch
) -> TableShare:
    if schema is None:
        # Test: test_a_missing_table_blocks_only_itself_until_it_is_created.
        error = SchemaError(
            "the table does not exist in the local database",
            hint="create it (migrate), and resync it if it was there before and held rows; or take it off the"
            " whitelist with remove_tables",
            table=str(table),
            file=records[0].file,
            line=records[0].line,
        )
        return TableShare(records=records, plan=error)
    if schema.rules is not None:
        if (refusal := _rules_error(schema.rules, batch)) is not None:
            refusal.table = str(table)
            return TableShare(records=records, plan=refusal)
        records = transformed(records, schema, schema.rules, is_plain_file=batch.file.is_plain)
    plan = try_plan(TableBatch(schema=schema, records=records, file=batch.file))
    if isinstance(plan, TablePlan):
        note_size(plan, sum(map(_bytes_of, pieces_of(records))))
    if isinstance(plan, SchemaError):
        plan.hint = _with_statements(plan, schema, records, batch)
    return TableShare(records=records, plan=plan)


def _rules_error(rules: LocalRules, batch: Batch) -> SchemaError | None:
    """Return why nothing of a table with *rules* may be written; None where it may.

    Without a catalog nothing would tell that rows here were masked by other rules.
    Test: test_a_table_with_rules_needs_an_archive_with_catalogs.
    """
    if rules.problems:
        return drift.rules_error(rules)
    if batch.published is None:
        return SchemaError(
            "this side has privacy rules for it, and the archive does not say what its columns are",
            hint="take it from an archive of syncdata's own archiver; or take its rules out of [columns]",
        )
    return None


def in_order(prepared: PreparedBatch) -> Iterator[LocatedRecord]:
    """Yield the records of all shares of *prepared* in the order of its batch, as they are to be written."""
    shares = {(table.schema, table.name): iter(share.records) for table, share in prepared.shares.items()}
    for located in prepared.batch.records:
        yield next(shares[located.record.schema, located.record.table])


def _bytes_of(piece: Piece) -> int:
    return len(piece.text) if isinstance(piece, Run) else piece.size_bytes


def _with_statements(
    error: SchemaError, schema: TableSchema, records: Sequence[LocatedRecord], batch: Batch
) -> str:
    """Return the hint of *error* with the statements for the columns of its record that the table lacks,
    where the catalog has them."""
    entry = batch.published and batch.published.find(schema.name)
    carried: set[str] = set()
    for located in records:
        if (located.file, located.line) == (error.file, error.line):
            carried |= {*(located.record.data or {}), *(located.record.old_keys or {})}
    missing = [c for c in drift.missing_columns(entry, schema) if c.name in carried] if entry else []
    statements = "; ".join(drift.add_column(schema.name, column) for column in missing)
    return f"{error.hint}: {statements}" if statements else error.hint


def without(
    prepared: PreparedBatch,
    table: TableName,
    is_left_out: Callable[[str, int], bool],
    schemas: Mapping[TableName, TableSchema],
) -> PreparedBatch:
    """Return *prepared* without the record of *table* that *is_left_out*, by its file and line."""
    name = (table.schema, table.name)
    segments = []
    for segment in prepared.batch.segments:
        records = [
            located
            for located in segment.records
            if (located.record.schema, located.record.table) != name
            or not is_left_out(located.file, located.line)
        ]
        segments.append(replace(segment, records=records))
    return prepare(replace(prepared.batch, segments=tuple(segments)), schemas)


def shares_of(
    piece: Sequence[LocatedRecord], shares: Mapping[TableName, TableShare], file: BatchFile
) -> dict[TableName, TableShare]:
    """Return what *piece*, some or all of the records of *shares*, is for each table."""
    if len(piece) == sum(len(share.records) for share in shares.values()):
        return dict(shares)
    by_table: dict[TableName, list[LocatedRecord]] = {}
    for located in piece:
        by_table.setdefault(TableName(located.record.schema, located.record.table), []).append(located)
    parts = {}
    for table, records in by_table.items():
        plan = shares[table].plan
        if isinstance(plan, TablePlan):
            plan = try_plan(TableBatch(schema=plan.schema, records=records, file=file))
        parts[table] = TableShare(records=records, plan=plan)
    return parts


def cut_at_truncates(
    records: Iterable[LocatedRecord], shares: Mapping[TableName, TableShare]
) -> Iterator[list[LocatedRecord]]:
    """Yield *records* in pieces; a TRUNCATE of a table whose deletes may cascade is one by itself.

    Records of tables that are not in *shares* are left out.
    """
    piece: list[LocatedRecord] = []
    for located in records:
        share = shares.get(TableName(located.record.schema, located.record.table))
        if share is None:
            continue
        is_cut = (
            located.record.op == "TRUNCATE"
            and isinstance(share.plan, TablePlan)
            and share.plan.schema.has_cascades
        )
        if is_cut and piece:
            yield piece
            piece = []
        piece.append(located)
        if is_cut:
            yield piece
            piece = []
    if piece:
        yield piece
