"""Writers that run the model's plans at production, all at once, until they are stopped.

Knows connections and what may end a transaction; knows nothing of the tables, or of what is broken meanwhile.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.acceptance.soak.model import Plan, Transaction
from tests.postgres import Database

WRITERS = 3
WRITER_PAUSE_S = 0.03
# Two that wait for each other, or for a prepared transaction that a crash has left, give up soon.
_OPTIONS = "-c lock_timeout=1s -c deadlock_timeout=50ms -c timezone=UTC"


class Workload:
    """Runs in the block. ``committed`` and ``given_up`` count transactions, ``done`` what was in those that
    ended as planned; a writer whose connection is lost
    begins another one and goes on with the next. A writer rests for *pause_s* after each."""

    def __init__(
        self, source: Database, local: Database, seed: str, *, pause_s: float = WRITER_PAUSE_S
    ) -> None:
        self._source, self._local, self._pause_s = source, local, pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.committed = self.given_up = 0
        self.done: Counter[str] = Counter()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._write, args=(writer, iter(Plan(f"{seed} {writer}"))))
            for writer in range(WRITERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failures and error is None:
            raise self._failures[0]

    def _write(self, writer: int, plan: Iterator[Transaction]) -> None:
        try:
            while not self._stop.is_set():
                try:
                    with self._source.connect(autocommit=True, options=_OPTIONS) as connection:
                        self._run(writer, connection, plan)
                except psycopg.OperationalError:  # the server is away
                    self._stop.wait(0.05)
        except BaseException as error:
            self._failures.append(error)

    def _run(self, writer: int, connection: psycopg.Connection[Any], plan: Iterator[Transaction]) -> None:
        for number, transaction in enumerate(plan):
            if self._stop.is_set():
                return
            self._migrate(transaction.before_here)
            is_committed = self._transact(connection, transaction, f"{writer} {number}")
            self._migrate(transaction.after_here)
            with self._lock:
                self.committed += is_committed
                self.done.update(transaction.kinds if is_committed else ())
                self.given_up += not is_committed
            self._stop.wait(self._pause_s)

    def _transact(self, connection: psycopg.Connection[Any], transaction: Transaction, gid: str) -> bool:
        """Tell whether it has ended as planned. Raises OperationalError when the connection is lost."""
        try:
            connection.execute("BEGIN")
            for statement in transaction.statements:
                connection.execute(statement)
            match transaction.ending:
                case "commit":
                    connection.execute("COMMIT")
                case "roll back":
                    connection.execute("ROLLBACK")
                case _:
                    connection.execute(f"PREPARE TRANSACTION '{gid}'")
                    self._stop.wait(WRITER_PAUSE_S)
                    verb = "COMMIT" if transaction.ending == "prepare and commit" else "ROLLBACK"
                    connection.execute(f"{verb} PREPARED '{gid}'")
            return True
        except psycopg.Error as error:
            if connection.closed:
                raise
            if isinstance(error, psycopg.ProgrammingError) and not isinstance(error, _OF_MIGRATIONS):
                raise AssertionError(f"the model is wrong: {error}") from error
            connection.execute("ROLLBACK")
            return False

    def _migrate(self, statements: tuple[str, ...]) -> None:
        """Change the local tables; where that is not possible now, the remedies after the round do it."""
        for statement in statements:
            try:
                with self._local.connect(autocommit=True, options="-c lock_timeout=1s") as connection:
                    connection.execute(statement)
            except psycopg.OperationalError:
                pass


# What another writer's migration may take away between planning and doing.
_OF_MIGRATIONS = (
    psycopg.errors.UndefinedColumn,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.UndefinedObject,
)


def end_prepared(source: Database, is_committed: bool) -> int:
    """End what a crash has left prepared, so that nothing holds locks; return how many they were."""
    with source.connect(autocommit=True) as connection:
        left = connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        ).fetchall()
        for (gid,) in left:
            connection.execute(f"{'COMMIT' if is_committed else 'ROLLBACK'} PREPARED '{gid}'")
    return len(left)
