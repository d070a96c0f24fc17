#!/usr/bin/env python
"""Runs the commands of the site and of syncdata."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError

    from syncdata.errors import SyncError

    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError, ProgrammingError, SyncError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(explain(error))


def explain(error: Exception) -> str:
    """Return what an operator should read in place of a traceback."""
    from django.db import OperationalError, ProgrammingError

    from syncdata.conf import load_config_file
    from syncdata.errors import ServiceInitError, SyncError

    # Without a configuration there is no database, either: name the cause, not what it led to.
    try:
        load_config_file()
    except SyncError as cause:
        return str(cause)
    first_line = str(error).partition("\n")[0]
    if isinstance(error, OperationalError):
        hint = "check that PostgreSQL runs and the pg_* keys are right"
        return str(ServiceInitError(first_line, hint=hint))
    if isinstance(error, ProgrammingError):
        hint = (
            "run 'python manage.py migrate'; if the database is that of a Django project with users of its"
            " own, install syncdata into that project instead (docs/embedding.md)"
        )
        return str(ServiceInitError(first_line, hint=hint))
    return str(error)


if __name__ == "__main__":
    main()
