"""The driver's log without rows: psycopg logs errors that it ignores with their DETAIL and CONTEXT.

Knows psycopg's logger by name; imports no driver.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_values() -> Iterator[None]:
    """In the block, keep the texts of exceptions out of what psycopg logs.

    For processes that are ours alone: a host project's own queries may be logged as it likes.
    Test: test_an_error_that_the_driver_ignores_is_logged_without_its_detail.
    """
    logger = logging.getLogger("psycopg")
    logger.addFilter(_by_class)
    try:
        yield
    finally:
        logger.removeFilter(_by_class)


def _by_class(record: logging.LogRecord) -> bool:
    """Put the class of each exception in *record* in its place; let the record pass."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args
        )
    elif record.args is None and record.exc_info:
        record.msg = str(record.msg).partition(": ")[0]
    record.exc_info = record.exc_text = None
    return True
