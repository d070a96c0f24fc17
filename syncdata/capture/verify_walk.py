"""The walk of a round through all published tables: where it stands, how large the next chunk is. Pure but
for the state's own file, ``verification.json`` in the spool.

A round reads the tables one after the other, by their names, and each in chunks. It goes on after a restart
where it stood some seconds before; what was read since then is read again, under the same numbers. A chunk
that could not be proved keeps its number, and is missing in the archive.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from syncdata.capture.chain import format_moment
from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError

VERIFICATION_FILE_NAME = "verification.json"

MOST_ROWS = 10_000
# A chunk that takes less is followed by a larger one.
_QUICK_S = 0.05
_LEAST_PAUSE_S = 0.02
_MOST_NAMED = 1_000


class VerificationState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the walk stands: ``rounds`` have begun, the last one at ``began_at`` (RFC 3339, UTC); it was
    over at ``ended_at``, which is empty before.

    ``table`` is under way, or done (``is_done``): ``chunks`` of it have a number, ``seen`` rows of it are
    read, up to the key ``after``. The other counts are the round's: ``tables_done`` of ``tables``, their
    ``rows``, the chunks that were ``proved`` and ``unproved``. ``left_out`` says by table what cannot be
    verified, and why; ``trouble`` why nothing is verified just now. ``longest_ms``: the longest statement
    that has read rows, by the source's clock.
    """

    rounds: int = 0
    began_at: str = ""
    ended_at: str = ""
    table: TableName | None = None
    is_done: bool = False
    after: tuple[str, ...] | None = None
    chunks: int = 0
    seen: int = 0
    tables_done: int = 0
    tables: int = 0
    rows: int = 0
    proved: int = 0
    unproved: int = 0
    left_out: Mapping[str, str] = {}
    trouble: str = ""
    longest_ms: int = 0

    def is_due(self, now: dt.datetime, days: float) -> bool:
        """Tell whether a round goes on, or the next one begins: so many *days* after the last one did, or at
        once when that took longer. One that began in the future did so by a clock that was wrong."""
        if not self.began_at or not self.ended_at:
            return True
        since_then = now - dt.datetime.fromisoformat(self.began_at)
        return not dt.timedelta(0) <= since_then < dt.timedelta(days=days)

    def begun(self, now: dt.datetime) -> VerificationState:
        """Return the state at the beginning of the next round."""
        return VerificationState(
            rounds=self.rounds + 1,
            began_at=format_moment(now),
            left_out=self.left_out,
            longest_ms=self.longest_ms,
        )

    def ended(self, now: dt.datetime) -> VerificationState:
        return msgspec.structs.replace(self, ended_at=format_moment(now))

    def next_table(self, published: Iterable[TableName]) -> TableName | None:
        """Return the table of *published* to go on with; None at the end of the round."""
        done = self.table
        for name in sorted(published):
            if done is None or name > done or (name == done and not self.is_done):
                return name
        return None

    def at(self, table: TableName) -> VerificationState:
        """Return the state with *table* under way."""
        if table == self.table:
            return self
        noted = {name: why for name, why in self.left_out.items() if name != str(table)}
        return msgspec.structs.replace(
            self, table=table, is_done=False, after=None, chunks=0, seen=0, left_out=noted
        )

    def past_chunk(
        self, *, rows: int, after: tuple[str, ...] | None, is_proved: bool, is_last: bool
    ) -> VerificationState:
        """Return the state behind the next chunk of the table under way, which has so many *rows*."""
        behind = msgspec.structs.replace(
            self,
            chunks=self.chunks + 1,
            seen=self.seen + rows,
            rows=self.rows + rows,
            after=after,
            proved=self.proved + is_proved,
            unproved=self.unproved + (not is_proved),
        )
        return behind.past_table() if is_last else behind

    def without_key(self) -> VerificationState:
        """Return the state without the key of a row: the table under way begins anew."""
        if self.after is None:
            return self
        if self.is_done:
            return msgspec.structs.replace(self, after=None)
        return msgspec.structs.replace(self, after=None, chunks=0, seen=0, rows=self.rows - self.seen)

    def past_table(self, *, left_out: str = "") -> VerificationState:
        """Return the state with the table under way done; *left_out*: why not all of it was verified."""
        noting = self.noting(left_out) if left_out else self
        return msgspec.structs.replace(noting, is_done=True, tables_done=self.tables_done + 1)

    def noting(self, why: str) -> VerificationState:
        """Return the state with another reason *why* not all of the table under way is verified."""
        name = str(self.table)
        known = self.left_out.get(name, "")
        if why in known or (not known and len(self.left_out) >= _MOST_NAMED):
            return self
        told = f"{known}; {why}" if known else why
        return msgspec.structs.replace(self, left_out={**self.left_out, name: told})


class ChunkSize:
    """The number of rows to read at once: fewer after a read that took too long, more after quick ones."""

    def __init__(self, most: int) -> None:
        self.rows = self._most = max(most, 1)

    def note_slow(self) -> bool:
        """Take half as many; return False where there is no half."""
        is_halved = self.rows > 1
        self.rows = max(self.rows // 2, 1)
        return is_halved

    def note_read(self, seconds: float) -> None:
        if seconds < _QUICK_S:
            self.rows = min(self.rows + self.rows // 2 + 1, self._most)

    @property
    def keys(self) -> int:
        """The number of rows to read where each key is listed."""
        return max(self.rows // 10, 1)


def pause_s(rows: int, took_s: float, *, rows_per_second: float) -> float:
    """Return how long to wait behind a chunk, which took so long: the rate is kept, and production is at work
    for us for a small part of the time, however small the tables are."""
    return max(rows / rows_per_second - took_s, _LEAST_PAUSE_S)


def fitting_keys(keys: Sequence[tuple[str, ...]], *, most_bytes: int) -> int:
    """Return how many of *keys*, from the first on, fit into a line; at least one."""
    size_bytes = 0
    for number, key in enumerate(keys):
        size_bytes += len(msgspec.json.encode(key)) + 1
        if size_bytes > most_bytes and number:
            return number
    return len(keys)


def load_verification(directory: Path) -> VerificationState:
    """Return the state in the spool *directory*; a new one where there is none that can be read."""
    path = directory / VERIFICATION_FILE_NAME
    try:
        with translated(path):
            return read_document(path.read_bytes(), VerificationState)
    except (SpoolError, ValueError):
        return VerificationState()


def save_verification(directory: Path, state: VerificationState) -> None:
    """Write the state; durable on return. It has the key of a row, so it is for its owner's eyes only."""
    replace_in_spool(directory / VERIFICATION_FILE_NAME, msgspec.json.encode(state) + b"\n")


def forget_key(directory: Path) -> None:
    """Take the key of a row out of the state in the spool *directory*: it may travel masked from now on."""
    state = load_verification(directory)
    if state.after is not None:
        save_verification(directory, state.without_key())
