"""Reads the JSON documents of an archive: headers, footers, catalogs, heads. Pure.

They come from outside, so whatever is wrong with one becomes one kind of error. A NUL, which none of ours
holds and no text of PostgreSQL can keep, is refused here: it would break whatever writes it down later.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from syncdata.errors import shortened

T = TypeVar("T")

_find_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search


class DocumentError(ValueError):
    """The document cannot be read. The text says why, in few words."""


def read_document(content: bytes | bytearray, kind: type[T]) -> T:
    """Return the JSON *content* as a value of *kind*. Raises DocumentError when it is none."""
    if b"\\u0000" in content and _find_nul(content):
        raise DocumentError("it holds a NUL character")
    try:
        return msgspec.json.decode(content, type=kind)
    # ValueError: also of text that is not UTF-8, and whatever msgspec finds.
    except (ValueError, RecursionError) as error:
        raise DocumentError(shortened(str(error))) from None
