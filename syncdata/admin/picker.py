"""The picker: a page to choose tables of the local database for the whitelist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
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
# If these are synced, production's users can log in here, and users who are logged in here are logged out.
_APPS_OF_LOGINS = frozenset({"auth", "sessions", "admin", "contenttypes"})
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
}


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
            "left_out": max(len(offered) - MOST_SHOWN, 0),
        },
    )


def _offered(search: str) -> list[dict[str, Any]]:
    """Return the local tables that may be synced, are not whitelisted, and have *search* in their name.

    Tables of logins come last: few people want them.
    """
    service, logins = tables_service(), _tables_of_logins()
    whitelist = {table.table_name for table in service.list_tables()}
    offered = [
        {
            "full_name": full_name,
            "schema": table.name.schema,
            "name": table.name.name,
            "rows": texts.estimate(table.row_estimate),
            "has_key": table.has_key,
            "holds_logins": table.name.name in logins,
        }
        for table in service.local_tables()
        if is_syncable(table.name)
        and (full_name := str(table.name)) not in whitelist
        and search.casefold() in f"{table.name.schema}.{table.name.name}".casefold()
    ]
    return sorted(offered, key=lambda table: bool(table["holds_logins"]))


def _tables_of_logins() -> set[str]:
    models = apps.get_models(include_auto_created=True)
    return {
        model._meta.db_table
        for model in models
        if model is get_user_model() or model._meta.app_label in _APPS_OF_LOGINS
    }


def _add(model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest, names: Sequence[str]) -> list[str]:
    """Whitelist the tables, all of them or none; return the problems with the choice."""
    service = tables_service()
    errors = [] if names else [_("Choose at least one table, or type its name.")]
    errors += [f"{name}: {refusal}" for name in names if (refusal := _refusal(service, name))]
    if errors:
        return errors
    with transaction.atomic(using=tables_alias()):
        added = service.add_tables(names, creator=request.user.get_username())
        if known := [name for name in service.find_tables(names) if name not in added]:
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


def _refusal(service: TablesService, name: str) -> str:
    """Return why the table cannot be whitelisted; empty when it can be."""
    try:
        service.find_tables([name])
    except WhitelistAddError as error:
        return str(error)
    return ""
