"""What the site refuses before any page sees it."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from syncdata.admin.parameters import require_plain


class PlainRequests:
    """Answers 400 where a request holds text that no database could, for Django's own pages, too. A session's
    key of that kind is none: a browser keeps its cookies, and has to be able to log in anew."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        require_plain(request)
        if "\0" in request.COOKIES.get(settings.SESSION_COOKIE_NAME, ""):
            del request.COOKIES[settings.SESSION_COOKIE_NAME]
        return self._get_response(request)
