"""Blocking work in a thread, so that a stop can interrupt it. Knows nothing of the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TypeVar

_TICK_S = 0.2

T = TypeVar("T")


def interruptible(
    work: Callable[[], T],
    *,
    stop: threading.Event,
    interrupt: Callable[[], object],
    waiting: Callable[[float], object] = lambda waited_s: None,
) -> T:
    """Do *work* in a thread; return what it returns, or raise what it raises.

    When *stop* is set, *interrupt* is called, and must make the work fail soon. Until then *waiting* is
    called now and then with the seconds waited so far.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        started_s = time.monotonic()
        try:
            while not wait_for([future], _TICK_S).done:
                if stop.is_set():
                    interrupt()
                else:
                    waiting(time.monotonic() - started_s)
        except BaseException:
            interrupt()
            raise
        return future.result()
