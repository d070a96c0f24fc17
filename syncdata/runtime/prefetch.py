"""Runs an iterator one step ahead in a thread. Knows threads; knows nothing of the items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.1


def prefetch(
    items: Iterator[T],
    *,
    name: str,
    discard: Callable[[T], None] = lambda item: None,
    stop: threading.Event | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Generator[T]:
    """Yield *items*, the next one being made while the caller works on the last.

    At most one item waits and one is in the making. An error of *items* is raised here, in its place.
    Closing this generator closes *items*, waits for its thread, and passes an item left over to *discard*.
    Where *stop* is set while the caller waits, it ends early; *interrupt* must then make *items* return.
    """
    stop = stop or threading.Event()
    maker = _Maker(items, name, discard)
    try:
        while True:
            try:
                item = maker.waiting.get(timeout=_POLL_S)
            except queue.Empty:
                if stop.is_set():
                    return
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # No reference stays here, so the caller alone decides how long the item lives.
    finally:
        maker.close(stop, interrupt)


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Maker(Generic[T]):
    """The thread that makes the items, and the place where one of them waits."""

    def __init__(self, items: Iterator[T], name: str, discard: Callable[[T], None]) -> None:
        self.waiting: queue.Queue[T | _End] = queue.Queue(maxsize=1)
        self._items = items
        self._discard = discard
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, stop: threading.Event, interrupt: Callable[[], None]) -> None:
        """Wait for the thread, which *interrupt* hurries while *stop* is set; discard an item left over."""
        self._is_closed.set()
        while self._thread.is_alive():
            if stop.is_set():
                interrupt()
            self._thread.join(_POLL_S)
        if not self.waiting.empty() and not isinstance(left := self.waiting.get(), _End):
            self._discard(left)

    def _run(self) -> None:
        end = _End(None)
        try:
            for item in self._items:
                self._put(item)
                del item  # The queue holds it; a second reference would keep it in memory for longer.
                if self._is_closed.is_set():
                    break
        except BaseException as error:  # It is raised again in the caller's thread.
            end = _End(error)
        finally:
            if isinstance(self._items, Generator):
                self._items.close()
        self._put(end)

    def _put(self, item: T | _End) -> None:
        while not self._is_closed.is_set():
            try:
                self.waiting.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        if not isinstance(item, _End):
            self._discard(item)
