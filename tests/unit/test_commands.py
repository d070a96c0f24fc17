"""What is the commands' own: options, exit status, messages. What they do is tested with a real service."""

from __future__ import annotations

import argparse
import io
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any, Self

import psycopg
import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.db import IntegrityError, OperationalError, ProgrammingError

from syncdata.changes.names import TableName
from syncdata.conf import load_config
from syncdata.daemon import PID_FILE_NAME, PidFile
from syncdata.errors import (
    ApplyError,
    ClearError,
    CycleError,
    PidFileError,
    PointError,
    Problem,
    ResyncError,
    SchemaError,
    SyncError,
)
from syncdata.management.base import SyncCommand, format_time
from syncdata.management.commands.list_tables import format_tables
from syncdata.service import DaemonStatus, SyncResult, TableInfo

COMMANDS = (
    "syncdata_start",
    "syncdata_stop",
    "syncdata_status",
    "add_tables",
    "remove_tables",
    "list_tables",
    "clear",
    "resync",
    "syncdata_verify",
)
NOON = datetime(2026, 2, 5, 12, 0, tzinfo=UTC)


class Service:
    """Answers as it is told to and remembers what it was asked."""

    result = SyncResult()
    status: DaemonStatus
    tables: Sequence[TableInfo] = ()
    failing: frozenset[str] = frozenset()
    signalled = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, config: object, **kwargs: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.asked.append(("close", None))

    def spelled(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(names))

    def run_once(self, *, stop: Event, until: str | None) -> SyncResult:
        if self.signalled:
            stop.set()
        return self.result

    def run_loop(self, *, interval_s: int | None, stop: Event, until: str | None = None) -> SyncResult | None:
        if until is not None:
            self.asked.append(("until", until))
            if self.signalled:
                stop.set()
                return None
        self.asked.append(("run_loop", interval_s))
        return self.result

    def get_status(self) -> DaemonStatus:
        return self.status

    def list_tables(self) -> Sequence[TableInfo]:
        return self.tables

    def find_tables(self, names: list[str], *, apps: list[str], force: bool) -> list[str]:
        return [str(table) for table in dict.fromkeys(map(TableName.parse, names))]

    def add_tables(
        self, names: list[str], *, apps: list[str], creator: str | None, force: bool = False
    ) -> list[str]:
        self.asked.append(("add_tables", creator))
        return ["users"]

    def remove_tables(self, names: list[str]) -> list[str]:
        return ["users"]

    def clear(self, tables: Any = None, *, requested_by: str | None = None) -> list[str]:
        self.asked.append(("clear", None))
        return ["users", "shop.orders"]

    def resync_tables(
        self, tables: Sequence[str], *, stop: Event, until: str | None
    ) -> dict[str, SyncResult | SyncError]:
        if until is not None:
            self.asked.append(("until", until))
        self.asked += [("resync", table) for table in tables]
        return {
            table: ResyncError("the archive has no such table", table=table)
            if table in self.failing
            else self.result
            for table in tables
        }


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    fake = Service()
    monkeypatch.setattr("syncdata.management.base.SyncDataService", fake)
    monkeypatch.setattr("syncdata.management.commands.syncdata_start.SyncDataService", fake)
    return fake


def make_table(name: str, **fields: Any) -> TableInfo:
    return TableInfo(**{"table_name": name, "creator": None, "created_at": NOON, "state": "active"} | fields)


def make_status(*, problems: tuple[str, ...] = ()) -> DaemonStatus:
    return DaemonStatus(
        status="not-started",
        sync_frequency=600,
        start_time=None,
        records_synced=0,
        errors=0,
        last_sync_time=NOON,
        tables=(),
        problems=tuple(Problem(kind="any", text=text) for text in problems),
    )


def run(*argv: str) -> int:
    """Run a command as the command line does, in this process; return its exit status."""
    try:
        load_command_class("syncdata", argv[0]).run_from_argv(["manage.py", *argv])
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def run_raising(error: BaseException, *argv: str) -> int:
    class Failing(SyncCommand):
        def handle(self, **options: Any) -> None:
            raise error

    try:
        Failing().run_from_argv(["manage.py", "failing", *argv])
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


# What all commands share


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    text = capsys.readouterr().out

    assert "\n\n" in load_command_class("syncdata", name).help or len(text) > 1000
    assert "--verbose" in text
    for action in load_command_class("syncdata", name).create_parser("manage.py", name)._actions:
        assert action.help, f"{action.dest} has no help"
        assert action.help == argparse.SUPPRESS or len(action.help) > 10


@pytest.mark.parametrize("error", [error("it broke", hint="mend it") for error in SyncError.by_code.values()])
def test_an_error_is_its_message_on_stderr_and_exit_status_1(
    error: SyncError, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error) == 1
    assert capsys.readouterr().err == f"{error.code}: it broke (mend it)\n"


def test_an_error_reaches_python_callers_as_it_is(service: Service) -> None:
    service.failing = frozenset({"users"})
    with pytest.raises(ResyncError):
        call_command("resync", "users", stdout=io.StringIO())


def test_traceback_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(ApplyError("it broke"), "--traceback") == 1

    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)") and "in handle" in shown
    assert shown.endswith("SHD_SYN_064: it broke\n")


@pytest.mark.parametrize("error", [TypeError("a value"), KeyError("a value"), RecursionError("a value")])
def test_an_error_that_nobody_foresaw_is_a_line_with_a_code(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"SHD_SYN_094: unexpected: {type(error).__name__} in ")
    assert "run it again with --traceback" in shown and shown.count("\n") == 1

    assert run_raising(error, "--traceback") == 1
    assert "a value" not in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(BrokenPipeError()) == 141
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_lost_database_is_an_error_with_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = OperationalError('connection to server at "127.0.0.1", port 5432 failed\nIs it running?')

    assert run_raising(error) == 1
    assert capsys.readouterr().err.startswith("SHD_SYN_090: connection to server")


def test_a_database_error_shows_no_row_values(capsys: pytest.CaptureFixture[str]) -> None:
    error = IntegrityError("duplicate key value\nDETAIL:  Key (email)=(jane@example.com) already exists.")
    error.__cause__ = psycopg.errors.UniqueViolation()

    assert run_raising(error) == 1
    assert "jane" not in capsys.readouterr().err


def test_missing_tables_of_our_own_are_a_hint_to_migrate(capsys: pytest.CaptureFixture[str]) -> None:
    error = ProgrammingError('relation "tables_to_sync" does not exist')
    error.__cause__ = psycopg.errors.UndefinedTable()

    assert run_raising(error) == 1
    assert "manage.py migrate" in capsys.readouterr().err


class Chatty(SyncCommand):
    def handle(self, **options: Any) -> None:
        logger = logging.getLogger("syncdata.somewhere")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, logging.getLevelName(level).lower())


def without_handlers(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Return the app's logger as in a project that configures no logging, and without pytest's handlers."""
    logger = logging.getLogger("syncdata")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    return logger


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ([], ["warning", "error"]),
        (["-v", "0"], ["error"]),
        (["-v", "2"], ["debug", "info", "warning", "error"]),
        (["--verbose"], ["debug", "info", "warning", "error"]),
        (["-v"], ["debug", "info", "warning", "error"]),
        (["-v", "--no-color"], ["debug", "info", "warning", "error"]),
    ],
)
def test_the_log_goes_to_stderr_where_nothing_else_takes_it(
    options: list[str],
    seen: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = without_handlers(monkeypatch)
    Chatty().run_from_argv(["manage.py", "chatty", *options])

    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == seen
    assert not logger.hasHandlers()


def test_a_projects_own_logging_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    logger = without_handlers(monkeypatch)
    logger.addHandler(logging.StreamHandler(stream))
    Chatty().run_from_argv(["manage.py", "chatty"])

    assert capsys.readouterr().err == ""
    assert stream.getvalue() == "warning\nerror\n"
    assert logger.level == logging.NOTSET


def test_times_are_shown_in_utc() -> None:
    assert format_time(datetime.fromisoformat("2026-02-05T11:30:00.5+01:00")) == "2026-02-05T10:30:00Z"
    assert format_time(None) == "-"


# syncdata_start


def test_one_cycle_says_what_it_did(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.result = SyncResult(
        files_processed=2, records_added=1200, records_updated=30, records_deleted=4, records_skipped=5
    )

    assert run("syncdata_start", "--once") == 0
    assert capsys.readouterr().out == (
        "1,234 records of 2 files in 0.0 s: 1,200 added, 30 updated, 4 deleted,"
        " 0 truncated, 5 skipped (other tables), 0 failed\n"
    )


def test_one_cycle_with_errors_writes_each_and_exits_1(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.result = SyncResult(errors=(SchemaError("no column", table="users"), ApplyError("refused")))

    assert run("syncdata_start", "--once") == 1
    assert capsys.readouterr().err.splitlines() == [
        "SHD_SYN_050: table users: no column",
        "SHD_SYN_064: refused",
    ]


def test_one_cycle_with_a_table_still_blocked_exits_1(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.result = SyncResult(blocked=("shop.orders", "users"))

    assert run("syncdata_start", "--once") == 1
    assert capsys.readouterr().err.startswith("SHD_SYN_092: blocked: shop.orders, users (syncdata_status")


def test_one_cycle_cut_short_by_a_signal_is_no_success(service: Service) -> None:
    service.signalled = True
    with pytest.raises(CycleError, match="stopped by a signal"):
        call_command("syncdata_start", "--once", stdout=io.StringIO())


def test_one_cycle_says_which_file_is_still_being_written(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.result = SyncResult(waiting_for="changes_20260205_103000.json")

    assert run("syncdata_start", "--once") == 0
    assert "\nchanges_20260205_103000.json is still being written" in capsys.readouterr().out


def test_one_cycle_is_silent_when_asked(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("syncdata_start", "--once", "-v", "0") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("options", "interval_s"), [([], None), (["--interval", "5"], 5)])
def test_the_daemon_runs_with_the_interval_given(
    service: Service, options: list[str], interval_s: int | None
) -> None:
    assert run("syncdata_start", *options) == 0
    assert service.asked == [("run_loop", interval_s), ("close", None)]


def test_a_run_up_to_a_point_ends_with_its_result(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("syncdata_start", "--until", "0/17", "-v", "1") == 0
    assert service.asked == [("until", "0/17"), ("run_loop", None), ("close", None)]
    assert "records of" in capsys.readouterr().out
    service.result = SyncResult(blocked=("users",))
    assert run("syncdata_start", "--until", "0/17") == 1


def test_a_run_that_is_stopped_before_its_point_has_failed(service: Service) -> None:
    service.signalled = True
    with pytest.raises(CycleError, match="stopped by a signal"):
        call_command("syncdata_start", "--until", "0/17", stdout=io.StringIO())


def test_one_cycle_fails_when_the_archive_does_not_reach_its_point(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.result = SyncResult(short_of=PointError("the archive does not reach 0/17 yet"))
    assert run("syncdata_start", "--once", "--until", "0/17") == 1
    assert "SHD_SYN_058: the archive does not reach 0/17 yet" in capsys.readouterr().err


def test_a_resync_up_to_a_point(service: Service) -> None:
    assert run("resync", "users", "--until", "0/17") == 0
    assert service.asked[0] == ("until", "0/17")


@pytest.mark.parametrize("interval", ["0", "-1", "1.5", "soon"])
def test_an_interval_that_is_none_is_refused(interval: str) -> None:
    with pytest.raises(CommandError, match="whole number of seconds, 1 or more"):
        call_command("syncdata_start", "--interval", interval)


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_a_second_start_is_refused(service: Service, options: list[str]) -> None:
    running = PidFile(load_config().state_dir / PID_FILE_NAME)
    with running, pytest.raises(PidFileError, match="already running"):
        call_command("syncdata_start", *options)
    assert service.asked == []


# The others


def test_stopping_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("syncdata_stop") == 1
    assert capsys.readouterr().err.startswith("SHD_SYN_081: no daemon is running")


def test_an_unhealthy_status_is_shown_and_fails_the_check(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.status = make_status(problems=("users is blocked", "the daemon is not running"))

    assert run("syncdata_status") == 0
    assert run("syncdata_status", "--check") == 1
    output = capsys.readouterr()
    assert output.out.count("status: not-started") == 2
    assert output.err == "SHD_SYN_080: not healthy: users is blocked; the daemon is not running\n"


def test_a_healthy_status_passes_the_check(service: Service) -> None:
    service.status = make_status()

    assert run("syncdata_status", "--check") == 0


def test_the_status_as_json_has_every_field(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.status = make_status(problems=("users is blocked",))
    assert run("syncdata_status", "--json") == 0
    document = json.loads(capsys.readouterr().out)

    assert document["status"] == "not-started"
    assert document["is_healthy"] is False
    assert document["problems"] == ["users is blocked"]
    assert document["last_sync_time"] == "2026-02-05T12:00:00Z"


def test_adding_says_which_tables_are_new(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add_tables", "public.users", "orders", "users", "--creator", "jane") == 0
    assert capsys.readouterr().out == "added: users\nalready in the whitelist: orders\n"
    assert service.asked[0] == ("add_tables", "jane")


def test_the_creator_is_the_login_name(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "john")
    call_command("add_tables", "users", stdout=io.StringIO())

    assert service.asked[0] == ("add_tables", "john")


def test_a_user_without_a_name_adds_tables_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nobody)
    call_command("add_tables", "users", stdout=io.StringIO())

    assert service.asked[0] == ("add_tables", None)


def test_removing_says_what_was_removed(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("remove_tables", "public.users") == 0
    assert capsys.readouterr().out == "removed: users\n"


@pytest.mark.parametrize("name", ["add_tables", "remove_tables", "resync"])
def test_a_command_about_tables_needs_one(name: str) -> None:
    with pytest.raises(CommandError, match="required: table|name tables, or say --all"):
        call_command(name)


def test_the_list_shows_where_each_table_is_and_why_one_is_blocked() -> None:
    tables = [
        make_table(
            "users",
            checkpoint="changes_20260205_103000.json:3",
            rows_synced=3,
            creator="jane",
            verified_at=NOON - timedelta(minutes=4),
            verified_rows=2_159_331,
            verified_share=1.0,
        ),
        make_table("shop.orders", state="blocked", error="SHD_SYN_050: table shop.orders: no column total"),
    ]

    assert format_tables(tables, now=NOON).splitlines() == [
        "TABLE        STATE    CHECKPOINT                      ROWS SYNCED  CREATOR  CREATED"
        "               VERIFIED",
        "users        active   changes_20260205_103000.json:3  3            jane     2026-02-05T12:00:00Z"
        "  4 minutes ago, 2,159,331 rows",
        "shop.orders  blocked  -                               0            -        2026-02-05T12:00:00Z"
        "  never",
        "    SHD_SYN_050: table shop.orders: no column total",
    ]


def test_an_empty_list_says_how_to_begin() -> None:
    assert "add_tables" in format_tables([], now=NOON)


def test_the_list_as_json_is_an_array(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.tables = [make_table("users")]
    assert run("list_tables", "--json") == 0
    (table,) = json.loads(capsys.readouterr().out)

    assert table["table_name"] == "users"
    assert table["created_at"] == "2026-02-05T12:00:00Z"


@pytest.mark.parametrize(("answer", "is_cleared"), [("y", True), ("Yes ", True), ("n", False), ("", False)])
def test_clear_asks_first(
    service: Service, monkeypatch: pytest.MonkeyPatch, answer: str, is_cleared: bool
) -> None:
    service.tables = [make_table("users"), make_table("shop.orders")]
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    output = io.StringIO()
    if is_cleared:
        call_command("clear", stdout=output)
    else:
        with pytest.raises(ClearError, match="nothing was changed"):
            call_command("clear", stdout=output)

    assert "ALL rows of 2 tables: users, shop.orders" in output.getvalue()
    assert (("clear", None) in service.asked) is is_cleared


def test_clear_without_anybody_to_ask_changes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ClearError, match="--noinput"):
        call_command("clear", stdout=io.StringIO())
    assert ("clear", None) not in service.asked


def test_clear_does_not_ask_when_told_not_to(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clear", "--noinput") == 0
    assert capsys.readouterr().out == "cleared: users, shop.orders\n"


def test_a_failed_resync_does_not_keep_the_other_tables_from_theirs(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failing = frozenset({"a", "c"})

    assert run("resync", "a", "b", "b", "c") == 1
    output = capsys.readouterr()
    assert output.out.startswith("b: 0 records of 0 files")
    assert [line[:22] for line in output.err.splitlines()] == [
        "SHD_SYN_055: table a: ",
        "SHD_SYN_055: table c: ",
    ]
    assert [asked for asked, _ in service.asked].count("resync") == 3
