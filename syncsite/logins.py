"""Throttled logins: whose wrong logins are counted together, and what somebody is told who has to wait."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.crypto import salted_hmac

TOO_MANY_REQUESTS = 429


def client_address(request: HttpRequest) -> str:
    """Return the address that wrong logins are counted for.

    Behind a proxy it is what the proxy has appended to X-Forwarded-For: the last entry. Those before it are
    the client's own words. Without a proxy the header is nobody's but the client's. Where neither is an
    address (a Unix socket has none), all who come that way count as one.
    """
    forwarded = request.headers.get("X-Forwarded-For", "") if settings.BEHIND_PROXY else ""
    remote = str(request.META.get("REMOTE_ADDR", ""))
    return _address(forwarded.rpartition(",")[2]) or _address(remote) or "0.0.0.0"  # noqa: S104 - no listener


def client_name(request: HttpRequest, credentials: Mapping[str, Any] | None) -> str:
    """Return a digest of the name that somebody logs in with: it has one length, and a password that was
    typed into the wrong field is not kept."""
    name = (credentials or {}).get("username") or request.POST.get("username", "")
    return salted_hmac("syncsite.logins", name).hexdigest()


def _address(text: str) -> str | None:
    """Return the address that *text* is, with or without a port; of IPv6 the network, since whoever has one
    address there has all of its 64 bits. None when it is no address."""
    with_port = re.fullmatch(r"\[(.*)\](?::\d+)?|([\d.]+):\d+", text.strip())
    bare = (with_port[1] or with_port[2]) if with_port else text.strip()
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False).network_address)


def locked_out(request: HttpRequest, response: Any, credentials: Any) -> HttpResponse:
    """Answer somebody whose logins were wrong too often, right password or not."""
    minutes = math.ceil(settings.AXES_COOLOFF_TIME.total_seconds() / 60)
    page = TemplateResponse(
        request, "admin/locked_out.html", {"minutes": minutes}, status=TOO_MANY_REQUESTS
    ).render()
    page["Retry-After"] = str(minutes * 60)
    return page
