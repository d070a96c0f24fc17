"""How long the admin's pages take with a long log: 1,000,000 entries, 200,000 metrics, 50 tables.

    python -m benchmarks.admin_pages [--entries N]

Starts a PostgreSQL of its own, fills it, and asks for each page five times through Django's client, so
everything but the network is in the figures. Prints a table of the medians in milliseconds; exits with 1
when a page takes more than 200 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from syncsite.demo.postgres import PostgresServer, embedded_binaries

LIMIT_MS = 200
REPEATS = 5
LOG = "/admin/syncdata/synclog/"
METRICS = "/admin/syncdata/syncmetric/"
DAY = "sync_time__range__gte_0=2026-03-01&sync_time__range__gte_1=00:00:00"
UNTIL = "sync_time__range__lte_0=2026-03-02&sync_time__range__lte_1=00:00:00"
NEVER = "sync_time__range__gte_0=2035-01-01&sync_time__range__gte_1=00:00:00"
PAGES = {
    "site index": "/admin/",
    "dashboard": "/admin/syncdata/dashboard/",
    "dashboard, its news": "/admin/syncdata/dashboard/data/",
    "whitelist": "/admin/syncdata/tabletosync/",
    "picker": "/admin/syncdata/tabletosync/add/",
    "log": LOG,
    "log, page 2": f"{LOG}?p=2",
    "log, last page": f"{LOG}?p=500",
    "log, oldest first": f"{LOG}?o=1",
    "log of a table": f"{LOG}?table=table_7",
    "log of a table that has none": f"{LOG}?table=nobody",
    "log, failures": f"{LOG}?status__exact=FAILED",
    "log, resyncs (few)": f"{LOG}?action__exact=resync",
    "log, skips (none)": f"{LOG}?action__exact=skip",
    "log, a range of dates": f"{LOG}?{DAY}&{UNTIL}",
    "log, a range of dates, failures": f"{LOG}?{DAY}&status__exact=FAILED",
    "log, a range without entries": f"{LOG}?{NEVER}",
    "log, search for an error": f"{LOG}?q=price",
    "log, search for a file": f"{LOG}?q=changes_20260201_0310",
    "log, search in vain": f"{LOG}?q=nothing+like+it",
    "log, an entry": "/admin/syncdata/synclog/{entry}/change/",
    "metrics": METRICS,
    "metrics of a table": f"{METRICS}?table=table_7",
    "metrics, months": f"{METRICS}?period_type__exact=MONTH",
    "runs": "/admin/syncdata/syncrun/",
    "requests": "/admin/syncdata/syncrequest/",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    entries = parser.parse_args().entries
    server = PostgresServer(binaries=embedded_binaries())
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            set_up_django(server, Path(folder))
            fill(entries)
            return measure()
    finally:
        server.stop()


def set_up_django(server: PostgresServer, folder: Path) -> None:
    with server.connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE bench")
    configuration = folder / "syncdata.toml"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"""
archive_backend = "local"
archive_dir = "{folder}"
pg_host = "{server.host}"
pg_port = {server.port}
pg_user = "{server.user}"
pg_password = "{server.password}"
pg_database = "bench"
"""
    )
    os.environ |= {
        "DATA_SYNC_CONFIG": str(configuration),
        "DJANGO_SETTINGS_MODULE": "syncsite.settings",
        "HTTPS": "off",
        "ALLOWED_HOSTS": "testserver",
    }
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def fill(entries: int) -> None:
    from django.db import connection

    statements = [
        "INSERT INTO tables_to_sync (table_name) SELECT 'table_' || n FROM generate_series(1, 50) n",
        "INSERT INTO data_sync_checkpoints (table_name, file, record_number, last_sync_at, last_change_at)"
        " SELECT 'table_' || n, 'changes_20260301_000000.json', 5, now(), now()"
        " FROM generate_series(1, 50) n",
        # A file a minute in which each of a few tables has changes; one in five hundred fails.
        "INSERT INTO data_sync_logs (table_name, status, action, rows_synced, archive_ref, error_detail,"
        " sync_time, records_added, records_updated, duration_ms)"
        " SELECT 'table_' || 1 + n % 50, CASE WHEN n % 500 = 0 THEN 'FAILED' ELSE 'SUCCESS' END,"
        " CASE WHEN n % 50021 = 0 THEN 'resync' ELSE 'sync' END, n % 1000,"
        " to_char(timestamp '2026-01-01' + n * interval '15 s',"
        ' \'"changes_"YYYYMMDD_HH24MISS".json.zst"\'),'
        " CASE WHEN n % 500 = 0 THEN 'SHD_SYN_050: changes.json:1: no column price_' || n END,"
        " timestamptz '2026-01-01Z' + n * interval '15 s', n % 900, n % 100, n % 77"
        f" FROM generate_series(1, {entries}) n",
        "INSERT INTO data_sync_metrics (table_name, period_start, period_end, period_type, records_added,"
        " records_updated, records_deleted)"
        " SELECT 'table_' || t, day, day + interval '1 day', kind, 10, 20, 30"
        " FROM generate_series(1, 50) t, unnest('{FREQ,WEEK,MONTH}'::text[]) kind,"
        f" generate_series(now() - interval '{max(entries // 750, 1)} days', now(), '1 day') day",
        "INSERT INTO data_sync_minutes (minute, records_added, lag_s)"
        " SELECT date_trunc('minute', now()) - n * interval '1 minute', 100, n % 60"
        " FROM generate_series(0, 1439) n",
        "INSERT INTO data_sync_runs (host, pid, sync_frequency)"
        " SELECT 'laptop', n, 60 FROM generate_series(1, 999) n",
        "VACUUM ANALYZE",
    ]
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def measure() -> int:
    from django.contrib.auth.models import User
    from django.test import Client

    from syncdata.models import SyncLog

    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    entry = SyncLog.objects.order_by("-sync_time")[0].pk
    slowest = 0.0
    print(f"{SyncLog.objects.count():,} log entries\n\n| page | ms |\n|---|---|")
    for name, path in PAGES.items():
        median = statistics.median(ask(client, path.format(entry=entry)) for _ in range(REPEATS))
        slowest = max(slowest, median)
        print(f"| {name} | {median:.0f} |", flush=True)
    print(f"| add up all of the log (on demand) | {ask(client, f'{LOG}?totals=1'):.0f} |")
    print(f"| export all of the log as CSV (streamed) | {ask(client, f'{LOG}export/csv/'):.0f} |")
    print(f"\nslowest page: {slowest:.0f} ms (limit: {LIMIT_MS})")
    return int(slowest > LIMIT_MS)


def ask(client: Any, path: str) -> float:
    """Return how many milliseconds the page took, all of it read."""
    started = time.perf_counter()
    response = client.get(path)
    assert response.status_code == 200, (path, response.status_code)
    if response.streaming:
        for _ in response.streaming_content:
            pass
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    sys.exit(main())
