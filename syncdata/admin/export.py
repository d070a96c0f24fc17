"""A filtered list as a CSV or JSON file, streamed: memory never holds more than a few thousand rows."""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import models, transaction
from django.http import HttpResponseBase, StreamingHttpResponse
from django.utils.timezone import is_aware

_CHUNK_ROWS = 2000
# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


def export(rows: models.QuerySet[Any], kind: str, *, name: str) -> HttpResponseBase:
    """Return *rows*, in their order, as a download; *kind* is ``csv`` or ``json``."""
    fields = [field.name for field in rows.model._meta.concrete_fields]
    stream = _csv(rows, fields) if kind == "csv" else _json(rows, fields)
    response = StreamingHttpResponse(stream, content_type=_CONTENT_TYPES[kind])
    response["Content-Disposition"] = f'attachment; filename="{name}.{kind}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _read(rows: models.QuerySet[Any], fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    # In a transaction the server-side cursor reads row by row; outside it would hold all rows at the server.
    with transaction.atomic(using=rows.db):
        yield from rows.values_list(*fields).iterator(chunk_size=_CHUNK_ROWS)


class _Echo:
    """A file for ``csv.writer`` that returns each line instead of keeping it."""

    def write(self, text: str) -> str:
        return text


def _csv(rows: models.QuerySet[Any], fields: Sequence[str]) -> Iterator[str]:
    write = csv.writer(_Echo()).writerow
    yield write(fields)
    for row in _read(rows, fields):
        yield write([_cell(value) for value in row])


def _json(rows: models.QuerySet[Any], fields: Sequence[str]) -> Iterator[str]:
    separator = "["
    for row in _read(rows, fields):
        document = {name: _plain(value) for name, value in zip(fields, row, strict=True)}
        yield f"{separator}\n{json.dumps(document, ensure_ascii=False)}"
        separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def _cell(value: Any) -> Any:
    plain = _plain(value)
    return f"'{plain}" if isinstance(plain, str) and plain.startswith(_FORMULA) else plain


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return (value.astimezone(dt.UTC) if is_aware(value) else value).isoformat()
    return value if value is None or isinstance(value, bool | int | float) else str(value)
