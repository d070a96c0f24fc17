"""Tells that a file has come into the archive, where the archive can tell; elsewhere nothing is told, and the
interval of the cycles is all there is.

Knows the archive's watch; knows nothing of cycles.
"""

from __future__ import annotations

import logging

from syncdata.archive.archive import Archive, Watch
from syncdata.errors import SyncError
from syncdata.runtime.told import Told
from syncdata.runtime.wake import Wake

logger = logging.getLogger(__name__)


class Arrivals:
    """The files that come while a daemon runs. `wake` can be waited for beside the connection."""

    def __init__(self, told: Told) -> None:
        self.wake = Wake()
        self._told = told
        self._watch: Watch | None = None

    def watch(self, archive: Archive) -> None:
        """Watch *archive* from now on, and forget what has come so far: the caller lists it after this.

        An archive that cannot be watched is told of once, and tried again the next time.
        """
        if self._watch is None or not self._watch.is_watching:
            self._end_watch()
            try:
                self._watch = archive.watch(self.wake.call)
                self._told.over(logger, "watch", "the archive is watched again")
            except SyncError as error:
                self._told.trouble(logger, error, "watch", level=logging.INFO, extra=error.fields)
        self.wake.take()

    def close(self) -> None:
        self._end_watch()
        self.wake.close()

    def _end_watch(self) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.close()
