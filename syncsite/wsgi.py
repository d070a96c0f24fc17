"""The site under a WSGI server. Refuses to start without a configuration."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from syncdata.conf import load_config

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")

application = get_wsgi_application()
load_config()
