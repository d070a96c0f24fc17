"""Work that blocks ends when a stop comes, and is waited for."""

from __future__ import annotations

import threading

import pytest

from syncdata.runtime.interruptible import interruptible


def never() -> None:
    raise AssertionError("nobody asked for a stop")


def test_what_the_work_returns_or_raises_comes_back() -> None:
    stop = threading.Event()
    assert interruptible(lambda: 7, stop=stop, interrupt=never) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, stop=stop, interrupt=never)


def test_a_stop_interrupts_the_work_and_its_end_is_waited_for() -> None:
    stop, interrupted = threading.Event(), threading.Event()
    stop.set()

    def work() -> str:
        assert interrupted.wait(20)
        return "ended"

    assert interruptible(work, stop=stop, interrupt=interrupted.set) == "ended"


def test_a_long_wait_is_told() -> None:
    told: list[float] = []
    enough = threading.Event()

    def waiting(waited_s: float) -> None:
        told.append(waited_s)
        if len(told) == 2:
            enough.set()

    interruptible(lambda: enough.wait(20), stop=threading.Event(), interrupt=never, waiting=waiting)
    assert 0 < told[0] < told[1]


def test_an_error_of_the_caller_interrupts_the_work() -> None:
    interrupted = threading.Event()

    def waiting(waited_s: float) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        interruptible(
            lambda: interrupted.wait(20), stop=threading.Event(), interrupt=interrupted.set, waiting=waiting
        )
    assert interrupted.is_set()
