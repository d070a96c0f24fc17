"""``{% syncdata_summary %}``: daemon, freshness and problems in brief, for an admin site's own pages."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import template
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from syncdata.admin.dashboard import read_summary

register = template.Library()


@register.inclusion_tag("syncdata/dashboard/summary.html", takes_context=True)
def syncdata_summary(context: dict[str, Any]) -> dict[str, Any]:
    """Show the head of the dashboard to those who may view it; nothing to others."""
    request: HttpRequest | None = context.get("request")
    if request is None or not request.user.has_perm("syncdata.view_dashboard"):
        return {}
    try:
        url = reverse(
            "admin:syncdata_dashboard_changelist", current_app=getattr(request, "current_app", None)
        )
    except NoReverseMatch:  # this admin site has none
        return {}
    return {"url": url, "sections": read_summary(request, now=dt.datetime.now(dt.UTC))}
