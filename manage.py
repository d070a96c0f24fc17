#!/usr/bin/env python
"""Runs the commands of the site and of syncdata."""

from __future__ import annotations

import os
import sys


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
    from django.db import DatabaseError, OperationalError
    from django.db.migrations.exceptions import MigrationSchemaMissing

    from syncdata.conf import load_config_file
    from syncdata.errors import ServiceInitError, SyncError
    from syncdata.runtime.unexpected import unexpected_error

    if isinstance(error, CommandError):
        return f"CommandError: {error}"
    if not isinstance(error, ImproperlyConfigured | DatabaseError | MigrationSchemaMissing | SyncError):
        return str(unexpected_error(error, hint="run it again with --traceback, and report what it prints"))
    # Without a configuration there is no database, either: name the cause, not what it led to.
    try:
        config = load_config_file()
    except SyncError as cause:
        return str(cause)
    first_line = str(error).partition("\n")[0]
    if isinstance(error, OperationalError):
        hint = "check that PostgreSQL runs and the pg_* keys are right"
        return str(ServiceInitError(first_line, hint=hint))
    if isinstance(error, DatabaseError):
        hint = (
            f'let the role create tables there: GRANT CREATE ON SCHEMA public TO "{config.pg_user}", as the'
            " database's owner or a superuser; then run this again"
            if _may_not_create(error)
            else "run 'python manage.py migrate'; if the database is that of a Django project with users of"
            " its own, install syncdata into that project instead (docs/embedding.md)"
        )
        return str(ServiceInitError(first_line, hint=hint))
    return str(error)


def _may_not_create(error: BaseException | None) -> bool:
    """Tell whether *error*, or what led to it, is that the role may not create tables in the schema."""
    while error is not None:
        if getattr(error, "sqlstate", None) == "42501" and "schema" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
