"""What all work on the local side needs: archive, connection, limits, who watches, when to stop."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from syncdata.apply.plan.batches import Limits
from syncdata.apply.progress import NoProgress, Progress
from syncdata.archive.archive import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What both need, besides the table."""

    archive: Archive
    connection: Connection[Any]
    limits: Limits
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    run_id: int | None = None
    requested_by: str | None = None
