"""Who may do what in the admin: each URL and each action, by those who may not and by those who may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.urls import reverse

from syncdata import connections as session
from syncdata.admin import asking, dashboard
from syncdata.apply.state import queries
from syncdata.errors import ServiceInitError
from syncdata.models import Checkpoint, SyncLog, SyncMetric, SyncRequest, SyncRun, TableToSync

pytestmark = pytest.mark.django_db

MODELS = [
    *("tabletosync", "checkpoint", "synclog", "syncmetric", "syncrun", "syncrequest", "dashboard"),
    "syncverification",
]
PLACE = "changes_20260205_103000.json:13"
# Each action, with a table that it makes sense for, and the permission it takes.
ACTIONS = {
    "resync": ("fine", "resync_table"),
    "pause": ("fine", "pause_table"),
    "resume": ("resting", "pause_table"),
    "retry": ("broken", "retry_table"),
    "skip": ("broken", "skip_record"),
    "clear": ("fine", "clear_table"),
}


@pytest.fixture(autouse=True)
def plain_http(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = False


@pytest.fixture(autouse=True)
def rows() -> None:
    for name, state, error in [
        ("fine", "active", None),
        ("resting", "paused", None),
        ("broken", "blocked", f"SHD_SYN_064: {PLACE}: table broken: the database refuses (mend it)"),
    ]:
        TableToSync.objects.create(table_name=name)
        Checkpoint.objects.create(table_name=name, state=state, error=error, file=PLACE[:-3])
    Checkpoint.objects.exclude(error=None).update(
        error_code="SHD_SYN_064", error_file=PLACE[:-3], error_line=13, error_hint="mend it"
    )
    SyncLog.objects.create(table_name="fine", status="SUCCESS")
    SyncMetric.objects.create(
        table_name="fine",
        period_type="FREQ",
        period_start="2026-02-05 00:00Z",
        period_end="2026-02-06 00:00Z",
    )
    SyncRun.objects.create(host="laptop", pid=1, sync_frequency=60)


@pytest.fixture
def daemon() -> Iterator[None]:
    """What makes a daemon a running one is its lock."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", session._LOCK_KEYS)
        yield
    finally:
        other.close()


def log_in(client: Client, *permissions: str) -> User:
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client.force_login(user)
    return user


def log_in_as_reader(client: Client) -> User:
    return log_in(client, *(f"view_{model}" for model in MODELS))


def ask_url(action: str) -> str:
    return reverse("admin:syncdata_tabletosync_ask", args=[action]) + f"?table={ACTIONS[action][0]}"


def post(client: Client, action: str, **data: Any) -> Any:
    return client.post(
        reverse("admin:syncdata_tabletosync_ask", args=[action]), {"table": ACTIONS[action][0], **data}
    )


def every_url() -> list[str]:
    """All URLs of syncdata's pages, each with an object where it takes one."""
    urls = [reverse(f"admin:syncdata_{model}_changelist") for model in MODELS]
    urls.append(reverse("admin:syncdata_dashboard_data"))
    for model in (TableToSync, Checkpoint, SyncLog, SyncMetric, SyncRun):
        name, pk = f"admin:syncdata_{model._meta.model_name}", model._default_manager.first().pk  # type: ignore[union-attr]
        urls += [
            reverse(f"{name}_add"),
            *(reverse(f"{name}_{page}", args=[pk]) for page in ("change", "delete")),
        ]
    for listed in ("checkpoint", "synclog", "syncmetric", "syncrun", "syncrequest", "syncverification"):
        urls += [reverse(f"admin:syncdata_{listed}_export", args=[kind]) for kind in ("csv", "json")]
    return urls + [ask_url(action) for action in ACTIONS]


def test_who_has_not_logged_in_is_sent_to_the_login(client: Client, daemon: None) -> None:
    for url in every_url():
        for response in (client.get(url), client.post(url)):
            assert response.status_code == 302, url
            assert response["Location"].startswith("/admin/login/")
    assert not SyncRequest.objects.exists()


def test_staff_without_permissions_gets_nowhere(client: Client, daemon: None) -> None:
    log_in(client)
    for url in every_url():
        assert client.get(url).status_code == 403, url
        assert client.post(url).status_code == 403, url
    assert "syncdata-tile" not in client.get(reverse("admin:index")).content.decode()
    assert not SyncRequest.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_only_look_can_ask_for_nothing(client: Client, daemon: None, action: str) -> None:
    log_in_as_reader(client)
    assert client.get(ask_url(action)).status_code == 403
    assert post(client, action, place=PLACE).status_code == 403
    table = TableToSync.objects.get(table_name=ACTIONS[action][0])
    changed = client.post(
        reverse("admin:syncdata_tabletosync_changelist"),
        {"action": f"ask_to_{action}", "_selected_action": [table.pk]},
    )
    assert "ask/" not in changed.get("Location", "")
    for page in ("dashboard_changelist", "tabletosync_changelist"):
        assert "/ask/" not in client.get(reverse(f"admin:syncdata_{page}")).content.decode()
    assert not SyncRequest.objects.exists()
    assert not LogEntry.objects.exists()


def test_who_may_only_look_can_look_at_everything_and_change_nothing(client: Client, daemon: None) -> None:
    log_in_as_reader(client)
    before = [list(m._default_manager.values()) for m in (TableToSync, Checkpoint, SyncLog, SyncRun)]
    for url in every_url():
        may_look = not any(part in url for part in ("/add/", "/delete/", "/ask/"))
        assert client.get(url).status_code == (200 if may_look else 403), url
        client.post(url, {"post": "yes", "tables": "auth_group", "table_name": "more"})
    assert before == [list(m._default_manager.values()) for m in (TableToSync, Checkpoint, SyncLog, SyncRun)]
    assert not SyncRequest.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_takes_its_own_permission(client: Client, daemon: None, action: str) -> None:
    table, permission = ACTIONS[action]
    eve = log_in(client, permission)
    for other, (_, needed) in ACTIONS.items():
        assert client.get(ask_url(other)).status_code == (200 if needed == permission else 403)
    page = client.get(ask_url(action)).content.decode()
    assert table in page
    assert "csrfmiddlewaretoken" in page
    assert not SyncRequest.objects.exists(), "to look at the page asks for nothing"
    assert post(client, action, place=PLACE if action == "skip" else "").status_code == 302
    request = SyncRequest.objects.get()
    assert (request.action, request.table_names, request.requested_by) == (action, [table], "eve")
    assert request.place == (PLACE if action == "skip" else "")
    assert request.state == "waiting"
    entry = LogEntry.objects.get()
    assert (entry.user_id, entry.object_repr) == (eve.pk, table)
    assert action in entry.get_change_message()


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_asking_takes_a_post(client: Client, daemon: None, method: str) -> None:
    client.force_login(User.objects.create_superuser("ada"))
    assert getattr(client, method)(ask_url("clear")).status_code == 405


def test_asking_takes_the_forms_token(daemon: None) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("ada"))
    assert post(client, "clear").status_code == 403
    assert not SyncRequest.objects.exists()


def test_without_a_daemon_nothing_is_asked_and_the_command_is_shown(client: Client) -> None:
    client.force_login(User.objects.create_superuser("ada"))
    for response in (client.get(ask_url("skip")), post(client, "skip", place=PLACE)):
        page = response.content.decode()
        assert "No daemon runs" in page
        assert f"python manage.py skip_record broken {PLACE}" in page
        assert 'type="submit" value="Yes' not in page
    assert not SyncRequest.objects.exists()


@pytest.mark.parametrize(
    ("action", "table"), [("retry", "fine"), ("skip", "fine"), ("pause", "resting"), ("resume", "fine")]
)
def test_what_makes_no_sense_for_a_table_is_not_asked(
    client: Client, daemon: None, action: str, table: str
) -> None:
    client.force_login(User.objects.create_superuser("ada"))
    response = post(client, action, table=table)
    assert f"{table} is left out" in response.content.decode()
    assert not SyncRequest.objects.exists()


def test_unknown_actions_and_tables_are_not_found(client: Client, daemon: None) -> None:
    client.force_login(User.objects.create_superuser("ada"))
    assert client.get(reverse("admin:syncdata_tabletosync_ask", args=["dance"])).status_code == 404
    assert post(client, "clear", table="nobody").status_code == 404
    assert post(client, "skip", table=["broken", "fine"]).status_code == 404


def test_several_tables_are_cleared_together_and_resynced_one_by_one(client: Client, daemon: None) -> None:
    client.force_login(User.objects.create_superuser("ada"))
    tables = TableToSync.objects.filter(table_name__in=["fine", "broken"])
    for action in ("clear", "resync"):
        led = client.post(
            reverse("admin:syncdata_tabletosync_changelist"),
            {"action": f"ask_to_{action}", "_selected_action": [table.pk for table in tables]},
        )
        assert led["Location"].endswith(f"/ask/{action}/?table=broken&table=fine")
        post(client, action, table=["fine", "broken"])
    asked = list(SyncRequest.objects.order_by("id").values_list("action", "table_names"))
    assert asked == [("clear", ["broken", "fine"]), ("resync", ["broken"]), ("resync", ["fine"])]


def add(client: Client, name: str) -> Any:
    return client.post(reverse("admin:syncdata_tabletosync_add"), {"tables": name}, follow=True)


@pytest.mark.parametrize("name", ["auth_user", "django_session", "auth.Group", "public.auth_user_groups"])
def test_only_a_superuser_adds_a_table_of_logins(client: Client, name: str) -> None:
    log_in(client, "add_tabletosync", "view_tabletosync")
    page = client.get(reverse("admin:syncdata_tabletosync_add"), {"q": "auth_user"}).content.decode()
    assert page.count("Only a superuser may add it.") == page.count(" disabled>") > 0
    for field in ("tables", "table_name"):
        answer = client.post(reverse("admin:syncdata_tabletosync_add"), {field: name}, follow=True)
        assert "decides who may log in here" in answer.content.decode()
    assert TableToSync.objects.count() == 3 and not LogEntry.objects.exists()
    client.force_login(User.objects.create_superuser("ada"))
    page = client.get(reverse("admin:syncdata_tabletosync_add"), {"q": "auth_user"}).content.decode()
    assert " disabled>" not in page
    assert "could make superusers" in add(client, name).content.decode(), "it is warned of"
    assert TableToSync.objects.count() == 4 and LogEntry.objects.get().user.get_username() == "ada"


def test_every_action_has_a_row_here() -> None:
    assert set(asking.ASKS) == set(ACTIONS)
    assert {ask.permission for ask in asking.ASKS.values()} == {
        codename for codename, _ in TableToSync._meta.permissions
    }


def test_tables_that_cannot_be_read_are_an_explanation_and_not_a_broken_page(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(User.objects.create_superuser("ada"))

    def fail() -> None:
        raise ServiceInitError("gone")

    monkeypatch.setattr(dashboard, "tables_service", fail)
    assert "cannot be read" in client.get(reverse("admin:index")).content.decode()
    assert "cannot be read" in client.get(reverse("admin:syncdata_dashboard_changelist")).content.decode()


def test_a_driver_that_fails_is_an_explanation_too_and_shows_no_host(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(User.objects.create_superuser("ada"))

    def fail(connection: object) -> None:
        raise psycopg.OperationalError("connection to server at secret-host failed")

    for read in ("read_tables", "read_latest_run", "read_minutes", "read_requests", "read_periods"):
        with monkeypatch.context() as patch:
            patch.setattr(queries, read, fail)
            for name in ("index", "syncdata_dashboard_changelist"):
                page = client.get(reverse(f"admin:{name}")).content.decode()
                assert "cannot be read" in page and "secret-host" not in page
