"""Moves dates and times by days, in PostgreSQL's ISO spelling: any year, BC, infinity, offsets. Pure.

Python's dates end at the years 1 and 9999, so days are counted here: by the algorithm of Howard Hinnant's
"chrono-compatible low-level date algorithms" (days_from_civil, civil_from_days).
"""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache

_DATE = re.compile(r"(\d{4,})-(\d\d)-(\d\d)(?P<time>[ T][\d:.+-]+)?(?P<era> BC)?")
_PLAIN_LENGTH = len("2026-12-31")
_OF_A_TIME = " T0123456789:.+-"  # nothing that could be of an era, or of anything else
_date_of = dt.date.fromisoformat
_days_long = lru_cache(maxsize=1_024)(dt.timedelta)  # to make one takes longer than all the rest
_INFINITE = frozenset({"infinity", "-infinity"})
# What both types take: from 4713-01-01 BC, to the last whole year of a timestamp.
_FIRST_YEAR, _LAST_YEAR = -4712, 294_275


def moved(text: str, days: int) -> str:
    """Return the date or time *text* some *days* later, or earlier where they are below 0. Where that would
    leave the range, it moves the other way. Raises ValueError when it is none."""
    time = text[_PLAIN_LENGTH:]
    if not time or not time.strip(_OF_A_TIME):
        # Most dates by far, in a tenth of the time; what Python's dates do not know goes the longer way.
        try:
            return (_date_of(text[:_PLAIN_LENGTH]) + _days_long(days)).isoformat() + time
        except (ValueError, OverflowError):
            pass  # a year before 1 or after 9999, in the end: counted below
    if text in _INFINITE:
        return text
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("no date")
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    number = _days(1 - year if match["era"] else year, month, day)
    year, month, day = _date(number + days)
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        year, month, day = _date(number - days)
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}{match['time'] or ''}{era}"


def _days(year: int, month: int, day: int) -> int:
    """Return how many days after 1970-01-01 a date is; the year before 1 is 0."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _date(days: int) -> tuple[int, int, int]:
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return year + era * 400 + (month <= 2), month, day
