"""What must be so after a round, once production is quiet: waits for it, heals as the messages say, compares.

Knows both databases, the archive and what the tables promise; knows nothing of what was broken.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import psycopg

from syncdata.changes.names import TableName
from syncdata.changes.reader import read_records
from tests.acceptance.soak.model import INVARIANTS, MONEY, TABLES
from tests.acceptance.soak.verified import Difference, Verification, Verified
from tests.acceptance.soak.workload import end_prepared
from tests.acceptance.soak.world import PATIENCE_S, SoakError, World, require, until
from tests.postgres import Database
from tests.production import rows_as_text
from tests.remedies import steps_of

_HEAL_EVERY_S = 4.0
_SHOWN = 5
_OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
# The server is away, or the session has been ended by a timeout that is far too short.
_AWAY = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout)
Counts = Counter[tuple[str, str]]


@dataclass(slots=True)
class Judged:
    """``rows`` compared, ``records`` counted, ``reads`` of the promises in one snapshot, and what healed."""

    rows: int = 0
    records: int = 0
    reads: int = 0
    remedies: Counter[str] = field(default_factory=Counter)
    verified: Verified = field(default_factory=Verified)


class Judge:
    """Keeps from round to round what must not go back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._beats = 0
        self._positions: dict[str, tuple[str, int]] = {}
        self._rebuilds: dict[str, int] = {}
        self._audited: Counts = Counter()
        self._newest = ""
        self._verification = Verification(world, self.compare) if world.verifies else None
        self.judged = Judged()

    def settle(self) -> None:
        """Wait until everything that production has done has arrived, healing what says that it needs it.

        Raises SoakError when a table that is shown as equal is not, or when nothing heals one.
        """
        world = self._world
        world.supervise()
        end_prepared(world.source, is_committed=self._beats % 2 == 0)
        self._require_promises(world.source)
        self._beat()
        self._require_green_means_equal()
        self._require_no_alarm()
        self._heal()  # one that is behind may meet more on its way
        self._beat()
        until(self._is_in_step, lambda: f"the tables do not come into step:\n{self._complaints()}")

    def judge(self) -> None:
        """Hold all tables, positions and counts to what they must be now. Raises SoakError."""
        self._require_green_means_equal()
        self._require_promises(self._world.local)
        self._require_positions()
        self._require_counts()
        self._follow_drops()

    def judge_verification(self, chance: Random) -> None:
        """Hold what verification says to the comparison row by row, and to what is spoilt for it. Raises
        SoakError."""
        if self._verification is not None:
            self._verification.verified = self.judged.verified
            self._verification.judge(chance)
            self.settle()

    def _require_no_alarm(self) -> None:
        """Rows that are said to differ do, unless their table has another mark, or was rebuilt since."""
        if self._verification is None:
            return
        tables, rebuilds = self._world.tables(), self._count_rebuilds()

        def is_excused(name: str) -> bool:
            others = [mark for mark in tables[name]["marks"] if mark["kind"] != "differs"]
            return bool(others) or rebuilds[name] != self._rebuilds.get(name, rebuilds[name])

        self._verification.verified = self.judged.verified
        self._verification.require_no_alarm(is_excused)

    # Waiting and healing

    def _beat(self) -> None:
        """Commit something at production, the last of all, and wait until it is here."""
        self._beats += 1
        with self._world.source.connect(autocommit=True) as connection:
            connection.execute("UPDATE beat SET n = %s", (self._beats,))
        until(self._has_arrived, lambda: f"the last commit has not arrived:\n{self._complaints()}")

    def _is_in_step(self) -> bool:
        """Tell whether all tables stand in one file: the newest, which holds nothing but a beat."""
        files = self._ask("SELECT DISTINCT file FROM data_sync_checkpoints")
        return len(files) == 1

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        with self._world.local.connect(autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def _has_arrived(self) -> bool:
        self._world.supervise()
        time.sleep(0.1)
        return self._ask("SELECT n FROM beat") == [(self._beats,)]

    def _complaints(self) -> str:
        tables = self._world.tables()
        told = [
            f"{name} {table['state']} at {table['checkpoint']}: {table['error'] or table['marks'] or ''}"
            for name, table in tables.items()
        ]
        return "\n".join(told)

    def _heal(self) -> None:
        """Wait until all tables are green; give the others their remedies, again and again."""
        deadline, next_remedy = time.monotonic() + PATIENCE_S, time.monotonic() + _HEAL_EVERY_S
        while True:
            is_due = time.monotonic() > next_remedy
            if is_due or self._is_in_step():
                tables = self._world.tables()
                ill = {name: table for name, table in tables.items() if table["state"] != "active"}
                if not ill and self._is_in_step():
                    return
                if time.monotonic() > deadline:
                    raise SoakError(f"tables do not heal:\n{self._complaints()}")
                if is_due:
                    for name, table in ill.items():
                        self._remedy(name, table)
                    next_remedy = time.monotonic() + _HEAL_EVERY_S
            self._world.supervise()
            time.sleep(0.2)

    def _remedy(self, name: str, table: dict[str, Any]) -> None:
        if table["state"] == "paused":
            self._world.here("resume_tables", name)
            return
        hints = [hint for hint in (table["error_hint"], *(mark["hint"] for mark in table["marks"])) if hint]
        for kind, what in dict.fromkeys(steps_of(hints)):
            self.judged.remedies[kind] += 1
            if kind == "snapshot":
                self._world.there("archive_changes", "--snapshot", what)
            elif kind == "resync":
                self._world.here("resync", what)
            elif kind == "sql":
                # What two tables ask for, or asked for before, is there when it is done once more.
                with (
                    suppress(psycopg.errors.DuplicateColumn),
                    self._world.local.connect(autocommit=True) as connection,
                ):
                    connection.execute(what.replace("…", "int"))
            else:
                raise SoakError(f"{name} asks for what nothing here should need: {kind} {what}")

    def _follow_drops(self) -> None:
        """Drop here what production has dropped, as a migration that runs everywhere does."""
        gone = _columns(self._world.local) - _columns(self._world.source)
        with self._world.local.connect(autocommit=True) as connection:
            for column in sorted(gone):
                connection.execute(f"ALTER TABLE scratch DROP COLUMN {column}")

    # Holding it to what must be so

    def _require_green_means_equal(self) -> None:
        """The states are read first: what is shown as equal before the comparison must be so in it."""
        tables = self._world.tables()
        require({*tables} == {*TABLES}, f"the whitelist is {sorted(tables)}")
        newest = max(table["checkpoint"] for table in tables.values())
        for name, table in tables.items():
            if table["state"] == "active" and table["checkpoint"] == newest:
                self._require_equal(TableName.parse(name))

    def _require_equal(self, table: TableName) -> None:
        missing, surplus = self._differing_rows(table)
        require(
            not missing and not surplus,
            f"{table} is shown as equal, but {len(missing)} rows are missing here, as {_shortened(missing)},"
            f" and {len(surplus)} should not be there, as {_shortened(surplus)}",
            "wrong" if missing and surplus else "lost" if missing else "doubled",
        )

    def compare(self, table: str) -> tuple[Difference | None, int]:
        """Return how the table's rows differ, None where they do not, and how many production has."""
        before = self.judged.rows
        missing, surplus = self._differing_rows(TableName.parse(table))
        difference = Difference(missing=len(missing), surplus=len(surplus)) if missing or surplus else None
        return difference, self.judged.rows - before

    def _differing_rows(self, table: TableName) -> tuple[list[Any], list[Any]]:
        """Return the rows that are missing here, and those that should not be there."""
        ours, theirs = rows_as_text(self._world.source, table), rows_as_text(self._world.local, table)
        common = {*ours[0]} & {*theirs[0]} if ours and theirs else {*()}
        there, here = (
            Counter(
                tuple(sorted((name, value) for name, value in row.items() if not common or name in common))
                for row in rows
            )
            for rows in (ours, theirs)
        )
        self.judged.rows += there.total()
        return [*(there - here).elements()], [*(here - there).elements()]

    def _require_promises(self, database: Database) -> None:
        with database.connect() as connection:
            for name, query in INVARIANTS.items():
                keeps = connection.execute(query).fetchone() == (True,)
                require(keeps, f"{database.name} breaks {name}", "wrong")

    def _require_positions(self) -> None:
        rebuilds = self._count_rebuilds()
        for name, file, number in self._ask(
            "SELECT table_name, file, record_number FROM data_sync_checkpoints"
        ):
            before = self._positions.get(name, ("", 0))
            if rebuilds[name] == self._rebuilds.get(name):
                require((file, number) >= before, f"{name} went back from {before} to {(file, number)}")
            self._positions[name] = (file, number)

    def _require_counts(self) -> None:
        """Tables that were not rebuilt since the last judgement have each record of the new files once."""
        rebuilds, audited = self._count_rebuilds(), self._read_audit()
        records = self._count_new_records()
        for table in TABLES:
            if self._rebuilds.get(table, rebuilds[table]) == rebuilds[table]:
                for operation in _OPERATIONS:
                    key = (table, operation)
                    told = audited[key] - self._audited[key]
                    require(
                        told == records[key],
                        f"the audit log counts {told} {operation} of {table}, the archive {records[key]}",
                        "lost" if told < records[key] else "doubled",
                    )
                    self.judged.records += records[key]
        self._rebuilds, self._audited = rebuilds, audited

    def _count_new_records(self) -> Counts:
        counts: Counts = Counter()
        files = [path for path in sorted(self._world.archive.glob("changes_*")) if path.name > self._newest]
        for path in files:
            with path.open("rb") as stream:
                for located in read_records(stream, path.name):
                    record = located.record
                    counts[str(TableName(record.schema, record.table)), record.op] += 1
        self._newest = max((path.name for path in files), default=self._newest)
        return counts

    def _read_audit(self) -> Counts:
        rows = self._ask(
            "SELECT table_name, sum(records_added)::int, sum(records_updated)::int,"
            " sum(records_deleted)::int, sum(records_truncated)::int, sum(records_missing)::int"
            " FROM data_sync_logs WHERE action = 'sync' AND status = 'SUCCESS' GROUP BY 1"
        )
        for name, *_, missing in rows:
            require(not missing, f"{missing} rows of {name} were missing here", "wrong")
        return Counter(
            {(name, op): n for name, *counts, _ in rows for op, n in zip(_OPERATIONS, counts, strict=True)}
        )

    def _count_rebuilds(self) -> Counter[str]:
        rows = self._ask(
            "SELECT table_name, count(*) FROM data_sync_logs"
            " WHERE action IN ('resync', 'clear', 'snapshot') AND status = 'SUCCESS' GROUP BY 1"
        )
        return Counter(dict(rows))

    def require_nothing_left(self) -> None:
        """When both programs have ended: no tables of a rebuild, no half files, nothing that waits."""
        world = self._world
        with world.local.connect(autocommit=True) as connection:
            until(
                lambda: (
                    connection.execute(
                        "SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'"
                    ).fetchone()
                    == (0,)
                ),
                lambda: "temporary tables are left",
            )
        left = [path for path in (*_files(world.archive), *_files(world.disks["copies"].folder))]
        require(not left, f"files are left: {left}")
        spooled = [path.name for path in world.disks["spool"].folder.rglob("*changes_*")]
        require(not spooled, f"files wait in the spool: {spooled}")


def _files(folder: Path) -> list[str]:
    """Name what is neither a change file nor a part of the archive that stays."""
    return [
        path.name
        for path in folder.iterdir()
        if path.name.startswith(".") or path.suffix in (".tmp", ".part")
    ]


def _columns(database: Database) -> set[str]:
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT attname::text FROM pg_attribute"
            " WHERE attrelid = 'scratch'::regclass AND attnum > 2 AND NOT attisdropped"
        ).fetchall()
    return {name for (name,) in rows}


def _shortened(rows: list[Any]) -> str:
    return ", ".join(
        str({name: value if value is None else value[:40] for name, value in row}) for row in rows[:_SHOWN]
    )


class Observer:
    """Reads the promises in the local database again and again, each time in one snapshot.

    Nothing is promised where the tables do not stand at one position. After a clear, those that have their
    snapshot and those that have nothing yet may stand before the first file, and only the commit LSN differs.
    """

    def __init__(self, local: Database, judged: Judged) -> None:
        self._local, self._judged = local, judged
        self._stop = threading.Event()
        self._broken: list[str] = []
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failures and error is None:
            raise self._failures[0]
        if error is None:
            never = f"a reader saw what production never showed: {self._broken[:1]}"
            require(not self._broken, never, "wrong")

    def _look(self) -> None:
        try:
            while not self._stop.is_set():
                with suppress(*_AWAY), self._local.connect() as connection:
                    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                    while not self._stop.wait(0.02):
                        self._look_once(connection)
                        connection.rollback()
                self._stop.wait(0.05)
        except BaseException as error:
            self._failures.append(error)

    def _look_once(self, connection: psycopg.Connection[Any]) -> None:
        names = [table.strip('"') for table in MONEY]
        positions = connection.execute(
            "SELECT file, record_number, commit_lsn FROM data_sync_checkpoints WHERE table_name = ANY(%s)",
            (names,),
        ).fetchall()
        if len(positions) != len(names) or len({*positions}) != 1:
            return
        for name, query in INVARIANTS.items():
            if connection.execute(query).fetchone() == (False,):
                self._broken.append(f"{name}, at {positions[0]}")
            self._judged.reads += 1
