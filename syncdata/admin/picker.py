"""Choosing tables for the whitelist from those that the database has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from syncdata.admin import texts
from syncdata.admin.connection import books_alias, books_connection, estimates
from syncdata.apply.postgres.catalog import local_tables
from syncdata.apply.whitelist import is_syncable
from syncdata.models import TableToSync

MOST_SHOWN = 500
# Whoever syncs these from production lets production decide who may log in here, and ends all sessions.
_APPS_OF_LOGINS = frozenset({"auth", "sessions", "admin", "contenttypes"})


def picker_view(model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest) -> HttpResponse:
    """Offer the tables (GET), or whitelist those that were chosen, all of them or none (POST)."""
    if not model_admin.has_add_permission(request):
        raise PermissionDenied
    chosen = request.POST.getlist("tables")
    typed = request.POST.get("table_name", "").strip()
    errors: list[str] = []
    if request.method == "POST":
        names = [*chosen, *([typed] if typed else [])]
        errors = _whitelist(model_admin, request, names)
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
    """Return the local tables that may be synced, are not yet, and have *search* in their name."""
    whitelist = set(TableToSync.objects.values_list("table_name", flat=True))
    logins = _tables_of_logins()
    offered = [
        {
            "full_name": full_name,
            "schema": table.name.schema,
            "name": table.name.name,
            "rows": texts.estimate(table.row_estimate),
            "has_key": table.has_key,
            "holds_logins": table.name.name in logins,
        }
        for table in local_tables(books_connection())
        if is_syncable(table.name)
        and (full_name := str(table.name)) not in whitelist
        and search.casefold() in f"{table.name.schema}.{table.name.name}".casefold()
    ]
    return sorted(offered, key=lambda table: bool(table["holds_logins"]))  # what few will want comes last


def _tables_of_logins() -> set[str]:
    models = apps.get_models(include_auto_created=True)
    return {
        model._meta.db_table
        for model in models
        if model is get_user_model() or model._meta.app_label in _APPS_OF_LOGINS
    }


def _whitelist(
    model_admin: admin.ModelAdmin[TableToSync], request: HttpRequest, names: Sequence[str]
) -> list[str]:
    """Whitelist the tables, or return what is wrong with the choice."""
    rows = [TableToSync(table_name=name, creator=request.user.get_username()) for name in names]
    errors: list[str] = [] if rows else [_("Choose at least one table, or type its name.")]
    with transaction.atomic(using=books_alias()):
        for row in rows:
            try:
                row.full_clean()
            except ValidationError as error:
                errors += [f"{row.table_name}: {message}" for message in error.messages]
            else:
                row.save()
        if errors:
            transaction.set_rollback(True, using=books_alias())
            return errors
    local = estimates(books_connection())
    for row in rows:
        model_admin.log_addition(request, row, [{"added": {}}])
        if row.table_name not in local:
            messages.warning(
                request,
                _("Table %(table)s does not exist locally yet: create it before it is synced.")
                % {"table": row.table_name},
            )
        elif not local[row.table_name].has_key:
            messages.warning(
                request,
                _("Table %(table)s has no key: its rows are matched on all their old values.")
                % {"table": row.table_name},
            )
    added = ", ".join(row.table_name for row in rows)
    messages.success(
        request,
        ngettext(
            "Added %(tables)s: its changes are applied from the next cycle on.",
            "Added %(tables)s: their changes are applied from the next cycle on.",
            len(rows),
        )
        % {"tables": added},
    )
    return []
