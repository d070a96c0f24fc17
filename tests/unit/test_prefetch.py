from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from syncdata.runtime.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_items_come_in_their_order() -> None:
    assert list(prefetch(iter(range(50)), name="prefetch")) == list(range(50))
    assert not threads()


def test_nothing_comes_of_nothing() -> None:
    assert list(prefetch(iter(()), name="prefetch")) == []


def test_items_may_be_none() -> None:
    assert list(prefetch(iter([None, None]), name="prefetch")) == [None, None]


def test_the_next_item_is_made_while_the_caller_works_on_the_last() -> None:
    is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        is_made.set()
        yield 2

    following = prefetch(items(), name="prefetch")
    assert next(following) == 1
    assert is_made.wait(timeout=10)
    assert list(following) == [2]


def test_no_more_than_one_item_waits_and_one_is_in_the_making() -> None:
    made: list[int] = []
    third_is_begun = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third_is_begun.set()
            yield number

    following = prefetch(items(), name="prefetch")
    assert next(following) == 0
    assert third_is_begun.wait(timeout=10)
    assert made == [0, 1, 2]
    following.close()
    assert made == [0, 1, 2]


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("broken")

    following = prefetch(items(), name="prefetch")
    assert next(following) == 1
    with pytest.raises(LookupError, match="broken"):
        next(following)
    assert not threads()


def test_closing_closes_the_items_and_ends_the_thread() -> None:
    closed: list[str] = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    following = prefetch(items(), name="prefetch")
    assert next(following) == 1
    assert threads()
    following.close()
    assert closed == ["prefetch"]
    assert not threads()


def test_an_error_of_the_caller_ends_the_thread() -> None:
    following = prefetch(iter(range(10)), name="prefetch")
    assert next(following) == 0
    with pytest.raises(LookupError):
        following.throw(LookupError())
    assert not threads()


def test_what_nobody_took_is_discarded() -> None:
    discarded: list[int] = []
    second_waits = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        second_waits.set()
        yield 3

    following = prefetch(items(), name="prefetch", discard=discarded.append)
    assert next(following) == 1
    assert second_waits.wait(timeout=10)
    following.close()
    assert sorted(discarded) == [2, 3]


def test_a_stop_does_not_wait_for_an_item_in_the_making() -> None:
    stop, interrupted = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        stop.set()
        interrupted.wait(timeout=30)

    assert list(prefetch(items(), name="prefetch", stop=stop, interrupt=interrupted.set)) == [1]
    assert interrupted.is_set()
    assert not threads()
