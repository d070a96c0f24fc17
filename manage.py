#!/usr/bin/env python
"""Runs the commands of the site and of syncdata."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    from syncdata.engine.errors import SyncError

    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError, SyncError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(explain(error))


def explain(error: Exception) -> str:
    """Return what an operator should read in place of a traceback."""
    from django.db import OperationalError

    from syncdata.conf import load_config_file
    from syncdata.engine.errors import ServiceInitError, SyncError

    # Without a configuration there is no database, either: name the cause, not what it led to.
    try:
        load_config_file()
    except SyncError as cause:
        return str(cause)
    if isinstance(error, OperationalError):
        first_line = str(error).partition("\n")[0]
        return str(
            ServiceInitError(first_line, hint="check that PostgreSQL runs and the pg_* keys are right")
        )
    return str(error)


if __name__ == "__main__":
    main()
