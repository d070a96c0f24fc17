"""The admin pages, through Django's client."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from syncdata.admin import lists
from syncdata.models import Checkpoint, SyncLog, SyncMetric, SyncRun, TableToSync

pytestmark = pytest.mark.django_db

READ_ONLY = ["synclog", "syncmetric", "checkpoint", "syncrun"]
NOON = datetime(2026, 2, 5, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def plain_http(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = False


@pytest.fixture
def ada(client: Client) -> User:
    user = User.objects.create_superuser("ada")
    client.force_login(user)
    return user


def changelist(client: Client, model: str, **parameters: str) -> str:
    response = client.get(reverse(f"admin:syncdata_{model}_changelist"), parameters)
    assert response.status_code == 200
    return html.unescape(response.content.decode())


def listed(client: Client, model: str, **parameters: str) -> list[Any]:
    response = client.get(reverse(f"admin:syncdata_{model}_changelist"), parameters)
    assert response.status_code == 200
    return [*response.context["cl"].result_list]


def add_to_whitelist(client: Client, name: str) -> str:
    response = client.post(reverse("admin:syncdata_tabletosync_add"), {"table_name": name}, follow=True)
    assert response.status_code == 200
    return html.unescape(response.content.decode())


def a_row(model: str) -> Any:
    """Save one row of *model*."""
    if model == "synclog":
        return SyncLog.objects.create(table_name="users", status="SUCCESS", archive_ref="changes_1.json")
    if model == "syncmetric":
        return SyncMetric.objects.create(
            table_name="users", period_start=NOON, period_end=NOON + timedelta(days=1), period_type="FREQ"
        )
    if model == "checkpoint":
        return Checkpoint.objects.create(table_name="users", file="changes_1.json", record_number=7)
    return SyncRun.objects.create(host="laptop", pid=42, sync_frequency=600)


def test_a_table_added_to_the_whitelist_remembers_who_added_it(client: Client, ada: User) -> None:
    add_to_whitelist(client, "users")
    table = TableToSync.objects.get()
    assert (table.table_name, table.creator) == ("users", "ada")
    assert table.created_at is not None


def test_a_table_that_does_not_exist_yet_is_accepted_with_a_warning(client: Client, ada: User) -> None:
    warning = "does not exist locally yet"
    assert warning in add_to_whitelist(client, "shop.orders")
    assert warning not in add_to_whitelist(client, "auth_group")
    assert TableToSync.objects.count() == 2


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("  users ", "users"),
        ("public.users", "users"),
        ('"users"', "users"),
        ("shop.Order", "shop.Order"),
        ('public."odd.name"', '"odd.name"'),
    ],
)
def test_names_are_stored_in_one_form(client: Client, ada: User, typed: str, stored: str) -> None:
    add_to_whitelist(client, typed)
    assert TableToSync.objects.get().table_name == stored


@pytest.mark.parametrize(
    "name",
    [
        "tables_to_sync",
        "data_sync_logs",
        "public.data_sync_checkpoints",
        '"django_migrations"',
        "pg_catalog.x",
    ],
)
def test_tables_that_are_never_synced_are_refused(client: Client, ada: User, name: str) -> None:
    assert "SHD_SYN_051" in add_to_whitelist(client, name)
    assert not TableToSync.objects.exists()


@pytest.mark.parametrize("name", ["a.b.c", 'a"b', "shop.", ""])
def test_what_is_no_table_name_is_refused(client: Client, ada: User, name: str) -> None:
    add_to_whitelist(client, name)
    assert not TableToSync.objects.exists()


def test_a_table_cannot_be_added_twice_under_two_spellings(client: Client, ada: User) -> None:
    add_to_whitelist(client, "users")
    assert "in the whitelist already" in add_to_whitelist(client, "public.users")
    assert TableToSync.objects.count() == 1


@pytest.mark.parametrize("remove", ["page", "action"])
def test_removing_a_table_removes_its_whitelist_row_alone(client: Client, ada: User, remove: str) -> None:
    table = TableToSync.objects.create(table_name="users")
    Checkpoint.objects.create(table_name="users", file="changes_1.json", record_number=7)
    SyncLog.objects.create(table_name="users", status="SUCCESS")
    if remove == "page":
        client.post(reverse("admin:syncdata_tabletosync_delete", args=[table.pk]), {"post": "yes"})
    else:
        client.post(
            reverse("admin:syncdata_tabletosync_changelist"),
            {"action": "delete_selected", "_selected_action": [table.pk], "post": "yes"},
        )
    assert not TableToSync.objects.exists()
    assert Checkpoint.objects.get().record_number == 7
    assert SyncLog.objects.count() == 1


def test_the_whitelist_shows_state_checkpoint_and_error(client: Client, ada: User) -> None:
    TableToSync.objects.create(table_name="users", creator="ada")
    orders = TableToSync.objects.create(table_name="orders")
    Checkpoint.objects.create(
        table_name="orders",
        file="changes_20260205_103000.json",
        record_number=12,
        state="blocked",
        error="SHD_SYN_050: changes_20260205_103000.json:13: table orders: no column <price>",
        error_code="SHD_SYN_050",
        rows_synced=345,
    )
    details = client.get(reverse("admin:syncdata_tabletosync_change", args=[orders.pk])).content.decode()
    for page in (changelist(client, "tabletosync"), html.unescape(details)):
        assert "changes_20260205_103000.json:12" in page
        assert "blocked" in page
        assert "no column <price>" in page
        assert "345" in page
    assert "&lt;price&gt;" in details


def test_a_table_without_a_checkpoint_is_new(client: Client, ada: User) -> None:
    TableToSync.objects.create(table_name="users")
    assert 'syncdata-new">new<' in changelist(client, "tabletosync")


def test_a_table_that_began_with_a_snapshot_older_than_the_first_change_file_is_active(
    client: Client, ada: User
) -> None:
    table = TableToSync.objects.create(table_name="users")
    Checkpoint.objects.create(table_name="users", commit_lsn="0/16B3D40")
    details = client.get(reverse("admin:syncdata_tabletosync_change", args=[table.pk])).content.decode()
    for page in (changelist(client, "tabletosync"), details):
        assert 'syncdata-active">active<' in page


def test_the_whitelist_takes_as_many_queries_for_many_tables_as_for_one(client: Client, ada: User) -> None:
    def count_queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            changelist(client, "tabletosync")
        return len(queries)

    TableToSync.objects.create(table_name="t0")
    first = count_queries()
    for number in range(1, 30):
        TableToSync.objects.create(table_name=f"t{number}")
        Checkpoint.objects.create(table_name=f"t{number}")
    assert count_queries() == first


def test_a_whitelist_row_cannot_be_changed(client: Client, ada: User) -> None:
    table = TableToSync.objects.create(table_name="users")
    url = reverse("admin:syncdata_tabletosync_change", args=[table.pk])
    assert client.post(url, {"table_name": "orders"}).status_code == 403
    assert TableToSync.objects.get().table_name == "users"


@pytest.mark.parametrize("model", READ_ONLY)
def test_even_a_superuser_can_only_read_what_the_engine_writes(client: Client, ada: User, model: str) -> None:
    row = a_row(model)
    before = type(row).objects.values().get()
    change = reverse(f"admin:syncdata_{model}_change", args=[row.pk])
    assert client.get(change).status_code == 200
    assert client.post(change, {"table_name": "other", "status": "FAILED"}).status_code == 403
    assert client.get(reverse(f"admin:syncdata_{model}_add")).status_code == 403
    delete = reverse(f"admin:syncdata_{model}_delete", args=[row.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    client.post(
        reverse(f"admin:syncdata_{model}_changelist"),
        {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"},
    )
    assert "delete_selected" not in changelist(client, model)
    assert type(row).objects.values().get() == before


def test_a_user_without_permissions_sees_nothing(client: Client) -> None:
    client.force_login(User.objects.create_user("eve", is_staff=True))
    for model in ["tabletosync", *READ_ONLY]:
        assert client.get(reverse(f"admin:syncdata_{model}_changelist")).status_code == 403


def test_a_user_with_view_permission_can_read_and_not_add(client: Client) -> None:
    user = User.objects.create_user("vic", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_tabletosync", "view_synclog"]))
    client.force_login(user)
    TableToSync.objects.create(table_name="users")
    assert [table.table_name for table in listed(client, "tabletosync")] == ["users"]
    assert listed(client, "synclog") == []
    response = client.post(reverse("admin:syncdata_tabletosync_add"), {"table_name": "orders"})
    assert response.status_code == 403


@pytest.fixture
def log() -> dict[str, SyncLog]:
    entries = [
        ("ok", "users", "SUCCESS", "sync", 0, None),
        ("failed", "orders", "FAILED", "sync", 1, "SHD_SYN_064: the 100% broken row"),
        ("resynced", "orders", "SUCCESS", "resync", 2, None),
    ]
    Checkpoint.objects.create(table_name="users")
    TableToSync.objects.create(table_name="orders")
    return {
        name: SyncLog.objects.create(
            table_name=table,
            status=status,
            action=action,
            sync_time=NOON + timedelta(hours=hours),
            error_detail=error,
            archive_ref=f"changes_{name}.json",
        )
        for name, table, status, action, hours, error in entries
    }


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["resynced", "failed", "ok"]),
        ({"status__exact": "FAILED"}, ["failed"]),
        ({"action__exact": "resync"}, ["resynced"]),
        ({"table": "users"}, ["ok"]),
        ({"q": "broken row"}, ["failed"]),
        ({"q": "100%"}, ["failed"]),
        ({"q": "changes_ok"}, ["ok"]),
        ({"q": "orders"}, ["resynced", "failed"]),
        (
            {"sync_time__range__gte_0": "2026-02-05", "sync_time__range__gte_1": "13:00:00"},
            ["resynced", "failed"],
        ),
        (
            {
                "sync_time__range__gte_0": "2026-02-05",
                "sync_time__range__gte_1": "12:30:00",
                "sync_time__range__lte_0": "2026-02-05",
                "sync_time__range__lte_1": "13:30:00",
            },
            ["failed"],
        ),
    ],
)
def test_the_log_is_filtered_and_searched(
    client: Client, ada: User, log: dict[str, SyncLog], parameters: dict[str, str], expected: list[str]
) -> None:
    assert listed(client, "synclog", **parameters) == [log[name] for name in expected]


def test_the_log_offers_the_tables_it_may_speak_of(
    client: Client, ada: User, log: dict[str, SyncLog]
) -> None:
    page = changelist(client, "synclog")
    assert "?table=users" in page
    assert "?table=orders" in page


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"FREQ", "WEEK", "MONTH"}),
        ({"period_type__exact": "WEEK"}, {"WEEK"}),
        ({"table": "users"}, {"FREQ", "WEEK"}),
        ({"period_start__range__gte_0": "2026-02-06", "period_start__range__gte_1": "00:00"}, {"MONTH"}),
    ],
)
def test_metrics_are_filtered(
    client: Client, ada: User, parameters: dict[str, str], expected: set[str]
) -> None:
    for table, period, start in [
        ("users", "FREQ", NOON),
        ("users", "WEEK", NOON),
        ("orders", "MONTH", NOON + timedelta(days=1)),
    ]:
        SyncMetric.objects.create(
            table_name=table, period_type=period, period_start=start, period_end=start + timedelta(days=1)
        )
        Checkpoint.objects.get_or_create(table_name=table)
    assert {metric.period_type for metric in listed(client, "syncmetric", **parameters)} == expected


def test_a_long_log_is_estimated_and_not_counted(
    client: Client, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists.EstimatingPaginator, "exact_limit", 150)
    SyncLog.objects.bulk_create(SyncLog(table_name="users", status="SUCCESS") for _ in range(400))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE data_sync_logs")
    with CaptureQueriesContext(connection) as queries:
        response = client.get(reverse("admin:syncdata_synclog_changelist"), {"p": "4"})
    assert response.context["cl"].paginator.count == 400
    assert len(response.context["cl"].result_list) == 100
    counts = [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert counts, "the rows and their totals"
    assert all(re.search(r"LIMIT 151\b", count) for count in counts)


@pytest.mark.parametrize("model", ["tabletosync", *READ_ONLY])
def test_every_list_opens_with_and_without_rows(client: Client, ada: User, model: str) -> None:
    changelist(client, model)
    if model == "tabletosync":
        TableToSync.objects.create(table_name="users")
    else:
        a_row(model)
    assert len(listed(client, model)) == 1


def test_static_files_are_served_without_debug_or_a_web_server(client: Client) -> None:
    response = client.get("/static/admin/css/base.css")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/css")
    assert b"body" in response.getvalue()
    response.close()


def test_the_site_s_root_leads_to_the_admin(client: Client, ada: User) -> None:
    response = client.get("/", follow=True)
    assert response.redirect_chain == [(reverse("admin:index"), 302)]
    assert "syncdata" in response.content.decode()


def test_http_is_redirected_to_https(client: Client, settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True
    response = client.get("/admin/")
    assert (response.status_code, response["Location"]) == (301, "https://testserver/admin/")
