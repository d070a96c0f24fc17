"""A row's values reach no log, no traceback and none of syncdata's own tables, whatever a server says.

PostgreSQL's DETAIL and CONTEXT quote rows: "Failing row contains (…)", "COPY t, line 3, column n: …". Each
test plants a value, makes the server complain, and looks for it everywhere.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
import pytest

from syncdata.errors import SyncError
from syncdata.runtime.driver_log import without_values
from syncsite.demo.postgres import PostgresServer
from tests import processes
from tests.production import Production
from tests.world import World, insert, update

MARK = "hunter2-in-a-row"


@dataclass(frozen=True)
class Complaint:
    """A table that refuses *records*, each as it stands."""

    table: str
    records: list[dict[str, object]]
    more: list[str] = field(default_factory=list)


COMPLAINTS = {
    "unique": Complaint(
        "id int PRIMARY KEY, a text UNIQUE",
        [insert("t", id=1, a=MARK), insert("t", id=2, a=MARK)],
    ),
    "not null": Complaint("id int PRIMARY KEY, a text, b text NOT NULL", [insert("t", id=1, a=MARK, b=None)]),
    "check": Complaint("id int PRIMARY KEY, a text CHECK (a = 'x')", [insert("t", id=1, a=MARK)]),
    "cast": Complaint("id int PRIMARY KEY, a int", [insert("t", id=1, a=MARK)]),
    "cast of the key": Complaint("id int PRIMARY KEY, a text", [insert("t", id=MARK, a="x")]),
    "cast in an update": Complaint(
        "id int PRIMARY KEY, a int", [insert("t", id=1, a=1), update("t", {"id": 1}, id=1, a=MARK)]
    ),
    "length": Complaint("id int PRIMARY KEY, a varchar(3)", [insert("t", id=1, a=MARK)]),
    "enum": Complaint(
        "id int PRIMARY KEY, a mood", [insert("t", id=1, a=MARK)], ["CREATE TYPE mood AS ENUM ('x')"]
    ),
    "json": Complaint("id int PRIMARY KEY, a jsonb", [insert("t", id=1, a="{" + MARK)]),
    "domain": Complaint(
        "id int PRIMARY KEY, a short",
        [insert("t", id=1, a=MARK)],
        ["CREATE DOMAIN short AS text CHECK (value = 'x')"],
    ),
    "exclusion": Complaint(
        "id int PRIMARY KEY, a text, EXCLUDE USING btree (a WITH =)",
        [insert("t", id=1, a=MARK), insert("t", id=2, a=MARK)],
    ),
    "range": Complaint("id int PRIMARY KEY, a int4range", [insert("t", id=1, a=f"[{MARK},2)")]),
    "date": Complaint("id int PRIMARY KEY, a date", [insert("t", id=1, a=MARK)]),
    "trigger": Complaint(
        "id int PRIMARY KEY, a text",
        [insert("t", id=1, a=MARK)],
        [
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'not %', NEW.a USING DETAIL = NEW.a, HINT = NEW.a; END $$",
        ],
    ),
    "division": Complaint(
        "id int PRIMARY KEY, a text, CHECK (1 / (length(a) - 16) > 0)", [insert("t", id=1, a=MARK)]
    ),
}


def arrange(world: World, complaint: Complaint) -> None:
    world.execute(*complaint.more, f"CREATE TABLE t ({complaint.table})")
    if "no()" in str(complaint.more):
        world.execute(
            "CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no()",
            "ALTER TABLE t ENABLE ALWAYS TRIGGER no",
        )
    world.whitelist("t")
    world.write("changes_20260205_103000.json", complaint.records)


def books(world: World) -> str:
    tables = world.rows(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname LIKE 'data\\_sync%'"
    )
    rows = [world.rows(f"SELECT row::text FROM {name} AS row") for (name,) in tables]
    return repr(rows) + "".join(path.read_text() for path in world.state_dir.glob(".syncdata_state.json"))


@pytest.mark.parametrize("name", COMPLAINTS)
def test_a_refused_row_shows_nowhere(world: World, name: str) -> None:
    arrange(world, COMPLAINTS[name])
    config = world.state_dir / "syncdata.toml"
    config.write_text(world.toml)
    config.chmod(0o600)
    environment = os.environ | {"DATA_SYNC_CONFIG": str(config)}

    outputs = [
        processes.run("manage.py", *argv, "--traceback", "-v", "2", env=environment)
        for argv in (["syncdata_start", "--once"], ["resync", "t"], ["list_tables"])
    ]

    assert outputs[0].returncode == 1 and outputs[1].returncode == 1
    for done in outputs:
        assert MARK not in done.stdout + done.stderr
    assert "SHD_SYN_" in outputs[1].stderr
    assert MARK not in books(world)
    assert world.checkpoint("t")[2] == "blocked"


@pytest.mark.parametrize("name", COMPLAINTS)
def test_an_error_brings_no_row_to_a_host_projects_log(world: World, name: str) -> None:
    """It has its own way to log: ``logger.exception`` prints the causes, too."""
    arrange(world, COMPLAINTS[name])

    with world.service() as service:
        errors: list[BaseException] = [*service.run_once().errors]
        with pytest.raises(SyncError) as refusal:
            service.resync("t")

    errors.append(refusal.value)
    assert len(errors) == 2
    for error in errors:
        assert MARK not in "".join(traceback.format_exception(error))


def test_an_error_that_the_driver_ignores_is_logged_without_its_detail(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.execute("CREATE TABLE t (id int)")
    with (
        caplog.at_level(logging.DEBUG, "psycopg"),
        without_values(),
        world.connect() as connection,
        connection.transaction(),
    ):
        logging.getLogger("psycopg").warning(
            "error ignored terminating %r: %s", connection, psycopg.DataError(f"DETAIL: {MARK}")
        )
        try:
            raise psycopg.Rollback from ValueError(MARK)
        except psycopg.Rollback:
            logging.getLogger("psycopg").debug("Explicit rollback from: ", exc_info=True)

    assert MARK not in caplog.text
    assert "DataError" in caplog.text and "Explicit rollback from" in caplog.text


def test_a_value_that_the_source_cannot_hand_over_shows_nowhere(
    make_production: Callable[..., Production], postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """In WIN1252 the byte 0x81 is stored as it is, and stands for nothing."""
    with postgres.connect(autocommit=True) as connection:
        connection.execute("CREATE DATABASE win1252_values TEMPLATE template0 ENCODING 'WIN1252' LOCALE 'C'")
    try:
        made = make_production()
        production = Production(
            type(made.database)(postgres, "win1252_values"), made.archive_dir, made.spool_dir, "slot_win1252"
        )
        production.execute(
            "CREATE PUBLICATION syncdata", "CREATE TABLE t (id int PRIMARY KEY, a text, b text)"
        )
        production.publish("t")
        production.create_slot()
        production.execute(f"INSERT INTO t VALUES (1, '{MARK}', chr(129))")

        with caplog.at_level(logging.DEBUG), pytest.raises(SyncError) as streamed:
            production.archive()
        with caplog.at_level(logging.DEBUG), pytest.raises(SyncError) as copied:
            production.snapshot("t")
        production.drop_slot()
    finally:
        with postgres.connect(autocommit=True) as connection:
            connection.execute("DROP DATABASE win1252_values WITH (FORCE)")

    for error in (streamed.value, copied.value):
        assert MARK not in "".join(traceback.format_exception(error))
    assert MARK not in caplog.text
    assert not [
        path for path in made.spool_dir.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()
    ]
