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
_COLUMNS = ("error_code", "error_file", "error_line", "error_hint")
_BATCH = 5_000
_FILL = """
UPDATE {table} SET error_code = parsed.code, error_file = parsed.file, error_line = parsed.line,
    error_hint = parsed.hint
FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[])
    AS parsed (id, code, file, line, hint)
WHERE {table}.id = parsed.id
"""
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
    for model_name, column in _TEXTS.items():
        model = apps.get_model("syncdata", model_name)
        texts = model._base_manager.using(schema_editor.connection.alias).exclude(**{column: None})
        last_pk = 0
        while batch := list(texts.filter(pk__gt=last_pk).order_by("pk").values_list("pk", column)[:_BATCH]):
            last_pk = batch[-1][0]
            _fill(schema_editor, model._meta.db_table, batch)


def _fill(schema_editor: BaseDatabaseSchemaEditor, table: str, batch: list[tuple[int, str]]) -> None:
    """Write the columns of all rows of *batch* at once: the tables are locked meanwhile."""
    parsed = [(pk, columns) for pk, text in batch if (columns := parse_error(text))]
    values: list[list[Any]] = [[pk for pk, _ in parsed]]
    values += [[columns[name] for _, columns in parsed] for name in _COLUMNS]
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(_FILL.format(table=schema_editor.quote_name(table)), values)


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
