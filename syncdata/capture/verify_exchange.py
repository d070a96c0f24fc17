"""What the verifier and the session of the stream tell each other: one mark at a time.

Knows threads; knows nothing of SQL, and decides nothing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from syncdata.capture.proof_of_reads import Snapshot, Verdict
from syncdata.capture.published import SeenTable
from syncdata.changes.verification import Check

# So long the session waits for the rows, and reads nothing meanwhile.
HOLD_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the session has to judge at a mark: a *snapshot*, and the table that is read (None: none is).
    *generation* and *since*: see `TouchedTables.judge`."""

    snapshot: Snapshot
    seen: SeenTable | None
    generation: int
    since: int


class Exchange:
    """What verifier and session tell each other about one mark at a time. For two threads.

    ``written`` counts the checks that were given a place in the stream; the first ``finished`` of them are in
    files that are finished, and survive the session. Where a check is written, it counts before its answer.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mark = ""
        self._question: Question | None = None
        self._check: Check | None = None
        self._is_read = self._is_awaited = False
        self._hold_s = HOLD_S
        self._offered: Snapshot | None = None
        self._answer: tuple[Verdict, int] | None = None
        self._is_closed = False
        self.written = self.finished = 0

    # The verifier's side.

    def begin(self, mark: str) -> None:
        """Announce *mark*, which is about to be written; the one before is of no matter any more."""
        with self._changed:
            self._mark, self._question, self._check = mark, None, None
            self._is_read = self._is_awaited = False
            self._hold_s, self._answer = HOLD_S, None
            self._changed.notify_all()

    def ask(self, question: Question) -> None:
        with self._changed:
            self._question = question
            self._changed.notify_all()

    def give_rows(self, check: Check | None) -> None:
        """Hand over what was read; None: it could not be read."""
        with self._changed:
            self._check, self._is_read = check, True
            self._changed.notify_all()

    def offer(self, snapshot: Snapshot) -> None:
        """Give the session a newer snapshot, so that it can forget what that shows."""
        with self._changed:
            self._offered = snapshot

    def hold(self, timeout_s: float) -> None:
        """Let the session wait so long for the rows."""
        with self._changed:
            self._hold_s = timeout_s
            self._changed.notify_all()

    def is_in_vain(self, timeout_s: float) -> bool:
        """Wait a moment, and tell whether the session has an answer already, before the rows are read: it is
        none that they could change."""
        with self._changed:
            self._changed.wait_for(lambda: self._answer or self._is_awaited or self._is_closed, timeout_s)
            return self._answer is not None

    def wait_for_answer(self, timeout_s: float) -> tuple[Verdict, int] | None:
        """Return the verdict and the generation that holds; None when there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._answer is not None or self._is_closed, timeout_s)
            return self._answer

    # The session's side.

    def take_offered(self) -> Snapshot | None:
        """Return the newest snapshot that was offered since the last call, if there was one."""
        with self._changed:
            offered, self._offered = self._offered, None
            return offered

    def question_at(self, mark: str) -> Question | None:
        """Return the question of *mark*; None for somebody else's mark, or one that is not waited for."""
        with self._changed:
            if mark != self._mark:
                return None
            self._changed.wait_for(lambda: self._question is not None or self._is_read, HOLD_S)
            return self._question

    def wait_for_rows(self, mark: str) -> Check | None:
        """Return the check of what was read for *mark*; None when there is none in time, or when the verifier
        has begun with another mark meanwhile, whose rows are not those of this place."""
        started_s = time.monotonic()
        with self._changed:
            if mark != self._mark:
                return None
            self._is_awaited = True
            self._changed.notify_all()
            while (
                mark == self._mark
                and not self._is_read
                and (left_s := started_s + self._hold_s - time.monotonic()) > 0
            ):
                self._changed.wait(left_s)
            return self._check if mark == self._mark else None

    def note_written(self) -> None:
        self.written += 1

    def note_finished(self) -> None:
        """Note that the open file is finished, with all checks until now."""
        self.finished = self.written

    def answer(self, mark: str, verdict: Verdict, generation: int) -> None:
        with self._changed:
            if mark == self._mark:
                self._answer = verdict, generation
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
