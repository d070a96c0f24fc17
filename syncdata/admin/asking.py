"""Requests to the daemon: the actions there are, the page that asks "really?", and the request it makes.

The page changes nothing; only its form's POST puts a request into the queue, which wakes the daemon. Both
check the permission of the action. The daemon carries the request out by itself, later; where none runs, the
page says so and shows the command to run instead.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods

from syncdata.admin import texts
from syncdata.admin.connection import tables_alias, tables_service
from syncdata.apply.state.status import TableInfo
from syncdata.models import TableToSync
from syncdata.tables import TablesService


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An action to ask for. ``fits``: tells the tables that it makes sense for from the others; ``refusal``
    says why not. ``is_each``: makes a request for each table, with its own progress and outcome, instead of
    one request for all or none of them."""

    action: str
    permission: str
    label: Any
    explanation: Any
    command: str
    fits: Callable[[TableInfo], bool]
    refusal: Any
    is_each: bool = False
    is_destructive: bool = False

    def is_allowed(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm(f"syncdata.{self.permission}"))


_ALWAYS: Callable[[TableInfo], bool] = lambda table: True  # noqa: E731
ASKS = {
    ask.action: ask
    for ask in (
        Ask(
            action="resync",
            permission="resync_table",
            label=gettext_lazy("Resync"),
            explanation=gettext_lazy(
                "The rows are rebuilt from the archive, beside the old ones, and exchanged in one"
                " transaction: readers never see an empty or half-built table. Rows that exist only locally"
                " are lost. A resync also frees a blocked or paused table."
            ),
            command="resync {tables}",
            fits=_ALWAYS,
            refusal="",
            is_each=True,
            is_destructive=True,
        ),
        Ask(
            action="pause",
            permission="pause_table",
            label=gettext_lazy("Pause"),
            explanation=gettext_lazy(
                "The table keeps its rows and its place; its changes wait in the archive until it is resumed."
                " The other tables go on."
            ),
            command="pause_tables {tables}",
            fits=lambda table: table.state != "paused",
            refusal=gettext_lazy("it is paused already"),
        ),
        Ask(
            action="resume",
            permission="pause_table",
            label=gettext_lazy("Resume"),
            explanation=gettext_lazy("The table goes on from its place and catches up with the others."),
            command="resume_tables {tables}",
            fits=lambda table: table.state == "paused",
            refusal=gettext_lazy("it is not paused"),
        ),
        Ask(
            action="retry",
            permission="retry_table",
            label=gettext_lazy("Retry"),
            explanation=gettext_lazy(
                "A cycle starts at once, instead of with the next interval. No row changes unless what"
                " blocks the table has been mended."
            ),
            command="syncdata_start --once",
            fits=lambda table: table.state == "blocked",
            refusal=gettext_lazy("it is not blocked; for a table in doubt, do what its page says"),
        ),
        Ask(
            action="skip",
            permission="skip_record",
            label=gettext_lazy("Skip the record"),
            explanation=gettext_lazy(
                "The one record that blocks the table is left out, and the audit log says who left it out."
                " From then on the table differs from production, and a resync meets the record again."
                " A line that cannot be read is skipped for all tables that it blocks. If you can, mend the"
                " cause or the file instead."
            ),
            command="skip_record {tables} {place}",
            fits=lambda table: table.state == "blocked" and bool(table.blocking_place),
            refusal=gettext_lazy("it is not blocked at a record"),
            is_destructive=True,
        ),
        Ask(
            action="clear",
            permission="clear_table",
            label=gettext_lazy("Clear"),
            explanation=gettext_lazy(
                "All rows are removed and the table's place is forgotten; the next cycle syncs it again, from"
                " its newest snapshot, else from the start of the archive. Readers see an empty table until"
                " then. Rows that are older than the archive, or exist only locally, are lost."
            ),
            command="clear {tables}",
            fits=_ALWAYS,
            refusal="",
            is_destructive=True,
        ),
    )
}


def fitting_asks(request: HttpRequest, table: TableInfo) -> list[Ask]:
    """Return the actions that the user may ask for and that make sense for *table*."""
    return [ask for ask in ASKS.values() if ask.is_allowed(request) and ask.fits(table)]


def ask_url(request: HttpRequest, ask: Ask, names: Sequence[str]) -> str:
    url = reverse(
        "admin:syncdata_tabletosync_ask", args=[ask.action], current_app=getattr(request, "current_app", None)
    )
    return f"{url}?{urlencode([('table', name) for name in names])}"


@require_http_methods(["GET", "HEAD", "POST"])
def ask_view(request: HttpRequest, model_admin: admin.ModelAdmin[TableToSync], action: str) -> HttpResponse:
    """Show the page that asks "really?" (GET), or put the request into the queue (POST)."""
    ask = ASKS.get(action)
    if ask is None:
        raise Http404
    if not ask.is_allowed(request):
        raise PermissionDenied
    names = (request.POST if request.method == "POST" else request.GET).getlist("table")
    service = tables_service()
    chosen = [table for table in service.list_tables() if table.table_name in names]
    if not chosen or (ask.action == "skip" and len(chosen) > 1):
        raise Http404
    fitting = [table for table in chosen if ask.fits(table)]
    is_active = service.is_active()
    if request.method == "POST" and fitting and is_active:
        _submit(model_admin, request, ask, fitting, place=request.POST.get("place", ""))
        return HttpResponseRedirect(_next_url(model_admin, request))
    return TemplateResponse(
        request,
        "admin/syncdata/tabletosync/ask.html",
        {
            **model_admin.admin_site.each_context(request),
            **_context(service, ask, fitting),
            "title": _title(ask, fitting or chosen),
            "opts": model_admin.opts,
            "unfitting": [table for table in chosen if not ask.fits(table)],
            "is_active": is_active,
            "media": model_admin.media,
        },
    )


def _submit(
    model_admin: admin.ModelAdmin[TableToSync],
    request: HttpRequest,
    ask: Ask,
    tables: Sequence[TableInfo],
    *,
    place: str,
) -> None:
    names = [table.table_name for table in tables]
    user = request.user.get_username()
    with transaction.atomic(using=tables_alias()):
        service = tables_service()
        for group in [[name] for name in names] if ask.is_each else [names]:
            service.submit_request(ask.action, group, place=place, requested_by=user)
    said = _("Asked the daemon to %(action)s.") % {"action": f"{ask.action} {place}".strip()}
    for row in TableToSync.objects.filter(table_name__in=names):
        model_admin.log_change(request, row, said)
    messages.success(
        request,
        _("Asked the daemon: %(action)s %(tables)s. It takes that up within a second; see below how it goes.")
        % {"action": ask.label, "tables": ", ".join(names)},
    )


def _next_url(model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest) -> str:
    may_watch = request.user.has_perm("syncdata.view_dashboard")
    page = "dashboard" if may_watch else "tabletosync"
    if not may_watch and not model_admin.has_view_permission(request):
        return reverse("admin:index", current_app=model_admin.admin_site.name)
    return reverse(f"admin:syncdata_{page}_changelist", current_app=model_admin.admin_site.name)


def _title(ask: Ask, tables: Sequence[TableInfo]) -> str:
    if len(tables) == 1:
        return _("%(action)s: %(table)s?") % {"action": ask.label, "table": tables[0].table_name}
    count = ngettext("%(count)d table", "%(count)d tables", len(tables)) % {"count": len(tables)}
    return _("%(action)s: %(count)s?") % {"action": ask.label, "count": count}


def _context(service: TablesService, ask: Ask, tables: Sequence[TableInfo]) -> dict[str, Any]:
    local = {str(table.name): table for table in service.local_tables()}
    place = tables[0].blocking_place if ask.action == "skip" and tables else ""
    rows = [
        {
            "name": table.table_name,
            "state": table.state,
            "rows": texts.estimate(local[table.table_name].row_estimate)
            if table.table_name in local
            else _("no such table here"),
            "error": table.reason,
        }
        for table in tables
    ]
    counts = (local[table.table_name].row_estimate for table in tables if table.table_name in local)
    known = [count for count in counts if count is not None]
    arguments = " ".join(shlex.quote(table.table_name) for table in tables)
    command = ask.command.format(tables=arguments, place=shlex.quote(place))
    return {
        "ask": ask,
        "rows": rows,
        "total": texts.estimate(sum(known) if known else None),
        "place": place,
        "command": f"python manage.py {command}",
    }
