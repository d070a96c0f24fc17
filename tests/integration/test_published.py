"""The watch over what is published: more than the tables' names, while the archiver runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from syncdata.capture import housekeeper
from syncdata.capture.publication import Published, find_alterations, find_faults, read_published
from syncdata.changes.names import TableName
from syncdata.conf import source_from_toml
from syncdata.production import ProductionService
from syncsite.demo.postgres import PostgresServer
from tests.production import PUBLICATION, Production
from tests.standby import until

USERS, PARTS = TableName("public", "users"), TableName("public", "parts")


@pytest.fixture
def production(make_production: Callable[..., Production], any_postgres: PostgresServer) -> Production:
    made = make_production(any_postgres)
    made.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text)",
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE TABLE leaf PARTITION OF parts FOR VALUES IN (1)",
    )
    made.publish("users", "parts")
    return made


def look(production: Production) -> Published:
    with production.connect() as connection:
        return read_published(connection, PUBLICATION, [USERS, PARTS])


ALTERATIONS = {
    "a column list": ("ALTER PUBLICATION syncdata SET TABLE users (id), parts", "altered"),
    "a row filter": ("ALTER PUBLICATION syncdata SET TABLE users WHERE (id > 5), parts", "altered"),
    "a kind of change": ("ALTER PUBLICATION syncdata SET (publish = 'insert, update')", "actions"),
    "the names of partitions": (
        "ALTER PUBLICATION syncdata SET (publish_via_partition_root = false)",
        None,  # then the root is not published at all
    ),
    "an identity": ("ALTER TABLE users REPLICA IDENTITY NOTHING", "identity"),
    "a key": ("ALTER TABLE users DROP CONSTRAINT users_pkey", "identity"),
    "the identity of a partition": ("ALTER TABLE leaf REPLICA IDENTITY NOTHING", "identity"),
}


@pytest.mark.parametrize("kind", ALTERATIONS)
def test_whatever_is_altered_of_what_is_published_is_seen(production: Production, kind: str) -> None:
    statement, word = ALTERATIONS[kind]
    before = look(production)
    assert find_faults(before, PUBLICATION) == []
    production.execute(statement)
    now = look(production)
    kinds = {p.kind for p in [*find_faults(now, PUBLICATION), *find_alterations(before.parts, now.parts)]}
    assert kinds == ({word} if word else set())
    if word is None:
        assert PARTS not in now.parts


def test_a_partition_that_is_held_does_not_keep_the_status_waiting(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeper, "_LOCK_TIMEOUT", "100ms")
    source = production.database.pg_keys | {"tables": ["users", "parts"], "slot_name": production.slot_name}
    keys = {"archive_backend": "local", "archive_dir": str(production.archive_dir), "source": source}
    service = ProductionService(source_from_toml(keys, {}, tmp_path / "syncdata.toml"))
    with production.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE leaf IN ACCESS EXCLUSIVE MODE")
        assert "lock timeout" in "".join(str(p) for p in service.get_status().problems if p.kind == "source")
    assert not [p for p in service.get_status().problems if p.kind == "source"]


def test_a_running_archiver_and_the_status_tell_of_a_column_that_is_hidden(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeper, "_FIRST_WATCH_S", 0.05)
    monkeypatch.setattr(housekeeper, "_WATCH_EVERY_S", 0.05)
    source = production.database.pg_keys | {"tables": ["users", "parts"], "slot_name": production.slot_name}
    keys = {"archive_backend": "local", "archive_dir": str(production.archive_dir), "source": source}
    service = ProductionService(source_from_toml(keys, {}, tmp_path / "syncdata.toml"))
    stop = threading.Event()
    daemon = threading.Thread(target=service.run_loop, args=(stop,))
    with caplog.at_level(logging.WARNING):
        daemon.start()
        try:
            until((service.spool_dir / "published.json").exists)
            assert not [p for p in service.get_status().problems if p.kind == "altered"]
            production.execute("ALTER PUBLICATION syncdata SET TABLE users (id), parts")
            until(lambda: "the publication has the columns id now, and had all columns" in caplog.text)
            (problem,) = [p for p in service.get_status().problems if p.kind == "altered"]
            assert problem.table == "public.users" or problem.table == "users"
        finally:
            stop.set()
            daemon.join()
