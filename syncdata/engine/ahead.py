"""Run an iterator one step ahead in a thread, so that two kinds of waiting overlap. Knows nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T], *, name: str) -> Generator[T]:
    """Yield *items*, the next one being made while the caller works on the last.

    At most one item waits and one is in the making. What *items* raises is raised here, in its place.
    Closing this generator closes *items* and waits for its thread.
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
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item
    finally:
        is_closed.set()
        thread.join()
