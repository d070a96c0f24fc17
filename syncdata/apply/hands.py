"""Tables at work side by side: each hand, a thread with its own connection and archive, takes the next.

Knows threads; knows nothing of what is done to a table.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import psycopg

from syncdata.apply.context import Context, divided
from syncdata.apply.progress import Progress
from syncdata.apply.sink import DaemonSink
from syncdata.changes.names import TableName
from syncdata.errors import SyncError

logger = logging.getLogger(__name__)

R = TypeVar("R")

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """What the work on a table needs for itself."""

    context: Context
    sink: DaemonSink[Any]


# Opens a hand that works until the event is set. Raises SyncError or psycopg.Error.
OpenHand = Callable[[threading.Event], AbstractContextManager[Hand]]


def side_by_side(
    own: Hand,
    open_hand: OpenHand,
    tables: Sequence[TableName],
    work: Callable[[Hand, TableName], R],
    *,
    jobs: int,
    may_begin: Callable[[], bool],
) -> Iterator[tuple[TableName, R]]:
    """Do *work* for each of *tables*, up to *jobs* at once; yield what came of each, in the caller's thread.

    The caller's thread works with *own*, and others with hands of *open_hand*, as many as can be had. All of
    them together hold no more in memory than one does alone. No table is begun once *may_begin* says no.
    Raises the first error of *work* once all hands have let go, and the tables that they have done are told.
    """
    jobs = min(jobs, len(tables))
    progress = _SharedProgress(own.context.progress)
    if jobs > 1:
        own = _shared(own, jobs, progress)
    todo, done = deque(tables), SimpleQueue[tuple[TableName, R]]()
    end = threading.Event()

    def next_table() -> TableName | None:
        try:
            return todo.popleft() if may_begin() and not end.is_set() else None
        except IndexError:
            return None

    def lend_a_hand() -> None:
        with ExitStack() as stack:
            try:
                hand = _shared(stack.enter_context(open_hand(end)), jobs, progress)
            except (SyncError, psycopg.Error) as error:
                # The server may have no more connections to give.
                logger.info("one table less at a time is loaded: %s", type(error).__name__)
                return
            try:
                while (table := next_table()) is not None:
                    done.put((table, work(hand, table)))
            except BaseException:
                end.set()
                raise

    with ThreadPoolExecutor(max_workers=max(jobs - 1, 1), thread_name_prefix="syncdata-hand") as pool:
        helpers = {pool.submit(lend_a_hand) for _ in range(jobs - 1)}
        own_error: Exception | None = None
        try:
            while (table := next_table()) is not None:
                try:
                    result = work(own, table)
                except Exception as error:
                    # What the others have done is committed, and must be told of all the same. Test:
                    # test_what_others_have_done_is_told_before_the_error_of_ones_own_table.
                    own_error = error
                    end.set()
                    break
                yield table, result
                yield from _drained(done)
            left = helpers
            while left:
                _, left = wait(left, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                if own.context.stop.is_set():
                    end.set()
                yield from _drained(done)
        finally:
            end.set()
    if own_error is not None:
        raise own_error
    for helper in helpers:
        helper.result()


def _drained(done: SimpleQueue[tuple[TableName, R]]) -> Iterator[tuple[TableName, R]]:
    while True:
        try:
            yield done.get_nowait()
        except Empty:
            return


def _shared(hand: Hand, jobs: int, progress: Progress) -> Hand:
    """Return *hand* with its share of the memory, and the progress that all report to."""
    context = replace(hand.context, limits=divided(hand.context.limits, jobs), progress=progress)
    return replace(hand, context=context)


class _SharedProgress:
    """Passes on the reports of several threads, one after the other."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._lock = threading.Lock()

    def files_found(self, count: int, size: int) -> None:
        with self._lock:
            self._shown.files_found(count, size)

    def file_started(self, name: str, size: int) -> None:
        with self._lock:
            self._shown.file_started(name, size)

    def batch_applied(self, records: int, size: int) -> None:
        with self._lock:
            self._shown.batch_applied(records, size)

    def file_finished(self, name: str) -> None:
        with self._lock:
            self._shown.file_finished(name)
