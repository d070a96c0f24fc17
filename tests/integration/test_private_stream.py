"""What a privacy policy lets out of the stream: masked or withheld, and told, while tables change."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from syncdata.apply.plan.drift import left_out
from syncdata.capture.catalog_state import load_state
from syncdata.capture.privacy_note import load_privacy_note
from syncdata.changes.catalog import Catalog, Column, PublishedTable, catalog_name, parse_catalog
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.changes.record import ChangeRecord
from syncdata.errors import PrivacyError, SnapshotError
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import Policy, parse_policy
from syncsite.demo.postgres import PostgresServer
from tests.chains import archived_records
from tests.production import Production, archiving, until
from tests.views import look
from tests.world import World

KEY = MaskKey(b"k" * 32)
EMAIL = re.compile(r"[0-9a-f]{32}@example\.invalid")
# Every original begins so; none may be anywhere outside the source.
SECRET = "Zebedee"


def policy(columns: Mapping[str, object], **options: Any) -> Policy:
    made, problems = parse_policy(columns, key=KEY, **options)
    assert not problems
    return made


class Source:
    """A production with a policy; and what its archive says."""

    def __init__(self, production: Production) -> None:
        self.production = production
        self.execute = production.execute
        self.publish = production.publish

    def rule(self, columns: Mapping[str, object], **options: Any) -> Source:
        """Take another policy up, at the next start of the archiver."""
        self.production.options["policy"] = policy(columns, **options)
        return self

    def archive(self) -> list[ChangeRecord]:
        self.production.archive()
        return self.records()

    def records(self) -> list[ChangeRecord]:
        return archived_records(self.production.archive_dir)

    def catalogs(self) -> list[Catalog]:
        """Each catalog that the change files name, in order; two in a row are never the same."""
        digests: list[str] = []
        for path in sorted(self.production.archive_dir.glob("changes_*.json")):
            for line in path.read_text().splitlines():
                digest = json.loads(line[2:]).get("catalog") if line.startswith("#") else None
                if digest and digest != (digests[-1] if digests else None):
                    digests.append(digest)
        names = [catalog_name(digest) for digest in digests]
        return [parse_catalog((self.production.archive_dir / name).read_bytes(), name) for name in names]

    def table(self, name: str) -> PublishedTable | None:
        """*name* in the catalog that holds at the archive's end."""
        return self.catalogs()[-1].find(TableName.parse(name))

    def column(self, table: str, name: str) -> Column:
        found = self.table(table)
        assert found is not None
        return next(column for column in found.columns if column.name == name)

    def privacy(self, table: str) -> dict[str, str]:
        found = self.table(table)
        assert found is not None
        return {column.name: column.privacy for column in found.columns}

    def travels(self, name: str) -> bool:
        """Tell whether *name* is in the catalog that holds; the server's checkpoint lets the slot move on."""
        self.execute("CHECKPOINT")
        state = load_state(self.production.spool_dir)
        return state is not None and state.catalog.find(TableName.parse(name)) is not None

    def tell_nothing(self) -> None:
        """Fail if an original is in the archive or the spool."""
        for folder in (self.production.archive_dir, self.production.spool_dir):
            for path in folder.rglob("*"):
                assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def make_source(make_production: Callable[..., Production]) -> Iterator[Callable[..., Source]]:
    """`make_source(server, columns)`: a production under a policy of these columns."""
    made: list[Source] = []

    def make(columns: Mapping[str, object], *servers: PostgresServer, **options: Any) -> Source:
        production = make_production(
            *servers, compression="none", rotate_s=0.2, policy=policy(columns, **options)
        )
        made.append(Source(production))
        return made[-1]

    yield make
    for source in made:
        source.tell_nothing()


USERS = {
    "users": {
        "id": "keep",
        "email": "email",
        "name": {"mask": "token", "domain": "person"},
        "notes": "null",
        "password": {"mask": "fixed", "value": "!"},
        "secret": "withhold",
    }
}
CREATE_USERS = (
    "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE NOT NULL, name varchar(40), notes text,"
    " password text NOT NULL DEFAULT 'x', secret text)"
)
ANN = f"INSERT INTO users VALUES (1, '{SECRET}@a', '{SECRET} Ann', '{SECRET}', '{SECRET}', '{SECRET}')"


def data(records: list[ChangeRecord]) -> list[tuple[str, Any, Any]]:
    return [(record.op, record.data, record.old_keys) for record in records]


def test_rows_travel_masked_and_what_nobody_named_does_not(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    source = make_source(USERS, any_postgres)
    source.execute(CREATE_USERS, "CREATE TABLE others (id int PRIMARY KEY, v text)")
    source.publish("users", "others")
    source.execute(ANN, f"INSERT INTO others VALUES (1, '{SECRET}')")
    source.execute(*[f"INSERT INTO users VALUES ({n}, '{SECRET}{n}')" for n in (2, 3)])
    source.execute("UPDATE users SET name = NULL WHERE id = 1", "UPDATE users SET id = 9 WHERE id = 2")
    source.execute("DELETE FROM users WHERE id = 1", "TRUNCATE users, others")
    records = source.archive()
    assert [(r.table, r.op) for r in records] == [
        *[("users", "INSERT")] * 3,
        *[("users", "UPDATE")] * 2,
        ("users", "DELETE"),
        ("users", "TRUNCATE"),
    ]
    ann, second, _, without_name, moved, gone, _ = records
    assert ann.data is not None and second.data is not None and without_name.data is not None
    assert [*ann.data] == ["id", "email", "name", "notes", "password"]
    assert (ann.data["id"], ann.data["notes"], ann.data["password"]) == ("1", None, "!")
    assert EMAIL.fullmatch(ann.data["email"] or "") and re.fullmatch("[0-9a-f]{32}", ann.data["name"] or "")
    assert (second.data["name"], second.data["notes"]) == (None, None)
    assert without_name.data == ann.data | {"name": None}
    assert moved.data == second.data | {"id": "9"} and moved.old_keys == {"id": "2"}
    assert gone.old_keys == {"id": "1"}
    assert source.privacy("users") == {
        "id": "",
        "email": "email",
        "name": "token",
        "notes": "null",
        "password": "fixed",
        "secret": "withheld",
    }
    users = source.table("users")
    assert users is not None and users.column_list == ("id", "email", "name", "notes", "password")
    assert source.table("others") is None
    assert all(source.column("users", name).privacy_id for name in ("email", "name", "notes", "password"))


def test_without_a_policy_the_catalog_says_nothing_of_privacy(
    make_production: Callable[..., Production],
) -> None:
    source = Source(make_production(compression="none"))
    source.execute(CREATE_USERS)
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1, 'a')")
    (record,) = source.archive()
    assert record.data is not None and record.data["email"] == "a"
    assert set(source.privacy("users").values()) == {""}
    assert b"privacy" not in b"".join(p.read_bytes() for p in source.production.archive_dir.rglob("*.json"))


def test_a_masked_key_finds_its_row_again(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    source = make_source(
        {
            "users": {"email": "email", "name": "keep"},
            "orders": {"id": "keep", "buyer": "email"},
            "notes": {"who": "token", "what": "null", "n": "keep"},
        },
        any_postgres,
    )
    source.execute(
        "CREATE TABLE users (email text PRIMARY KEY, name text)",
        "CREATE TABLE orders (id int PRIMARY KEY, buyer text REFERENCES users ON UPDATE CASCADE)",
        "CREATE TABLE notes (who text, what text, n int, gone text)",
        "ALTER TABLE notes REPLICA IDENTITY FULL",
    )
    source.publish("users", "orders", "notes")
    source.execute(
        f"INSERT INTO users VALUES ('{SECRET}@a', 'a')",
        f"INSERT INTO orders VALUES (1, '{SECRET}@a')",
        f"UPDATE users SET email = '{SECRET}@b'",
        f"INSERT INTO notes VALUES ('{SECRET}', '{SECRET}', 1, '{SECRET}')",
        "UPDATE notes SET n = 2",
        "DELETE FROM notes",
        "DELETE FROM orders",
        "DELETE FROM users",
    )
    records = source.archive()
    users = [r for r in records if r.table == "users"]
    orders = [r for r in records if r.table == "orders"]
    notes = [r for r in records if r.table == "notes"]
    assert users[0].data is not None and users[1].data is not None and orders[0].data is not None
    first, second = users[0].data["email"], users[1].data["email"]
    assert first != second and EMAIL.fullmatch(first or "")
    assert users[1].old_keys == {"email": first} and users[2].old_keys == {"email": second}
    assert orders[0].data["buyer"] == first and orders[1].data is not None
    assert orders[1].data["buyer"] == second
    assert notes[0].data is not None
    assert notes[0].data == {"who": notes[0].data["who"], "what": None, "n": "1"}
    assert notes[1].old_keys == notes[0].data
    assert notes[1].data == notes[0].data | {"n": "2"} == notes[2].old_keys
    whole = source.table("notes")
    assert whole is not None and set(whole.identity_columns) == {"who", "what", "n"}


def test_a_value_that_an_update_left_alone_stays_absent(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    source = make_source(
        {"docs": {"id": "keep", "body": "token", "fixed": {"mask": "fixed", "value": "-"}, "n": "keep"}},
        any_postgres,
    )
    source.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text, fixed text, n int)",
        "ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, ALTER fixed SET STORAGE EXTERNAL",
    )
    source.publish("docs")
    source.execute(
        f"INSERT INTO docs VALUES (1, repeat('{SECRET}', 2000), repeat('{SECRET}', 2000), 1)",
        "UPDATE docs SET n = 2",
        *["UPDATE docs SET n = n + 1"] * 3,
    )
    first, *others = source.archive()
    assert first.data is not None and first.data["fixed"] == "-"
    assert [record.data for record in others] == [{"id": "1", "n": str(n)} for n in (2, 3, 4, 5)]


def test_changes_that_are_all_withheld_make_no_file_and_are_confirmed(
    make_source: Callable[..., Source],
) -> None:
    source = make_source(USERS)
    source.execute(CREATE_USERS, "CREATE TABLE others (id int PRIMARY KEY, v text)")
    source.publish("users", "others")
    source.archive()
    source.execute(*[f"INSERT INTO others VALUES ({n}, '{SECRET}')" for n in range(5)], "TRUNCATE others")
    (end,) = source.production.rows("SELECT pg_current_wal_lsn()::text")[0]
    assert source.archive() == []
    assert not [*source.production.archive_dir.glob("changes_*")][1:]
    (is_confirmed,) = source.production.rows(
        f"SELECT confirmed_flush_lsn >= '{end}'::pg_lsn FROM pg_replication_slots"
        f" WHERE slot_name = '{source.production.slot_name}'"
    )[0]
    assert is_confirmed


# Migrations in mid-stream


def test_a_new_column_is_withheld_until_it_has_a_rule(
    make_source: Callable[..., Source], any_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source({"users": {"id": "keep", "v": "keep"}}, any_postgres)
    source.execute("CREATE TABLE users (id int PRIMARY KEY, v text)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1, 'a')")
    with caplog.at_level(logging.WARNING), archiving(source.production):
        until(lambda: [*source.production.archive_dir.glob("changes_*")])
        source.execute(
            f"ALTER TABLE users ADD fax text DEFAULT '{SECRET}'",
            f"ALTER TABLE users ADD seen text DEFAULT '{SECRET}' || random()",
            f"UPDATE users SET fax = '{SECRET}2', v = 'b'",
        )
        until(lambda: len(source.records()) == 2)
    assert [record.data for record in source.records()] == [{"id": "1", "v": "a"}, {"id": "1", "v": "b"}]
    told = [message for message in caplog.messages if "withholds the new column" in message]
    assert len(told) == 2 and "fax" in told[0] and "seen" in told[1]
    users = source.table("users")
    assert users is not None and users.column_list == ("id", "v")
    fax, seen = users.columns[2:]
    assert (fax.privacy, fax.older, fax.filled) == ("withheld", "", False)
    assert (seen.privacy, seen.older, seen.filled) == ("withheld", "", False)
    # No row has changed without a record as far as readers go: nothing is owed.
    assert not (source.production.spool_dir / "owed.json").exists()


def test_a_default_that_older_rows_got_shows_in_no_digest_and_is_told(
    make_source: Callable[..., Source],
) -> None:
    source = make_source({"users": {"id": "keep", "fax": "token"}})
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    source.execute(f"ALTER TABLE users ADD fax text DEFAULT '{SECRET}'", "INSERT INTO users VALUES (2)")
    source.archive()
    fax = source.column("users", "fax")
    assert (fax.privacy, fax.older, fax.filled) == ("token", "", True)


@pytest.mark.parametrize("is_key", [False, True])
def test_a_column_that_is_renamed_has_no_rule_any_more(
    make_source: Callable[..., Source], any_postgres: PostgresServer, is_key: bool
) -> None:
    source = make_source({"users": {"id": "keep", "email": "email", "v": "keep"}}, any_postgres)
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, v text)")
    source.publish("users")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', 'a')")
    renamed = "id TO number" if is_key else "email TO mail"
    with archiving(source.production):
        until(source.records)
        source.execute(f"ALTER TABLE users RENAME {renamed}", f"UPDATE users SET v = '{SECRET[:3]}'")
        until(lambda: len(source.catalogs()) == 2)
    records = source.records()
    if is_key:
        # No rule names what tells the rows apart: nothing of the table travels.
        assert source.table("users") is None and len(records) == 1
        note = load_privacy_note(source.production.spool_dir)
        assert note is not None and note.withheld_tables == (TableName("public", "users"),)
    else:
        assert records[-1].data == {"id": "1", "v": SECRET[:3]}
        mail = source.column("users", "mail")
        assert (mail.privacy, mail.number) == ("withheld", 2)


def test_a_column_whose_new_type_its_rule_does_not_fit_is_withheld(
    make_source: Callable[..., Source], any_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source({"users": {"id": "keep", "code": "token", "v": "keep"}}, any_postgres)
    source.execute("CREATE TABLE users (id int PRIMARY KEY, code text, v text)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1, '1', 'a')")
    with caplog.at_level(logging.WARNING), archiving(source.production):
        until(source.records)
        # In one transaction, so that the stream has the older type behind the look that shows the new one.
        with source.production.connect() as connection, connection.transaction():
            connection.execute("UPDATE users SET code = '4711', v = 'b'")
            connection.execute("ALTER TABLE users ALTER code TYPE boolean USING true")
            connection.execute("UPDATE users SET v = 'c'")
        until(lambda: len(source.records()) == 3)
    first, second, third = source.records()
    assert first.data is not None and second.data is not None
    assert re.fullmatch("[0-9a-f]{32}", first.data["code"])
    assert second.data.get("code") != "4711"
    assert third.data == {"id": "1", "v": "c"}
    assert source.privacy("users") == {"id": "", "code": "withheld", "v": ""}
    assert [message for message in caplog.messages if "cannot hold" in message and "code" in message]
    note = load_privacy_note(source.production.spool_dir)
    assert note is not None and "users: code: " in note.problems[0]
    with pytest.raises(PrivacyError, match="cannot hold: users: code: "):
        source.archive()


def test_all_that_cannot_hold_is_told_at_the_start(make_source: Callable[..., Source]) -> None:
    source = make_source({"users": {"id": "token", "v": "null", "w": "keep"}})
    source.execute("CREATE TABLE users (id int PRIMARY KEY, v text NOT NULL, w text)")
    source.publish("users")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', '{SECRET}')")
    with pytest.raises(PrivacyError) as told:
        source.archive()
    assert (
        "users: id: " in told.value.message
        and "users: v: null cannot be, for the column is NOT NULL" in told.value.message
    )
    assert not [*source.production.archive_dir.glob("changes_*")]


def test_what_the_masks_make_is_tried_at_the_start(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    rules = {"id": "keep", "city": "name", "zip": "name", "v": "token"}
    source = make_source({"users": rules, "people": {"id": "keep", "v": "null"}}, any_postgres)
    source.execute(
        "CREATE DOMAIN town AS text CHECK (VALUE ~ '^[A-Z][a-z]+$')",
        "CREATE TABLE users (id int PRIMARY KEY, city town, zip text CHECK (zip LIKE 'Z%-%'), v text)",
        "CREATE TABLE people (id int PRIMARY KEY, v text NOT NULL)",
    )
    source.publish("users", "people")
    source.execute(f"INSERT INTO users VALUES (1, 'Ulm', '{SECRET}-1', '{SECRET}')")
    with pytest.raises(PrivacyError) as told:
        source.archive()
    message = told.value.message
    assert "users: city: what name makes is no public.town" in message
    assert "people: v: null cannot be, for the column is NOT NULL" in message  # all at once
    assert not [*source.production.archive_dir.glob("changes_*")]
    source.rule({"users": rules | {"city": "keep"}})
    with pytest.raises(PrivacyError, match="users: zip: the masks break CHECK users_zip_check"):
        source.archive()
    source.rule({"users": rules | {"city": "keep", "zip": "withhold"}})
    assert [record.data and record.data["city"] for record in source.archive()] == ["Ulm"]


def test_rows_that_cannot_be_tried_at_the_start_stop_nothing(
    make_source: Callable[..., Source], caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source({name: {"id": "keep", "v": "token"} for name in ("users", "people", "blank")})
    for name in ("users", "people", "blank"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v varchar(40))")
        source.publish(name)
        source.execute(f"INSERT INTO {name} VALUES (1, '{SECRET}')" if name != "blank" else "SELECT")
    database = source.production.database
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        assert len(source.archive()) == 2
    told = [message for message in caplog.messages if "are not tried" in message]
    assert told == ["users: its masks are not tried: it is locked by another transaction"]


def test_a_column_without_a_rule_stops_an_archiver_that_was_told_to_halt(
    make_source: Callable[..., Source],
) -> None:
    source = make_source({"users": {"id": "keep"}}, unnamed="halt")
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    source.execute("ALTER TABLE users ADD fax text", f"INSERT INTO users VALUES (2, '{SECRET}')")
    with pytest.raises(PrivacyError, match="users: no rule names fax"):
        source.archive()
    source.rule({"users": {"id": "keep", "fax": "token"}}, unnamed="halt")
    assert [record.data and record.data["id"] for record in source.archive()] == ["1", "2"]


def test_a_key_that_moves_to_a_column_that_is_withheld_withholds_the_table(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    source = make_source({"users": {"id": "keep", "v": "keep"}}, any_postgres)
    source.execute("CREATE TABLE users (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text)")
    source.publish("users")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', 'a')")
    with archiving(source.production):
        until(source.records)
        source.execute(
            "ALTER TABLE users REPLICA IDENTITY USING INDEX users_code_key",
            f"UPDATE users SET code = '{SECRET}2'",
        )
        until(lambda: len(source.catalogs()) == 2)
    assert source.table("users") is None
    assert len(source.records()) == 1


def test_a_foreign_key_that_comes_later_changes_the_mask_and_says_so(
    make_source: Callable[..., Source],
) -> None:
    source = make_source(
        {"users": {"id": "keep", "email": "email"}, "orders": {"id": "keep", "buyer": "email"}}
    )
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE)",
        "CREATE TABLE orders (id int PRIMARY KEY, buyer text)",
    )
    source.publish("users", "orders")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}')", f"INSERT INTO orders VALUES (1, '{SECRET}')")
    source.archive()
    alone = source.column("orders", "buyer")
    source.execute("ALTER TABLE orders ADD FOREIGN KEY (buyer) REFERENCES users (email)")
    source.execute(f"INSERT INTO orders VALUES (2, '{SECRET}')")
    user, earlier, later = source.archive()
    assert user.data is not None and earlier.data is not None and later.data is not None
    assert earlier.data["buyer"] != user.data["email"] == later.data["buyer"]
    assert source.column("orders", "buyer").privacy_id not in (alone.privacy_id, "")


def test_partitions_follow_the_rules_of_their_root(
    make_source: Callable[..., Source], any_postgres: PostgresServer
) -> None:
    columns = {"events": {"id": "keep", "who": "token"}}
    source = make_source(columns, any_postgres)
    source.execute(
        "CREATE TABLE events (id int PRIMARY KEY, who text, what text) PARTITION BY LIST (id)",
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
        "CREATE TABLE hidden (id int PRIMARY KEY, v text) PARTITION BY LIST (id)",
        "CREATE TABLE hidden_1 PARTITION OF hidden FOR VALUES IN (1)",
    )
    source.publish("events", "hidden")
    source.execute(
        f"INSERT INTO events VALUES (1, '{SECRET}', '{SECRET}')", f"INSERT INTO hidden VALUES (1, '{SECRET}')"
    )
    (record,) = source.archive()
    assert (record.table, [*(record.data or ())]) == ("events", ["id", "who"])
    assert [str(table.table) for table in source.catalogs()[-1].tables] == ["events"]
    # Where unnamed tables travel, a leaf that the stream describes is still no table of its own.
    ruled = {"events": columns["events"] | {"what": "token"}, "hidden": {"v": "withhold"}}
    source.rule(ruled, unnamed="keep")
    source.execute("UPDATE hidden SET id = 1", "UPDATE events SET who = who")
    source.archive()
    assert [str(table.table) for table in source.catalogs()[-1].tables] == ["events", "hidden"]


def test_a_generated_column_does_not_tell_what_it_is_made_of(make_source: Callable[..., Source]) -> None:
    source = make_source({"users": {"id": "keep", "email": "email", "n": "keep"}})
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text, n int,"
        " low text GENERATED ALWAYS AS (lower(email)) STORED, twice int GENERATED ALWAYS AS (n * 2) STORED)"
    )
    source.publish("users")
    source.execute("ALTER PUBLICATION syncdata SET (publish_generated_columns = stored)")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', 1)")
    (record,) = source.archive()
    assert record.data is not None and "low" not in record.data
    assert SECRET.lower() not in json.dumps(record.data)


# Another policy


def test_a_table_that_gets_its_rules_later_was_not_published_before(
    make_source: Callable[..., Source],
) -> None:
    columns = {"users": {"id": "keep"}}
    source = make_source(columns)
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY)", "CREATE TABLE orders (id int PRIMARY KEY, v text)"
    )
    source.publish("users", "orders")
    source.execute("INSERT INTO users VALUES (1)", "INSERT INTO orders VALUES (1, 'a')")
    source.archive()
    assert source.table("orders") is None
    source.rule(columns | {"orders": {"id": "keep", "v": "token"}})
    source.execute(f"INSERT INTO orders VALUES (2, '{SECRET}')")
    records = source.archive()
    assert [(r.table, r.data and r.data["id"]) for r in records] == [("users", "1"), ("orders", "2")]
    assert source.privacy("orders") == {"id": "", "v": "token"}
    # And withheld again, it is gone.
    source.rule(columns)
    source.execute(f"INSERT INTO orders VALUES (3, '{SECRET}')")
    assert len(source.archive()) == 2
    assert source.table("orders") is None


def test_another_policy_is_announced_before_its_first_row_and_without_one(
    make_source: Callable[..., Source], caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source({"users": {"id": "keep", "email": "email", "v": "keep"}}, takes_snapshots=True)
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, v text)")
    source.publish("users")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', 'a')")
    source.archive()
    before = source.column("users", "email")
    # Nothing has happened but this.
    source.rule({"users": {"id": "keep", "email": "token", "v": "keep"}}, takes_snapshots=True)
    source.archive()
    after = source.column("users", "email")
    assert (before.privacy, after.privacy) == ("email", "token")
    assert before.privacy_id != after.privacy_id
    assert "the privacy rule of the column email has changed" in caplog.text
    assert json.loads((source.production.spool_dir / "owed.json").read_bytes()).keys() == {"users"}
    source.execute(f"UPDATE users SET email = '{SECRET}2'")
    last = source.archive()[-1]
    assert last.data is not None and re.fullmatch("[0-9a-f]{32}", last.data["email"])


def test_rows_that_the_publication_is_to_filter_do_not_travel_without_its_filter(
    make_source: Callable[..., Source],
) -> None:
    source = make_source({"users": {"id": "keep"}}, rows={"users": "id > 5"})
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    with pytest.raises(PrivacyError, match="users: rows: the publication has no row filter"):
        source.archive()
    source.execute(
        "ALTER PUBLICATION syncdata SET TABLE users WHERE (id > 5)", "INSERT INTO users VALUES (2), (7)"
    )
    with archiving(source.production):
        until(lambda: source.travels("users"))
        source.execute("INSERT INTO users VALUES (2), (7) ON CONFLICT DO NOTHING", "DELETE FROM users")
        until(source.records)
        source.execute("ALTER PUBLICATION syncdata SET TABLE users", "INSERT INTO users VALUES (3), (8)")
        until(lambda: source.table("users") is None)
    assert all(int(record.data["id"]) > 5 for record in source.records() if record.data)


def test_changes_from_before_a_row_filter_do_not_travel(
    make_source: Callable[..., Source], caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source({"users": {"id": "keep"}}, rows={"users": "id > 5"})
    source.execute("CREATE TABLE users (id int PRIMARY KEY)")
    source.publish("users")
    # What began before the filter, and commits behind it, comes unfiltered, too.
    with source.production.database.connect() as other:
        other.execute("INSERT INTO users VALUES (1), (6)")
        source.execute("INSERT INTO users VALUES (2)")
        source.execute("ALTER PUBLICATION syncdata SET TABLE users WHERE (id > 5)")
        with archiving(source.production):
            until(lambda: load_privacy_note(source.production.spool_dir))
            other.commit()
            assert "its row filter is newer than changes" in caplog.text
            note = load_privacy_note(source.production.spool_dir)
            assert note is not None and note.withheld_tables == (TableName("public", "users"),)
            with pytest.raises(SnapshotError, match="the row filter of the table is new"):
                source.production.snapshot("users")
            until(lambda: source.travels("users"))
            source.execute("INSERT INTO users VALUES (4), (9)")
            until(source.records)
    assert [record.data and record.data["id"] for record in source.records()] == ["9"]
    table = source.table("users")
    assert table is not None and left_out(None, table, rows_lsn=0)


def test_a_snapshot_that_knew_other_rules_before_the_stream_did_is_not_taken_for_equal(
    make_source: Callable[..., Source],
) -> None:
    columns = {"users": {"id": "keep"}}
    source = make_source(columns)
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY)", "CREATE TABLE orders (id int PRIMARY KEY, v text)"
    )
    source.publish("users", "orders")
    source.execute("INSERT INTO users VALUES (1)")
    source.archive()
    users = source.table("users")
    assert users is not None and not users.left_out
    source.rule({"users": {"id": "keep"}, "orders": {"id": "keep", "v": "keep"}})
    source.execute("INSERT INTO orders VALUES (1, 'a')")
    ((of_snapshot,),) = source.production.rows("SELECT pg_current_wal_lsn()::text")
    source.execute("INSERT INTO orders VALUES (3, 'a')")
    source.archive()
    users, orders = source.table("users"), source.table("orders")
    assert users is not None and not users.left_out
    assert orders is not None
    assert left_out(None, orders, rows_lsn=parse_lsn(of_snapshot))
    assert not left_out(None, orders, rows_lsn=parse_lsn(orders.left_out))
    # Once is enough, and it is remembered.
    source.execute("INSERT INTO orders VALUES (2, 'a')")
    source.archive()
    assert source.table("orders") == orders
    # A rule that changes does it, too.
    source.rule(columns | {"orders": {"id": "keep", "v": "token"}})
    source.archive()
    again = source.table("orders")
    assert again is not None and parse_lsn(again.left_out) > parse_lsn(orders.left_out)


def test_a_table_that_was_withheld_for_a_while_is_not_green_at_a_reader(
    make_source: Callable[..., Source], world: World
) -> None:
    columns = {"orders": {"id": "keep", "v": "keep"}}
    source = make_source(columns)
    world.archive = source.production.archive_dir
    for side in (source.execute, world.execute):
        side("CREATE TABLE orders (id int PRIMARY KEY, v text)")
    source.publish("orders")
    source.execute("INSERT INTO orders VALUES (1, 'a')")
    source.archive()
    source.production.snapshot("orders")
    world.whitelist("orders")
    world.sync()
    assert world.rows("SELECT * FROM orders") == [(1, "a")] and look(world, "orders").is_green
    source.rule({})
    source.execute("UPDATE orders SET v = 'missed'")
    source.archive()
    source.rule(columns)
    source.execute("INSERT INTO orders VALUES (2, 'b')")
    source.archive()
    world.sync()
    assert look(world, "orders").green == []
