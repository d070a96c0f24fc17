"""Tables at work side by side: what is told of them when one fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from syncdata.apply.hands import Hand, side_by_side
from syncdata.apply.plan.batches import Limits
from syncdata.apply.progress import NoProgress, Progress
from syncdata.changes.names import TableName

FIRST, SECOND = TableName("public", "first"), TableName("public", "second")


@dataclass(frozen=True)
class Work:
    """As much of a context as hands look at."""

    limits: Limits = field(default_factory=lambda: Limits(batch_records=100, batch_bytes=100))
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)


def hand() -> Hand:
    return Hand(context=cast(Any, Work()), sink=cast(Any, None))


def test_what_others_have_done_is_told_before_the_error_of_ones_own_table() -> None:
    begun, done = threading.Event(), threading.Event()
    caller = threading.current_thread()

    @contextmanager
    def open_hand(end: threading.Event) -> Iterator[Hand]:
        assert begun.wait(10)  # the caller has a table of its own
        yield hand()

    def work(_: Hand, table: TableName) -> str:
        if threading.current_thread() is caller:
            begun.set()
            assert done.wait(10)
            raise ValueError("it broke")
        done.set()
        return f"{table} is loaded"

    told = []
    with pytest.raises(ValueError, match="it broke"):
        for pair in side_by_side(hand(), open_hand, [FIRST, SECOND], work, jobs=2, may_begin=lambda: True):
            told.append(pair)
    ((table, text),) = told
    assert text == f"{table} is loaded"
