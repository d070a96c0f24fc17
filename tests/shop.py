"""The shop: a real capture (tests/data/shop), its base rows and its expected rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.world import World

DATA = Path(__file__).parent / "data" / "shop"
CHANGES = "changes_20260205_103000.json"
TABLES = ("customer", "product", "Order", "order_line", "secret", "event_log")
COUNTS: dict[str, int] = json.loads((DATA / "counts.json").read_text())["by_table"]


def read(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def load_base(world: World) -> None:
    """Create the shop's tables with the rows they had when the capture began."""
    world.execute((DATA / "schema.sql").read_text())
    with world.connect() as connection:
        connection.execute("SET timezone = 'UTC'; SET session_replication_role = replica")
        for table in TABLES:
            with connection.cursor().copy(f'COPY "{table}" ({_columns(world, table)}) FROM STDIN') as copy:
                copy.write(read(f"base.{table.lower()}.copy"))


def dump(world: World, table: str) -> bytes:
    """Return the table's rows as the expected files have them."""
    query = f'SELECT {_columns(world, table)} FROM "{table}" ORDER BY "{table}"::text COLLATE "C"'
    with world.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
            return b"".join(bytes(block) for block in copy)


def differing_tables(world: World) -> list[str]:
    return [table for table in TABLES if dump(world, table) != read(f"expected.{table.lower()}.copy")]


def audited_counts(world: World) -> dict[str, int]:
    """Return the audit log's records by ``table OPERATION``, zeros left out."""
    return _by_operation(
        world,
        "SELECT table_name, sum(records_added)::bigint, sum(records_updated)::bigint,"
        " sum(records_deleted)::bigint, sum(records_truncated)::bigint"
        " FROM data_sync_logs WHERE status = 'SUCCESS' GROUP BY 1",
    )


def metric_counts(world: World, period_type: str) -> dict[str, int]:
    return _by_operation(
        world,
        "SELECT table_name, sum(records_added)::bigint, sum(records_updated)::bigint,"
        " sum(records_deleted)::bigint FROM data_sync_metrics"
        f" WHERE period_type = '{period_type}' GROUP BY 1",
    )


def _by_operation(world: World, query: str) -> dict[str, int]:
    operations = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
    return {
        f"{table} {operation}": number
        for table, *numbers in world.rows(query)
        for operation, number in zip(operations, numbers, strict=False)
        if number
    }


def _columns(world: World, table: str) -> str:
    return world.value(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
        f" WHERE attrelid = '\"{table}\"'::regclass AND attnum > 0 AND attgenerated = ''"
    )
