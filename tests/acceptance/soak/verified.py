"""Verification held to the comparison row by row: it finds all that is made to differ here, and nothing else.

Knows the verdicts that the local side writes down, and how to spoil local rows; knows nothing of how rows are
verified, or of what else is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import groupby
from operator import attrgetter
from random import Random
from typing import Any

import psycopg
from psycopg import sql

from syncdata.changes.names import TableName
from tests.acceptance.soak import model
from tests.acceptance.soak.world import World, require, until
from tests.postgres import Database

_COLUMNS = "table_name, round, chunk, bounds, rows, rows_here, seen, is_of_number, is_last, is_equal, reason"

# Rounds that end take the verdicts of others away; this keeps them all. In the daemon's sessions only those
# triggers fire that are to fire always.
_KEPT = f"""
CREATE TABLE soak_verdict AS SELECT {_COLUMNS} FROM data_sync_verifications WITH NO DATA;
ALTER TABLE soak_verdict ADD number bigint GENERATED ALWAYS AS IDENTITY;
CREATE FUNCTION keep_verdict() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.soak_verdict ({_COLUMNS}) SELECT {_COLUMNS} FROM (SELECT NEW.*) v;
    RETURN NULL;
END $$;
CREATE TRIGGER keep AFTER INSERT OR UPDATE ON data_sync_verifications
    FOR EACH ROW EXECUTE FUNCTION keep_verdict();
ALTER TABLE data_sync_verifications ENABLE ALWAYS TRIGGER keep;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A row of ``data_sync_verifications``, as it was written the ``number``-th time."""

    number: int
    table: str
    round: int
    chunk: int
    bounds: str
    rows: int
    rows_here: int
    seen: int
    is_of_number: bool
    is_last: bool
    is_equal: bool | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How many rows the comparison finds in one table only: ``missing`` here, or here and ``surplus``."""

    missing: int
    surplus: int


@dataclass(slots=True)
class Verified:
    """What was looked at: whole ``rounds`` of a table, and the verdicts of all; what was spoilt and found."""

    rounds: int = 0
    equal: int = 0
    different: int = 0
    not_compared: int = 0
    spoilt: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    healed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        kinds = ", ".join(
            f"{kind} {self.found[kind]} of {count}" for kind, count in sorted(self.spoilt.items())
        )
        healed = ", ".join(f"{how} {count}" for how, count in sorted(self.healed.items()))
        return (
            f"checks: {self.equal + self.different + self.not_compared}, equal {self.equal},"
            f" different {self.different}, not comparable {self.not_compared};"
            f" whole rounds of a table: {self.rounds}\n"
            f"spoilt on purpose: {self.spoilt.total()}, found {self.found.total()} ({kinds or 'none'});"
            f" healed: {healed or 'none'}"
        )

    def count(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            self.equal += verdict.is_equal is True
            self.different += verdict.is_equal is False
            self.not_compared += verdict.is_equal is None


# The judgement, which is pure


def whole_rounds(verdicts: Iterable[Verdict], begun_after: Mapping[str, int]) -> dict[str, list[Verdict]]:
    """Return by table the newest round above *begun_after* of which no chunk lacks, with their last verdicts.

    A round that had begun before has verdicts on rows as they were then.
    """
    found: dict[str, list[Verdict]] = {}
    by_round = attrgetter("table", "round")
    for (table, number), group in groupby(sorted(verdicts, key=by_round), key=by_round):
        chunks = {verdict.chunk: verdict for verdict in sorted(group, key=attrgetter("number"))}
        newest = [chunks[chunk] for chunk in sorted(chunks)]
        first, last = newest[0].chunk, newest[-1].chunk
        is_whole = newest[-1].is_last and first <= 1 and len(newest) == last - first + 1
        if number > begun_after.get(table, -1) and is_whole:
            found[table] = newest
    return found


def disagreements(
    rounds: Mapping[str, Sequence[Verdict]],
    differing: Mapping[str, Difference],
    rows: Mapping[str, int],
) -> list[str]:
    """Return where whole *rounds* say otherwise than the comparison row by row, which found those
    *differing* tables, and so many *rows* of each at production."""
    said: list[str] = []
    for table, verdicts in rounds.items():
        found = [verdict for verdict in verdicts if verdict.is_equal is False]
        proved = [
            verdict for verdict in verdicts if not verdict.is_of_number and verdict.is_equal is not None
        ]
        truth = differing.get(table)
        must_find = truth is not None and (
            bool(proved) or (any(v.is_of_number for v in verdicts) and truth.missing != truth.surplus)
        )
        if found and truth is None:
            said.append(f"false alarm: {table} is equal, but not {found[0].bounds}: {found[0].reason}")
        if must_find and not found:
            said.append(f"not found: {table} has {truth}, and a whole round of it is equal")
        counted = sum(verdict.rows for verdict in proved)
        if len(proved) == len([v for v in verdicts if not v.is_of_number]) > 0 and counted != rows[table]:
            said.append(f"{table}: the chunks have {counted} rows together, production {rows[table]}")
    return said


# What is made to differ: of each table a value of a row, and a row that is not there yet.

_VALUES = {
    "account": "balance = balance + 1",
    "order": "total = total # 1",
    "order_line": "amount = -amount",
    "bag": "v = coalesce(v, '') || ' '",
    "seat": "code = code || '.'",
    "booking": "during = int4range(5000000 + id, 5000001 + id)",
    "document": "title = overlay(title placing '~' from 1 for 1)",
    "filed": "code = code || '.'",
    "typed": "b = b || '\\x00'",
    "always": "a = a + 1",
    "Groß.select": "\"a.b\" = coalesce(\"a.b\", '') || '\\'",
    "scratch": "v = v || '~'",
    "parts": "v = upper(v) || '~'",
    "beat": "n = n + 1",
}
_SURPLUS = {
    "account": "(id, balance) VALUES (-7, 0)",
    "order": "VALUES (1000000, 0)",
    "order_line": 'SELECT "order", -1000000, 1 FROM order_line LIMIT 1',
    "bag": "SELECT * FROM bag LIMIT 1",
    "seat": "VALUES (21, 1021, 'surplus')",
    "booking": "VALUES (0, int4range(6000000, 6000001))",
    "document": "VALUES (2147483647, 'surplus', NULL)",
    "filed": "VALUES (-2147483648, 'surplus', NULL)",
    "typed": "(id, a) VALUES (9000000000000000000, '{1}')",
    "always": "(id, a) OVERRIDING SYSTEM VALUE VALUES (2000000000, 1)",
    "Groß.select": "VALUES ('', 1000000, 'surplus')",
    "scratch": "(id, v) VALUES (-3000000, 'surplus')",
    "parts": "VALUES (1000000, 'north', 'surplus')",
    "beat": "VALUES (2, 0)",
}
# In partitions, rows that differ in nothing but the partition have another key.
KINDS = ("a value", "a row missing", "a row too many", "a row of another partition", "all rows missing")


def relation(table: str) -> str:
    name = TableName.parse(table)
    return sql.Identifier(name.schema, name.name).as_string(None)


def spoil(connection: psycopg.Connection[Any], table: str, kind: str, chance: Random) -> int:
    """Make rows of *table* differ; return how many have changed, which is 0 for an empty one."""
    name = relation(table)
    row = f"ctid = (SELECT ctid FROM {name} ORDER BY md5(ctid::text || '{chance.random()}') LIMIT 1)"
    statement = {
        "a value": f"UPDATE {name} SET {_VALUES[table]} WHERE {row}",
        "a row missing": f"DELETE FROM {name} WHERE {row}",
        "a row too many": f"INSERT INTO {name} {_SURPLUS[table]}",
        "a row of another partition": f"UPDATE parts SET region = region || '!' WHERE {row}",
        "all rows missing": f"DELETE FROM {name}",
    }[kind]
    return connection.execute(statement).rowcount


class Verification:
    """Keeps the verdicts of *world*, and holds them to *compare*, which returns the difference of a table and
    how many rows production has of it; it is called when production is at rest and all has arrived."""

    def __init__(self, world: World, compare: Callable[[str], tuple[Difference | None, int]]) -> None:
        self._world, self._compare = world, compare
        self.verified = Verified()
        with world.local.connect(autocommit=True) as connection:
            connection.execute(_KEPT)
        self._judged = 0

    def require_no_alarm(self, excused: Callable[[str], bool]) -> None:
        """Raise SoakError when rows were said to differ, since it was asked last, of a table that is not."""
        verdicts = self._new_verdicts()
        alarms = {verdict.table: verdict for verdict in verdicts if verdict.is_equal is False}
        for table, verdict in alarms.items():
            require(
                excused(table) or self._compare(table)[0] is not None,
                f"false alarm, in a busy round: {table} {verdict.bounds}: {verdict.reason}",
                "false alarm",
            )

    def judge(self, chance: Random) -> None:
        """Require that whole rounds find equal tables equal, then spoil some, and require that just these are
        found; let them heal, and be found equal again. Raises SoakError."""
        self._require_agreement()
        spoilt = self._spoil(chance)
        rounds = self._require_agreement()
        for table, kind in spoilt.items():
            self.verified.found[kind] += any(verdict.is_equal is False for verdict in rounds[table])
        self._require_states(rounds)
        self._heal(chance, spoilt)
        self._require_states(self._require_agreement())
        self._new_verdicts()

    def _require_agreement(self) -> dict[str, list[Verdict]]:
        """Wait for a whole round of each table that begins from now on, and hold it to the comparison."""
        begun = {verdict.table: verdict.round for verdict in self._verdicts()}
        rounds: dict[str, list[Verdict]] = {}

        def are_there() -> bool:
            self._world.supervise()
            self._flush_marks()
            rounds.update(whole_rounds(self._verdicts(), begun))
            return {*rounds} == {*model.TABLES}

        until(are_there, lambda: f"no whole round of:\n{self._newest(set(model.TABLES) - set(rounds))}")
        compared = {table: self._compare(table) for table in model.TABLES}
        differing = {table: found for table, (found, _) in compared.items() if found is not None}
        said = disagreements(rounds, differing, {table: count for table, (_, count) in compared.items()})
        require(
            not said,
            "verification and the comparison row by row disagree:\n" + "\n".join(said),
            "not found" if any(each.startswith("not found") for each in said) else "false alarm",
        )
        self.verified.rounds += len(rounds)
        return rounds

    def _flush_marks(self) -> None:
        """Commit something: where production is at rest, a mark leaves it when the WAL writer wakes up, which
        it seldom does here."""
        with suppress(psycopg.OperationalError), self._world.source.connect(autocommit=True) as connection:
            connection.execute("SELECT pg_logical_emit_message(true, 'soak', '')")

    def _newest(self, tables: Iterable[str]) -> str:
        """Return the newest verdicts on *tables*, for people."""
        told = []
        for table in sorted(tables):
            newest = [verdict for verdict in self._verdicts() if verdict.table == table][-8:]
            chunks = [(v.round, v.chunk, v.is_last, v.is_equal, v.reason) for v in newest]
            told.append(f"{table}, (round, chunk, last, equal, reason): {chunks}")
        return "\n".join(told)

    def _require_states(self, rounds: Mapping[str, Sequence[Verdict]]) -> None:
        """Tables that differ in a whole round say so, and only they: but where the number of rows alone was
        compared, one that is equal takes nothing back."""
        found = {name for name, verdicts in rounds.items() if any(v.is_equal is False for v in verdicts)}
        numbered = {name for name, verdicts in rounds.items() if all(v.is_of_number for v in verdicts)}
        says = {name for name, table in self._world.tables().items() if table["state"] == "differs"}
        require(
            found <= says <= found | numbered,
            f"rows of {sorted(found)} differ, the state says so of {sorted(says)}",
        )

    def _spoil(self, chance: Random) -> dict[str, str]:
        """Spoil some tables, each in one way; return how."""
        spoilt: dict[str, str] = {}
        with _as_nobody_may(self._world.local) as connection:
            for table in chance.sample(model.TABLES, chance.randint(1, 4)):
                kinds = KINDS if table == "parts" else [kind for kind in KINDS if "partition" not in kind]
                kind = chance.choice(kinds)
                connection.execute(f"CREATE TABLE {_kept(table)} AS TABLE {relation(table)}")
                if spoil(connection, table, kind, chance):
                    spoilt[table] = kind
                    self.verified.spoilt[kind] += 1
        return spoilt

    def _heal(self, chance: Random, spoilt: Iterable[str]) -> None:
        """Put the rows of some tables back, and let the others be resynced."""
        for table in spoilt:
            how = chance.choice(("put back", "resynced"))
            self.verified.healed[how] += 1
            if how == "resynced":
                done = self._world.here("resync", table)
                require(done.returncode == 0, f"resync {table}: {done.stderr}")
                continue
            with _as_nobody_may(self._world.local) as connection:
                name, columns = relation(table), ", ".join(_written(connection, table))
                connection.execute(f"DELETE FROM {name}")
                connection.execute(
                    f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE"
                    f" SELECT {columns} FROM {_kept(table)}"
                )
        with self._world.local.connect(autocommit=True) as connection:
            for table in model.TABLES:
                connection.execute(f"DROP TABLE IF EXISTS {_kept(table)}")

    def _new_verdicts(self) -> list[Verdict]:
        """Return the verdicts since the last call, and count them."""
        verdicts = self._verdicts(self._judged)
        self._judged = max((verdict.number for verdict in verdicts), default=self._judged)
        self.verified.count(verdicts)
        return verdicts

    def _verdicts(self, above: int = 0) -> list[Verdict]:
        with self._world.local.connect() as connection:
            return read_verdicts(connection, above)


def read_verdicts(connection: psycopg.Connection[Any], above: int = 0) -> list[Verdict]:
    rows = connection.execute(
        f"SELECT number, {_COLUMNS} FROM soak_verdict WHERE number > %s ORDER BY number", (above,)
    ).fetchall()
    names = [each.name for each in fields(Verdict)]
    return [Verdict(**dict(zip(names, row, strict=True))) for row in rows]


@contextmanager
def _as_nobody_may(local: Database) -> Iterator[psycopg.Connection[Any]]:
    """A transaction in which neither triggers nor foreign keys are awake, as a bug would have it."""
    with local.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def _kept(table: str) -> str:
    return f'"kept of {table}"'


def _written(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """Return the quoted columns of *table* that are not generated."""
    rows = connection.execute(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        " AND NOT attisdropped AND attgenerated = ''",
        (relation(table),),
    ).fetchall()
    return [name for (name,) in rows]
