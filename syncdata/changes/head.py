"""The archiver's sign of life: ``head.json`` in the archive. Pure.

It is the one file there that is replaced, once a rotation, also while production is idle. Nothing depends on
it but freshness: an archive without it is read as before.
"""

from __future__ import annotations

import msgspec

from syncdata.errors import ParseError

HEAD_NAME = "head.json"


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """``time``: ISO 8601, UTC, by the archiver's clock. All that was committed before ``confirmed_lsn`` is in
    the archive; ``newest_file`` is its newest change file, and ``catalog`` the digest that holds behind it.
    ``state``: ``running``, ``stopped``, or ``waiting`` while an error holds it, which ``error_code`` names.
    ``every_s``: seconds between two heads. ``key`` and ``signature``: as in a footer."""

    version: int
    time: str
    every_s: float
    confirmed_lsn: str = ""
    newest_file: str | None = None
    catalog: str | None = None
    state: str = "running"
    error_code: str | None = None
    system_id: str = ""
    timeline: int = 0
    epoch: str = ""
    key: str = ""
    signature: str = ""


def encode_head(head: Head) -> bytes:
    """Return the file's content: one line of JSON."""
    return msgspec.json.encode(head) + b"\n"


def parse_head(content: bytes) -> Head:
    """Read ``head.json``. Raises ParseError when it is broken."""
    try:
        return msgspec.json.decode(content, type=Head)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ParseError(f"broken head: {error}", file=HEAD_NAME) from None
