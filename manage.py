#!/usr/bin/env python
"""Runs the commands of the site and of syncdata."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from syncdata.conf import load_config_file
    from syncdata.engine.errors import SyncError

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        if "--traceback" in sys.argv:
            raise
        # Without a configuration there is no database, either: name the cause, not what it led to.
        try:
            load_config_file()
        except SyncError as cause:
            sys.exit(str(cause))
        sys.exit(str(error))


if __name__ == "__main__":
    main()
