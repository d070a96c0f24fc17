"""The names of the host project's models and of their tables. Knows Django's apps; connects to nothing."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.db.models import EmailField, Field, Model

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, WhitelistAddError
from syncdata.provision.privacy_init import Hint


def resolve(text: str, known: Collection[TableName]) -> TableName:
    """Return the table that *text* names: one of *known*, else that of a model, else any table.

    ``shop.Product`` is an app label and a model, in any case, as Django looks it up. A name in double
    quotes is never a model. Raises SchemaError when it names nothing, or a model without a table.
    """
    try:
        table = TableName.parse(text)
    except SchemaError:
        table = None
    if table is not None and (table in known or '"' in text):
        return table
    model = find_model(text)
    if model is not None:
        return table_of(model)
    return table or TableName.parse(text)


def find_model(text: str) -> type[Model] | None:
    """Return the installed model that ``app_label.Model`` names, or None."""
    app_label, dot, name = text.strip().partition(".")
    if not dot:
        return None
    try:
        return apps.get_model(app_label, name)
    except (LookupError, ValueError):
        return None


def table_of(model: type[Model]) -> TableName:
    """Return *model*'s table, a proxy's being that of its concrete model.

    Raises SchemaError for a model that settings have swapped out, which has none, and for one whose
    ``db_table`` PostgreSQL cannot have.
    """
    if model._meta.swapped:
        raise SchemaError(
            f"{model._meta.label} has no table: {model._meta.swapped} stands in for it",
            hint=f"name {model._meta.swapped}",
        )
    # As Django's PostgreSQL backend writes it: db_table may bring quotes of its own, to name a schema.
    name = model._meta.db_table
    return TableName.parse(name if name.startswith('"') and name.endswith('"') else f'"{name}"')


def tables_of_app(app_label: str) -> list[TableName]:
    """Return the tables of an app's own models, those between many-to-many models included.

    Proxies are left out: their tables belong to other models, perhaps of other apps. Raises WhitelistAddError
    when no such app is installed, or when it has no tables.
    """
    try:
        models = apps.get_app_config(app_label).get_models(include_auto_created=True)
    except LookupError:
        labels = ", ".join(sorted(config.label for config in apps.get_app_configs()))
        raise WhitelistAddError(
            f"no app with the label {app_label!r} is installed", hint=f"installed are: {labels}"
        ) from None
    tables = dict.fromkeys(table_of(model) for model in models if not model._meta.proxy)
    if not tables:
        raise WhitelistAddError(f"the app {app_label!r} has no tables", hint="name another app, or tables")
    return list(tables)


def hints_of_fields() -> dict[TableName, dict[str, Hint]]:
    """Return the privacy rules that the kinds of fields of the project's models speak for, by table.

    An e-mail address is one whatever its column is called; of a field with choices all values are known.
    """
    found: dict[TableName, dict[str, Hint]] = {}
    for model in apps.get_models(include_auto_created=True):
        with suppress(SchemaError):
            hints = {
                field.column: hint
                for field in model._meta.local_fields
                if field.column and (hint := _hint_of(field)) is not None
            }
            if hints and not model._meta.proxy:
                found[table_of(model)] = hints
    return found


def _hint_of(field: Field[Any, Any]) -> Hint | None:
    if isinstance(field, EmailField):
        return Hint("email", f"{field.model._meta.label} has it as an EmailField")
    if field.choices:
        return Hint("keep", f"{field.model._meta.label} has choices for it")
    return None


def find_model_of(table: TableName) -> type[Model] | None:
    """Return the model that has *table*, or None; of several, the first installed."""
    for model in apps.get_models(include_auto_created=True):
        # Models of other databases may have table names that PostgreSQL cannot have.
        with suppress(SchemaError):
            if not model._meta.proxy and table_of(model) == table:
                return model
    return None
