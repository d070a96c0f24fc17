"""The admin as a person meets it."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import AXE, Site, wait_until
from tests.world import World, delete, insert, update

# Where to put pictures of each page, light and dark, for people to look at.
PICTURES = os.environ.get("SYNCDATA_PICTURES")

STATES = "SELECT table_name, state FROM data_sync_checkpoints"


def stamp(moment: dt.datetime) -> str:
    return f"changes_{moment:%Y%m%d_%H%M%S}.json"


def write_changes(world: World, moment: dt.datetime, *, first: int, records: int, **extra: Any) -> None:
    ts = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    changes = []
    for number in range(first, first + records):
        changes.append(insert("orders", ts=ts, id=number, customer_id=number % 50, **extra))
        if number % 3 == 0:
            changes.append(update("orders", ts=ts, id=number, total="9.50"))
        if number % 7 == 0:
            changes.append(delete("orders", ts=ts, id=number))
    changes += [
        insert("customers", ts=ts, id=number % 50, name=f"c{number}") for number in range(first, first + 20)
    ]
    world.write(stamp(moment), changes)


def prepare(world: World) -> dt.datetime:
    world.execute(
        "CREATE TABLE customers (id int PRIMARY KEY, name text)",
        "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, total numeric(10,2), note text)",
        "CREATE TABLE audit_trail (what text)",
        "CREATE SCHEMA shop",
        'CREATE TABLE shop."Product" (id int PRIMARY KEY)',
        "INSERT INTO audit_trail SELECT 'x' FROM generate_series(1, 500)",
        "ANALYZE audit_trail",
    )
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    for hours in range(8, 0, -1):
        write_changes(world, now - dt.timedelta(hours=hours), first=hours * 1000, records=200 + 40 * hours)
    return now


def whitelist(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/admin/syncdata/tabletosync/")
    page.click("text=Choose some from the database")
    page.fill("#syncdata-q", "ord")
    expect(page.locator("#syncdata-choice tbody tr:visible")).to_have_count(1)
    page.get_by_label("orders").check()
    page.fill("#syncdata-q", "cust")
    page.get_by_label("customers").check()
    page.click("text=Add to the whitelist")
    expect(page.locator(".messagelist")).to_contain_text("Added customers, orders")


def row_of(page: Page, table: str) -> Any:
    return page.locator("#syncdata-tables tbody tr", has=page.locator(f"th a:text-is('{table}')"))


def test_from_the_first_login_to_a_blocked_table_that_is_mended(
    page: Page, site: Site, complaints: list[str], tmp_path: Path
) -> None:
    world = site.world
    now = prepare(world)
    whitelist(page, site)
    site.manage("add_tables", "--whole", "customers", "orders")
    page.goto(f"{site.url}/admin/syncdata/dashboard/")
    expect(page.locator("#syncdata-tiles")).to_contain_text("not running")
    page.evaluate("window.wasNotReloaded = true")
    with site.daemon():
        expect(page.locator("#syncdata-tiles")).to_contain_text("since", timeout=15_000)
        expect(row_of(page, "orders")).to_contain_text("active", timeout=15_000)
        expect(row_of(page, "orders")).to_contain_text("in\u00a0step")
        before = row_of(page, "orders").inner_text()
        write_changes(world, now, first=20_000, records=500)
        expect(row_of(page, "orders")).not_to_have_text(before, timeout=15_000)
        assert page.locator(".syncdata-chart[data-chart=applied] canvas").count() == 1
        page.locator(".syncdata-chart[data-chart=applied] .syncdata-plot").press("ArrowLeft")
        expect(page.locator(".syncdata-chart[data-chart=applied] .syncdata-readout")).to_contain_text("added")

        # Block it, read why, mend it, retry.
        world.execute("ALTER TABLE orders DROP COLUMN note")
        write_changes(world, now + dt.timedelta(seconds=1), first=30_000, records=30, note="hello")
        expect(row_of(page, "orders")).to_contain_text("blocked", timeout=15_000)
        expect(page.locator(".syncdata-reason")).to_contain_text("SHD_SYN_050")
        expect(page.locator(".syncdata-reason")).to_contain_text("'note'")
        expect(page.locator(".syncdata-reason")).to_contain_text(
            "What to do: where it is new in production, add it here"
        )
        expect(row_of(page, "customers")).to_contain_text("active")
        assert page.evaluate("window.wasNotReloaded"), "the page has moved without a reload"
        world.execute("ALTER TABLE orders ADD COLUMN note text")
        row_of(page, "orders").get_by_role("link", name="Retry orders").click(timeout=15_000)
        if page.locator("text=it is not blocked").count() == 0:  # the daemon may have been quicker
            page.click("text=Yes, Retry")
        page.goto(f"{site.url}/admin/syncdata/dashboard/")
        expect(row_of(page, "orders")).to_contain_text("active", timeout=15_000)

        # Resync.
        world.execute("DELETE FROM orders")
        row_of(page, "orders").get_by_role("link", name="Resync orders").click()
        expect(page.locator("#content")).to_contain_text("rebuilt from the archive")
        page.click("text=Yes, Resync")
        expect(page.locator(".messagelist")).to_contain_text("Asked the daemon: Resync orders")
        expect(page.locator("#syncdata-requests tbody tr", has_text="resync orders")).to_contain_text(
            "done", timeout=15_000
        )
        assert world.value("SELECT count(*) FROM orders") > 1000

        # Pause from the list, for several at once.
        page.goto(f"{site.url}/admin/syncdata/tabletosync/")
        page.check("#action-toggle")
        page.select_option("select[name=action]", label="Pause")
        page.click("button[name=index]")
        expect(page.locator("#content h1")).to_have_text("Pause: 2 tables?")
        page.click("text=Yes, Pause")
        expect(row_of(page, "customers")).to_contain_text("paused", timeout=15_000)

    # Filter the log by a range of dates, and export what is left.
    page.goto(f"{site.url}/admin/syncdata/synclog/")
    everything = page.locator("#result_list tbody tr").count()
    page.goto(f"{site.url}/admin/syncdata/synclog/?status__exact=SUCCESS")
    today = page.evaluate("new Date().toLocaleDateString('sv')")
    page.fill("[name=sync_time__range__gte_0]", today)
    page.fill("[name=sync_time__range__gte_1]", "00:00:00")
    page.click("#changelist-filter input[type=submit]")
    filtered = page.locator("#result_list tbody tr").count()
    assert 0 < filtered < everything
    assert "sync_time__range__gte_0" in page.url
    expect(page.locator(".syncdata-totals dd").first).to_have_text(str(filtered))
    with page.expect_download() as download:
        page.click("text=Export as CSV")
    path = tmp_path / "log.csv"
    download.value.save_as(path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == filtered
    assert {row["status"] for row in rows} == {"SUCCESS"}
    with page.expect_download() as download:
        page.click("text=Export as JSON")
    assert len(json.loads(Path(download.value.path()).read_text())) == filtered
    assert complaints == []


def test_times_are_those_of_the_browsers_zone_with_utc_on_hover(page: Page, site: Site) -> None:
    site.world.execute(
        "INSERT INTO data_sync_logs (table_name, status, sync_time, rows_synced)"
        " VALUES ('users', 'SUCCESS', '2026-02-05T10:30:00Z', 1234567)"
    )
    page.goto(f"{site.url}/admin/syncdata/synclog/")
    page.goto(f"{site.url}/admin/syncdata/synclog/")  # the first visit has told the server the zone
    moment = page.locator(".field-sync_time time")
    expect(moment).to_have_text("2026-02-05 05:30:00")
    expect(moment).to_have_attribute("title", "2026-02-05 10:30:00 UTC")
    expect(page.locator(".field-rows_synced")).to_have_text("1,234,567")


def test_whoever_is_logged_out_is_told_so_and_the_page_asks_no_more(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/admin/syncdata/dashboard/")
    page.context.clear_cookies()
    expect(page.locator("#syncdata-connection")).to_contain_text("logged out", timeout=10_000)


def test_the_picker_works_without_javascript(browser: Any, site: Site, page: Page) -> None:
    prepare(site.world)
    context = browser.new_context(java_script_enabled=False, storage_state=page.context.storage_state())
    plain = context.new_page()
    plain.goto(f"{site.url}/admin/syncdata/tabletosync/add/")
    plain.fill("#syncdata-q", "prod")
    plain.click("text=Search")
    assert plain.locator("#syncdata-choice tbody tr").count() == 1
    plain.get_by_label("Product").check()
    plain.click("text=Add to the whitelist")
    assert "Added shop.Product" in plain.locator(".messagelist").inner_text()
    plain.goto(f"{site.url}/admin/syncdata/dashboard/")
    assert "shop.Product" in plain.locator("#syncdata-tables").inner_text()
    context.close()


CUT_OFF = (
    "[...document.querySelectorAll('.syncdata-reason .syncdata-error, .syncdata-told')]"
    ".some(told => told.getBoundingClientRect().right > innerWidth)"
)
PAGES = {
    "index": "/admin/",
    "section": "/admin/syncdata/",
    "dashboard": "/admin/syncdata/dashboard/",
    "whitelist": "/admin/syncdata/tabletosync/",
    "picker": "/admin/syncdata/tabletosync/add/",
    "table": "/admin/syncdata/tabletosync/{orders}/change/",
    "ask": "/admin/syncdata/tabletosync/ask/skip/?table=orders",
    "ask-many": "/admin/syncdata/tabletosync/ask/clear/?table=orders&table=customers",
    "log": "/admin/syncdata/synclog/",
    "metrics": "/admin/syncdata/syncmetric/",
    "requests": "/admin/syncdata/syncrequest/",
    "runs": "/admin/syncdata/syncrun/",
    "checkpoints": "/admin/syncdata/checkpoint/",
    "verifications": "/admin/syncdata/syncverification/",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_fault_that_axe_can_find(
    page: Page, site: Site, complaints: list[str], theme: str
) -> None:
    world = site.world
    now = prepare(world)
    world.whitelist("orders", "customers", 'shop."Product"')
    write_changes(world, now, first=40_000, records=300)
    world.write(stamp(now + dt.timedelta(seconds=1)), [insert("orders", id=1, total="not a number")])
    world.execute(
        "INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type, records_added,"
        " records_updated, records_deleted) SELECT 'orders', day, day + interval '1 day', 'FREQ',"
        " 40000 + 9000 * sin(extract(day FROM day)), 12000 + 7000 * cos(extract(day FROM day)), 3000"
        " FROM generate_series(date_trunc('day', now()) - interval '20 days',"
        " date_trunc('day', now()) - interval '1 day', '1 day') AS day",
        "INSERT INTO data_sync_minutes (minute, records_added, lag_s) SELECT minute, 100,"
        " 20 + 15 * sin(extract(epoch FROM minute) / 3000) + 300 * exp(-power("
        "extract(epoch FROM now() - minute) / 3600 - 9, 2))"
        " FROM generate_series(date_trunc('minute', now()) - interval '20 hours',"
        " date_trunc('minute', now()) - interval '5 minutes', '5 minutes') AS minute",
        "INSERT INTO data_sync_requests (action, table_names, requested_by, state, progress, finished_at)"
        " VALUES ('resync', '{customers}', 'ada', 'done', '1,204 records', now())",
        "INSERT INTO data_sync_verifications (table_name, round, chunk, bounds, position, rows, rows_here,"
        " seen, is_equal, reason) VALUES ('orders', 1, 1, 'id above 1000, up to 2000',"
        " 'changes_20260205_103000.json.zst:8282', 1000, 999, 2000, false, '1,000 at production, 999 here')",
    )
    faults = []
    orders = str(world.value("SELECT id FROM tables_to_sync WHERE table_name = 'orders'"))
    with site.daemon():
        # Not by its checkpoint: the table has none before the daemon begins with it.
        wait_until(lambda: ("orders", "blocked") in world.rows(STATES))
        world.execute("UPDATE data_sync_minutes SET lag_s = 25 WHERE lag_s > 1000")  # as if nothing came late
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for name, path in PAGES.items():
            page.goto(site.url + path.format(orders=orders))
            page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            page.wait_for_timeout(300)
            if PICTURES:
                page.screenshot(path=f"{PICTURES}/{name}-{theme}.png", full_page=True)
            of_the_page = [*complaints]
            wide = page.viewport_size
            assert wide is not None
            page.set_viewport_size({"width": 390, "height": wide["height"]})
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                faults.append(f"{name}: wider than a narrow screen")
            if page.evaluate(CUT_OFF):
                faults.append(f"{name}: what is told of a table is cut off on a narrow screen")
            page.set_viewport_size(wide)
            page.evaluate(AXE)
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            complaints[:] = of_the_page  # axe tries styles of its own, which the page's policy refuses
            faults += [
                f"{name}: {fault['id']}: {[node['html'][:120] for node in fault['nodes']]}"
                for fault in found["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
    assert not re.sub(r"\s+", " ", "\n".join(faults))
    assert complaints == []
