"""The admin of syncdata's own tables: the dashboard, and lists to read. The whitelist has its own module."""

from __future__ import annotations

import datetime as dt
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.defaultfilters import truncatechars
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from rangefilter.filters import DateTimeRangeFilterBuilder

from syncdata.admin import texts
from syncdata.admin.connection import tables_service
from syncdata.admin.dashboard import read_dashboard
from syncdata.admin.lists import ReadOnlyAdmin, TableFilter, columns
from syncdata.admin.zones import in_users_time_zone
from syncdata.apply.state.status import STATES, TableInfo
from syncdata.models import (
    Checkpoint,
    Dashboard,
    SyncLog,
    SyncMetric,
    SyncRequest,
    SyncRun,
    SyncVerification,
)


@admin.register(Dashboard)
class DashboardAdmin(ReadOnlyAdmin):
    """One page, which asks every few seconds for its newest sections."""

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


class StateFilter(admin.SimpleListFilter):
    """Offers the states as the service knows them: the column does not say which tables are in doubt."""

    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [(state, state) for state in STATES]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        if self.value() is None:
            return queryset
        tables = [name for name, state in _states().items() if state == self.value()]
        return queryset.filter(table_name__in=tables)


def _tables() -> dict[str, TableInfo]:
    """Return each whitelisted table, as every other page shows it."""
    return {table.table_name: table for table in tables_service().list_tables()}


def _states() -> dict[str, str]:
    return {name: table.state for name, table in _tables().items()}


class _CheckpointPage(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        states = _states()
        for row in self.result_list:
            row.shown_state = states.get(row.table_name)


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = columns(
        Checkpoint,
        "table_name",
        "shown_state",
        "file",
        "record_number",
        "commit_lsn",
        "last_change_at",
        "last_sync_at",
        "rows_synced",
        sortable=("table_name", "last_change_at", "last_sync_at", "rows_synced"),
    )
    list_filter = (StateFilter,)
    search_fields = ("table_name", "error")
    ordering = ("table_name",)
    empty_hint = gettext_lazy("Tables get their checkpoints in the first cycle after they are added.")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _CheckpointPage

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Checkpoint | None:
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            table = _tables().get(row.table_name)
            row.shown_state = table and table.state
            row.shown_privacy = (table and table.privacy) or ()
        return row

    def get_fields(self, request: HttpRequest, obj: Checkpoint | None = None) -> Any:
        names = (
            "shown_state" if field.name == "state" else field.name for field in self.opts.concrete_fields
        )
        return (*columns(Checkpoint, *names), "masked_or_withheld")

    get_readonly_fields = get_fields

    @admin.display(description=gettext_lazy("state"), ordering="state")
    def shown_state(self, checkpoint: Any) -> str:
        """Return the state; a table that is not whitelisted has none, for nothing keeps it in step."""
        if checkpoint.shown_state is None:
            return texts.NOTHING
        return render_to_string("syncdata/state.html", {"state": checkpoint.shown_state})

    @admin.display(description=gettext_lazy("masked or withheld"))
    def masked_or_withheld(self, checkpoint: Any) -> str:
        return ", ".join(map(str, checkpoint.shown_privacy)) or texts.NOTHING


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
        """Search by index: a table's name, the beginning of a file's name, and rows with an error."""
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
        """Return the pid without grouping its digits: it is a name, not a quantity."""
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


class ResultFilter(admin.SimpleListFilter):
    """Offers what may come of a check, in the words of the list."""

    title = gettext_lazy("result")
    parameter_name = "result"
    results: ClassVar[dict[bool | None, Any]] = {
        True: gettext_lazy("equal"),
        False: gettext_lazy("differs"),
        None: gettext_lazy("not compared"),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(str(is_equal), word) for is_equal, word in self.results.items()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        chosen = [is_equal for is_equal in self.results if str(is_equal) == self.value()]
        return queryset.filter(is_equal=chosen[0]) if chosen else queryset


@admin.register(SyncVerification)
class SyncVerificationAdmin(ReadOnlyAdmin):
    """The checks of the newest rounds. They name rows by the bounds of their keys."""

    list_display = columns(
        SyncVerification,
        "verified_at",
        "table_name",
        "bounds",
        "result",
        "rows",
        "rows_here",
        "reason",
        "position",
    )
    list_filter = (ResultFilter, TableFilter)
    ordering = ("-id",)
    empty_hint = gettext_lazy("Rows are verified where the archiver has put checks into the change files.")

    @admin.display(description=gettext_lazy("result"))
    def result(self, check: SyncVerification) -> str:
        return str(ResultFilter.results[check.is_equal])
