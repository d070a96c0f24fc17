"""What a request may hold: text that a database can hold. All else is the client's fault, and told so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse

View = Callable[..., HttpResponse]


def with_plain_parameters(view: View) -> View:
    """Decorate a method that is a view: a request that no database could answer is refused (400)."""

    @wraps(view)
    def wrapped(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        require_plain(request)
        ids = (value for value in (*args, *kwargs.values()) if isinstance(value, str))
        if any("\0" in unquote(value) for value in ids):  # as the admin quotes it, "_00"
            raise BadRequest("The address holds a NUL.")
        return view(self, request, *args, **kwargs)

    return wrapped


def require_plain(request: HttpRequest) -> None:
    """Raise BadRequest for a NUL, which no text of a PostgreSQL can hold, in what the client sent."""
    if any("\0" in text for text in _texts(request)):
        raise BadRequest("The request holds a NUL.")


def _texts(request: HttpRequest) -> Iterator[str]:
    yield request.path
    for parameters in (request.GET, request.POST):
        for name, values in parameters.lists():
            yield name
            yield from (value for value in values if isinstance(value, str))
