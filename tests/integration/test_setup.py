"""setup_logical_replication on real servers: every check made to fail, and everything it creates."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from syncdata.changes.names import TableName
from syncdata.conf import SourceConfig, source_from_toml
from syncdata.errors import SlotError, SourceConnectionError, SourceSetupError
from syncdata.production import ProductionService
from syncdata.provision.database import SourceDatabase
from syncdata.provision.facts import TablePart
from syncdata.provision.findings import Finding
from syncdata.provision.provision import NewUser
from syncsite.demo.postgres import PostgresServer, embedded_binaries
from tests import processes
from tests.postgres import VERSIONS, Database

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse 🐎 battery"

_numbers = count(1)


@dataclass
class Production:
    """A source: a database of its own, a slot name of its own, and `keys` of [source]."""

    database: Database
    folder: Path
    keys: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slot = f"slot_{next(_numbers)}"
        self.keys = self.database.pg_keys | {"slot_name": self.slot, "tables": ["users"]} | self.keys

    @property
    def config(self) -> SourceConfig:
        archive = {"archive_backend": "local", "archive_dir": str(self.folder)}
        return source_from_toml(archive | {"source": self.keys}, {}, self.folder / "syncdata.toml")

    @property
    def service(self) -> ProductionService:
        return ProductionService(self.config)

    def setup(self, **options: Any) -> list[str]:
        lines: list[str] = []
        result = self.service.setup(**options, report=lines.append)
        assert tuple(lines) == result.changes
        return lines

    def refusal(self, **options: Any) -> list[str]:
        """Set up what cannot be; return the problems, having made sure that nothing was changed."""
        before = self.catalog()
        with pytest.raises(SourceSetupError) as caught:
            self.service.setup(**options)
        assert self.catalog() == before
        assert str(caught.value).startswith("SHD_SYN_102: ")
        return str(caught.value).split("\n  - ")[1:]

    def findings(self, level: str) -> list[str]:
        return [str(found) for found in self.service.check() if found.level == level]

    def execute(self, *statements: str) -> None:
        with self.database.connect(autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(query).fetchall()

    def catalog(self) -> list[list[tuple[Any, ...]]]:
        """All that the setup could change, with xmin and LSNs: rewriting a row with itself shows, too."""
        return [
            self.rows("SELECT xmin::text, * FROM pg_publication ORDER BY oid"),
            self.rows("SELECT xmin::text, * FROM pg_publication_rel ORDER BY oid"),
            self.rows("SELECT xmin::text, oid, relreplident, relacl FROM pg_class ORDER BY oid"),
            self.rows("SELECT xmin::text, oid, nspacl FROM pg_namespace ORDER BY oid"),
            self.rows("SELECT xmin::text, oid, rolname, rolpassword FROM pg_authid ORDER BY oid"),
            self.rows("SELECT slot_name, plugin, confirmed_flush_lsn FROM pg_replication_slots ORDER BY 1"),
        ]

    def published(self) -> list[tuple[str, str]]:
        return self.rows("SELECT schemaname, tablename FROM pg_publication_tables ORDER BY 1, 2")

    # The command itself, in a process of its own.

    @property
    def environment(self) -> dict[str, str]:
        path = self.folder / "syncdata.toml"
        archive = {"archive_backend": "local", "archive_dir": str(self.folder)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in archive.items()]
        lines += ["[source]", *(f"{key} = {json.dumps(value)}" for key, value in self.keys.items())]
        path.touch(mode=0o600)
        path.write_text("\n".join(lines))
        return os.environ | {"DATA_SYNC_CONFIG": str(path), "DJANGO_SETTINGS_MODULE": ""}

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {name: text for name, text in self.environment.items() if text} | environment
        return processes.run("manage.py", "setup_logical_replication", *arguments, env=variables)


MakeProduction = Callable[..., Production]


@pytest.fixture
def make_production(
    postgres: PostgresServer, fresh_database: Callable[..., Database], tmp_path: Path
) -> MakeProduction:
    def make(server: PostgresServer = postgres, *ddl: str, **keys: Any) -> Production:
        production = Production(fresh_database(server), tmp_path, keys)
        production.execute(*(ddl or ["CREATE TABLE users (id int PRIMARY KEY, name text)"]))
        return production

    return make


@pytest.fixture
def production(make_production: MakeProduction, any_postgres: PostgresServer) -> Production:
    """A source with a table "users", on every PostgreSQL server found, one after the other."""
    return make_production(any_postgres)


@pytest.fixture
def role(any_postgres: PostgresServer) -> Iterator[str]:
    """The name of a role that does not exist yet; what a test makes of it is dropped."""
    name = f'Rôle "{next(_numbers)}"'
    yield name
    with any_postgres.connect(autocommit=True) as connection:
        quoted = sql.Identifier(name)
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
            return
        for (database,) in connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn"
        ).fetchall():
            with any_postgres.connect(database, autocommit=True) as inside:
                inside.execute(sql.SQL("DROP OWNED BY {}").format(quoted))
        connection.execute(sql.SQL("DROP ROLE {}").format(quoted))


@pytest.fixture(scope="module")
def unfit_server() -> Iterator[PostgresServer]:
    """A hot standby without logical decoding, and every limit at its worst."""
    server = PostgresServer(binaries=embedded_binaries())
    server.settings |= {
        "wal_level": "replica",
        "max_replication_slots": "1",
        "max_wal_senders": "1",
        "max_slot_wal_keep_size": "64MB",
        "idle_replication_slot_timeout": "1h",
    }
    server.start()
    with server.connect(autocommit=True) as connection:
        connection.execute("CREATE TABLE users (id int PRIMARY KEY)")
        connection.execute("SELECT pg_create_physical_replication_slot('other', true)")
    server.crash()
    (server._data / "standby.signal").touch()
    server.restart()
    yield server
    server.stop()


# Creating


def test_the_publication_and_the_slot_are_created(production: Production) -> None:
    lines = production.setup()
    assert lines[0] == 'created publication "syncdata" for users'
    assert re.fullmatch(rf"created slot {production.slot}, which begins at [0-9A-F]+/[0-9A-F]+", lines[1])
    assert production.rows(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables FROM pg_publication"
    ) == [(True, True, True, True, True, False)]
    assert production.published() == [("public", "users")]
    assert production.rows(
        "SELECT plugin::text, database::text, temporary FROM pg_replication_slots"
        f" WHERE slot_name = '{production.slot}'"
    ) == [("pgoutput", production.database.name, False)]


def test_the_slot_delivers_what_is_published(production: Production) -> None:
    production.setup()
    production.execute("INSERT INTO users VALUES (1, 'John')", "DELETE FROM users")
    changes = production.rows(
        "SELECT get_byte(data, 0) FROM pg_logical_slot_peek_binary_changes("
        f"'{production.slot}', NULL, NULL, 'proto_version', '1', 'publication_names', 'syncdata')"
    )
    assert bytes(kind for (kind,) in changes) == b"BRICBDC"


def test_running_it_again_changes_nothing(production: Production) -> None:
    production.setup()
    before = production.catalog()
    result = production.service.setup()
    assert (result.changes, result.new_tables) == ((), ())
    assert production.catalog() == before


def test_names_in_capitals_reserved_and_with_quotes_are_taken_as_they_are(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    production = make_production(
        any_postgres,
        'CREATE SCHEMA "Größe"',
        'CREATE TABLE "Größe"."select" (id int PRIMARY KEY)',
        'CREATE TABLE "a.b""c" (id int PRIMARY KEY)',
        'CREATE TABLE "Users" (id int PRIMARY KEY)',
        "CREATE TABLE users (id int PRIMARY KEY)",
        tables=["Größe.select", '"a.b""c"', "Users"],
        publication='Pub "é"; --',
    )
    production.setup()
    assert production.published() == [("Größe", "select"), ("public", "Users"), ("public", 'a.b"c')]
    assert production.setup() == []
    assert production.service.drop()
    assert production.rows("SELECT pubname FROM pg_publication") == []


def test_the_publication_follows_the_configured_tables(production: Production) -> None:
    production.execute("CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
    production.keys["tables"] = ["users", "a"]
    production.setup()
    production.keys["tables"] = ["users", "b"]
    assert production.setup() == ['publication "syncdata": added b', 'publication "syncdata": dropped a']
    assert production.published() == [("public", "b"), ("public", "users")]
    assert production.setup() == []


def test_a_publication_of_some_kinds_of_changes_is_refused_and_widened_when_that_is_said(
    production: Production,
) -> None:
    production.execute("CREATE PUBLICATION syncdata FOR TABLE users WITH (publish = 'insert')")
    [problem] = production.refusal()
    assert problem.startswith('publication "syncdata" does not publish update, delete, truncate: ')
    assert production.setup(widens=True)[0] == 'publication "syncdata": corrected its options'
    assert production.rows("SELECT pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication") == [
        (True, True, True, True)
    ]
    assert production.setup() == []


def test_partitions_under_their_own_names_are_refused_and_widened_when_that_is_said(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    ddl = PARTITIONED.format(key=", PRIMARY KEY (id, day)")
    production = make_production(any_postgres, ddl, tables=["parts"])
    production.execute("CREATE PUBLICATION syncdata FOR TABLE parts")
    [problem] = production.refusal()
    assert problem.startswith(
        'publication "syncdata" publishes the partitions of parts under their own names'
    )
    production.setup(widens=True)
    assert production.published() == [("public", "parts")]


def test_options_that_change_nothing_for_the_tables_are_kept(production: Production) -> None:
    production.execute("CREATE PUBLICATION syncdata FOR TABLE users")
    assert len(production.setup()) == 1  # the slot
    assert production.rows("SELECT pubviaroot FROM pg_publication") == [(False,)]


@pytest.mark.parametrize(
    ("part", "told"),
    [("WHERE (id > 5)", "all columns of the rows WHERE (id > 5)"), ("(id)", "the columns id")],
)
def test_a_part_of_a_table_is_kept_and_told_and_made_whole_when_that_is_said(
    production: Production, part: str, told: str
) -> None:
    production.execute(f"CREATE PUBLICATION syncdata FOR TABLE users {part}")
    assert len(production.setup()) == 1  # the slot
    assert f'publication "syncdata" has only a part of users: {told}' in production.findings("note")[-1]
    assert production.setup(widens=True)[0] == 'publication "syncdata": publishes all of users now'
    assert production.setup() == []
    assert not any("only a part" in note for note in production.findings("note"))


def test_a_table_more_leaves_the_hidden_columns_of_the_others_hidden(production: Production) -> None:
    production.execute(
        "ALTER TABLE users ADD email text",
        "CREATE TABLE more (id int PRIMARY KEY)",
        "CREATE PUBLICATION syncdata FOR TABLE users (id, name)",
    )
    production.keys["tables"] = ["users", "more"]
    assert production.setup()[0] == 'publication "syncdata": added more'
    columns = "SELECT attnames::text FROM pg_publication_tables WHERE tablename = 'users'"
    assert production.rows(columns) == [("{id,name}",)]


def test_a_table_less_leaves_the_hidden_rows_of_the_others_hidden(production: Production) -> None:
    production.execute(
        "CREATE TABLE more (id int PRIMARY KEY)",
        "CREATE PUBLICATION syncdata FOR TABLE users WHERE (id > 5), more",
    )
    assert production.setup()[0] == 'publication "syncdata": dropped more'
    assert production.rows("SELECT rowfilter FROM pg_publication_tables") == [("(id > 5)",)]


def test_a_whole_schema_that_is_published_is_dropped(production: Production) -> None:
    production.execute(
        "CREATE SCHEMA other",
        "CREATE PUBLICATION syncdata FOR TABLE users, TABLES IN SCHEMA other",
    )
    assert production.setup()[0] == 'publication "syncdata": dropped schema other'
    assert production.published() == [("public", "users")]
    assert production.setup() == []


# What must not happen to production itself


STOPPED = {
    "a column list without the key": (
        "CREATE TABLE bad (id int PRIMARY KEY, name text)",
        "FOR TABLE bad (name)",
    ),
    "a row filter beside the key": (
        "CREATE TABLE bad (id int PRIMARY KEY, name text)",
        "FOR TABLE bad WHERE (name <> 'x')",
    ),
    "a column list of a table that is identified by all columns": (
        "CREATE TABLE bad (id int, name text); ALTER TABLE bad REPLICA IDENTITY FULL",
        "FOR TABLE bad (id)",
    ),
    "a publication of somebody else": (
        "CREATE TABLE bad (id int PRIMARY KEY, name text); CREATE PUBLICATION other FOR TABLE bad (name)",
        "FOR TABLE bad",
    ),
    "a partition with an identity of its own": (
        "CREATE TABLE bad (id int, name text NOT NULL, PRIMARY KEY (id)) PARTITION BY LIST (id);"
        "CREATE TABLE leaf PARTITION OF bad FOR VALUES IN (1); CREATE UNIQUE INDEX i ON leaf (name);"
        "ALTER TABLE leaf REPLICA IDENTITY USING INDEX i",
        "FOR TABLE bad (id) WITH (publish_via_partition_root)",
    ),
}


@pytest.mark.parametrize("kind", STOPPED)
def test_what_stops_productions_writes_already_is_told_with_the_reason(
    production: Production, kind: str
) -> None:
    ddl, publication = STOPPED[kind]
    production.execute(ddl, f"CREATE PUBLICATION syncdata {publication}")
    production.keys["tables"] = ["bad"]
    problems = production.refusal()
    assert {problem.split(" production's ")[1].split(" is refused already: ")[0] for problem in problems} == {
        "UPDATE",
        "DELETE",
    }
    assert any("'s UPDATE is refused as things are" in line for line in production.findings("missing"))


def test_a_publication_that_would_stop_productions_writes_is_taken_back_with_the_reason(
    make_production: MakeProduction, postgres: PostgresServer
) -> None:
    production = make_production(
        postgres,  # from 18 on
        "CREATE TABLE bad (id int, twice int GENERATED ALWAYS AS (id * 2) STORED);"
        "INSERT INTO bad VALUES (1); ALTER TABLE bad REPLICA IDENTITY FULL",
        tables=["bad"],
    )
    problems = production.refusal()
    assert len(problems) == 2
    assert problems[0].startswith("table bad: production's UPDATE would be refused from then on: ")
    assert "Replica identity must not contain unpublished generated columns" in problems[0]
    production.execute("UPDATE bad SET id = 2", "DELETE FROM bad")


def test_tables_that_identity_full_would_stop_are_taken_back_too(
    make_production: MakeProduction, postgres: PostgresServer
) -> None:
    production = make_production(
        postgres,
        "CREATE TABLE bad (id int, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)",
        "INSERT INTO bad VALUES (1)",
        tables=["bad"],
    )
    assert "would be refused from then on" in production.refusal(identity_full=True)[0]
    production.execute("UPDATE bad SET id = 2")


def test_the_proof_fires_no_trigger_and_writes_every_kind_of_column(production: Production) -> None:
    production.execute(
        "CREATE TABLE noted (at timestamptz)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'fired'; END$$",
        "CREATE TABLE odd (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
        "CREATE TRIGGER t BEFORE UPDATE OR DELETE ON odd FOR EACH STATEMENT EXECUTE FUNCTION note()",
        "CREATE RULE r AS ON UPDATE TO users DO INSTEAD NOTHING",
    )
    production.keys["tables"] = ["odd", "users"]
    production.setup()


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE bad (a int, k int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY)",
        "CREATE TABLE bad (a int, k int GENERATED ALWAYS AS (a * 2) STORED NOT NULL);"
        " CREATE UNIQUE INDEX i ON bad (k); ALTER TABLE bad REPLICA IDENTITY USING INDEX i",
        "CREATE TABLE bad (a int, k int GENERATED ALWAYS AS (a * 2) STORED, b int, PRIMARY KEY (b, k))",
    ],
)
def test_a_generated_column_in_the_key_is_refused_on_every_version(production: Production, ddl: str) -> None:
    production.execute(ddl)
    production.keys["tables"] = ["users", "bad"]
    [problem] = production.refusal()
    assert problem.startswith("table bad is identified by the generated column k, which no change carries: ")


def test_a_partition_that_is_named_beside_its_root_is_refused(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    ddl = PARTITIONED.format(key=", PRIMARY KEY (id, day)")
    production = make_production(any_postgres, ddl, tables=["parts", "Leaf", "half"])
    assert production.refusal() == [
        f"table {name} is a partition of parts, which is named, too: its changes are published as those of"
        f" parts: take {name} out of source.tables"
        for name in ("Leaf", "half")
    ]
    production.keys["tables"] = ["Leaf"]
    production.setup()
    assert production.published() == [("public", "Leaf")]


def test_a_source_without_an_encoding_is_refused(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    name = f"ascii_{next(_numbers)}"
    with any_postgres.connect(autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    try:
        production = make_production(any_postgres, pg_database=name)
        other = Production(Database(any_postgres, name), production.folder)
        other.execute("CREATE TABLE users (id int PRIMARY KEY)")
        [problem] = other.refusal()
        assert problem.startswith("the database's encoding is SQL_ASCII: ")
    finally:
        with any_postgres.connect(autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_publication_for_all_tables_is_not_ours(production: Production) -> None:
    production.execute("CREATE PUBLICATION syncdata FOR ALL TABLES")
    assert production.refusal() == [
        'publication "syncdata" is FOR ALL TABLES: choose another source.publication,'
        ' or: DROP PUBLICATION "syncdata";'
    ]


# Tables


@pytest.mark.parametrize(
    ("ddl", "reason"),
    [
        ("CREATE VIEW bad AS SELECT 1 AS id", "is a view"),
        ("CREATE MATERIALIZED VIEW bad AS SELECT 1 AS id", "is a materialized view"),
        ("CREATE UNLOGGED TABLE bad (id int PRIMARY KEY)", "is unlogged"),
        ("CREATE SEQUENCE bad", "is a sequence"),
        ("CREATE INDEX bad ON users (name)", "is an index"),
        ("CREATE TYPE bad AS (id int)", "is a composite type"),
        (
            "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;"
            " CREATE FOREIGN TABLE bad (id int) SERVER nowhere",
            "is a foreign table",
        ),
        ("SELECT", "does not exist"),
    ],
)
def test_what_is_no_table_with_a_log_is_refused(production: Production, ddl: str, reason: str) -> None:
    production.execute(ddl)
    production.keys["tables"] = ["users", "bad"]
    assert production.refusal(identity_full=True) == [
        f"table bad {reason}: take it out of source.tables, or mend the name"
    ]


UNFIT = {
    "CREATE TABLE bad (id int)": "has no primary key",
    "CREATE TABLE bad (id int PRIMARY KEY DEFERRABLE)": "has only a deferrable primary key",
    "CREATE TABLE bad (id int UNIQUE NOT NULL)": "has no primary key",
    "CREATE TABLE bad (id int); ALTER TABLE bad REPLICA IDENTITY NOTHING": "has REPLICA IDENTITY NOTHING",
    "CREATE TABLE bad (id int NOT NULL); CREATE UNIQUE INDEX i ON bad (id);"
    " ALTER TABLE bad REPLICA IDENTITY USING INDEX i; DROP INDEX i": (
        "was identified by a unique index that is gone or not valid"
    ),
}


@pytest.mark.parametrize("ddl", UNFIT)
def test_a_table_whose_rows_cannot_be_located_is_refused_or_made_full(
    production: Production, ddl: str
) -> None:
    production.execute(ddl)
    production.keys["tables"] = ["users", "bad"]
    assert production.refusal() == [
        f"table bad {UNFIT[ddl]}, so its updates and deletes cannot be followed: add a primary key, or:"
        ' ALTER TABLE "public"."bad" REPLICA IDENTITY FULL; (or --identity-full)'
    ]
    assert production.setup(identity_full=True)[0] == "table bad: set REPLICA IDENTITY FULL"
    assert production.rows("SELECT relreplident::text FROM pg_class WHERE relname = 'bad'") == [("f",)]
    assert production.setup(identity_full=True) == []
    assert production.setup() == []


def test_a_key_that_is_merely_switched_off_is_switched_on_by_the_statement_told(
    production: Production,
) -> None:
    production.execute("ALTER TABLE users REPLICA IDENTITY NOTHING")
    [problem] = production.refusal()
    statement = 'ALTER TABLE "public"."users" REPLICA IDENTITY DEFAULT;'
    assert problem.endswith(f": {statement}")
    production.execute(statement)
    production.setup()


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE good (a int, b int, PRIMARY KEY (a, b))",
        "CREATE TABLE good (id int); ALTER TABLE good REPLICA IDENTITY FULL",
        "CREATE TABLE good (id int NOT NULL); CREATE UNIQUE INDEX i ON good (id);"
        " ALTER TABLE good REPLICA IDENTITY USING INDEX i",
        "CREATE TABLE good (id int PRIMARY KEY DEFERRABLE); ALTER TABLE good REPLICA IDENTITY FULL",
    ],
)
def test_a_table_whose_rows_can_be_located_is_taken(production: Production, ddl: str) -> None:
    production.execute(ddl)
    production.keys["tables"] = ["good"]
    production.setup()
    assert production.published() == [("public", "good")]


PARTITIONED = """
CREATE TABLE parts (id int, day date{key}) PARTITION BY RANGE (day);
CREATE TABLE half PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
CREATE TABLE "Leaf" PARTITION OF half FOR VALUES IN (1);
"""


def test_a_partitioned_table_is_published_as_its_root(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    ddl = PARTITIONED.format(key=", PRIMARY KEY (id, day)")
    production = make_production(any_postgres, ddl, tables=["parts"])
    production.setup()
    assert production.published() == [("public", "parts")]
    assert production.setup() == []
    (remark,) = [text for text in production.findings("note") if "is partitioned" in text]
    assert "TRUNCATE, DROP and DETACH" in remark and "--snapshot parts" in remark


def test_every_leaf_of_a_partitioned_table_needs_an_identity(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    ddl = PARTITIONED.format(key=", PRIMARY KEY (id, day)")
    production = make_production(
        any_postgres, ddl, 'ALTER TABLE "Leaf" REPLICA IDENTITY NOTHING', tables=["parts"]
    )
    [problem] = production.refusal()
    assert problem == (
        "table parts, partition Leaf has REPLICA IDENTITY NOTHING, so its updates and deletes cannot be"
        ' followed: ALTER TABLE "public"."Leaf" REPLICA IDENTITY DEFAULT;'
    )


def test_all_of_a_keyless_partitioned_table_is_made_full_and_later_partitions_are_warned_of(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    production = make_production(any_postgres, PARTITIONED.format(key=""), tables=["parts"])
    assert len(production.refusal()) == 2
    assert any("partition that is added later" in note for note in production.findings("note"))
    assert production.setup(identity_full=True)[:2] == [
        "table parts: set REPLICA IDENTITY FULL",
        "table Leaf: set REPLICA IDENTITY FULL",
    ]
    production.execute("INSERT INTO parts VALUES (1, '2026-02-05')", "UPDATE parts SET day = '2026-02-06'")
    production.execute("CREATE TABLE late PARTITION OF half FOR VALUES IN (2)")
    production.execute("INSERT INTO parts VALUES (2, '2026-02-05')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        production.execute("UPDATE parts SET day = '2026-02-06' WHERE id = 2")
    assert production.setup(identity_full=True) == ["table late: set REPLICA IDENTITY FULL"]
    production.execute("UPDATE parts SET day = '2026-02-06' WHERE id = 2")


def test_a_partition_outside_the_log_is_refused(
    make_production: MakeProduction, any_postgres: PostgresServer
) -> None:
    ddl = PARTITIONED.format(key=", PRIMARY KEY (id, day)")
    unlogged = "CREATE UNLOGGED TABLE u PARTITION OF half FOR VALUES IN (2)"
    production = make_production(any_postgres, ddl, unlogged, tables=["parts"])
    [problem] = production.refusal(identity_full=True)
    assert problem.startswith("table parts, partition u is unlogged: ")


def test_tables_that_inherit_are_published_when_they_are_named(production: Production) -> None:
    production.execute("CREATE TABLE child () INHERITS (users)")
    production.setup()
    assert production.published() == [("public", "users")]
    assert production.setup() == []
    assert any("child tables by inheritance" in note for note in production.findings("note"))


# The server


def test_all_that_an_unfit_server_lacks_is_told_at_once(unfit_server: PostgresServer, tmp_path: Path) -> None:
    production = Production(Database(unfit_server, "postgres"), tmp_path)
    assert production.refusal() == [
        "the server is a standby: set source.pg_host to the primary",
        "wal_level is replica: ALTER SYSTEM SET wal_level = logical; then restart the server",
        "0 of 1 replication slots are free, and 2 are needed:"
        " ALTER SYSTEM SET max_replication_slots = 3; then restart the server",
        "1 of 1 replication senders are free, and 2 are needed:"
        " ALTER SYSTEM SET max_wal_senders = 2; then restart the server",
    ]
    notes = production.findings("note")
    assert [note.partition(" ")[0] for note in notes] == [
        "max_slot_wal_keep_size",
        "idle_replication_slot_timeout",
    ]
    assert "only 64 MB" in notes[0]


def test_a_server_that_keeps_all_wal_is_noted_with_the_statement_that_limits_it(
    production: Production,
) -> None:
    [note] = production.findings("note")
    assert note.startswith("max_slot_wal_keep_size is unlimited: ")
    statement = re.search(r"ALTER SYSTEM SET max_slot_wal_keep_size = '\d+GB';", note)
    assert statement is not None
    try:
        production.execute(statement[0], "SELECT pg_reload_conf()", "SELECT pg_sleep(0.3)")
        assert production.findings("note") == []
    finally:
        production.execute("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")


def test_slots_that_others_have_taken_are_missed_and_our_own_is_not(production: Production) -> None:
    ((limit,),) = production.rows("SELECT current_setting('max_replication_slots')::int")
    taken = [f"taken_{number}" for number in range(limit - 1)]
    create = "SELECT pg_create_physical_replication_slot('{}')"
    production.execute(*map(create.format, taken))
    try:
        [problem] = production.refusal()
        assert problem.startswith(f"1 of {limit} replication slots are free, and 2 are needed")
        production.execute(f"SELECT pg_drop_replication_slot('{taken.pop()}')")
        production.setup()
        assert production.setup() == []
    finally:
        production.execute(*map("SELECT pg_drop_replication_slot('{}')".format, taken))


def test_a_source_that_cannot_be_reached_is_told_without_the_password(production: Production) -> None:
    wrong: list[dict[str, Any]] = [{"pg_port": 1}, {"pg_password": "hunter2"}, {"pg_database": "none"}]
    for keys in wrong:
        other = Production(production.database, production.folder, keys)
        with pytest.raises(SourceConnectionError) as caught:
            other.service.check()
        assert str(caught.value).startswith("SHD_SYN_101: the source cannot be reached: ")
        assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_connection_that_is_lost_on_the_way_is_told_and_nothing_is_changed(
    production: Production,
) -> None:
    before = production.catalog()

    def cut() -> str:
        production.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'syncdata'"
        )
        return PASSWORD

    with pytest.raises(SourceConnectionError, match="SHD_SYN_101: the connection to the source was lost: "):
        production.setup(user=NewUser(name="never", ask_password=cut))
    assert production.catalog() == before


def test_a_table_that_is_locked_for_long_is_told_and_nothing_is_changed(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncdata.provision.database._LOCK_TIMEOUT", "100ms")
    production.execute("ALTER TABLE users REPLICA IDENTITY NOTHING")
    before = production.catalog()
    with production.database.connect() as busy:
        busy.execute("SELECT FROM users")
        with pytest.raises(SourceSetupError, match="a transaction holds a table for long"):
            production.setup(identity_full=True)
    assert production.catalog() == before


# Slots


def test_a_slot_of_another_plugin_is_refused(production: Production) -> None:
    create = "SELECT pg_create_logical_replication_slot('{}', 'test_decoding')"
    try:
        production.execute(create.format(production.slot))
    except psycopg.errors.UndefinedFile:
        # Without that plugin a physical slot is what is not ours.
        production.execute(f"SELECT pg_create_physical_replication_slot('{production.slot}')")
    try:
        [problem] = production.refusal()
        assert problem.startswith(f"slot {production.slot} ")
        assert "something else" in problem and problem.endswith("choose another source.slot_name")
        with pytest.raises(SlotError, match="SHD_SYN_103: .*something else"):
            production.service.drop()
    finally:
        production.execute(f"SELECT pg_drop_replication_slot('{production.slot}')")


def test_a_slot_of_another_database_is_refused(
    production: Production, make_production: MakeProduction
) -> None:
    other = make_production(production.database.server)
    other.setup()
    production.keys["slot_name"] = other.slot
    [problem] = production.refusal()
    assert problem.startswith(f"slot {other.slot} belongs to the database {other.database.name}: ")
    with pytest.raises(SlotError, match="belongs to the database"):
        production.service.drop()


def replicate(production: Production, **params: Any) -> psycopg.pq.abc.PGconn:
    """Read the slot, as the archiver does."""
    values = {**production.database.params, **params, "replication": "database"}
    connection = psycopg.pq.PGconn.connect(psycopg.conninfo.make_conninfo(**values).encode())
    assert connection.status == psycopg.pq.ConnStatus.OK, connection.error_message
    slot = production.slot
    options = "(proto_version '1', publication_names 'syncdata')"
    started = connection.exec_(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 {options}".encode())
    assert started.status == psycopg.pq.ExecStatus.COPY_BOTH, started.error_message
    return connection


def test_a_slot_in_use_is_reported_and_not_dropped(production: Production) -> None:
    production.setup()
    reader = replicate(production, application_name="archiver")
    try:
        assert any(
            f"slot {production.slot} exists, in use by role postgres, application archiver, host" in line
            for line in production.findings("ok")
        )
        before = production.catalog()
        with pytest.raises(SlotError, match=r"SHD_SYN_103: slot .* is in use by role postgres, application"):
            production.service.drop()
        assert production.catalog() == before
    finally:
        reader.finish()


def test_a_slot_is_kept_on_standbys_where_there_are_some_or_that_is_said(
    make_production: MakeProduction, postgres: PostgresServer
) -> None:
    failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = '{}'"
    production = make_production(postgres, failover="auto")
    assert not production.setup()[-1].endswith("kept on standbys")
    assert production.rows(failover.format(production.slot)) == [(False,)]
    production.keys["failover"] = True
    assert production.setup() == [f"slot {production.slot}: standbys keep a copy of it from now on"]
    assert production.rows(failover.format(production.slot)) == [(True,)]
    assert production.setup() == []
    production.service.drop()
    production.keys["failover"] = "auto"
    production.execute("SELECT pg_create_physical_replication_slot('standby')")
    try:
        assert production.setup()[-1].endswith("and is kept on standbys")
        assert "synchronized_standby_slots = 'standby'" in production.findings("note")[-1]
    finally:
        production.execute("SELECT pg_drop_replication_slot('standby')")


def test_a_server_that_keeps_no_slots_on_standbys_says_so(
    make_production: MakeProduction, postgres_server: Callable[[str], PostgresServer]
) -> None:
    production = make_production(postgres_server(VERSIONS[-1]), failover="true")
    [problem] = production.refusal()
    assert problem.startswith("source.failover is true, but PostgreSQL")


def test_a_lost_slot_is_missed(production: Production) -> None:
    production.setup()
    limit = ["ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()"]
    production.execute(*limit, "SELECT pg_sleep(0.3)")
    try:
        for _ in range(20):
            production.execute("SELECT pg_switch_wal()", "CREATE TABLE t ()", "DROP TABLE t", "CHECKPOINT")
            missing = production.findings("missing")
            if missing:
                break
        assert missing == [
            f"slot {production.slot} is lost, and with it the changes since it was read last:"
            " run the setup with --drop, then again, and take new snapshots"
        ]
    finally:
        production.execute("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    production.service.drop()
    assert production.service.setup().new_tables


# Roles


def make_role(production: Production, name: str, options: str) -> None:
    create = sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}")
    with production.database.connect(autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name), sql.SQL(options), sql.Literal(PASSWORD)))
    production.keys |= {"pg_user": name, "pg_password": PASSWORD}


def test_all_rights_that_a_role_lacks_are_told_and_what_is_told_suffices(
    production: Production, role: str
) -> None:
    production.execute("CREATE SCHEMA shop", "CREATE TABLE shop.orders (id int PRIMARY KEY)")
    admin = Production(production.database, production.folder, {"tables": ["shop.orders"]})
    admin.slot = admin.keys["slot_name"] = production.slot
    production.keys["tables"] = ["shop.orders"]
    make_role(production, role, "")
    quoted = '"' + role.replace('"', '""') + '"'
    with pytest.raises(SourceSetupError) as caught:
        production.service.setup()
    problems = str(caught.value).split("\n  - ")[1:]
    assert problems == [
        f"role {role} may not replicate: ALTER ROLE {quoted} REPLICATION;",
        f'table shop.orders: no right to use its schema: GRANT USAGE ON SCHEMA "shop" TO {quoted};',
        "table shop.orders: no right to read it, which snapshots need:"
        f' GRANT SELECT ON "shop"."orders" TO {quoted};',
        f"role {role} may not create the publication: GRANT CREATE ON DATABASE"
        f' "{production.database.name}" TO {quoted}; or run the setup as a superuser',
        "table shop.orders can be published only by its owner: run the setup as its owner or as a superuser",
    ]
    admin.setup()
    for problem in problems[:3]:
        admin.execute(problem.partition(": ")[2].rpartition(": ")[2])
    assert production.setup() == []
    assert production.findings("missing") == []


def test_row_security_that_would_hide_rows_from_snapshots_is_told(production: Production, role: str) -> None:
    production.setup()
    production.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    admin = production.service
    make_role(production, role, "REPLICATION")
    admin.setup(user=NewUser(name=role, ask_password=lambda: PASSWORD))
    [missing] = production.findings("missing")
    assert missing.startswith("table users: row security hides rows from snapshots: ALTER ROLE ")


def test_a_role_that_owns_the_tables_sets_up_without_being_superuser(
    production: Production, role: str
) -> None:
    admin = production.database
    make_role(production, role, "REPLICATION")
    with admin.connect(autocommit=True) as connection:
        for statement in ("ALTER TABLE users OWNER TO {}", f"GRANT CREATE ON DATABASE {admin.name} TO {{}}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))
    assert len(production.setup()) == 2
    assert production.service.drop()


def test_a_publication_of_somebody_else_is_neither_changed_nor_dropped(
    production: Production, role: str
) -> None:
    production.execute(
        "CREATE PUBLICATION syncdata FOR TABLE users", "CREATE TABLE more (id int PRIMARY KEY)"
    )
    production.keys["tables"] = ["users", "more"]
    make_role(production, role, "REPLICATION")
    with pytest.raises(SourceSetupError, match='publication "syncdata" belongs to another role'):
        production.service.setup()
    with pytest.raises(SourceSetupError, match='publication "syncdata" belongs to another role'):
        production.service.drop()
    assert production.rows("SELECT pubviaroot FROM pg_publication") == [(False,)]


def test_the_new_role_can_replicate_and_read_and_no_more(production: Production, role: str) -> None:
    production.execute("CREATE SCHEMA shop", "CREATE TABLE shop.orders (id int PRIMARY KEY)")
    production.keys["tables"] = ["users", "shop.orders"]
    quoted = '"' + role.replace('"', '""') + '"'
    user = NewUser(name=role, ask_password=lambda: PASSWORD)
    lines = production.setup(user=user)
    assert lines[1:-1] == [
        f"created role {quoted} with LOGIN and REPLICATION",
        f"role {quoted}: set its password",
        f"role {quoted}: granted USAGE ON SCHEMA shop",
        f"role {quoted}: granted SELECT ON TABLE users",
        f"role {quoted}: granted SELECT ON TABLE shop.orders",
    ]
    login = {"user": role, "password": PASSWORD}
    with closing(psycopg.connect(**production.database.params | login)) as connection:
        assert connection.execute("SELECT FROM shop.orders, users").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM users")
    replicate(production, **login).finish()
    production.keys |= {"pg_user": role, "pg_password": PASSWORD}
    assert production.findings("missing") == []


def test_a_role_that_exists_gets_what_it_lacks_and_keeps_its_password(
    production: Production, role: str
) -> None:
    user = NewUser(name=role, ask_password=lambda: PASSWORD)
    production.setup(user=user)
    production.execute("CREATE TABLE more (id int PRIMARY KEY)")
    production.keys["tables"] = ["users", "more"]
    silent = NewUser(name=role, ask_password=lambda: pytest.fail("asked for a password"))
    quoted = '"' + role.replace('"', '""') + '"'
    assert production.setup(user=silent) == [
        'publication "syncdata": added more',
        f"role {quoted}: granted SELECT ON TABLE more",
    ]
    before = production.catalog()
    assert production.setup(user=silent) == []
    assert production.catalog() == before
    new = NewUser(name=role, ask_password=lambda: "another", sets_password=True)
    assert production.setup(user=new) == [f"role {quoted}: set its password"]
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(**production.database.params | {"user": role, "password": PASSWORD})
    psycopg.connect(**production.database.params | {"user": role, "password": "another"}).close()


def test_rights_that_cannot_be_granted_are_told_and_nothing_is_changed(
    production: Production, role: str
) -> None:
    """To the server a GRANT by who may not grant is a success, with a warning."""
    production.setup()
    admin = production.service
    make_role(production, role, "REPLICATION")
    admin.setup(user=NewUser(name=role, ask_password=lambda: PASSWORD))
    production.execute("CREATE ROLE other LOGIN REPLICATION")
    try:
        before = production.catalog()
        with pytest.raises(SourceSetupError, match="may not grant role other what it needs"):
            production.service.setup(user=NewUser(name="other", ask_password=lambda: PASSWORD))
        assert production.catalog() == before
    finally:
        production.execute("DROP ROLE other")


def test_a_member_of_the_role_that_amazon_has_for_it_may_replicate(production: Production, role: str) -> None:
    """There the attribute cannot be set; the members of rds_replication may replicate."""
    admin = production.database
    with admin.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE rds_replication NOLOGIN")
    try:
        make_role(production, role, "")
        with admin.connect(autocommit=True) as connection:
            connection.execute(sql.SQL("GRANT rds_replication TO {}").format(sql.Identifier(role)))
        assert not any("may not replicate" in line for line in production.findings("missing"))
    finally:
        with admin.connect(autocommit=True) as connection:
            connection.execute("DROP ROLE rds_replication")


def test_where_members_may_replicate_the_new_role_becomes_one_of_them(
    production: Production, role: str
) -> None:
    with production.database.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE rds_replication NOLOGIN")
    try:
        quoted = '"' + role.replace('"', '""') + '"'
        lines = production.setup(user=NewUser(name=role, ask_password=lambda: PASSWORD))
        assert lines[1] == f"created role {quoted} with LOGIN"
        assert f"role {quoted}: granted membership in rds_replication" in lines
        assert production.rows(f"SELECT rolreplication FROM pg_roles WHERE rolname = '{role}'") == [(False,)]
        assert production.setup(user=NewUser(name=role, ask_password=lambda: PASSWORD)) == []
    finally:
        with production.database.connect(autocommit=True) as connection:
            connection.execute("DROP ROLE rds_replication")


def test_a_role_of_which_the_catalog_does_not_know_it_is_tried(
    production: Production, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "syncdata.provision.database._ROLE",
        "SELECT rolname::text AS name, false AS is_superuser, false AS may_replicate, true AS may_create"
        " FROM pg_roles WHERE rolname = current_user AND %(replicators)s::text[] IS NOT NULL",
    )
    make_role(production, role, "REPLICATION")
    assert not any("may not replicate" in line for line in production.findings("missing"))


def test_dropping_all_leaves_nothing_behind(production: Production, role: str) -> None:
    production.execute("CREATE SCHEMA shop", "CREATE TABLE shop.orders (id int PRIMARY KEY)")
    production.keys["tables"] = ["users", "shop.orders"]

    def catalog() -> list[Any]:
        return [
            production.rows("SELECT pubname FROM pg_publication"),
            production.rows(f"SELECT FROM pg_replication_slots WHERE slot_name = '{production.slot}'"),
            production.rows("SELECT rolname FROM pg_roles ORDER BY 1"),
            production.rows("SELECT relname FROM pg_class WHERE relacl::text LIKE '%Rôle%'"),
            production.rows("SELECT nspname FROM pg_namespace WHERE nspacl::text LIKE '%Rôle%'"),
        ]

    before = catalog()
    production.setup(user=NewUser(name=role, ask_password=lambda: PASSWORD))
    lines: list[str] = []
    assert production.service.drop(drops_all=True, report=lines.append)
    assert lines[2:] == ['dropped role "' + role.replace('"', '""') + '" and its rights']
    assert catalog() == before
    assert not production.service.drop(drops_all=True)


def test_dropping_all_leaves_roles_alone_that_others_need(production: Production, role: str) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    user = NewUser(name=role, ask_password=lambda: PASSWORD)
    production.setup(user=user)
    production.execute(f"GRANT CREATE ON SCHEMA public TO {quoted}", f"ALTER TABLE users OWNER TO {quoted}")
    lines: list[str] = []
    production.service.drop(drops_all=True, report=lines.append)
    assert lines[-1].startswith(f"role {quoted} stays: it owns objects")
    # A role that was there before the setup is not ours to drop.
    production.execute(f"COMMENT ON ROLE {quoted} IS NULL")
    assert not production.service.drop(drops_all=True)


# The command


def test_on_a_host_without_a_local_database_the_command_sets_up_checks_and_drops(
    production: Production,
) -> None:
    checked = production.command("--check")
    assert checked.returncode == 1
    assert f"missing  slot {production.slot} does not exist" in checked.stdout
    assert checked.stderr.startswith("SHD_SYN_102: 2 things are missing\n")
    done = production.command()
    assert (done.returncode, done.stderr) == (0, "")
    assert "created publication" in done.stdout and "note: max_slot_wal_keep_size" in done.stdout
    assert "there is no privacy policy: every column of the published tables leaves" in done.stdout
    again = production.command()
    assert again.stdout.startswith("nothing to change: the source is set up\n")
    checked = production.command("--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert {line.split()[0] for line in checked.stdout.splitlines()} == {"ok", "note"}
    asked = production.command("--drop")
    assert asked.returncode == 1
    assert asked.stderr.startswith("SHD_SYN_102: nobody is there to ask")
    dropped = production.command("--drop", "--noinput")
    assert dropped.stdout == f'dropped slot {production.slot}\ndropped publication "syncdata"\n'
    nothing = production.command("--drop", "--all", "--noinput")
    assert (nothing.returncode, nothing.stdout.partition(":")[0]) == (0, "nothing to drop")
    assert "Not in the database: " in nothing.stdout
    assert production.command("--all").returncode == 2


def test_problems_are_on_stderr_with_the_code_first(make_production: MakeProduction) -> None:
    production = make_production(tables=["users", "none", "nil"])
    refused = production.command()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(
        "SHD_SYN_102: 2 things are missing; nothing was changed\n  - table none "
    )


def test_a_new_password_is_in_neither_output_nor_server_log(tmp_path: Path) -> None:
    server = PostgresServer(binaries=embedded_binaries())
    server.settings |= {"log_statement": "all", "log_min_duration_statement": "0", "log_connections": "all"}
    server.start()
    try:
        production = Production(Database(server, "postgres"), tmp_path)
        production.execute("CREATE TABLE users (id int PRIMARY KEY)")
        password = "hunter2-hunter2"
        nobody = production.command("--create-user", "archiver")
        assert nobody.stderr.startswith("SHD_SYN_102: no password for role archiver; nothing was changed")
        done = production.command("--create-user", "archiver", "--verbose", SOURCE_PG_NEW_PASSWORD=password)
        assert done.returncode == 0, done.stderr
        assert 'source.pg_user = "archiver"' in done.stdout
        log = server._log.read_text()
        assert "ALTER ROLE" in log and "SCRAM-SHA-256" in log
        assert password not in log + done.stdout + done.stderr
        psycopg.connect(**server.params() | {"user": "archiver", "password": password}).close()
    finally:
        server.stop()


def test_on_a_terminal_a_new_password_is_asked_for_twice_and_not_shown(
    make_production: MakeProduction, any_postgres: PostgresServer, role: str
) -> None:
    production = make_production(any_postgres)
    assert "not the same twice" in on_a_terminal(production, role, ["one", "two"])
    output = on_a_terminal(production, role, ["three", "three"])
    assert "set its password" in output and "three" not in output
    psycopg.connect(**production.database.params | {"user": role, "password": "three"}).close()


def on_a_terminal(production: Production, role: str, answers: list[str]) -> str:
    """Run the command with --create-user on a terminal, answer its questions, return what is shown."""
    environment = {name: text for name, text in production.environment.items() if text}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        options = ["--create-user", role, "--no-snapshot"]
        arguments = [sys.executable, "manage.py", "setup_logical_replication", *options]
        os.execve(sys.executable, arguments, environment)
    shown = ""
    with open(terminal, "rb+", buffering=0) as file:
        for question, answer in zip(("Password for role", "Again: "), answers, strict=True):
            while not re.search(f"{question}.*: $|{question}$", shown):
                shown += file.read(1000).decode()
            file.write(answer.encode() + b"\n")
        try:
            while chunk := file.read(1000):
                shown += chunk.decode()
        except OSError:  # a terminal whose other side is gone
            pass
    os.waitpid(pid, 0)
    return shown


def test_findings_say_what_is_mended_by_the_setup_itself(production: Production) -> None:
    mended = [found.text for found in production.service.check() if found.is_mended_by_setup]
    assert mended == ['publication "syncdata" does not exist', f"slot {production.slot} does not exist"]
    assert str(Finding(level="note", text="a", remedy="b")) == "a: b"


def test_the_proof_of_writes_leaves_the_limits_of_its_transaction(
    fresh_database: Callable[..., Database],
) -> None:
    database = fresh_database()
    with database.connect(autocommit=True, row_factory=dict_row) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        source = SourceDatabase(connection, database.params)
        with connection.transaction():
            part = TablePart(
                name=TableName("public", "t"),
                kind="r",
                persistence="p",
                identity="d",
                is_owned=True,
                has_key=True,
                has_deferrable_key=False,
                has_identity_index=False,
                assignment="id = id",
            )
            assert source.refused_writes([part]) == []
            assert connection.execute("SHOW lock_timeout").fetchone() == {"lock_timeout": "0"}
