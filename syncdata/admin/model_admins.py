"""The admin pages: the dashboard, the whitelist with its requests, and syncdata's other tables to read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.defaultfilters import truncatechars
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from rangefilter.filters import DateTimeRangeFilterBuilder

from syncdata.admin import texts
from syncdata.admin.asking import ASKS, Ask, ask_url, ask_view, fitting_asks
from syncdata.admin.connection import books_connection
from syncdata.admin.dashboard import read_dashboard
from syncdata.admin.lists import PlainlyTitledAdmin, ReadOnlyAdmin, TableFilter, columns
from syncdata.admin.picker import picker_view
from syncdata.admin.zones import in_users_time_zone
from syncdata.apply.state.queries import read_tables
from syncdata.apply.state.status import lag_s
from syncdata.models import Checkpoint, Dashboard, SyncLog, SyncMetric, SyncRequest, SyncRun, TableToSync


@admin.register(Dashboard)
class DashboardAdmin(ReadOnlyAdmin):
    """One page, which asks for news of itself every few seconds."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name="syncdata_dashboard_changelist"),
            path("data/", view(self.data_view), name="syncdata_dashboard_data"),
        ]

    @in_users_time_zone
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        self._require_view_permission(request)
        return TemplateResponse(
            request,
            "admin/syncdata/dashboard.html",
            {
                **self.admin_site.each_context(request),
                **read_dashboard(request, now=dt.datetime.now(dt.UTC)),
                "title": _("Dashboard"),
                "opts": self.opts,
                "media": self.media,
                **(extra_context or {}),
            },
        )

    @in_users_time_zone
    def data_view(self, request: HttpRequest) -> HttpResponse:
        self._require_view_permission(request)
        return JsonResponse(read_dashboard(request, now=dt.datetime.now(dt.UTC)))

    def _require_view_permission(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied
        request.current_app = self.admin_site.name


def _asking(ask: Ask) -> Callable[..., HttpResponse]:
    """Return the action that leads from chosen rows to the page that asks back."""

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
    """The whitelist. To remove a row leaves the table's data, and its checkpoint, where they are."""

    change_list_template = "admin/syncdata/tabletosync/change_list.html"
    change_form_template = "admin/syncdata/tabletosync/change_form.html"
    list_display = (
        "table_name",
        "state",
        "lag",
        "checkpoint",
        "rows_synced",
        "last_sync",
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
        name = TableToSync.objects.filter(pk=object_id).first() if object_id.isdecimal() else None
        tables = [
            table for table in read_tables(books_connection()) if name and table.table_name == str(name)
        ]
        asks = [(ask, ask_url(request, ask, [str(name)])) for t in tables for ask in fitting_asks(request, t)]
        return super().changeform_view(request, object_id, form_url, {"asks": asks, **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[TableToSync]:
        """The columns of the checkpoint are there to sort by; pages show the service's view of a table."""
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
            "error",
            "more",
            "creator",
            "added",
        )

    get_readonly_fields = get_fields

    # Permissions

    def has_change_permission(self, request: HttpRequest, obj: TableToSync | None = None) -> bool:
        """A renamed row would keep nothing of what it was: remove it, and add the other name."""
        return False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out what the user may not ask for."""
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

    @admin.display(description=gettext_lazy("added at"), ordering="created_at")
    def added(self, table: TableToSync) -> str:
        return texts.moment(table.created_at)

    @admin.display(description=gettext_lazy("error"))
    def error(self, table: Any) -> str:
        reason = table.info.reason
        return render_to_string("syncdata/error.html", {"error": reason}) if reason else texts.NOTHING

    @admin.display(description=gettext_lazy("error"))
    def error_summary(self, table: Any) -> str:
        return truncatechars(table.info.error or "", 80)

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
    tables = read_tables(books_connection())
    infos = {table.table_name: table for table in tables}
    farthest = max((table.checkpoint for table in tables), default="")
    for row in rows:
        row.info, row.farthest = infos[row.table_name], farthest


def _of_checkpoint(field: str) -> models.Subquery:
    checkpoint = Checkpoint.objects.filter(table_name=models.OuterRef("table_name"))
    return models.Subquery(checkpoint.values(field))


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = columns(
        Checkpoint,
        "table_name",
        "state",
        "file",
        "record_number",
        "commit_lsn",
        "last_change_at",
        "last_sync_at",
        "rows_synced",
        sortable=("table_name", "state", "last_change_at", "last_sync_at", "rows_synced"),
    )
    list_filter = ("state",)
    search_fields = ("table_name", "error")
    ordering = ("table_name",)
    empty_hint = gettext_lazy("Tables get their checkpoints in the first cycle after they are added.")


@admin.register(SyncLog)
class SyncLogAdmin(ReadOnlyAdmin):
    list_display = columns(
        SyncLog,
        "sync_time",
        "table_name",
        "action",
        "status",
        "rows_synced",
        "changes",
        "archive_ref",
        "duration_ms",
        "error_summary",
        sortable=("sync_time",),
    )
    list_display_links = list_display[:2]
    list_filter = (
        ("sync_time", DateTimeRangeFilterBuilder(title=gettext_lazy("time"))),
        "status",
        "action",
        TableFilter,
    )
    search_fields = ("table_name", "archive_ref", "error_detail")
    search_hint = gettext_lazy("A table, the beginning of a file's name, or any part of an error")
    ordering = ("-sync_time", "-id")
    totals = ("rows_synced", "records_added", "records_updated", "records_deleted", "records_truncated")
    empty_hint = gettext_lazy("Each file that changes a table makes an entry here.")

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[SyncLog], search_term: str
    ) -> tuple[models.QuerySet[SyncLog], bool]:
        """Search what has an index: a table's name, how a file's begins, and the rows with an error."""
        term = search_term.strip()
        if not term:
            return queryset, False
        matches = (
            models.Q(table_name=term)
            | models.Q(archive_ref__startswith=term)
            | models.Q(error_detail__isnull=False, error_detail__icontains=term)
        )
        return queryset.filter(matches), False

    @admin.display(description=gettext_lazy("added / updated / deleted"))
    def changes(self, entry: SyncLog) -> str:
        counts = (entry.records_added, entry.records_updated, entry.records_deleted)
        return " / ".join(map(texts.grouped, counts))

    @admin.display(description=gettext_lazy("error"))
    def error_summary(self, entry: SyncLog) -> str:
        return truncatechars(entry.error_detail or "", 80)


@admin.register(SyncMetric)
class SyncMetricAdmin(ReadOnlyAdmin):
    list_display = columns(
        SyncMetric,
        "period_start",
        "period_end",
        "period_type",
        "table_name",
        "records_added",
        "records_updated",
        "records_deleted",
        sortable=("period_start",),
    )
    list_filter = (
        ("period_start", DateTimeRangeFilterBuilder(title=gettext_lazy("start of period"))),
        "period_type",
        TableFilter,
    )
    ordering = ("-period_start", "-id")
    totals = ("records_added", "records_updated", "records_deleted")
    empty_hint = gettext_lazy("Records are counted here as they are applied, by day, week and month.")


@admin.register(SyncRun)
class SyncRunAdmin(ReadOnlyAdmin):
    list_display = columns(
        SyncRun,
        "started_at",
        "stopped_at",
        "host",
        "process_id",
        "sync_frequency",
        "last_sync_at",
        "records_synced",
        "errors",
    )
    ordering = ("-id",)
    empty_hint = gettext_lazy("Start the daemon: python manage.py syncdata_start")

    @admin.display(description=gettext_lazy("process id"))
    def process_id(self, run: SyncRun) -> str:
        """A name, not a quantity: its digits are not grouped."""
        return str(run.pid)


@admin.register(SyncRequest)
class SyncRequestAdmin(ReadOnlyAdmin):
    list_display = columns(
        SyncRequest,
        "requested_at",
        "action",
        "tables",
        "place",
        "requested_by",
        "state",
        "progress",
        "finished_at",
    )
    list_filter = ("state", "action")
    ordering = ("-id",)
    empty_hint = gettext_lazy(
        "What is asked of the daemon on the pages of the tables to sync is listed here."
    )

    @admin.display(description=gettext_lazy("tables"))
    def tables(self, row: SyncRequest) -> str:
        return ", ".join(row.table_names)
