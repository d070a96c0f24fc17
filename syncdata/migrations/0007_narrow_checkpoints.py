"""What seldom changes of a checkpoint moves out of the row that each file writes anew.

All checkpoints move with each file. What production publishes of a table stays as it is: where it makes the
row larger than 2 kB, it moves beside the row, and is not written again. (PostgreSQL moves nothing out of
smaller rows, whatever ``toast_tuple_target`` says: that is how small a row is made once something moves.) The
free half of a page takes the next version of a row, so that no index has to be told of it.
"""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def narrow(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(
        schema_editor,
        "SET (toast_tuple_target = 128, fillfactor = 50)",
        "ALTER published SET STORAGE EXTERNAL",
    )


def widen(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(
        schema_editor,
        "RESET (toast_tuple_target, fillfactor)",
        "ALTER published SET STORAGE EXTENDED",
    )


def _alter(schema_editor: BaseDatabaseSchemaEditor, *changes: str) -> None:
    # A project without the router makes the tables in other databases, too, such as that of its tests. Test:
    # test_the_migrations_pass_in_a_database_of_another_kind.
    if schema_editor.connection.vendor == "postgresql":
        for change in changes:
            schema_editor.execute(f"ALTER TABLE data_sync_checkpoints {change}")


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0006_unexpected_errors"),
    ]

    operations = [
        migrations.RunPython(narrow, widen),
    ]
