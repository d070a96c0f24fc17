"""What went wrong in other tools that mask: each of it, tried on the archiver with a policy."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pytest

from syncdata.errors import PrivacyError, SyncError
from syncdata.privacy.key import from_text
from syncdata.privacy.policy import Policy, parse_policy
from tests.chains import archived_records
from tests.privacy_world import MASK_KEY, PERSONAL, Found, Search, content_of, files_below
from tests.production import Production, archiving, until_archived
from tests.world import World

USERS = "CREATE TABLE users (id int PRIMARY KEY, email text, city text)"
RULES = {"id": "keep", "email": "email", "city": "keep"}
NAME = f"Ann{PERSONAL}"


def policy_of(columns: dict[str, Any], *, key: str = MASK_KEY, unnamed: str = "withhold") -> Policy:
    policy, problems = parse_policy(columns, key=from_text(key), unnamed=unnamed)
    assert problems == ()
    return policy


@pytest.fixture
def ruled(production: Production) -> Callable[..., Production]:
    """`ruled({"users": {...}}, *ddl)` is a production with that policy, whose tables are published."""

    def make(columns: dict[str, Any], *ddl: str, **options: Any) -> Production:
        production.options |= {"policy": policy_of(columns, **options), "rotate_s": 0.2}
        production.execute(*ddl)
        production.publish(*columns)
        production.archive()
        return production

    return make


def leaks(production: Production) -> list[Found]:
    return Search([NAME]).of_files(production.archive_dir, production.spool_dir)


@dataclass(frozen=True)
class Sent:
    """What a record has of a row."""

    data: dict[str, Any]
    old_keys: dict[str, Any]


def records_of(production: Production, table: str) -> list[Sent]:
    records = archived_records(production.archive_dir)
    return [Sent(record.data or {}, record.old_keys or {}) for record in records if record.table == table]


# What a migration does while the archiver streams

MIGRATIONS = {
    "a new column": ("ALTER TABLE users ADD nickname text", "INSERT INTO users VALUES (2, 'e', 'c', '{}')"),
    # The rows that are there get it, too; what stands for it in the catalog must not give it away.
    "a new column with a default": (
        "ALTER TABLE users ADD nickname text DEFAULT '{}'",
        "INSERT INTO users VALUES (2, 'e', 'c')",
    ),
    "a new column of a name that has a rule": (
        "ALTER TABLE users DROP email",
        "ALTER TABLE users ADD email text DEFAULT '{}'",
        "INSERT INTO users VALUES (2, 'c')",
    ),
    "a column with another name": (
        "ALTER TABLE users RENAME email TO mail",
        "INSERT INTO users VALUES (2, '{}', 'c')",
    ),
    # By its name, the column may travel; but its rows are those of the masked one.
    "a masked column with the name of a kept one": (
        "ALTER TABLE users DROP city",
        "ALTER TABLE users RENAME email TO city",
        "INSERT INTO users VALUES (2, '{}')",
    ),
    "two names swapped": (
        "BEGIN; ALTER TABLE users RENAME email TO x; ALTER TABLE users RENAME city TO email;"
        " ALTER TABLE users RENAME x TO city; INSERT INTO users VALUES (2, '{}', 'c'); COMMIT",
        "UPDATE users SET city = city || '{}'",
    ),
    "a column of another type": (
        "ALTER TABLE users ALTER email TYPE bytea USING convert_to(email, 'UTF8')",
        "INSERT INTO users VALUES (2, '{}'::bytea, 'c')",
    ),
    "a key that is another column": (
        "ALTER TABLE users ADD login text",
        "UPDATE users SET login = '{}'",
        "ALTER TABLE users ALTER login SET NOT NULL, DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (login)",
        "INSERT INTO users VALUES (2, 'e', 'c', '{}2')",
        "UPDATE users SET login = '{}3' WHERE id = 2",
        "DELETE FROM users",
    ),
    "old rows in full": (
        "UPDATE users SET email = '{}'",
        "ALTER TABLE users REPLICA IDENTITY FULL",
        "ALTER TABLE users ADD nickname text",
        "UPDATE users SET nickname = '{}'",
        "UPDATE users SET city = 'd', nickname = '{}2', email = '{}3'",
        "DELETE FROM users",
    ),
    "a table with another name": (
        "ALTER TABLE users RENAME TO members",
        "INSERT INTO members VALUES (2, '{}', '{}')",
    ),
    "a new table": (
        "CREATE TABLE letters (id int PRIMARY KEY, body text)",
        "ALTER PUBLICATION syncdata ADD TABLE letters",
        "INSERT INTO letters VALUES (1, '{}')",
        "UPDATE letters SET body = body || '{}'",
    ),
}


# Of these, the archiver refuses to start: the rules do not fit what it finds. It goes on when it is running.
UNFIT = {
    "a column of another type",
    "a key that is another column",
    "a masked column with the name of a kept one",
    "two names swapped",
}


@pytest.mark.parametrize("is_running", [True, False], ids=["while it runs", "while it is down"])
def test_no_migration_lets_a_value_out(ruled: Callable[..., Production], is_running: bool) -> None:
    """Each on a table of its own, while the archiver sees every step, or before it comes."""
    migrations = [name for name in MIGRATIONS if is_running or name not in UNFIT]
    tables = {migration: f"users_{number}" for number, migration in enumerate(migrations)}
    names = {migration: f"Ann{PERSONAL}z{table[6:]}z" for migration, table in tables.items()}
    production = ruled(
        dict.fromkeys(tables.values(), RULES), *(_of(USERS, table) for table in tables.values())
    )
    for migration, table in tables.items():
        production.execute(f"INSERT INTO {table} VALUES (1, '{names[migration]}', 'Bonn')")
    production.archive()

    with archiving(production) if is_running else nullcontext():
        for steps in zip_longest(*(MIGRATIONS[name] for name in migrations)):
            for migration, step in zip(migrations, steps, strict=True):
                if step is not None:
                    production.execute(_of(step, tables[migration]).replace("{}", names[migration]))
            if is_running:
                until_archived(production)
    if not is_running:
        production.archive()
    for table in tables.values():
        with suppress(SyncError):  # it is withheld, or has another name
            production.snapshot(table)

    places = production.archive_dir, production.spool_dir
    found = {migration: Search([name], text=name).of_files(*places) for migration, name in names.items()}
    assert found == {migration: [] for migration in migrations}
    assert sum(b"Bonn" in content_of(path) for path in files_below(*places)) > 1


@pytest.mark.parametrize("migration", sorted(UNFIT))
def test_an_archiver_does_not_start_where_its_rules_no_longer_fit(
    ruled: Callable[..., Production], migration: str
) -> None:
    production = ruled({"users": RULES}, USERS)
    production.execute(f"INSERT INTO users VALUES (1, '{NAME}', 'Bonn')")
    production.archive()
    for statement in MIGRATIONS[migration]:
        production.execute(statement.replace("{}", NAME))

    with pytest.raises(PrivacyError) as refusal:
        production.archive()

    assert NAME not in str(refusal.value)
    assert leaks(production) == []


def _of(statement: str, table: str) -> str:
    """Return *statement* on *table* in place of `users`, and with names of its own for all others."""
    number = table.removeprefix("users_")
    return re.sub(r"\b(users|members|letters|users_pkey)\b", rf"\1_{number}", statement).replace(
        f"users_pkey_{number}", f"users_{number}_pkey"
    )


def test_a_policy_that_halts_stops_before_the_new_column(ruled: Callable[..., Production]) -> None:
    production = ruled({"users": RULES}, USERS, unnamed="halt")
    production.execute("INSERT INTO users VALUES (1, 'a', 'Bonn')")
    production.execute(
        "ALTER TABLE users ADD nickname text", f"INSERT INTO users VALUES (2, '', '', '{NAME}')"
    )

    with pytest.raises(PrivacyError, match="nickname") as refusal:
        production.archive()

    assert NAME not in str(refusal.value)
    assert leaks(production) == []


# Rules that cannot hold are refused before anything is read, not after hours

REFUSED = {
    "different values of a unique column become equal": (
        "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE, city text)",
        RULES | {"email": {"mask": "partial", "keep_end": 2}},
        "email",
    ),
    "NULL where there must be a value": (
        "CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL, city text)",
        RULES | {"email": "null"},
        "email",
    ),
    "a token that is longer than the column": (
        "CREATE TABLE users (id int PRIMARY KEY, email varchar(10), city text)",
        RULES | {"email": "token"},
        "email",
    ),
    "rows that could not be told apart": (USERS, RULES | {"id": {"mask": "fixed", "value": 1}}, "id"),
    "rows without a key": (USERS, {"email": "email", "city": "keep"}, "id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_cannot_hold_is_refused_at_the_start(production: Production, case: str) -> None:
    ddl, rules, column = REFUSED[case]
    production.options["policy"] = policy_of({"users": rules})
    production.execute(ddl)
    production.publish("users")
    production.execute(f"INSERT INTO users VALUES (1, '{NAME}', 'Bonn')" if "(10)" not in ddl else "SELECT 1")

    with pytest.raises(PrivacyError, match=rf"users.*\b{column}\b"):
        production.archive()

    assert leaks(production) == []
    assert list(production.archive_dir.glob("changes_*")) == []


# What the masks promise, seen through the whole


def test_another_key_masks_every_value_otherwise(
    make_production: Callable[..., Production],
) -> None:
    """A salt that was ignored let everybody who knew the tool work out the same values."""
    seen = []
    for key in (MASK_KEY, "00" * 32):
        production = make_production(policy=policy_of({"users": RULES | {"city": "city"}}, key=key))
        production.execute(USERS)
        production.publish("users")
        production.archive()
        production.execute(f"INSERT INTO users VALUES (1, '{NAME}', '{NAME}')")
        production.archive()
        seen += [record.data for record in records_of(production, "users")]
        assert leaks(production) == []

    assert seen[0]["email"] != seen[1]["email"]
    assert seen[0]["id"] == seen[1]["id"]


def test_old_keys_are_masked_as_the_new_ones(ruled: Callable[..., Production]) -> None:
    """A masked key that went out as it was beside its masked value gave all of them away."""
    production = ruled(
        {"users": {"email": "email", "city": "keep"}},
        "CREATE TABLE users (email text PRIMARY KEY, city text)",
    )
    production.execute(
        f"INSERT INTO users VALUES ('{NAME}', 'Bonn')",
        f"UPDATE users SET email = '{NAME}2'",
        "UPDATE users SET city = 'Ulm'",
        "DELETE FROM users",
    )
    production.archive()

    inserted, moved, changed, deleted = records_of(production, "users")
    assert moved.old_keys == {"email": inserted.data["email"]}
    assert deleted.old_keys == {"email": moved.data["email"]} == {"email": changed.data["email"]}
    assert leaks(production) == []


CHAIN = (
    "CREATE TABLE people (ref text PRIMARY KEY, boss text REFERENCES people)",
    "CREATE TABLE teams (lead text PRIMARY KEY REFERENCES people)",
    "CREATE TABLE goals (id int PRIMARY KEY, lead text REFERENCES teams)",
)


def test_rows_find_each_other_across_a_chain_and_a_circle_of_foreign_keys(
    ruled: Callable[..., Production], world: World
) -> None:
    rules = {
        "people": {"ref": "token", "boss": "token"},
        "teams": {"lead": "token"},
        "goals": {"id": "keep", "lead": "token"},
    }
    production = ruled(rules, *CHAIN)
    world.execute(*CHAIN)
    world.archive = production.archive_dir
    production.execute(
        f"INSERT INTO people VALUES ('{NAME}', '{NAME}'), ('{NAME}2', '{NAME}')",
        f"INSERT INTO teams VALUES ('{NAME}')",
    )
    production.archive()
    production.snapshot("people", "teams", "goals")
    world.whitelist("people", "teams", "goals")
    production.execute(f"INSERT INTO goals VALUES (1, '{NAME}')")
    production.archive()

    assert world.sync().errors == ()

    # Some came with a snapshot and some with the stream.
    assert (
        world.value("SELECT count(*) FROM goals g JOIN teams USING (lead) JOIN people p ON p.ref = lead") == 1
    )
    assert world.value("SELECT count(*) FROM people p JOIN people b ON b.ref = p.boss") == 2
    assert leaks(production) == []


def test_a_value_has_one_mask_in_stream_and_snapshot_and_after_a_restart(
    ruled: Callable[..., Production], world: World
) -> None:
    rules = {"users": RULES | {"city": "city", "email": "name"}}
    production = ruled(rules, USERS)
    world.execute(USERS)
    world.archive = production.archive_dir
    production.execute(f"INSERT INTO users VALUES (1, '{NAME}', '{NAME}3')")
    production.archive()
    production.snapshot("users")
    production.execute(f"INSERT INTO users VALUES (2, '{NAME}', '{NAME}3')")
    production.archive()
    world.whitelist("users")

    assert world.sync().errors == ()

    first, second = world.rows("SELECT email, city FROM users ORDER BY id")
    assert first == second
    assert leaks(production) == []


def test_a_large_value_that_stays_as_it_is_stays_masked_and_there(
    ruled: Callable[..., Production], world: World
) -> None:
    """Absent from a record is unchanged, not NULL: neither masked nor made up."""
    production = ruled({"users": RULES | {"email": "token"}}, USERS)
    world.execute(USERS)
    world.archive = production.archive_dir
    large = f"(SELECT string_agg('{NAME}' || md5(n::text), '') FROM generate_series(1, 3000) n)"
    production.execute(f"INSERT INTO users VALUES (1, {large}, 'Bonn')", "UPDATE users SET city = 'Ulm'")
    production.archive()
    world.whitelist("users")
    world.sync()

    _, update = records_of(production, "users")
    assert update.data == {"id": "1", "city": "Ulm"}
    ((email, city),) = world.rows("SELECT email, city FROM users")
    assert len(email) == 32 and city == "Ulm"
    assert leaks(production) == []


def quoting(text: str) -> str:
    """A mask of somebody's own, as bad as can be: it fails with the value in the error."""
    raise ValueError(f"cannot mask {text}")


def test_a_mask_that_fails_with_the_value_in_its_error_tells_it_nobody(
    ruled: Callable[..., Production], caplog: pytest.LogCaptureFixture
) -> None:
    own = f"{__name__}:{quoting.__name__}"
    with caplog.at_level(logging.DEBUG):
        production = ruled({"users": RULES | {"email": own}}, USERS)
        production.execute(f"INSERT INTO users VALUES (1, '{NAME}', 'Bonn')", "UPDATE users SET city = 'Ulm'")
        production.archive()
        production.snapshot("users")

    assert [record.data.get("city") for record in records_of(production, "users")] == ["Bonn", "Ulm"]
    assert leaks(production) == []
    assert NAME not in caplog.text
