"""Each error says what is wrong, where, and what to do; and what it says to do heals."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from syncdata.errors import ResyncError, SyncError
from tests.framed import Writer
from tests.world import World, delete, insert, update

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
SECRET = "s3cret"


@dataclass
class Situation:
    """*ddl* makes the local table t, whose *record* is refused; the message has *words*, *remedy* is done."""

    ddl: tuple[str, ...]
    record: dict[str, Any]
    words: tuple[str, ...]
    remedy: tuple[str, ...]
    healed: list[tuple[Any, ...]]
    more: list[dict[str, Any]] = field(default_factory=list)
    is_ordinary: bool = False


def column(sql_type: str) -> str:
    return f"CREATE TABLE t (id int PRIMARY KEY, c {sql_type})"


SITUATIONS = {
    "an enum that has no such value yet": Situation(
        ddl=("CREATE TYPE mood AS ENUM ('sad')", column("mood")),
        record=insert("t", id=2, c=SECRET),
        words=("column c (mood)", "ALTER TYPE … ADD VALUE"),
        remedy=(f"ALTER TYPE mood ADD VALUE '{SECRET}'",),
        healed=[(2, SECRET)],
    ),
    "an enum in an array": Situation(
        ddl=("CREATE TYPE mood AS ENUM ('sad')", column("mood[]")),
        record=insert("t", id=2, c="{" + SECRET + "}"),
        words=("column c (mood[])",),
        remedy=(f"ALTER TYPE mood ADD VALUE '{SECRET}'",),
        healed=[(2, "{" + SECRET + "}")],
    ),
    "a number where there is a text now": Situation(
        ddl=(column("int"),),
        record=insert("t", id=2, c=SECRET),
        words=("column c (integer)", 'ALTER TABLE "public"."t" ALTER COLUMN "c" TYPE'),
        remedy=("ALTER TABLE t ALTER COLUMN c TYPE text",),
        healed=[(2, SECRET)],
    ),
    "a text that is too long": Situation(
        ddl=(column("varchar(3)"),),
        record=insert("t", id=2, c=SECRET),
        words=("column c (character varying(3)) is too short", 'ALTER COLUMN "c" TYPE'),
        remedy=("ALTER TABLE t ALTER COLUMN c TYPE varchar(30)",),
        healed=[(2, SECRET)],
    ),
    "a number out of range": Situation(
        ddl=(column("smallint"),),
        record=insert("t", id=2, c=70_000),
        words=("column c (smallint) is too small", 'ALTER COLUMN "c" TYPE'),
        remedy=("ALTER TABLE t ALTER COLUMN c TYPE int",),
        healed=[(2, "70000")],
    ),
    "a numeric out of range, by an update": Situation(
        ddl=(column("numeric(4,2)"), "INSERT INTO t VALUES (2, 1)"),
        record=update("t", {"id": 2}, id=2, c=123.25),
        words=("column c (numeric(4,2)) is too small",),
        remedy=("ALTER TABLE t ALTER COLUMN c TYPE numeric(8,2)",),
        healed=[(2, "123.25")],
    ),
    "a name that needs quotes": Situation(
        ddl=('CREATE TABLE t (id int PRIMARY KEY, "c: ""x"", y" smallint)',),
        record=insert("t", **{"id": 2, 'c: "x", y': 70_000}),  # type: ignore[arg-type]
        words=('column c: "x", y (smallint)', 'ALTER COLUMN "c: ""x"", y" TYPE'),
        remedy=('ALTER TABLE t ALTER COLUMN "c: ""x"", y" TYPE int',),
        healed=[(2, "70000")],
    ),
    "a NULL that is not allowed here": Situation(
        ddl=(column("text NOT NULL"),),
        record=insert("t", id=2, c=None),
        words=("column c would be NULL", 'ALTER TABLE "public"."t" ALTER COLUMN "c" DROP NOT NULL'),
        remedy=('ALTER TABLE "public"."t" ALTER COLUMN "c" DROP NOT NULL',),
        healed=[(2, None)],
    ),
    "a column that a migration here has added first": Situation(
        ddl=(column("text NOT NULL"),),
        record=insert("t", id=2),
        words=("column c would be NULL", "DEFAULT here, where production has no such column"),
        remedy=("ALTER TABLE t ALTER COLUMN c SET DEFAULT 'none'",),
        healed=[(2, "none")],
    ),
    "a CHECK that production does not have": Situation(
        ddl=(column("text CONSTRAINT short CHECK (length(c) < 3)"),),
        record=insert("t", id=2, c=SECRET),
        words=("breaks the CHECK short", 'ALTER TABLE "public"."t" DROP CONSTRAINT "short"'),
        remedy=('ALTER TABLE "public"."t" DROP CONSTRAINT "short"',),
        healed=[(2, SECRET)],
    ),
    "a CHECK of a domain": Situation(
        ddl=("CREATE DOMAIN word AS text CONSTRAINT short CHECK (length(VALUE) < 3)", column("word")),
        record=insert("t", id=2, c=SECRET),
        words=("CHECK short of the domain word", 'ALTER DOMAIN "public"."word" DROP CONSTRAINT "short"'),
        remedy=('ALTER DOMAIN "public"."word" DROP CONSTRAINT "short"',),
        healed=[(2, SECRET)],
    ),
    "a partition that is missing here": Situation(
        ddl=(
            "CREATE TABLE t (id int PRIMARY KEY, c text) PARTITION BY RANGE (id)",
            "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (2)",
        ),
        record=insert("t", id=2, c=SECRET),
        words=("no partition here takes the row", "PARTITION OF"),
        remedy=("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (2) TO (9)",),
        healed=[(2, SECRET)],
    ),
    "a unique constraint that production does not have": Situation(
        ddl=(column("text CONSTRAINT once UNIQUE"), f"INSERT INTO t VALUES (3, '{SECRET}')"),
        record=insert("t", id=2, c=SECRET),
        words=("what once allows only once", 'ALTER TABLE "public"."t" DROP CONSTRAINT "once"'),
        remedy=('ALTER TABLE "public"."t" DROP CONSTRAINT "once"',),
        healed=[(2, SECRET), (3, SECRET)],
    ),
    "a row that exists only here": Situation(
        ddl=(column("text CONSTRAINT once UNIQUE"), f"INSERT INTO t VALUES (3, '{SECRET}')"),
        record=insert("t", id=2, c=SECRET),
        words=("that other row exists only here: delete it",),
        remedy=("DELETE FROM t WHERE id = 3",),
        healed=[(2, SECRET)],
    ),
    "a foreign key for an ordinary role": Situation(
        ddl=("CREATE TABLE p (id int PRIMARY KEY)", column("int REFERENCES p")),
        record=insert("t", id=2, c=7),
        words=("foreign key t_c_fkey of t", "whitelist the table it refers to as well"),
        remedy=("INSERT INTO tables_to_sync (table_name) VALUES ('p')",),
        more=[insert("p", id=7)],
        healed=[(2, "7")],
        is_ordinary=True,
    ),
    "a right that the role lacks": Situation(
        ddl=(column("text"),),
        record=insert("t", id=2, c=SECRET),
        words=("permission denied for table t", "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE"),
        remedy=('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON "public"."t" TO "ordinary"',),
        healed=[(2, SECRET)],
        is_ordinary=True,
    ),
    "a trigger that refuses": Situation(
        ddl=(
            column("text"),
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'never %', NEW.c; END $$",
            "CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no()",
        ),
        record=insert("t", id=2, c=SECRET),
        words=("a trigger or function", 'ALTER TABLE "public"."t" DISABLE TRIGGER USER'),
        remedy=('ALTER TABLE "public"."t" DISABLE TRIGGER USER',),
        healed=[(2, SECRET)],
        is_ordinary=True,
    ),
    "a column that is new in production": Situation(
        ddl=("CREATE TABLE t (id int PRIMARY KEY)",),
        record=insert("t", id=2, c=SECRET),
        words=("a column 'c' that the table lacks", "where it is new in production, add it here"),
        remedy=("ALTER TABLE t ADD c text",),
        healed=[(2, SECRET)],
    ),
    "a table that is not here yet": Situation(
        ddl=("CREATE TABLE other (id int)",),
        record=insert("t", id=2, c=SECRET),
        words=("the table does not exist", "create it (migrate)"),
        remedy=(column("text"),),
        healed=[(2, SECRET)],
    ),
    "a key of more columns here": Situation(
        ddl=("CREATE TABLE t (id int, c text, PRIMARY KEY (id, c))", f"INSERT INTO t VALUES (2, '{SECRET}')"),
        record=delete("t", id=2),
        words=("lacks the key column(s) c;", "the key here is (id, c)", "located by (id)"),
        remedy=("ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ADD PRIMARY KEY (id)"),
        healed=[],
    ),
}


@pytest.fixture
def blocked(request: pytest.FixtureRequest, world: World) -> tuple[World, Situation, SyncError]:
    """A world in which table t is blocked as the situation has it, and beside it a table that goes on."""
    situation: Situation = request.param
    world.execute(*situation.ddl, "CREATE TABLE beside (id int PRIMARY KEY)")
    world.whitelist("t", "beside")
    if situation.is_ordinary:
        world.use_ordinary_role()
        if "right" in request.node.callspec.id:
            world.execute("REVOKE ALL ON t FROM ordinary")
    world.write(FIRST, [*situation.more, insert("beside", id=1), situation.record])
    (error,) = world.sync().errors
    return world, situation, error


@pytest.mark.parametrize("blocked", SITUATIONS.values(), ids=SITUATIONS, indirect=True)
def test_the_remedy_in_the_message_heals(blocked: tuple[World, Situation, SyncError]) -> None:
    world, situation, error = blocked
    text = str(error)
    for words in ("table t:", *situation.words):
        assert words in text
    assert SECRET not in text and "or resync" not in text
    assert world.rows("SELECT id FROM beside") == [(1,)], "the others go on"
    world.execute(*situation.remedy)
    assert world.sync().errors == ()
    columns = world.rows(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum"
    )
    (_, second) = (name for (name,) in columns)
    assert world.rows(f"SELECT id, {second}::text FROM t ORDER BY id") == situation.healed
    assert world.checkpoint("t")[2] == "active"


def test_a_refusal_of_many_records_names_the_column_too(world: World) -> None:
    world.execute(column("smallint"))
    world.whitelist("t")
    world.write(FIRST, [insert("t", id=n, c=70_000 if n == 50 else n) for n in range(90)])
    (error,) = world.sync().errors
    assert error.line == 51 and "column c (smallint)" in str(error)


def test_a_resync_that_fails_does_not_advise_a_resync_instead(world: World) -> None:
    world.execute(column("smallint"))
    world.whitelist("t")
    world.write(FIRST, [insert("t", id=1, c=70_000)])
    with world.service() as service:
        with pytest.raises(ResyncError) as caught:
            service.resync("t")
        assert "or resync" not in caught.value.hint
        assert "run 'python manage.py resync t' again" in caught.value.hint
        assert "column c (smallint)" in str(caught.value) and "its old rows are still there" in str(
            caught.value
        )
        world.execute("ALTER TABLE t ALTER COLUMN c TYPE int")
        service.resync("t")
    assert world.rows("SELECT * FROM t") == [(1, 70_000)]


def test_the_new_rows_of_a_resync_that_break_a_constraint_say_which(world: World) -> None:
    world.execute(column("text CONSTRAINT short CHECK (length(c) < 3)"))
    world.whitelist("t")
    world.write(FIRST, [insert("t", id=1, c=SECRET)])
    with world.service() as service, pytest.raises(ResyncError) as caught:
        service.resync("t")
    assert "breaks the CHECK short" in str(caught.value) and SECRET not in str(caught.value)
    world.execute(re.findall(r"ALTER TABLE .* DROP CONSTRAINT \S+?(?=,)", caught.value.hint)[0])
    with world.service() as service:
        service.resync("t")


def test_no_old_rows_are_promised_where_there_is_no_table(world: World) -> None:
    world.whitelist("absent")
    world.write(FIRST, [insert("absent", id=1)])
    with world.service() as service, pytest.raises(ResyncError) as caught:
        service.resync("absent")
    assert "old rows" not in str(caught.value)
    assert "create it" in caught.value.hint and "resync absent' again" in caught.value.hint


def test_key_columns_that_are_there_are_not_called_missing(world: World) -> None:
    world.execute("CREATE TABLE t (a int, b int, c text, PRIMARY KEY (a, b))")
    world.whitelist("t")
    world.write(FIRST, [update("t", {"a": 1}, b=2, c="x")])
    (error,) = world.sync().errors
    assert "has the key column(s) a, b neither all in old_keys nor all in data" in str(error)


def test_a_trouble_is_said_once_when_it_begins_and_once_when_it_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.execute(column("smallint"))
    world.whitelist("t")
    world.write(FIRST, [insert("t", id=1, c=70_000)])
    caplog.set_level(logging.INFO, "syncdata")

    def said(words: str) -> list[str]:
        return [record.levelname for record in caplog.records if words in record.getMessage()]

    with world.service() as service:
        for _ in range(3):
            service.run_once()
        assert said("column c (smallint)") == ["ERROR"]
        world.execute("ALTER TABLE t ALTER COLUMN c TYPE int, ADD CONSTRAINT low CHECK (c < 3)")
        for _ in range(2):
            service.run_once()
        assert said("breaks the CHECK low") == ["ERROR"], "another reason is news"
        world.execute("ALTER TABLE t DROP CONSTRAINT low")
        for _ in range(2):
            service.run_once()
        assert said("t goes on: what held it up is over") == ["INFO"]
        assert said("column c (smallint)") == ["ERROR"]
        world.write(SECOND, ["no record"])
        for _ in range(2):
            service.run_once()
        assert said("not a line of JSON") == ["ERROR"]


def test_an_archive_that_is_away_is_said_once_by_the_daemon(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncdata.apply.worker._FIRST_RETRY_S", 0.01)
    monkeypatch.setattr("syncdata.apply.worker._LAST_RETRY_S", 0.01)
    world.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.whitelist("t")
    away = world.archive.rename(world.archive.with_name("away"))
    caplog.set_level(logging.DEBUG, "syncdata")
    stop = threading.Event()

    def said(words: str, level: int) -> int:
        return sum(words in record.getMessage() and record.levelno == level for record in caplog.records)

    with world.service() as service:
        daemon = threading.Thread(target=service.run_loop, kwargs={"stop": stop})
        daemon.start()
        try:
            wait_until(lambda: said("cannot be listed", logging.DEBUG) >= 2)
            away.rename(world.archive)
            wait_until(lambda: said("the cycles go on", logging.INFO) == 1)
        finally:
            stop.set()
            daemon.join()
    assert said("cannot be listed", logging.ERROR) == 1


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "odd",
    [
        {"table": "t", "op": "INSERT"},
        {"table": "t", "op": "INSERT", "data": {}},
        {"table": "t", "op": "UPDATE", "old_keys": {"id": 1}},
        {"table": "t", "op": "DELETE"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_synced", [True, False])
def test_a_record_without_values_blocks_its_own_table_alone(
    world: World, odd: dict[str, Any], is_synced: bool
) -> None:
    world.execute(column("text"), "CREATE TABLE beside (id int PRIMARY KEY)")
    world.whitelist("beside", *(["t"] if is_synced else []))
    world.write(FIRST, [insert("beside", id=1), odd | {"ts": "2026-02-05T10:30:01Z"}, insert("beside", id=2)])
    errors = world.sync().errors
    assert world.rows("SELECT id FROM beside ORDER BY id") == [(1,), (2,)]
    assert [(error.table, error.line) for error in errors] == ([("t", 2)] if is_synced else [])
    if is_synced:
        with world.service() as service:
            service.skip_record("t", f"{FIRST}:2")
        assert world.sync().errors == ()


def test_a_gap_that_cannot_be_filled_is_healed_by_a_snapshot_and_a_resync(world: World) -> None:
    world.execute(column("text"))
    world.whitelist("t")
    archive = Writer(world.archive)
    archive.changes(1, [(1, [insert("t", id=1)])])
    world.sync()
    archive.changes(3, [(3, [insert("t", id=3)])])
    (error,) = world.sync().errors
    assert "a gap" in str(error)
    assert "where it is gone for good, take snapshots" in error.hint
    with world.service() as service:
        with pytest.raises(ResyncError) as caught:
            service.resync("t")
        assert "take snapshots" in caught.value.hint
        archive.snapshot(4, "t", 3, [{"id": 1}, {"id": 2}, {"id": 3}], prev=3)
        service.resync("t")
    assert world.sync().errors == ()
    assert world.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]
    assert world.checkpoint("t")[2] == "active"


def test_a_file_that_is_gone_with_half_of_it_applied_is_healed_by_a_snapshot_and_a_resync(
    make_world: Callable[..., World],
) -> None:
    world = make_world(batch_records=1)
    world.execute(column("smallint"))
    world.whitelist("t")
    archive = Writer(world.archive)
    first = archive.changes(1, [(1, [insert("t", id=1)]), (2, [insert("t", id=2, c=70_000)])])
    assert len(world.sync().errors) == 1
    first.unlink()
    archive.changes(2, [(3, [insert("t", id=3)])])
    (error,) = world.sync().errors
    assert "the file is gone" in str(error) and "where it is gone for good, take snapshots" in error.hint
    archive.snapshot(3, "t", 3, [{"id": 1}, {"id": 3}], prev=2)
    with world.service() as service:
        service.resync("t")
    assert world.sync().errors == ()
    assert world.rows("SELECT id FROM t ORDER BY id") == [(1,), (3,)]


def test_a_script_that_was_cut_off_says_what_is_left_to_do(world: World) -> None:
    world.execute(column("text"))
    world.whitelist("t")
    begin, end = ({"table": "", "op": op, "ts": "2026-02-05 10:30:00+00"} for op in "BC")
    world.write(FIRST, [begin, insert("t", id=1), end, begin, insert("t", id=2)])
    assert world.sync().waiting_for == FIRST
    world.write(SECOND, [begin, insert("t", id=3), end])
    (error,) = world.sync().errors
    assert "its last transaction has no end" in str(error)
    assert "take snapshots at production" in error.hint
    world.write(FIRST, [begin, insert("t", id=1), end, begin, insert("t", id=2), end])
    assert world.sync().errors == ()
    assert world.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]
