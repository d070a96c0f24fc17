"""The admin's own pages: the dashboard's numbers, the picker, totals and exports, zones and other sites."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import include, path, reverse

from syncdata.admin import lists, whitelist
from syncdata.admin import model_admins as admin
from syncdata.admin.zones import COOKIE
from syncdata.models import (
    Checkpoint,
    Dashboard,
    SyncLog,
    SyncMetric,
    SyncMinute,
    SyncRequest,
    SyncRun,
    SyncVerification,
    TableToSync,
)

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 2, 5, 12, 0, tzinfo=UTC)

staff_site = AdminSite(name="staff")
for model, model_admin in [
    (Dashboard, admin.DashboardAdmin),
    (TableToSync, whitelist.TableToSyncAdmin),
    (SyncLog, admin.SyncLogAdmin),
    (SyncMetric, admin.SyncMetricAdmin),
]:
    staff_site.register(model, model_admin)
urlpatterns = [path("staff/", staff_site.urls), path("", include("syncsite.urls"))]


@pytest.fixture(autouse=True)
def plain_http(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = False


@pytest.fixture(autouse=True)
def ada(client: Client) -> User:
    user = User.objects.create_superuser("ada")
    client.force_login(user)
    return user


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def page(client: Client, name: str, **parameters: str) -> str:
    response = client.get(reverse(f"admin:syncdata_{name}"), parameters)
    assert response.status_code == 200
    return html.unescape(response.content.decode())


def news(client: Client) -> dict[str, Any]:
    response = client.get(reverse("admin:syncdata_dashboard_data"))
    assert "no-store" in response["Cache-Control"]
    document: dict[str, Any] = response.json()
    return document


def export(client: Client, model: str, kind: str, **parameters: str) -> str:
    response = client.get(reverse(f"admin:syncdata_{model}_export", args=[kind]), parameters)
    assert response.status_code == 200
    assert response.streaming
    assert response["Content-Disposition"].startswith("attachment")
    return response.getvalue().decode()


# The dashboard


def test_an_empty_dashboard_says_what_to_do_first(client: Client) -> None:
    text = page(client, "dashboard_changelist")
    assert "python manage.py syncdata_start" in text
    assert reverse("admin:syncdata_tabletosync_add") in text
    assert news(client)["charts"]["applied"]["time"] == []


def test_the_dashboard_tells_state_lag_waiting_files_and_rate(client: Client) -> None:
    now = datetime.now(UTC)
    for name, file, state, error in [
        ("ahead", "changes_20260205_120000.json", "active", None),
        ("behind", "changes_20260205_103000.json", "blocked", "SHD_SYN_050: x.json:1: no column (add <it>)"),
    ]:
        TableToSync.objects.create(table_name=name)
        Checkpoint.objects.create(
            table_name=name, file=file, state=state, error=error, last_change_at=now - timedelta(hours=2)
        )
    SyncRun.objects.create(
        host="laptop", pid=42, sync_frequency=60, waiting_files=1234, waiting_bytes=5 << 20, errors=7
    )
    SyncMinute.objects.create(minute=now - timedelta(minutes=2), records_added=500, lag_s=3.5)
    SyncMinute.objects.create(minute=now - timedelta(hours=2), records_added=10**6, lag_s=60)
    shown = {name: html.unescape(text) for name, text in news(client)["sections"].items()}
    assert "1,234 file(s), 5.0\xa0MB" in shown["tiles"]
    assert "2 h 0 min" in shown["tiles"]
    assert '<p class="syncdata-figure">100</p>' in shown["tiles"], "500 records in the last five minutes"
    assert "1 h 30 min" in shown["tables"]
    assert "add <it>" in shown["tables"]
    assert "&lt;it&gt;" in news(client)["sections"]["tables"], "escaped"
    lag = news(client)["charts"]["lag"]
    assert lag["lag_s"] == [60, 3.5]


def test_pages_show_a_table_in_doubt_with_its_state_the_reason_and_the_remedy(client: Client) -> None:
    mark = {"kind": "suspect", "text": "something <odd> happened", "hint": "resync it"}
    row = TableToSync.objects.create(table_name="orders")
    Checkpoint.objects.create(table_name="orders", file="changes_20260205_120000.json", marks=[mark])
    shown = {name: html.unescape(text) for name, text in news(client)["sections"].items()}
    assert "syncdata-suspect" in shown["tables"] and "syncdata-active" not in shown["tables"]
    assert "something <odd> happened" in shown["tables"] and "resync it" in shown["tables"]
    assert "&lt;odd&gt;" in news(client)["sections"]["tables"], "escaped"
    assert "1 table may differ from production" in shown["tiles"]
    assert "Tables in doubt: 1." in news(client)["announce"]
    for name, args in (("tabletosync_changelist", ()), ("tabletosync_change", (row.pk,))):
        text = client.get(reverse(f"admin:syncdata_{name}", args=args)).content.decode()
        assert "syncdata-suspect" in text and "something &lt;odd&gt; happened" in text
    assert "resync it" in text


def test_the_checkpoints_show_a_table_in_doubt_as_every_other_page_does(client: Client) -> None:
    TableToSync.objects.create(table_name="orders")
    TableToSync.objects.create(table_name="users")
    file, mark = "changes_20260205_120000.json", {"kind": "partial", "text": "it began without a snapshot"}
    doubtful = Checkpoint.objects.create(table_name="orders", file=file, marks=[mark])
    Checkpoint.objects.create(table_name="users", file=file)
    Checkpoint.objects.create(table_name="removed", file=file)
    assert states(page(client, "checkpoint_changelist")) == ["partial", "active"], "and of the removed: none"
    assert states(page(client, "checkpoint_changelist", state="active")) == ["active"]
    response = client.get(reverse("admin:syncdata_checkpoint_change", args=[doubtful.pk]))
    assert states(response.content.decode()) == ["partial"]
    assert [
        row["table_name"] for row in json.loads(export(client, "checkpoint", "json", state="partial"))
    ] == ["orders"]


def test_the_pages_name_what_is_masked_or_withheld_by_its_kind(client: Client) -> None:
    TableToSync.objects.create(table_name="users")
    columns = [{"name": "id"}, {"name": "email", "privacy": "email"}, {"name": "a<b", "privacy": "withheld"}]
    file = "changes_20260205_120000.json"
    row = Checkpoint.objects.create(table_name="users", file=file, published={"table": {"columns": columns}})
    for text in (
        news(client)["sections"]["tables"],
        client.get(reverse("admin:syncdata_checkpoint_change", args=[row.pk])).content.decode(),
    ):
        assert "email (email), a&lt;b (withheld)" in text


def states(text: str) -> list[str]:
    return re.findall(r'class="syncdata-state syncdata-(\w+)"', text)


def test_the_chart_adds_the_tables_up_by_period(client: Client) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for table, kind, days, added in [
        ("a", "FREQ", 2, 5),
        ("b", "FREQ", 2, 7),
        ("a", "FREQ", 1, 1),
        ("a", "WEEK", 1, 9),
    ]:
        start = today - timedelta(days=days)
        SyncMetric.objects.create(
            table_name=table,
            period_type=kind,
            period_start=start,
            period_end=start + timedelta(days=1),
            records_added=added,
        )
    applied = news(client)["charts"]["applied"]
    assert applied["added"] == [12, 1]
    assert applied["time"] == [(today - timedelta(days=days)).timestamp() for days in (2, 1)]


def test_requests_are_shown_with_their_progress_and_error(client: Client) -> None:
    SyncRequest.objects.create(
        action="resync", table_names=["users"], state="running", progress="42 % (7 records)"
    )
    SyncRequest.objects.create(
        action="clear",
        table_names=["a", "b"],
        state="failed",
        error="SHD_SYN_054: nothing is cleared (ask)",
        finished_at=datetime.now(UTC),
    )
    shown = news(client)["sections"]["requests"]
    assert "taken up when a daemon starts" in shown, "it runs no more, for no daemon does"
    assert "a, b" in shown
    assert "SHD_SYN_054" in shown


def test_pages_show_what_verification_has_found(client: Client) -> None:
    for table in ("checked", "spoilt", "fresh", "odd"):
        TableToSync.objects.create(table_name=table)
        Checkpoint.objects.create(table_name=table, file="changes_20260205_103000.json")
    found = {"chunk": 1, "round": 1, "is_last": True, "rows": 1234, "seen": 1234}
    create = SyncVerification.objects.create
    create(table_name="checked", is_equal=True, bounds="all rows", **found)
    create(table_name="spoilt", is_equal=False, bounds="id up to 7", rows_here=1233, **found)
    create(table_name="odd", is_equal=None, reason="column x is another here", **found)
    Checkpoint.objects.filter(table_name="spoilt").update(
        marks=[{"kind": "differs", "text": "rows are not production's"}]
    )
    for shown in (news(client)["sections"]["tables"], page(client, "tabletosync_changelist")):
        assert "1,234 rows" in shown
        assert shown.count("cannot be compared: column x is another here") == 1
        assert "never" in shown
    assert "1 table differs from production" in news(client)["sections"]["tiles"]
    assert "may differ" not in news(client)["sections"]["tiles"]
    checks = page(client, "syncverification_changelist")
    for text in ("id up to 7", "1,233", "not compared", "equal", "differs"):
        assert text in checks
    for result, reason in (("True", "all rows"), ("False", "id up to 7"), ("None", "column x is another")):
        shown = page(client, "syncverification_changelist", result=result)
        assert reason in shown and shown.count('class="field-position"') == 1


def test_the_summary_stands_once_where_it_belongs(client: Client) -> None:
    heading = "Records a minute"
    for url, times in (
        (reverse("admin:index"), 1),
        (reverse("admin:app_list", args=["syncdata"]), 1),
        (reverse("admin:app_list", args=["auth"]), 0),
    ):
        assert client.get(url).content.decode().count(heading) == times


def test_a_process_id_is_not_grouped_like_a_quantity(client: Client) -> None:
    execute("INSERT INTO data_sync_runs (host, pid, sync_frequency) VALUES ('vm', 24058, 1)")
    page = client.get(reverse("admin:syncdata_syncrun_changelist")).content.decode()
    assert "24058" in page
    assert "24,058" not in page


def test_the_index_and_the_section_show_how_the_sync_does(client: Client) -> None:
    for url in (reverse("admin:index"), reverse("admin:app_list", args=["syncdata"])):
        text = client.get(url).content.decode()
        assert 'id="syncdata-tile-daemon"' in text
        assert reverse("admin:syncdata_dashboard_changelist") in text


def test_the_dashboard_comes_first_in_its_section(client: Client) -> None:
    response = client.get(reverse("admin:app_list", args=["syncdata"]))
    assert response.context["app_list"][0]["models"][0]["name"] == "Dashboard"


def test_another_admin_site_has_it_all_under_its_own_urls(client: Client, settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    TableToSync.objects.create(table_name="users")
    text = client.get("/staff/syncdata/dashboard/").content.decode()
    assert 'data-url="/staff/syncdata/dashboard/data/"' in text
    assert "/staff/syncdata/tabletosync/ask/resync/?table=users" in text
    assert '"/admin/' not in text
    asked = client.get("/staff/syncdata/tabletosync/ask/clear/?table=users").content.decode()
    assert "/staff/syncdata/tabletosync/" in asked
    assert '"/admin/' not in asked
    assert client.post("/staff/syncdata/tabletosync/add/", {"table_name": "more"})["Location"].startswith(
        "/staff/"
    )


def test_a_project_without_time_zones_gets_its_pages_too(client: Client, settings: Any) -> None:
    settings.USE_TZ = False
    TableToSync.objects.create(table_name="users")
    Checkpoint.objects.create(
        table_name="users", last_change_at=datetime(2026, 2, 5, 12), file="changes_1.json"
    )
    SyncRun.objects.create(host="laptop", pid=1, sync_frequency=60)
    SyncLog.objects.create(table_name="users", status="SUCCESS")
    for name in (
        "dashboard_changelist",
        "tabletosync_changelist",
        "synclog_changelist",
        "syncrun_changelist",
    ):
        page(client, name)
    assert json.loads(export(client, "synclog", "json"))[0]["table_name"] == "users"


# Choosing tables


@pytest.fixture
def tables() -> None:
    execute(
        "CREATE TABLE products (id int PRIMARY KEY)",
        "CREATE TABLE trail (what text)",
        "CREATE SCHEMA shop",
        'CREATE TABLE shop."Order" (id int PRIMARY KEY, day date) ',
        "CREATE TABLE parts (id int, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (10)",
    )


def offered(client: Client, **parameters: str) -> dict[str, dict[str, Any]]:
    response = client.get(reverse("admin:syncdata_tabletosync_add"), parameters)
    return {table["full_name"]: table for table in response.context["tables"]}


def test_the_picker_offers_what_may_be_synced_and_is_not(client: Client, tables: None) -> None:
    TableToSync.objects.create(table_name="products")
    choice = offered(client)
    assert {"trail", "shop.Order", "parts", "auth_user"} <= choice.keys()
    left_out = {
        "products",
        "parts_1",
        "django_migrations",
        "tables_to_sync",
        "data_sync_requests",
        "data_sync_logs",
    }
    assert not left_out & choice.keys()
    assert choice["shop.Order"]["has_key"]
    assert not choice["trail"]["has_key"]
    assert choice["auth_user"]["holds_logins"]
    assert choice["django_session"]["holds_logins"]
    assert not choice["trail"]["holds_logins"]


def test_the_picker_is_searched_without_javascript_too(client: Client, tables: None) -> None:
    assert offered(client, q="SHOP").keys() == {"shop.Order"}
    assert offered(client, q="nothing like it") == {}
    assert "No table of this database" in page(client, "tabletosync_add", q="nothing like it")


def test_several_tables_are_added_at_once(client: Client, tables: None) -> None:
    response = client.post(
        reverse("admin:syncdata_tabletosync_add"),
        {"tables": ["trail", "shop.Order"], "table_name": "later"},
        follow=True,
    )
    text = html.unescape(response.content.decode())
    assert "Added trail, shop.Order, later" in text
    assert "Table later does not exist locally yet" in text
    assert "Table trail has no key" in text
    rows = TableToSync.objects.values_list("table_name", "creator")
    assert set(rows) == {(name, "ada") for name in ("trail", "shop.Order", "later")}


def test_one_table_that_is_refused_keeps_all_from_being_added(client: Client, tables: None) -> None:
    response = client.post(
        reverse("admin:syncdata_tabletosync_add"), {"tables": ["trail", "data_sync_logs"]}, follow=True
    )
    assert "SHD_SYN_051" in response.content.decode()
    assert not TableToSync.objects.exists()
    checked = [line for line in response.content.decode().splitlines() if " checked" in line]
    assert 'value="trail"' in checked[0], "the choice is kept"


def test_choosing_nothing_is_said(client: Client) -> None:
    response = client.post(reverse("admin:syncdata_tabletosync_add"), {})
    assert "Choose at least one table" in response.content.decode()


# Totals and exports


def log(count: int, **values: Any) -> None:
    SyncLog.objects.bulk_create(
        SyncLog(
            **{"table_name": "users", "status": "SUCCESS", "rows_synced": 1000, "records_added": 5} | values
        )
        for _ in range(count)
    )


def test_totals_are_those_of_the_filtered_rows(client: Client) -> None:
    log(150)
    log(3, status="FAILED", rows_synced=1)
    response = client.get(reverse("admin:syncdata_synclog_changelist"), {"status__exact": "SUCCESS"})
    totals = response.context["totals"]
    assert totals["rows"] == "150"
    assert dict(totals["sums"])["rows synced"] == "150,000"
    assert dict(totals["sums"])["added"] == "750"


def test_many_rows_are_added_up_only_when_that_is_asked_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists.EstimatingPaginator, "exact_limit", 10)
    log(20)
    url = reverse("admin:syncdata_synclog_changelist")
    text = client.get(url, {"status__exact": "SUCCESS"}).content.decode()
    assert "More than 10 entries" in text
    assert "?status__exact=SUCCESS&amp;totals=1" in text
    response = client.get(url, {"status__exact": "SUCCESS", "totals": "1"})
    assert response.context["totals"]["rows"] == "20"


def test_an_export_holds_what_is_filtered_in_its_order(client: Client) -> None:
    for hour, status in enumerate(["SUCCESS", "FAILED", "SUCCESS"]):
        log(1, status=status, sync_time=NOON + timedelta(hours=hour), archive_ref=f"changes_{hour}.json")
    rows = list(csv.DictReader(io.StringIO(export(client, "synclog", "csv", status__exact="SUCCESS"))))
    assert [row["archive_ref"] for row in rows] == ["changes_2.json", "changes_0.json"]
    assert rows[1]["sync_time"] == "2026-02-05T12:00:00+00:00"
    documents = json.loads(export(client, "synclog", "json", status__exact="SUCCESS"))
    assert [document["archive_ref"] for document in documents] == ["changes_2.json", "changes_0.json"]
    assert documents[0]["rows_synced"] == 1000
    assert json.loads(export(client, "syncmetric", "json")) == []


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_is_a_formula(client: Client, text: str) -> None:
    log(1, error_detail=text)
    (row,) = csv.DictReader(io.StringIO(export(client, "synclog", "csv"), newline=""))
    assert row["error_detail"] == f"'{text}"
    assert json.loads(export(client, "synclog", "json"))[0]["error_detail"] == text


def test_an_export_with_broken_filters_goes_back_to_the_list(client: Client) -> None:
    url = reverse("admin:syncdata_synclog_export", args=["csv"])
    assert client.get(url, {"nonsense__exact": "1"})["Location"].endswith("/synclog/?e=1")
    assert client.get(reverse("admin:syncdata_synclog_export", args=["xml"]))["Location"].endswith(
        "/synclog/"
    )


def test_the_log_is_not_sorted_by_what_has_no_index(client: Client) -> None:
    log(2)
    url = reverse("admin:syncdata_synclog_changelist")
    for column in range(1, 10):
        response = client.get(url, {"o": str(column)})
        assert response.context["cl"].queryset.query.order_by[0].lstrip("-") == "sync_time"


# Zones


def test_times_and_filters_are_in_the_zone_that_the_browser_told(client: Client) -> None:
    log(1, sync_time=NOON)
    client.cookies[COOKIE] = "Asia/Tokyo"
    text = page(client, "synclog_changelist")
    assert 'title="2026-02-05 12:00:00 UTC">2026-02-05 21:00:00</time>' in text
    after = {"sync_time__range__gte_0": "2026-02-05", "sync_time__range__gte_1": "20:59:00"}
    response = client.get(reverse("admin:syncdata_synclog_changelist"), after)
    assert len(response.context["cl"].result_list) == 1
    before = {"sync_time__range__gte_0": "2026-02-05", "sync_time__range__gte_1": "21:01:00"}
    response = client.get(reverse("admin:syncdata_synclog_changelist"), before)
    assert len(response.context["cl"].result_list) == 0


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/passwd", "\x00", "America"])
def test_a_zone_that_is_none_is_the_sites_own(client: Client, zone: str) -> None:
    log(1, sync_time=NOON)
    client.cookies[COOKIE] = zone
    assert ">2026-02-05 12:00:00</time>" in page(client, "synclog_changelist")
