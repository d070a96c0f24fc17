"""Reads JSON documents: those of an archive, and our own small ones on a disk. Pure.

Anything may have happened to either, so whatever is wrong with one becomes one kind of error. A NUL, which
none of ours holds and no text of PostgreSQL can keep, is refused: it would break what writes it down later.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from syncdata.errors import shortened

T = TypeVar("T")

MOST_BYTES = 64 * 1024 * 1024

_find_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search


class DocumentError(ValueError):
    """The document cannot be read. The text says why, in few words, without its values."""


def read_document(content: bytes | bytearray, kind: type[T]) -> T:
    """Return the JSON *content* as a value of *kind*. Raises DocumentError when it is none."""
    if len(content) > MOST_BYTES:
        raise DocumentError(f"it has more than {MOST_BYTES:,} bytes")
    if b"\\u0000" in content and _find_nul(content):
        raise DocumentError("it holds a NUL character")
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise DocumentError("it is not UTF-8") from None
    except ValueError as error:  # msgspec's own are ValueErrors
        raise DocumentError(shortened(str(error))) from None
