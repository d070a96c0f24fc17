"""Arrays as PostgreSQL spells them, masked element by element: any depth, bounds, quotes, NULL. Pure.

The result is spelled as PostgreSQL would (array_out), so it equals what the local database gives back.
"""

from __future__ import annotations

import re

from syncdata.privacy.mask import Function

_BOUNDS = re.compile(r"(?:\[[-\d]+:[-\d]+\])+=(?=\{)")
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_QUOTED = re.compile(r'[{},"\\\s]')
_TO_ESCAPE = re.compile(r'(["\\])')


def masked_array(text: str, function: Function, *by: str) -> str:
    """Return the array *text* with each element but NULL masked by *function*. Raises ValueError when it is
    none, and what *function* raises."""
    bounds = _BOUNDS.match(text)
    start = bounds.end() if bounds else 0
    if not (text.startswith("{", start) and text.endswith("}")):
        raise ValueError("no array")

    def masked(found: re.Match[str]) -> str:
        quoted, plain = found.groups()
        if quoted is None and plain.upper() == "NULL":
            return plain
        element = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
        return _spelled(function(element, *by))

    return text[:start] + _ELEMENT.sub(masked, text[start:])


def _spelled(element: str | None) -> str:
    if element is None:
        return "NULL"
    if not element or _QUOTED.search(element) or element.upper() == "NULL":
        return '"' + _TO_ESCAPE.sub(r"\\\1", element) + '"'
    return element
