"""The port that the cycle hands batches to. Knows batches and positions; knows nothing of rows, plans or
databases.

PostgreSQL's sinks are postgres/target.py (the tables) and postgres/shadow.py (one table being rebuilt).
Another consumer is one module with a class of these methods, and the line in run.py that makes it. Where
its checkpoints are kept is its own affair; state/checkpoints.py keeps them for whoever has a connection.
Snapshots do not come through this port: bootstrap.py and resync.py load them into PostgreSQL's tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import Batch
from syncdata.apply.position import Advance, Position
from syncdata.changes.names import TableName
from syncdata.errors import SyncError
from syncdata.runtime.prefetch import prefetch

if TYPE_CHECKING:
    from syncdata.apply.state.checkpoints import TableCheckpoint

P = TypeVar("P")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of a batch: its effect by table, and the tables that it left blocked."""

    counts: dict[TableName, Counts] = field(default_factory=dict)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)


class Sink(Protocol[P]):
    """A consumer of batches. *P* is what `prepare` returns and `apply` takes; nobody else looks inside."""

    def begin_file(self, tables: Collection[TableName]) -> None:
        """Get ready for batches of one file for *tables*: look up what preparing them needs."""
        ...

    def prepare(self, batch: Batch) -> P:
        """Return *batch* ready to be applied.

        Runs in a thread of its own while `apply` is at work on the batch before, so it touches no
        connection. An error in one table's records is not raised here: it is part of the result.
        """
        ...

    def apply(self, prepared: P, advance: Advance) -> Outcome:
        """Apply *prepared* and move the checkpoints of the tables of *advance*, all of it or nothing.

        Tables that fail stay at the start and are in the outcome's ``blocked``. The next batch may have been
        prepared with their records, so records of tables that are not in *advance* are left out. Raises
        CheckpointMovedError, with nothing done, when a table does not stand at the start with its
        watermark, and SyncError when the sink itself fails.
        """
        ...

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        """Mark the tables of *watermarks*, which stand at *start*, blocked by *error*.

        Raises CheckpointMovedError when one does not stand there any more.
        """
        ...

    def unblock(self, tables: Collection[TableName]) -> None:
        """Mark *tables* as not blocked any more."""
        ...


class DaemonSink(Sink[P], Protocol[P]):
    """A sink for the daemon, which uses it for cycle after cycle; it knows where its tables stand."""

    def is_on(self, connection: Any) -> bool:
        """Tell whether the sink works on *connection*; if not, its own was lost, and the sink is replaced."""
        ...

    def checkpoints(self) -> list[TableCheckpoint]:
        """Return the checkpoint of every whitelisted table that is not paused, new ones at the beginning."""
        ...

    def rest(self) -> None:
        """Let go of resources that are needed only within a cycle."""
        ...


def prepare_ahead(
    sink: Sink[P], batches: Iterator[Batch]
) -> AbstractContextManager[Iterator[tuple[Batch, P]]]:
    """Return *batches*, each with what *sink* made of it; the next is prepared while the caller applies one.

    The caller leaves the context before it begins another file.
    """
    return closing(prefetch(((batch, sink.prepare(batch)) for batch in batches), name="syncdata-prepare"))
