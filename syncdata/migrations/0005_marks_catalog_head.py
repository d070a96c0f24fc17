"""Marks of a checkpoint, the published and the local table behind it, and the archiver's sign of life."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0004_errors_as_data"),
    ]

    operations = [
        migrations.AddField(
            model_name="checkpoint",
            name="local_oid",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="home_oid",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="marks",
            field=models.JSONField(db_default=models.Value([], models.JSONField())),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="published",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="syncrun",
            name="head",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="syncrun",
            name="head_changed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="syncrun",
            name="head_read_at",
            field=models.DateTimeField(null=True),
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
                    ("whole", "whole"),
                ],
                db_default="sync",
            ),
        ),
    ]
