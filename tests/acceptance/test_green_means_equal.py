"""Green means equal: however rows come to differ from production's, no view calls their table healthy.

Each way is tried with a real production, its archiver and the local side. Then an operator does what the
message says, to the letter, and the rows are production's and the table is green. A table beside it, which
nothing happens to, stays equal and green all the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
import pytest

from syncsite.demo.postgres import PostgresServer, system_binaries
from tests.postgres import VERSIONS
from tests.production import PUBLICATION, Production, differences
from tests.remedies import follow
from tests.views import Views, look
from tests.world import World

PLAIN = ("CREATE TABLE t (id int PRIMARY KEY, v text)",)
PARTITIONED = (
    "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (3)",
    "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (3) TO (200)",
)
ROWS = "INSERT INTO t (id, v) SELECT n, 'v' || n FROM generate_series(1, 5) n"
MOST_REMEDIES = 3


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way in which rows of `t` come to differ: ``there`` is what happens at production and ``here`` what
    happens locally, after the table has begun with ``ddl`` and ``rows``.

    ``begins``: the state in which it begins. ``by_hand_there`` and ``by_hand_here``: what the message says in
    words, as SQL; ``words``: what it leaves to the reader as an ellipsis. ``after``: the change that shows in
    the end that the table goes on. ``on_system``: it takes the system's own server, for what the embedded one
    lacks. ``is_ordinary``: the local role is no superuser. ``heals``: the next cycle
    makes it right by itself. ``differs`` is off where the rows only may come to differ.
    """

    ddl: tuple[str, ...] = PLAIN
    local_ddl: tuple[str, ...] | None = None
    rows: tuple[str, ...] = (ROWS,)
    is_published: bool = True
    has_snapshot: bool = True
    is_ordinary: bool = False
    on_system: bool = False
    heals: bool = False
    differs: bool = True
    begins: tuple[str, ...] = ("active",)
    there: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    by_hand_there: tuple[str, ...] = ()
    by_hand_here: tuple[str, ...] = ()
    words: dict[str, str] = field(default_factory=dict)
    after: str = "INSERT INTO t (id, v) VALUES (99, 'after')"


@dataclass
class Site:
    """`t`, to which something happens, and `beside`, to which nothing does."""

    production: Production
    world: World

    def begin(self, way: Way) -> None:
        self.production.execute("CREATE TABLE beside (id serial PRIMARY KEY, v text)", *way.ddl)
        self.world.execute("CREATE TABLE beside (id serial PRIMARY KEY, v text)", *(way.local_ddl or way.ddl))
        self.production.publish("beside", *(["t"] if way.is_published else []))
        self.production.execute(*way.rows)
        self.production.archive()
        self.production.snapshot("beside", *(["t"] if way.has_snapshot else []))
        self.world.archive = self.production.archive_dir
        # As an old whitelist may have it: add_tables would refuse some.
        self.world.execute(
            "INSERT INTO tables_to_sync (table_name, created_at) VALUES ('t', now()), ('beside', now())"
        )
        if way.is_ordinary:
            self.world.use_ordinary_role()
        self.go()

    def go(self) -> None:
        """Archive what has happened, and let the local side take it."""
        self.production.execute("INSERT INTO beside (v) VALUES ('x')")
        self.production.archive()
        self.world.sync()
        assert differences(self.production.database, self.world.database, ["beside"]) == []

    def look(self) -> Views:
        return look(self.world, "t")

    def is_same(self) -> bool:
        try:
            return differences(self.production.database, self.world.database, ["t"]) == []
        except psycopg.Error:
            return False  # on one side, it is gone or has no rows to read


@pytest.fixture
def make_site(
    make_production: Callable[..., Production], make_world: Callable[..., World]
) -> Callable[..., Site]:
    def make(server: PostgresServer | None = None, **options: object) -> Site:
        servers = [] if server is None else [server]
        return Site(make_production(*servers), make_world(*servers, **options))

    return make


def require_never_green(views: Views) -> None:
    assert views.green == [], views
    assert views.state in views.metric_states
    assert views.page == views.state
    for hint in views.hints:
        assert hint in views.page_text, "the dashboard says what to do"


def heal(site: Site, way: Way) -> Views:
    """Follow the messages until there are none; each is followed once."""
    site.production.execute(*way.by_hand_there)
    site.world.execute(*way.by_hand_here)
    for _ in range(MOST_REMEDIES):
        site.go()
        views = site.look()
        if views.is_green:
            return views
        assert views.hints, views
        steps = follow(views.hints, site.production, site.world, words=way.words)
        print(steps, views.problems)
    site.go()
    return site.look()


def typed(there: str, here: str, value: str) -> Way:
    """A column that is wider at production now than here."""
    return Way(
        ddl=(f"CREATE TABLE t (id int PRIMARY KEY, v {here})",),
        rows=(),
        there=(f"ALTER TABLE t ALTER v TYPE {there}", f"INSERT INTO t VALUES (1, {value})"),
        after=f"INSERT INTO t VALUES (99, {value})",
    )


def added(column: str, *before: str) -> Way:
    """A column added on both sides, after *before* at production."""
    add = f"ALTER TABLE t ADD {column}"
    return Way(there=(*before, add), here=(add,))


def listed(*ddl: str, **options: object) -> Way:
    """Something on the whitelist that is no table that could be synced."""
    return Way(local_ddl=ddl, begins=("blocked", "suspect"), **options)  # type: ignore[arg-type]


def only(part: str) -> str:
    """The statement by which *part* of `t` is published."""
    return f"ALTER PUBLICATION {PUBLICATION} SET TABLE beside, t {part}"


ROOMS = "room int4range, at tsrange"
ROOM_ROWS = "INSERT INTO t SELECT int4range(n, n + 1), '[2026-01-01,2026-01-02)' FROM generate_series(1, 3) n"

WAYS = {
    # What values can hold
    "its texts were written anew there": Way(
        there=("ALTER TABLE t ALTER v TYPE text USING upper(v)",),
    ),
    "its numbers were doubled while they became wider there": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v int)",),
        local_ddl=("CREATE TABLE t (id int PRIMARY KEY, v bigint)",),
        rows=("INSERT INTO t VALUES (1, 1)",),
        there=("ALTER TABLE t ALTER v TYPE bigint USING v * 2",),
        after="INSERT INTO t VALUES (99, 99)",
    ),
    "a domain has more digits there": Way(
        ddl=("CREATE DOMAIN price AS numeric(12,4)", "CREATE TABLE t (id int PRIMARY KEY, v price)"),
        local_ddl=("CREATE DOMAIN price AS numeric(10,2)", "CREATE TABLE t (id int PRIMARY KEY, v price)"),
        rows=("INSERT INTO t VALUES (1, 1.2345)",),
        begins=("blocked",),
        after="INSERT INTO t VALUES (99, 9.8765)",
    ),
    "a numeric has more digits there": typed("numeric(12,4)", "numeric(10,2)", "1.2345"),
    "a numeric has no bound there": typed("numeric", "numeric(10,2)", "1.2345"),
    "a real became a double there": typed("double precision", "real", "0.1234567890123456"),
    "a timestamp has fractions there": typed("timestamp(6)", "timestamp(0)", "'2026-02-05 10:30:00.654321'"),
    "a timestamp with time zone has more digits there": typed(
        "timestamptz", "timestamptz(3)", "'2026-02-05 10:30:00.654321+00'"
    ),
    "a time has fractions there": typed("time", "time(0)", "'10:30:00.6'"),
    "an interval has fractions there": typed("interval(6)", "interval(0)", "'1.654321 s'"),
    "an array's numbers have more digits there": typed("numeric(12,4)[]", "numeric(10,2)[]", "'{1.2345}'"),
    "a numeric became a double here": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v numeric)",),
        rows=("INSERT INTO t VALUES (1, 0.5)",),
        here=("ALTER TABLE t ALTER v TYPE double precision",),
        there=("INSERT INTO t VALUES (2, 0.12345678901234567890)",),
        after="INSERT INTO t VALUES (99, 0.12345678901234567890)",
    ),
    # What is published
    "it is published no more": Way(
        there=(f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t", "UPDATE t SET v = 'unseen'"),
    ),
    "it was never published": Way(is_published=False, has_snapshot=False, begins=("partial", "unpublished")),
    "it was published no more and is again": Way(
        there=(
            f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t",
            "UPDATE t SET v = 'unseen'",
            f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t",
        ),
    ),
    "the row filter has changed": Way(
        there=(only("WHERE (id > 100)"), "UPDATE t SET v = 'unseen' WHERE id = 1", only("WHERE (id < 1000)")),
    ),
    "the list of columns has changed": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text, w text)",),
        there=(only("(id, v)"),),
        differs=False,
    ),
    "it was dropped and made anew": Way(
        there=(
            "DROP TABLE t",
            *PLAIN,
            f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t",
            "INSERT INTO t VALUES (9, 'new'), (10, 'new')",
        ),
    ),
    "it was swapped by a rename": Way(
        there=(
            "CREATE TABLE t_new (LIKE t INCLUDING ALL)",
            "INSERT INTO t_new VALUES (7, 'of the new one')",
            "BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT",
        ),
    ),
    "it was swapped by a rename and is published again": Way(
        there=(
            "CREATE TABLE t_new (LIKE t INCLUDING ALL)",
            "INSERT INTO t_new VALUES (7, 'of the new one')",
            "BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT",
            f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t",
            "INSERT INTO t VALUES (8, 'of the new one')",
        ),
    ),
    # Partitions
    "a partition was truncated": Way(ddl=PARTITIONED, there=("TRUNCATE t_2",)),
    "a partition was detached": Way(
        ddl=PARTITIONED,
        there=("ALTER TABLE t DETACH PARTITION t_2",),
        after="UPDATE t SET v = 'after' WHERE id = 1",
    ),
    "a partition was dropped": Way(
        ddl=PARTITIONED, there=("DROP TABLE t_2",), after="UPDATE t SET v = 'after' WHERE id = 1"
    ),
    "a partition was dropped and made anew": Way(
        ddl=PARTITIONED,
        there=("DROP TABLE t_2", "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (3) TO (200)"),
    ),
    "a partition was attached with rows": Way(
        ddl=(*PARTITIONED, "CREATE TABLE leaf (id int PRIMARY KEY, v text)"),
        there=(
            "INSERT INTO leaf VALUES (200, 'was there')",
            "ALTER TABLE t ATTACH PARTITION leaf FOR VALUES FROM (200) TO (300)",
        ),
        here=("ALTER TABLE t ATTACH PARTITION leaf FOR VALUES FROM (200) TO (300)",),
    ),
    # Columns
    "a column has a volatile default": added("token uuid DEFAULT gen_random_uuid()"),
    "a column has the time as default": added("at timestamptz DEFAULT clock_timestamp()"),
    "a column has the time of its making as default": added("at timestamptz DEFAULT now()"),
    "a column counts": added("number serial", "UPDATE t SET v = 'now the last row' WHERE id = 1"),
    "an identity column was added": added(
        "number int GENERATED ALWAYS AS IDENTITY", "UPDATE t SET v = 'now the last row' WHERE id = 1"
    ),
    "a column has a default there and none here": Way(
        there=("ALTER TABLE t ADD n int DEFAULT 5",), here=("ALTER TABLE t ADD n int",)
    ),
    "a column has another default here": Way(
        there=("ALTER TABLE t ADD n int DEFAULT 5",), here=("ALTER TABLE t ADD n int DEFAULT 7",)
    ),
    "a column was dropped and added again": Way(
        there=("ALTER TABLE t DROP v", "ALTER TABLE t ADD v text"),
    ),
    "a column is generated there and plain here": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text, w text GENERATED ALWAYS AS (upper(v)) STORED)",),
        local_ddl=("CREATE TABLE t (id int PRIMARY KEY, v text, w text)",),
        begins=("blocked",),
        words={"(…)": "(upper(v))"},
    ),
    "a column is plain there and generated here": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text, w text)",),
        local_ddl=(
            "CREATE TABLE t (id int PRIMARY KEY, v text, w text GENERATED ALWAYS AS (upper(v)) STORED)",
        ),
        begins=("blocked",),
    ),
    "a column became generated there": Way(
        there=(
            "ALTER TABLE t DROP v, ADD v text GENERATED ALWAYS AS ('n' || id::text) STORED",
            "INSERT INTO t (id) VALUES (20)",
        ),
        words={"(…)": "('n' || id::text)"},
        after="INSERT INTO t (id) VALUES (99)",
    ),
    # Beginnings
    "it began without a snapshot": Way(
        has_snapshot=False,
        is_published=False,
        begins=("partial", "unpublished"),
        there=(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t", "UPDATE t SET v = 'w' WHERE id = 1"),
    ),
    "the local table was dropped and made again": Way(here=("DROP TABLE t", *PLAIN), heals=True),
    "the local table was swapped by a rename": Way(
        here=(
            "CREATE TABLE t_new (LIKE t INCLUDING ALL)",
            "BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT",
        ),
        heals=True,
    ),
    # Kinds of relations here
    "a view": listed("CREATE VIEW t AS SELECT 1 AS id, 'v'::text AS v", by_hand_here=("DROP VIEW t", *PLAIN)),
    "a materialized view": listed(
        "CREATE MATERIALIZED VIEW t AS SELECT 1 AS id, 'v'::text AS v",
        by_hand_here=("DROP MATERIALIZED VIEW t", *PLAIN),
    ),
    "a sequence": listed("CREATE SEQUENCE t", by_hand_here=("DROP SEQUENCE t", *PLAIN)),
    "a foreign table": listed(
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER s FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE t (id int, v text) SERVER s",
        by_hand_here=("DROP FOREIGN TABLE t", *PLAIN),
    ),
    "an unlogged table": listed("CREATE UNLOGGED TABLE t (id int PRIMARY KEY, v text)", differs=False),
    "it became unlogged here": Way(here=("ALTER TABLE t SET UNLOGGED",), differs=False),
    "a partition of a published table": Way(
        ddl=(
            "CREATE TABLE u (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
            "CREATE TABLE t PARTITION OF u FOR VALUES FROM (0) TO (1000)",
        ),
        is_published=False,
        has_snapshot=False,
        begins=("partial", "unpublished"),
        by_hand_here=("ALTER TABLE u DETACH PARTITION t",),
        by_hand_there=("ALTER TABLE u DETACH PARTITION t",),
    ),
    # What swallows changes
    "a rule swallows deletes": Way(
        is_ordinary=True,
        local_ddl=(*PLAIN, "CREATE RULE guard AS ON DELETE TO t DO INSTEAD NOTHING"),
        there=("DELETE FROM t WHERE id = 1",),
    ),
    "a rule swallows updates": Way(
        is_ordinary=True,
        local_ddl=(*PLAIN, "CREATE RULE guard AS ON UPDATE TO t DO INSTEAD NOTHING"),
        there=("UPDATE t SET v = 'w' WHERE id = 1",),
    ),
    "a policy hides rows": Way(
        is_ordinary=True,
        begins=("blocked",),
        local_ddl=(
            *PLAIN,
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY all_but_one ON t USING (id <> 1) WITH CHECK (true)",
        ),
        there=("UPDATE t SET v = 'w' WHERE id = 1", "DELETE FROM t WHERE id = 1"),
    ),
    "a trigger swallows deletes": Way(
        is_ordinary=True,
        local_ddl=(
            *PLAIN,
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER guard BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION nothing()",
        ),
        there=("DELETE FROM t WHERE id = 1",),
    ),
    "a policy refuses rows": Way(
        is_ordinary=True,
        begins=("blocked",),
        local_ddl=(
            *PLAIN,
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY old_ones ON t USING (true) WITH CHECK (id < 6)",
        ),
        there=("INSERT INTO t VALUES (20, 'new')",),
    ),
    "an exclusion constraint refuses rows here": Way(
        ddl=(f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room))",),
        local_ddl=(
            f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room), CONSTRAINT one EXCLUDE USING gist (at WITH &&))",
        ),
        rows=("INSERT INTO t VALUES ('[1,2)', '[2026-01-01,2026-01-02)')",),
        there=("INSERT INTO t VALUES ('[2,3)', '[2026-01-01,2026-01-02)')",),
        by_hand_here=("ALTER TABLE t DROP CONSTRAINT one",),
        after="UPDATE t SET at = '[2026-02-01,2026-02-02)'",
    ),
    # Keys
    "the key is temporal there and plain here": Way(
        ddl=(f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room, at WITHOUT OVERLAPS))",),
        local_ddl=(f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room))",),
        rows=(ROOM_ROWS,),
        begins=("blocked",),
        there=("INSERT INTO t VALUES ('[1,2)', '[2026-02-01,2026-02-02)')",),
        by_hand_here=("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (room, at WITHOUT OVERLAPS)",),
        after="DELETE FROM t WHERE at @> '2026-02-01'::timestamp",
    ),
    "the key is another one here": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)",),
        local_ddl=("CREATE TABLE t (id int, v text PRIMARY KEY)",),
        begins=("blocked",),
        there=("INSERT INTO t VALUES (20, 'v1')",),
        by_hand_here=("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)",),
    ),
}


if system_binaries():
    WAYS["the key takes texts for equal here"] = Way(
        on_system=True,
        ddl=("CREATE TABLE t (id text PRIMARY KEY, v text)",),
        local_ddl=("CREATE EXTENSION citext", "CREATE TABLE t (id citext PRIMARY KEY, v text)"),
        rows=("INSERT INTO t VALUES ('Ann', 'one'), ('ann', 'other')",),
        begins=("blocked",),
        after="DELETE FROM t WHERE id = 'ann'",
    )
    WAYS["the key became blind for case here"] = Way(
        on_system=True,
        ddl=("CREATE TABLE t (id text PRIMARY KEY, v text)",),
        rows=("INSERT INTO t VALUES ('Ann', 'one')",),
        there=("INSERT INTO t VALUES ('ann', 'other')",),
        here=(
            "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            "ALTER TABLE t ALTER id TYPE text COLLATE blind",
        ),
        after="DELETE FROM t WHERE id = 'ann'",
    )


@pytest.mark.parametrize("name", WAYS)
def test_rows_that_differ_are_never_green_and_the_message_heals_them(
    make_site: Callable[..., Site], postgres_server: Callable[[str], PostgresServer], name: str
) -> None:
    way = WAYS[name]
    site = make_site(postgres_server(VERSIONS[-1])) if way.on_system else make_site()
    site.begin(way)
    views = site.look()
    assert views.state in way.begins
    assert views.is_green is (views.state == "active"), views
    assert not views.is_green or site.is_same()

    site.production.execute(*way.there)
    site.world.execute(*way.here)
    site.go()
    if not way.heals:
        assert site.is_same() is not way.differs
        require_never_green(site.look())

    views = heal(site, way)
    assert views.is_green, views
    assert site.is_same()
    site.production.execute(way.after)
    site.go()
    assert site.is_same()
    assert site.look().is_green


# What must not alarm anybody: after it, the rows are production's and the table is green.
RIGHT = {
    "nothing happens": Way(),
    "a partition without rows is attached": Way(
        ddl=(*PARTITIONED, "CREATE TABLE leaf (id int PRIMARY KEY, v text)"),
        there=("ALTER TABLE t ATTACH PARTITION leaf FOR VALUES FROM (200) TO (300)",),
        here=("ALTER TABLE t ATTACH PARTITION leaf FOR VALUES FROM (200) TO (300)",),
    ),
    "a column has the same default on both sides": added("n int DEFAULT 5"),
    "a column may be null": added("n int"),
    "a column is narrower there": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v varchar(9))",),
        local_ddl=("CREATE TABLE t (id bigint PRIMARY KEY, v text)",),
    ),
    "production writes its table anew": Way(there=("VACUUM FULL t",)),
    "production empties its table and fills it": Way(there=("TRUNCATE t", "INSERT INTO t VALUES (1, 'new')")),
    "production refills its table and adds a column": Way(
        there=("TRUNCATE t", "INSERT INTO t VALUES (1, 'new')", "ALTER TABLE t ADD n int"),
        here=("ALTER TABLE t ADD n int",),
    ),
    "production refills its table in one transaction": Way(
        there=("BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'new'); COMMIT",),
    ),
    "this side writes its table anew": Way(here=("VACUUM FULL t",)),
    "an identity column takes a new value": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text, rev int GENERATED ALWAYS AS IDENTITY)",),
        there=("UPDATE t SET rev = DEFAULT WHERE id < 3",),
    ),
    "a table that inherits has rows of the same keys": Way(
        ddl=(
            *PLAIN,
            "CREATE TABLE child () INHERITS (t)",
            "INSERT INTO child VALUES (1, 'child'), (2, 'child')",
        ),
        there=("DELETE FROM ONLY t WHERE id = 1", "UPDATE ONLY t SET id = 20 WHERE id = 2"),
    ),
    "the key is temporal": Way(
        ddl=(f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room, at WITHOUT OVERLAPS))",),
        rows=(ROOM_ROWS,),
        there=(
            "UPDATE t SET at = '[2026-03-01,2026-03-02)' WHERE room = '[1,2)'",
            "DELETE FROM t WHERE room = '[2,3)'",
            "INSERT INTO t VALUES ('[2,3)', '[2026-03-01,2026-03-02)')",
        ),
        after="DELETE FROM t WHERE room = '[3,4)'",
    ),
    "the rows swap ranges that exclude each other": Way(
        ddl=(
            f"CREATE TABLE t ({ROOMS}, PRIMARY KEY (room),"
            " EXCLUDE USING gist (at WITH &&) DEFERRABLE INITIALLY DEFERRED)",
        ),
        rows=(
            "INSERT INTO t VALUES ('[1,2)', '[2026-01-01,2026-01-02)'), ('[2,3)', '[2026-02-01,2026-02-02)')",
        ),
        there=(
            "UPDATE t SET at = tsrange(lower(at) + s, upper(at) + s) FROM (VALUES ('[1,2)'::int4range,"
            " interval '31 days'), ('[2,3)', interval '-31 days')) AS by (r, s) WHERE room = r",
        ),
        after="DELETE FROM t WHERE room = '[2,3)'",
    ),
    "the rows swap unique values": Way(
        ddl=("CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE DEFERRABLE INITIALLY DEFERRED)",),
        there=("UPDATE t SET v = 'v' || (6 - id)",),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_leaves_the_rows_equal_stays_green(make_site: Callable[..., Site], name: str) -> None:
    way, site = RIGHT[name], make_site()
    site.begin(way)
    assert site.is_same() and site.look().is_green
    site.production.execute(*way.there)
    site.world.execute(*way.here)
    site.go()
    assert site.is_same() and site.look().is_green
    site.production.execute(way.after)
    site.go()
    assert site.is_same() and site.look().is_green


def test_a_record_that_was_skipped_leaves_the_table_in_doubt(make_site: Callable[..., Site]) -> None:
    way = Way(local_ddl=(*PLAIN, "ALTER TABLE t ADD CONSTRAINT good CHECK (v <> 'bad')"))
    site = make_site()
    site.begin(way)
    site.production.execute("INSERT INTO t VALUES (9, 'bad')")
    site.go()
    require_never_green(site.look())
    with site.world.service() as service:
        (info,) = [info for info in service.list_tables() if info.table_name == "t"]
        service.skip_record("t", info.blocking_place)
    site.go()
    assert not site.is_same()
    require_never_green(site.look())
    site.world.execute("ALTER TABLE t DROP CONSTRAINT good")
    assert heal(site, way).is_green and site.is_same()


def test_an_archiver_that_is_silent_makes_all_tables_stale(make_site: Callable[..., Site]) -> None:
    site = make_site(stale_after=60)
    site.begin(Way())
    assert site.look().is_green
    head = site.production.archive_dir / "head.json"
    content = json.loads(head.read_text())
    head.write_text(json.dumps(content | {"time": "2026-02-05T10:30:00Z"}))
    site.production.execute("INSERT INTO t VALUES (9, 'nobody archives this')")
    site.world.sync()
    site.world.execute("UPDATE data_sync_runs SET head_changed_at = now() - interval '2 minutes'")
    site.world.sync()
    assert not site.is_same()
    views = site.look()
    assert views.green == [] and views.state == "stale", views
    site.go()
    assert site.is_same() and site.look().is_green
