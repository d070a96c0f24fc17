"""What came of the checks: rows held to what production had at the same position."""

import django.db.models.functions.datetime
from django.db import migrations, models

import syncdata.models


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0007_narrow_checkpoints"),
    ]

    operations = [
        migrations.CreateModel(
            name="SyncVerification",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("table_name", models.TextField(verbose_name="table")),
                ("round", models.BigIntegerField()),
                ("chunk", models.BigIntegerField()),
                ("bounds", models.TextField(db_default="")),
                ("position", models.TextField(db_default="")),
                ("commit_lsn", syncdata.models.LsnField(null=True, verbose_name="commit LSN")),
                ("rows", models.BigIntegerField(db_default=0)),
                ("rows_here", models.BigIntegerField(db_default=0)),
                ("seen", models.BigIntegerField(db_default=0)),
                ("is_of_number", models.BooleanField(db_default=False)),
                ("is_last", models.BooleanField(db_default=False)),
                ("is_equal", models.BooleanField(null=True, verbose_name="equal")),
                ("reason", models.TextField(db_default="")),
                (
                    "verified_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), verbose_name="verified"
                    ),
                ),
            ],
            options={
                "verbose_name": "verification",
                "db_table": "data_sync_verifications",
                "default_permissions": ("view",),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("table_name", "round", "chunk"),
                        name="data_sync_verifications_table_name_round_chunk_key",
                    )
                ],
            },
        ),
    ]
