"""The app's registration with Django. Connects to nothing."""

from __future__ import annotations

from django.apps import AppConfig


class SyncDataAppConfig(AppConfig):
    name = "syncdata"
    verbose_name = "Data sync"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from syncdata import checks  # noqa: F401  (importing it registers the checks)
