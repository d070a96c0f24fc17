from __future__ import annotations

import threading

import pytest

from syncdata.runtime.interruptible import interruptible


def test_the_result_and_the_error_of_the_work_are_those_of_the_call() -> None:
    stop = threading.Event()
    assert interruptible(lambda: 42, stop=stop, interrupt=pytest.fail) == 42
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, stop=stop, interrupt=pytest.fail)


def test_a_stop_interrupts_the_work_that_was_waited_for() -> None:
    stop, interrupted = threading.Event(), threading.Event()
    waited: list[float] = []

    def waiting(waited_s: float) -> None:
        waited.append(waited_s)
        stop.set()

    assert interruptible(lambda: interrupted.wait(10), stop=stop, interrupt=interrupted.set, waiting=waiting)
    assert len(waited) == 1
