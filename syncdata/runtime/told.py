"""What the log has been told already: a trouble is said when it begins or changes, and when it ends.

Test: test_a_trouble_is_said_once_when_it_begins_and_once_when_it_ends.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from syncdata.errors import UnexpectedError


class Told:
    """The troubles that last. In between, each repetition is a line for debugging alone."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def trouble(
        self,
        logger: logging.Logger,
        error: object,
        *names: str,
        level: int = logging.ERROR,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log *error*, the trouble of all *names*: at *level* unless each was said to have just that one.

        An error that nobody foresaw is logged with its traceback when it is new.
        """
        text = str(error)
        is_new = any(self._texts.get(name) != text for name in names)
        self._texts |= dict.fromkeys(names, text)
        if is_new and isinstance(error, UnexpectedError) and error.traceback:
            text = f"{text}\n{error.traceback}"
        logger.log(level if is_new else logging.DEBUG, "%s", text, extra=extra)

    def over(self, logger: logging.Logger, name: str, text: str) -> None:
        """Log *text* if the trouble called *name* was said: it is over."""
        if self._texts.pop(name, None) is not None:
            logger.info("%s", text)
