"""Lets a way of writing rest that was tried in vain, so that the next batches do not pay for it again.

A COPY into the table that meets existing keys has been paid for, and leaves dead rows behind. After the first
failure one batch goes another way, after the next two, then four, and so on: a file that is applied again
costs a few attempts, and so does a table where inserts of existing keys are the rule. Test:
test_a_way_is_tried_less_often_the_more_often_it_fails.
"""

from __future__ import annotations

_LONGEST = 64


class Rests:
    """The rests of one way, by the table's oid."""

    def __init__(self) -> None:
        # How many batches still go another way, and how many did so after the last failure.
        self._rests: dict[int, tuple[int, int]] = {}

    def may_try(self, oid: int) -> bool:
        left, last = self._rests.get(oid, (0, 0))
        if left:
            self._rests[oid] = (left - 1, last)
        return not left

    def note_failure(self, oid: int) -> None:
        rest = min(_LONGEST, 2 * self._rests.get(oid, (0, 0))[1] or 1)
        self._rests[oid] = (rest, rest)

    def note_success(self, oid: int) -> None:
        self._rests.pop(oid, None)
