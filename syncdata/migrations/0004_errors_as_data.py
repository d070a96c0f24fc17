"""Code, file, line and hint of an error beside its text, and those of existing rows, read from the text."""

from __future__ import annotations

import re
from typing import Any

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# "SHD_SYN_064: changes_20260205 late.json:13: table users: the database refuses (mend it)"
_CODE = re.compile(r"(SHD_SYN_\d{3}): ")
_FILE = re.compile(
    r"((?:changes_|snapshot_\d{8}_\d{6}/)(?:(?!: )[^/])*?\.json(?:\.gz|\.zst)?)(?::(\d+))?: ", re.DOTALL
)
_TEXTS = {"Checkpoint": "error", "SyncRun": "last_error", "SyncRequest": "error"}


def parse_error(text: str) -> dict[str, Any]:
    """Return the columns ``error_*`` for the text of an error as versions before this one wrote it."""
    code = _CODE.match(text)
    if code is None:
        return {}
    place = _FILE.match(text, code.end())
    return {
        "error_code": code[1],
        "error_file": place[1] if place else None,
        "error_line": int(place[2]) if place and place[2] else None,
        "error_hint": _hint(text),
    }


def _hint(text: str) -> str | None:
    """The last pair of parentheses, if the text ends with it; it may hold others."""
    if not text.endswith(")"):
        return None
    depth = 0
    for index in range(len(text) - 1, -1, -1):
        depth += (text[index] == ")") - (text[index] == "(")
        if depth == 0:
            return text[index + 1 : -1]
    return None


def fill_from_texts(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    alias = schema_editor.connection.alias
    for model_name, column in _TEXTS.items():
        rows = apps.get_model("syncdata", model_name)._base_manager.using(alias)
        for pk, text in rows.exclude(**{column: None}).values_list("pk", column):
            if columns := parse_error(text):
                rows.filter(pk=pk).update(**columns)


def _columns(model_name: str) -> list[migrations.AddField]:
    fields: dict[str, models.Field[Any, Any]] = {
        "error_code": models.TextField(null=True),
        "error_file": models.TextField(null=True),
        "error_line": models.BigIntegerField(null=True),
        "error_hint": models.TextField(null=True),
    }
    return [migrations.AddField(model_name, name, field) for name, field in fields.items()]


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0003_requests"),
    ]

    operations = [
        *_columns("checkpoint"),
        *_columns("syncrun"),
        *_columns("syncrequest"),
        migrations.RunPython(fill_from_texts, migrations.RunPython.noop, elidable=True),
    ]
