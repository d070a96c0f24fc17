"""Which tables decide who may log in here, and what they may do: those that nobody should sync by mistake.

Who writes the archive writes the whitelisted tables. With one of these among them, that is whoever can make a
superuser of this site. Knows Django's apps and PostgreSQL's catalog; knows nothing of the whitelist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connections, router
from django.db.models import Model
from psycopg import Connection

from syncdata.apply.postgres.kin import find_kin
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError

# Apps whose tables hold users, rights, sessions, tokens or second factors, by the name of their module. What
# lies below a name belongs to it: allauth.mfa to allauth.
_APPS = (
    "allauth",
    "axes",
    "defender",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django_otp",
    "django_otp_webauthn",
    "guardian",
    "knox",
    "oauth2_provider",
    "oidc_provider",
    "passkeys",
    "qsessions",
    "rest_framework.authtoken",
    "rest_framework_api_key",
    "rest_framework_simplejwt.token_blacklist",
    "social_django",
    "two_factor",
    "user_sessions",
)
_BASES = frozenset(
    {
        "django.contrib.auth.base_user.AbstractBaseUser",
        "django.contrib.auth.models.PermissionsMixin",
        "django.contrib.sessions.base_session.AbstractBaseSession",
    }
)
_THIS_MACHINE = frozenset({"", "localhost", "127.0.0.1", "::1"})
_CACHE_IN_A_TABLE = "DatabaseCache"


def find_logins(
    connection: Connection[Any], alias: str, tables: Collection[TableName]
) -> dict[TableName, str]:
    """Return those of *tables*, in the database of *alias*, that hold logins or rights of this project, each
    with what it is there (the label of a model).

    A table that exists is judged by what it is, not by its name: the model's own table, wherever the search
    path finds it, or one whose rows are seen in that too: a partition of it, a child, the whole of it, the
    table behind it if it is a view. One that does not exist yet is judged by its name. Raises psycopg.Error.
    """
    kinds = dict(_login_tables(alias))
    kin = find_kin(connection, [*kinds], tables)
    by_name = {name: kind for text, kind in kinds.items() if (name := _table_name(text))}
    found = {table: kinds[original] for table, original in kin.related.items()}
    return found | {table: by_name[table] for table in kin.absent if table in by_name}


def _login_tables(alias: str) -> Iterator[tuple[str, str]]:
    """Yield the tables as SQL names them, each with the label of its model, or with what else it is."""
    for model in _login_models():
        if _is_same_database(router.db_for_read(model), alias):
            yield _sql_name(model._meta.db_table), model._meta.label
    for name, cache in settings.CACHES.items():
        # Its values are pickles: who writes them runs what code they like, in the processes that read them.
        if str(cache.get("BACKEND", "")).endswith(_CACHE_IN_A_TABLE) and cache.get("LOCATION"):
            yield _sql_name(cache["LOCATION"]), f"the cache {name!r}"


def _login_models() -> Iterator[type[Model]]:
    """Yield the models of users, groups, rights, sessions and the like, those that they inherit fields from,
    and those between them and others."""
    for model in apps.get_models(include_auto_created=True):
        if _is_of_login_app(model) or _is_user_or_session(model):
            yield model._meta.concrete_model or model
            yield from model._meta.get_parent_list()
            yield from filter(None, (field.remote_field.through for field in model._meta.many_to_many))


def _is_of_login_app(model: type[Model]) -> bool:
    module = model._meta.app_config.name
    return any(module == app or module.startswith(f"{app}.") for app in _APPS)


def _is_user_or_session(model: type[Model]) -> bool:
    # By name: the classes themselves can be imported only where their apps are installed.
    bases = {f"{base.__module__}.{base.__qualname__}" for base in model.__mro__}
    return model._meta.label == settings.AUTH_USER_MODEL or bool(bases & _BASES)


def _is_same_database(one: str | None, other: str) -> bool:
    """Tell whether two aliases are one database, as far as their settings say so."""
    if one is None or one == other:
        return one == other
    return _address(connections.databases[one]) == _address(connections.databases[other])


def _address(settings_of_alias: Mapping[str, Any]) -> tuple[str, ...]:
    """Return where a database is: all names of this machine are one, and so are all engines (a wrapped one
    reaches the same tables)."""
    options = settings_of_alias.get("OPTIONS") or {}

    def value(setting: str, option: str, default: str = "") -> str:
        return str(settings_of_alias.get(setting) or options.get(option) or default)

    host = value("HOST", "host").lower()
    is_here = host in _THIS_MACHINE or host.startswith("/")
    place = ("" if is_here else host, value("PORT", "port", "5432"))
    return (*place, value("NAME", "dbname"), str(options.get("service") or ""))


def _sql_name(table: str) -> str:
    """Return ``db_table`` as Django's PostgreSQL backend writes it: it may bring quotes of its own."""
    return table if table.startswith('"') and table.endswith('"') else '"' + table.replace('"', '""') + '"'


def _table_name(text: str) -> TableName | None:
    with suppress(SchemaError):  # a model of another kind of database may have a name that none has here
        return TableName.parse(text)
    return None
