"""Statements touch the right rows, and all of them: whatever inherits, whatever stands in the way, whichever
key there is; for a role that may silence triggers and for one that may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from syncdata.apply.plan.batches import BatchFile
from syncdata.apply.plan.net_change import make_plan
from syncdata.apply.plan.table_plan import TableBatch
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.fallback import apply_table
from syncdata.apply.postgres.writer import RowWriter
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord
from syncdata.errors import RequestError, SchemaError, SyncError
from tests.framed import Writer
from tests.world import World, delete, insert, truncate, update

FIRST, SECOND, THIRD = (f"changes_20260205_10300{n}.json" for n in range(3))

Begin = Callable[..., World]


@pytest.fixture
def start(world: World) -> Begin:
    """`start(*ddl)` makes the tables and whitelists `t` or *tables*, for a role of one's choice."""

    def start(*ddl: str, tables: tuple[str, ...] = ("t",), is_ordinary: bool = False) -> World:
        world.execute(*ddl)
        world.whitelist(*tables)
        if is_ordinary:
            world.use_ordinary_role()
        return world

    return start


@pytest.fixture(params=["silent", "ordinary"])
def begin(request: pytest.FixtureRequest, start: Begin) -> Begin:
    """The same for both roles, one after the other."""
    return lambda *ddl, **options: start(*ddl, is_ordinary=request.param == "ordinary", **options)


def synced(world: World, name: str, *records: dict[str, Any] | str) -> None:
    world.write(name, records)
    assert world.sync().errors == ()


def resync(world: World, *tables: str) -> None:
    with world.service() as service:
        for table in tables:
            service.resync(table)


def blocked(world: World) -> SyncError:
    (error,) = world.sync().errors
    return error


# Tables that inherit


def test_what_happens_to_a_parent_leaves_the_tables_that_inherit_from_it_alone(begin: Begin) -> None:
    world = begin(
        "CREATE TABLE city (id serial PRIMARY KEY, v text)",
        "CREATE TABLE capital (state text, PRIMARY KEY (id)) INHERITS (city)",
        "CREATE TABLE bag (v text)",
        "CREATE TABLE small_bag () INHERITS (bag)",
        "CREATE TABLE hub (id int PRIMARY KEY)",
        "CREATE TABLE small_hub (PRIMARY KEY (id)) INHERITS (hub)",
        "CREATE TABLE spoke (id int PRIMARY KEY, hub int REFERENCES hub DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO capital (id, v) SELECT n, 'capital' FROM generate_series(1, 900) n",
        "INSERT INTO small_bag VALUES ('a'), ('b')",
        "INSERT INTO small_hub VALUES (1), (2)",
        tables=("city", "bag", "hub"),
    )
    children = (
        "SELECT (SELECT count(*) FROM capital WHERE v = 'capital'), (SELECT count(*) FROM small_bag),"
        " (SELECT count(*) FROM small_hub)"
    )
    synced(
        world,
        FIRST,
        *(insert("city", id=n, v="city") for n in range(1, 6)),
        *(insert("bag", v=v) for v in "aab"),
        *(insert("hub", id=n) for n in (1, 2, 3)),
    )
    synced(
        world,
        SECOND,
        update("city", {"id": 1}, id=1, v="changed"),
        update("city", {"id": 2}, id=20),
        update("city", {"id": 3}, id=30, v="whole"),
        delete("city", id=4),
        delete("bag", v="a"),
        delete("hub", id=2),
    )
    own = "SELECT id, v FROM ONLY city ORDER BY id"
    rows = [(1, "changed"), (5, "city"), (20, "city"), (30, "whole")]
    assert world.rows(own) == rows
    assert world.rows("SELECT v FROM ONLY bag ORDER BY v") == [("a",), ("b",)]
    assert world.rows("SELECT id FROM ONLY hub ORDER BY id") == [(1,), (3,)]
    assert world.rows(children) == [(900, 2, 2)]
    assert world.value("SELECT nextval('city_id_seq')") == 31
    resync(world, "city", "bag", "hub")
    assert world.rows(own) == rows
    assert world.rows(children) == [(900, 2, 2)]
    synced(world, THIRD, truncate("city"), truncate("bag"), truncate("hub"))
    assert world.rows("SELECT id FROM ONLY city UNION ALL SELECT id FROM ONLY hub") == []
    assert world.rows("SELECT v FROM ONLY bag") == []
    assert world.rows(children) == [(900, 2, 2)]
    with world.service() as service:
        service.clear()
    assert world.rows(children) == [(900, 2, 2)]


def test_a_partition_that_is_published_by_itself_is_written_by_itself(begin: Begin) -> None:
    world = begin(
        "CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE t PARTITION OF root FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE other PARTITION OF root FOR VALUES FROM (100) TO (200)",
        "INSERT INTO other VALUES (150, 'stays')",
    )
    synced(world, FIRST, insert("t", id=1, v="a"), insert("t", id=2, v="b"), insert("t", id=3, v="c"))
    synced(world, SECOND, update("t", {"id": 1}, id=10, v="A"), delete("t", id=2), update("t", id=3, v="C"))
    resync(world, "t")
    assert world.rows("SELECT * FROM root ORDER BY id") == [(3, "C"), (10, "A"), (150, "stays")]
    synced(world, THIRD, truncate("t"))
    assert world.rows("SELECT * FROM root") == [(150, "stays")]


# Columns that no UPDATE may set

DOC = (
    "CREATE TABLE t (id int PRIMARY KEY, rev bigint GENERATED ALWAYS AS IDENTITY UNIQUE, body text, big text)"
)
DOCS = [insert("t", id=n, rev=n, body="v", big=f"big {n}") for n in range(1, 8)]


def test_an_identity_that_is_always_generated_follows_production_outside_the_key(begin: Begin) -> None:
    world = begin(DOC, "CREATE TABLE c (t_id int REFERENCES t DEFERRABLE)", "INSERT INTO t (id) VALUES (1)")
    world.execute("INSERT INTO c VALUES (1)")
    synced(world, FIRST, *DOCS)
    synced(
        world,
        SECOND,
        update("t", id=1, rev=10, body="w", big="new"),  # whole
        update("t", id=2, rev=11, body="w"),  # beside an unchanged value
        update("t", {"id": 3}, id=30, rev=12, body="w"),
        update("t", {"id": 4}, id=40, rev=13, body="w", big="new"),
        update("t", id=5, rev=6, body="swapped"),
        update("t", id=6, rev=5, body="swapped"),
        update("t", id=7, rev=7, body="only the body"),
        update("t", id=8, rev=8),  # missing
    )
    rows = [
        (1, 10, "w", "new"),
        (2, 11, "w", "big 2"),
        (5, 6, "swapped", "big 5"),
        (6, 5, "swapped", "big 6"),
        (7, 7, "only the body", "big 7"),
        (30, 12, "w", "big 3"),
        (40, 13, "w", "new"),
    ]
    assert world.rows("SELECT * FROM t ORDER BY id") == rows
    assert world.rows("SELECT * FROM c") == [(1,)]
    # And by upserts, over rows that stand there.
    synced(world, THIRD, insert("t", id=1, rev=20, body="x"), insert("t", id=2, rev=21), insert("t", id=9))
    assert world.rows("SELECT id, rev, body, big FROM t WHERE id < 3 ORDER BY id") == [
        (1, 20, "x", "new"),
        (2, 21, "w", "big 2"),
    ]


def test_a_resync_brings_an_identity_that_is_always_generated(begin: Begin) -> None:
    world = begin(DOC, "CREATE TABLE c (t_id int REFERENCES t DEFERRABLE)")
    synced(world, FIRST, *DOCS[:2])
    world.execute("INSERT INTO c VALUES (1)", "UPDATE t SET rev = DEFAULT, body = 'damaged'")
    resync(world, "t")
    assert world.rows("SELECT id, rev, body FROM t ORDER BY id") == [(1, 1, "v"), (2, 2, "v")]
    assert world.rows("SELECT * FROM c") == [(1,)]


def test_an_always_generated_identity_on_whose_rows_others_hang_is_refused_to_an_ordinary_role(
    start: Begin,
) -> None:
    world = start(DOC, "CREATE TABLE c (t_id int REFERENCES t ON DELETE CASCADE)", is_ordinary=True)
    synced(world, FIRST, *DOCS[:2])
    world.execute("INSERT INTO c VALUES (1)")
    world.write(SECOND, [update("t", id=2, body="w", rev=2), update("t", id=1, rev=9)])
    error = blocked(world)
    assert type(error) is SchemaError and error.line == 2
    assert "rev" in error.message and "SET GENERATED BY DEFAULT" in error.hint
    assert world.rows("SELECT * FROM c") == [(1,)]
    world.execute("ALTER TABLE t ALTER rev SET GENERATED BY DEFAULT")
    assert world.sync().errors == ()
    assert world.rows("SELECT id, rev FROM t ORDER BY id") == [(1, 9), (2, 2)]
    assert world.rows("SELECT * FROM c") == [(1,)]


# What stands in the way

SWALLOW = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
CHANGES = {
    "INSERT": (insert("t", id=3, v="new"), [(1, "a"), (2, "b"), (3, "new")]),
    "UPDATE": (update("t", id=1, v="A"), [(1, "A"), (2, "b")]),
    "UPDATE of the key": (update("t", {"id": 1}, id=7, v="a"), [(2, "b"), (7, "a")]),
    "UPDATE of the key beside an unchanged value": (update("t", {"id": 1}, id=7), [(2, "b"), (7, "a")]),
    "DELETE": (delete("t", id=1), [(2, "b")]),
}


@pytest.mark.parametrize("key", ["PRIMARY KEY", "PRIMARY KEY DEFERRABLE", ""])
@pytest.mark.parametrize("guard", ["rule", "trigger"])
def test_rows_that_a_rule_or_a_trigger_keeps_back_block_the_table(start: Begin, key: str, guard: str) -> None:
    is_rule = guard == "rule"
    world = start(f"CREATE TABLE t (id int {key}, v text)", SWALLOW, is_ordinary=is_rule)
    number = 0

    def write(*records: dict[str, Any]) -> None:
        nonlocal number
        number += 1
        world.write(f"changes_20260205_{number:06}.json", records)

    for kind, (change, expected) in CHANGES.items():
        event = kind.split()[0]
        if not key and event == "UPDATE":
            continue
        write(truncate("t"), insert("t", id=1, v="a"), insert("t", id=2, v="b"))
        assert world.sync().errors == ()
        if is_rule:
            # COPY invokes no rules, so the rows of a batch of plain inserts come in.
            world.execute(f"CREATE RULE guard AS ON {event} TO t DO INSTEAD NOTHING")
            disable, drop = "ALTER TABLE t DISABLE RULE guard", "DROP RULE guard ON t"
        else:
            world.execute(
                f"CREATE TRIGGER guard BEFORE {event} ON t FOR EACH ROW EXECUTE FUNCTION swallow()",
                "ALTER TABLE t ENABLE ALWAYS TRIGGER guard",
            )
            disable, drop = "ALTER TABLE t DISABLE TRIGGER guard", "DROP TRIGGER guard ON t"
        old = {"old_keys": {"id": 1, "v": "a"}} if not key and event == "DELETE" else {}
        write(change | old)
        # Where triggers are silent, a row gets another key by DELETE and INSERT.
        is_moved = "key" in kind and not is_rule
        is_copied = is_rule and event == "INSERT" and "DEFERRABLE" not in key
        if not is_moved and not is_copied:
            error = blocked(world)
            assert type(error) is SchemaError and error.line == 1, kind
            assert f"{guard} guard" in error.message and f"DISABLE {guard.upper()} guard" in error.hint, kind
            assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "b")], kind
            world.execute(disable)
        assert world.sync().errors == ()
        assert world.rows("SELECT * FROM t ORDER BY id") == expected, kind
        world.execute(drop)


def test_what_a_rule_keeps_back_is_found_to_the_line_beside_rows_that_are_missing(start: Begin) -> None:
    world = start("CREATE TABLE t (id int PRIMARY KEY, v text, w text)", is_ordinary=True)
    synced(world, FIRST, insert("t", id=1, v="a", w="w"), insert("t", id=2, v="b", w="w"))
    world.execute("CREATE RULE kept AS ON DELETE TO t WHERE old.id = 2 DO INSTEAD NOTHING")
    world.write(SECOND, [delete("t", id=9), update("t", id=8, v="x"), delete("t", id=1), delete("t", id=2)])
    error = blocked(world)
    assert type(error) is SchemaError and error.line == 4 and "rule kept" in error.message
    world.execute("DROP RULE kept ON t")
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM t") == []


def test_rules_that_are_silent_do_not_stop_an_upsert(start: Begin) -> None:
    world = start("CREATE TABLE t (id int PRIMARY KEY, v text)")
    synced(world, FIRST, insert("t", id=1, v="a"), insert("t", id=2, v="b"))
    for event in ("INSERT", "UPDATE", "DELETE"):
        world.execute(f"CREATE RULE no_{event} AS ON {event} TO t DO INSTEAD NOTHING")
    synced(
        world,
        SECOND,
        update("t", id=1, v="A"),
        delete("t", id=2),
        insert("t", id=3, v="c"),
        insert("t", id=1, v="AA"),
        update("t", {"id": 3}, id=4, v="d"),
    )
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "AA"), (4, "d")]


def test_a_rule_that_sends_rows_elsewhere_blocks_the_table_although_the_number_is_right(start: Begin) -> None:
    world = start(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE TABLE elsewhere (id int PRIMARY KEY, v text)",
        "INSERT INTO elsewhere VALUES (1, 'x')",
        is_ordinary=True,
    )
    synced(world, FIRST, insert("t", id=1, v="a"))
    world.execute(
        "CREATE RULE away AS ON UPDATE TO t DO INSTEAD UPDATE elsewhere SET v = new.v WHERE id = old.id"
    )
    world.write(SECOND, [update("t", id=1, v="b")])
    assert "rule away" in blocked(world).message
    assert world.rows("SELECT v FROM elsewhere") == [("x",)]


@pytest.mark.parametrize("record", [insert("t", id=2, v="b"), update("t", id=1, v="b")])
def test_values_that_a_trigger_changes_block_the_table(begin: Begin, record: dict[str, Any]) -> None:
    world = begin("CREATE TABLE t (id int PRIMARY KEY, v text)")
    synced(world, FIRST, insert("t", id=1, v="a"))
    world.execute(
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN IF new.v <> ''fine'' THEN new.v := ''stamped''; END IF; RETURN new; END'",
        "CREATE TRIGGER stamps BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION stamp()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER stamps",
    )
    synced(world, SECOND, insert("t", id=1, v="fine"))
    world.write(THIRD, [record])
    assert "trigger stamps" in blocked(world).message
    with pytest.raises(SyncError, match="trigger stamps"):
        resync(world, "t")
    world.execute("ALTER TABLE t DISABLE TRIGGER stamps")
    assert world.sync().errors == ()
    assert ("b",) in world.rows("SELECT v FROM t")


@pytest.mark.parametrize("key", ["PRIMARY KEY", ""])
@pytest.mark.parametrize("event", ["INSERT", "DELETE"])
def test_a_resync_that_a_rule_or_a_trigger_keeps_back_fails(start: Begin, key: str, event: str) -> None:
    world = start(f"CREATE TABLE t (id int {key}, v text)", SWALLOW, is_ordinary=True)
    synced(world, FIRST, insert("t", id=1, v="a"), insert("t", id=2, v="b"))
    world.execute(f"CREATE RULE kept AS ON {event} TO t DO INSTEAD NOTHING")
    with pytest.raises(SyncError, match="rule kept"):
        resync(world, "t")
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "b")]
    world.execute(
        "DROP RULE kept ON t",
        f"CREATE TRIGGER held BEFORE {event} ON t FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    with pytest.raises(SyncError, match="trigger held"):
        resync(world, "t")
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "b")]


def test_a_table_that_keeps_its_rows_is_neither_truncated_nor_cleared(start: Begin) -> None:
    world = start(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE o (t_id int REFERENCES t DEFERRABLE)",
        "CREATE RULE kept AS ON DELETE TO t DO INSTEAD NOTHING",
        is_ordinary=True,
    )
    synced(world, FIRST, insert("t", id=1))
    with pytest.raises(RequestError, match="rule kept"), world.service() as service:
        service.clear()
    world.write(SECOND, [truncate("t")])
    assert "rule kept" in blocked(world).message
    assert world.rows("SELECT * FROM t") == [(1,)]


@pytest.mark.parametrize("force", ["ENABLE", "FORCE"])
def test_row_level_security_is_named_before_anything_is_tried(start: Begin, force: str) -> None:
    world = start("CREATE TABLE t (id int PRIMARY KEY, v text)", is_ordinary=True)
    synced(world, FIRST, insert("t", id=1, v="a"))
    world.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "CREATE POLICY p ON t USING (id > 5)")
    if force == "FORCE":
        world.execute("ALTER TABLE t OWNER TO ordinary", "ALTER TABLE t FORCE ROW LEVEL SECURITY")
    world.write(SECOND, [update("t", id=1, v="b")])
    error = blocked(world)
    assert type(error) is SchemaError and "row-level security" in error.message
    with pytest.raises(SyncError, match="row-level security"):
        resync(world, "t")
    world.execute("ALTER TABLE t DISABLE ROW LEVEL SECURITY")
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM t") == [(1, "b")]


# Keys


@pytest.mark.parametrize(
    "constraint",
    ["EXCLUDE USING gist (at WITH &&)", "UNIQUE (v)", "EXCLUDE USING btree (v WITH =)"],
)
def test_an_insert_of_an_existing_key_is_an_upsert_whatever_other_constraint_is_asked_first(
    begin: Begin, constraint: str
) -> None:
    world = begin(
        f"CREATE TABLE t (id int, at int4range, v text, {constraint})", "ALTER TABLE t ADD PRIMARY KEY (id)"
    )
    world.execute("INSERT INTO t VALUES (1, '[1,5)', 'a'), (2, '[5,9)', 'b')")
    synced(
        world,
        FIRST,
        insert("t", id=1, at="[1,5)", v="a"),
        insert("t", id=2, at="[5,8)", v="b"),
        insert("t", id=3, at="[9,10)", v="c"),
    )
    assert world.rows("SELECT id, at::text, v FROM t ORDER BY id") == [
        (1, "[1,5)", "a"),
        (2, "[5,8)", "b"),
        (3, "[9,10)", "c"),
    ]


def test_two_rows_exchange_what_an_exclusion_constraint_keeps_apart(start: Begin) -> None:
    world = start(
        "CREATE TABLE t (id int PRIMARY KEY, at int4range, EXCLUDE USING gist (at WITH &&))",
        "INSERT INTO t VALUES (1, '[1,5)'), (2, '[5,9)')",
    )
    synced(world, FIRST, update("t", id=1, at="[5,9)"), update("t", id=2, at="[1,5)"))
    assert world.rows("SELECT id, at::text FROM t ORDER BY id") == [(1, "[5,9)"), (2, "[1,5)")]


@pytest.mark.parametrize(
    "index",
    [
        "(v) NULLS NOT DISTINCT",
        "(v) WHERE id < 100",
        "(lower(v))",
        "(v, id) INCLUDE (w)",
    ],
)
def test_unique_indexes_of_every_kind_let_rows_be_upserted_and_exchanged(begin: Begin, index: str) -> None:
    world = begin(
        "CREATE TABLE t (id int, v text, w text)",
        f"CREATE UNIQUE INDEX ON t {index}",
        "ALTER TABLE t ADD PRIMARY KEY (id)",
        "INSERT INTO t VALUES (1, NULL, 'x'), (2, 'b', 'x')",
    )
    synced(world, FIRST, insert("t", id=1, v=None, w="y"), insert("t", id=2, v="b", w="y"))
    synced(
        world,
        SECOND,
        update("t", id=1, v="c", w="z"),
        update("t", id=2, v=None, w="z"),
        update("t", id=1, v="b", w="z"),
    )
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "b", "z"), (2, None, "z")]


def test_a_key_without_overlaps_is_upserted_and_moved(begin: Begin) -> None:
    world = begin(
        "CREATE TABLE t (room int4range, at daterange, guest text, note text,"
        " PRIMARY KEY (room, at WITHOUT OVERLAPS))"
    )
    stays: list[dict[str, Any]] = [
        {"room": "[1,2)", "at": f"[2026-01-0{n},2026-01-0{n + 2})"} for n in (1, 3, 5)
    ]
    one, two, three = stays
    synced(world, FIRST, insert("t", **one, guest="a", note="A"), insert("t", **two, guest="b", note="B"))
    synced(
        world,
        SECOND,
        update("t", **one, guest="c"),
        insert("t", **two, guest="d", note="D"),
        insert("t", **three, guest="e", note="E"),
    )
    query = "SELECT at::text, guest, note FROM t ORDER BY at"
    assert world.rows(query) == [
        ("[2026-01-01,2026-01-03)", "c", "A"),
        ("[2026-01-03,2026-01-05)", "d", "D"),
        ("[2026-01-05,2026-01-07)", "e", "E"),
    ]
    # The second and the third stay are put off, each to where the other one was or beside it; one is over.
    later: dict[str, Any] = {"room": "[1,2)", "at": "[2026-01-06,2026-01-09)"}
    synced(
        world,
        THIRD,
        update("t", three, **later),
        update("t", two, **(one | {"at": "[2026-01-03,2026-01-06)"}), guest="f", note="F"),
        delete("t", **one),
    )
    rows = [("[2026-01-03,2026-01-06)", "f", "F"), ("[2026-01-06,2026-01-09)", "e", "E")]
    assert world.rows(query) == rows
    world.execute("UPDATE t SET guest = 'damaged'")
    resync(world, "t")
    assert world.rows(query) == rows


def test_a_replica_identity_beside_the_primary_key_locates_the_rows(begin: Begin) -> None:
    world = begin(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text, toast text)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key",
    )
    synced(world, FIRST, *(insert("t", id=n, code=f"c{n}", v="v", toast="T") for n in range(1, 7)))
    synced(
        world,
        SECOND,
        update("t", id=1, code="c1", v="w"),
        update("t", {"code": "c2"}, id=2, code="moved", v="v"),
        update("t", id=30, code="c3", v="v"),
        delete("t", code="c4"),
        update("t", {"code": "c5"}, id=50, code="both", v="v"),
    )
    # The source's identity is the primary key now.
    synced(world, THIRD, delete("t", id=6), update("t", {"id": 1}, id=10, code="c1", v="x"))
    assert world.rows("SELECT * FROM t ORDER BY id") == [
        (2, "moved", "v", "T"),
        (10, "c1", "x", "T"),
        (30, "c3", "v", "T"),
        (50, "both", "v", "T"),
    ]


def test_a_unique_index_that_production_identifies_rows_by_locates_them_here(begin: Begin) -> None:
    world = begin("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, v text, UNIQUE (code))")
    synced(world, FIRST, *(insert("t", id=n, code=f"c{n}", v="v") for n in range(1, 4)))
    synced(world, SECOND, delete("t", code="c1"), update("t", {"code": "c2"}, id=20, code="d2", v="w"))
    assert world.rows("SELECT * FROM t ORDER BY id") == [(3, "c3", "v"), (20, "d2", "w")]


def test_a_swap_under_awake_keys_takes_no_children_along(start: Begin) -> None:
    world = start(
        "CREATE TABLE t (id int PRIMARY KEY, email text UNIQUE, toast text)",
        "CREATE TABLE waits (t_id int REFERENCES t DEFERRABLE)",
        "CREATE TABLE c (id int PRIMARY KEY, email text UNIQUE)",
        "CREATE TABLE goes (c_id int REFERENCES c ON DELETE CASCADE)",
        "INSERT INTO t VALUES (1, 'a', 'A'), (2, 'b', 'B'), (3, 'c', 'C')",
        "INSERT INTO c VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO waits VALUES (1), (2)",
        "INSERT INTO goes VALUES (1), (2)",
        tables=("t", "c"),
        is_ordinary=True,
    )
    synced(
        world,
        FIRST,
        update("t", id=1, email="x"),
        update("t", id=2, email="a"),
        update("t", id=1, email="b", toast="new"),
        update("c", id=1, email="x"),
        update("c", id=2, email="a"),
        update("c", id=1, email="b"),
    )
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "b", "new"), (2, "a", "B"), (3, "c", "C")]
    assert world.rows("SELECT * FROM c ORDER BY id") == [(1, "b"), (2, "a")]
    assert world.rows("SELECT * FROM waits ORDER BY 1") == [(1,), (2,)]
    assert world.rows("SELECT * FROM goes ORDER BY 1") == [(1,), (2,)]


# Many columns, and odd names


def test_a_table_may_have_as_many_columns_as_postgresql_allows(begin: Begin) -> None:
    names = [f"c{n}" for n in range(1599)]
    columns = ", ".join(f"{name} smallint" for name in names)
    world = begin(
        f"CREATE TABLE t (id int PRIMARY KEY, {columns})",
        f"CREATE TABLE bag (id int, {columns})",
        tables=("t", "bag"),
    )
    empty: dict[str, Any] = dict.fromkeys(names)
    synced(
        world,
        FIRST,
        *(insert("t", id=n, **empty) for n in range(1, 5)),
        *(insert("bag", id=n, **empty) for n in (1, 1, 2)),
    )
    synced(
        world,
        SECOND,
        update("t", id=1, **empty | {"c1": 5}),
        update("t", id=2, c2=6),
        update("t", {"id": 3}, id=30, **{n: v for n, v in empty.items() if n != "c0"}),
        delete("t", id=4),
        insert("t", id=5, c5=1),
        delete("bag", id=1, **empty),
    )
    synced(world, THIRD, update("t", {"id": 5}, id=50, **empty | {"c5": 2}))
    assert world.rows("SELECT id, c1, c2, c5 FROM t ORDER BY id") == [
        (1, 5, None, None),
        (2, None, 6, None),
        (30, None, None, None),
        (50, None, None, 2),
    ]
    assert world.rows("SELECT id FROM bag ORDER BY id") == [(1,), (2,)]


def test_columns_may_be_named_like_those_of_the_staging_tables(begin: Begin) -> None:
    names = ("syncdata_shape", "syncdata_old_0", "syncdata_expected", "syncdata_count", "t", "r", "number")
    world = begin(
        f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(f'{name} text' for name in names)})",
        f"CREATE TABLE bag ({', '.join(f'{name} text' for name in names)})",
        "CREATE TABLE excluded (id int PRIMARY KEY, excluded text)",
        tables=("t", "bag", "excluded"),
    )
    row: dict[str, Any] = dict.fromkeys(names, "a")
    synced(
        world,
        FIRST,
        *(insert("t", id=n, **row) for n in range(1, 5)),
        insert("bag", **row),
        insert("bag", **row),
        insert("excluded", id=1, excluded="a"),
    )
    synced(
        world,
        SECOND,
        update("t", id=1, syncdata_shape="b"),
        update("t", {"id": 2}, id=20, syncdata_old_0="b"),
        insert("t", id=3, **row | {"t": "b"}),
        delete("t", id=4),
        delete("bag", **row),
        insert("excluded", id=1, excluded="b"),
    )
    assert world.rows("SELECT id, syncdata_shape, syncdata_old_0, t FROM t ORDER BY id") == [
        (1, "b", "a", "a"),
        (3, "a", "a", "b"),
        (20, "a", "b", "a"),
    ]
    assert world.value("SELECT count(*) FROM bag") == 1
    assert world.rows("SELECT * FROM excluded") == [(1, "b")]


def test_rows_without_any_column_of_their_own_are_counted(world: World) -> None:
    world.execute("CREATE TABLE t ()", "CREATE TABLE made (g int GENERATED ALWAYS AS (1 + 1) STORED)")
    batches: list[list[ChangeRecord]] = [
        [ChangeRecord(table="t", op="INSERT", data={})] * 3,
        [ChangeRecord(table="t", op="INSERT", data={}), *[ChangeRecord(table="t", op="DELETE", data={})] * 3],
    ]
    with world.connect() as connection:
        for name in ("t", "made"):
            table = TableName("public", name)
            schema = read_schemas(connection, [table])[table]
            for records in batches:
                located = [
                    LocatedRecord(record, n, 1, file=FIRST) for n, record in enumerate(records, start=1)
                ]
                file = BatchFile(name=FIRST, is_plain=True)
                batch = TableBatch(schema=schema, records=located, file=file)
                with connection.transaction():
                    writer = RowWriter(connection)
                    writer.begin()
                    apply_table(writer, batch, make_plan(batch))
    assert world.rows("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM made)") == [(1, 1)]


# First loads


def test_a_first_load_fills_columns_that_production_lacks(begin: Begin) -> None:
    world = begin(
        "CREATE DOMAIN five AS int NOT NULL DEFAULT 5",
        "CREATE TABLE t (id int PRIMARY KEY, v text, d bigint NOT NULL DEFAULT 999,"
        " e int GENERATED BY DEFAULT AS IDENTITY, s serial, f five,"
        " g text GENERATED ALWAYS AS (upper(v)) STORED)",
        "CREATE TABLE always (id int PRIMARY KEY, v text, e int GENERATED ALWAYS AS IDENTITY)",
        "CREATE TABLE bag (v text, e int GENERATED ALWAYS AS IDENTITY)",
        tables=("t", "always", "bag"),
    )
    archive = Writer(world.archive)
    archive.changes(1, [(10, [insert("other", id=1)])])
    for number, table in enumerate(("t", "always", "bag"), start=2):
        rows = [{"v": v} | ({} if table == "bag" else {"id": n}) for n, v in enumerate("ab", start=1)]
        archive.snapshot(number, table, 20, rows, prev=1)
    assert world.sync().errors == ()
    assert world.rows("SELECT id, v, d, e, s, f, g FROM t ORDER BY id") == [
        (1, "a", 999, 1, 1, 5, "A"),
        (2, "b", 999, 2, 2, 5, "B"),
    ]
    assert world.rows("SELECT * FROM always ORDER BY id") == [(1, "a", 1), (2, "b", 2)]
    # And what a developer or the stream adds comes after.
    archive.changes(2, [(30, [insert("always", id=3, v="c"), insert("t", id=3, v="c")])])
    assert world.sync().errors == ()
    world.execute("INSERT INTO always (id) VALUES (4)", "INSERT INTO t (id) VALUES (4)")
    assert world.rows("SELECT id, e FROM always WHERE id > 2 ORDER BY id") == [(3, 3), (4, 4)]
    assert world.rows("SELECT id, e, s FROM t WHERE id = 4") == [(4, 4, 4)]


def test_a_sequence_is_never_set_back_by_a_truncate(begin: Begin) -> None:
    world = begin("CREATE TABLE t (id serial PRIMARY KEY)")
    synced(world, FIRST, insert("t", id=7))
    synced(world, SECOND, truncate("t"), insert("t", id=1))
    assert world.rows("SELECT id FROM t") == [(1,)]
    assert world.value("SELECT nextval('t_id_seq')") == 8
