"""System checks. They read the configuration; they connect to nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router

from syncdata.conf import CONFIG_VARIABLE, SyncConfig, is_production_host, load_config, load_source_config
from syncdata.engine.errors import SyncError
from syncdata.models import SyncLog

TAG = "syncdata"


@checks.register(TAG)
def check_configuration(**kwargs: Any) -> Sequence[checks.CheckMessage]:
    """The configuration loads, and its database is a PostgreSQL that syncdata's models are routed to.

    A production host has no local database; there it is the configuration of the source that must load.
    """
    try:
        if _is_production_host():
            load_source_config()
            return []
        config = load_config()
    except SyncError as error:
        if getattr(settings, "SYNCDATA", None) is None and not os.environ.get(CONFIG_VARIABLE):
            return [checks.Warning(str(error), id="syncdata.W001")]
        return [checks.Error(str(error), id="syncdata.E001")]
    return _check_database(config)


def _is_production_host() -> bool:
    return getattr(settings, "SYNCDATA", None) is None and is_production_host()


def _check_database(config: SyncConfig) -> Sequence[checks.CheckMessage]:
    alias = config.database
    if alias not in connections:
        return [
            checks.Error(
                f"settings.SYNCDATA names the database {alias!r}, which is not in DATABASES.",
                id="syncdata.E002",
            )
        ]
    if connections[alias].vendor != "postgresql":
        return [checks.Error(f"The database {alias!r} is not a PostgreSQL.", id="syncdata.E003")]
    if router.db_for_write(SyncLog) != alias:
        return [
            checks.Error(
                f"syncdata's own tables are not routed to {alias!r}, the database of the synced tables.",
                hint="Add 'syncdata.routers.SyncDataRouter' to DATABASE_ROUTERS.",
                id="syncdata.E004",
            )
        ]
    return []


@checks.register(TAG)
def check_admin(**kwargs: Any) -> Sequence[checks.CheckMessage]:
    """What the admin pages need is installed."""
    if apps.is_installed("django.contrib.admin") and not apps.is_installed("rangefilter"):
        return [checks.Error("The admin pages need 'rangefilter' in INSTALLED_APPS.", id="syncdata.E005")]
    return []
