"""The router for projects that sync into another database than ``default``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.db.models import Model

from syncdata.conf import load_config

APP_LABEL = "syncdata"


class SyncDataRouter:
    """Keeps syncdata's models in the database of the tables it syncs, and nowhere else.

    It has no opinion on other apps: their routers decide what they migrate into that database.
    """

    @cached_property
    def alias(self) -> str:
        return load_config().database

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return self.alias if model._meta.app_label == APP_LABEL else None

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        return self.alias if model._meta.app_label == APP_LABEL else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == self.alias if app_label == APP_LABEL else None
