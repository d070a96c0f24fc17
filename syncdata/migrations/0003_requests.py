"""Requests of operators, paused tables, what the dashboard shows, and indexes for the log's pages."""

from __future__ import annotations

import django.contrib.postgres.fields
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0002_snapshot_action"),
    ]

    operations = [
        migrations.CreateModel(
            name="SyncMinute",
            fields=[
                ("minute", models.DateTimeField(primary_key=True, serialize=False)),
                ("records_added", models.BigIntegerField(db_default=0)),
                ("records_updated", models.BigIntegerField(db_default=0)),
                ("records_deleted", models.BigIntegerField(db_default=0)),
                ("records_truncated", models.BigIntegerField(db_default=0)),
                ("lag_s", models.FloatField(null=True)),
            ],
            options={
                "db_table": "data_sync_minutes",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="SyncRequest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "action",
                    models.TextField(
                        choices=[
                            ("resync", "resync"),
                            ("pause", "pause"),
                            ("resume", "resume"),
                            ("retry", "retry"),
                            ("skip", "skip a record"),
                            ("clear", "clear"),
                        ]
                    ),
                ),
                (
                    "table_names",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(), size=None, verbose_name="tables"
                    ),
                ),
                ("place", models.TextField(db_default="", help_text="The record to skip, as file:line.")),
                ("requested_by", models.TextField(db_default="", verbose_name="asked for by")),
                (
                    "requested_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="asked for at"
                    ),
                ),
                (
                    "state",
                    models.TextField(
                        choices=[
                            ("waiting", "waiting"),
                            ("running", "running"),
                            ("done", "done"),
                            ("failed", "failed"),
                        ],
                        db_default="waiting",
                    ),
                ),
                ("attempts", models.IntegerField(db_default=0)),
                ("progress", models.TextField(db_default="")),
                ("error", models.TextField(null=True)),
                ("finished_at", models.DateTimeField(null=True, verbose_name="finished at")),
            ],
            options={
                "verbose_name": "request",
                "db_table": "data_sync_requests",
            },
        ),
        migrations.CreateModel(
            name="Dashboard",
            fields=[],
            options={
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("syncdata.syncrun",),
        ),
        migrations.AlterModelOptions(
            name="checkpoint",
            options={"verbose_name": "table checkpoint"},
        ),
        migrations.AlterModelOptions(
            name="syncrun",
            options={"verbose_name": "run of the daemon", "verbose_name_plural": "runs of the daemon"},
        ),
        migrations.AlterModelOptions(
            name="tabletosync",
            options={
                "permissions": [
                    ("resync_table", "Can rebuild tables from the archive"),
                    ("pause_table", "Can pause and resume tables"),
                    ("retry_table", "Can have blocked tables tried again at once"),
                    ("skip_record", "Can skip a record that blocks a table"),
                    ("clear_table", "Can empty tables and sync them anew"),
                ],
                "verbose_name": "table to sync",
                "verbose_name_plural": "tables to sync",
            },
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="skips",
            field=models.JSONField(db_default=models.Value([], models.JSONField())),
        ),
        migrations.AddField(
            model_name="synclog",
            name="requested_by",
            field=models.TextField(null=True, verbose_name="asked for by"),
        ),
        migrations.AddField(
            model_name="syncrun",
            name="waiting_bytes",
            field=models.BigIntegerField(db_default=0),
        ),
        migrations.AddField(
            model_name="syncrun",
            name="waiting_files",
            field=models.IntegerField(db_default=0),
        ),
        migrations.AlterField(
            model_name="checkpoint",
            name="state",
            field=models.TextField(
                choices=[
                    ("active", "active"),
                    ("blocked", "blocked"),
                    ("paused", "paused"),
                ],
                db_default="active",
            ),
        ),
        migrations.AlterField(
            model_name="synclog",
            name="action",
            field=models.TextField(
                choices=[
                    ("sync", "sync"),
                    ("resync", "resync"),
                    ("clear", "clear"),
                    ("snapshot", "snapshot"),
                    ("pause", "pause"),
                    ("resume", "resume"),
                    ("skip", "skip"),
                ],
                db_default="sync",
            ),
        ),
        migrations.AddIndex(
            model_name="synclog",
            index=models.Index(
                fields=["archive_ref"], name="idx_sync_logs_ref", opclasses=["text_pattern_ops"]
            ),
        ),
        migrations.AddIndex(
            model_name="synclog",
            index=models.Index(
                condition=models.Q(("error_detail__isnull", False)),
                fields=["-sync_time", "-id"],
                name="idx_sync_logs_errors",
            ),
        ),
        migrations.AddIndex(
            model_name="synclog",
            index=models.Index(
                condition=models.Q(("action", "sync"), _negated=True),
                fields=["-sync_time", "-id"],
                name="idx_sync_logs_actions",
            ),
        ),
        migrations.AddIndex(
            model_name="syncrequest",
            index=models.Index(
                condition=models.Q(("state__in", ["waiting", "running"])),
                fields=["id"],
                name="idx_sync_requests_open",
            ),
        ),
    ]
