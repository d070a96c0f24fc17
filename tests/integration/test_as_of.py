"""Tables stop exactly at a moment or a commit: yesterday's data, to look for a fault in it."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from django.core.management import call_command

from syncdata.apply import run
from syncdata.apply.until import end_for
from syncdata.errors import ParseError, PointError, ResyncError
from syncdata.service import SyncDataService, SyncResult
from tests.chains import archived_records
from tests.framed import Writer, file_name
from tests.production import Production
from tests.world import World, insert, update

Transaction = tuple[int, list[dict[str, Any]]]


def moment(second: float) -> str:
    minutes, seconds = divmod(second, 60)
    return f"2026-02-05T10:{30 + int(minutes):02d}:{seconds:09.6f}Z"


def lsn(number: int) -> str:
    return f"0/{number:X}"


def pay(number: int, *, at: float | None = None) -> Transaction:
    """A transaction of two tables, committed at the LSN *number*, and so many seconds after half past ten."""
    ts = moment(number if at is None else at)
    return number, [
        insert("payments", ts, id=number, amount=number),
        update("accounts", {"id": 1}, ts, id=1, balance=number),
        update("accounts", {"id": 2}, ts, id=2, balance=-number),
    ]


def state(world: World) -> tuple[list[int], list[int]]:
    """Return the payments, and what the accounts hold."""
    return (
        [number for (number,) in world.rows("SELECT id FROM payments ORDER BY id")],
        [balance for (balance,) in world.rows("SELECT balance FROM accounts ORDER BY id")],
    )


def after(numbers: Sequence[int]) -> tuple[list[int], list[int]]:
    last = numbers[-1] if numbers else 0
    return list(numbers), [last, -last] if numbers else [0, 0]


def sync(world: World, until: str | None = None) -> SyncResult:
    with world.service() as service:
        return service.run_once(until=until)


def resync(world: World, until: str, *tables: str) -> None:
    with world.service() as service:
        for outcome in service.resync_tables(tables, until=until).values():
            if isinstance(outcome, Exception):
                raise outcome


@pytest.fixture
def shop(world: World) -> World:
    world.execute(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int)",
        "CREATE TABLE payments (id int PRIMARY KEY, amount int)",
    )
    world.whitelist("accounts", "payments")
    return world


@pytest.fixture
def writer(shop: World) -> Writer:
    return Writer(shop.archive)


ACCOUNTS = [insert("accounts", moment(1), id=number, balance=0) for number in (1, 2)]
# File 1: 1, 10, 20; file 2: 30; file 3: nothing; file 4: 40, 50; file 5: 60.
FILES: list[list[Transaction]] = [
    [(1, ACCOUNTS), pay(10), pay(20)],
    [pay(30)],
    [],
    [pay(40), pay(50)],
    [pay(60)],
]
PAYMENTS = [10, 20, 30, 40, 50, 60]


def write(writer: Writer, files: Sequence[Sequence[Transaction]] = FILES) -> None:
    for number, transactions in enumerate(files, 1):
        writer.changes(number, transactions)


@pytest.mark.parametrize("spell", [lsn, moment], ids=["lsn", "time"])
def test_the_tables_stop_exactly_at_each_point(shop: World, writer: Writer, spell: Any) -> None:
    """Inside files, at their borders, and behind an empty one; from each point on they go to the next."""
    write(writer)
    for point in [9, 10, 15, 20, 29, 30, 35, 40, 45, 50, 55]:
        result = sync(shop, spell(point))
        assert result.short_of is None and not result.blocked
        assert state(shop) == after([number for number in PAYMENTS if number <= point]), point
    sync(shop)
    assert state(shop) == after(PAYMENTS)
    with shop.service() as service:
        assert {info.table_name: info.rows_synced for info in service.list_tables()} == {
            "accounts": 2 + 2 * len(PAYMENTS),
            "payments": len(PAYMENTS),
        }


@pytest.mark.parametrize("spell", [lsn, moment], ids=["lsn", "time"])
@pytest.mark.parametrize("point", [1, 25, 30, 41, 55])
def test_the_tables_stop_on_the_way_from_the_beginning(
    shop: World, writer: Writer, spell: Any, point: int
) -> None:
    write(writer)
    sync(shop, spell(point))
    assert state(shop) == after([number for number in PAYMENTS if number <= point])
    sync(shop)
    assert state(shop) == after(PAYMENTS)


def test_small_files_that_go_together_end_at_the_point(shop: World, writer: Writer) -> None:
    write(writer, [[(1, ACCOUNTS)], *[[pay(10 * number), pay(10 * number + 5)] for number in range(1, 40)]])
    numbers = [number for ten in range(1, 40) for number in (10 * ten, 10 * ten + 5)]
    for point in (202, 206, 352):
        sync(shop, lsn(point))
        assert state(shop) == after([number for number in numbers if number <= point])
    sync(shop)
    assert state(shop) == after(numbers)


def test_where_the_clock_goes_back_the_first_transaction_beyond_the_point_is_the_end(
    shop: World, writer: Writer
) -> None:
    write(writer, [[(1, ACCOUNTS), pay(10), pay(20, at=50)], [pay(30), pay(40)]])
    sync(shop, moment(35))
    assert state(shop) == after([10])
    sync(shop, lsn(35))
    assert state(shop) == after([10, 20, 30])


def test_a_point_behind_a_table_is_refused_and_nothing_is_changed(shop: World, writer: Writer) -> None:
    write(writer)
    sync(shop, lsn(50))
    for until in (lsn(20), moment(20), moment(45)):
        with pytest.raises(
            PointError, match=r"beyond .* already: accounts, payments; nothing is changed"
        ) as it:
            sync(shop, until)
        assert f"resync accounts payments --until {until}" in it.value.hint
    assert state(shop) == after([10, 20, 30, 40, 50])


def test_a_point_behind_a_table_at_an_empty_file_is_refused(shop: World, writer: Writer) -> None:
    """What the table has is in the file before."""
    write(writer, FILES[:3])
    sync(shop)
    with pytest.raises(PointError, match="already"):
        sync(shop, moment(25))


def test_a_resync_goes_to_the_point_and_no_further(shop: World, writer: Writer) -> None:
    """Without a snapshot; then with one that is newer, and with one that is not."""
    write(writer)
    sync(shop)
    resync(shop, moment(45), "accounts", "payments")
    assert state(shop) == after([10, 20, 30, 40])

    writer.snapshot(100, "payments", 50, [{"id": n, "amount": n} for n in (10, 20, 30, 40, 50)], prev=3)
    with pytest.raises(ResyncError, match="the snapshot is newer than"):
        resync(shop, moment(45), "payments")
    assert state(shop) == after([10, 20, 30, 40])

    writer.snapshot(99, "payments", 30, [{"id": n, "amount": n} for n in (10, 20, 30)], prev=1)
    resync(shop, moment(45), "payments")
    assert state(shop) == after([10, 20, 30, 40])
    resync(shop, lsn(50), "accounts", "payments")
    assert state(shop) == after([10, 20, 30, 40, 50])
    sync(shop)
    assert state(shop) == after(PAYMENTS)


def test_a_new_table_begins_with_a_snapshot_that_is_not_newer(shop: World, writer: Writer) -> None:
    write(writer)
    old, new = [{"id": 7, "amount": 7}, {"id": 20, "amount": 20}], [{"id": 7, "amount": 7}]
    writer.snapshot(98, "payments", 20, old, prev=1)
    writer.snapshot(100, "payments", 50, new, prev=3)
    sync(shop, moment(45))
    assert state(shop)[0] == [7, 20, 30, 40]
    assert state(shop)[1] == [40, -40]


def test_a_new_table_whose_snapshots_are_all_newer_says_so(shop: World, writer: Writer) -> None:
    write(writer)
    writer.snapshot(100, "payments", 50, [{"id": 7, "amount": 7}], prev=3)
    result = sync(shop, moment(45))
    assert result.blocked == ("payments",)
    assert "the snapshot is newer than" in (shop.checkpoint("payments")[3] or "")
    assert state(shop) == ([], [40, -40])
    sync(shop)
    assert state(shop) == ([7, 60], [60, -60])


def test_a_point_that_the_archive_does_not_reach_says_how_far_it_goes(shop: World, writer: Writer) -> None:
    write(writer, FILES[:2])
    result = sync(shop, moment(45))
    assert state(shop) == after([10, 20, 30])
    assert "its last transaction is of 2026-02-05T10:30:30.000000Z at 0/1E" in str(result.short_of)
    with pytest.raises(PointError, match="does not reach"):
        call(shop, "resync", "payments", "--until", moment(45))
    assert state(shop) == after([10, 20, 30])


def test_a_daemon_waits_for_the_point_and_ends_there(shop: World, writer: Writer) -> None:
    write(writer, FILES[:2])
    ended: list[SyncResult | None] = []
    stop = threading.Event()

    def start() -> None:
        with shop.service() as service:
            ended.append(service.run_loop(interval_s=1, stop=stop, until=lsn(45)))

    daemon = threading.Thread(target=start)
    daemon.start()
    try:
        daemon.join(2)
        assert daemon.is_alive() and state(shop) == after([10, 20, 30])
        writer.changes(3, [])
        writer.changes(4, FILES[3])
        daemon.join(30)
    finally:
        stop.set()
        daemon.join(30)
    assert [it is not None and not it.blocked for it in ended] == [True]
    assert state(shop) == after([10, 20, 30, 40])


def test_files_that_come_meanwhile_are_not_gone_into(
    shop: World, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive did not reach the point when it was looked for, and is beyond it when it is read."""
    write(writer, FILES[:2])
    find = end_for

    def found(*args: Any) -> Any:
        end = find(*args)
        write(writer)
        return end

    monkeypatch.setattr(run, "end_for", found)
    assert sync(shop, lsn(45)).short_of
    assert state(shop) == after([10, 20, 30])
    assert sync(shop, lsn(45)).short_of is None
    assert state(shop) == after([10, 20, 30, 40])


def test_a_paused_table_stays_where_it_stands(shop: World, writer: Writer) -> None:
    write(writer)
    sync(shop, lsn(50))
    with shop.service() as service:
        service.pause_tables(["payments"])
    resync(shop, lsn(20), "accounts")
    sync(shop, lsn(30))
    assert state(shop) == ([10, 20, 30, 40, 50], [30, -30])


def plain(number: int) -> list[dict[str, Any]]:
    return pay(number)[1]


def test_plain_files_stop_by_their_times(shop: World) -> None:
    shop.write(file_name(1), [*ACCOUNTS, *plain(10), *plain(20)])
    shop.write(file_name(2), [*plain(30), *plain(40)])
    for point in (10, 20, 25, 30):
        sync(shop, moment(point))
        assert state(shop) == after([number for number in (10, 20, 30, 40) if number <= point])
    assert sync(shop, moment(45)).short_of
    with pytest.raises(PointError, match="does not tell commit LSNs"):
        sync(shop, lsn(45))
    shop.write(file_name(2), [*plain(30), *plain(40), *plain(50)])
    sync(shop, moment(45))
    assert state(shop) == after([10, 20, 30, 40])
    sync(shop)
    assert state(shop) == after([10, 20, 30, 40, 50])


def test_a_transaction_between_marks_is_in_or_out_as_a_whole(shop: World) -> None:
    """Whatever times its records tell."""
    begin, commit = '{"table":"","op":"B"}', '{"table":"","op":"C"}'
    first, *others = plain(20)
    late = [record | {"ts": moment(30)} for record in others]
    shop.write(
        file_name(1), [begin, *ACCOUNTS, commit, begin, first, *late, commit, begin, *plain(40), commit]
    )
    sync(shop, moment(25))
    assert state(shop) == after([])
    sync(shop, moment(30))
    assert state(shop) == after([20])


def call(world: World, *args: str) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("syncdata.management.base", "syncdata.management.commands.syncdata_start"):
            patch.setattr(f"{module}.load_config", lambda: world.config)
        call_command(*args, stdout=out)
    return out.getvalue()


def test_the_command_ends_at_the_point(shop: World, writer: Writer) -> None:
    write(writer)
    assert "records of" in call(shop, "syncdata_start", "--until", moment(45))
    assert state(shop) == after([10, 20, 30, 40])
    with pytest.raises(PointError, match="does not reach"):
        call(shop, "syncdata_start", "--once", "--until", moment(100))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-02-05 10:30", "2026-02-05T10:30:00", "1/2/3", "10:30Z"]
)
def test_a_point_that_is_none_is_refused(world: World, text: str) -> None:
    with world.service() as service:
        ask(service, text)


def ask(service: SyncDataService, text: str) -> None:
    with pytest.raises(PointError, match="neither a time nor an LSN") as it:
        service.run_once(until=text)
    assert it.value.code == "SHD_SYN_058"


def test_what_production_showed_at_each_commit_is_what_the_tables_hold(
    production: Production, world: World
) -> None:
    """The archiver's own files: transactions of two tables, some in one file, some at its border."""
    tables = (
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int)",
        "CREATE TABLE payments (id int PRIMARY KEY)",
    )
    production.execute(*tables)
    world.execute(*tables)
    production.publish("accounts", "payments")
    production.archive()
    world.archive = production.archive_dir
    world.whitelist("accounts", "payments")
    shown = []
    for number in range(1, 9):
        with production.connect() as connection, connection.transaction():
            connection.execute("INSERT INTO payments VALUES (%s)", [number])
            connection.execute(
                "INSERT INTO accounts VALUES (1, %(n)s), (2, -%(n)s)"
                " ON CONFLICT (id) DO UPDATE SET balance = excluded.balance",
                {"n": number},
            )
        shown.append(([*range(1, number + 1)], [number, -number]))
        if number in (3, 4):
            production.archive()
    production.archive()

    commits = list(dict.fromkeys((it.commit_lsn, it.ts) for it in archived_records(production.archive_dir)))
    assert len(commits) == len(shown)
    for number, ((commit_lsn, ts), rows) in enumerate(zip(commits, shown, strict=True)):
        until = commit_lsn if number % 2 or number == len(shown) - 1 else ts
        assert sync(world, until).short_of is None, "no later commit is there, but the footer says enough"
        assert state(world) == rows
    resync(world, commits[4][1] or "", "accounts", "payments")
    assert state(world) == shown[4]


def test_the_point_lies_in_another_epoch(shop: World, writer: Writer) -> None:
    """Where LSNs begin anew: those of a snapshot are held against those of its own epoch."""
    write(writer, [[(1, ACCOUNTS), pay(10), pay(20)]])
    later = writer.of_epoch(2)
    later.changes(2, [(5, pay(30)[1]), (6, pay(40)[1])], seq=1, prev=1)
    sync(shop, moment(25))
    assert state(shop) == after([10, 20])
    assert sync(shop, moment(35)).blocked == ("accounts", "payments")
    for table, rows in {
        "accounts": [{"id": 1, "balance": 20}, {"id": 2, "balance": -20}],
        "payments": [{"id": n, "amount": n} for n in (10, 20)],
    }.items():
        later.snapshot(100, table, 3, rows, prev=1)
        later.snapshot(200, table, 5, [], prev=1)
    resync(shop, moment(25), "accounts", "payments")
    assert state(shop) == after([10, 20])
    sync(shop, moment(35))
    assert state(shop) == after([10, 20, 30])
    sync(shop)
    assert state(shop) == after([10, 20, 30, 40])


def test_a_broken_file_on_the_way_is_told_and_nothing_is_applied(shop: World, writer: Writer) -> None:
    write(writer)
    path = shop.archive / file_name(2)
    path.write_bytes(path.read_bytes().replace(b"payments", b"paymentz"))
    with pytest.raises(ParseError, match="SHA-256"):
        sync(shop, lsn(45))
    assert state(shop) == ([], [])
    assert sync(shop, lsn(15)).blocked == ()
    assert state(shop) == after([10])


def test_a_file_that_is_being_written_is_waited_for(shop: World, writer: Writer) -> None:
    write(writer, FILES[:2])
    path = shop.archive / file_name(2)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"# {")])
    assert sync(shop, moment(25)).short_of
    assert state(shop) == after([10, 20])
    path.write_bytes(whole)
    assert sync(shop, moment(25)).short_of is None
    assert state(shop) == after([10, 20])


def test_the_watermark_of_a_table_inside_a_file_is_of_the_last_whole_transaction(
    shop: World, writer: Writer
) -> None:
    """Else one that the archive repeats would be applied twice."""
    write(writer, [[(1, ACCOUNTS), pay(10), pay(20)]])
    sync(shop, lsn(10))
    checkpoint = shop.rows("SELECT DISTINCT commit_lsn::text, record_number FROM data_sync_checkpoints")
    assert checkpoint == [(lsn(10), 5)]
