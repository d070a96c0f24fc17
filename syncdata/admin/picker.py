"""The picker: a page to choose tables of the local database for the whitelist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from syncdata.admin import texts
from syncdata.admin.connection import tables_alias, tables_service
from syncdata.apply.whitelist import is_syncable
from syncdata.errors import WhitelistAddError
from syncdata.models import TableToSync
from syncdata.tables import TablesService

MOST_SHOWN = 500
_WARNINGS = {
    "absent": gettext_lazy("Table %(table)s does not exist locally yet: create it before it is synced."),
    "keyless": gettext_lazy("Table %(table)s has no key: its rows are matched on all their old values."),
    "unlogged": gettext_lazy(
        "Table %(table)s is UNLOGGED, at least in part: a crash empties it, so it counts as suspect."
    ),
    "partition": gettext_lazy("Table %(table)s is a partition: add the whole table instead."),
    "content-types": gettext_lazy(
        "Table %(table)s holds numbers of content types or permissions, which mean others here than at"
        " production."
    ),
    "logins": gettext_lazy(
        "Table %(table)s decides who may log in here, or what they may do: who writes the archive could make"
        " superusers."
    ),
}


def _may_add_logins(request: HttpRequest) -> bool:
    """Tell whether the user has all rights anyway, so that no more could come of it."""
    return bool(request.user.is_active and getattr(request.user, "is_superuser", False))


def picker_view(model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest) -> HttpResponse:
    """Show the tables (GET), or whitelist those that were chosen, all of them or none (POST)."""
    if not model_admin.has_add_permission(request):
        raise PermissionDenied
    chosen = request.POST.getlist("tables")
    typed = request.POST.get("table_name", "").strip()
    errors: list[str] = []
    if request.method == "POST":
        names = [*chosen, *([typed] if typed else [])]
        errors = _add(model_admin, request, names)
        if not errors:
            url = reverse("admin:syncdata_tabletosync_changelist", current_app=model_admin.admin_site.name)
            return HttpResponseRedirect(url)
    search = request.GET.get("q", "").strip()
    offered = _offered(search)
    return TemplateResponse(
        request,
        "admin/syncdata/tabletosync/picker.html",
        {
            **model_admin.admin_site.each_context(request),
            "title": _("Add tables to sync"),
            "opts": model_admin.opts,
            "media": model_admin.media,
            "errors": errors,
            "chosen": chosen,
            "typed": typed,
            "search": search,
            "tables": offered[:MOST_SHOWN],
            "may_add_logins": _may_add_logins(request),
            "left_out": max(len(offered) - MOST_SHOWN, 0),
        },
    )


def _offered(search: str) -> list[dict[str, Any]]:
    """Return the local tables that may be synced, are not whitelisted, and have *search* in their name.

    Tables of logins come last: few people want them.
    """
    service = tables_service()
    whitelist = {table.table_name for table in service.list_tables()}
    tables = [
        table
        for table in service.local_tables()
        if is_syncable(table.name)
        and str(table.name) not in whitelist
        and search.casefold() in f"{table.name.schema}.{table.name.name}".casefold()
    ]
    logins = service.find_logins([table.name for table in tables])
    offered = [
        {
            "full_name": str(table.name),
            "schema": table.name.schema,
            "name": table.name.name,
            "rows": texts.estimate(table.row_estimate),
            "has_key": table.has_key,
            "holds_logins": table.name in logins,
        }
        for table in tables
    ]
    return sorted(offered, key=lambda table: bool(table["holds_logins"]))


def _add(model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest, names: Sequence[str]) -> list[str]:
    """Whitelist the tables, all of them or none; return the problems with the choice."""
    service, force = tables_service(), _may_add_logins(request)
    errors = [] if names else [_("Choose at least one table, or type its name.")]
    errors += [f"{name}: {refusal}" for name in names if (refusal := _refusal(service, name, force=force))]
    if errors:
        return errors
    with transaction.atomic(using=tables_alias()):
        added = service.add_tables(names, creator=request.user.get_username(), force=force)
        if known := [name for name in service.find_tables(names, force=force) if name not in added]:
            transaction.set_rollback(True, using=tables_alias())
            return [f"{name}: {_('This table is in the whitelist already.')}" for name in known]
    for row in TableToSync.objects.filter(table_name__in=added):
        model_admin.log_addition(request, row, [{"added": {}}])
    for unusual in service.find_unusual(added):
        messages.warning(request, _WARNINGS[unusual.kind] % {"table": unusual.table})
    text = ngettext(
        "Added %(tables)s: its changes are applied from the next cycle on.",
        "Added %(tables)s: their changes are applied from the next cycle on.",
        len(added),
    )
    messages.success(request, text % {"tables": ", ".join(added)})
    return []


def _refusal(service: TablesService, name: str, *, force: bool) -> str:
    """Return why the table cannot be whitelisted; empty when it can be."""
    try:
        service.find_tables([name], force=force)
    except WhitelistAddError as error:
        return str(error)
    return ""
