"""Which checks of the archive rows are held to, and how much time that may take.

A check tells what rows are at one place of the archive. Between two batches a table that stands there has
just those rows, for nobody else writes them. Knows groups and the sink's port; knows nothing of how rows are
compared, or of where verdicts are kept.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

from syncdata.apply.feed.groups import Group
from syncdata.apply.plan.batches import Batch
from syncdata.apply.position import Watermarks
from syncdata.apply.sink import Verdict, Verifier
from syncdata.changes.catalog import lsn_or_none
from syncdata.changes.names import TableName
from syncdata.changes.verification import Check

# A batch that ends at a check does not go together with what follows, which takes time as well.
_BORDER_S = 0.01

# Without time left, each check of a table is taken in one round of so many: in that way each gets its turn.
_TURNS = 16

# So many checks of one place, of so many rows, are looked at together: of small tables a check alone costs
# more than its rows do.
_HANDFUL, _HANDFUL_ROWS = 50, 10_000


class Budget:
    """The seconds that may go into verifying: a share of the time that has passed.

    What has not been spent is kept, up to a limit, so that a daemon in step with the archive, which has much
    to verify once an interval, verifies all of it. Far behind, most checks are passed over. All times are
    monotonic seconds. Test: test_no_more_than_a_share_of_the_time_goes_into_verifying.
    """

    SHARE = 0.05
    AT_FIRST_S, LEAST_S = 2.0, 0.5
    MOST_S = 60.0

    def __init__(self, *, now_s: float) -> None:
        self._left_s = self.AT_FIRST_S
        self._at_s = now_s

    def begin(self, idle_s: float | None, *, now_s: float) -> None:
        """Begin anew in a process, *idle_s* after the work of the one before ended (None: there was none):
        that time counts, so that processes that are started once a minute have what a daemon has.
        Test: test_a_process_has_the_share_of_the_time_since_the_one_before."""
        if idle_s is not None:
            self._left_s, self._at_s = min(max(idle_s * self.SHARE, self.LEAST_S), self.MOST_S), now_s

    def has_left(self, now_s: float) -> bool:
        return self._left(now_s) > 0

    def spend(self, seconds: float, *, now_s: float) -> None:
        """Note that *seconds* were spent, perhaps more than there were: those are a debt."""
        self._left_s, self._at_s = max(self._left(now_s) - seconds, -self.MOST_S), now_s

    def _left(self, now_s: float) -> float:
        return min(self.MOST_S, self._left_s + (now_s - self._at_s) * self.SHARE)


class Verifying:
    """Holds the rows of *verifier* to checks while *budget* has time left, until *stop* is set. Of one cycle.

    Checks for which there is no time are passed over, but for those whose turn it is. ``spent_s``: how long
    verifying has taken.
    """

    def __init__(
        self,
        verifier: Verifier,
        budget: Budget,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier = verifier
        self._budget = budget
        self._stop = stop
        self._clock = clock
        self._ends: dict[TableName, Check] = {}
        self.spent_s = 0.0

    def wanted(self, watermarks: Watermarks) -> Callable[[Check], bool]:
        """Return what tells, while a file is read, at which of its checks a batch is to end. *watermarks*:
        those of the tables that go through the file."""
        return lambda check: _is_of(watermarks, check) and self._has_time_for(check)

    def verify(self, batch: Batch, group: Group) -> list[Verdict]:
        """Hold the rows of *group*, which *batch* has brought to its end, to the checks there."""
        # Tables that were blocked by the batch have left the group.
        watermarks = group.watermarks_in(group.position.source_id)
        checks = [check for check in batch.checks if _is_of(watermarks, check)]
        verdicts: list[Verdict] = []
        for handful in _handfuls(checks):
            if self._stop.is_set():
                break
            if not (taken := [check for check in handful if self._has_time_for(check)]):
                continue
            started_s = self._clock()
            verdicts += self._verifier.verify(taken, batch.published, position=group.position)
            self._spend(self._clock() - started_s)
            for check in taken:
                self._forget_end_before(check)
        # The batch could have gone together with what follows.
        self._spend(_BORDER_S)
        return verdicts

    def note_ends(self, group: Group) -> None:
        """Note of the tables of *group*, which has gone through all files, that a round of theirs ended with
        a check that was passed over: else what was verified before in that round would not count.
        Test: test_a_round_whose_last_check_is_passed_over_ends_all_the_same."""
        ends = [check for table, check in self._ends.items() if table in group.watermarks]
        self._ends.clear()
        if ends:
            self._verifier.pass_over(ends, position=group.position)

    def _has_time_for(self, check: Check) -> bool:
        if self._budget.has_left(self._clock()) or _has_turn(check):
            return True
        if check.is_last:
            self._ends[check.name] = check
        return False

    def _forget_end_before(self, taken: Check) -> None:
        noted = self._ends.get(taken.name)
        if noted is not None and (noted.round, noted.chunk) <= (taken.round, taken.chunk):
            del self._ends[taken.name]

    def _spend(self, seconds: float) -> None:
        self.spent_s += seconds
        self._budget.spend(seconds, now_s=self._clock())


def _has_turn(check: Check) -> bool:
    """Tell whether *check* is taken in its round at any rate. Test: test_each_check_gets_its_turn."""
    return (zlib.crc32(str(check.name).encode()) + check.chunk + check.round) % _TURNS == 0


def _handfuls(checks: Sequence[Check]) -> Iterator[list[Check]]:
    """Yield *checks* in their order, those of few rows together."""
    handful: list[Check] = []
    rows = 0
    for check in checks:
        if handful and (len(handful) == _HANDFUL or rows + check.rows > _HANDFUL_ROWS):
            yield handful
            handful, rows = [], 0
        handful.append(check)
        rows += check.rows
    if handful:
        yield handful


def _is_of(watermarks: Watermarks, check: Check) -> bool:
    """Tell whether *check* is of a table of *watermarks*, and of rows that it has at that place: rows of a
    newer snapshot are ahead of it."""
    lsn = lsn_or_none(check.lsn)
    if lsn is None or check.name not in watermarks:
        return False
    watermark = watermarks[check.name]
    return watermark is None or watermark <= lsn
