"""The tables of syncdata, created or, where the predecessor left them, adopted with their rows."""

from __future__ import annotations

import django.contrib.postgres.functions
import django.db.models.functions.datetime
from django.db import migrations, models

import syncdata.models
from syncdata.predecessor.adoption import CreateOrAdoptModel


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        CreateOrAdoptModel(
            name="TableToSync",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                (
                    "table_name",
                    models.TextField(
                        help_text="For example users, or shop.users for a table outside the schema public.",
                        verbose_name="table",
                    ),
                ),
                ("creator", models.TextField(blank=True, editable=False, null=True, verbose_name="added by")),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        editable=False,
                        null=True,
                        verbose_name="added at",
                    ),
                ),
            ],
            options={
                "verbose_name": "table to sync",
                "verbose_name_plural": "tables to sync",
                "db_table": "tables_to_sync",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("table_name",),
                        name="tables_to_sync_table_name_key",
                        violation_error_message="This table is in the whitelist already.",
                    )
                ],
            },
        ),
        CreateOrAdoptModel(
            name="SyncLog",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        db_default=django.contrib.postgres.functions.RandomUUID(),
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("table_name", models.TextField(verbose_name="table")),
                ("status", models.TextField(choices=[("SUCCESS", "SUCCESS"), ("FAILED", "FAILED")])),
                ("rows_synced", models.IntegerField(db_default=0)),
                ("archive_ref", models.TextField(null=True, verbose_name="change file")),
                ("error_detail", models.TextField(null=True, verbose_name="error")),
                (
                    "sync_time",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), null=True, verbose_name="time"
                    ),
                ),
                (
                    "action",
                    models.TextField(
                        choices=[("sync", "sync"), ("resync", "resync"), ("clear", "clear")],
                        db_default="sync",
                    ),
                ),
                ("records_added", models.BigIntegerField(db_default=0, verbose_name="added")),
                ("records_updated", models.BigIntegerField(db_default=0, verbose_name="updated")),
                ("records_deleted", models.BigIntegerField(db_default=0, verbose_name="deleted")),
                ("records_truncated", models.BigIntegerField(db_default=0, verbose_name="truncated")),
                ("records_missing", models.BigIntegerField(db_default=0, verbose_name="missing")),
                ("duration_ms", models.BigIntegerField(db_default=0, verbose_name="duration (ms)")),
            ],
            options={
                "verbose_name": "sync log entry",
                "verbose_name_plural": "sync log",
                "db_table": "data_sync_logs",
                "indexes": [
                    models.Index(fields=["table_name", "sync_time"], name="idx_sync_logs_table_time"),
                    models.Index(fields=["status"], name="idx_sync_logs_status"),
                    models.Index(fields=["-sync_time", "-id"], name="idx_sync_logs_time"),
                ],
            },
        ),
        CreateOrAdoptModel(
            name="SyncMetric",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("table_name", models.TextField(verbose_name="table")),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                (
                    "period_type",
                    models.TextField(
                        choices=[("FREQ", "FREQ"), ("WEEK", "WEEK"), ("MONTH", "MONTH")],
                        verbose_name="period",
                    ),
                ),
                ("records_added", models.BigIntegerField(db_default=0, verbose_name="added")),
                ("records_updated", models.BigIntegerField(db_default=0, verbose_name="updated")),
                ("records_deleted", models.BigIntegerField(db_default=0, verbose_name="deleted")),
            ],
            options={
                "verbose_name": "metric",
                "db_table": "data_sync_metrics",
                "indexes": [
                    models.Index(fields=["table_name", "period_start"], name="idx_sync_metrics_table_period"),
                    models.Index(fields=["-period_start", "-id"], name="idx_sync_metrics_period"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("table_name", "period_start", "period_type"),
                        name="data_sync_metrics_table_name_period_start_period_type_key",
                    )
                ],
            },
        ),
        CreateOrAdoptModel(
            name="Checkpoint",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table_name", models.TextField(verbose_name="table")),
                ("file", models.TextField(db_default="", verbose_name="change file")),
                ("file_size", models.BigIntegerField(null=True, verbose_name="file size in bytes")),
                ("file_finished", models.BooleanField(db_default=False)),
                ("record_number", models.BigIntegerField(db_default=0)),
                ("commit_lsn", syncdata.models.LsnField(null=True, verbose_name="commit LSN")),
                ("last_lsn", syncdata.models.LsnField(null=True, verbose_name="LSN of the newest record")),
                ("source_id", models.TextField(db_default="", verbose_name="source")),
                (
                    "state",
                    models.TextField(
                        choices=[("active", "active"), ("blocked", "blocked")], db_default="active"
                    ),
                ),
                ("error", models.TextField(null=True)),
                ("blocked_at", models.DateTimeField(null=True)),
                ("last_change_at", models.DateTimeField(null=True)),
                ("last_sync_at", models.DateTimeField(null=True, verbose_name="last sync")),
                ("rows_synced", models.BigIntegerField(db_default=0)),
                ("records_added", models.BigIntegerField(db_default=0, verbose_name="added")),
                ("records_updated", models.BigIntegerField(db_default=0, verbose_name="updated")),
                ("records_deleted", models.BigIntegerField(db_default=0, verbose_name="deleted")),
                ("records_truncated", models.BigIntegerField(db_default=0, verbose_name="truncated")),
                ("records_missing", models.BigIntegerField(db_default=0, verbose_name="missing")),
                ("file_added", models.BigIntegerField(db_default=0)),
                ("file_updated", models.BigIntegerField(db_default=0)),
                ("file_deleted", models.BigIntegerField(db_default=0)),
                ("file_truncated", models.BigIntegerField(db_default=0)),
                ("file_missing", models.BigIntegerField(db_default=0)),
                ("file_duration_ms", models.BigIntegerField(db_default=0)),
            ],
            options={
                "db_table": "data_sync_checkpoints",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("table_name",), name="data_sync_checkpoints_table_name_key"
                    )
                ],
            },
        ),
        CreateOrAdoptModel(
            name="SyncRun",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("host", models.TextField()),
                ("pid", models.IntegerField(verbose_name="process id")),
                ("sync_frequency", models.IntegerField(verbose_name="sync frequency (s)")),
                (
                    "started_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="started"
                    ),
                ),
                ("stopped_at", models.DateTimeField(null=True, verbose_name="stopped")),
                ("last_sync_at", models.DateTimeField(null=True, verbose_name="last sync")),
                ("records_synced", models.BigIntegerField(db_default=0)),
                ("errors", models.BigIntegerField(db_default=0)),
                ("last_error", models.TextField(null=True)),
            ],
            options={
                "verbose_name": "daemon run",
                "db_table": "data_sync_runs",
            },
        ),
    ]
