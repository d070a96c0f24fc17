"""Run an iterator one step ahead in a thread, so that two kinds of waiting overlap. Knows nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(
    items: Iterator[T],
    *,
    name: str,
    discard: Callable[[T], None] = lambda item: None,
    stop: threading.Event | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Generator[T]:
    """Yield *items*, the next one being made while the caller works on the last.

    At most one item waits and one is in the making. What *items* raises is raised here, in its place.
    Closing this generator closes *items*, waits for its thread, and gives what nobody took to *discard*.
    Where *stop* is set while the caller waits, it ends early; *interrupt* must then make *items* return.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(maxsize=1)
    is_closed = threading.Event()

    def put(item: T | _End) -> None:
        while not is_closed.is_set():
            try:
                waiting.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        if not isinstance(item, _End):
            discard(item)

    def run() -> None:
        end = _End(None)
        try:
            for item in items:
                put(item)
                del item  # The one waiting is enough to hold.
                if is_closed.is_set():
                    break
        except BaseException as error:  # Whatever it is belongs to the caller.
            end = _End(error)
        finally:
            if isinstance(items, Generator):
                items.close()
        put(end)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = waiting.get(timeout=_POLL_S)
            except queue.Empty:
                if stop is None or not stop.is_set():
                    continue
                interrupt()
                return
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item
    finally:
        is_closed.set()
        while thread.is_alive():
            if stop is not None and stop.is_set():
                interrupt()
            thread.join(_POLL_S)
        if not waiting.empty() and not isinstance(left := waiting.get(), _End):
            discard(left)
