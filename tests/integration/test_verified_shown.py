"""What verification has found is shown everywhere, told once, and mended where that is wanted."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from syncdata.apply.cycle import Cycle
from syncdata.apply.state.healing import ask_for_resyncs
from syncdata.apply.state.marks import Mark, differs, encode_marks
from syncdata.apply.state.status import verification_of
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.verification import Check, check_comment, hash_of_rows
from syncdata.errors import FetchError, RequestError, StatusError, VerificationError
from syncdata.monitoring import render_metrics
from syncdata.service import DaemonStatus, TableInfo
from syncdata.signals import table_differs, table_equal
from tests import catalogs
from tests.framed import Writer
from tests.integration.test_monitoring import embedded, samples
from tests.world import World, insert

NOW = dt.datetime.now(dt.UTC)
FOUND = Mark("differs", "rows with id up to 7 are not production's", "run 'resync users'")


@pytest.fixture
def users(world: World) -> Iterator[World]:
    """A world that is the project's own configuration, with two tables in step."""
    world.execute("CREATE TABLE users (id int PRIMARY KEY, name text)", "CREATE TABLE orders (id int)")
    world.whitelist("users", "orders")
    with override_settings(SYNCDATA=embedded(world)):
        yield world


@pytest.fixture
def source(users: World) -> Writer:
    source = Writer(users.archive)
    source.changes(1, [(10, [insert("users", id=7, name="Ann"), insert("orders", id=1)])])
    source.snapshot(1, "users", 10, [{"id": 7, "name": "Ann"}], prev=1)
    users.sync()
    with users.service() as service:
        service.declare_whole(["users", "orders"])
    return source


def next_file(source: Writer, number: int) -> None:
    source.changes(number, [(10 * number, [insert("orders", id=number)])])


def note_check(world: World, table: str, *, chunk: int = 1, round_: int = 1, **columns: Any) -> None:
    """Note what came of a check, as the sink does."""
    values = {"bounds": "all rows", "rows": 3, "rows_here": 3, "seen": 3, "is_last": True, "is_equal": True}
    values |= {"table_name": table, "chunk": chunk, "round": round_, "position": "f.json:3"} | columns
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    with world.connect() as connection:
        connection.execute(f"INSERT INTO data_sync_verifications ({names}) VALUES ({marks})", values)


def note_difference(world: World, table: str = "users", mark: Mark = FOUND, **columns: Any) -> None:
    note_check(world, table, bounds="id up to 7", is_equal=False, rows=4, is_last=False, **columns)
    set_marks(world, mark, table=table)


def set_marks(world: World, *marks: Mark, table: str = "users") -> None:
    with world.connect() as connection:
        connection.execute(
            "UPDATE data_sync_checkpoints SET marks = %s::jsonb WHERE table_name = %s",
            (encode_marks(marks), table),
        )


def info(world: World, table: str = "users") -> TableInfo:
    with world.service() as service:
        return next(info for info in service.list_tables() if info.table_name == table)


def status(world: World) -> DaemonStatus:
    with world.service() as service:
        return service.get_status()


# Shown


def test_a_table_shows_when_it_was_verified_and_how_many_rows(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_check(users, "users")
    assert info(users).verified_at is not None and info(users).verified_share == 1
    call_command("list_tables")
    orders, shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert shown.endswith("ago, 3 rows") and orders.endswith("never")
    call_command("list_tables", json=True)
    assert json.loads(capsys.readouterr().out)[1]["verified_rows"] == 3
    call_command("syncdata_status")
    assert "verified: 1 of 2 tables within" in capsys.readouterr().out


def test_a_table_that_differs_is_a_problem_everywhere(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_check(users, "orders")
    note_difference(users)
    assert ("differs", "users") in {(p.kind, p.table) for p in status(users).problems}
    with pytest.raises(StatusError, match="users differs: rows with id up to 7"):
        call_command("syncdata_status", check=True)
    capsys.readouterr()
    call_command("list_tables")
    assert "resync users" in capsys.readouterr().out
    values = samples(render_metrics()[0])
    assert (values["syncdata_table_differs", "users"], values["syncdata_table_differs", "orders"]) == (1, 0)
    verified = values["syncdata_table_verified_timestamp_seconds", "orders"]
    assert abs(verified - dt.datetime.now(dt.UTC).timestamp()) < 3600
    assert ("syncdata_table_verified_timestamp_seconds", "users") not in values


def test_the_command_names_the_rows_that_differ_and_fails(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_difference(users)
    note_check(users, "orders", is_equal=None, reason="it has no key")
    with pytest.raises(VerificationError, match=r"not production's rows: users .*resync users"):
        call_command("syncdata_verify")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "orders: cannot be compared: it has no key",
        "    not compared, 1 check: it has no key",
    ]
    assert lines[2] == "users: differs"
    assert lines[3].startswith("    id up to 7: 4 rows at production, 3 here, at f.json:3 (20")
    assert lines[4:] == [f"    {FOUND}"]
    call_command("syncdata_verify", "orders")
    assert "users" not in capsys.readouterr().out
    with pytest.raises(VerificationError):
        call_command("syncdata_verify", "users", json=True)
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["differs"], told["unequal"][0]["rows_here"]) == (True, 3)
    with pytest.raises(RequestError, match="not whitelisted: absent"):
        call_command("syncdata_verify", "absent")


def test_rows_of_the_same_number_that_differ_are_told_so(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_difference(users, rows_here=4)
    with pytest.raises(VerificationError):
        call_command("syncdata_verify", "users")
    assert "id up to 7: 4 rows on both sides, not all of them the same" in capsys.readouterr().out


def test_what_a_check_has_found_is_told_once(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_difference(
        users, mark=differs(TableName("public", "users"), "id up to 7", "4 at production, 3 here")
    )
    with pytest.raises(VerificationError):
        call_command("syncdata_verify", "users")
    first, found, hint = capsys.readouterr().out.splitlines()
    assert (first, found[:14]) == ("users: differs", "    id up to 7")
    assert hint.startswith("    run 'python manage.py resync users'")


def test_columns_that_no_check_has_are_named(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    note_check(users, "users", reason="without price, whose text means something at production only")
    call_command("syncdata_verify", "users")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" ago, 3 rows, not all columns")
    assert second == "    without price, whose text means something at production only"


def test_many_differences_are_cut_short(
    users: World, source: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    for chunk in range(25):
        note_difference(users, chunk=chunk)
    with pytest.raises(VerificationError):
        call_command("syncdata_verify")
    assert "    and 5 more: --json has all" in capsys.readouterr().out.splitlines()


# From the file to the list


def check_of_users(world: World, *, round_: int, lsn: int) -> str:
    """Return the check that says that production's users are what they are here just now."""
    columns = ("id", "name")
    ((rows, hash_),) = world.rows(f"SELECT count(*), {hash_of_rows(columns)} FROM users")
    check = Check(
        schema="public",
        table="users",
        columns=columns,
        key=("id",),
        rows=rows,
        hash=hash_,
        lsn=format_lsn(lsn),
        round=round_,
        chunk=1,
        seen=rows,
        is_last=True,
    )
    return check_comment(check).decode().rstrip()


def test_a_check_in_a_file_is_shown_and_a_difference_is_mended(users: World) -> None:
    users.options["heal"] = "auto"
    catalog = catalogs.put(users.archive, catalogs.table("users", "id integer", "name text"))
    source = Writer(users.archive)
    row: dict[str, Any] = {"id": 7, "name": "Ann"}
    source.changes(1, [(10, [insert("users", **row)])], catalog=catalog)
    source.snapshot(1, "users", 10, [row], prev=1, catalog=catalog)
    users.sync()
    assert verification_of(info(users), now=NOW) == "never"

    equal = check_of_users(users, round_=1, lsn=15)
    source.changes(2, [(12, [insert("orders", id=1)]), (20, [equal])], catalog=catalog)
    users.sync()
    assert verification_of(info(users), now=NOW).endswith("ago, 1 row")

    users.execute("UPDATE users SET name = 'spoilt'")
    again = equal.replace('"round":1', '"round":2').replace("0/F", "0/18")
    source.changes(3, [(22, [insert("orders", id=2)]), (30, [again])], catalog=catalog)
    users.sync()
    assert verification_of(info(users), now=NOW) == "differs"
    assert requests(users) == [("resync", ["users"], "verification", "waiting")]
    users.sync()
    assert users.rows("SELECT * FROM users") == [(7, "Ann")]
    assert info(users).state == "active"


# Told


class Heard:
    def __init__(self) -> None:
        self.signals: list[tuple[str, str]] = []

    def differs(self, *, table: str, message: str, **arguments: Any) -> None:
        self.signals.append((table, message))

    def equal(self, *, table: str, **arguments: Any) -> None:
        self.signals.append((table, "equal"))

    def take(self) -> list[tuple[str, str]]:
        taken, self.signals = self.signals, []
        return taken


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    table_differs.connect(heard.differs)
    table_equal.connect(heard.equal)
    yield heard
    assert table_differs.disconnect(heard.differs) and table_equal.disconnect(heard.equal)


@pytest.fixture
def cycle(users: World, source: Writer) -> Iterator[Callable[..., None]]:
    """``cycle()`` runs a cycle of one daemon over a new file, in the course of which *find* is called."""
    with users.service() as service, service._worker.running(600) as run:
        numbers = iter(range(2, 100))

        def once(find: Callable[[], None] = lambda: None) -> None:
            next_file(source, next(numbers))
            find()
            run.cycle(threading.Event())

        yield once


def test_a_table_that_begins_to_differ_is_told_once_and_so_is_its_end(
    users: World, cycle: Callable[..., None], heard: Heard
) -> None:
    cycle(lambda: note_difference(users))
    assert heard.take() == [("users", str(FOUND))]
    cycle()
    assert heard.take() == []
    cycle(lambda: set_marks(users))
    assert heard.take() == [("users", "equal")]


def test_the_end_of_a_difference_is_told_though_no_file_comes(
    users: World, source: Writer, heard: Heard
) -> None:
    with users.service() as service, service._worker.running(600) as run:
        next_file(source, 2)
        note_difference(users)
        run.cycle(threading.Event())
        assert heard.take() == [("users", str(FOUND))]
        set_marks(users)
        run.cycle(threading.Event())
    assert heard.take() == [("users", "equal")]


def test_a_difference_is_told_though_the_cycle_that_found_it_failed(
    users: World, source: Writer, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with users.service() as service, service._worker.running(600) as run:
        next_file(source, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Cycle, "_catch_up", fail_after_finding(users))
            with pytest.raises(FetchError):
                run.cycle(threading.Event())
        run.cycle(threading.Event())
    assert heard.take() == [("users", str(FOUND))]


def fail_after_finding(world: World) -> Callable[..., None]:
    def fail(*arguments: Any, **options: Any) -> None:
        note_difference(world)
        raise FetchError("the host does not answer")

    return fail


def test_a_table_that_differed_before_the_daemon_began_is_not_told_again(
    users: World, source: Writer, heard: Heard
) -> None:
    note_difference(users)
    next_file(source, 2)
    users.sync()
    assert heard.take() == []


# Mended


def requests(world: World) -> list[tuple[str, list[str], str, str]]:
    return world.rows("SELECT action, table_names, requested_by, state FROM data_sync_requests ORDER BY id")


def texts(world: World, table: str = "users") -> list[str]:
    return [mark.text for mark in info(world, table).marks]


def test_nothing_is_mended_unless_that_is_wanted(users: World, cycle: Callable[..., None]) -> None:
    cycle(lambda: note_difference(users))
    assert requests(users) == []


@pytest.fixture
def healing(users: World) -> World:
    users.options["heal"] = "auto"
    return users


def spoil(world: World) -> None:
    world.execute("UPDATE users SET name = 'spoilt'")
    note_difference(world, chunk=world.value("SELECT count(*) FROM data_sync_verifications"))


def test_a_table_that_differs_is_resynced_by_itself(
    healing: World, source: Writer, cycle: Callable[..., None]
) -> None:
    cycle(lambda: spoil(healing))
    assert requests(healing) == [("resync", ["users"], "verification", "waiting")]
    cycle()
    assert requests(healing) == [("resync", ["users"], "verification", "done")]
    assert healing.rows("SELECT * FROM users") == [(7, "Ann")]
    assert info(healing).state == "active" and not info(healing).differing


def test_a_table_that_differs_again_after_its_resync_is_left_to_the_operator(
    healing: World, source: Writer, cycle: Callable[..., None]
) -> None:
    cycle(lambda: spoil(healing))
    cycle()
    for _ in range(3):
        cycle(lambda: spoil(healing))
    assert len(requests(healing)) == 1
    assert [text for text in texts(healing) if "did not help" in text]
    assert len(texts(healing)) == 2, "it is said once"


def test_after_a_whole_equal_round_a_difference_is_mended_again(
    healing: World, source: Writer, cycle: Callable[..., None]
) -> None:
    cycle(lambda: spoil(healing))
    cycle()
    healing.execute("DELETE FROM data_sync_verifications")
    note_check(healing, "users", round_=2)
    healing.execute("UPDATE users SET name = 'spoilt'")
    set_marks(healing, FOUND)
    cycle()
    cycle()
    assert [request[3] for request in requests(healing)] == ["done", "done"]
    assert healing.rows("SELECT * FROM users") == [(7, "Ann")]


def test_a_round_that_was_equal_in_part_is_no_reason_to_mend_again(
    healing: World, source: Writer, cycle: Callable[..., None]
) -> None:
    cycle(lambda: spoil(healing))
    cycle()
    healing.execute("DELETE FROM data_sync_verifications")
    note_check(healing, "users", round_=2)
    healing.execute("UPDATE data_sync_verifications SET seen = 100 * rows + 100")
    set_marks(healing, FOUND)
    cycle()
    assert [request[3] for request in requests(healing)] == ["done"]


def test_a_table_without_a_snapshot_keeps_its_rows_though_they_differ(
    healing: World, source: Writer, cycle: Callable[..., None]
) -> None:
    healing.execute("INSERT INTO orders VALUES (0)")  # as if loaded by other means
    note_check(healing, "orders")  # a round before was equal, which does not make another try of it
    for _ in range(3):
        cycle(lambda: set_marks(healing, FOUND, *info(healing, "orders").marks, table="orders"))
    assert requests(healing) == [("resync", ["orders"], "verification", "failed")]
    assert healing.value("SELECT count(*) FROM orders WHERE id = 0") == 1
    assert "archive_changes --snapshot orders" in healing.value("SELECT error FROM data_sync_requests")
    assert [text for text in texts(healing, "orders") if "has failed" in text]


@pytest.mark.parametrize("state", ["paused", "blocked"])
def test_a_table_that_is_held_is_not_mended(
    healing: World, source: Writer, cycle: Callable[..., None], state: str
) -> None:
    def hold() -> None:
        note_difference(healing)
        healing.execute(
            f"UPDATE data_sync_checkpoints SET state = '{state}', error = 'it is' WHERE table_name = 'users'"
        )

    cycle()
    if state == "blocked":  # a cycle would try it again, and succeed
        hold()
        with healing.connect() as connection:
            assert ask_for_resyncs(connection) == []
    else:
        cycle(hold)
    assert requests(healing) == []


def test_a_table_for_which_somebody_has_asked_for_a_resync_is_left_to_that(
    healing: World, source: Writer
) -> None:
    note_difference(healing)
    with healing.service() as service:
        service.submit_request("resync", ["users"], requested_by="ann")
    with healing.connect() as connection:
        assert ask_for_resyncs(connection) == []
    assert len(requests(healing)) == 1 and len(texts(healing)) == 1
