"""Errors as syncdata's own tables keep them: a text column, and four columns of data beside it.

People read the text. Code that decides, or that shows the parts apart, reads ``error_code``, ``error_file``,
``error_line`` and ``error_hint``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syncdata.errors import Reason, SyncError

# A checkpoint's columns while nothing blocks it, for UPDATE … SET.
NO_ERROR = (
    "error = NULL, error_code = NULL, error_file = NULL, error_line = NULL, error_hint = NULL,"
    " blocked_at = NULL"
)


def error_parameters(error: SyncError | None) -> dict[str, Any]:
    """Return the values of the columns ``error`` and ``error_*``: all NULL where there is no error."""
    reason = None if error is None else Reason.of(error)
    return {
        "error": reason and reason.text,
        "error_code": reason and reason.code,
        "error_file": reason and reason.file,
        "error_line": reason and reason.line,
        "error_hint": reason and (reason.hint or None),
    }


def read_reason(row: Mapping[str, Any], *, text: str = "error") -> Reason | None:
    """Return the reason that *row* holds, its text in the column *text*; None where it holds none."""
    if row[text] is None:
        return None
    return Reason(
        text=row[text],
        code=row["error_code"] or "",
        file=row["error_file"],
        line=row["error_line"],
        hint=row["error_hint"] or "",
    )
