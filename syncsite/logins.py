"""Throttled logins: whose address counts, and what somebody is told who has to wait."""

from __future__ import annotations

import math
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

TOO_MANY_REQUESTS = 429


def client_address(request: HttpRequest) -> str:
    """Return the address that wrong logins are counted for.

    Behind a proxy it is what the proxy has appended to X-Forwarded-For: the last entry. Those before it are
    the client's own words. Without a proxy the header is nobody's but the client's.
    """
    forwarded = request.headers.get("X-Forwarded-For", "") if settings.BEHIND_PROXY else ""
    return forwarded.rpartition(",")[2].strip() or str(request.META.get("REMOTE_ADDR", ""))


def locked_out(request: HttpRequest, response: Any, credentials: Any) -> HttpResponse:
    """Answer somebody whose logins were wrong too often, right password or not."""
    minutes = math.ceil(settings.AXES_COOLOFF_TIME.total_seconds() / 60)
    page = TemplateResponse(
        request, "admin/locked_out.html", {"minutes": minutes}, status=TOO_MANY_REQUESTS
    ).render()
    page["Retry-After"] = str(minutes * 60)
    return page
