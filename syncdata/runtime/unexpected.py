"""The last resort: an exception that nobody foresaw becomes an error with a code and a safe traceback.

Knows exceptions and frames; knows nothing of what was being done. The text of such an exception is never
passed on: it can hold a row's values (``KeyError``, a driver's DETAIL) or a secret. What it is and where it
came from are enough to find the fault.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from syncdata.errors import SyncError, UnexpectedError

_PACKAGE = Path(__file__).parent.parent
_MOST_FRAMES = 60
_MOST_LINKED = 10

REPORT_HINT = "please report it, with the log's traceback; it holds no values"


def unexpected_error(error: BaseException, *, hint: str = REPORT_HINT) -> UnexpectedError:
    """Return the error that stands for *error*, which nobody foresaw."""
    found = UnexpectedError(f"unexpected: {_kind(error)} in {_place(error)}", hint=hint)
    found.traceback = safe_traceback(error)
    return found


def safe_traceback(error: BaseException) -> str:
    """Return the traceback of *error* and of what led to it; of foreign exceptions, only the class."""
    parts: list[str] = []
    link: BaseException | None = error
    while link is not None and len(parts) < _MOST_LINKED:
        parts.append("".join([*_frames(link.__traceback__), _last_line(link)]))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\nwhich came of:\n".join(parts)


def _frames(trace: TracebackType | None) -> list[str]:
    """Return the frames as Python prints them, the innermost ones where there are very many."""
    if trace is None:
        return []
    # Without the values of local variables, and without the text of the exception.
    frames = traceback.extract_tb(trace, limit=-_MOST_FRAMES)
    return ["Traceback (most recent call last):\n", *traceback.format_list(frames)]


def _last_line(error: BaseException) -> str:
    return str(error) if isinstance(error, SyncError) else _kind(error)


def _kind(error: BaseException) -> str:
    """Return the class of *error*, with a driver's SQLSTATE or the system's words, which hold no values."""
    detail = getattr(error, "sqlstate", None) or (error.strerror if isinstance(error, OSError) else None)
    return type(error).__name__ + (f" ({detail})" if isinstance(detail, str) else "")


def _place(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame in syncdata, else of the innermost one."""
    frames = traceback.extract_tb(error.__traceback__, limit=-_MOST_FRAMES)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    if not frames:
        return "an unknown place"
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    shown = path.relative_to(_PACKAGE.parent) if ours else path.name
    return f"{shown}:{frame.lineno}"
