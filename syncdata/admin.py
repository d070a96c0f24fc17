"""The admin pages. The whitelist can be added to and removed from; all the rest is for reading.

Log and metrics grow to millions of rows, so no page counts or scans a whole table unasked.
"""

from __future__ import annotations

import json
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminTextInputWidget
from django.core.paginator import Paginator
from django.db import connections, models, router
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import truncatechars
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.timezone import is_aware, localtime
from rangefilter.filters import DateTimeRangeFilterBuilder

from syncdata.engine.catalog import read_schemas
from syncdata.engine.changes import TableName
from syncdata.models import Checkpoint, SyncLog, SyncMetric, SyncRun, TableToSync


class EstimatingPaginator(Paginator):
    """Counts up to ``exact_limit`` rows; beyond it the planner's estimate has to do."""

    exact_limit = 10_000

    @cached_property
    def count(self) -> int:
        rows = cast(models.QuerySet[Any], self.object_list).order_by()
        counted = rows[: self.exact_limit + 1].count()
        if counted <= self.exact_limit:
            return counted
        (explained,) = json.loads(rows.explain(format="json"))
        return max(counted, explained["Plan"]["Plan Rows"])


class TableFilter(admin.SimpleListFilter):
    """Offers the tables that are, or once were, whitelisted: to ask the log itself would scan it."""

    title = "table"
    parameter_name = "table"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        whitelist = TableToSync.objects.values_list("table_name", flat=True)
        checkpoints = Checkpoint.objects.values_list("table_name", flat=True)
        return [(name, name) for name in sorted({*whitelist, *checkpoints})]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(table_name=self.value())


class PlainlyTitledAdmin(admin.ModelAdmin):
    """Lists titled by what they hold, since there is nothing to "select to view"."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})


class ReadOnlyAdmin(PlainlyTitledAdmin):
    """Rows that only the engine writes: nobody, a superuser included, adds, changes or deletes them."""

    paginator = EstimatingPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _of_checkpoint(field: str) -> models.Subquery:
    checkpoint = Checkpoint.objects.filter(table_name=models.OuterRef("table_name"))
    return models.Subquery(checkpoint.values(field))


@admin.register(TableToSync)
class TableToSyncAdmin(PlainlyTitledAdmin):
    """The whitelist. To remove a row leaves the table's data, and its checkpoint, where they are."""

    list_display = (
        "table_name",
        "state",
        "checkpoint",
        "rows_synced",
        "last_sync",
        "error_summary",
        "creator",
        "created_at",
    )
    search_fields = ("table_name",)
    ordering = ("table_name",)
    formfield_overrides = {models.TextField: {"widget": AdminTextInputWidget}}

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[TableToSync]:
        fields = ("state", "file", "record_number", "rows_synced", "last_sync_at", "error")
        return (
            super()
            .get_queryset(request)
            .annotate(**{f"checkpoint_{name}": _of_checkpoint(name) for name in fields})
        )

    def get_fields(self, request: HttpRequest, obj: TableToSync | None = None) -> tuple[str, ...]:
        if obj is None:
            return ("table_name",)
        return (
            "table_name",
            "creator",
            "created_at",
            "state",
            "checkpoint",
            "rows_synced",
            "last_sync",
            "error",
        )

    def has_change_permission(self, request: HttpRequest, obj: TableToSync | None = None) -> bool:
        """A renamed row would keep nothing of what it was: remove it, and add the other name."""
        return False

    def save_model(
        self, request: HttpRequest, obj: TableToSync, form: ModelForm[TableToSync], change: bool
    ) -> None:
        obj.creator = request.user.get_username()
        super().save_model(request, obj, form, change)
        connection = connections[router.db_for_write(TableToSync)].connection
        if not read_schemas(connection, [TableName.parse(obj.table_name)]):
            message = f"Table {obj} does not exist locally yet: create it before it is synced."
            self.message_user(request, message, messages.WARNING)

    @admin.display(ordering="checkpoint_state")
    def state(self, table: Any) -> str:
        is_new = not table.checkpoint_file and table.checkpoint_state != Checkpoint.State.BLOCKED
        return "new" if is_new else table.checkpoint_state

    @admin.display(ordering="checkpoint_file")
    def checkpoint(self, table: Any) -> str | None:
        if not table.checkpoint_file:
            return None
        return f"{table.checkpoint_file}:{table.checkpoint_record_number}"

    @admin.display(ordering="checkpoint_rows_synced")
    def rows_synced(self, table: Any) -> int | None:
        return table.checkpoint_rows_synced

    @admin.display(ordering="checkpoint_last_sync_at")
    def last_sync(self, table: Any) -> str:
        moment = table.checkpoint_last_sync_at
        if moment is None:
            return "-"
        # With USE_TZ = False it is local already.
        return date_format(localtime(moment) if is_aware(moment) else moment, "DATETIME_FORMAT")

    @admin.display()
    def error(self, table: Any) -> str:
        return table.checkpoint_error or "-"

    @admin.display(description="error")
    def error_summary(self, table: Any) -> str:
        return truncatechars(table.checkpoint_error or "", 80)


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = (
        "table_name",
        "state",
        "file",
        "record_number",
        "commit_lsn",
        "last_change_at",
        "last_sync_at",
        "rows_synced",
    )
    list_filter = ("state",)
    search_fields = ("table_name", "error")
    ordering = ("table_name",)


@admin.register(SyncLog)
class SyncLogAdmin(ReadOnlyAdmin):
    list_display = (
        "sync_time",
        "table_name",
        "action",
        "status",
        "rows_synced",
        "changes",
        "archive_ref",
        "duration_ms",
        "error_summary",
    )
    list_display_links = ("sync_time", "table_name")
    list_filter = (("sync_time", DateTimeRangeFilterBuilder(title="time")), "status", "action", TableFilter)
    search_fields = ("error_detail", "table_name", "archive_ref")
    ordering = ("-sync_time", "-id")

    @admin.display(description="added / updated / deleted")
    def changes(self, entry: SyncLog) -> str:
        return f"{entry.records_added} / {entry.records_updated} / {entry.records_deleted}"

    @admin.display(description="error")
    def error_summary(self, entry: SyncLog) -> str:
        return truncatechars(entry.error_detail or "", 80)


@admin.register(SyncMetric)
class SyncMetricAdmin(ReadOnlyAdmin):
    list_display = (
        "period_start",
        "period_end",
        "period_type",
        "table_name",
        "records_added",
        "records_updated",
        "records_deleted",
    )
    list_filter = (
        ("period_start", DateTimeRangeFilterBuilder(title="start of period")),
        "period_type",
        TableFilter,
    )
    ordering = ("-period_start", "-id")


@admin.register(SyncRun)
class SyncRunAdmin(ReadOnlyAdmin):
    list_display = (
        "started_at",
        "stopped_at",
        "host",
        "pid",
        "sync_frequency",
        "last_sync_at",
        "records_synced",
        "errors",
    )
    ordering = ("-id",)
