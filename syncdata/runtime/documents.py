"""Small JSON documents of our own, read back from a disk where anything may have happened to them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")

MOST_BYTES = 64 * 1024 * 1024


def decode_json(content: bytes, kind: type[T]) -> T:
    """Return the document in *content*. Raises ValueError for whatever is wrong; its text holds no value."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
