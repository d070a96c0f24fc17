"""A change that the source cannot hand over: what came before is delivered, it is told what holds the stream,
the archiver stays alive, and an operator can leave the transaction out without anybody being misled."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from syncdata.capture.snapshot import PartlyTakenError
from syncdata.capture.unreadable import load_left_out
from syncdata.changes.head import parse_head
from syncdata.changes.position import parse_lsn
from syncdata.conf import source_from_toml
from syncdata.errors import CaptureError, SnapshotError, UnreadableChangeError
from syncdata.production import ProductionService
from syncsite.demo.postgres import PostgresServer
from tests.production import Production, differences
from tests.remedies import follow
from tests.standby import until
from tests.views import look
from tests.world import World

TABLES = "CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE beside (id int PRIMARY KEY, v text)"


@dataclass(frozen=True)
class Way:
    """A way to a row that the source cannot hand over: ``poison`` puts it into `t`, ``mend`` takes it away.

    ``says`` is what the message says of the reason; ``never`` what it must not hold."""

    encoding: str | None
    before: tuple[str, ...]
    poison: str
    says: str
    mend: str = "DELETE FROM t WHERE id = 2"
    never: str = "the secret beside it"


WAYS = {
    "a character that has no equivalent": Way(
        "WIN1252",
        (),
        "INSERT INTO t VALUES (2, 'the secret beside it' || chr(129))",
        '0x81 in encoding "WIN1252"',
    ),
    "another encoding": Way(
        "WIN1250",
        (),
        "INSERT INTO t VALUES (2, 'the secret beside it' || chr(129))",
        '0x81 in encoding "WIN1250"',
    ),
    "a label that is gone from its enum": Way(
        None,
        (
            "CREATE TYPE mood AS ENUM ('fine', 'gone')",
            "ALTER TABLE t ADD m mood",
            "CREATE TABLE old AS SELECT 'gone'::mood AS m",
            "DELETE FROM pg_enum WHERE enumlabel = 'gone'",
        ),
        "INSERT INTO t SELECT 2, 'the secret beside it', m FROM old",
        "InvalidBinaryRepresentation (22P03)",
    ),
    "bytes that are no UTF-8, from a database that checks nothing": Way(
        "SQL_ASCII",
        (),
        "INSERT INTO t VALUES (2, 'the secret beside it' || E'\\xff')",
        'for encoding "UTF8": 0xff',
    ),
}


def begin(make: Callable[..., Production], server: PostgresServer, way: Way, **options: object) -> Production:
    production = make(server, encoding=way.encoding, **options)
    production.execute(*TABLES, *way.before)
    production.publish("t", "beside")
    return production


def poison(production: Production, way: Way) -> str:
    """Commit good transactions, the bad one and another good one; return where the bad one committed."""
    production.execute("INSERT INTO t (id, v) VALUES (1, 'before'), (3, 'just before')", way.poison)
    production.execute("INSERT INTO beside VALUES (1, 'later')")
    with pytest.raises(UnreadableChangeError) as caught:
        production.archive()
    return str(caught.value).partition("--skip-transaction ")[2].partition("'")[0]


def records(production: Production) -> list[tuple[str, str]]:
    """Return table and id of the archived records, in order."""
    found = []
    for file in production.open_archive().discover(None):
        with production.open_archive().fetch(file) as stream:
            text = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().decode()
        lines = (json.loads(line) for line in text.splitlines() if not line.startswith("#"))
        found += [(line["table"], line["data"]["id"]) for line in lines]
    return found


def service_of(production: Production, folder: Path, **keys: object) -> ProductionService:
    source = production.database.pg_keys | {
        "slot_name": production.slot_name,
        "spool_dir": str(production.spool_dir),
    }
    source |= {"tables": ["t", "beside"], "rotate_seconds": 1} | keys
    document = {"archive_backend": "local", "archive_dir": str(production.archive_dir), "source": source}
    return ProductionService(source_from_toml(document, {}, folder / "syncdata.toml"))


@pytest.mark.parametrize("kind", WAYS)
def test_what_was_committed_before_a_change_that_cannot_be_read_is_delivered(
    make_production: Callable[..., Production], any_postgres: PostgresServer, kind: str
) -> None:
    way = WAYS[kind]
    production = begin(make_production, any_postgres, way)
    poison(production, way)
    assert records(production) == [("t", "1"), ("t", "3")]
    for _ in range(2):  # and it says the same again
        with pytest.raises(
            UnreadableChangeError, match="^SHD_SYN_112: table t: .*that committed at "
        ) as caught:
            production.archive()
        assert way.says in str(caught.value)
        assert way.never not in str(caught.value)
    assert records(production) == [("t", "1"), ("t", "3")]


def test_a_change_that_cannot_be_read_keeps_the_archiver_alive_and_is_a_problem_of_its_own(
    make_production: Callable[..., Production],
    postgres: PostgresServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    way = WAYS["a character that has no equivalent"]
    production = begin(make_production, postgres, way, rotate_s=1)
    service, stop = service_of(production, tmp_path), threading.Event()
    daemon = threading.Thread(target=service.run_loop, args=(stop,))
    with caplog.at_level(logging.INFO):
        daemon.start()
        try:
            until(lambda: "archiving what commits after" in caplog.text)
            production.execute("INSERT INTO t VALUES (1, 'before')", way.poison)
            until(lambda: caplog.text.count("SHD_SYN_112") >= 1)
            until(lambda: [p for p in service.get_status().problems if p.kind == "unreadable"] != [])
            (problem,) = [p for p in service.get_status().problems if p.kind == "unreadable"]
            assert problem.reason is not None and problem.reason.code == "SHD_SYN_112"
            assert "0x81" in str(problem)
            until(lambda: caplog.text.count("archiving what commits after") >= 4)  # it tries again
            head = parse_head((production.archive_dir / "head.json").read_bytes())
            assert (head.state, head.error_code) == ("waiting", "SHD_SYN_112")
            assert daemon.is_alive()
        finally:
            stop.set()
            daemon.join()
    assert [r.levelname for r in caplog.records if "SHD_SYN_112" in r.getMessage()].count("ERROR") == 1
    assert records(production) == [("t", "1")]


def test_a_transaction_that_is_left_out_makes_every_table_suspect_until_there_is_a_newer_snapshot(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    any_postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    way = WAYS["a character that has no equivalent"]
    production, world = begin(make_production, any_postgres, way), make_world()
    world.execute(*TABLES)
    production.archive()
    production.snapshot("t", "beside")
    world.archive = production.archive_dir
    world.whitelist("t", "beside")
    world.sync()
    assert look(world, "t").is_green
    lsn = poison(production, way)
    world.sync()
    assert world.rows("SELECT id FROM t ORDER BY 1") == [(1,), (3,)]

    service = service_of(production, tmp_path, snapshot_bytes=0)  # no snapshots by itself
    service.leave_out(parse_lsn(lsn), requested_by="ada")
    world.sync()
    assert world.rows("SELECT id, v FROM beside") == [(1, "later")]  # which came later
    for table in ("t", "beside"):
        views = look(world, table)
        assert (views.state, views.green) == ("suspect", []), table
        assert lsn in views.problems[0]
    assert [(entry.commit_lsn, entry.by) for entry in load_left_out(production.spool_dir)] == [(lsn, "ada")]
    status = service.get_status()
    assert status.left_out == (lsn,)
    assert "unreadable" not in {problem.kind for problem in status.problems}

    production.execute(way.mend, "INSERT INTO beside VALUES (2, 'after')")
    follow(look(world, "beside").hints, production, world, words={})
    follow(look(world, "t").hints, production, world, words={})
    for table in ("t", "beside"):
        assert look(world, table).is_green, table
    assert differences(production.database, world.database, ["t", "beside"]) == []


def test_only_the_transaction_that_holds_the_stream_can_be_left_out(
    make_production: Callable[..., Production], postgres: PostgresServer
) -> None:
    way = WAYS["a character that has no equivalent"]
    production = begin(make_production, postgres, way)
    lsn = parse_lsn(poison(production, way))
    with pytest.raises(UnreadableChangeError):
        production.archiver().leave_out(lsn - 8, requested_by="ada")
    assert load_left_out(production.spool_dir) == []
    production.archiver().leave_out(lsn, requested_by="ada")
    assert records(production) == [("t", "1"), ("t", "3"), ("beside", "1")]
    with pytest.raises(CaptureError, match="no change holds the stream"):
        production.archiver().leave_out(lsn, requested_by="ada")
    assert len(load_left_out(production.spool_dir)) == 1


def test_a_transaction_that_was_left_out_stays_so_when_the_slot_goes_back(
    make_production: Callable[..., Production], postgres: PostgresServer
) -> None:
    """The slot's step is durable at the source's next checkpoint only, and a kill may come before it."""
    way = WAYS["a character that has no equivalent"]
    production = begin(make_production, postgres, way)
    lsn = parse_lsn(poison(production, way))
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr("syncdata.capture.archiver.advance_slot", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            production.archiver().leave_out(lsn, requested_by="ada")
    production.archive()
    assert records(production) == [("t", "1"), ("t", "3"), ("beside", "1")]
    assert len(load_left_out(production.spool_dir)) == 1


def test_what_the_archiver_can_copy_heals_by_itself_after_a_transaction_was_left_out(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    postgres: PostgresServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    way = WAYS["a character that has no equivalent"]
    production, world = begin(make_production, postgres, way), make_world()
    world.execute(*TABLES)
    production.archive()
    world.archive = production.archive_dir
    world.whitelist("t", "beside")
    service = service_of(production, tmp_path)
    service.leave_out(parse_lsn(poison(production, way)), requested_by="ada")
    assert "table t: the source cannot hand over a row" in caplog.text
    world.sync()
    assert look(world, "beside").state == "active"
    assert look(world, "t").state == "suspect"
    production.execute(way.mend)
    service.run_once(threading.Event())  # which copies what is still owed
    world.sync()
    assert look(world, "t").is_green
    assert differences(production.database, world.database, ["t", "beside"]) == []


@pytest.mark.parametrize("kind", WAYS)
def test_a_row_that_cannot_be_copied_keeps_only_its_own_table_back(
    make_production: Callable[..., Production], postgres: PostgresServer, kind: str
) -> None:
    way = WAYS[kind]
    production = begin(make_production, postgres, way)
    production.archive()
    production.execute("INSERT INTO beside VALUES (1, 'good')", way.poison)
    with pytest.raises(PartlyTakenError, match="^SHD_SYN_108: table t: .*cannot hand over a row") as caught:
        production.snapshot("t", "beside")
    assert way.never not in str(caught.value)
    assert [str(snapshot.table) for snapshot in caught.value.taken] == ["beside"]
    assert [file.name.rpartition("/")[2] for file in production.open_archive().discover_snapshots()] == [
        "public.beside.json.gz"
    ]
    production.execute(way.mend)
    assert len(production.snapshot("t", "beside")) == 2


def test_a_table_that_may_not_be_copied_keeps_only_its_own_snapshot_back(production: Production) -> None:
    production.execute(*TABLES)
    production.publish("beside")
    production.archive()
    with pytest.raises(PartlyTakenError, match="table t: it is not in the publication") as caught:
        production.snapshot("t", "beside", "missing")
    assert "missing: the source has no such table" in str(caught.value)
    assert [str(snapshot.table) for snapshot in caught.value.taken] == ["beside"]
    with pytest.raises(SnapshotError, match="no such table"):
        production.snapshot("missing")
