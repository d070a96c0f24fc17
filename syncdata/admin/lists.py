"""Read-only lists that stay quick however long the table behind them is.

Log and metrics grow to millions of rows, so no page counts, adds up, sorts or scans a whole table unasked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, cast

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from syncdata.admin import texts
from syncdata.admin.export import export
from syncdata.admin.zones import in_users_time_zone
from syncdata.models import Checkpoint, TableToSync


class EstimatingPaginator(Paginator):
    """Counts up to ``exact_limit`` rows, and takes the planner's estimate beyond it. Pages after
    ``most_pages`` would be slow and are not offered: a filter finds what would be on them."""

    exact_limit = 10_000
    most_pages = 500

    @cached_property
    def count(self) -> int:
        rows = cast(models.QuerySet[Any], self.object_list).order_by()
        counted = rows[: self.exact_limit + 1].count()
        if counted <= self.exact_limit:
            return counted
        (explained,) = json.loads(rows.explain(format="json"))
        return max(counted, explained["Plan"]["Plan Rows"])

    @cached_property
    def num_pages(self) -> int:
        return min(super().num_pages, self.most_pages)


class TableFilter(admin.SimpleListFilter):
    """Offers the tables that are, or once were, whitelisted; names from the log itself would take a scan."""

    title = _("table")
    parameter_name = "table"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        whitelist = TableToSync.objects.values_list("table_name", flat=True)
        checkpoints = Checkpoint.objects.values_list("table_name", flat=True)
        return [(name, name) for name in sorted({*whitelist, *checkpoints})]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(table_name=self.value())


def column(field: models.Field[Any, Any], *, is_sortable: bool = False) -> Callable[[models.Model], str]:
    """Return a column, for lists and pages, that shows *field* as people read it."""

    def show(row: models.Model) -> str:
        return texts.describe(getattr(row, field.name))

    show.__name__ = field.name
    show.short_description = field.verbose_name  # type: ignore[attr-defined]
    if is_sortable:
        show.admin_order_field = field.name  # type: ignore[attr-defined]
    return show


def columns(model: type[models.Model], *names: str, sortable: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """Return the columns of *model*'s fields; a name that is none of them stays the name of a method."""
    fields = {field.name: field for field in model._meta.concrete_fields}
    return tuple(
        column(fields[name], is_sortable=name in sortable) if name in fields else name for name in names
    )


class PlainlyTitledAdmin(admin.ModelAdmin):
    """Lists whose title is the name of their rows, not "Select … to view", in the user's time zone."""

    class Media:
        css = {"all": ("syncdata/syncdata.css",)}
        js = ("syncdata/zone.js",)

    @in_users_time_zone
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    @in_users_time_zone
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        return super().changeform_view(request, object_id, form_url, extra_context)

    @in_users_time_zone
    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().delete_view(request, object_id, extra_context)

    @in_users_time_zone
    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().history_view(request, object_id, extra_context)


class ReadOnlyAdmin(PlainlyTitledAdmin):
    """Lists of rows that only the local side writes: no user, not even a superuser, may change them."""

    paginator = EstimatingPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    change_list_template = "admin/syncdata/change_list.html"
    # Columns whose sums, over the filtered rows, stand below the list.
    totals: ClassVar[tuple[str, ...]] = ()
    # Says what a search looks for.
    search_hint: ClassVar[Any] = ""
    # Says what to do while the list is empty.
    empty_hint: ClassVar[Any] = ""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return columns(self.model, *(field.name for field in self.opts.concrete_fields))

    get_readonly_fields = get_fields

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        view = self.admin_site.admin_view(self.export_view)
        return [path("export/<str:kind>/", view, name=name), *super().get_urls()]

    @in_users_time_zone
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        parameters = request.GET.copy()
        adds_all_up = parameters.pop("totals", None) is not None  # the list would take it for a filter
        request.GET = parameters  # type: ignore[assignment]
        response = super(PlainlyTitledAdmin, self).changelist_view(
            request,
            {
                "title": capfirst(self.opts.verbose_name_plural),
                "empty_hint": self.empty_hint,
                "search_hint": self.search_hint,
                **(extra_context or {}),
            },
        )
        shown = (response.context_data or {}) if isinstance(response, SimpleTemplateResponse) else {}
        if "cl" in shown and self.totals:  # the page for parameters that make no sense has no list
            queryset = shown["cl"].queryset
            shown["totals"] = self._totals(queryset, adds_all_up=adds_all_up)
        return response

    def _totals(self, rows: models.QuerySet[Any], *, adds_all_up: bool) -> dict[str, Any] | None:
        """Add up the columns of *rows*; where these are many, only when the user has asked for it."""
        limit = EstimatingPaginator.exact_limit
        rows = rows.order_by()
        bounded = rows if adds_all_up else rows.values("pk", *self.totals)[: limit + 1]
        sums = bounded.aggregate(
            total_rows=models.Count("pk"), **{f"total_{name}": models.Sum(name) for name in self.totals}
        )
        if not adds_all_up and sums["total_rows"] > limit:
            return {"limit": texts.grouped(limit)}
        fields = {field.name: field for field in self.opts.concrete_fields}
        return {
            "rows": texts.grouped(sums["total_rows"]),
            "sums": [
                (fields[name].verbose_name, texts.grouped(sums[f"total_{name}"] or 0)) for name in self.totals
            ],
        }

    @in_users_time_zone
    def export_view(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Download the rows that the list's filters let through."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return cast(HttpResponse, self._export(request, kind))

    def _export(self, request: HttpRequest, kind: str) -> HttpResponseBase:
        back = reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist",
            current_app=self.admin_site.name,
        )
        if kind not in ("csv", "json"):
            return HttpResponseRedirect(back)
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{back}?e=1")
        return export(rows, kind, name=self.opts.db_table)
