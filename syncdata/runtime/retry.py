"""Pauses between tries: doubling, bounded, with jitter. Knows nothing of the work that is tried."""

from __future__ import annotations

import random


class Backoff:
    """The pauses between tries, each twice as long as the last up to *last_s*, shortened at random.

    The jitter keeps many machines from returning to a backup host at one moment.
    """

    def __init__(self, first_s: float = 1.0, last_s: float = 60.0) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return how long to wait now, between half and all of the pause; the next pause is longer."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._last_s)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def reset(self) -> None:
        """The work has succeeded: begin with the first pause again."""
        self._pause_s = self._first_s
