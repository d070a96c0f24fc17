"""What the site refuses before any page sees it."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from syncdata.admin.parameters import require_plain


class PlainRequests:
    """Answers 400 where a request holds text that no database could: sessions and Django's own pages ask it
    for theirs, too."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        require_plain(request)
        return self._get_response(request)
