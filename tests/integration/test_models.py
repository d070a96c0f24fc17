"""The tables as the engine's own SQL meets them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from syncdata.models import Checkpoint, LsnField, SyncLog, SyncMetric, SyncRun, TableToSync

pytestmark = pytest.mark.django_db


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_models_and_migrations_agree() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


_ELSEWHERE = """
import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "syncdata"],
)
django.setup()
call_command("migrate", verbosity=0)
call_command("migrate", "syncdata", "0006", verbosity=0)
"""


def test_the_migrations_pass_in_a_database_of_another_kind() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    subprocess.run([sys.executable, "-c", _ELSEWHERE], check=True, env=environment)


def test_the_database_fills_in_every_default_of_a_log_entry() -> None:
    execute("INSERT INTO data_sync_logs (table_name, status) VALUES ('users', 'SUCCESS')")
    entry = SyncLog.objects.get()
    assert isinstance(entry.id, uuid.UUID)
    assert entry.sync_time is not None
    assert (entry.action, entry.rows_synced, entry.duration_ms, entry.records_added) == ("sync", 0, 0, 0)
    assert (entry.archive_ref, entry.error_detail) == (None, None)


def test_the_database_fills_in_every_default_of_a_checkpoint() -> None:
    execute("INSERT INTO data_sync_checkpoints (table_name) VALUES ('users')")
    checkpoint = Checkpoint.objects.get()
    assert (checkpoint.state, checkpoint.file, checkpoint.record_number) == ("active", "", 0)
    assert (checkpoint.file_finished, checkpoint.commit_lsn, checkpoint.source_id) == (False, None, "")
    assert (checkpoint.rows_synced, checkpoint.file_added, checkpoint.file_duration_ms) == (0, 0, 0)
    assert checkpoint.position == ""


def test_the_database_fills_in_every_default_of_the_other_tables() -> None:
    execute(
        "INSERT INTO tables_to_sync (table_name) VALUES ('users');"
        "INSERT INTO data_sync_runs (host, pid, sync_frequency) VALUES ('laptop', 42, 600);"
        "INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type)"
        " VALUES ('users', '2026-02-05', '2026-02-06', 'FREQ')"
    )
    assert TableToSync.objects.get().created_at is not None
    run = SyncRun.objects.get()
    assert (run.records_synced, run.errors, run.stopped_at) == (0, 0, None)
    assert run.started_at is not None
    assert SyncMetric.objects.get().records_updated == 0


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tables_to_sync (table_name) VALUES ('users'), ('users')",
        "INSERT INTO data_sync_checkpoints (table_name) VALUES ('users'), ('users')",
        "INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type) VALUES"
        " ('users', '2026-02-05', '2026-02-06', 'FREQ'), ('users', '2026-02-05', '2026-02-07', 'FREQ')",
    ],
)
def test_what_is_unique_cannot_be_there_twice(statement: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        execute(statement)


def test_positions_compare_as_numbers_in_the_database() -> None:
    for name, lsn in [("late", "10/0"), ("early", "9/FFFFFFFF"), ("middle", "f/1")]:
        Checkpoint.objects.create(table_name=name, commit_lsn=lsn)
    names = Checkpoint.objects.order_by("commit_lsn").values_list("table_name", flat=True)
    assert [*names] == ["early", "middle", "late"]
    assert Checkpoint.objects.get(commit_lsn="F/1").table_name == "middle"
    assert Checkpoint.objects.get(table_name="middle").commit_lsn == "F/1"


@pytest.mark.parametrize("text", ["", "16B3D40", "0/", "x/1", "0/123456789"])
def test_what_is_not_a_position_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        LsnField().clean(text, None)
