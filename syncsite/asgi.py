"""The site under a ASGI server. Refuses to start without a configuration."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

from syncdata.conf import load_config

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syncsite.settings")

application = get_asgi_application()
load_config()
