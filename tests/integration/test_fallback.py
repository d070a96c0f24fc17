"""What rows cost the server, counted in statements and round trips; each way ends with the same rows."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import psycopg
import pytest

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import BatchFile
from syncdata.apply.plan.net_change import make_plan
from syncdata.apply.plan.table_plan import TableBatch
from syncdata.apply.postgres import direct, fallback, staging
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.connection import prepare_session
from syncdata.apply.postgres.fallback import apply_table
from syncdata.apply.postgres.rests import Rests
from syncdata.apply.postgres.writer import RowWriter
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord
from syncdata.errors import SyncError
from tests.world import World

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, n int)"


@dataclass
class Cost:
    statements: int = 0
    round_trips: int = 0
    text: str = ""


@contextmanager
def counted(connection: psycopg.Connection[Any]) -> Iterator[Cost]:
    """Count what is sent to the server in the block, as libpq has it."""
    cost = Cost()
    with tempfile.TemporaryFile() as trace:
        connection.pgconn.trace(trace.fileno())
        try:
            yield cost
        finally:
            connection.pgconn.untrace()
            _count(cost, trace)


def _count(cost: Cost, trace: IO[bytes]) -> None:
    trace.seek(0)
    cost.text = trace.read().decode(errors="replace")
    sent = [line.split("\t")[3] for line in cost.text.splitlines() if line.split("\t")[1:2] == ["F"]]
    cost.statements = sent.count("Query") + sent.count("Execute")
    cost.round_trips = sent.count("Query") + sent.count("Sync")


class Table:
    """Table ``t`` on a connection, by a role of one's choice, to which records are applied."""

    def __init__(self, world: World, *ddl: str, is_ordinary: bool = False) -> None:
        world.execute(*ddl)
        self.connection = world.connect()
        if is_ordinary:
            world.use_ordinary_role()
            self.connection.execute("SET ROLE ordinary")
        prepare_session(self.connection)
        self.writer = RowWriter(self.connection)
        table = TableName("public", "t")
        self.schema = read_schemas(self.connection, [table])[table]
        self.cost = Cost()

    def batch(self, records: Sequence[ChangeRecord]) -> TableBatch:
        located = [LocatedRecord(record, n, 1) for n, record in enumerate(records, start=1)]
        file = BatchFile(name="changes_20260205_103000.json", is_plain=True)
        return TableBatch(schema=self.schema, records=located, file=file)

    def apply(self, *records: ChangeRecord) -> tuple[Counts, Cost]:
        batch = self.batch(records)
        plan = make_plan(batch)
        with self.connection.transaction():
            self.writer.begin()
            with counted(self.connection) as self.cost:
                counts = apply_table(self.writer, batch, plan)
        return counts, self.cost

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        return self.connection.execute("SELECT * FROM t ORDER BY id").fetchall()


Open = Callable[..., Table]


@pytest.fixture
def open_table(world: World) -> Iterator[Open]:
    """`open_table(*ddl)` makes table ``t`` and opens it."""
    with ExitStack() as cleanup:

        def open_(*ddl: str, is_ordinary: bool = False) -> Table:
            table = Table(world, *ddl, is_ordinary=is_ordinary)
            cleanup.callback(table.connection.close)
            return table

        yield open_


def insert(**data: Any) -> ChangeRecord:
    return ChangeRecord(table="t", op="INSERT", data=data)


def update(**data: Any) -> ChangeRecord:
    return ChangeRecord(table="t", op="UPDATE", data=data)


def move(old: int, **data: Any) -> ChangeRecord:
    return ChangeRecord(table="t", op="UPDATE", data=data, old_keys={"id": old})


def delete(**old_keys: Any) -> ChangeRecord:
    return ChangeRecord(table="t", op="DELETE", old_keys=old_keys)


def test_a_small_batch_needs_no_staging_table(open_table: Open) -> None:
    table = open_table(TABLE, "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
    records = [
        insert(id=4, v="d", n=None),
        update(id=1, v="A", n=10),
        update(id=2, n=20),
        delete(id=3),
        delete(id=9),
        update(id=8, n=80),
    ]
    counts, cost = table.apply(*records)
    assert table.rows == [(1, "A", 10), (2, "b", 20), (4, "d", None)]
    assert (counts.added, counts.updated, counts.deleted, counts.missing) == (1, 3, 2, 2)
    assert "TEMPORARY" not in cost.text
    assert cost.round_trips == 3, cost.text


def test_what_a_small_batch_is_refused_is_tried_with_staging(open_table: Open) -> None:
    table = open_table(TABLE, "ALTER TABLE t ADD UNIQUE (v)", "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    table.apply(update(id=1, v="x", n=1), update(id=2, v="a", n=2), update(id=1, v="b", n=1))
    assert table.rows == [(1, "b", 1), (2, "a", 2)]


def test_a_refused_value_of_a_small_batch_is_found_to_the_line(open_table: Open) -> None:
    table = open_table(TABLE)
    with pytest.raises(SyncError) as caught:
        table.apply(insert(id=1, v="a", n=1), insert(id=2, v="secret", n="secret"))
    assert caught.value.line == 2
    assert "secret" not in str(caught.value)
    assert table.rows == []


def test_a_key_that_its_type_makes_fit_is_not_compared_as_it_was_sent(open_table: Open) -> None:
    table = open_table("CREATE TABLE t (id numeric(5,2) PRIMARY KEY, v text)")
    table.apply(insert(id="1.234", v="a"))
    counts, _ = table.apply(update(id="1.234", v="b"))
    assert [v for _, v in table.rows] == ["b"]
    counts, _ = table.apply(delete(id="1.234"))
    assert (counts.missing, table.rows) == (0, [])


def test_values_mean_the_same_on_both_ways(open_table: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {
        "b": ("boolean", True),
        "s": ("text", False),
        "c": ("varchar(3)", "abc   "),
        "m": ("numeric(6,2)", "12.345"),
        "f": ("float8", "NaN"),
        "j": ("jsonb", '{"a": [1]}'),
        "a": ("int[]", "{1,NULL}"),
        "h": ("bytea", "\\x00ff"),
        "w": ("timestamptz(0)", "2026-01-01 10:00:00.7+02"),
        "i": ("interval", "-1 day"),
        "r": ("int4range", "[1,5)"),
        "q": ('"char"', "x"),
    }
    ddl = ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
    table = open_table(f"CREATE TABLE t (id int PRIMARY KEY, {ddl})")
    values = {name: value for name, (_, value) in columns.items()}
    table.apply(insert(id=1, **values), insert(id=2, **dict.fromkeys(values)), update(id=2, **values))
    monkeypatch.setattr(direct, "MOST_ROWS", 0)
    table.apply(insert(id=3, **values))
    texts = table.connection.execute("SELECT DISTINCT (to_jsonb(t) - 'id')::text FROM t")
    assert len(texts.fetchall()) == 1


@pytest.mark.parametrize("is_ordinary", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_all_ways_end_with_the_same_rows(
    open_table: Open, monkeypatch: pytest.MonkeyPatch, seed: int, is_ordinary: bool
) -> None:
    table = open_table(TABLE, "ALTER TABLE t ADD UNIQUE (n)", is_ordinary=is_ordinary)
    random_ = random.Random(seed)
    for _ in range(12):
        start = [(key, f"old {key}", key) for key in range(6) if random_.random() < 0.5]
        records = [_any_record(random_) for _ in range(random_.randint(1, 8))]
        outcomes = []
        for most, piece in ((50, 100), (0, 100), (0, 2)):
            monkeypatch.setattr(direct, "MOST_ROWS", most)
            monkeypatch.setattr(fallback, "_PIECE", piece)
            table.connection.execute("TRUNCATE t")
            with table.connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t VALUES (%s, %s, %s)", start)
            try:
                counts, _ = table.apply(*records)
            except SyncError as error:
                outcomes.append((error.line, str(error), table.rows))
            else:
                outcomes.append((None, str(counts), table.rows))
        assert outcomes[0] == outcomes[1] == outcomes[2], (start, records)


def _any_record(random_: random.Random) -> ChangeRecord:
    key, other, n = random_.randrange(6), random_.randrange(6), random_.choice([None, *range(6)])
    return random_.choice(
        [
            insert(id=key, v="new", n=n),
            update(id=key, v="whole", n=n),
            update(id=key, n=n),
            update(id=key, v="part"),
            move(key, id=other, v="moved"),
            move(key, id=other, v="moved whole", n=n),
            delete(id=key),
        ]
    )


def test_many_swaps_of_unique_values_cost_a_few_statements_a_record(world: World, open_table: Open) -> None:
    # Rows of another table hang on them, and keys are awake: no row may be removed to make room.
    many = 300
    table = open_table(
        TABLE,
        "ALTER TABLE t ADD UNIQUE (v)",
        "CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE)",
        f"INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, {many}) n",
        "INSERT INTO child SELECT id FROM t",
        is_ordinary=True,
    )
    records = []
    for n in range(1, many, 2):
        records += [
            update(id=n, v="aside", n=None),
            update(id=n + 1, v=f"v{n}", n=None),
            update(id=n, v=f"v{n + 1}", n=None),
        ]
    _, cost = table.apply(*records)
    assert cost.statements < 2 * len(records)
    assert cost.round_trips < len(records) / 4
    assert [v for _, v, _ in table.rows] == [f"v{n + 1 if n % 2 else n - 1}" for n in range(1, many + 1)]
    assert world.value("SELECT count(*) FROM child") == many


WITH_TROUBLE = (
    "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE, n int CHECK (n >= 0), EXCLUDE (n WITH =))",
    "CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE)",
    "INSERT INTO t SELECT n, 'v' || n, n FROM generate_series(1, 50) n",
    "INSERT INTO child SELECT id FROM t",
)
TROUBLES = {
    "swap": [update(id=1, v="aside"), update(id=2, v="v1"), update(id=1, v="v2")],
    "exclusion": [update(id=1, n=None), update(id=2, n=1), update(id=1, n=2)],
    "missing": [update(id=900, v="x"), delete(id=901)],
    "check": [update(id=1, n=-1), update(id=2, n=200)],
}


@pytest.mark.parametrize("is_ordinary", [False, True])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_in_a_small_batch_costs_a_few_round_trips(
    open_table: Open, trouble: str, is_ordinary: bool
) -> None:
    table = open_table(*WITH_TROUBLE, is_ordinary=is_ordinary)
    plain = [update(id=n, v=f"w{n}", n=100 + n) for n in range(3, 49)]
    _, of_plain = table.apply(*plain, update(id=49, v="w49", n=149))
    table.connection.execute("UPDATE t SET v = 'v' || id, n = id WHERE id > 2")
    try:
        table.apply(*plain, *TROUBLES[trouble])
    except SyncError as error:
        assert (trouble, error.line) == ("check", len(plain) + 1)
    assert table.cost.round_trips <= 14 * of_plain.round_trips, table.cost.text
    assert table.cost.statements <= 40 * of_plain.statements


def test_a_swap_that_production_defers_is_applied_beside_other_records(open_table: Open) -> None:
    # As a whole the batch cannot be replaced, and one by one the swap is refused.
    table = open_table(
        TABLE, "ALTER TABLE t ADD UNIQUE (v)", "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (5, 'e')"
    )
    table.apply(move(5, id=6, n=1), update(id=6, n=2), update(id=1, v="b", n=1), update(id=2, v="a", n=1))
    assert table.rows == [(1, "b", 1), (2, "a", 1), (6, "e", 2)]


def test_a_chain_of_keys_that_change_costs_a_few_statements_a_record(open_table: Open) -> None:
    # An ordinary role moves rows in place, and as a set each would go to a key that another one leaves.
    many = 300
    table = open_table(TABLE, f"INSERT INTO t (id) SELECT generate_series(1, {many})", is_ordinary=True)
    records = [move(n, id=n + 1, v=f"was {n}") for n in range(many, 0, -1)]
    counts, cost = table.apply(*records, move(1, id=7, v="is gone"))
    assert counts.missing == 1
    assert cost.statements < 2 * len(records)
    assert cost.round_trips < 100
    assert table.rows == [(n + 1, f"was {n}", None) for n in range(1, many + 1)]


def test_what_the_server_says_of_rows_that_go_another_way_is_not_logged(
    open_table: Open, caplog: pytest.LogCaptureFixture
) -> None:
    # Of a hundred records that are sent together, the first is refused, and a later one cannot go like this.
    table = open_table(TABLE, "ALTER TABLE t ADD UNIQUE (v), ADD CHECK (n >= 0)")
    table.apply(insert(id=1, v="secret", n=1), insert(id=2, v="b", n=2))
    records = [insert(id=3, v="secret", n=3), move(2, id=4, v="c", n=4), insert(id=5, v="d", n=-1)]
    records += [insert(id=n, v=f"v{n}", n=n) for n in range(6, 160)]
    with pytest.raises(SyncError):
        table.apply(*records)
    assert not [record for record in caplog.records if record.name == "psycopg"]


def test_one_bad_record_among_many_is_found_with_a_few_statements(open_table: Open) -> None:
    table = open_table(TABLE, "ALTER TABLE t ADD CHECK (n >= 0)")
    records = [insert(id=n, v="v", n=-1 if n == 700 else n) for n in range(1, 1001)]
    with pytest.raises(SyncError) as caught:
        table.apply(*records)
    assert caught.value.line == 700
    assert table.cost.statements < 2 * len(records)
    assert table.cost.round_trips < 200
    assert table.rows == []


def test_staging_tables_that_are_not_used_any_more_go(
    open_table: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "MOST_ROWS", 0)
    monkeypatch.setattr(staging, "_UNUSED", 3)
    table = open_table(TABLE)
    temporary = "SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind = 'r' ORDER BY 1"

    def names() -> list[str]:
        return [name[:13] for (name,) in table.connection.execute(temporary).fetchall()]

    table.apply(delete(id=1))
    for n in range(3):
        table.apply(update(id=1, v="a", n=n))
        assert names() == ["syncdata_gone", "syncdata_rows"]
    table.apply(update(id=1, v="b", n=1))
    assert names() == ["syncdata_rows"]
    table.apply(delete(id=1), update(id=2, v="b", n=1))
    assert names() == ["syncdata_gone", "syncdata_rows"]
    assert table.rows == [(2, "b", 1)]


def test_a_way_is_tried_less_often_the_more_often_it_fails() -> None:
    rests = Rests()
    tries = []
    for number in range(200):
        if rests.may_try(1):
            tries.append(number)
            rests.note_failure(1)
    assert tries == [0, 2, 5, 10, 19, 36, 69, 134, 199]
    assert rests.may_try(2)
    while not rests.may_try(1):
        pass
    rests.note_success(1)
    rests.note_failure(1)
    assert [rests.may_try(1) for _ in range(2)] == [False, True]
