"""Tables that are other ones here than in production, and equal all the same, or not to be compared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from syncdata.apply.postgres.target import Target
from syncdata.apply.state.checkpoints import read_checkpoint
from syncsite.demo.postgres import PostgresServer, system_binaries
from tests.postgres import VERSIONS
from tests.production import Production
from tests.verified import catalog_of, check_of, follow, hold, marks, outcome
from tests.world import World

# By case: the table in production, the one here, rows, and the columns that the check is of.
ALIKE = {
    "other order of columns": (
        "(id int PRIMARY KEY, a text, b int)",
        "(b int, a text, id int PRIMARY KEY)",
        "(1, 'x', 2)",
        "id, a, b",
    ),
    "more columns here": (
        "(id int PRIMARY KEY, a text)",
        "(id int PRIMARY KEY, mine text DEFAULT 'm', a text, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "(1, 'x')",
        "id, a",
    ),
    "wider numbers": (
        "(id int PRIMARY KEY, a smallint, b int[])",
        "(id bigint PRIMARY KEY, a bigint, b bigint[])",
        "(1, 7, '{1,2}')",
        "id, a, b",
    ),
    "texts of another kind": (
        "(id int PRIMARY KEY, a varchar(5), b char(3), c text)",
        "(id int PRIMARY KEY, a text, b text, c varchar)",
        "(1, 'x ', 'y', ' ')",
        "id, a, b, c",
    ),
    "texts for anything": (
        "(id int PRIMARY KEY, a timestamptz, b jsonb, c numeric, d bytea, e float8, f interval, g int4range)",
        "(id int PRIMARY KEY, a text, b text, c text, d varchar, e text, f text, g text)",
        """(1, '2026-02-05 10:30+05:30', '{"b": 1, "a": 2}', 1.50, '\\x00ff', 0.1, '1 day', '[1,5]')""",
        "id, a, b, c, d, e, f, g",
    ),
    "numbers of more digits": (
        "(id int PRIMARY KEY, a numeric(10,1), b int, c numeric(8,2), d numeric)",
        "(id int PRIMARY KEY, a numeric(10,2), b numeric(12,3), c numeric(10,2), d numeric)",
        "(1, 1.5, 7, 2.25, 1.50), (2, 'NaN', NULL, 0, 'Infinity')",
        "id, a, b, c, d",
    ),
    "json of jsonb": (
        "(id int PRIMARY KEY, a jsonb)",
        "(id int PRIMARY KEY, a json)",
        """(1, '{"b": 1, "a": 2}')""",
        "id, a",
    ),
    "an enum for a text": (
        "(id int PRIMARY KEY, a text)",
        "(id int PRIMARY KEY, a mood)",
        "(1, 'sad')",
        "id, a",
    ),
    "a domain": (
        "(id int PRIMARY KEY, a posint, b posint[])",
        "(id int PRIMARY KEY, a int, b posint[])",
        "(1, 5, '{1}')",
        "id, a, b",
    ),
    "partitions here alone": (
        "(id int PRIMARY KEY, a text)",
        "(id int PRIMARY KEY, a text) PARTITION BY HASH (id)",
        "(1, 'x'), (2, 'y'), (3, 'z')",
        "id, a",
    ),
    "odd names": (
        '("a%s ""{}" int PRIMARY KEY, "b%%" text, "ROW" int)',
        '("a%s ""{}" int PRIMARY KEY, "b%%" text, "ROW" int)',
        "(1, '%s', 3)",
        '"a%s ""{}", "b%%", "ROW"',
    ),
}
TYPES = ("CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE DOMAIN posint AS int CHECK (VALUE > 0)")


def names(columns: str) -> list[str]:
    return [name.strip('"').replace('""', '"') for name in columns.split(", ")]


def make(production: Production, world: World, there: str, here: str, rows: str) -> None:
    for side, columns in ((production, there), (world, here)):
        side.execute(*TYPES, f"CREATE TABLE t {columns}")
    if "PARTITION" in here:
        for part in range(2):
            world.execute(
                f"CREATE TABLE t_{part} PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
            )
    production.execute(f"INSERT INTO t VALUES {rows}")
    follow(production, world, "t")


@pytest.mark.parametrize("case", ALIKE)
def test_a_table_that_is_another_one_here_is_equal(production: Production, world: World, case: str) -> None:
    there, here, rows, columns = ALIKE[case]
    make(production, world, there, here, rows)
    key, *_ = listed = names(columns)
    published = catalog_of(production)
    checks = (
        check_of(production, "t", *listed),
        check_of(production, "t", *listed, key=(key,), after=("0",), chunk=2),
        check_of(production, "t", *listed, key=(key,), keys=[("1",), ("2",)], chunk=3),
    )
    found = hold(world, published, *checks)
    assert [(verdict.is_equal, verdict.reason) for verdict in found] == [(True, "")] * 3
    quoted = columns.split(", ")[0]
    world.execute(f"DELETE FROM t WHERE {quoted} = 1")
    assert [verdict.is_equal for verdict in hold(world, published, *checks)] == [False] * 3


# By case: the table in production, the one here, and what the reason speaks of.
OTHERWISE = {
    "floats of another size": (
        "(id int PRIMARY KEY, a real)",
        "(id int PRIMARY KEY, a double precision)",
        "(1, 16777216)",
        "column a is real in production and double precision here",
    ),
    "a longer char": (
        "(id int PRIMARY KEY, a char(3))",
        "(id int PRIMARY KEY, a char(5))",
        "(1, 'x')",
        "column a is character(3) in production and character(5) here",
    ),
    "a date with a time": (
        "(id int PRIMARY KEY, a date)",
        "(id int PRIMARY KEY, a timestamp)",
        "(1, '2026-02-05')",
        "column a is date in production",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_may_be_spelled_otherwise_is_compared_by_its_number_alone(
    production: Production, world: World, case: str
) -> None:
    there, here, rows, reason = OTHERWISE[case]
    make(production, world, there, here, rows)
    check = check_of(production, "t", "id", "a")
    published = catalog_of(production)
    (verdict,) = hold(world, published, check)
    assert verdict.is_equal is None
    assert reason in verdict.reason
    assert marks(world, "t") == []
    world.execute("DELETE FROM t")
    assert outcome(world, published, check) is False
    assert marks(world, "t") == ["differs"]


def test_bounds_of_keys_that_are_ordered_otherwise_are_not_compared(
    production: Production, world: World
) -> None:
    there, here = "(id int PRIMARY KEY, a text)", "(id text PRIMARY KEY, a text)"
    make(production, world, there, here, "(1, 'x'), (9, 'x'), (10, 'y')")
    published = catalog_of(production)
    (verdict,) = hold(world, published, check_of(production, "t", "id", "a", key=("id",), upto=("9",)))
    assert verdict.is_equal is None
    assert verdict.reason == (
        "column id of the key is integer in production and text here: their orders may differ"
    )
    assert outcome(world, published, check_of(production, "t", "id", "a"))


def test_a_number_of_more_digits_here_that_has_them_is_found(production: Production, world: World) -> None:
    there, here = "(id int PRIMARY KEY, a numeric(10,1))", "(id int PRIMARY KEY, a numeric(10,2))"
    make(production, world, there, here, "(1, 1.5)")
    published, check = catalog_of(production), check_of(production, "t", "id", "a")
    assert outcome(world, published, check)
    world.execute("UPDATE t SET a = 1.54")
    assert outcome(world, published, check) is False


def test_a_row_in_another_partition_is_found(production: Production, world: World) -> None:
    for side in (production, world):
        side.execute(
            "CREATE TABLE t (id int, day date, a text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
            "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
            "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')",
        )
    production.execute(
        "INSERT INTO t SELECT i, '2026-01-01'::date + i, 'x' FROM generate_series(0, 50) i",
    )
    follow(production, world, "t")
    published = catalog_of(production)
    bounds = [None, ("10", "2026-01-11"), ("40", "2026-02-01"), None]
    checks = [
        check_of(production, "t", "id", "day", "a", key=("id", "day"), after=after, upto=upto, chunk=chunk)
        for chunk, (after, upto) in enumerate(pairwise(bounds), start=1)
    ]
    assert sum(check.rows for check in checks) == 51
    assert [verdict.is_equal for verdict in hold(world, published, *checks)] == [True] * 3
    world.execute("UPDATE t SET day = '2026-02-20' WHERE id = 5")
    assert [verdict.is_equal for verdict in hold(world, published, *checks)] == [False, True, True]


def test_rows_of_tables_that_inherit_do_not_count(production: Production, world: World) -> None:
    make(production, world, "(id int PRIMARY KEY)", "(id int PRIMARY KEY)", "(1)")
    world.execute("CREATE TABLE child () INHERITS (t)", "INSERT INTO child VALUES (2)")
    assert outcome(world, catalog_of(production), check_of(production, "t", "id"))


@pytest.mark.skipif(not system_binaries(), reason="no PostgreSQL with ICU: apt-get install postgresql-15")
def test_texts_of_a_key_are_in_the_order_of_their_bytes(
    production: Production,
    make_world: Callable[..., World],
    postgres_server: Callable[[str], PostgresServer],
) -> None:
    world = make_world(postgres_server(VERSIONS[-1]))
    there = '(id text COLLATE "C" PRIMARY KEY)'
    make(production, world, there, '(id text COLLATE "und-x-icu" PRIMARY KEY)', "('a'), ('B'), ('b'), ('ä')")
    check = check_of(production, "t", "id", key=("id",), after=("B",), upto=("b",))
    assert check.rows == 2
    assert outcome(world, catalog_of(production), check)


def test_a_bound_beyond_a_narrower_type_here_is_a_bound(production: Production, world: World) -> None:
    make(production, world, "(id bigint PRIMARY KEY)", "(id int PRIMARY KEY)", "(1), (2)")
    published = catalog_of(production)
    beyond = (str(1 << 40),)
    assert outcome(world, published, check_of(production, "t", "id", key=("id",), upto=beyond))
    assert outcome(world, published, check_of(production, "t", "id", key=("id",), after=beyond))


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ALTER TABLE t RENAME TO gone", "there is no such table here"),
        ("ALTER TABLE t DROP COLUMN a", "there is no column a here"),
    ],
)
def test_a_table_without_what_is_compared_says_so(
    production: Production, world: World, statement: str, reason: str
) -> None:
    make(production, world, "(id int PRIMARY KEY, a text)", "(id int PRIMARY KEY, a text)", "(1, 'x')")
    world.execute(statement)
    (verdict,) = hold(world, catalog_of(production), check_of(production, "t", "id", "a"))
    assert (verdict.is_equal, verdict.reason) == (None, reason)


def test_without_a_catalog_nothing_is_compared(production: Production, world: World) -> None:
    make(production, world, "(id int PRIMARY KEY)", "(id int PRIMARY KEY)", "(1)")
    (verdict,) = hold(world, None, check_of(production, "t", "id"))
    assert verdict.is_equal is None
    assert "types" in verdict.reason


def test_an_ordinary_role_whom_a_policy_hides_rows_from_does_not_compare(
    production: Production, world: World
) -> None:
    make(production, world, "(id int PRIMARY KEY)", "(id int PRIMARY KEY)", "(1)")
    published, check = catalog_of(production), check_of(production, "t", "id")
    world.use_ordinary_role()
    world.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    with world.service() as service:
        connection = service._connector.connect()
        checkpoint = read_checkpoint(connection, check.name)
        assert checkpoint is not None
        target = Target(connection, metric_freq_hours=24)
        (verdict,) = target.verify([check], published, position=checkpoint.position)
    assert (verdict.is_equal, verdict.reason) == (
        None,
        "row-level security hides rows of it from this role",
    )


ROWS = 50_000
BIG = (
    "CREATE TABLE t (tenant int, id bigint, name text, v text, PRIMARY KEY (tenant, id))",
    f"INSERT INTO t SELECT i % 10, i, 'n' || i, repeat('v', 100) FROM generate_series(1, {ROWS}) i",
)


def test_a_bounded_check_reads_the_rows_in_its_bounds_alone(production: Production, world: World) -> None:
    """Also where the planner knows nothing of the table."""
    production.execute(BIG[0])
    follow_empty(production, world)
    for side in (production, world):
        side.execute(BIG[1])
    world.execute("ALTER TABLE t SET (autovacuum_enabled = off)")
    published = catalog_of(production)
    columns = ("tenant", "id", "name", "v")
    keys = [(str(i % 10), str(i)) for i in range(1, 500)]
    key = ("tenant", "id")
    for check in (
        check_of(production, "t", *columns, key=key, after=("3", "40000"), upto=("4", "1000")),
        check_of(production, "t", *columns, key=key, keys=keys),
        check_of(production, "t", *columns, key=key, upto=("0", "1000")),
        check_of(production, "t", *columns, key=key, after=("9", "49000")),
    ):
        assert 0 < check.rows < 2000
        before = read_of(world)
        assert outcome(world, published, check)
        scans, rows = (after - ago for after, ago in zip(read_of(world), before, strict=True))
        assert scans == 0
        assert rows == check.rows


def follow_empty(production: Production, world: World) -> None:
    world.execute(BIG[0])
    follow(production, world, "t")


def read_of(world: World) -> tuple[int, int]:
    """Return how often the table was read as a whole, and how many rows were found by its index."""
    world.execute("SELECT pg_stat_force_next_flush()")
    ((scans, rows),) = world.rows(
        "SELECT seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 't'"
    )
    return scans, rows


def test_a_check_with_another_hash_or_number_differs(production: Production, world: World) -> None:
    make(production, world, "(id int PRIMARY KEY)", "(id int PRIMARY KEY)", "(1), (2)")
    published, check = catalog_of(production), check_of(production, "t", "id")
    assert outcome(world, published, check)
    assert outcome(world, published, msgspec.structs.replace(check, hash="5")) is False
    assert outcome(world, published, msgspec.structs.replace(check, rows=3)) is False
