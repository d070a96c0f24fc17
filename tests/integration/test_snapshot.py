from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
import pytest

from syncdata.archive.retention import Removals, find_removals, prune
from syncdata.capture.chain import save_chain
from syncdata.capture.snapshot import TakenSnapshot, take_snapshots
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.changes.reader import inspect, read_records
from syncdata.errors import SlotError, SnapshotError, SourceChangedError, SourceConnectionError
from syncdata.runtime.progress import NoProgress
from syncsite.demo.postgres import PostgresServer
from tests.production import Production
from tests.world import World

ACCOUNTS = "CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance int NOT NULL)"


@pytest.fixture
def any_production(make_production: Callable[..., Production], any_postgres: PostgresServer) -> Production:
    return make_production(any_postgres)


def header_of(production: Production, taken: TakenSnapshot) -> Header:
    with (production.archive_dir / taken.name).open("rb") as stream:
        inspection = inspect(stream, taken.name)
    assert inspection.header is not None
    assert inspection.footer is not None
    assert inspection.footer.records == taken.records
    return inspection.header


def rows_of(production: Production, taken: TakenSnapshot) -> list[dict[str, Any]]:
    with (production.archive_dir / taken.name).open("rb") as stream:
        records = [located.record for located in read_records(stream, taken.name)]
    assert {(record.op, record.commit_lsn, record.old_keys) for record in records} <= {("INSERT", None, None)}
    return [record.data or {} for record in records]


def left_in_spool(production: Production) -> set[str]:
    kept = {
        "chain.json",
        ".snapshot.lock",
        "catalog",
        "catalog.json",
        "catalogs_of_snapshots.json",
        "policy.json",
    }
    return {path.name for path in production.spool_dir.iterdir()} - kept


@contextmanager
def traffic(production: Production) -> Iterator[None]:
    """Four clients who move money between accounts, open and close them; each commit keeps the sum."""
    stop = threading.Event()
    errors: list[Exception] = []

    def client(seed: int) -> None:
        choose = random.Random(seed)
        with production.connect() as connection:
            while not stop.is_set():
                one, other = sorted(choose.sample(range(200), 2))
                try:
                    with connection.transaction():
                        if choose.random() < 0.5:
                            time.sleep(choose.random() / 100)
                        connection.execute("UPDATE accounts SET balance = balance - 1 WHERE id = %s", (one,))
                        connection.execute(
                            "UPDATE accounts SET balance = balance + 1 WHERE id = %s", (other,)
                        )
                        connection.execute("INSERT INTO moves (giver, taker) VALUES (%s, %s)", (one, other))
                except Exception as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


BANK = (
    ACCOUNTS,
    "CREATE TABLE moves (id bigserial PRIMARY KEY, giver int NOT NULL, taker int NOT NULL)",
)


def test_snapshot_and_stream_meet_under_traffic(any_production: Production, make_world: Any) -> None:
    any_production.execute(
        *BANK, "INSERT INTO accounts SELECT n, 'o' || n, 100 FROM generate_series(0, 199) n"
    )
    any_production.publish("accounts", "moves")
    with traffic(any_production):
        any_production.archive()
        for _ in range(3):
            time.sleep(0.2)
            accounts, moves = any_production.snapshot("accounts", "moves")
            # One point for both: money is neither made nor lost, and each move is in the balances.
            balances = {row["id"]: int(row["balance"]) for row in rows_of(any_production, accounts)}
            assert sum(balances.values()) == 200 * 100
            expected = dict.fromkeys(balances, 100)
            for move in rows_of(any_production, moves):
                expected[move["giver"]] -= 1
                expected[move["taker"]] += 1
            assert balances == expected
            any_production.archive()
    any_production.archive()

    world: World = make_world()
    world.archive = any_production.archive_dir
    world.execute(*BANK)
    world.whitelist("accounts", "moves")
    assert world.sync().errors == ()
    for table in ("accounts", "moves"):
        query = f"SELECT * FROM {table} ORDER BY id"
        assert world.rows(query) == any_production.rows(query)
    assert world.value("SELECT count(*) FROM moves") > 100


def test_the_point_parts_the_commits_exactly(any_production: Production) -> None:
    any_production.execute(ACCOUNTS)
    any_production.publish("accounts")
    any_production.execute("INSERT INTO accounts VALUES (1, 'before', 0)")
    any_production.archive()
    (taken,) = any_production.snapshot("accounts")
    any_production.execute("INSERT INTO accounts VALUES (2, 'after', 0)")
    any_production.archive()
    assert [row["id"] for row in rows_of(any_production, taken)] == ["1"]

    before, after = any_production.open_archive().discover(None)
    header = header_of(any_production, taken)
    assert header.prev == before.name
    assert header.snapshot == "public.accounts"
    lsns = []
    for file in (before, after):
        with (any_production.archive_dir / file.name).open("rb") as stream:
            inspection = inspect(stream, file.name)
        assert inspection.header is not None and inspection.footer is not None
        assert inspection.header.source_id == header.source_id
        lsns.append(parse_lsn(inspection.footer.last_commit_lsn or ""))
    assert lsns[0] <= taken.commit_lsn < lsns[1]


def test_a_snapshot_waits_for_running_transactions_and_says_so(
    any_production: Production, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncdata.capture.waits._SAY_AFTER_S", 0.2)
    any_production.execute(ACCOUNTS)
    any_production.publish("accounts")
    any_production.archive()
    with any_production.database.connect(application_name="shop") as writer:
        pid = writer.info.backend_pid
        writer.execute("INSERT INTO accounts VALUES (1, 'long', 0)")
        committer = threading.Timer(1.5, writer.commit)
        committer.start()
        (taken,) = any_production.snapshot("accounts")
        committer.join()
    assert [row["id"] for row in rows_of(any_production, taken)] == ["1"]
    line = [r.getMessage() for r in caplog.records if "waits" in r.getMessage()][-1]
    assert f"the snapshot waits for the transaction of pid {pid} of role " in line
    assert f"in database {any_production.database.name}, application shop" in line


@pytest.mark.parametrize("phase", ["point", "copy"])
def test_a_stop_ends_it_soon_and_leaves_nothing_unfinished(production: Production, phase: str) -> None:
    production.execute(ACCOUNTS, "CREATE TABLE big (id int PRIMARY KEY, filler text)")
    production.execute("INSERT INTO big SELECT n, repeat('x', 500) FROM generate_series(1, 60000) n")
    production.publish("accounts", "big")
    production.archive()
    stop = threading.Event()
    with production.database.connect() as writer:
        if phase == "point":
            writer.execute("INSERT INTO accounts VALUES (1, 'open', 0)")
            threading.Timer(0.5, stop.set).start()
            started = time.monotonic()
            assert production.snapshot("accounts", "big", stop=stop) == []
            assert time.monotonic() - started < 5
        else:
            taken = production.snapshot("accounts", "big", stop=stop, progress=StopAfter(stop, rows=2_000))
            assert [one.table.name for one in taken] == ["accounts"]
            assert rows_of(production, taken[0]) == []
    assert left_in_spool(production) == set()
    names = {path.name for path in production.archive_dir.glob("snapshot_*/*")}
    assert names == ({"public.accounts.json.gz"} if phase == "copy" else set())
    assert production.rows("SELECT count(*) FROM pg_replication_slots WHERE temporary") == [(0,)]


class StopAfter:
    def __init__(self, stop: threading.Event, *, rows: int) -> None:
        self.stop, self.rows, self.told = stop, rows, list[Any]()

    def files_found(self, tables: int, rows: int) -> None:
        self.told.append((tables, rows))

    def file_started(self, table: str, rows: int) -> None:
        self.told.append(table)

    def batch_applied(self, records: int, rows: int) -> None:
        self.rows -= rows
        if self.rows <= 0:
            self.stop.set()

    def file_finished(self, table: str) -> None:
        self.told.append(f"{table} finished")


def test_progress_knows_the_estimate_and_counts_every_row(production: Production) -> None:
    production.execute(
        ACCOUNTS,
        "CREATE TABLE parts (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (2000)",
        "CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (2000) TO (4000)",
        "INSERT INTO parts SELECT generate_series(0, 2999)",
        "ANALYZE parts",
    )
    production.publish("accounts", "parts")
    progress = StopAfter(threading.Event(), rows=10_000)
    production.snapshot("accounts", "parts", progress=progress)
    assert progress.told == [
        *((2, 3000), "accounts", "accounts finished", "parts", "parts finished"),
    ]
    assert progress.rows == 7_000


def test_stamps_never_repeat_and_never_go_back(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    clocks = [dt.datetime(2026, 2, 5, 10, 30, second, tzinfo=dt.UTC) for second in (0, 0, 0)]
    clocks.append(dt.datetime(2025, 1, 1, tzinfo=dt.UTC))
    names = [
        taken.name for now in clocks for taken in production.snapshot("accounts", clock=lambda now=now: now)
    ]
    assert names == [f"snapshot_20260205_10300{n}/public.accounts.json.gz" for n in range(4)]


def test_a_table_that_is_truncated_when_the_snapshot_begins_is_copied_whole(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a snapshot older than the rewrite the table would look empty."""
    production.execute(ACCOUNTS, "INSERT INTO accounts VALUES (1, 'x', 0)")
    production.publish("accounts")
    rewrites = [
        "ALTER TABLE accounts ALTER balance TYPE bigint",
        "TRUNCATE accounts; INSERT INTO accounts VALUES (2, 'y', 0)",
    ]
    from syncdata.capture.exported_snapshot import ConsistentSource

    lock = ConsistentSource._lock

    def rewrite_and_lock(self: ConsistentSource, tables: Any) -> None:
        if rewrites:
            production.execute(rewrites.pop(0))
        lock(self, tables)

    monkeypatch.setattr(ConsistentSource, "_lock", rewrite_and_lock)
    (taken,) = production.snapshot("accounts")
    assert rows_of(production, taken) == [{"id": "2", "owner": "y", "balance": "0"}]


def test_children_by_inheritance_are_tables_of_their_own(production: Production) -> None:
    production.execute(
        ACCOUNTS,
        "CREATE TABLE special () INHERITS (accounts)",
        "INSERT INTO accounts VALUES (1, 'parent', 0)",
        "INSERT INTO special VALUES (2, 'child', 0)",
    )
    production.publish("accounts")  # its children with it
    parent, child = production.snapshot("accounts", "special")
    assert [row["owner"] for row in rows_of(production, parent)] == ["parent"]
    assert [row["owner"] for row in rows_of(production, child)] == ["child"]


READER = "snapshot_reader"


@pytest.fixture
def as_reader(production: Production) -> Iterator[Production]:
    """The same production, but the archiver's role is an ordinary one that may read nothing yet."""
    production.execute(
        ACCOUNTS, f"CREATE ROLE {READER} LOGIN REPLICATION PASSWORD 'reads'", "CREATE SCHEMA inner_circle"
    )
    production.execute("CREATE TABLE inner_circle.t (id int PRIMARY KEY)")
    production.publish("accounts", "inner_circle.t")
    production.archive()
    production.login = {"user": READER, "password": "reads"}
    yield production
    production.execute(f"DROP OWNED BY {READER}", f"DROP ROLE {READER}")


def test_a_missing_right_is_named_with_the_grant_that_gives_it(as_reader: Production) -> None:
    with pytest.raises(SnapshotError, match="^SHD_SYN_108: table accounts: ") as caught:
        as_reader.snapshot("accounts")
    assert caught.value.hint == f'GRANT SELECT ON "public"."accounts" TO "{READER}";'
    with pytest.raises(SnapshotError) as caught:
        as_reader.snapshot("inner_circle.t")
    as_reader.execute(caught.value.hint, f"GRANT SELECT ON accounts TO {READER}")
    assert len(as_reader.snapshot("accounts", "inner_circle.t")) == 2


def test_row_level_security_is_an_error_and_no_table_with_missing_rows(as_reader: Production) -> None:
    as_reader.execute(
        f"GRANT SELECT ON accounts TO {READER}", "ALTER TABLE accounts ENABLE ROW LEVEL SECURITY"
    )
    with pytest.raises(SnapshotError, match="row-level security") as caught:
        as_reader.snapshot("accounts")
    as_reader.execute(caught.value.hint)
    as_reader.snapshot("accounts")


def test_a_role_without_replication_is_told_so(as_reader: Production) -> None:
    chain = as_reader.archiver().open_chain()
    as_reader.execute(f"ALTER ROLE {READER} NOREPLICATION")
    with pytest.raises(SnapshotError, match="attribute REPLICATION"):
        take_snapshots(
            *(as_reader.settings, as_reader.open_archive, chain, [TableName("public", "accounts")]),
            stop=threading.Event(),
        )


def test_a_table_whose_changes_are_not_archived_is_refused(production: Production) -> None:
    production.execute(ACCOUNTS)
    with pytest.raises(SnapshotError, match="not in the publication") as caught:
        production.snapshot("accounts")
    assert "setup_logical_replication" in caught.value.hint
    with pytest.raises(SnapshotError, match="no such table"):
        production.snapshot("missing")


def test_columns_and_rows_that_the_publication_leaves_out_are_no_surprise(
    make_production: Callable[..., Production], any_postgres: PostgresServer
) -> None:
    production = make_production(any_postgres)
    production.execute(ACCOUNTS, "CREATE TABLE t (id int PRIMARY KEY, secret text)")
    production.execute("INSERT INTO t VALUES (1, 'personal')")
    production.execute("INSERT INTO accounts SELECT n, 'John', 0 FROM generate_series(1, 9) AS n")
    production.execute("ALTER PUBLICATION syncdata ADD TABLE t (id), accounts WHERE (id > 5)")
    (taken,) = production.snapshot("t")
    assert rows_of(production, taken) == [{"id": "1"}]
    (taken,) = production.snapshot("accounts")
    assert [row["id"] for row in rows_of(production, taken)] == ["6", "7", "8", "9"]


def test_a_failover_while_a_snapshot_is_taken_ends_it(production: Production) -> None:
    """The archiver has looked for snapshots of what the new server lacks before this one was there."""
    production.execute(ACCOUNTS)
    production.publish("accounts")
    chain = production.archiver().open_chain()

    class Failover(NoProgress):
        def file_started(self, name: str, size: int, /) -> None:
            save_chain(production.spool_dir, msgspec.structs.replace(chain, timeline=2, first_timeline=1))

    with pytest.raises(SourceChangedError, match="failed over while the snapshot was taken"):
        production.snapshot("accounts", progress=Failover())
    assert not list(production.archive_dir.rglob("snapshot_*/*.json*"))


def test_without_the_chain_s_slot_changes_would_be_missing(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    chain = production.archiver().open_chain()
    production.drop_slot()

    def snapshot(**changes: Any) -> None:
        take_snapshots(
            production.settings,
            production.open_archive,
            msgspec.structs.replace(chain, **changes),
            [TableName("public", "accounts")],
            stop=threading.Event(),
        )

    with pytest.raises(SlotError, match="is missing"):
        snapshot()
    production.create_slot()
    snapshot()
    for changes in ({"system_id": "1"}, {"timeline": 9}, {"slot": "other"}, {"last_file": "changes_9.json"}):
        with pytest.raises(SourceChangedError):
            snapshot(**changes)


def test_no_free_slot_and_no_source_are_said(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    chain = production.archiver().open_chain()
    with production.connect() as connection:
        taken = 0
        try:
            with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
                while True:
                    connection.execute(f"SELECT pg_create_physical_replication_slot('full_{taken}')")
                    taken += 1
            with pytest.raises(SnapshotError, match="max_replication_slots"):
                take_snapshots(
                    *(production.settings, production.open_archive, chain, [TableName("public", "accounts")]),
                    stop=threading.Event(),
                )
        finally:
            for number in range(taken):
                connection.execute(f"SELECT pg_drop_replication_slot('full_{number}')")
    production.login = {"port": 1}
    with pytest.raises(SourceConnectionError):
        production.snapshot("accounts")


def test_two_snapshots_at_once_do_not_mix(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    production.archive()
    with production.database.connect() as writer:
        writer.execute("INSERT INTO accounts VALUES (1, 'long', 0)")  # keeps the first one waiting
        first = threading.Thread(target=production.snapshot, args=("accounts",))
        first.start()
        deadline = time.monotonic() + 30
        while not production.rows("SELECT FROM pg_replication_slots WHERE temporary"):
            assert time.monotonic() < deadline, "the first one does not make its slot"
            time.sleep(0.05)
        with pytest.raises(SnapshotError, match="another snapshot"):
            production.snapshot("accounts")
        writer.commit()
        first.join()
    assert len(list(production.archive_dir.glob("snapshot_*/*"))) == 1


def test_what_a_dead_snapshot_left_in_the_spool_is_written_over(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    production.archive()
    for name in (".snapshot.part", ".snapshot.json.gz"):
        (production.spool_dir / name).write_bytes(b"half")
    (taken,) = production.snapshot("accounts")
    header_of(production, taken)
    assert left_in_spool(production) == set()


def test_pruning_leaves_what_a_resync_needs(
    production: Production, make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    production.execute(ACCOUNTS)
    production.publish("accounts")
    start = dt.datetime(2026, 2, 5, tzinfo=dt.UTC)

    def on_day(day: int) -> dt.datetime:
        return start + dt.timedelta(days=day)

    for day in range(6):
        production.execute(f"INSERT INTO accounts VALUES ({day}, 'day', 0)")
        production.archive(clock=lambda day=day: on_day(day))
        if day in (1, 3):
            production.snapshot("accounts", clock=lambda day=day: on_day(day))
    source_id = production.archiver().open_chain().source_id
    archive = production.open_archive()

    def removals(day: int, *tables: str, source_id: str = source_id) -> Removals:
        names = [TableName("public", table) for table in tables or ("accounts",)]
        return find_removals(archive, names, source_id=source_id, now=on_day(day), keep_days=2)

    assert not removals(2).files
    assert removals(5).change_files == tuple(archive.discover(None)[:3])
    found = removals(20)
    assert found.snapshots == tuple(archive.discover_snapshots()[1:])
    assert found.change_files == tuple(archive.discover(None)[:4])
    # Where a table has no snapshot of today's chain, all change files stay.
    assert removals(20, "accounts", "moves").change_files == ()
    assert removals(20, source_id="another epoch").files == ()

    stop = threading.Event()
    stop.set()
    assert not prune(archive, found, stop=stop).files
    assert prune(archive, found, stop=threading.Event()) == found
    assert prune(archive, found, stop=threading.Event()) == found, "again is fine"
    assert not removals(20).files
    assert f"removed {found.change_files[0].name}" in caplog.text

    world = make_world()
    world.archive = production.archive_dir
    world.execute(ACCOUNTS)
    world.whitelist("accounts")
    assert world.sync().errors == ()
    assert world.rows("SELECT id FROM accounts ORDER BY id") == [(n,) for n in range(6)]
    production.archive()  # the archiver still knows its own


def test_a_broken_snapshot_is_not_relied_on(production: Production) -> None:
    production.execute(ACCOUNTS)
    production.publish("accounts")
    production.archive()
    old, new = (production.snapshot("accounts")[0] for _ in range(2))
    path = production.archive_dir / new.name
    path.write_bytes(path.read_bytes()[:-9])
    source_id = production.archiver().open_chain().source_id
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=99)
    removals = find_removals(
        production.open_archive(),
        [TableName("public", "accounts")],
        source_id=source_id,
        now=later,
        keep_days=1,
    )
    assert old.name not in [file.name for file in removals.files]
