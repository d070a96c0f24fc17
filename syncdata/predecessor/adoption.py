"""Adoption of tables that exist already: the migration operation and the changes it makes.

Knows the catalog and Django's schema editor; knows nothing of the tables' meaning. Invariants:

1. After ``migrate``, an adopted table has the columns, defaults, constraints and indexes of a fresh
   one, under the same names. What the table has beyond them is left alone.
2. No row is lost, neither forwards nor backwards. A table whose columns are not the expected ones is
   someone else's, and refused untouched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState

from syncdata.errors import SchemaError

logger = logging.getLogger(__name__)


class CreateOrAdoptModel(migrations.CreateModel):
    """Create a model's table, or bring the one that is there to the same shape with its rows.

    Backwards, only an empty table is dropped: a whitelist, an audit trail and a checkpoint are not
    thrown away in passing, and going forwards again adopts them.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.name)
        if self.allow_migrate_model(schema_editor.connection.alias, model) and _exists(schema_editor, model):
            adopt_table(schema_editor, model)
        else:
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = from_state.apps.get_model(app_label, self.name)
        alias = schema_editor.connection.alias
        if self.allow_migrate_model(alias, model) and model._base_manager.using(alias).exists():
            logger.warning("kept table %s, since it holds rows; drop it by hand", model._meta.db_table)
        else:
            super().database_backwards(app_label, schema_editor, from_state, to_state)


def adopt_table(editor: BaseDatabaseSchemaEditor, model: type[models.Model]) -> None:
    """Bring an existing table to the shape that *model* has when it is created.

    Raises SchemaError, before any change, when a column has another type or cannot be added.
    """
    columns = _columns(editor, model)
    _require_adoptable(editor, model, columns)
    for field in model._meta.local_fields:
        if field.column in columns:
            _adopt_column(editor, model, field, columns[field.column])
        else:
            editor.add_field(model, field)
    for constraint in model._meta.constraints:
        assert isinstance(constraint, models.UniqueConstraint)
        fields = [(name, "") for name in constraint.fields]
        if not _has_index(editor, model, constraint.name, fields, unique=True):
            editor.add_constraint(model, constraint)
    for index in model._meta.indexes:
        if not _has_index(editor, model, index.name, index.fields_orders, unique=False):
            editor.add_index(model, index)


def _exists(editor: BaseDatabaseSchemaEditor, model: type[models.Model]) -> bool:
    with editor.connection.cursor() as cursor:
        return model._meta.db_table in editor.connection.introspection.table_names(cursor)


def _columns(
    editor: BaseDatabaseSchemaEditor, model: type[models.Model]
) -> dict[str, tuple[str, bool, bool]]:
    """Return type, NOT NULL and identity of each column."""
    with editor.connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity <> ''"
            " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [editor.quote_name(model._meta.db_table)],
        )
        return {name: (data_type, not_null, identity) for name, data_type, not_null, identity in cursor}


def _require_adoptable(
    editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    columns: dict[str, tuple[str, bool, bool]],
) -> None:
    for field in model._meta.local_fields:
        expected = _data_type(editor, field)
        if field.column not in columns:
            if not field.null and not field.has_db_default():
                _refuse(model, f"it has no column {field.column}")
        elif (found := columns[field.column][0]) != expected:
            _refuse(model, f"its column {field.column} is {found}, not {expected}")


def _refuse(model: type[models.Model], reason: str) -> None:
    raise SchemaError(
        f"a table of this name exists and is not syncdata's: {reason}",
        hint="mend or rename that table, then run migrate again",
        table=model._meta.db_table,
    )


def _data_type(editor: BaseDatabaseSchemaEditor, field: models.Field[Any, Any]) -> str:
    """Return the field's type as the catalog spells it ("serial" is not a type: "integer" is)."""
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT format_type(%s::regtype, NULL)", [field.db_type(editor.connection)])
        return cursor.fetchone()[0]


def _adopt_column(
    editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    field: models.Field[Any, Any],
    column: tuple[str, bool, bool],
) -> None:
    _data_type, not_null, is_identity = column
    table, name = editor.quote_name(model._meta.db_table), editor.quote_name(field.attname)
    alter = f"ALTER TABLE {table} ALTER COLUMN {name}"
    if isinstance(field, models.AutoField):
        if not is_identity:
            _make_identity(editor, model, field, alter)
        return
    if field.has_db_default():
        default, params = editor.db_default_sql(field)
        editor.execute(f"{alter} SET DEFAULT {default}", params)
    else:
        editor.execute(f"{alter} DROP DEFAULT")
    if not field.null and not not_null:
        editor.execute(f"UPDATE {table} SET {name} = DEFAULT WHERE {name} IS NULL")
        editor.execute(f"{alter} SET NOT NULL")
    elif field.null and not_null:
        editor.execute(f"{alter} DROP NOT NULL")


def _make_identity(
    editor: BaseDatabaseSchemaEditor, model: type[models.Model], field: models.Field[Any, Any], alter: str
) -> None:
    """Turn ``serial`` into the identity column Django makes; the next number stays the next number."""
    table, name = editor.quote_name(model._meta.db_table), editor.quote_name(field.attname)
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [table, field.column])
        sequence = cursor.fetchone()[0]
        next_number = 1
        if sequence is not None:
            cursor.execute(f"SELECT last_value + is_called::int FROM {sequence}")
            next_number = cursor.fetchone()[0]
        cursor.execute(f"SELECT greatest(%s, coalesce(max({name}), 0) + 1) FROM {table}", [next_number])
        next_number = cursor.fetchone()[0]
    editor.execute(f"{alter} DROP DEFAULT")
    if sequence is not None:
        editor.execute(f"DROP SEQUENCE {sequence}")
    editor.execute(f"{alter} ADD GENERATED BY DEFAULT AS IDENTITY (START WITH 1 RESTART {next_number})")


def _has_index(
    editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    name: str,
    columns: Sequence[tuple[str, str]],
    *,
    unique: bool,
) -> bool:
    """Tell whether these columns are indexed; give the index, or the constraint it is for, its name."""
    definition = f"btree ({', '.join(f'{column} {order}'.strip() for column, order in columns)})"
    with editor.connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid"
            " WHERE indrelid = %s::regclass AND indisunique = %s AND NOT indisprimary AND indisvalid"
            " AND split_part(pg_get_indexdef(indexrelid), ' USING ', 2) = %s",
            [editor.quote_name(model._meta.db_table), unique, definition],
        )
        existing = [found for (found,) in cursor]
    if existing and name not in existing:
        editor.execute(f"ALTER INDEX {editor.quote_name(existing[0])} RENAME TO {editor.quote_name(name)}")
    return bool(existing)
