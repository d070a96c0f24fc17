"""Nonsense in addresses, queries, forms and cookies is the client's fault: an answer, never a broken page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from syncdata.models import TableToSync
from tests.integration.test_admin_permissions import (
    MODELS,
    every_url,
    log_in,
    log_in_as_reader,
    plain_http,
    rows,
)

__all__ = ["plain_http", "rows"]  # fixtures

pytestmark = pytest.mark.django_db

NASTY: dict[str, str | bytes] = {
    "NUL": "\0",
    "NUL in text": "fine\0",
    "half a character": b"\xed\xa0\x80",
    "not UTF-8": b"\xff\xfe",
    "overlong": "x" * 20_000,
    "a huge number": "9" * 20,
    "a number too long for Python": "9" * 5000,
    "below zero": "-1",
    "no UUID": "00000000-0000-0000-0000-00000000000g",
    "SQL": "' OR 1=1 --",
    "a template": "{{ 7|add:7 }}<script>alert(1)</script>",
    "paths": "../../etc/passwd",
    "the last day": "9999-12-31",
    "the first day": "0001-01-01",
    "no day": "0000-00-00",
    "empty": "",
}
NAMES = [
    "q",
    "p",
    "o",
    "all",
    "e",
    "table",
    "state",
    "state__exact",
    "status__exact",
    "action__exact",
    "period_type__exact",
    "sync_time__range__gte_0",
    "sync_time__range__gte_1",
    "sync_time__range__lte_0",
    "period_start__range__gte_0",
    "table_name",
    "id",
    "pk__in",
    "totals",
    "_popup",
    "_to_field",
    "_changelist_filters",
    "_facets",
]
ANSWERS = {200, 302, 400, 403, 404, 405}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each refusal would be logged with its traceback."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def as_superuser(client: Client) -> None:
    client.force_login(User.objects.create_superuser("ada"))


ROLES: dict[str, Callable[[Client], object]] = {
    "nobody": lambda client: None,
    "staff": log_in,
    "reader": log_in_as_reader,
    "superuser": as_superuser,
}


def fails(client: Client, url: str, **options: Any) -> bool:
    client.raise_request_exception = False
    response = client.get(url, **options)
    if getattr(response, "streaming", False):
        b"".join(response.streaming_content)  # type: ignore[attr-defined]
    return response.status_code not in ANSWERS


@pytest.mark.parametrize("role", ROLES)
def test_every_page_answers_whatever_its_parameters_are(client: Client, role: str) -> None:
    ROLES[role](client)
    failed = []
    for base in dict.fromkeys(url.partition("?")[0] for url in every_url()):
        for what, value in NASTY.items() if role == "reader" else [("NUL", "\0")]:
            query = urlencode({name: value for name in NAMES if name != "_to_field"})
            failed += [(base, what)] if fails(client, f"{base}?{query}") else []
    assert failed == []


@pytest.mark.parametrize("name", NAMES)
def test_the_log_answers_whatever_one_of_its_parameters_is(client: Client, name: str) -> None:
    as_superuser(client)
    base = reverse("admin:syncdata_synclog_changelist")
    failed = [what for what, value in NASTY.items() if fails(client, f"{base}?{urlencode({name: value})}")]
    assert failed == []


def test_a_second_mistake_in_the_parameters_is_no_broken_page(client: Client) -> None:
    """The admin marks an address with e=1 when its parameters made no sense, and asks again."""
    as_superuser(client)
    for model in ("synclog", "syncmetric"):
        base = reverse(f"admin:syncdata_{model}_changelist")
        assert not fails(client, f"{base}?e=1&id__gt=nonsense&no_such_field=1")


@pytest.mark.parametrize("name", ["table", "q", "status__exact", "no such parameter", "o"])
def test_a_nul_is_the_clients_fault(client: Client, name: str) -> None:
    as_superuser(client)
    client.raise_request_exception = False
    for page in ("synclog_changelist", "tabletosync_changelist", "tabletosync_add", "dashboard_data"):
        assert client.get(reverse(f"admin:syncdata_{page}"), {name: "\0"}).status_code == 400, page
    assert client.get(reverse("admin:syncdata_synclog_export", args=["csv"]), {name: "\0"}).status_code == 400


def test_every_object_is_looked_for_whatever_its_id_is(client: Client) -> None:
    as_superuser(client)
    failed = []
    for model in MODELS[:-1]:
        for page in ("change", "delete", "history"):
            for what, value in {**NASTY, "a NUL as the admin quotes it": "_00"}.items():
                if value in ("", "../../etc/passwd"):
                    continue
                base = reverse(f"admin:syncdata_{model}_changelist")
                failed += [(model, page, what)] if fails(client, f"{base}{quote(value)}/{page}/") else []
    assert failed == []


def test_forms_may_hold_anything(client: Client) -> None:
    as_superuser(client)
    client.raise_request_exception = False
    before = TableToSync.objects.count()
    urls = [
        reverse("admin:syncdata_tabletosync_add"),
        reverse("admin:syncdata_tabletosync_changelist"),
        *(reverse("admin:syncdata_tabletosync_ask", args=[action]) for action in ("clear", "skip", "\0")),
    ]
    names = ("tables", "table_name", "table", "place", "action", "_selected_action", "select_across", "index")
    for url in urls:
        for what, value in NASTY.items():
            if what in ("paths", "overlong", "SQL", "a template", "the last day"):
                continue  # names that a table may have
            text = value if isinstance(value, str) else value.decode(errors="surrogateescape")
            body = urlencode(dict.fromkeys(names, text), errors="surrogateescape")
            response = client.post(url, body, content_type="application/x-www-form-urlencoded")
            assert response.status_code in ANSWERS, (url, what)
    assert TableToSync.objects.count() >= before


@pytest.mark.parametrize(
    "cookie", ["\\000" * 8, "..", "/etc/passwd", "x" * 3000, "America/\\000", "posixrules", "\\377\\376"]
)
@pytest.mark.parametrize("name", ["syncdata_tz", "sessionid", "messages"])
def test_cookies_may_hold_anything(client: Client, name: str, cookie: str) -> None:
    as_superuser(client)
    url = reverse("admin:syncdata_dashboard_changelist")
    kept = client.cookies["sessionid"].value
    jar = {"sessionid": kept, name: f'"{cookie}"'}
    client.cookies.clear()
    assert not fails(client, url, HTTP_COOKIE="; ".join(f"{key}={value}" for key, value in jar.items()))
