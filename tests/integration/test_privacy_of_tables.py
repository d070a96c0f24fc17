"""A table under production's privacy policy: its rows follow one set of rules, and it says which."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from typing import Any

import pytest

from syncdata.apply.state.status import format_status
from syncdata.changes.catalog import PublishedTable, catalog_comment
from syncdata.changes.position import format_lsn
from syncdata.errors import ResyncError
from syncdata.management.base import format_json
from syncdata.management.commands.list_tables import format_tables
from tests.catalogs import column, put, table
from tests.framed import Writer
from tests.world import World, insert, update


def users(*, email: str = "email", email_id: str = "e1", phone: str = "withheld") -> PublishedTable:
    """Users, whose e-mail address is masked by the rule *email*; an empty rule lets a value travel."""
    columns = (
        column("id", "integer", number=1),
        column("email", "text", number=2, privacy=email, privacy_id=email_id if email else ""),
        column("phone", "text", number=3, privacy=phone, privacy_id="p1" if phone else ""),
    )
    travelling = tuple(c.name for c in columns if c.privacy != "withheld")
    return table("users", *columns, column_list=None if len(travelling) == 3 else travelling)


OPEN, MASKED = users(email="", phone=""), users()
OTHERWISE = users(email_id="e2")


@pytest.fixture
def site(world: World) -> World:
    world.execute("CREATE TABLE users (id int PRIMARY KEY, email text, phone text)")
    world.whitelist("users")
    return world


@pytest.fixture
def source(site: World) -> Writer:
    return Writer(site.archive)


def shown(world: World) -> tuple[str, str]:
    """Return the state of the table, and all that is said of it."""
    with world.service() as service:
        (info,) = service.list_tables()
        return info.state, "; ".join(map(str, [*filter(None, [info.error, info.error_hint]), *info.marks]))


def under(world: World, *published: PublishedTable, lsn: int) -> dict[str, Any]:
    return {"catalog": put(world.archive, *published), "catalog_lsn": lsn}


def row(id: int, email: str) -> dict[str, Any]:
    return {"id": id, "email": email}


def begin(world: World, source: Writer, published: PublishedTable) -> None:
    source.snapshot(1, "users", 5, [row(1, "a1")], prev=None, catalog=put(world.archive, published))
    source.changes(1, [(10, [insert("users", **row(2, "b1"))])], **under(world, published, lsn=6))
    world.sync()
    assert shown(world) == ("active", "")


@pytest.mark.parametrize(
    ("before", "now", "column_names"),
    [
        (MASKED, OTHERWISE, "column email"),
        (OPEN, MASKED, "columns email, phone"),
        (MASKED, OPEN, "columns email, phone"),
        (MASKED, users(email="withheld"), "column email"),
        (users(email="withheld"), MASKED, "column email"),
    ],
    ids=["another rule", "a first policy", "no policy any more", "withheld now", "travels now"],
)
def test_a_changed_privacy_rule_blocks_until_a_resync(
    site: World, source: Writer, before: PublishedTable, now: PublishedTable, column_names: str
) -> None:
    begin(site, source, before)
    source.changes(2, [(20, [update("users", id=2, email="b2")])], **under(site, now, lsn=15))

    site.sync()

    state, text = shown(site)
    assert state == "blocked"
    assert f"the privacy rules of {column_names} have changed in production" in text
    assert "column list" not in text
    assert "'archive_changes --snapshot users'" in text and "'python manage.py resync users'" in text
    assert site.rows("SELECT * FROM users ORDER BY id") == [(1, "a1", None), (2, "b1", None)]

    # Without a newer snapshot a resync would bring the older rows, and says so.
    with pytest.raises(ResyncError, match="archive_changes --snapshot users"), site.service() as service:
        service.resync("users")
    source.snapshot(30, "users", 25, [row(1, "a2"), row(2, "b2")], prev=2, catalog=put(site.archive, now))
    with site.service() as service:
        service.resync("users")
    source.changes(3, [(40, [insert("users", **row(3, "c2"))])], **under(site, now, lsn=15))
    site.sync()
    assert shown(site) == ("active", "")
    assert site.rows("SELECT id, email FROM users ORDER BY id") == [(1, "a2"), (2, "b2"), (3, "c2")]


def test_a_snapshot_under_the_new_rules_heals_by_itself(site: World, source: Writer) -> None:
    begin(site, source, MASKED)
    source.changes(2, [(20, [update("users", id=2, email="b2")])], **under(site, OTHERWISE, lsn=15))
    site.sync()
    assert shown(site)[0] == "blocked"
    source.snapshot(
        30, "users", 25, [row(1, "a2"), row(2, "b2")], prev=2, catalog=put(site.archive, OTHERWISE)
    )
    site.sync()
    assert shown(site) == ("active", "")
    assert site.rows("SELECT id, email FROM users ORDER BY id") == [(1, "a2"), (2, "b2")]


def test_files_under_older_rules_before_a_snapshot_under_the_new_ones_are_passed(
    site: World, source: Writer
) -> None:
    source.changes(1, [(10, [insert("users", **row(1, "a1"))])], **under(site, MASKED, lsn=6))
    source.snapshot(2, "users", 25, [row(1, "a2")], prev=None, catalog=put(site.archive, OTHERWISE))
    line = catalog_comment(put(site.archive, OTHERWISE), format_lsn(22)).decode().rstrip("\n")
    source.changes(
        2,
        [
            (20, [update("users", id=1, email="a1")]),
            (30, [line, insert("users", **row(2, "b2"))]),
        ],
        **under(site, MASKED, lsn=6),
    )
    site.sync()
    assert shown(site) == ("active", "")
    assert site.rows("SELECT id, email FROM users ORDER BY id") == [(1, "a2"), (2, "b2")]


@pytest.mark.parametrize(("snapshot", "files"), [(OTHERWISE, MASKED), (MASKED, OTHERWISE)])
def test_records_under_other_privacy_rules_than_the_snapshot_are_not_applied(
    site: World, source: Writer, snapshot: PublishedTable, files: PublishedTable
) -> None:
    source.snapshot(
        2, "users", 25, [row(1, "of the snapshot")], prev=None, catalog=put(site.archive, snapshot)
    )
    source.changes(1, [(30, [update("users", id=1, email="of the file")])], **under(site, files, lsn=6))
    site.sync()
    state, text = shown(site)
    assert state == "blocked"
    assert "other privacy rules than the snapshot that the rows came from, for column email" in text
    assert site.rows("SELECT email FROM users") == [("of the snapshot",)]
    with pytest.raises(ResyncError, match="other privacy rules"), site.service() as service:
        service.resync("users")

    line = catalog_comment(put(site.archive, OTHERWISE), format_lsn(35)).decode().rstrip("\n")
    source.changes(2, [(40, [line, update("users", id=1, email="later")])], **under(site, files, lsn=6))
    source.snapshot(50, "users", 45, [row(1, "later")], prev=2, catalog=put(site.archive, OTHERWISE))
    with site.service() as service:
        service.resync("users")
    site.sync()
    assert shown(site) == ("active", "")
    assert site.rows("SELECT email FROM users") == [("later",)]


def test_a_snapshot_under_other_privacy_rules_than_the_change_files_is_suspect(
    site: World, source: Writer
) -> None:
    site.execute("CREATE TABLE notes (id int PRIMARY KEY)")
    notes = table("notes", "id integer", oid=2)
    source.snapshot(2, "users", 25, [row(1, "a2")], prev=None, catalog=put(site.archive, OTHERWISE, notes))
    source.changes(1, [(30, [insert("notes", id=1)])], **under(site, MASKED, notes, lsn=6))
    site.sync()
    state, text = shown(site)
    assert (state, "other privacy rules than the snapshot" in text) == ("suspect", True)

    # The archiver begins with the new rules, and nothing has changed in between.
    source.changes(2, [(40, [insert("notes", id=2)])], **under(site, OTHERWISE, notes, lsn=35))
    site.sync()
    assert shown(site) == ("active", "")


def test_a_withheld_column_that_must_have_a_value_here_blocks_with_the_statement_that_helps(
    site: World, source: Writer
) -> None:
    site.execute("ALTER TABLE users ALTER COLUMN phone SET NOT NULL")
    source.snapshot(1, "users", 5, [row(1, "a1")], prev=None, catalog=put(site.archive, MASKED))
    source.changes(1, [(10, [insert("users", **row(2, "b1"))])], **under(site, MASKED, lsn=6))
    site.sync()
    state, text = shown(site)
    assert state == "blocked"
    assert "column phone is withheld by production's privacy policy" in text
    assert "'" not in text.partition("make it nullable: ")[2].partition(";")[0]
    statement = text.partition("make it nullable: ")[2].partition(";")[0]
    assert statement == "ALTER TABLE public.users ALTER COLUMN phone DROP NOT NULL"
    site.execute(statement)
    site.sync()
    assert shown(site) == ("active", "")
    assert site.rows("SELECT * FROM users ORDER BY id") == [(1, "a1", None), (2, "b1", None)]


@pytest.mark.parametrize(
    "alteration",
    [
        "ALTER TABLE users ALTER COLUMN phone SET NOT NULL, ALTER COLUMN phone SET DEFAULT ''",
        "ALTER TABLE users DROP COLUMN phone",
        "ALTER TABLE users DROP COLUMN phone,"
        " ADD COLUMN phone text NOT NULL GENERATED ALWAYS AS ('-') STORED",
        "CREATE DOMAIN number AS text NOT NULL DEFAULT '-'; ALTER TABLE users ALTER COLUMN phone TYPE number",
    ],
    ids=["has a default", "is not here", "is generated", "a domain gives it"],
)
def test_a_withheld_column_that_needs_no_value_here_is_no_finding(
    site: World, source: Writer, alteration: str
) -> None:
    site.execute(*alteration.split("; "))
    begin(site, source, MASKED)
    assert site.rows("SELECT id, email FROM users ORDER BY id") == [(1, "a1"), (2, "b1")]


def test_a_column_that_a_migration_adds_and_nobody_names_stops_nothing(site: World, source: Writer) -> None:
    begin(site, source, MASKED)
    added = column("born", "date", number=4, privacy="withheld", privacy_id="", filled=True)
    now = table("users", *MASKED.columns, added, column_list=("id", "email"))
    source.changes(2, [(20, [insert("users", **row(3, "c1"))])], **under(site, now, lsn=15))
    site.sync()
    assert shown(site) == ("active", "")
    site.execute("ALTER TABLE users ADD COLUMN born date")
    ruled = table(
        "users", *MASKED.columns, column("born", "date", number=4), column_list=("id", "email", "born")
    )
    source.changes(
        3, [(30, [insert("users", **row(4, "d1"), born="2000-01-01")])], **under(site, ruled, lsn=25)
    )
    site.sync()
    state, text = shown(site)
    assert (state, "the privacy rules of column born have changed" in text) == ("blocked", True)


def test_what_is_masked_or_withheld_is_listed_by_its_kind(site: World, source: Writer) -> None:
    begin(site, source, MASKED)
    with site.service() as service:
        (info,) = service.list_tables()
        status = format_status(service.get_status())
    assert [str(one) for one in info.privacy or ()] == ["email (email)", "phone (withheld)"]
    assert "privacy: 2 columns of 1 table are masked or withheld at production" in status
    now = dt.datetime.now(dt.UTC)
    assert "    masked or withheld: email (email), phone (withheld)" in format_tables([info], now=now)
    shown = json.loads(format_json([asdict(info)]))
    assert shown[0]["privacy"][1] == {"column": "phone", "kind": "withheld", "side": "production"}


def test_a_table_without_a_policy_has_nothing_masked(site: World, source: Writer) -> None:
    begin(site, source, OPEN)
    with site.service() as service:
        assert [info.privacy for info in service.list_tables()] == [()]
        assert "privacy: no policy" in format_status(service.get_status())
