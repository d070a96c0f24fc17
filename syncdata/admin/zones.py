"""The user's time zone, which the browser names in a cookie: pages show, and filters take, times in it."""

from __future__ import annotations

import zoneinfo
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.response import SimpleTemplateResponse
from django.utils import timezone

from syncdata.admin.parameters import View, with_plain_parameters

COOKIE = "syncdata_tz"


def in_users_time_zone(view: View) -> View:
    """Decorate a method that is a view. Its response is rendered here, while the zone holds."""

    @with_plain_parameters
    @wraps(view)
    def wrapped(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with zone_of(request):
            response = view(self, request, *args, **kwargs)
            return response.render() if isinstance(response, SimpleTemplateResponse) else response

    return wrapped


def zone_of(request: HttpRequest) -> AbstractContextManager[Any]:
    """Return a context in which times are the user's; the site's own, where their zone is not known."""
    name = request.COOKIES.get(COOKIE, "")
    if not settings.USE_TZ or not name:
        return nullcontext()
    try:
        return timezone.override(zoneinfo.ZoneInfo(name))
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return nullcontext()
