"""LSNs: a 64-bit integer in memory, ``X/Y`` text at the edges, never compared as text. Pure.

No server gets beyond `LAST_LSN`: it would have written eight exabytes. A file with such a position is broken,
and must not be believed: everything that comes later would look like a repeat.
"""

from __future__ import annotations

import re
from functools import lru_cache

LAST_LSN = (1 << 63) - 1

_LSN = re.compile("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


@lru_cache(maxsize=16)  # the records of one transaction share theirs
def parse_lsn(text: str) -> int:
    """Return the 64-bit position that ``X/Y`` (two hexadecimal halves) stands for.

    Raises ValueError when *text* is not an LSN, or one beyond reason.
    """
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError("not an LSN")
    lsn = (int(match[1], 16) << 32) | int(match[2], 16)
    if lsn > LAST_LSN:
        raise ValueError("not an LSN that a server can reach")
    return lsn


def format_lsn(lsn: int) -> str:
    """Return *lsn* as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
