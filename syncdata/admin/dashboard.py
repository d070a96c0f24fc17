"""The dashboard: the sync as it stands now, as sections of HTML and columns of numbers for the charts."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _

from syncdata.admin import texts
from syncdata.admin.asking import ask_url, fitting_asks
from syncdata.admin.connection import tables_service
from syncdata.admin.zones import zone_of
from syncdata.apply.postgres.catalog import LocalTable
from syncdata.apply.state.reasons import read_reason
from syncdata.apply.state.status import DaemonStatus, TableInfo, lag_s
from syncdata.errors import SyncError
from syncdata.tables import TablesService

_RATE_MINUTES = 5
_SUMMARY = ("tiles", "problems")
_TEMPLATES = {"others": "problems"}


def read_dashboard(request: HttpRequest, *, now: dt.datetime) -> dict[str, Any]:
    """Return ``sections`` (HTML by name), ``charts`` (columns of numbers) and what to ``announce``.

    Where syncdata's own tables cannot be read, the only section says why. Nothing is changed.
    """
    try:
        return _read(request, tables_service(), now)
    except SyncError as error:
        # Code and hint alone: the message may name hosts.
        html = render_to_string("syncdata/dashboard/unreadable.html", {"error": error}, request)
        return {"sections": {"tiles": html}, "charts": None, "announce": ""}


def read_summary(request: HttpRequest, *, now: dt.datetime) -> dict[str, Any]:
    """Return the sections that other pages show, by name: tiles and problems."""
    with zone_of(request):
        shown = read_dashboard(request, now=now)
    return {name: html for name, html in shown["sections"].items() if name in _SUMMARY}


def _read(request: HttpRequest, service: TablesService, now: dt.datetime) -> dict[str, Any]:
    status, run, minutes = service.get_status(), service.read_run(), service.read_minutes()
    local = {str(table.name): table for table in service.local_tables()}
    contexts: dict[str, dict[str, Any]] = {
        "tiles": _tiles(status, run or {}, minutes, now=now),
        "problems": {"problems": status.problems},
        # Without those of one table: the page shows them in its list of tables.
        "others": {"problems": [p for p in status.problems if not p.table]},
        "tables": {
            "tables": [_table(request, table, status.tables, local) for table in status.tables],
            "add_url": _url(request, "tabletosync_add"),
            "may_add": request.user.has_perm("syncdata.add_tabletosync"),
        },
        "requests": {
            "requests": [_request(row, is_active=status.is_active) for row in service.read_requests()]
        },
    }
    blocked = sum(table.state == "blocked" for table in status.tables)
    doubtful = sum(table.is_doubtful for table in status.tables)
    return {
        "sections": {
            name: render_to_string(f"syncdata/dashboard/{_TEMPLATES.get(name, name)}.html", context, request)
            for name, context in contexts.items()
        },
        "charts": _charts(minutes, service.read_periods()),
        "announce": (_("The daemon runs.") if status.is_active else _("No daemon runs."))
        + " "
        + (_("Blocked tables: %(count)d.") % {"count": blocked})
        + (" " + _("Tables in doubt: %(count)d.") % {"count": doubtful} if doubtful else ""),
    }


def _tiles(
    status: DaemonStatus, run: dict[str, Any], minutes: list[dict[str, Any]], *, now: dt.datetime
) -> dict[str, Any]:
    newest = max((table.last_change_at for table in status.tables if table.last_change_at), default=None)
    since = now - dt.timedelta(minutes=_RATE_MINUTES)
    records = sum(minute["records"] for minute in minutes if minute["minute"] >= since)
    return {
        "status": status,
        "host": run.get("host"),
        "pid": run.get("pid"),
        "started": texts.moment(status.start_time),
        "stopped": texts.moment(run.get("stopped_at")),
        "last_sync": texts.moment(status.last_sync_time),
        "frequency": texts.duration(status.sync_frequency),
        "newest": texts.moment(newest),
        "age": texts.duration((now - newest).total_seconds()) if newest else None,
        "waiting_files": texts.grouped(run.get("waiting_files", 0)),
        "waiting_size": texts.size(run.get("waiting_bytes", 0)),
        "is_waiting": bool(run.get("waiting_files")),
        "rate": texts.grouped(round(records / _RATE_MINUTES)),
        "rate_minutes": _RATE_MINUTES,
        "records": texts.grouped(status.records_synced),
        "errors": texts.grouped(status.errors),
        "blocked": sum(table.state == "blocked" for table in status.tables),
        "differing": sum(table.state == "differs" for table in status.tables),
        "doubtful": sum(table.is_doubtful and table.state != "differs" for table in status.tables),
        "command": "python manage.py syncdata_start",
    }


def _table(
    request: HttpRequest, table: TableInfo, tables: tuple[TableInfo, ...], local: dict[str, LocalTable]
) -> dict[str, Any]:
    here = local.get(table.table_name)
    behind_s = lag_s(table.checkpoint, max(other.checkpoint for other in tables))
    return {
        "name": table.table_name,
        "log_url": f"{_url(request, 'synclog_changelist')}?table={table.table_name}",
        "state": table.state,
        "lag": texts.lag(behind_s),
        "rows": texts.estimate(here.row_estimate) if here else _("no such table here"),
        "rows_synced": texts.grouped(table.rows_synced),
        "last_change": texts.moment(table.last_change_at),
        "last_sync": texts.moment(table.last_sync_at),
        "verified": texts.verified(table),
        "privacy": ", ".join(map(str, table.privacy or ())),
        "error": table.reason,
        "marks": [{"message": mark.text, "hint": mark.hint} for mark in table.marks],
        "asks": [
            {
                "label": ask.label,
                "action": ask.action,
                "url": ask_url(request, ask, [table.table_name]),
            }
            for ask in fitting_asks(request, table)
        ],
    }


def _request(row: dict[str, Any], *, is_active: bool) -> dict[str, Any]:
    return {
        "action": row["action"],
        "tables": ", ".join(row["table_names"]),
        "place": row["place"],
        "state": row["state"],
        "progress": row["progress"],
        "is_stuck": not is_active and row["state"] in ("waiting", "running"),
        "by": row["requested_by"],
        "at": texts.moment(row["requested_at"]),
        "error": read_reason(row),
    }


def _charts(minutes: list[dict[str, Any]], periods: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [minute for minute in minutes if minute["lag_s"] is not None]
    return {
        "applied": {
            "time": [period["period_start"].timestamp() for period in periods],
            **{name: [period[name] for period in periods] for name in ("added", "updated", "deleted")},
        },
        "lag": {
            "time": [minute["minute"].timestamp() for minute in measured],
            "lag_s": [round(minute["lag_s"], 1) for minute in measured],
        },
    }


def _url(request: HttpRequest, page: str) -> str:
    return reverse(f"admin:syncdata_{page}", current_app=getattr(request, "current_app", None))
