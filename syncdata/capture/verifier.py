"""The verifier: a thread that reads published tables beside the stream, chunk by chunk, for checks.

It has a connection of its own and uses no slot. For each chunk it takes a snapshot, writes a mark, and
reads the rows; at the mark's place in the stream the session says whether the rows are proved
(`proof_of_reads`), and writes the check there. Whatever goes wrong here is told in the log and in the
status, and the archiver goes on.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg

from syncdata.capture.catalog_state import load_state
from syncdata.capture.proof_of_reads import Verdict
from syncdata.capture.protection import judge, shown
from syncdata.capture.published import Look, SeenTable, look_at
from syncdata.capture.refusals import refusal_of_read
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.source import connect
from syncdata.capture.verify_exchange import Exchange, Question
from syncdata.capture.verify_reads import Key, Reads, TablePlan, plan_table, take_snapshot, take_xid
from syncdata.capture.verify_walk import (
    MOST_ROWS,
    ChunkSize,
    VerificationState,
    fitting_keys,
    load_verification,
    pause_s,
    save_verification,
)
from syncdata.changes.names import TableName
from syncdata.changes.verification import LONGEST_CHECK, SESSION, Check, check_comment
from syncdata.errors import SyncError
from syncdata.privacy.policy import TableVerdict
from syncdata.runtime.retry import Backoff
from syncdata.runtime.session_settings import pin_statement
from syncdata.runtime.told import Told
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

_APPLICATION = "syncdata-verifier"
# A session that has gone on for so long is in step with the source, as a rule.
SETTLE_S = 30.0
# A mark that has taken longer shows that it is not.
_IN_STEP_S = 10.0
_READ_MS, _COUNT_MS, _LOCK_MS, _LOOK_MS = 100, 1_000, 50, 60_000
# A busy stream has the mark before the rows are read, and says at once when that is of no use.
_EARLY_ANSWER_S = 0.02
# So long the session waits for the rows, and reads nothing meanwhile.
_HOLD_COUNT_S = 1.25
_PATIENCE_S = 60.0
_TRIES, _BAD_LUCK_TRIES = 5, 50
_SAVE_EVERY_S = 10.0
_POLL_S = 1.0
# A check's line grows a little when its place is known.
_MOST_KEY_BYTES, _ROOM_BYTES = LONGEST_CHECK // 2, 100
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 300.0

_SETTINGS = {
    **SESSION,
    "search_path": "pg_catalog",
    "statement_timeout": f"{_LOOK_MS}ms",
    "lock_timeout": f"{_LOCK_MS}ms",
    "idle_in_transaction_session_timeout": "60s",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Which rows come next: those up to *upto* (None: to the end), perhaps listed by their *keys*, as a check
    may name them; or, for *is_count*, all of them, only to be counted."""

    upto: Key | None = None
    keys: tuple[Key, ...] | None = None
    is_last: bool = False
    is_count: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Rows that were read, and their check, which lacks its place."""

    check: Check
    part: _Part
    rows: int


class _NotCountedError(Exception):
    """To count the rows takes too long."""


class _AlteredError(Exception):
    """The table is not as it was seen."""


class _TooWideError(Exception):
    """The check does not fit into a line."""


class Verifier:
    """The thread; a context manager. Leaving it cancels the statement that runs."""

    def __init__(
        self,
        settings: CaptureSettings,
        clock: Callable[[], dt.datetime],
        *,
        settle_s: float | None = None,
    ) -> None:
        self.exchange = Exchange()
        self._settings = settings
        self._clock = clock
        self._settle_s = SETTLE_S if settle_s is None else settle_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="syncdata-verifier", daemon=True)
        self._connection: psycopg.Connection[Any] | None = None
        self._backoff = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S)
        self._told = Told()
        self._state = self._safe = load_verification(settings.spool_dir)
        # Each state that is not safe yet, with the number of checks that must be in finished files for it.
        self._unsafe: deque[tuple[int, VerificationState]] = deque()
        self._wanted_at = 0
        self._saved_s = 0.0
        # Of the table under way, the key is never written: after a restart, the table begins anew.
        self.hides_key = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.exchange.close()
        while self._thread.is_alive():
            if (connection := self._connection) is not None:
                # Where the network is dead, too: what cannot be cancelled ends at its own time limit.
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=_POLL_S)
            self._thread.join(_POLL_S / 10)

    def _run(self) -> None:
        wait_s = self._settle_s
        while not self._ended.wait(wait_s):
            try:
                with connect({**self._settings.params, "application_name": _APPLICATION}) as connection:
                    self._connection = connection
                    # Each statement is planned for its own bounds.
                    connection.prepare_threshold = None
                    connection.execute(pin_statement(_SETTINGS))
                    _Walking(self, connection).go_on()
            except SyncError as error:
                self.tell(error)
            except Exception as error:  # the archiver goes on, whatever it is
                self.tell(unexpected_error(error))
            finally:
                self._connection = None
            wait_s = self._backoff.next_s()
        # Else the next session reads again what was read in the last seconds.
        with suppress(SyncError):
            self.save()

    # What the walking needs.

    @property
    def state(self) -> VerificationState:
        return self._state

    @property
    def settings(self) -> CaptureSettings:
        return self._settings

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def now(self) -> dt.datetime:
        return self._clock()

    def rest(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def note(self, state: VerificationState, *, at_once: bool = False) -> None:
        """Take *state*, and save when the last time is some seconds ago; *at_once*: now, and once more when
        *state* is safe."""
        self._state = state
        written = self.exchange.written
        if self._unsafe and self._unsafe[-1][0] == written:
            self._unsafe.pop()
        self._unsafe.append((written, state.without_key() if self.hides_key else state))
        if at_once:
            self._wanted_at = written
            self.save()
        else:
            self.save_if_due()

    def save_if_due(self) -> None:
        is_wanted = self._unsafe and self._unsafe[0][0] <= self._wanted_at <= self.exchange.finished
        if is_wanted or time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the newest state whose checks all are in finished files, with the trouble of now.

        A session that ends by an error discards its open file; what the next one reads is marked anew, so the
        checks of that file never come. Test: test_a_round_lacks_no_check_of_a_file_that_was_discarded."""
        finished = self.exchange.finished
        while self._unsafe and self._unsafe[0][0] <= finished:
            _, self._safe = self._unsafe.popleft()
        self._saved_s = time.monotonic()
        told = msgspec.structs.replace(self._safe, trouble=self._state.trouble)
        save_verification(self._settings.spool_dir, told)

    def tell(self, error: SyncError) -> None:
        """Log *error*, once while it lasts, and leave it for the status."""
        if self._ended.is_set():
            return  # it is our own end that made a statement fail
        self._told.trouble(logger, error, "verifier", level=logging.WARNING, extra=error.fields)
        with suppress(SyncError):  # the log has it
            self.note(msgspec.structs.replace(self._state, trouble=str(error)), at_once=True)

    def say(self, why: str) -> None:
        """Leave for the status why nothing is verified just now, which is no trouble."""
        if self._state.trouble != why:
            self.note(msgspec.structs.replace(self._state, trouble=why), at_once=True)

    def trouble_is_over(self) -> None:
        self._backoff.reset()
        self._told.over(logger, "verifier", "rows are verified again")
        if self._state.trouble:
            self.note(msgspec.structs.replace(self._state, trouble=""), at_once=True)


class _Walking:
    """The walk on one connection. What the driver raises passes through."""

    def __init__(self, verifier: Verifier, connection: psycopg.Connection[Any]) -> None:
        self._verifier = verifier
        self._exchange = verifier.exchange
        self._connection = connection
        self._rate = verifier.settings.verify_rows_per_s
        self._size = ChunkSize(min(MOST_ROWS, max(int(self._rate * 10), 1)))
        self._generation = self._since = 0
        self._marks = f"{secrets.token_hex(8)}-"
        self._mark_number = self._tries = self._bad_luck = 0
        self._verdicts: Mapping[TableName, TableVerdict] = {}

    def go_on(self) -> None:
        """Walk, round after round, until the end."""
        while not self._verifier.has_ended:
            if not self._verifier.state.is_due(self._verifier.now(), self._verifier.settings.verify_days):
                self._verifier.save_if_due()
                self._verifier.rest(_POLL_S)
            elif self._come_into_step():
                self._walk_round()

    def _come_into_step(self) -> bool:
        """Send a mark without rows; return whether it came soon. From there on, the session remembers."""
        started_s = time.monotonic()
        is_answered = self._judged(None)[0] is not None
        if is_answered and time.monotonic() - started_s < _IN_STEP_S:
            return True
        self._verifier.say("waits until the archiver is in step with the source")
        self._verifier.rest(_IN_STEP_S)
        return False

    def _walk_round(self) -> None:
        verifier, look = self._verifier, self._look()
        if not verifier.state.began_at or verifier.state.ended_at:
            verifier.note(verifier.state.begun(verifier.now()), at_once=True)
        while not verifier.has_ended:
            name = verifier.state.next_table(table.table for table in look.tables)
            if name is None:
                verifier.note(verifier.state.ended(verifier.now()), at_once=True)
                logger.info("round %d of verification is over", verifier.state.rounds)
                return
            state = msgspec.structs.replace(verifier.state.at(name), tables=len(look.tables))
            verifier.note(state)
            seen = next(table for table in look.tables if table.table == name)
            if not self._walk_table(seen):
                look = self._look()

    def _look(self) -> Look:
        """Look at the tables as the privacy policy lets them be seen, where there is one."""
        publication, policy = self._verifier.settings.publication, self._verifier.settings.policy
        with self._transaction(_LOOK_MS):
            look = look_at(self._connection, publication, with_constraints=policy is not None)
        if policy is None:
            return look
        # As the stream does, or its columns that are held back would never be as they were seen.
        state = load_state(self._verifier.settings.spool_dir)
        self._verdicts = judge(look, policy, () if state is None else state.held_in(look, policy.id))
        return shown(look, self._verdicts)

    def _walk_table(self, seen: SeenTable) -> bool:
        """Read chunk after chunk of the table under way; return False when the look is too old for it."""
        verifier = self._verifier
        plan = plan_table(self._connection, seen, self._verdicts.get(seen.table))
        verifier.hides_key = plan.key_mask is not None
        for remark in plan.remarks:
            verifier.note(verifier.state.noting(remark))
        while not verifier.has_ended and not verifier.state.is_done:
            state = verifier.state
            try:
                if not self._read_next(plan):
                    return False
            except _NotCountedError:
                self._pass_uncounted(plan)
            except _TooWideError:
                verifier.note(state.past_table(left_out="its columns make a line that is too long"))
            except psycopg.errors.QueryCanceled:
                if not verifier.has_ended and not self._size.note_slow():
                    verifier.note(state.past_table(left_out=f"to read a row takes more than {_READ_MS} ms"))
            except psycopg.errors.LockNotAvailable:
                self._try_later("it was locked by another transaction")
            except (_AlteredError, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                self._try_later("it was altered while it was read")
                return False
            except psycopg.Error as error:
                if self._connection.broken:
                    raise
                verifier.note(state.past_table(left_out=refusal_of_read(error)), at_once=True)
        return True

    def _read_next(self, plan: TablePlan) -> bool:
        """Read the next chunk, and take in what became of it; return False when the look is too old."""
        verifier, started_s = self._verifier, time.monotonic()
        verdict, chunk = self._judged(plan)
        pause = pause_s(chunk.rows if chunk else 0, time.monotonic() - started_s, rows_per_second=self._rate)
        match verdict:
            case Verdict.PROVED if chunk is not None:
                self._tries = self._bad_luck = 0
                self._pass(chunk.part, chunk.rows, is_proved=True)
                verifier.trouble_is_over()
            case Verdict.TOUCHED:
                self._bad_luck += 1
                if self._bad_luck > _BAD_LUCK_TRIES:
                    self._bad_luck = 0
                    self._leave_gap(plan)
            case Verdict.LATE:
                self._size.note_slow()
            case Verdict.EARLY:
                self._wait_for_older_ones()
            case Verdict.ALTERED:
                self._try_later("the stream describes it otherwise")
                return False
            case None:
                while not verifier.has_ended and not self._come_into_step():
                    pass
        self._rest(pause)
        return True

    def _judged(self, plan: TablePlan | None) -> tuple[Verdict | None, _Chunk | None]:
        """Take a snapshot with a mark, read the next chunk of *plan*, and return what the session says of it;
        None: nothing, for long."""
        exchange = self._exchange
        self._mark_number += 1
        mark = f"{self._marks}{self._mark_number}"
        exchange.begin(mark)
        chunk = None
        try:
            with self._transaction(_LOOK_MS if plan is None else _READ_MS):
                reads = None if plan is None else Reads(self._connection, plan)
                if reads is not None:
                    reads.lock()
                snapshot = take_snapshot(self._connection, mark)
                exchange.ask(
                    Question(
                        snapshot=snapshot,
                        seen=None if plan is None else plan.seen,
                        generation=self._generation,
                        since=self._since,
                    )
                )
                if reads is not None and not exchange.is_in_vain(_EARLY_ANSWER_S):
                    if not reads.is_as_seen(self._verifier.settings.publication):
                        raise _AlteredError
                    chunk = self._read(reads)
        finally:
            exchange.give_rows(None if chunk is None else chunk.check)
        answer = exchange.wait_for_answer(_PATIENCE_S)
        if answer is None:
            return None, chunk
        verdict, self._generation = answer
        if verdict is Verdict.ANEW:
            self._since = take_xid(self._connection)
        return verdict, chunk

    def _read(self, reads: Reads) -> _Chunk:
        """Read the next chunk of the table under way."""
        state, plan = self._verifier.state, reads.plan
        started_s = time.monotonic()
        part = self._next_part(reads)
        if part.is_count:
            rows, digest = self._count(reads), None
        else:
            rows, digest = reads.rows(state.after, part.upto)
        took_s = time.monotonic() - started_s
        self._note_time(reads.longest_ms)
        has_bounds = state.after is not None or part.upto is not None or part.keys is not None
        is_bounded = has_bounds and not part.is_count
        check = Check(
            schema=plan.seen.schema,
            table=plan.seen.name,
            columns=plan.columns,
            left_out=plan.left_out,
            key=tuple(column.name for column in plan.key) if is_bounded else (),
            after=state.after if is_bounded and part.keys is None else None,
            upto=part.upto if part.keys is None else None,
            keys=part.keys,
            rows=rows,
            hash=digest,
            lsn="0/0",
            round=state.rounds,
            chunk=state.chunks + 1,
            seen=state.seen + (0 if part.is_count else rows),
            is_last=part.is_last,
        )
        if len(check_comment(check)) > LONGEST_CHECK - _ROOM_BYTES:
            raise _TooWideError
        if not part.is_count:
            self._size.note_read(took_s)
        return _Chunk(check=check, part=part, rows=rows)

    def _next_part(self, reads: Reads) -> _Part:
        """Return which rows come next. Where the order of keys is production's own, a table that is more than
        one chunk begins with the number of its rows, and goes on with lists of keys."""
        state, plan = self._verifier.state, reads.plan
        if not plan.key:
            return _Part(is_last=True, is_count=reads.has_more_than(self._size.rows))
        if plan.has_same_order or not state.chunks:
            upto = reads.end_of(state.after, self._size.rows)
            if plan.has_same_order or upto is None:
                return _Part(upto=upto, is_last=upto is None)
            return _Part(is_count=True)
        most = self._size.keys
        found = reads.keys(state.after, most)
        written = plan.written(found)
        keys = written[: fitting_keys(written, most_bytes=_MOST_KEY_BYTES)]
        is_last = len(keys) == len(found) < most
        return _Part(upto=None if is_last else found[len(keys) - 1], keys=keys, is_last=is_last)

    def _count(self, reads: Reads) -> int:
        self._exchange.hold(_HOLD_COUNT_S)
        self._connection.execute(f"SET LOCAL statement_timeout = {_COUNT_MS}")
        try:
            return reads.count()
        except psycopg.errors.QueryCanceled:
            raise _NotCountedError from None

    def _pass(self, part: _Part, rows: int, *, is_proved: bool) -> None:
        state = self._verifier.state
        behind = state.past_chunk(
            rows=0 if part.is_count else rows,
            after=state.after if part.is_count else part.upto,
            is_proved=is_proved,
            is_last=part.is_last,
        )
        self._verifier.note(behind)

    def _pass_uncounted(self, plan: TablePlan) -> None:
        verifier = self._verifier
        if verifier.has_ended:
            return
        verifier.note(verifier.state.noting(f"to count its rows takes more than {_COUNT_MS} ms"))
        self._pass(_Part(is_count=True, is_last=not plan.key), 0, is_proved=False)

    def _leave_gap(self, plan: TablePlan) -> None:
        """Go on behind a chunk that cannot be proved: the table is changed too often."""
        with self._transaction():
            reads = Reads(self._connection, plan)
            part = self._next_part(reads)
            rows = len(part.keys) if part.keys is not None else 0 if part.is_last else self._size.rows
        self._pass(part, rows, is_proved=False)

    def _try_later(self, why: str) -> None:
        """Wait a moment before another try; after some of them, leave the table out of this round."""
        self._tries += 1
        if self._tries > _TRIES and not self._verifier.has_ended:
            self._tries = 0
            self._verifier.note(self._verifier.state.past_table(left_out=why), at_once=True)
        self._verifier.rest(_POLL_S)

    def _wait_for_older_ones(self) -> None:
        verifier = self._verifier
        verifier.say(
            "waits for the transactions at the source, also prepared ones, that began before the archiver's"
            " connection did"
        )
        while not verifier.has_ended and take_snapshot(self._connection, None).xmin < self._since:
            verifier.rest(_POLL_S)

    def _rest(self, seconds: float) -> None:
        """Rest, and let the session forget now and then what shows by now."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and not self._verifier.has_ended:
            self._verifier.rest(min(left_s, _POLL_S))
            if left_s > _POLL_S:
                self._exchange.offer(take_snapshot(self._connection, None))

    def _note_time(self, milliseconds: int) -> None:
        state = self._verifier.state
        if milliseconds > state.longest_ms:
            self._verifier.note(msgspec.structs.replace(state, longest_ms=milliseconds))

    @contextmanager
    def _transaction(self, limit_ms: int = _READ_MS) -> Iterator[None]:
        """A transaction of one snapshot for the block; each of its statements may take so long. Outside,
        looks into the catalog have more time: they read no rows, and hold nothing back.
        Test: test_a_look_into_the_catalog_may_take_longer_than_a_read."""
        connection = self._connection
        try:
            connection.execute(
                f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {limit_ms}"
            )
            yield
            connection.execute("COMMIT")
        except BaseException:
            if not connection.broken:
                connection.execute("ROLLBACK")
            raise
