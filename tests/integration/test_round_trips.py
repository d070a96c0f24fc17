"""Batches that go to the server at once: how often one waits for it, and that every way gives equal rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import sql

from syncdata.apply import cycle as cycle_module
from syncdata.apply.counts import Counts
from syncdata.apply.plan import table_plan
from syncdata.apply.plan.table_plan import TablePlan
from syncdata.apply.postgres import direct
from syncdata.apply.postgres import target as target_module
from syncdata.apply.postgres.at_once import AtOnceWriter, NotAtOnceError
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.connection import in_one_trip, prepare_session
from syncdata.apply.postgres.script import Statement, StatementError, run_script
from syncdata.apply.postgres.target import Target
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.state.checkpoints import read_checkpoint
from syncdata.changes.names import TableName
from tests.integration.test_fallback import Cost, counted
from tests.production import Production
from tests.verified import catalog_of, check_of, follow
from tests.world import World, delete, insert, update

FILES = [f"changes_20260205_1030{n:02d}.json" for n in range(60)]
MANY = 30  # more than go by a statement each

Records = Iterable[dict[str, Any]]


def trips(cost: Cost) -> int:
    """How often the client has waited: after a query or a COPY, at the end of a pipeline, or within one."""
    sent = [line.split("\t")[3] for line in cost.text.splitlines() if line.split("\t")[1:2] == ["F"]]
    # The driver asks for the answers at a pipeline's end once more: a flush right after a sync.
    flushes = sum(pair[1] == "Flush" and pair[0] != "Sync" for pair in pairwise(sent))
    return flushes + sum(sent.count(kind) for kind in ("Query", "Sync", "CopyDone"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """What each batch has cost."""
    apply, costs = Target.apply, []

    def traced(target: Target, *arguments: Any) -> Any:
        with counted(target._connection) as cost:
            outcome = apply(target, *arguments)
        costs.append(cost)
        return outcome

    monkeypatch.setattr(Target, "apply", traced)
    return costs


def only_inserts(table: str, number: int) -> Records:
    return (insert(table, id=1_000 * number + n, v="new", n=n) for n in range(MANY))


def mixed(table: str, number: int) -> Records:
    """Of all kinds, whole rows and parts; the rows that they are about came with the file before."""
    before, now = 1_000 * (number - 1), 1_000 * number
    yield from only_inserts(table, number)
    yield from (update(table, id=before + n, v="whole", n=n) for n in range(10))
    yield from (update(table, id=before + n, n=-1) for n in range(10, 15))
    yield from (update(table, id=before + n, v="part") for n in range(15, 20))
    yield from (delete(table, id=before + n) for n in range(20, 25))
    yield from (delete(table, id=now + n) for n in range(3))


def few(table: str, number: int) -> Records:
    before, now = 1_000 * (number - 1), 1_000 * number
    return [insert(table, id=now + 100, v="few"), update(table, id=before, n=7), delete(table, id=before + 1)]


KINDS: dict[str, Callable[[str, int], Records]] = {"inserts": only_inserts, "mixed": mixed, "few": few}


def make_tables(world: World, count: int, *, columns: int = 0) -> list[str]:
    names = [f"t{n:02d}" for n in range(count)]
    more = "".join(f", c{n} text" for n in range(columns))
    world.execute(*(f"CREATE TABLE {name} (id serial PRIMARY KEY, v text, n int{more})" for name in names))
    world.whitelist(*names)
    return names


def play(world: World, files: Iterable[Records]) -> None:
    with world.service() as service:
        for number, records in enumerate(files):
            world.write(FILES[number], records)
            assert service.run_once().errors == ()


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        *((count, [kind]) for count in (1, 2) for kind in KINDS),
        (5, ["few", "mixed", "inserts"]),
        (40, ["few", "mixed", "inserts"]),
    ],
)
@pytest.mark.parametrize("is_ordinary", [False, True])
def test_a_batch_of_one_table_takes_four_round_trips_and_each_further_table_one_more(
    world: World, batches: list[Cost], count: int, is_ordinary: bool, kinds: list[str]
) -> None:
    names = make_tables(world, count)
    if is_ordinary:
        world.use_ordinary_role()

    def file_of(number: int) -> Iterator[dict[str, Any]]:
        for at, name in enumerate(names):
            yield from (KINDS[kinds[at % len(kinds)]] if number else only_inserts)(name, number)

    play(world, map(file_of, range(2)))
    first, second = batches
    assert trips(first) <= 4 + count - 1, first.text[:10_000]
    assert trips(second) <= 4 + count - 1, second.text[:10_000]
    for at, name in enumerate(names):
        kind = kinds[at % len(kinds)]
        rows = {"inserts": 2 * MANY, "mixed": 2 * MANY - 8, "few": MANY}[kind]
        assert world.value(f"SELECT count(*) FROM {name}") == rows
        if kind == "mixed":
            found = world.rows(f"SELECT v, n FROM {name} WHERE id IN (1, 11, 16) ORDER BY id")
            assert found == [("whole", 1), ("new", -1), ("part", 16)]
        next_id = world.value(f"SELECT nextval('{name}_id_seq')")
        assert next_id == world.value(f"SELECT max(id) FROM {name}") + 1
    audited = world.value("SELECT sum(records_added) FROM data_sync_logs WHERE action = 'sync'")
    assert audited == world.value("SELECT sum(records_added) FROM data_sync_checkpoints") > 0


def test_how_many_statements_a_batch_takes_does_not_depend_on_records_columns_or_idle_tables(
    make_world: Callable[..., World], batches: list[Cost]
) -> None:
    found = []
    for rows, columns, idle in ((MANY, 0, 0), (10 * MANY, 0, 0), (MANY, 50, 0), (MANY, 0, 30)):
        world = make_world()
        names = make_tables(world, 1 + idle, columns=columns)
        records = [insert(names[0], id=n, v="a") for n in range(rows)]
        changes = [update(names[0], id=n, v="b") for n in range(rows)]
        play(world, [records, changes])
        found.append((batches[-1].statements, trips(batches[-1])))
        assert world.rows(f"SELECT v, count(*) FROM {names[0]} GROUP BY v") == [("b", rows)]
    assert found == [found[0]] * len(found)


def test_a_table_that_cannot_go_at_once_rests_and_the_others_lose_nothing(
    make_world: Callable[..., World], batches: list[Cost]
) -> None:
    world = make_world(batch_records=3 * MANY)
    names = make_tables(world, 3)
    rows = [insert(name, id=n, v="a") for name in names for n in range(MANY)]
    # Half of the first table's rows to be updated are not there: not told from rows that are named twice.
    changes = [
        update(name, ts=f"2026-02-05T10:30:{number:02d}Z", id=n if at else 2 * n, v=f"{number}")
        for number in range(4)
        for at, name in enumerate(names)
        for n in range(MANY)
    ]
    play(world, [rows, changes])
    whole, half = [("3", MANY)], [("3", MANY // 2), ("a", MANY // 2)]
    for name, expected in zip(names, [half, whole, whole], strict=True):
        assert world.rows(f"SELECT v, count(*) FROM {name} GROUP BY v ORDER BY v") == expected
    missing = "SELECT records_missing FROM data_sync_checkpoints ORDER BY table_name"
    assert world.rows(missing) == [(4 * MANY // 2,), (0,), (0,)]
    # The first batch is tried in vain. In the next one the table rests; then it is tried again.
    assert ["ROLLBACK" in batch.text for batch in batches] == [False, True, False, True, False]
    assert trips(batches[2]) < trips(batches[1])


def test_rows_that_are_there_already_come_again_without_harm(world: World) -> None:
    names = make_tables(world, 2)
    world.execute(f"INSERT INTO {names[1]} (id, v) VALUES (3, 'mine')")
    play(world, [[insert(name, id=n, v="a", n=1) for name in names for n in range(MANY)]])
    for name in names:
        assert world.rows(f"SELECT DISTINCT v, n, count(*) OVER () FROM {name}") == [("a", 1, MANY)]


def test_a_record_that_is_refused_blocks_its_table_alone(world: World) -> None:
    names = make_tables(world, 3)
    world.execute(f"ALTER TABLE {names[1]} ADD CHECK (n < 20)")
    world.write(FILES[0], [insert(name, id=n, v="secret", n=n) for name in names for n in range(MANY)])
    (error,) = world.sync().errors
    assert error.table == names[1] and error.line == MANY + 21 and "secret" not in str(error)
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [MANY, 0, MANY]


def test_a_sequence_that_the_role_may_not_move_costs_nothing(world: World, batches: list[Cost]) -> None:
    world.execute("CREATE TABLE t (id serial PRIMARY KEY, n serial, v text)")
    world.whitelist("t")
    world.use_ordinary_role()
    world.execute(
        "REVOKE ALL ON SEQUENCE t_id_seq FROM ordinary",
        "REVOKE USAGE, SELECT ON SEQUENCE t_n_seq FROM ordinary",
    )
    play(world, [[insert("t", id=5, n=7, v="a")]])
    assert ["ROLLBACK" in batch.text for batch in batches] == [False]


@pytest.mark.parametrize("rows", [1, MANY])
def test_of_tables_that_go_at_once_the_one_that_others_lock_is_blocked(
    world: World, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    names = make_tables(world, 3)
    world.write(FILES[0], [insert(name, id=n) for name in names for n in range(rows)])
    with world.connect() as other:
        other.execute("BEGIN")
        other.execute(f"LOCK TABLE {names[1]}")
        (error,) = world.sync().errors
    assert error.table == names[1]
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [rows, 0, rows]


def test_a_sequence_that_others_lock_blocks_its_table_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle_module, "LOCK_LIMIT_S", 0.0)
    monkeypatch.setattr(target_module, "_WAIT_S", 0.1)
    world.execute("CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id serial PRIMARY KEY)")
    world.whitelist("a", "b")
    world.write(FILES[0], [insert("a", id=1), insert("b", id=1)])
    with world.connect() as other:
        other.execute("BEGIN")
        other.execute("ALTER SEQUENCE b_id_seq CACHE 5")
        (error,) = world.sync().errors
    assert error.table == "b"
    assert [world.value(f"SELECT count(*) FROM {name}") for name in "ab"] == [1, 0]


@pytest.mark.parametrize("is_ordinary", [False, True])
@pytest.mark.parametrize(
    ("seed", "has_long_values"), [(0, False), (1, False), (2, False), (4, True), (5, True)]
)
def test_at_once_and_table_by_table_end_with_the_same_rows_and_counts(
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    is_ordinary: bool,
    has_long_values: bool,
) -> None:
    monkeypatch.setattr(direct, "MOST_ROWS", 3)
    if has_long_values:  # some of the texts are
        monkeypatch.setattr(table_plan, "_MEAN_BYTES", 0)
        monkeypatch.setattr(table_plan, "LONG_VALUE", 6)
    random_ = random.Random(seed)
    files = [[_any_record(random_) for _ in range(random_.randint(1, 40))] for _ in range(12)]
    outcomes = []
    for is_at_once in (True, False):
        world = make_world()
        world.execute(
            "CREATE TABLE a (id int PRIMARY KEY, v text, n int)",
            "CREATE TABLE b (n int, id numeric(4,1) PRIMARY KEY, v text UNIQUE)",
            "CREATE TABLE c (id int, v text, n int)",
            "CREATE TABLE d (id int PRIMARY KEY, n int, v text GENERATED ALWAYS AS (n::text) STORED)",
        )
        world.whitelist("a", "b", "c", "d")
        if is_ordinary:
            world.use_ordinary_role()
        with monkeypatch.context() as patch:
            if not is_at_once:
                patch.setattr(AtOnceWriter, "write", lambda self, plans: {})
            play(world, files)
        counts = (
            "SELECT table_name, records_added, records_updated, records_deleted, records_missing"
            " FROM data_sync_checkpoints ORDER BY 1"
        )
        rows = [world.rows(f"SELECT * FROM {name} ORDER BY {name}::text") for name in "abcd"]
        outcomes.append((rows, world.rows(counts)))
    assert outcomes[0] == outcomes[1]
    assert all(outcomes[0][0])


def test_long_values_go_to_the_server_by_themselves_and_not_by_copy(
    world: World, batches: list[Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = make_tables(world, 1)
    long = [f"{n}\t\\\n" + "ä" * 20_000 for n in range(4)]

    def changes() -> Records:
        yield from (update(name, id=n, n=n + 1) for n in range(5, MANY))
        yield update(name, id=3, v=long[3])
        yield insert(name, id=-1, v=long[1], n=1)
        yield delete(name, id=2)
        yield update(name, id=-2, v=long[2])  # which is not there
        yield insert(name, id=2, v=long[0], n=0)  # another one

    play(
        world,
        [only_inserts(name, 0), changes(), [insert(name, id=100 + n, v=long[n % 4]) for n in range(MANY)]],
    )
    assert world.rows(f"SELECT id, v, n FROM {name} WHERE id < 6 ORDER BY id") == [
        (-1, long[1], 1), (0, "new", 0), (1, "new", 1), (2, long[0], 0),
        (3, long[3], 3), (4, "new", 4), (5, "new", 6),
    ]  # fmt: skip
    assert world.rows(f"SELECT v, count(*) FROM {name} WHERE id >= 100 GROUP BY v ORDER BY v") == [
        (text, len(range(n, MANY, 4))) for n, text in enumerate(long)
    ]
    assert world.value("SELECT records_missing FROM data_sync_checkpoints") == 1
    assert not any("ROLLBACK" in batch.text for batch in batches)
    assert all(max(copied_bytes(batch), default=0) < 5_000 for batch in batches)
    assert [trips(batch) <= 4 for batch in batches] == [True] * 3


def copied_bytes(cost: Cost) -> list[int]:
    lines = [line.split("\t") for line in cost.text.splitlines()]
    return [int(line[2]) for line in lines if len(line) > 3 and line[1] == "F" and line[3] == "CopyData"]


def test_a_long_value_that_is_not_written_with_the_commit_stops_it(
    world: World, batches: list[Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = make_tables(world, 1)
    monkeypatch.setattr(direct, "on_conflict", lambda settable: sql.SQL("NOTHING"))
    text = "x" * 20_000
    play(world, [only_inserts(name, 0), [*only_inserts(name, 1), insert(name, id=3, v=text, n=-1)]])
    assert ["ROLLBACK" in batch.text for batch in batches] == [False, True]
    assert world.rows(f"SELECT v, n FROM {name} WHERE id = 3") == [(text, -1)]


@pytest.mark.parametrize("is_ordinary", [False, True])
def test_a_long_value_that_is_refused_blocks_its_table_alone(world: World, is_ordinary: bool) -> None:
    names = make_tables(world, 2)
    world.execute(f"ALTER TABLE {names[0]} ADD CHECK (length(v) < 20000)")
    if is_ordinary:
        world.use_ordinary_role()
    texts = ["secret" * (4_000 if n == 20 else 2_000) for n in range(MANY)]
    world.write(FILES[0], [insert(name, id=n, v=texts[n]) for name in names for n in range(MANY)])
    (error,) = world.sync().errors
    assert error.table == names[0] and error.line == 21 and "secret" not in str(error)
    assert [world.value(f"SELECT count(*) FROM {name}") for name in names] == [0, MANY]


def _any_record(random_: random.Random) -> dict[str, Any]:
    table, key, n = random_.choice("abcd"), random_.randrange(60), random_.randrange(99)
    v: dict[str, Any] = (
        {} if table == "d" else {"v": random_.choice(["x\ty", "\\N", "ä", ""]) + f" {key} {n}"}
    )
    if table == "c":
        return insert("c", id=key, n=n, **v)
    match random_.randrange(8):
        case 0:
            return delete(table, id=key)
        case 1:
            return update(table, id=key, n=n)
        case 2:
            return update(table, {"id": key}, id=random_.randrange(100, 900), n=n, **v)
        case 3 | 4:
            return update(table, id=key, n=n, **v)
        case _:
            return insert(table, id=key, n=n, **v)


def test_a_plan_that_would_be_replayed_if_a_row_were_missing_does_not_go_at_once_when_one_is(
    connection: psycopg.Connection[Any],
) -> None:
    table = TableName("public", "t")
    prepare_session(connection)
    writer = RowWriter(connection)
    plan = TablePlan(
        schema=read_schemas(connection, [table])[table],
        counts=Counts(deleted=MANY),
        gone={(str(n),): True for n in range(MANY)},
        replay_if_missing=True,
    )
    with connection.transaction(), pytest.raises(NotAtOnceError):
        writer.begin()
        AtOnceWriter(writer).write({table: plan})


def test_a_transaction_that_cannot_be_rolled_back_ends_with_its_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = make_tables(world, 1)
    world.write(FILES[0], [insert(name, id=1)])

    def interrupted(self: AtOnceWriter, plans: object) -> None:
        cursor = self._connection.cursor()
        with cursor.copy(f"COPY {name} (id) FROM STDIN"):
            raise KeyboardInterrupt

    def refused(self: psycopg.Connection[Any]) -> None:
        raise psycopg.OperationalError("another command is already in progress")

    with world.service() as service:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(AtOnceWriter, "write", interrupted)
            patch.setattr(psycopg.Connection, "rollback", refused)
            service.run_once()
        world.execute("SET lock_timeout = '5s'", "BEGIN", f"LOCK TABLE {name}, data_sync_checkpoints")
        assert service.run_once().errors == ()
    assert world.rows(f"SELECT id FROM {name}") == [(1,)]


# Scripts


@pytest.fixture
def connection(world: World) -> Iterator[psycopg.Connection[Any]]:
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    with world.connect() as connection:
        yield connection


def copy(*blocks: bytes) -> Statement:
    return Statement(b"COPY t FROM STDIN", blocks)


def test_a_script_returns_the_count_of_each_statement(connection: psycopg.Connection[Any]) -> None:
    large = [b"%d\t%s\n" % (n, b"x" * 1_000) for n in range(10, 20_000)]
    script = [copy(b"1\ta\n", b"2\tb\n"), Statement(b"UPDATE t SET v = 'c'"), copy(b"".join(large)), copy()]
    assert run_script(connection, script) == [2, 2, len(large), 0]
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (len(large) + 2,)


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ([Statement(b"SELECT 1"), Statement(b"SELECT no_such"), Statement(b"SELECT 2")], 1),
        ([copy(b"1\ta\n"), copy(b"1\ta\n"), copy(b"2\ta\n")], 1),
        ([copy(b"1\ta\n"), copy(b"not a number\ta\n" * 1_000_000)], 1),
        ([copy(b"1\ta\n"), Statement(b"COPY no_such FROM STDIN", [b"1\n"]), copy(b"2\ta\n")], 1),
    ],
)
def test_a_script_says_which_statement_was_refused_and_leaves_the_connection_as_it_was(
    connection: psycopg.Connection[Any], script: list[Statement], number: int
) -> None:
    with connection.transaction(force_rollback=True):
        with pytest.raises(StatementError) as caught, connection.transaction():
            run_script(connection, script)
        assert caught.value.number == number and caught.value.error.sqlstate
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_rows_that_cannot_be_sent_end_the_script_and_leave_the_connection_as_it_was(
    connection: psycopg.Connection[Any],
) -> None:
    def rows() -> Iterator[bytes]:
        yield b"1\ta\n"
        raise ValueError

    with pytest.raises(ValueError):
        run_script(connection, [Statement(b"COPY t FROM STDIN", rows()), copy(b"2\ta\n")])
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_an_interrupt_between_the_rows_of_a_script_leaves_the_connection_as_it_was(
    connection: psycopg.Connection[Any],
) -> None:
    def rows() -> Iterator[bytes]:
        yield b"1\ta\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_script(connection, [Statement(b"COPY t FROM STDIN", rows()), copy(b"2\ta\n")])
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_an_interrupt_logs_nothing_of_the_rows_that_the_server_refuses_just_then(
    connection: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt), in_one_trip(connection):
        connection.execute("INSERT INTO t VALUES (77), (77)")
        raise KeyboardInterrupt
    assert not [record for record in caplog.records if record.name == "psycopg"]


def test_a_connection_that_is_lost_in_a_script_is_the_servers_fault(
    world: World, connection: psycopg.Connection[Any]
) -> None:
    def rows() -> Iterator[bytes]:
        world.execute(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        while True:
            yield b"1\ta\n" * 10_000

    with pytest.raises((psycopg.OperationalError, StatementError)) as caught:
        run_script(connection, [Statement(b"COPY t FROM STDIN", rows())])
    error = caught.value.error if isinstance(caught.value, StatementError) else caught.value
    assert isinstance(error, psycopg.OperationalError)


def test_checks_of_small_tables_cost_few_round_trips(production: Production, world: World) -> None:
    names = [f"small{n:02d}" for n in range(20)]
    for name in names:
        production.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)", f"INSERT INTO {name} VALUES (1)")
        world.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    follow(production, world, *names)
    catalog = catalog_of(production)
    with world.connect() as connection:
        target = Target(connection, metric_freq_hours=24)
        costs = []
        for number in (1, 2):  # the first looks at the tables' definitions, too
            checks = [check_of(production, name, "id", round=number, is_last=True) for name in names]
            checkpoint = read_checkpoint(connection, checks[0].name)
            assert checkpoint is not None
            with counted(connection) as cost:
                verdicts = target.verify(checks, catalog, position=checkpoint.position)
            assert [verdict.is_equal for verdict in verdicts] == [True] * len(names)
            costs.append(trips(cost) / len(names))
    assert costs[1] < 6
