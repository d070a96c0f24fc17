"""Sends many statements in one go: as one query, with the rows of those that are COPYs, or, where they have
parameters, in a pipeline. Knows libpq; knows no table.

The server answers the statements of one query one after the other, and at a COPY it waits for its rows. So
the wait for a COPY to begin is also the wait for the answers to all statements before it, and with n COPYs
one waits n + 1 times, however many statements there are. Sources: "Multiple Statements in a Simple Query" and
"COPY Operations" in "Message Flow" of the PostgreSQL documentation, "Functions Associated with the COPY
Command" and "Pipeline Mode" of libpq's. The driver's own ``copy`` takes a query of one COPY alone, and for
each statement of its own pipeline it makes a cursor and adapters, and looks at the socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, pq
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

_GOOD = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, without parameters. ``rows``: of a COPY, as text; they are read when it has begun."""

    text: bytes
    rows: Iterable[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """One statement with parameters ``$1`` and so on. ``values``: theirs, as text; the server knows their
    types."""

    text: bytes
    values: Sequence[bytes | None]


class StatementError(Exception):
    """The server refused the statement of that ``number``; the ``error`` says why."""

    def __init__(self, number: int, error: psycopg.Error) -> None:
        super().__init__(number)
        self.number = number
        self.error = error


def run_script(connection: Connection[Any], statements: Sequence[Statement]) -> list[int]:
    """Run *statements* in the caller's transaction; return each one's count of rows.

    Raises StatementError, and psycopg.Error when the connection is lost; what the ``rows`` raise goes on to
    the caller.
    """
    with connection.lock:
        return connection.wait(_run(connection.pgconn, statements))


def run_pipeline(connection: Connection[Any], statements: Sequence[Bound]) -> list[int]:
    """Run *statements* in the caller's transaction, in one round trip; return each one's count of rows.

    The server skips those after one that it refuses. Raises as `run_script` does.
    """
    if not statements:
        return []
    with connection.lock:
        return connection.wait(_run_pipeline(connection.pgconn, statements))


def _run_pipeline(pgconn: pq.abc.PGconn, statements: Sequence[Bound]) -> PQGen[list[int]]:
    pgconn.enter_pipeline_mode()
    # The unnamed statement stays until another one is parsed: those with one text are parsed once.
    parsed = b""
    answers = []  # the numbers of the statements that the answers are to
    for number, statement in enumerate(statements):
        if statement.text != parsed:
            pgconn.send_prepare(b"", statement.text)
            parsed = statement.text
            answers.append(number)
        pgconn.send_query_prepared(b"", statement.values)
        answers.append(number)
    pgconn.pipeline_sync()
    yield from _flush(pgconn)
    counts = [0] * len(statements)
    failure = None
    for number in answers:
        result = yield from _next_result(pgconn)
        if result is not None and result.status in _GOOD:
            counts[number] = result.command_tuples or 0
        elif failure is None:
            failure = StatementError(number, _error_of(result))
        yield from _finish(pgconn)  # the end of this answer
    yield from _next_result(pgconn)  # the end of all
    pgconn.exit_pipeline_mode()
    if failure is not None:
        raise failure
    return counts


def _run(pgconn: pq.abc.PGconn, statements: Sequence[Statement]) -> PQGen[list[int]]:
    pgconn.send_query(b";\n".join([statement.text for statement in statements]))
    yield from _flush(pgconn)
    counts = []
    for number, statement in enumerate(statements):
        result = yield from _next_result(pgconn)
        if result is not None and result.status == pq.ExecStatus.COPY_IN:
            yield from _copy(pgconn, statement.rows or ())
            result = yield from _next_result(pgconn)
        if result is None or result.status not in _GOOD:
            yield from _finish(pgconn)
            raise StatementError(number, _error_of(result))
        counts.append(result.command_tuples or 0)
    yield from _finish(pgconn)
    return counts


def _copy(pgconn: pq.abc.PGconn, rows: Iterable[bytes]) -> PQGen[None]:
    try:
        for block in rows:
            while pgconn.put_copy_data(block) == 0:  # there is no room for it yet
                yield from _flush(pgconn)
            yield from _flush(pgconn)
    except (Exception, KeyboardInterrupt):
        pgconn.put_copy_end(b"there is a row that cannot be sent")
        yield from _flush(pgconn)
        yield from _finish(pgconn)
        raise
    while pgconn.put_copy_end() == 0:
        yield from _flush(pgconn)
    yield from _flush(pgconn)


def _flush(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Send what has been put, and take in what comes meanwhile: else both sides could wait for each other."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()


def _next_result(pgconn: pq.abc.PGconn) -> PQGen[pq.abc.PGresult | None]:
    while pgconn.is_busy():
        if (yield Wait.R) & Ready.R:
            pgconn.consume_input()
    return pgconn.get_result()


def _finish(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Read the answers that are left, so that the connection can be used again."""
    while (yield from _next_result(pgconn)) is not None:
        pass


def _error_of(result: pq.abc.PGresult | None) -> psycopg.Error:
    """Return the driver's error for *result*, with the server's main message alone, which holds no row."""
    if result is None:
        return psycopg.OperationalError("the server has not answered all statements")
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    primary = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    message = primary.decode(errors="replace").strip()
    if not state:
        return psycopg.OperationalError(message)
    try:
        return psycopg.errors.lookup(state)(message)
    except KeyError:  # one that the driver does not know
        return psycopg.DatabaseError(message)
