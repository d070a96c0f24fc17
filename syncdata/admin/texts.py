"""Times, numbers, sizes and ages as people read them, in their language and time zone. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext as _

from syncdata.apply.state.status import TableInfo, format_share

NOTHING = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def moment(value: dt.datetime | None) -> str:
    """Return *value* as a ``<time>`` in the current time zone, with the exact UTC on hover."""
    if value is None:
        return NOTHING
    if not is_aware(value):
        return date_format(value, "DATETIME_FORMAT")
    utc = value.astimezone(dt.UTC)
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        utc.isoformat(),
        utc.strftime("%Y-%m-%d %H:%M:%S"),
        date_format(localtime(value), "DATETIME_FORMAT"),
    )


def grouped(number: int | None) -> str:
    """Return *number* with its thousands grouped."""
    return NOTHING if number is None else number_format(number, force_grouping=True)


def estimate(rows: int | None) -> str:
    """Return the planner's row count, marked as an estimate."""
    return _("unknown") if rows is None else f"~{grouped(rows)}"


def size(size_bytes: int) -> str:
    return filesizeformat(size_bytes)


def duration(seconds: float | None) -> str:
    """Return *seconds* in its two largest units."""
    if seconds is None:
        return NOTHING
    whole = max(int(seconds), 0)
    days, hours = divmod(whole // _HOUR, 24)
    minutes = whole // _MINUTE % 60
    if whole >= _DAY:
        return _("%(days)d d %(hours)d h") % {"days": days, "hours": hours}
    if whole >= _HOUR:
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes}
    if whole >= _MINUTE:
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": whole % 60}
    return _("%(seconds)d s") % {"seconds": whole}


def lag(seconds: float | None) -> str:
    """Return how far a table is behind the farthest one."""
    return _("in\u00a0step") if seconds == 0 else duration(seconds)


def verified(table: TableInfo) -> str:
    """Return when the rows of *table* were proved to be production's, and how many; or why they are not."""
    if table.differs:
        return _("differs")
    if table.verified_at is None:
        if table.not_comparable:
            return _("cannot be compared: %(reason)s") % {"reason": table.not_comparable}
        return _("never") if table.checked_at is None else _("no whole round yet")
    parts = [_("%(rows)s rows") % {"rows": grouped(table.verified_rows)}]
    if (share := format_share(table.verified_share)) is not None:
        parts.append(_("%(share)s of them proved") % {"share": share})
    if table.left_out:
        parts.append(_("not all columns"))
    return format_html("{}<br>{}", moment(table.verified_at), ", ".join(parts))


def describe(value: Any) -> str:
    """Return a field's value as the lists show it."""
    if isinstance(value, dt.datetime):
        return moment(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return grouped(value)
    return NOTHING if value is None or value == "" else str(value)
