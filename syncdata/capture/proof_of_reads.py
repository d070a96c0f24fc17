"""The proof that rows read beside the stream are those that the stream has left at a mark. Pure.

The verifier takes a snapshot and, microseconds later, writes a mark into the WAL. Between two transactions of
the stream the mark arrives, behind all that committed before it. The rows of the snapshot are the table's at
the mark when both have the same transactions:

1. What the snapshot shows had committed before it was taken, so its commit stands before the mark.
2. What committed before the mark may be missing in the snapshot: a commit is in the WAL first, and shows when
   it is on the disk and, perhaps, on a standby. So of each transaction of the stream the tables that it has
   changed are remembered until a snapshot shows it. While one of them is of the table, nothing is proved.
3. What committed before the remembering began is not known. Such a transaction has a lower xid than one that
   was given out later, say to us (*since*). So a snapshot counts when it waits for no xid below that: all of
   them have ended, and show if they have committed. The xmax of a snapshot would not do: a transaction that
   waits for its standby may have a higher xid than all that have ended.

Say xid 7 has changed orders and its commit is on its way to the disk, at 0/500. The snapshot has 7 among
those that run, the mark is at 0/510. The stream has 7 before the mark, so its rows are there in the
archive, and not in what was read: read again. Test: test_a_check_that_is_proved_has_the_rows_of_its_place.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Set
from dataclasses import dataclass

# The stream has the low half of an xid.
_CYCLE = 1 << 32
# More are not remembered: then all begins anew, with another `since`.
MOST_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `pg_current_snapshot` tells: a transaction shows when it has committed, and is below ``xmin``, or
    below ``xmax`` and none of ``running``. Subtransactions go with theirs."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read ``xmin:xmax:xid,xid``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))

    def shows(self, xid: int) -> bool:
        """Tell whether the transaction with the 32-bit *xid*, which has committed, shows."""
        distance = (xid - self.xmax) % _CYCLE
        whole = self.xmax + (distance - _CYCLE if distance >= _CYCLE // 2 else distance)
        return whole < self.xmin or (whole < self.xmax and whole not in self.running)


class Verdict(enum.Enum):
    """What became of a read, said at its mark."""

    PROVED = "proved"
    TOUCHED = "touched"
    """A transaction before the mark, which the snapshot does not show, has changed the table."""
    EARLY = "early"
    """A transaction still runs that began before the remembering did."""
    ANEW = "anew"
    """The remembering has begun anew: another `since` is needed."""
    ALTERED = "altered"
    """The stream describes the table otherwise than it was read."""
    LATE = "late"
    """The rows did not come in time."""


class TouchedTables:
    """The transactions of the stream that no snapshot has shown yet, and the tables that each has changed.

    ``generation`` counts the beginnings; nothing is remembered until the first `begin`.
    """

    def __init__(self, *, most: int = MOST_REMEMBERED) -> None:
        self.generation = 0
        self._most = most
        self.is_recording = False
        self._tables: dict[int, frozenset[int]] = {}
        self._last: frozenset[int] = frozenset()  # many transactions in a row change the same tables

    def begin(self) -> None:
        """Begin anew with what comes next in the stream; to be called between two transactions."""
        self.generation += 1
        self.is_recording = True
        self._tables.clear()

    def note(self, xid: int, tables: Set[int]) -> None:
        """Remember that the transaction *xid*, which has just committed in the stream, changed *tables*."""
        if self.is_recording and tables:
            if len(self._tables) >= self._most:
                self.begin()
            if tables != self._last:
                self._last = frozenset(tables)
            self._tables[xid] = self._last

    def forget_shown(self, snapshot: Snapshot) -> None:
        """Forget the transactions that *snapshot* shows: so will each later one."""
        # There may be many, so they are put in order instead of looked at one by one. Law, with
        # `Snapshot.shows`: test_what_is_forgotten_is_what_shows.
        known, first = sorted(self._tables), snapshot.xmax % _CYCLE
        last = first + _CYCLE // 2
        hidden = {xid % _CYCLE for xid in snapshot.running} & self._tables.keys()
        hidden.update(known[bisect_left(known, first) : bisect_left(known, last)])
        hidden.update(known[: bisect_left(known, last - _CYCLE)])
        self._tables = {xid: self._tables[xid] for xid in hidden}

    def judge(self, snapshot: Snapshot, table: int | None, *, generation: int, since: int) -> Verdict:
        """Tell whether the rows that *snapshot* has of *table* are those of the mark that has just arrived.

        *since*: an xid that was given out when *generation* had begun. Call it with one snapshot
        after the other, as they were taken. Without a table this only forgets what shows.
        """
        self.forget_shown(snapshot)
        if not self.is_recording:
            self.begin()
        if generation != self.generation:
            return Verdict.ANEW
        if snapshot.xmin < since:
            return Verdict.EARLY
        if any(table in tables for tables in self._tables.values()):
            return Verdict.TOUCHED
        return Verdict.PROVED
