"""The admin of the whitelist: its list and pages, which lead to the picker and to requests to the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import truncatechars
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from syncdata.admin import texts
from syncdata.admin.asking import ASKS, Ask, ask_url, ask_view, fitting_asks
from syncdata.admin.connection import tables_service
from syncdata.admin.lists import PlainlyTitledAdmin
from syncdata.admin.picker import picker_view
from syncdata.admin.zones import in_users_time_zone
from syncdata.apply.state.status import TableInfo, lag_s
from syncdata.models import Checkpoint, TableToSync


def _asking(ask: Ask) -> Callable[..., HttpResponse]:
    """Return the action that leads from chosen rows to the page that asks "really?"."""

    @admin.action(description=ask.label)
    def lead_on(
        model_admin: admin.ModelAdmin[TableToSync],
        request: HttpRequest,
        queryset: models.QuerySet[TableToSync],
    ) -> HttpResponse:
        names = list(queryset.order_by("table_name").values_list("table_name", flat=True))
        return HttpResponseRedirect(ask_url(request, ask, names))

    lead_on.__name__ = _action_name(ask)
    return lead_on


def _action_name(ask: Ask) -> str:
    return f"ask_to_{ask.action}"


@admin.register(TableToSync)
class TableToSyncAdmin(PlainlyTitledAdmin):
    """The whitelist. Removing a row leaves the table's rows and its checkpoint as they are."""

    change_list_template = "admin/syncdata/tabletosync/change_list.html"
    change_form_template = "admin/syncdata/tabletosync/change_form.html"
    list_display = (
        "table_name",
        "state",
        "lag",
        "checkpoint",
        "rows_synced",
        "last_sync",
        "verified",
        "error_summary",
        "creator",
        "added",
    )
    search_fields = ("table_name",)
    ordering = ("table_name",)
    actions = [_asking(ask) for ask in ASKS.values() if ask.action != "skip"]  # one record, so one table

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.ask_view)
        return [path("ask/<str:action>/", view, name="syncdata_tabletosync_ask"), *super().get_urls()]

    # The pages

    @in_users_time_zone
    def ask_view(self, request: HttpRequest, action: str) -> HttpResponse:
        request.current_app = self.admin_site.name
        return ask_view(request, self, action)

    @in_users_time_zone
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        request.current_app = self.admin_site.name
        if object_id is None:
            return picker_view(self, request)
        row = super().get_object(request, object_id)
        name = row and row.table_name
        tables = [table for table in tables_service().list_tables() if table.table_name == str(name)]
        asks = [(ask, ask_url(request, ask, [str(name)])) for t in tables for ask in fitting_asks(request, t)]
        return super().changeform_view(request, object_id, form_url, {"asks": asks, **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[TableToSync]:
        """Add the checkpoint's columns, to sort by; the pages show the service's view of a table."""
        sortable = ("state", "file", "rows_synced", "last_sync_at", "last_change_at")
        return (
            super()
            .get_queryset(request)
            .annotate(**{f"checkpoint_{name}": _of_checkpoint(name) for name in sortable})
        )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _WhitelistPage

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> TableToSync | None:
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            _add_infos(request, [row])
        return row

    def get_fields(self, request: HttpRequest, obj: TableToSync | None = None) -> tuple[str, ...]:
        return (
            "state",
            "lag",
            "checkpoint",
            "rows_synced",
            "last_change",
            "last_sync",
            "verified",
            "error",
            "more",
            "creator",
            "added",
        )

    get_readonly_fields = get_fields

    # Permissions

    def has_change_permission(self, request: HttpRequest, obj: TableToSync | None = None) -> bool:
        """Return False: a renamed row would leave its checkpoint behind. Remove it, add the other name."""
        return False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out the actions that the user may not ask for."""
        allowed = {_action_name(ask): ask.is_allowed(request) for ask in ASKS.values()}
        return {
            name: action for name, action in super().get_actions(request).items() if allowed.get(name, True)
        }

    # The columns

    @admin.display(description=gettext_lazy("state"), ordering="checkpoint_state")
    def state(self, table: Any) -> str:
        return render_to_string("syncdata/state.html", {"state": table.info.state})

    @admin.display(description=gettext_lazy("lag"))
    def lag(self, table: Any) -> str:
        return texts.lag(lag_s(table.info.checkpoint, table.farthest))

    @admin.display(description=gettext_lazy("checkpoint"), ordering="checkpoint_file")
    def checkpoint(self, table: Any) -> str | None:
        return table.info.checkpoint or None

    @admin.display(description=gettext_lazy("rows synced"), ordering="checkpoint_rows_synced")
    def rows_synced(self, table: Any) -> str:
        return texts.grouped(table.info.rows_synced)

    @admin.display(description=gettext_lazy("newest change"), ordering="checkpoint_last_change_at")
    def last_change(self, table: Any) -> str:
        return texts.moment(table.info.last_change_at)

    @admin.display(description=gettext_lazy("last sync"), ordering="checkpoint_last_sync_at")
    def last_sync(self, table: Any) -> str:
        return texts.moment(table.info.last_sync_at)

    @admin.display(description=gettext_lazy("verified"))
    def verified(self, table: Any) -> str:
        return texts.verified(table.info)

    @admin.display(description=gettext_lazy("added at"), ordering="created_at")
    def added(self, table: TableToSync) -> str:
        return texts.moment(table.created_at)

    @admin.display(description=gettext_lazy("error"))
    def error(self, table: Any) -> str:
        shown = [{"message": mark.text, "hint": mark.hint} for mark in table.info.marks]
        shown += [table.info.reason] if table.info.reason else []
        parts = [render_to_string("syncdata/error.html", {"error": each}) for each in shown]
        return format_html_join("", "{}", [[part] for part in parts]) or texts.NOTHING

    @admin.display(description=gettext_lazy("error"))
    def error_summary(self, table: Any) -> str:
        marks = "; ".join(mark.text for mark in table.info.marks)
        return truncatechars(table.info.error or marks, 80)

    @admin.display(description=gettext_lazy("more of it"))
    def more(self, table: TableToSync) -> str:
        query = urlencode({"table": table.table_name})
        pages = (("synclog", _("its log")), ("syncmetric", _("its metrics")))
        return format_html_join(
            " · ",
            '<a href="{}?{}">{}</a>',
            [
                (reverse(f"admin:syncdata_{page}_changelist", current_app=self.admin_site.name), query, label)
                for page, label in pages
            ],
        )


class _WhitelistPage(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        _add_infos(request, self.result_list)


def _add_infos(request: HttpRequest, rows: Iterable[Any]) -> None:
    """Give each of *rows* its ``info``, the service's view of it, and the ``farthest`` checkpoint of all."""
    tables = tables_service().list_tables()
    infos = {table.table_name: table for table in tables}
    farthest = max((table.checkpoint for table in tables), default="")
    for row in rows:
        row.info, row.farthest = infos.get(row.table_name) or _new_table(row), farthest


def _new_table(row: TableToSync) -> TableInfo:
    """Return the view of a *row* that somebody has removed from the whitelist just now."""
    return TableInfo(table_name=row.table_name, creator=row.creator, created_at=row.created_at, state="new")


def _of_checkpoint(field: str) -> models.Subquery:
    checkpoint = Checkpoint.objects.filter(table_name=models.OuterRef("table_name"))
    return models.Subquery(checkpoint.values(field))
