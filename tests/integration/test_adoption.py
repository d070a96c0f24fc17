"""Migration 0001 over the tables that a predecessor left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from syncdata.errors import SchemaError
from syncdata.models import Checkpoint, SyncLog, SyncMetric, SyncRequest, SyncRun, TableToSync

PREDECESSOR_SCHEMA = (Path(__file__).parents[1] / "data" / "predecessor-schema.sql").read_text()
PREDECESSOR_ROWS = """
    INSERT INTO tables_to_sync (table_name, creator) VALUES ('users', 'ada'), ('orders', NULL);
    DELETE FROM tables_to_sync WHERE table_name = 'orders';
    INSERT INTO data_sync_logs (table_name, status, rows_synced, archive_ref, sync_time)
        VALUES ('users', 'SUCCESS', NULL, 'changes_20260205_103000.json', NULL),
               ('users', 'FAILED', 7, NULL, '2026-02-05T10:30:00Z');
    INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type, records_added)
        VALUES ('users', '2026-02-05T00:00:00Z', '2026-02-06T00:00:00Z', 'FREQ', 5);
"""
TABLES = [
    "tables_to_sync",
    "data_sync_logs",
    "data_sync_metrics",
    "data_sync_checkpoints",
    "data_sync_runs",
    "data_sync_minutes",
    "data_sync_requests",
    "data_sync_verifications",
]


def execute(statements: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statements)


def catalog() -> list[tuple[Any, ...]]:
    """Return all that the catalog says of syncdata's tables: columns, constraints, indexes, sequences."""
    parts = [
        "SELECT attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull,"
        " attidentity::text, pg_get_expr(adbin, adrelid),"
        " pg_get_serial_sequence(attrelid::regclass::text, attname)"
        " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = ANY(%s::regclass[]) AND attnum > 0 ORDER BY 1, 2",
        "SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid), condeferrable"
        " FROM pg_constraint WHERE conrelid = ANY(%s::regclass[]) ORDER BY 1, 2",
        "SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%s::regclass[]) ORDER BY 1, 2",
        "SELECT seqrelid::regclass::text, seqtypid, seqstart, seqincrement, seqmax, seqcycle"
        " FROM pg_sequence JOIN pg_depend ON objid = seqrelid"
        " WHERE refobjid = ANY(%s::regclass[]) ORDER BY 1",
    ]
    rows: list[tuple[Any, ...]] = []
    with connection.cursor() as cursor:
        for part in parts:
            cursor.execute(part, [TABLES])
            rows += cursor.fetchall()
    return rows


@pytest.fixture
def fresh_catalog(transactional_db: None) -> list[tuple[Any, ...]]:
    """Unapply the migration, and return the catalog as a fresh install had it."""
    fresh = catalog()
    call_command("migrate", "syncdata", "zero", verbosity=0)
    return fresh


@pytest.fixture(autouse=True)
def leave_the_tables_as_they_were(transactional_db: None) -> Any:
    yield
    execute(f"DROP TABLE IF EXISTS {', '.join(TABLES)}; DELETE FROM django_migrations WHERE app = 'syncdata'")
    call_command("migrate", "syncdata", verbosity=0)


def test_adopted_tables_equal_those_of_a_fresh_install(fresh_catalog: list[tuple[Any, ...]]) -> None:
    execute(PREDECESSOR_SCHEMA)
    execute(PREDECESSOR_ROWS)
    call_command("migrate", "syncdata", verbosity=0)
    assert catalog() == fresh_catalog


def test_adopted_tables_keep_their_rows(fresh_catalog: list[tuple[Any, ...]]) -> None:
    execute(PREDECESSOR_SCHEMA)
    execute(PREDECESSOR_ROWS)
    call_command("migrate", "syncdata", verbosity=0)
    user = TableToSync.objects.get()
    assert (user.id, user.table_name, user.creator) == (1, "users", "ada")
    assert user.created_at is not None
    unknown, failed = SyncLog.objects.order_by("rows_synced")
    assert (unknown.rows_synced, unknown.action, unknown.records_added) == (0, "sync", 0)
    assert unknown.sync_time is None, "a time nobody recorded is not made up"
    assert (failed.rows_synced, failed.status) == (7, "FAILED")
    assert failed.sync_time == datetime(2026, 2, 5, 10, 30, tzinfo=UTC)
    assert SyncMetric.objects.get().records_added == 5


def test_numbering_goes_on_where_the_predecessor_stopped(fresh_catalog: list[tuple[Any, ...]]) -> None:
    execute(PREDECESSOR_SCHEMA)
    execute(PREDECESSOR_ROWS)
    call_command("migrate", "syncdata", verbosity=0)
    assert TableToSync.objects.create(table_name="products").id == 3
    assert SyncMetric.objects.count() == 1


def test_a_constraint_and_indexes_of_other_names_are_brought_to_ours(
    fresh_catalog: list[tuple[Any, ...]],
) -> None:
    execute(PREDECESSOR_SCHEMA)
    execute(
        "ALTER TABLE tables_to_sync RENAME CONSTRAINT tables_to_sync_table_name_key TO once;"
        "ALTER TABLE data_sync_metrics"
        " DROP CONSTRAINT data_sync_metrics_table_name_period_start_period_type_key;"
        "DROP INDEX idx_sync_logs_status;"
        "ALTER INDEX idx_sync_logs_table_time RENAME TO by_table"
    )
    call_command("migrate", "syncdata", verbosity=0)
    assert catalog() == fresh_catalog


def test_a_strangers_table_is_refused_and_left_alone(fresh_catalog: list[tuple[Any, ...]]) -> None:
    execute("CREATE TABLE data_sync_metrics (id serial PRIMARY KEY, table_name text NOT NULL, value float)")
    with pytest.raises(SchemaError, match="SHD_SYN_050.*data_sync_metrics.*period_start"):
        call_command("migrate", "syncdata", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'data_sync_metrics'::regclass AND attnum > 0"
        )
        assert cursor.fetchone() == (3,)


def test_a_column_of_another_type_is_refused(fresh_catalog: list[tuple[Any, ...]]) -> None:
    execute("CREATE TABLE tables_to_sync (id serial PRIMARY KEY, table_name integer NOT NULL)")
    with pytest.raises(SchemaError, match="column table_name is integer, not text"):
        call_command("migrate", "syncdata", verbosity=0)


def test_unapplying_the_migration_keeps_every_table_that_holds_rows(
    transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    TableToSync.objects.create(table_name="users")
    Checkpoint.objects.create(table_name="users", file="changes_20260205_103000.json", commit_lsn="0/16b3d40")
    call_command("migrate", "syncdata", "zero", verbosity=0)
    assert "kept table tables_to_sync" in caplog.text
    assert {*TABLES} & {*connection.introspection.table_names()} == {
        "tables_to_sync",
        "data_sync_checkpoints",
    }
    call_command("migrate", "syncdata", verbosity=0)
    assert TableToSync.objects.get().table_name == "users"
    assert Checkpoint.objects.get().commit_lsn == "0/16B3D40"


def test_errors_of_rows_that_are_there_already_become_data(transactional_db: None) -> None:
    refused = "SHD_SYN_064: changes_1 sent again.json:7: table users: refused (mend it)"
    call_command("migrate", "syncdata", "0003", verbosity=0)
    execute(
        f"INSERT INTO data_sync_checkpoints (table_name, error) VALUES ('users', '{refused}'), ('fine', NULL)"
    )
    execute("INSERT INTO data_sync_runs (host, pid, sync_frequency, last_error) VALUES ('a', 1, 1, 'odd')")
    execute(
        "INSERT INTO data_sync_requests (action, table_names, state, error)"
        " VALUES ('clear', '{users}', 'failed', 'SHD_SYN_054: nothing is cleared')"
    )
    call_command("migrate", "syncdata", verbosity=0)
    columns = ("error", "error_code", "error_file", "error_line", "error_hint")
    assert Checkpoint.objects.values_list(*columns).get(table_name="users") == (
        refused,
        "SHD_SYN_064",
        "changes_1 sent again.json",
        7,
        "mend it",
    )
    assert Checkpoint.objects.values_list(*columns).get(table_name="fine") == (None,) * 5
    assert SyncRun.objects.values_list("last_error", *columns[1:]).get() == ("odd", None, None, None, None)
    assert SyncRequest.objects.get().error_code == "SHD_SYN_054"


def test_the_errors_of_more_rows_than_a_batch_holds_become_data(transactional_db: None) -> None:
    call_command("migrate", "syncdata", "0003", verbosity=0)
    execute(
        "INSERT INTO data_sync_requests (action, table_names, state, error)"
        " SELECT 'clear', '{users}', 'failed',"
        " CASE WHEN n % 3 = 0 THEN 'no code' ELSE 'SHD_SYN_064: changes_' || n || '.json:' || n || ': x' END"
        " FROM generate_series(1, 12000) n"
    )
    call_command("migrate", "syncdata", verbosity=0)
    filled = SyncRequest.objects.exclude(error_code=None)
    assert filled.count() == 8000
    assert all(
        file == f"changes_{line}.json" for file, line in filled.values_list("error_file", "error_line")
    )
    assert not SyncRequest.objects.filter(error="no code").exclude(error_line=None).exists()
