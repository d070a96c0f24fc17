"""What the checks of an archive say: at its place, the rows are those that the records before it leave."""

from __future__ import annotations

import datetime as dt
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from syncdata.capture import archiver, stream_catalog, verifier
from syncdata.capture.proof_of_reads import Snapshot
from syncdata.capture.published import SeenTable
from syncdata.capture.session import ReplicationSession
from syncdata.capture.verify_exchange import Exchange
from syncdata.capture.verify_reads import Key, Reads, TablePlan, plan_table, take_snapshot
from syncdata.capture.verify_walk import VERIFICATION_FILE_NAME, VerificationState, load_verification
from syncdata.changes.catalog import catalog_name
from syncdata.changes.verification import Check, parse_check
from syncdata.runtime.retry import Backoff
from syncsite.demo.postgres import SETTINGS, PostgresServer
from tests.chains import archived_records
from tests.checked import ALL_THE_TIME, checks_of, hash_of, lines_of, wrong_checks
from tests.production import PUBLICATION, Production, archiving, until

PATIENCE_S = 40.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)


@pytest.fixture
def source(make_production: Callable[..., Production]) -> Production:
    return make_production(**ALL_THE_TIME)


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that takes prepared transactions."""
    server = PostgresServer(
        binaries=postgres.binaries, settings=SETTINGS | {"max_prepared_transactions": "9"}
    )
    server.start()
    yield server
    server.stop()


def rounds(source: Production) -> int:
    state = load_verification(source.spool_dir)
    return state.rounds if state.ended_at else max(state.rounds - 1, 0)


def verified(
    source: Production, rounds_more: int = 1, *, is_enough: Callable[[], bool] = lambda: True
) -> list[Check]:
    """Let the archiver verify all tables, and return the checks in the archive."""
    with archiving(source):
        wanted = rounds(source) + rounds_more
        until(lambda: rounds(source) >= wanted and is_enough())
    archived_records(source.archive_dir)
    return checks_of(source.archive_dir)


def test_the_rows_of_a_table_are_checked_in_chunks_of_its_key(source: Production) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    source.publish("item")
    source.execute("INSERT INTO item SELECT n, 'value ' || n FROM generate_series(1, 25000) AS n")
    checks = verified(source)
    assert_whole_round(first_round(checks, "item"), rows=25_000)
    assert len(first_round(checks, "item")) > 2
    wrong, count = wrong_checks(source.archive_dir, keys={"item": ("id",)})
    assert not wrong and count >= 3


def first_round(checks: list[Check], table: str) -> list[Check]:
    return [check for check in checks if check.round == 1 and check.table == table]


def assert_whole_round(checks: list[Check], *, rows: int) -> None:
    """Fail unless *checks* of one table leave no gap, and are open at both ends."""
    assert [check.chunk for check in checks] == list(range(1, len(checks) + 1))
    assert [check.after for check in checks] == [None, *[check.upto for check in checks[:-1]]]
    assert checks[-1].upto is None
    assert [check.is_last for check in checks] == [False] * (len(checks) - 1) + [True]
    assert [check.seen for check in checks] == [
        sum(check.rows for check in checks[: number + 1]) for number in range(len(checks))
    ]
    assert checks[-1].seen == rows


def churn(source: Production, stop: threading.Event, done: list[int], seed: int) -> None:
    """Change the tables of the busy test in transactions of all kinds, until *stop*; note each in *done*."""
    chance = random.Random(seed)
    with source.connect() as connection:
        while not stop.is_set():
            low = chance.randrange(4) * 1_000 + chance.randrange(900)
            many = chance.choice([1, 3, 50])
            with connection.transaction(force_rollback=chance.random() < 0.2):
                # One lock, so that no two wait for each other.
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (low // 1_000,))
                for table, key in (("item", "id"), ("tag", "b"), ("part", "id")):
                    if chance.random() < 0.5:
                        continue
                    change(connection, table, key, low, many, chance)
            done.append(seed)
            if chance.random() < 0.1:
                name = f"prepared {seed}"
                connection.execute("BEGIN")
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (low // 1_000,))
                change(connection, "item", "id", low, many, chance)
                connection.execute(f"PREPARE TRANSACTION '{name}'")
                connection.execute(f"COMMIT PREPARED '{name}'")
            if seed == 1 and chance.random() < 0.02:
                connection.execute("TRUNCATE item")
                connection.execute(
                    "INSERT INTO item SELECT n, 'again' FROM generate_series(1, 2000) AS n"
                    " ON CONFLICT DO NOTHING"
                )


def change(
    connection: psycopg.Connection[Any], table: str, key: str, low: int, many: int, chance: random.Random
) -> None:
    # In one order, so that no two wait for each other.
    within = f"{key}::int BETWEEN {low} AND {low + many}"
    with connection.transaction(force_rollback=chance.random() < 0.2):
        connection.execute(f"DELETE FROM {table} WHERE {within}")
        if chance.random() < 0.7:
            connection.execute(
                f"INSERT INTO {table} SELECT {ROW_OF[table]}"
                f" FROM generate_series({low}, {low + many}) AS n ON CONFLICT DO NOTHING"
            )
    connection.execute(f"UPDATE {table} SET v = v || '+' WHERE {within}")


ROW_OF = {
    "item": "n, 'a, (b) \"c\" \\ ' || n",
    "tag": "n % 7, n::text, CASE WHEN n % 3 > 0 THEN '' || n END",
    "part": "n, 'p' || n",
}


def test_each_check_of_a_busy_source_has_the_rows_of_its_place(
    make_production: Callable[..., Production], server: PostgresServer
) -> None:
    source = make_production(server, **ALL_THE_TIME)
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, v text)",
        'CREATE TABLE tag (a int, b text COLLATE "C", v text, PRIMARY KEY (a, b))',
        "CREATE TABLE part (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (2000)",
        "CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (2000) TO (MAXVALUE)",
    )
    source.publish("item", "tag", "part")
    for table, row in ROW_OF.items():
        source.execute(f"INSERT INTO {table} SELECT {row} FROM generate_series(1, 4000) AS n")
    stop, done = threading.Event(), list[int]()
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(churn, source, stop, done, seed) for seed in (1, 2, 3)]
        try:
            checks = verified(source, 4, is_enough=lambda: len(done) > 250)
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    wrong, count = wrong_checks(
        source.archive_dir,
        keys={"item": ("id",), "tag": ("a", "b"), "part": ("id",)},
        orders={"b": str.encode},
    )
    assert not wrong
    assert count == len(checks)
    assert {check.table for check in checks} == {"item", "tag", "part"}
    records = archived_records(source.archive_dir)
    assert len({record.commit_lsn for record in records}) > 100


def state_of(source: Production) -> VerificationState:
    return load_verification(source.spool_dir)


def test_what_the_publication_hides_is_in_no_check(source: Production) -> None:
    source.execute(
        "CREATE TABLE few (id int PRIMARY KEY, secret text, price money, kind regtype[], v text)",
        f"ALTER PUBLICATION {PUBLICATION} ADD TABLE few (id, price, kind, v) WHERE (id % 2 = 0)",
        "INSERT INTO few SELECT n, 'x', 1, '{int}', '50 %' FROM generate_series(1, 100) AS n",
    )
    (check, *_) = verified(source)
    assert (check.columns, check.left_out) == (("id", "v"), ("price", "kind"))
    assert check.rows == 50 and check.is_of_whole_table and check.is_last
    assert state_of(source).left_out == {"few": "without price, kind, whose text means something here only"}
    assert not wrong_checks(source.archive_dir, keys={"few": ("id",)})[0]


def test_keys_whose_order_is_the_servers_own_are_listed(source: Production) -> None:
    source.execute(
        "CREATE TABLE word (w char(5), n int, PRIMARY KEY (w, n))",
        "CREATE TYPE mood AS ENUM ('z', 'a')",
        "CREATE TABLE small (m mood PRIMARY KEY)",
    )
    source.publish("word", "small")
    source.execute(
        "INSERT INTO small VALUES ('a'), ('z')",
        "INSERT INTO word SELECT chr(65 + n % 50) || n % 700, n FROM generate_series(1, 10500) AS n",
    )
    checks = first_round(verified(source), "word")
    total, *parts = checks
    assert (total.rows, total.hash, total.keys, total.is_last) == (10_500, None, None, False)
    assert all(check.keys and check.after is None and check.upto is None for check in parts)
    assert sum(check.rows for check in parts) == 10_500 == parts[-1].seen
    assert [check.is_last for check in parts] == [False] * (len(parts) - 1) + [True]
    assert len({key for check in parts for key in check.keys or ()}) == 10_500
    assert not wrong_checks(source.archive_dir, keys={"word": ("w", "n"), "small": ("m",)})[0]
    (small,) = first_round(checks_of(source.archive_dir), "small")
    assert small.is_of_whole_table and small.hash is not None and small.is_last


def test_rows_without_a_key_are_checked_as_a_whole_or_counted(source: Production) -> None:
    source.execute(
        "CREATE TABLE small (v text)",
        "CREATE TABLE large (v text)",
        "CREATE TABLE void (id int PRIMARY KEY)",
        "ALTER TABLE small REPLICA IDENTITY FULL",
        "ALTER TABLE large REPLICA IDENTITY FULL",
    )
    source.publish("small", "large", "void")
    source.execute(
        "INSERT INTO small SELECT n % 3 FROM generate_series(1, 30) AS n",
        "INSERT INTO large SELECT n FROM generate_series(1, 10001) AS n",
    )
    checks = [check for check in verified(source) if check.round == 1]
    assert [(check.table, check.rows, check.hash is not None, check.is_last) for check in checks] == [
        ("large", 10_001, False, True),
        ("small", 30, True, True),
        ("void", 0, False, True),
    ]


def test_a_table_that_may_not_be_read_is_left_out_by_name(source: Production) -> None:
    source.execute(
        "CREATE TABLE open (id int PRIMARY KEY)",
        "CREATE TABLE shut (id int PRIMARY KEY)",
        "DROP ROLE IF EXISTS checker",
        "CREATE ROLE checker LOGIN REPLICATION PASSWORD 'checker'",
        "GRANT SELECT ON open TO checker",
    )
    source.publish("open", "shut")
    source.login = {"user": "checker", "password": "checker"}
    checks = verified(source)
    assert {check.table for check in checks} == {"open"}
    assert state_of(source).left_out == {"shut": "permission denied for table shut"}
    source.login = {}
    source.execute("DROP OWNED BY checker", "DROP ROLE checker")


def test_a_truncate_between_the_snapshot_and_the_rows_makes_no_false_check(
    source: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    source.publish("item")
    source.execute("INSERT INTO item SELECT n, 'v' FROM generate_series(1, 100) AS n")
    refused = 0

    def truncating(connection: psycopg.Connection[Any], mark: str | None) -> Snapshot:
        nonlocal refused
        snapshot = take_snapshot(connection, mark)
        with source.connect(options="-c lock_timeout=20ms") as other:
            try:
                other.execute("TRUNCATE item")
            except psycopg.errors.LockNotAvailable:
                refused += 1
        return snapshot

    monkeypatch.setattr(verifier, "take_snapshot", truncating)
    verified(source, 3)
    assert refused
    assert not wrong_checks(source.archive_dir, keys={"item": ("id",)})[0]


def test_nothing_is_proved_while_an_older_transaction_goes_on(source: Production) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    source.publish("item")
    with source.connect() as older:
        older.execute("BEGIN")
        older.execute("INSERT INTO item VALUES (1, 'older')")
        with archiving(source):
            until(lambda: "that began before" in state_of(source).trouble)
            assert state_of(source).proved == 0
            older.execute("COMMIT")
            until(lambda: rounds(source) >= 1)
    assert not state_of(source).trouble
    wrong, count = wrong_checks(source.archive_dir, keys={"item": ("id",)})
    assert not wrong and count


def test_a_commit_that_waits_for_its_standby_is_in_no_check(
    make_production: Callable[..., Production], server: PostgresServer
) -> None:
    """Its record is in the archive before any snapshot shows it."""
    source = make_production(server, **ALL_THE_TIME)
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.publish("item")
    with archiving(source), ThreadPoolExecutor() as pool:
        until(lambda: rounds(source) >= 1)
        source.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
        waiting = pool.submit(
            source.execute, "SET synchronous_commit = on", "INSERT INTO item VALUES (7), (8)"
        )
        until(lambda: archived_records(source.archive_dir))
        source.execute("SET synchronous_commit = local", "ALTER SYSTEM RESET synchronous_standby_names")
        assert not waiting.done()
        proved = state_of(source).proved
        until(lambda: state_of(source).unproved or state_of(source).rounds > 3 + proved)
        source.execute("SELECT pg_reload_conf()")
        waiting.result(PATIENCE_S)
        wanted = rounds(source) + 2
        until(lambda: rounds(source) >= wanted)
    wrong, count = wrong_checks(source.archive_dir, keys={"item": ("id",)})
    assert not wrong and count
    assert checks_of(source.archive_dir)[-1].rows == 2


def test_checks_of_a_silent_source_come_in_files_of_their_own(source: Production) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.publish("item")
    source.archive()
    with archiving(source):
        until(lambda: len(checks_of(source.archive_dir)) > 3)
    assert archived_records(source.archive_dir) == []


def test_a_walk_goes_on_where_it_stood(source: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY)", "CREATE TABLE tag (id int PRIMARY KEY)")
    source.publish("item", "tag")
    source.execute("INSERT INTO item SELECT generate_series(1, 3000)")
    source.options["verify_rows_per_s"] = 100  # so 1,000 rows at once, and then a rest of ten seconds
    with archiving(source):
        until(lambda: checks_of(source.archive_dir))
    assert state_of(source).after == ("1000",)
    source.options["verify_rows_per_s"] = 1_000_000
    checks = first_round(verified(source), "item")
    assert_whole_round(checks, rows=3_000)
    assert checks[0].upto == ("1000",)


def test_a_round_lacks_no_check_of_a_file_that_was_discarded(
    source: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends by an error gives its open file up; what it had proved there is read again."""
    monkeypatch.setattr(archiver, "_FIRST_RETRY_S", 0.02)
    written: list[int] = []
    write_check = ReplicationSession._write_check

    def noted(session: ReplicationSession, exchange: Exchange, seen: SeenTable, mark: str, lsn: int) -> Any:
        written.append(lsn)
        return write_check(session, exchange, seen, mark, lsn)

    monkeypatch.setattr(ReplicationSession, "_write_check", noted)
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.publish("item")
    source.options["rotate_s"] = 60
    with archiving(source):
        source.execute("INSERT INTO item SELECT generate_series(1, 25000)")
        until(lambda: len(written) > 3)
        assert not checks_of(source.archive_dir)
        source.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = current_database() AND active_pid IS NOT NULL"
        )
        enough = len(written) + 4
        until(lambda: len(written) > enough)
    assert_whole_round(first_round(checks_of(source.archive_dir), "item"), rows=25_000)


def test_without_a_rate_nothing_is_read_and_nothing_asked_for(source: Production) -> None:
    source.options["verify_rows_per_s"] = 0
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.publish("item")
    source.execute("SELECT pg_logical_emit_message(false, 'syncdata', 'another archiver''s')")
    with archiving(source):
        source.execute("INSERT INTO item VALUES (1)")
        until(lambda: archived_records(source.archive_dir))
        activity = "SELECT application_name FROM pg_stat_activity WHERE application_name ~ 'verify'"
        assert source.rows(activity) == []
    assert checks_of(source.archive_dir) == []
    assert not (source.spool_dir / VERIFICATION_FILE_NAME).exists()


@pytest.mark.parametrize("is_file_open", [True, False])
def test_checks_are_under_the_catalog_that_they_were_read_under(
    source: Production, monkeypatch: pytest.MonkeyPatch, *, is_file_open: bool
) -> None:
    """The stream says nothing of an ALTER until a row changes, and looks are rare."""
    ended: list[int] = []
    end = VerificationState.ended

    def noted(state: VerificationState, now: dt.datetime) -> VerificationState:
        ended.append(state.rounds)
        return end(state, now)

    # What is on the disk is behind: it waits for the file to be finished.
    monkeypatch.setattr(VerificationState, "ended", noted)
    monkeypatch.setattr(stream_catalog, "LOOK_EVERY_S", 60.0)
    source.options["rotate_s"] = 60.0
    source.execute("CREATE TABLE item (id int PRIMARY KEY, price numeric(10,2))")
    source.publish("item")
    source.execute("INSERT INTO item SELECT n, 1 FROM generate_series(1, 50) AS n")
    if not is_file_open:
        source.archive()
    with archiving(source):
        until(lambda: ended)
        source.execute("ALTER TABLE item ALTER price TYPE numeric(10,4)")
        enough = len(ended) + 2
        until(lambda: len(ended) >= enough)
    catalog, read = "", set()
    for line in lines_of(source.archive_dir):
        if named := re.match(rb'# \{.*"catalog":"([0-9a-f]+)"', line):
            catalog = (source.archive_dir / catalog_name(named[1].decode())).read_text()
        if check := parse_check(line):
            type_read = next(
                type_text
                for type_text, one in (("numeric(10,2)", "1.00"), ("numeric(10,4)", "1.0000"))
                if check.hash == hash_of(check, [{"id": str(n), "price": one} for n in range(1, 51)])
            )
            assert f'"type":"{type_read}"' in catalog
            read.add(type_read)
    assert "numeric(10,4)" in read
    assert is_file_open <= ("numeric(10,2)" in read)


# Its operators are in a schema that is not searched, and > of what it can be cast to is another.
BACKWARDS = """
CREATE TYPE word;
CREATE FUNCTION word_in(cstring) RETURNS word AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION word_out(word) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE word (INPUT = word_in, OUTPUT = word_out, LIKE = text);
CREATE CAST (word AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE FUNCTION word_cmp(word, word) RETURNS int LANGUAGE sql IMMUTABLE AS
    'SELECT pg_catalog.bttextcmp($2::text, $1::text)';
CREATE FUNCTION word_lt(word, word) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text > $2::text';
CREATE FUNCTION word_gt(word, word) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text < $2::text';
CREATE FUNCTION word_eq(word, word) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2::text';
CREATE OPERATOR < (LEFTARG = word, RIGHTARG = word, FUNCTION = word_lt);
CREATE OPERATOR > (LEFTARG = word, RIGHTARG = word, FUNCTION = word_gt);
CREATE OPERATOR = (LEFTARG = word, RIGHTARG = word, FUNCTION = word_eq);
CREATE OPERATOR CLASS word_ops DEFAULT FOR TYPE word USING btree AS
    OPERATOR 1 <, OPERATOR 3 =, OPERATOR 5 >, FUNCTION 1 word_cmp(word, word);
"""


def test_keys_of_a_type_with_operators_of_its_own_are_no_bounds(source: Production) -> None:
    """As those of citext: what has not been read would count as read."""
    source.execute(BACKWARDS, "CREATE TABLE item (w word PRIMARY KEY)")
    source.publish("item")
    source.execute("INSERT INTO item SELECT (n::text)::word FROM generate_series(1, 12000) AS n")
    first, *_ = verified(source)
    assert (first.rows, first.key, first.hash, first.is_last) == (12_000, (), None, True)
    assert not wrong_checks(source.archive_dir, keys={"item": ("w",)})[0]


def test_the_longest_read_is_told_by_the_clock_of_the_source(
    source: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy archiver lets the thread wait, and production knows nothing of that."""
    take_rows = Reads.rows

    def late(reads: Reads, after: Key | None, upto: Key | None) -> tuple[int, str | None]:
        rows = take_rows(reads, after, upto)
        time.sleep(0.15)
        return rows

    monkeypatch.setattr(Reads, "rows", late)
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.publish("item")
    verified(source)
    assert 0 < state_of(source).longest_ms < 150


def test_a_connection_that_is_lost_now_and_then_is_made_anew_as_soon_each_time(
    source: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    class Noted(Backoff):
        def next_s(self) -> float:
            pauses.append(super().next_s())
            return pauses[-1]

    monkeypatch.setattr(verifier, "Backoff", Noted)
    monkeypatch.setattr(verifier, "_FIRST_RETRY_S", 0.1)
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    source.publish("item")

    def lose_it() -> None:
        wanted, times = rounds(source) + 2, len(pauses) + 1
        until(lambda: rounds(source) >= wanted)
        source.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'syncdata-verifier' AND datname = current_database()"
        )
        until(lambda: len(pauses) >= times)

    with archiving(source):
        for _ in range(5):
            lose_it()
    assert max(pauses[:5]) <= 0.1


def test_a_look_into_the_catalog_may_take_longer_than_a_read(
    source: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(connection: psycopg.Connection[Any], *arguments: Any) -> TablePlan:
        connection.execute("SELECT pg_sleep(0.3)")
        return plan_table(connection, *arguments)

    monkeypatch.setattr(verifier, "plan_table", slow)
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    source.publish("item")
    assert first_round(verified(source), "item")
