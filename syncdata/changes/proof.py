"""What a header, a footer and the lines between them must say of each other. Pure.

The SHA-256 in the footer proves all lines before it, but not the footer's own. So its counts and positions
are held against the header (`require_sound`) and against the records as they are read (`Count`). A file that
has lost its header, or has lines behind its footer, is broken, and not taken for a plain or unfinished one.
"""

from __future__ import annotations

from syncdata.changes.header import FOOTER_PREFIX, HEADER_PREFIX, REFETCH_HINT, Footer, Header
from syncdata.changes.position import parse_lsn
from syncdata.changes.record import ChangeRecord
from syncdata.changes.run import Run
from syncdata.errors import ParseError

_FRAMES = (HEADER_PREFIX, FOOTER_PREFIX)
_FRAME_LINES = tuple(b"\n" + frame for frame in _FRAMES)


def has_frame(lines: bytes | bytearray, *, is_beginning: bool) -> bool:
    """Tell whether one of *lines*, which are whole, is a header or a footer, but for the file's first."""
    return (not is_beginning and lines.startswith(_FRAMES)) or any(line in lines for line in _FRAME_LINES)


def require_frame(header: Header | None, *, has_inner: bool, ends_in_footer: bool, name: str) -> None:
    """Raise ParseError when header and footer are not where they belong.

    *has_inner*: there is one among the lines between. A JSON text holds no newline, so no record looks so.
    """
    if header is None and (has_inner or ends_in_footer):
        problem = "it has a footer or a header, but does not begin with a header: its beginning is damaged"
    elif has_inner:
        problem = "lines follow its footer, or it is two files in one"
    else:
        return
    raise ParseError(problem, hint=REFETCH_HINT, file=name)


def require_sound(header: Header, footer: Footer, name: str) -> None:
    """Raise ParseError when the positions of *header* and *footer* cannot be those of one file."""
    try:
        start, first, last, end, commit = (
            None if text is None else parse_lsn(text)
            for text in (
                *(header.start_lsn, footer.first_commit_lsn, footer.last_commit_lsn, footer.end_lsn),
                header.commit_lsn,
            )
        )
    except ValueError:
        raise _contradiction("a position in header or footer is no LSN", name) from None
    if footer.records < 0 or (footer.transactions or 0) < 0:
        raise _contradiction("the footer's counts are negative", name)
    if footer.transactions is not None and header.snapshot is None and footer.transactions > footer.records:
        raise _contradiction("the footer counts more transactions than records", name)
    # In this order they stand in the WAL. A commit ends behind the position that it is called by.
    order = [lsn for lsn in (start, first, last) if lsn is not None]
    if order != sorted(order) or (end is not None and last is not None and end <= last):
        raise _contradiction("the positions in header and footer run backwards", name)
    if header.snapshot is not None and commit is not None and last is not None and commit != last:
        raise _contradiction("header and footer name different commits", name)


class Count:
    """Counts the transactions of a file's records, in order, and holds the footer against that."""

    def __init__(self) -> None:
        self.transactions = 0
        self._first: str | None = None
        self._last: str | None = None
        self._last_number = -1
        self._is_silent = False

    def add(self, record: ChangeRecord, name: str) -> None:
        """Count *record*. Raises ParseError when it was committed before the one before it."""
        # One that is skipped may have been a transaction of its own.
        lsn = record.commit_lsn if record.table else None
        if lsn is None:
            self._is_silent = True
        elif lsn != self._last:
            self._add(lsn, parse_lsn(lsn), name)

    def _add(self, lsn: str, number: int, name: str) -> None:
        if number < self._last_number:
            raise _contradiction("its commits run backwards", name)
        self._first = self._first or lsn
        self._last, self._last_number = lsn, number
        self.transactions += 1

    def add_run(self, run: Run, name: str) -> None:
        """Count the records of *run*: the first of each transaction says all."""
        if not run.tells_commits:
            self._is_silent = True
            return
        for at, number in zip((0, *run.starts), run.commits(), strict=True):
            lsn = run.marks[at] or ""
            if lsn != self._last:
                self._add(lsn, number, name)

    def require(self, footer: Footer, name: str) -> None:
        """Raise ParseError unless *footer* says of the records, all of them, what they say themselves.

        Records without a commit LSN, as those of a snapshot are, say nothing.
        """
        if self._is_silent or self._last is None:
            return
        for what, said, counted in (
            ("transactions", footer.transactions, self.transactions),
            ("first_commit_lsn", _lsn(footer.first_commit_lsn), _lsn(self._first)),
            ("last_commit_lsn", _lsn(footer.last_commit_lsn), _lsn(self._last)),
        ):
            if said is not None and said != counted:
                raise _contradiction(f"{what} in its footer is not that of its records", name)


def _lsn(text: str | None) -> int | None:
    return None if text is None else parse_lsn(text)


def _contradiction(problem: str, name: str) -> ParseError:
    return ParseError(f"the file contradicts itself: {problem}", hint=REFETCH_HINT, file=name)
