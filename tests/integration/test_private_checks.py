"""Verification under a privacy policy: checks hold for what travels, and name no key as it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from syncdata.capture import verifier
from syncdata.capture.policy_note import note_policy
from syncdata.capture.verify_walk import (
    VERIFICATION_FILE_NAME,
    VerificationState,
    load_verification,
    save_verification,
)
from syncdata.changes.names import TableName
from syncdata.changes.verification import Check
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import parse_policy
from tests.chains import archived_records
from tests.checked import ALL_THE_TIME, checks_of, wrong_checks
from tests.production import Production, archiving, until
from tests.world import World

KEY = MaskKey(b"k" * 32)
USERS = {"id": "keep", "email": "email", "name": "token", "city": "keep"}
PEOPLE = {"email": "token", "kind": "keep", "age": "keep"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)


@pytest.fixture
def source(make_production: Callable[..., Production]) -> Production:
    policy, problems = parse_policy({"users": USERS, "people": PEOPLE, "blank": {"id": "token"}}, key=KEY)
    assert problems == ()
    return make_production(**ALL_THE_TIME, policy=policy)


def state_of(source: Production) -> VerificationState:
    return load_verification(source.spool_dir)


def verified(source: Production) -> list[Check]:
    """Let the archiver verify all tables once; return the checks of the first round."""
    with archiving(source):
        until(lambda: state_of(source).rounds > 1 or state_of(source).ended_at)
    archived_records(source.archive_dir)
    return [check for check in checks_of(source.archive_dir) if check.round == 1]


def leaks(source: Production) -> list[str]:
    paths = [
        path for path in (*source.archive_dir.rglob("*"), *source.spool_dir.rglob("*")) if path.is_file()
    ]
    return [str(path) for path in paths if b"secret" in path.read_bytes()]


def make_users(source: Production, rows: int) -> None:
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, name text, city text, notes text)")
    source.publish("users")
    source.execute(
        f"INSERT INTO users SELECT n, 'secret' || n, 'secret' || n, 'Bern', 'secret'"
        f" FROM generate_series(1, {rows}) AS n"
    )


def make_people(source: Production, rows: int) -> None:
    source.execute("CREATE TABLE people (email text, kind int, age int, PRIMARY KEY (email, kind))")
    source.publish("people")
    source.execute(f"INSERT INTO people SELECT 'secret' || n, n % 3, n FROM generate_series(1, {rows}) AS n")


def test_masked_columns_are_left_out_of_the_hash_by_name(source: Production) -> None:
    make_users(source, 50)
    (check,) = verified(source)
    assert (check.columns, check.left_out) == (("id", "city"), ("email", "name"))
    assert (check.rows, check.is_of_whole_table, check.is_last) == (50, True, True)
    assert state_of(source).left_out == {"users": "without email, name, whose values travel masked"}
    assert not wrong_checks(source.archive_dir, keys={"users": ("id",)})[0]
    assert leaks(source) == []


def test_keys_that_travel_masked_are_listed_masked(source: Production) -> None:
    make_people(source, 10_500)
    total, *parts = verified(source)
    assert (total.rows, total.hash, total.keys) == (10_500, None, None)
    assert all(check.keys and check.after is None and check.upto is None for check in parts)
    assert all(check.key == ("email", "kind") and check.columns == ("kind", "age") for check in parts)
    assert sum(check.rows for check in parts) == 10_500
    assert len({key for check in parts for key in check.keys or ()}) == 10_500
    # The checks name the rows as the records do.
    assert not wrong_checks(source.archive_dir, keys={"people": ("email", "kind")})[0]
    assert leaks(source) == []


def test_a_small_table_with_a_masked_key_is_checked_as_a_whole(source: Production) -> None:
    make_people(source, 20)
    (check,) = verified(source)
    assert check.is_of_whole_table and check.hash is not None and check.rows == 20
    assert not wrong_checks(source.archive_dir, keys={"people": ("email", "kind")})[0]


def test_of_a_table_without_a_column_to_compare_rows_are_counted(source: Production) -> None:
    source.execute("CREATE TABLE blank (id text PRIMARY KEY)")
    source.publish("blank")
    source.execute("INSERT INTO blank SELECT 'secret' || n FROM generate_series(1, 9) AS n")
    (check,) = verified(source)
    assert (check.rows, check.columns, check.hash, check.left_out) == (9, (), None, ("id",))
    assert leaks(source) == []


def test_a_withheld_table_is_not_walked(source: Production) -> None:
    make_users(source, 5)
    source.execute("CREATE TABLE diary (id int PRIMARY KEY)", "INSERT INTO diary VALUES (1)")
    source.publish("diary")
    assert {check.table for check in verified(source)} == {"users"}
    assert state_of(source).tables == 1


def test_a_table_with_a_column_that_is_held_back_for_its_earlier_name_is_verified(source: Production) -> None:
    make_users(source, 50)
    with archiving(source):
        until(lambda: state_of(source).rounds > 1)
        source.execute("ALTER TABLE users DROP city", "ALTER TABLE users RENAME email TO city")
        until(lambda: [check for check in checks_of(source.archive_dir) if check.columns == ("id",)])
    last = checks_of(source.archive_dir)[-1]
    assert (last.columns, last.left_out, last.rows) == (("id",), ("name",), 50)
    assert leaks(source) == []


def test_a_masked_key_is_not_kept_in_the_spool_for_the_next_process(source: Production) -> None:
    """It stops in the midst of the table, which begins anew, and its numbers with it."""
    make_people(source, 3_000)
    source.options["verify_rows_per_s"] = 100  # so 1,000 rows at once, and then a rest of ten seconds
    with archiving(source):
        until(lambda: any(check.keys for check in checks_of(source.archive_dir)))
    state = state_of(source)
    assert (state.table, state.after, state.chunks, state.seen) == (TableName("public", "people"), None, 0, 0)
    assert leaks(source) == []
    source.options["verify_rows_per_s"] = 1_000_000
    checks = verified(source)
    assert checks[-1].is_last and checks[-1].seen == 3_000
    assert not wrong_checks(source.archive_dir, keys={"people": ("email", "kind")})[0]


def test_a_key_in_the_spool_from_before_a_policy_is_forgotten(tmp_path: Path) -> None:
    state = VerificationState(
        rounds=1, began_at="2026-02-05T10:30:00Z", table=TableName("public", "people"), after=("secret",),
        chunks=3, seen=30, rows=130,
    )  # fmt: skip
    save_verification(tmp_path, state)
    note_policy(tmp_path, "a policy", last_file=None, now=dt.datetime(2026, 2, 5, tzinfo=dt.UTC))
    assert b"secret" not in (tmp_path / VERIFICATION_FILE_NAME).read_bytes()
    found = load_verification(tmp_path)
    assert (found.rounds, found.table, found.chunks, found.seen, found.rows) == (1, state.table, 0, 0, 100)


@pytest.mark.parametrize("name", ["users", "people"])
def test_a_reader_finds_masked_rows_equal(
    source: Production, make_world: Callable[..., World], name: str
) -> None:
    {"users": make_users, "people": make_people}[name](source, 1_500)
    with archiving(source):
        until(lambda: any(check.is_last for check in checks_of(source.archive_dir)))
    world = make_world()
    world.archive = source.archive_dir
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text, name text, city text)",
        "CREATE TABLE people (email text, kind int, age int, PRIMARY KEY (email, kind))",
    )
    world.whitelist(name)
    assert world.sync().errors == ()
    verdicts = world.rows("SELECT is_equal, rows_here FROM data_sync_verifications")
    assert verdicts
    assert {is_equal for is_equal, _ in verdicts} == {True}
