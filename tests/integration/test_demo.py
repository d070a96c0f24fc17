"""The demo's own parts: what the shop does, how rows are compared, and who may write on the backup host."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from syncsite.demo import shop as compose_shop
from syncsite.demo import traffic
from syncsite.demo.backup_host import BackupHost, SftpAccess, serve_sftp
from syncsite.demo.comparison import Comparison, compare
from syncsite.demo.traffic import EVENTS, PRIVATE, PUBLISHED, WHITELIST, Event, open_shop, trading
from tests.postgres import Database


@pytest.fixture
def shop(fresh_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch) -> Database:
    """A small one."""
    monkeypatch.setattr(traffic, "CUSTOMERS", 20)
    monkeypatch.setattr(traffic, "ORDERS", 20)
    database = fresh_database()
    open_shop(database.connect)
    return database


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__.strip("_"))
def test_every_event_changes_rows_except_a_change_of_mind(shop: Database, event: Event) -> None:
    with shop.connect() as connection:
        before = _read(connection)
        with connection.transaction(), connection.cursor() as cursor:
            event(cursor, random.Random(1))
        assert (_read(connection) == before) == (event is traffic._change_mind)


def test_when_the_trading_is_over_no_connection_is_left(shop: Database) -> None:
    with trading(shop.connect, writers=4, pause_s=0.001) as flow:
        while flow.committed < 200:
            flow.check()
    with shop.connect() as connection:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert connection.execute(others).fetchone() == (1,)


def test_what_ends_a_connection_of_the_shop_is_raised(shop: Database) -> None:
    with shop.connect() as connection:
        connection.execute("DROP TABLE page_views")
    with (
        pytest.raises(Exception, match="page_views"),
        trading(shop.connect, writers=2, pause_s=0.001) as flow,
    ):
        while True:
            flow.check()


def test_the_comparison_counts_rows_that_only_one_side_has(
    fresh_database: Callable[[], Database],
) -> None:
    production, local = fresh_database(), fresh_database()
    for database, rows in (
        (production, "(1, 'a'), (2, NULL), (3, 'c')"),
        (local, "(2, NULL), (3, 'x'), (3, 'x')"),
    ):
        with database.connect() as connection:
            connection.execute("CREATE TABLE t (id int, name text)")
            connection.execute(f"INSERT INTO t VALUES {rows}")
    with production.connect() as one, local.connect() as other:
        assert compare(one, other, "t") == Comparison(
            table="t", production=3, local=3, missing=2, unexpected=2
        )
        assert compare(one, one, "t").is_equal


@pytest.fixture
def backup_host(tmp_path: Path) -> Iterator[BackupHost]:
    archive = tmp_path / "archive"
    archive.mkdir()
    with serve_sftp(archive, tmp_path / "keys") as host:
        yield host


def test_the_reader_may_only_read_what_the_writer_has_written(backup_host: BackupHost) -> None:
    with _connect(backup_host.writer) as ssh, ssh.open_sftp() as sftp:
        with sftp.open("/a.part", "wx") as file:
            file.write("content")
        sftp.rename("/a.part", "/a")
    with _connect(backup_host.reader) as ssh, ssh.open_sftp() as sftp:
        with sftp.open("/a") as file:
            assert file.read() == b"content"
        for forbidden in (
            lambda: sftp.open("/b", "w"),
            lambda: sftp.open("/a", "a"),
            lambda: sftp.remove("/a"),
            lambda: sftp.rename("/a", "/b"),
            lambda: sftp.mkdir("/folder"),
            lambda: sftp.truncate("/a", 0),
        ):
            with pytest.raises(PermissionError):
                forbidden()
        assert sftp.listdir("/") == ["a"]


def test_an_account_is_not_opened_by_the_key_of_the_other(backup_host: BackupHost) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        _connect(backup_host.writer, key_file=backup_host.reader.key_file)


def _connect(access: SftpAccess, key_file: Path | None = None) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.load_host_keys(str(access.known_hosts))
    try:
        client.connect(
            access.host,
            access.port,
            access.user,
            key_filename=str(key_file or access.key_file),
            allow_agent=False,
            look_for_keys=False,
        )
    except BaseException:
        client.close()
        raise
    return client


def test_the_shop_of_compose_opens_once_trades_and_tells_whether_rows_are_equal(
    fresh_database: Callable[[], Database],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(traffic, "CUSTOMERS", 20)
    monkeypatch.setattr(traffic, "ORDERS", 20)
    production, local = fresh_database(), fresh_database()
    sides = [
        *("--production", make_conninfo(**production.params)),
        *("--local", make_conninfo(**local.params)),
    ]
    assert compose_shop.main([*sides, "open"]) == 0
    assert compose_shop.main([*sides, "open"]) == 0
    assert compose_shop.main([*sides, "trade", "--seconds", "0.5"]) == 0
    assert compose_shop.main([*sides, "compare", "--within", "0"]) == 1
    assert (
        "products            500 rows in production <> 0 rows in local: 500 missing"
        in capsys.readouterr().out
    )

    with production.connect() as source, local.connect() as target:
        for table in WHITELIST:
            _copy(source, target, table)
    assert compose_shop.main([*sides, "compare", "--within", "0"]) == 0
    told = capsys.readouterr().out
    assert "products            500 rows in production = 500 rows in local" in told
    assert "in local: not published" in told


def _copy(source: psycopg.Connection[Any], target: psycopg.Connection[Any], table: str) -> None:
    name = sql.Identifier(table)
    with (
        source.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(name)) as reading,
        target.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(name)) as writing,
    ):
        for block in reading:
            writing.write(block)


def _read(connection: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """All rows of the shop."""
    query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1")
    tables = (*PUBLISHED, PRIVATE)
    return {table: connection.execute(query.format(sql.Identifier(table))).fetchall() for table in tables}
