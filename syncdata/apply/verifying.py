"""Which checks of the archive rows are held to, and how much time that may take.

A check tells what rows are at one place of the archive. Between two batches a table that stands there has
just those rows, for nobody else writes them. Knows groups and the sink's port; knows nothing of how rows are
compared, or of where verdicts are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from syncdata.apply.feed.groups import Group
from syncdata.apply.plan.batches import Batch
from syncdata.apply.position import Watermarks
from syncdata.apply.sink import Verdict, Verifier
from syncdata.changes.catalog import lsn_or_none
from syncdata.changes.verification import Check

# A batch that ends at a check does not go together with what follows, which takes time as well.
_BORDER_S = 0.01


class Budget:
    """The seconds that may go into verifying: a share of the time that has passed.

    What has not been spent is kept, up to a limit, so that a daemon in step with the archive, which has much
    to verify once an interval, verifies all of it. Far behind, most checks are passed over. All times are
    monotonic seconds. Test: test_no_more_than_a_share_of_the_time_goes_into_verifying.
    """

    SHARE = 0.05
    AT_FIRST_S = 2.0
    MOST_S = 60.0

    def __init__(self, *, now_s: float) -> None:
        self._left_s = self.AT_FIRST_S
        self._at_s = now_s

    def has_left(self, now_s: float) -> bool:
        return self._left(now_s) > 0

    def spend(self, seconds: float, *, now_s: float) -> None:
        """Note that *seconds* were spent, perhaps more than there were: those are a debt."""
        self._left_s, self._at_s = self._left(now_s) - seconds, now_s

    def _left(self, now_s: float) -> float:
        return min(self.MOST_S, self._left_s + (now_s - self._at_s) * self.SHARE)


class Verifying:
    """Holds the rows of *verifier* to checks while *budget* has time left, until *stop* is set."""

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

    def wanted(self, watermarks: Watermarks) -> Callable[[Check], bool]:
        """Return what tells, while a file is read, at which of its checks a batch is to end. *watermarks*:
        those of the tables that go through the file."""
        return lambda check: _is_of(watermarks, check) and self._budget.has_left(self._clock())

    def verify(self, batch: Batch, group: Group) -> list[Verdict]:
        """Hold the rows of *group*, which *batch* has brought to its end, to the checks there."""
        # Tables that were blocked by the batch have left the group.
        watermarks = group.watermarks_in(group.position.source_id)
        checks = [check for check in batch.checks if _is_of(watermarks, check)]
        verdicts: list[Verdict] = []
        for check in checks:
            started_s = self._clock()
            if self._stop.is_set() or not self._budget.has_left(started_s):
                break
            verdicts += self._verifier.verify(
                [check], batch.published, position=group.position, file=batch.file.name
            )
            now_s = self._clock()
            self._budget.spend(now_s - started_s, now_s=now_s)
        # The batch could have gone together with what follows.
        self._budget.spend(_BORDER_S, now_s=self._clock())
        return verdicts


def _is_of(watermarks: Watermarks, check: Check) -> bool:
    """Tell whether *check* is of a table of *watermarks*, and of rows that it has at that place: rows of a
    newer snapshot are ahead of it."""
    lsn = lsn_or_none(check.lsn)
    if lsn is None or check.name not in watermarks:
        return False
    watermark = watermarks[check.name]
    return watermark is None or watermark <= lsn
