"""Runs blocking work in a thread, so that a stop can end it. Knows threads; knows nothing of the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TypeVar

T = TypeVar("T")

_TICK_S = 0.1


def interruptible(
    work: Callable[[], T],
    *,
    stop: threading.Event,
    interrupt: Callable[[], object],
    waiting: Callable[[float], object] = lambda waited_s: None,
) -> T:
    """Run *work*, which blocks, in a thread; return its result, or raise its error.

    While *stop* is set, *interrupt* is called again and again until *work* has ended, so it must make *work*
    fail soon. *waiting* is called now and then with the seconds waited so far.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="syncdata-work") as pool:
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
