"""The catalogs that an archiver writes: what production publishes, as the archive's files announce it."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from syncdata.archive.retention import old_catalogs
from syncdata.capture.catalog_state import last_naming
from syncdata.changes.catalog import (
    Catalog,
    Column,
    Partition,
    PublishedTable,
    catalog_comment_lsn,
    catalog_name,
    parse_catalog,
    parse_catalog_comment,
)
from syncdata.changes.head import Head, parse_head
from syncdata.changes.header import Header, parse_header
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncsite.demo.postgres import PostgresServer
from tests.chains import archived_records
from tests.production import Production, archiving, until
from tests.world import World


class Source:
    """A production whose files are plain text, and what they say of its catalog."""

    def __init__(self, production: Production) -> None:
        self.production = production
        self.execute = production.execute
        self.publish = production.publish

    def archive(self) -> Source:
        self.production.archive()
        archived_records(self.production.archive_dir)
        return self

    def files(self) -> list[list[str]]:
        """The lines of each change file."""
        paths = sorted(self.production.archive_dir.glob("changes_*.json"))
        return [path.read_text().splitlines() for path in paths]

    def catalog(self, digest: str) -> Catalog:
        name = catalog_name(digest)
        return parse_catalog((self.production.archive_dir / name).read_bytes(), name)

    def catalogs(self) -> list[Catalog]:
        """Each catalog that the change files name, in order; two in a row are never the same."""
        digests: list[str] = []
        for line in (line for lines in self.files() for line in lines):
            digest = json.loads(line[2:]).get("catalog") if line.startswith("#") else None
            if digest and digest != (digests[-1] if digests else None):
                digests.append(digest)
        return [self.catalog(digest) for digest in digests]

    def table(self, name: str) -> PublishedTable:
        """*name* in the catalog that holds at the archive's end."""
        found = self.catalogs()[-1].find(TableName.parse(name))
        assert found is not None, name
        return found

    def column(self, table: str, name: str) -> Column:
        return next(column for column in self.table(table).columns if column.name == name)

    def leaf(self, table: str, name: str) -> Partition:
        return next(leaf for leaf in self.table(table).partitions if leaf.name == name)

    @property
    def head(self) -> Head:
        return parse_head((self.production.archive_dir / "head.json").read_bytes())


@pytest.fixture
def make_source(make_production: Callable[..., Production]) -> Callable[..., Source]:
    def make(server: PostgresServer | None = None, **options: Any) -> Source:
        servers = () if server is None else (server,)
        return Source(make_production(*servers, **{"compression": "none", "rotate_s": 0.2} | options))

    return make


@pytest.fixture
def source(make_source: Callable[..., Source]) -> Source:
    return make_source()


@pytest.fixture
def any_source(make_source: Callable[..., Source], any_postgres: PostgresServer) -> Source:
    return make_source(any_postgres)


def test_a_catalog_shows_tables_as_production_publishes_them(any_source: Source) -> None:
    source = any_source
    source.execute(
        "CREATE SCHEMA shop",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE TABLE shop.item (a int, id bigint GENERATED ALWAYS AS IDENTITY, price numeric(10,2) NOT NULL,"
        " gross numeric GENERATED ALWAYS AS (price * 2) STORED, mood public.mood, gone int,"
        " PRIMARY KEY (id, a))",
        "ALTER TABLE shop.item DROP gone",
        "CREATE TABLE kept (id int PRIMARY KEY, code text NOT NULL)",
        "CREATE UNIQUE INDEX kept_code ON kept (code)",
        "ALTER TABLE kept REPLICA IDENTITY USING INDEX kept_code",
        "CREATE TABLE whole (v text)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE private (id int)",
    )
    source.publish("shop.item", "kept", "whole")
    source.execute("INSERT INTO whole VALUES ('x')")
    source.archive()
    catalog = source.catalogs()[-1]
    assert [str(table.table) for table in catalog.tables] == ["kept", "whole", "shop.item"]
    item, kept, whole = source.table("shop.item"), source.table("kept"), source.table("whole")
    assert [(c.name, c.number, c.type, c.not_null, c.generated, c.identity) for c in item.columns] == [
        ("a", 1, "integer", True, "", ""),
        ("id", 2, "bigint", True, "", "always"),
        ("price", 3, "numeric(10,2)", True, "", ""),
        ("gross", 4, "numeric", False, "stored", ""),
        ("mood", 5, "public.mood", False, "", ""),
    ]
    assert (item.key, item.identity, item.identity_columns) == (("id", "a"), "default", ("id", "a"))
    assert (kept.key, kept.identity, kept.identity_columns) == (("id",), "index", ("code",))
    assert (whole.key, whole.identity, whole.identity_columns) == ((), "full", ("v",))
    assert not any(column.filled for table in catalog.tables for column in table.columns)
    assert (item.row_filter, item.column_list, item.partitions) == (None, None, ())


def test_a_catalog_shows_what_the_publication_leaves_out(source: Source) -> None:
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text, email text)",
        "ALTER PUBLICATION syncdata ADD TABLE users (id, name) WHERE (id > 10)",
        "INSERT INTO users VALUES (11, 'a', 'b')",
    )
    users = source.archive().table("users")
    assert (users.column_list, users.row_filter) == (("id", "name"), "(id > 10)")
    assert len(source.catalogs()) == 1, "the stream describes the table as the catalog does"


def test_a_publication_that_leaves_out_deletes_publishes_nothing_that_can_be_relied_on(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    source.execute("ALTER PUBLICATION syncdata SET (publish = 'insert, update')")
    source.archive()
    assert source.catalogs()[-1].tables == ()
    assert "leaves out some of INSERT" in caplog.text and "users: no longer published" in caplog.text


def test_all_tables_and_whole_schemas_are_found(source: Source) -> None:
    source.execute(
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.item (id int PRIMARY KEY)",
        "CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE shop.part PARTITION OF shop.parts DEFAULT",
        "CREATE UNLOGGED TABLE shop.scratch (id int)",
        "CREATE TABLE users (id int PRIMARY KEY)",
        "CREATE VIEW users_view AS SELECT * FROM users",
        "ALTER PUBLICATION syncdata ADD TABLES IN SCHEMA shop",
        "INSERT INTO shop.item VALUES (1)",
    )
    names = [str(table.table) for table in source.archive().catalogs()[-1].tables]
    assert names == ["shop.item", "shop.parts"]
    source.execute(
        "DROP PUBLICATION syncdata",
        "CREATE PUBLICATION syncdata FOR ALL TABLES WITH (publish_via_partition_root)",
    )
    names = [str(table.table) for table in source.archive().catalogs()[-1].tables]
    assert names == ["users", "shop.item", "shop.parts"]


def test_partitions_that_are_published_themselves_are_tables_of_their_own(source: Source) -> None:
    source.execute(
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part_1 PARTITION OF parts DEFAULT",
        "ALTER PUBLICATION syncdata SET (publish_via_partition_root = false)",
        "ALTER PUBLICATION syncdata ADD TABLE parts",
        "INSERT INTO parts VALUES (1)",
    )
    assert [str(table.table) for table in source.archive().catalogs()[-1].tables] == ["part_1"]


def test_nothing_is_announced_twice(source: Source) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    source.archive().archive()
    source.execute("INSERT INTO users VALUES (2)")
    source.archive()
    assert (len(source.catalogs()), len(source.files())) == (1, 2)


def test_a_column_that_comes_in_mid_stream_is_announced_before_its_first_value(any_source: Source) -> None:
    source = any_source
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    # The archiver reads all of this later: when it looks at the source, the stream is far behind.
    source.execute(
        "INSERT INTO users VALUES (2)",
        "ALTER TABLE users ADD note varchar(5)",
        "INSERT INTO users VALUES (3, 'x')",
        "ALTER TABLE users ALTER note TYPE varchar(9)",
        "INSERT INTO users VALUES (4, 'y')",
    )
    source.archive()
    types: dict[str, list[tuple[str, str]]] = {}
    catalog = None
    for line in source.files()[-1]:
        content = json.loads(line.removeprefix("# "))
        if line.startswith("#"):
            catalog = content.get("catalog") or catalog
        else:
            table = source.catalog(catalog or "").find(TableName.parse("users"))
            assert table is not None
            types[content["data"]["id"]] = [(column.name, column.type) for column in table.columns]
    assert types == {
        "2": [("id", "integer")],
        "3": [("id", "integer"), ("note", "character varying(5)")],
        "4": [("id", "integer"), ("note", "character varying(9)")],
    }


def test_what_changes_before_the_first_record_is_announced_to_those_who_began_with_a_snapshot(
    source: Source,
) -> None:
    # Before it is published, so that no record is in the stream.
    source.execute(*PARTED, "INSERT INTO ev VALUES (11, '2026-01-01')")
    source.publish("ev")
    source.archive()
    source.production.snapshot("ev")
    assert source.files() == []
    source.execute("TRUNCATE ev_1")
    source.archive()
    assert [len(lines) for lines in source.files()] == [2]


def test_a_file_and_its_comments_say_where_the_catalog_was_read(source: Source) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute(
        "INSERT INTO users VALUES (1)", "ALTER TABLE users ADD n int", "INSERT INTO users VALUES (2)"
    )
    (lines,) = source.archive().files()
    header = parse_header((lines[0] + "\n").encode(), "x")
    assert isinstance(header, Header) and header.catalog_lsn is not None
    (comment,) = [line.encode() for line in lines if parse_catalog_comment(line.encode())]
    lsn = catalog_comment_lsn(comment)
    assert lsn is not None and parse_lsn(lsn) >= parse_lsn(json.loads(lines[-2])["commit_lsn"])


FILLED = [
    ("ADD c uuid DEFAULT gen_random_uuid()", True),
    ("ADD c bigint GENERATED BY DEFAULT AS IDENTITY", True),
    ("ADD c bigserial", True),
    ("ADD c timestamptz DEFAULT clock_timestamp()", True),
    ("ADD c timestamptz DEFAULT now()", True),
    ("ADD c text DEFAULT current_user", True),
    ("ADD c text DEFAULT 'x' || version()", True),
    ("ADD c int DEFAULT 7", False),
    ("ADD c numeric(5,2) DEFAULT 7.5 NOT NULL", False),
    ("ADD c varchar(9) DEFAULT 'abc'", False),
    ("ADD c jsonb DEFAULT '{}'", False),
    ("ADD c timestamptz DEFAULT '2026-01-01 00:00:00+00'", False),
    ("ADD c int DEFAULT length('abc')", False),
    ("ADD c int", False),
    ("ADD c int GENERATED ALWAYS AS (id * 2) STORED", False),
]


@pytest.mark.parametrize(("added", "is_filled"), FILLED)
def test_a_column_whose_older_rows_got_values_of_their_own_is_told(
    source: Source, caplog: pytest.LogCaptureFixture, added: str, is_filled: bool
) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.publish("t")
    source.execute("INSERT INTO t VALUES (1, 'x')")
    source.archive()
    source.execute(f"ALTER TABLE t {added}")
    source.archive()
    assert source.column("t", "c").filled is is_filled
    assert ("t: the new column c got values" in caplog.text) is is_filled
    source.execute("ALTER TABLE t ADD d int", "INSERT INTO t VALUES (2)")
    source.archive()
    assert source.column("t", "c").filled is is_filled, "it stays so"


@pytest.mark.parametrize("added", ["c int", "c bigserial", "c timestamptz DEFAULT now()"])
def test_a_column_that_found_no_rows_is_like_any_other(source: Source, added: str) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.publish("t")
    source.execute("INSERT INTO t VALUES (1)")
    source.archive()
    source.execute("TRUNCATE t", f"ALTER TABLE t ADD {added}", "INSERT INTO t VALUES (2)")
    assert source.archive().column("t", "c").filled is False


DROPPED_DEFAULT = ("ADD c float8 DEFAULT random()", "ALTER c DROP DEFAULT, ADD d int")
AFTER_A_TRUNCATE: dict[str, tuple[tuple[str, ...], bool]] = {
    "plain": (("ADD c int",), False),
    "plain_more": (("ADD c text", "ADD CHECK (c <> 'x')", "ADD UNIQUE (c)"), False),
    "counted": (("ADD c bigserial",), True),
    "dropped": (DROPPED_DEFAULT, True),
    "dropped_more": ((*DROPPED_DEFAULT, "ADD UNIQUE (c)"), True),
    "worked_out": (("ADD c int", "ALTER c TYPE text USING id::text"), True),
}


def test_a_column_that_came_after_a_truncate_and_new_rows_is_like_any_other(any_source: Source) -> None:
    """The storage that the TRUNCATE has made is not taken for one that the column's default has made."""
    source = any_source
    for table in AFTER_A_TRUNCATE:
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v text)")
        source.publish(table)
        source.execute(f"INSERT INTO {table} VALUES (1)")
    source.archive()
    before = {table: source.table(table).storage for table in AFTER_A_TRUNCATE}
    for table, (changes, _) in AFTER_A_TRUNCATE.items():
        source.execute(f"TRUNCATE {table}", f"INSERT INTO {table} VALUES (2)")
        source.execute(*(f"ALTER TABLE {table} {change}" for change in changes))
        source.execute(f"INSERT INTO {table} VALUES (3)", f"UPDATE {table} SET v = 'new' WHERE id = 3")
    source.archive()
    for table, (_, is_filled) in AFTER_A_TRUNCATE.items():
        assert source.column(table, "c").filled is is_filled, table
        assert (source.table(table).storage != before[table]) is is_filled, table


def test_a_default_of_the_moment_that_a_migration_drops_again_is_told(any_source: Source) -> None:
    source = any_source
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.publish("t")
    source.execute("INSERT INTO t VALUES (1)")
    source.archive()
    # As Django adds DateTimeField(auto_now_add=True), and a field with default=uuid4 or default=0.
    for column, default in (
        ("at timestamptz", "'2026-11-27 10:00:00+00'"),
        ("token uuid", "'0d6b1a3e-8a5a-4b1c-9d57-0f1f5d8c7a11'"),
        ("n int", "0"),
    ):
        name = column.split()[0]
        source.execute(
            f"ALTER TABLE t ADD {column} DEFAULT {default} NOT NULL",
            f"ALTER TABLE t ALTER {name} DROP DEFAULT",
        )
    source.archive()
    assert [(c.name, c.filled) for c in source.table("t").columns] == [
        ("id", False),
        ("at", True),
        ("token", True),
        ("n", False),
    ]


PARTED = (
    "CREATE TABLE ev (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
    *(
        f"CREATE TABLE ev_{m} PARTITION OF ev FOR VALUES FROM ('2026-0{m}-01') TO ('2026-0{m + 1}-01')"
        for m in range(1, 5)
    ),
)
ROWS = (
    "INSERT INTO ev SELECT m * 10 + n, make_date(2026, m, n)"
    " FROM generate_series(1, 4) m, generate_series(1, 3) n"
)


def parted(source: Source) -> Source:
    source.execute(*PARTED)
    source.publish("ev")
    source.execute(ROWS)
    return source.archive()


def test_truncating_a_leaf_changes_its_storage(any_source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source = parted(any_source)
    before = source.table("ev")
    source.execute("TRUNCATE ev_1", "INSERT INTO ev_1 VALUES (1, '2026-01-09')", "VACUUM FULL ev_1")
    source.archive()
    after = source.table("ev")
    changed = [old.name for old, new in zip(before.partitions, after.partitions, strict=True) if old != new]
    assert changed == ["ev_1"]
    assert "ev: the partition ev_1 was truncated or rewritten; readers hold it for suspect" in caplog.text


def test_a_leaf_that_is_only_written_anew_keeps_its_storage(any_source: Source) -> None:
    source = parted(any_source)
    source.execute(
        "VACUUM FULL ev_1", "CLUSTER ev_2 USING ev_2_pkey", "INSERT INTO ev VALUES (5, '2026-01-09')"
    )
    source.archive()
    assert len(source.catalogs()) == 1
    source.execute("TRUNCATE ev_1")
    source.archive()
    assert len(source.catalogs()) == 2


def test_partitions_that_go_are_gone_from_the_catalog(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    parted(source).execute("DROP TABLE ev_2", "ALTER TABLE ev DETACH PARTITION ev_3")
    source.archive()
    assert [leaf.name for leaf in source.table("ev").partitions] == ["ev_1", "ev_4"]
    for name in ("ev_2", "ev_3"):
        assert f"the partition {name} was detached or dropped" in caplog.text


def test_a_partition_that_was_away_for_a_while_is_another(source: Source) -> None:
    before = parted(source).leaf("ev", "ev_1")
    source.execute(
        "ALTER TABLE ev DETACH PARTITION ev_1",
        "DELETE FROM ev_1 WHERE id = 11",
        "ALTER TABLE ev ATTACH PARTITION ev_1 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
    )
    assert source.archive().leaf("ev", "ev_1").storage != before.storage


ATTACH = "ALTER TABLE ev ATTACH PARTITION ev_5 FOR VALUES FROM ('2026-05-01') TO ('2026-06-01')"
MADE = "CREATE TABLE ev_5 (LIKE ev INCLUDING ALL)"
FIVE = "INSERT INTO ev_5 VALUES (51, '2026-05-01')"
OF = "CREATE TABLE ev_5 PARTITION OF ev FOR VALUES FROM ('2026-05-01') TO ('2026-06-01')"


@pytest.mark.parametrize(
    ("statements", "is_filled"),
    [
        ([MADE, FIVE, ATTACH], True),
        ([f"BEGIN; {MADE}; {FIVE}; {ATTACH}; COMMIT"], True),
        ([MADE, ATTACH, FIVE], False),
        ([f"BEGIN; {MADE}; {ATTACH}; {FIVE}; COMMIT"], False),
        ([OF, FIVE], False),
        ([f"BEGIN; {OF}; {FIVE}; COMMIT"], False),
        ([MADE, ATTACH], False),
    ],
)
def test_a_partition_that_was_attached_with_rows_is_told(
    source: Source, statements: list[str], is_filled: bool
) -> None:
    parted(source).execute(*statements)
    assert source.archive().leaf("ev", "ev_5").filled is is_filled


def test_attached_rows_are_seen_through_the_right_on_the_root(any_source: Source) -> None:
    source = parted(any_source)
    source.execute(
        "DO $$ BEGIN CREATE ROLE archiver LOGIN REPLICATION PASSWORD 'archiver';"
        " EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT SELECT ON ev TO archiver",
        MADE,
        ATTACH,
        FIVE,
        "CREATE TABLE ev_6 (LIKE ev INCLUDING ALL)",
        "INSERT INTO ev_6 VALUES (61, '2026-06-01')",
        "ALTER TABLE ev ATTACH PARTITION ev_6 FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')",
    )
    source.production.login = {"user": "archiver", "password": "archiver"}
    source.archive()
    assert [(leaf.name, leaf.filled) for leaf in source.table("ev").partitions if leaf.name > "ev_4"] == [
        ("ev_5", False),
        ("ev_6", True),
    ]
    source.production.login = {}
    source.execute("DROP OWNED BY archiver")


def test_a_table_that_is_swapped_by_rename_is_told_at_once(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    with archiving(source.production):
        until(lambda: len(source.files()) == 1)
        source.execute(
            "BEGIN; CREATE TABLE new (LIKE users INCLUDING ALL); ALTER TABLE users RENAME TO users_old;"
            " ALTER TABLE new RENAME TO users; COMMIT"
        )
        until(lambda: "users: no longer published: it is called users_old now" in caplog.text)
        # Production says nothing more, and still the readers hear of it.
        until(lambda: len(source.files()) == 2)
    assert [str(table.table) for table in source.catalogs()[-1].tables] == ["users_old"]


def test_readers_pass_over_a_file_without_records(source: Source, world: World) -> None:
    source.production.archive_dir = world.archive
    users = "CREATE TABLE users (id int PRIMARY KEY, n int)"
    source.execute(users)
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1, 1)")
    source.archive()
    world.execute(users)
    world.whitelist("users")
    world.sync()
    source.execute("CREATE TABLE more (id int PRIMARY KEY)")
    source.publish("more")
    source.archive()
    world.sync()
    source.execute("INSERT INTO users VALUES (2, 2)")
    source.archive()
    assert [sum(line[0] != "#" for line in lines) for lines in source.files()] == [1, 0, 1]
    world.sync()
    assert world.rows("SELECT * FROM users ORDER BY id") == [(1, 1), (2, 2)]


def test_a_table_that_was_made_anew_has_another_oid(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    before = source.archive().table("users")
    source.execute("DROP TABLE users", "CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.archive()
    after = source.table("users")
    assert before.oid != after.oid
    assert "users: dropped and made anew, or swapped by rename" in caplog.text


def test_a_snapshot_names_the_catalog_of_its_moment(any_source: Source) -> None:
    source = parted(any_source)
    before = source.leaf("ev", "ev_1")
    source.execute("TRUNCATE ev_1")
    (taken,) = source.production.snapshot("ev")
    content = gzip.decompress((source.production.archive_dir / taken.name).read_bytes())
    header = parse_header(content, taken.name)
    assert header is not None and header.catalog is not None
    assert header.catalog_lsn == header.commit_lsn
    table = source.catalog(header.catalog).find(TableName.parse("ev"))
    assert table is not None
    assert table.partitions[0].storage != before.storage
    source.archive()
    assert source.table("ev") == table, "the archiver sees the same"


def test_a_catalog_that_no_file_names_any_longer_is_pruned_and_never_another(source: Source) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    for number in (1, 2, 3):
        source.execute(f"INSERT INTO users VALUES ({number})")
        source.archive()
        source.execute(f"ALTER TABLE users ADD c{number} int")
    source.production.snapshot("users")
    source.archive()
    archive, spool_dir = source.production.open_archive(), source.production.spool_dir
    *gone, last = source.files()
    before = set(archive.catalog_digests())
    staying = {path.name for path in source.production.archive_dir.glob("changes_*")}
    assert old_catalogs(before, last_naming(spool_dir), staying) == ()
    named = [json.loads(line[2:]).get("catalog") for lines in gone for line in lines if line[0] == "#"]
    kept = {json.loads(last[0][2:])["catalog"], source.head.catalog}
    old = old_catalogs(before, last_naming(spool_dir), {max(staying)})
    assert set(old) == {digest for digest in named if digest} - kept and len(old) == 3
    assert before - set(old) == kept
    # A snapshot that stays may be as old as a file that goes.
    staying = {max(staying)} | {file.name for file in archive.discover_snapshots()}
    assert set(old_catalogs(before, last_naming(spool_dir), staying)) <= set(old)


def test_the_head_moves_while_production_is_idle(source: Source) -> None:
    source.production.options["rotate_s"] = 1.0
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    assert (source.head.state, source.head.error_code) == ("running", None)
    with archiving(source.production):
        started = source.head.time
        until(lambda: source.head.time > started)
        first = source.head
        until(lambda: source.head.time > first.time)
        head = source.head
        assert source.catalog(head.catalog or "").find(TableName.parse("users"))
        assert (head.state, head.every_s) == ("running", 1.0)
        assert head.newest_file == sorted(source.production.archive_dir.glob("changes_*"))[-1].name
        assert parse_lsn(head.confirmed_lsn) >= parse_lsn(first.confirmed_lsn)
    assert source.head.state == "stopped"
    assert list(source.production.archive_dir.glob(".*")) == []


def test_the_head_says_what_the_archiver_waits_for(source: Source) -> None:
    source.archive()
    source.production.drop_slot()
    with pytest.raises(Exception, match="has no replication slot"):
        source.production.archiver().run_loop(threading.Event())
    assert (source.head.state, source.head.error_code) == ("waiting", "SHD_SYN_103")


def test_what_is_published_is_read_beside_a_migration_that_holds_a_table(source: Source) -> None:
    source = parted(source)
    with source.production.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE ev IN ACCESS EXCLUSIVE MODE")
        source.archive()
    assert len(source.catalogs()) == 1


def test_the_log_of_an_archiver_that_finds_nothing_new_is_quiet(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    parted(source).archive()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
