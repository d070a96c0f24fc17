"""What the checks of an archive say: at its place, the rows are those that the records before it leave."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from syncdata.capture import verifier
from syncdata.capture.verify_walk import load_verification
from syncdata.changes.verification import Check
from syncsite.demo.postgres import SETTINGS, PostgresServer
from tests.chains import archived_records
from tests.checked import checks_of, wrong_checks
from tests.production import Production

PATIENCE_S = 40.0
OPTIONS: dict[str, Any] = {
    "compression": "none",
    "rotate_s": 0.2,
    "verify_rows_per_s": 1_000_000,
    "verify_days": 0,
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)


@pytest.fixture
def source(make_production: Callable[..., Production]) -> Production:
    return make_production(**OPTIONS)


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that takes prepared transactions."""
    server = PostgresServer(
        binaries=postgres.binaries, settings=SETTINGS | {"max_prepared_transactions": "9"}
    )
    server.start()
    yield server
    server.stop()


@contextmanager
def archiving(source: Production) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=source.archiver().run_loop, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(is_so: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def rounds(source: Production) -> int:
    state = load_verification(source.spool_dir)
    return state.rounds if state.ended_at else max(state.rounds - 1, 0)


def verified(source: Production, rounds_more: int = 1) -> list[Check]:
    """Let the archiver verify all tables, and return the checks in the archive."""
    with archiving(source):
        wanted = rounds(source) + rounds_more
        until(lambda: rounds(source) >= wanted)
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


def churn(source: Production, stop: threading.Event, seed: int) -> None:
    """Change the tables of the busy test in transactions of all kinds, until *stop*."""
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
    source = make_production(server, **OPTIONS)
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
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(churn, source, stop, seed) for seed in (1, 2, 3)]
        try:
            checks = verified(source, 8)
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
