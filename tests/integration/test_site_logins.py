"""The bundled site: wrong logins are throttled, and its answers tell browsers what they may load."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from syncsite.logins import client_address

pytestmark = pytest.mark.django_db

LOGIN = "/admin/login/"
RIGHT = "correct horse battery"


@pytest.fixture(autouse=True)
def plain_http(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = False


@pytest.fixture(autouse=True)
def users(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    for name in ("ada", "bob"):
        User.objects.create_superuser(name, password=RIGHT)


def log_in(client: Client, name: str, password: str, **headers: Any) -> Any:
    return client.post(LOGIN, {"username": name, "password": password}, **headers)


def fail(client: Client, name: str, **headers: Any) -> list[int]:
    return [log_in(client, name, f"wrong {number}", **headers).status_code for number in range(6)]


def test_wrong_logins_lock_out_that_name_from_that_address_and_nobody_else(client: Client) -> None:
    assert fail(client, "ada") == [200, 200, 200, 200, 429, 429]
    locked = log_in(client, "ada", RIGHT)
    assert locked.status_code == 429, "also the right password"
    assert "Wait 15 minutes" in locked.content.decode() and locked["Retry-After"] == "900"
    assert "axes_reset" in locked.content.decode()
    assert log_in(Client(), "ada", RIGHT, REMOTE_ADDR="192.0.2.7").status_code == 302, "from elsewhere"
    assert log_in(Client(), "bob", RIGHT).status_code == 302, "another user from there"
    call_command("axes_reset")
    assert log_in(Client(), "ada", RIGHT).status_code == 302


def test_who_logs_in_has_a_clean_slate(client: Client) -> None:
    for _ in range(3):
        assert [log_in(client, "ada", "wrong").status_code for _ in range(4)] == [200] * 4
        assert log_in(client, "ada", RIGHT).status_code == 302
        client.logout()


@pytest.mark.parametrize(
    ("behind_proxy", "forwarded", "address"),
    [
        (False, "192.0.2.1", "127.0.0.1"),
        (True, "192.0.2.1", "192.0.2.1"),
        (True, "203.0.113.9, 192.0.2.1", "192.0.2.1"),
        (True, "", "127.0.0.1"),
        (True, "192.0.2.1:50123", "192.0.2.1"),
        (True, "[2001:db8:1:2:3:4:5:6]:443", "2001:db8:1:2::"),
        (True, "2001:db8:1:2::7", "2001:db8:1:2::"),
        (True, "::ffff:192.0.2.1", "192.0.2.1"),
        (True, "fe80::1%eth0", "fe80::"),
        (True, "unknown", "127.0.0.1"),
        (True, "1:2:3", "127.0.0.1"),
        (True, "x" * 40, "127.0.0.1"),
    ],
)
def test_the_address_that_counts_is_none_that_the_client_could_make_up(
    rf: Any, settings: Any, behind_proxy: bool, forwarded: str, address: str
) -> None:
    settings.BEHIND_PROXY = behind_proxy
    assert client_address(rf.get(LOGIN, HTTP_X_FORWARDED_FOR=forwarded)) == address


def test_logins_over_a_unix_socket_are_throttled_too(client: Client) -> None:
    assert fail(client, "ada", REMOTE_ADDR="") == [200, 200, 200, 200, 429, 429]


def test_a_name_of_any_length_is_throttled_and_none_is_kept(client: Client) -> None:
    assert fail(client, "hunter2" * 100) == [200, 200, 200, 200, 429, 429]
    assert "hunter2" not in str(AccessAttempt.objects.values())


def test_every_answer_says_what_browsers_may_load(client: Client) -> None:
    client.force_login(User.objects.get(username="ada"))
    pages = ["admin:index", "admin:syncdata_dashboard_changelist", "admin:syncdata_synclog_changelist"]
    for page in pages:
        response = client.get(reverse(page))
        policy = response["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response["X-Frame-Options"] == "DENY"
        assert response["Referrer-Policy"] == "same-origin"
        html = response.content.decode()
        inline = re.findall(
            r"<(?:script|style)\b(?![^>]*\b(?:src|nonce|type=\"application/json\"))[^>]*>", html
        )
        assert [tag for tag in inline if "application/json" not in tag] == [], page
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=", html), page


def test_cookies_are_for_https_and_the_site_alone(client: Client, settings: Any) -> None:
    response = log_in(client, "ada", RIGHT)
    session = response.cookies["sessionid"]
    assert (session["httponly"], session["secure"], session["samesite"]) == (True, True, "Lax")
    token = client.get(LOGIN).cookies.get("csrftoken") or response.cookies["csrftoken"]
    assert (token["httponly"], token["secure"], token["samesite"]) == (True, True, "Lax")


def test_a_nul_is_the_clients_fault_on_every_page(client: Client) -> None:
    client.raise_request_exception = False
    assert client.get("/admin/login/", {"next": "\0"}).status_code == 400
    asked_to_log_in = client.get("/admin/", HTTP_COOKIE='sessionid="' + "\\000" * 8 + '"')
    assert asked_to_log_in.status_code == 302 and asked_to_log_in["Location"].startswith("/admin/login/")
