"""Times of commits, as records tell them. Pure."""

from __future__ import annotations

import datetime as dt

_YEARS = range(1970, 3000)


def parse_time(text: str | None) -> dt.datetime | None:
    """Read a record's ``ts`` (``T`` or a space, ``Z``, ``+00`` or ``+00:00``); None if it is not a time, or
    none that a commit can have: a time at the end of the calendar has no form in other time zones."""
    try:
        moment = dt.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if moment is None:
        return None
    try:
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except OverflowError:
        return None
    return moment if moment.year in _YEARS else None
