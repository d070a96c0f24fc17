#!/usr/bin/env python
"""Runs the commands of the site and of syncdata."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncdata.errors import SyncError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")
    from django.core.management import CommandError, execute_from_command_line

    from syncdata.runtime.unexpected import safe_traceback

    if sys.argv[1:2] in (["-v"], ["--verbose"]):
        # The predecessor took it before the command as well.
        end = 3 if sys.argv[2:3] and sys.argv[2].isdigit() else 2
        sys.argv[1:] = [*sys.argv[end : end + 1], *sys.argv[1:end], *sys.argv[end + 1 :]]
    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--traceback" in sys.argv:
            # Python's own would print a driver's DETAIL, and with it rows.
            print(safe_traceback(error), file=sys.stderr)
        print(explain(error), file=sys.stderr)
        sys.exit(error.returncode if isinstance(error, CommandError) else 1)


def explain(error: Exception) -> str:
    """Return what an operator should read in place of a traceback."""
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import CommandError
    from django.db import DatabaseError
    from django.db.migrations.exceptions import MigrationSchemaMissing

    from syncdata.errors import SyncError
    from syncdata.runtime.unexpected import unexpected_error

    if isinstance(error, CommandError):
        return f"CommandError: {error}"
    if isinstance(error, SyncError):
        return str(error)
    if not isinstance(error, ImproperlyConfigured | DatabaseError | MigrationSchemaMissing):
        return str(unexpected_error(error, hint="run it again with --traceback, and report what it prints"))
    # Without a configuration there is no database, either: name the cause, not what it led to.
    if cause := _why_no_database():
        return str(cause)
    return _explain_database(error) if isinstance(error, DatabaseError) else str(error)


def _why_no_database() -> SyncError | None:
    """Return why the settings have no database; None where they have one, or cannot be loaded themselves."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import connection

    from syncdata.conf import load_config_file
    from syncdata.errors import SyncError

    try:
        if connection.vendor != "unknown":
            return None
        load_config_file()
    except ImproperlyConfigured:
        return None
    except SyncError as cause:
        return cause
    return None


def _explain_database(error: Exception) -> str:
    from django.db import OperationalError

    from syncdata.conf import load_config_file
    from syncdata.errors import ServiceInitError

    first_line = str(error).partition("\n")[0]
    if isinstance(error, OperationalError):
        hint = "check that PostgreSQL runs and the pg_* keys are right"
    elif _may_not_create(error):
        role = load_config_file().pg_user
        hint = (
            f'let the role create tables there: GRANT CREATE ON SCHEMA public TO "{role}", as the'
            " database's owner or a superuser; then run this again"
        )
    else:
        hint = (
            "run 'python manage.py migrate'; if the database is that of a Django project with users of"
            " its own, install syncdata into that project instead (docs/embedding.md)"
        )
    return str(ServiceInitError(first_line, hint=hint))


def _may_not_create(error: BaseException | None) -> bool:
    """Tell whether *error*, or what led to it, is that the role may not create tables in the schema."""
    while error is not None:
        if getattr(error, "sqlstate", None) == "42501" and "schema" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
