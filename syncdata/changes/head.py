"""The archiver's sign of life: ``head.json`` in the archive. Pure.

It is the one file there that is replaced, once a rotation, also while production is idle. Nothing depends on
it but freshness: an archive without it is read as before.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from syncdata.changes.document import DocumentError, read_document
from syncdata.errors import ParseError

HEAD_NAME = "head.json"
MAX_HEAD_BYTES = 1 << 16

_Text = Annotated[str, msgspec.Meta(max_length=300)]


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """``time``: ISO 8601, UTC, by the archiver's clock. All that was committed before ``confirmed_lsn`` is in
    the archive; ``newest_file`` is its newest change file, and ``catalog`` the digest that holds behind it.
    ``state``: ``running``, ``stopped``, or ``waiting`` while an error holds it, which ``error_code`` names.
    ``every_s``: seconds between two heads. ``key`` and ``signature``: as in a footer."""

    version: int
    time: _Text
    every_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    confirmed_lsn: _Text = ""
    newest_file: _Text | None = None
    catalog: _Text | None = None
    state: _Text = "running"
    error_code: _Text | None = None
    system_id: _Text = ""
    timeline: int = 0
    epoch: _Text = ""
    key: _Text = ""
    signature: _Text = ""


def encode_head(head: Head) -> bytes:
    """Return the file's content: one line of JSON."""
    return msgspec.json.encode(head) + b"\n"


def parse_head(content: bytes) -> Head:
    """Read ``head.json``. Raises ParseError when it is broken."""
    try:
        if len(content) > MAX_HEAD_BYTES:
            raise DocumentError(f"it is longer than {MAX_HEAD_BYTES:,} bytes")
        return read_document(content, Head)
    except DocumentError as error:
        raise ParseError(f"broken head: {error}", file=HEAD_NAME) from None
