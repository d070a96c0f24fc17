"""This side's own privacy rules: what comes in is masked or left out before it is written, by every way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncdata.apply.sink import Differences
from syncdata.changes.catalog import PublishedTable
from syncdata.changes.verification import Check, check_comment
from syncdata.errors import ConfigError
from syncdata.privacy.key import make_key_file
from tests.catalogs import put, table
from tests.framed import Writer
from tests.world import World, delete, insert, truncate, update

USERS = table("users", "id integer", "email text", "phone text", "born date")
ORDERS = table("orders", "id integer", "buyer text", oid=2)
RULES = {"users": {"email": "email", "phone": "withhold"}}
MakeSite = Callable[..., World]


@pytest.fixture
def make_site(world: World, tmp_path: Path) -> MakeSite:
    """`make_site(rules)`: a world whose users come in under *rules*."""
    key_file = tmp_path / "mask.key"
    make_key_file(key_file)
    world.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE, phone text, born date)",
        "CREATE TABLE orders (id int PRIMARY KEY, buyer text)",
    )
    world.whitelist("users", "orders")

    def make(rules: dict[str, Any] = RULES) -> World:
        world.options |= {"columns": rules, "privacy": {"key_file": str(key_file)}}
        return world

    return make


def under(world: World, *published: PublishedTable, lsn: int = 6) -> dict[str, Any]:
    return {"catalog": put(world.archive, *(published or (USERS, ORDERS))), "catalog_lsn": lsn}


def row(id: int, email: str | None) -> dict[str, Any]:
    return {"id": id, "email": email, "phone": "0171", "born": "2000-01-01"}


def shown(world: World, name: str = "users") -> tuple[str, str]:
    with world.service() as service:
        (info,) = [info for info in service.list_tables() if info.table_name == name]
        return info.state, "; ".join(map(str, [*filter(None, [info.error, info.error_hint]), *info.marks]))


def begin(world: World) -> Writer:
    source = Writer(world.archive)
    catalog = put(world.archive, USERS, ORDERS)
    source.snapshot(1, "users", 5, [row(1, "ann@site.org"), row(2, None)], prev=None, catalog=catalog)
    source.snapshot(1, "orders", 5, [{"id": 1, "buyer": "ann@site.org"}], prev=None, catalog=catalog)
    source.changes(1, [(10, [insert("users", **row(3, "bob@site.org"))])], **under(world))
    world.sync()
    return source


def emails(world: World) -> dict[int, str | None]:
    return dict(world.rows("SELECT id, email FROM users"))


def test_rows_are_masked_on_their_way_in_from_snapshots_and_files_alike(make_site: MakeSite) -> None:
    world = make_site()
    source = begin(world)
    assert shown(world) == ("active", "")
    first = emails(world)
    assert first[2] is None, "NULL stays NULL"
    assert str(first[1]).endswith("@example.invalid") and first[1] != first[3]
    assert world.rows("SELECT DISTINCT phone, born::text FROM users") == [(None, "2000-01-01")]

    source.changes(
        2,
        [
            (20, [update("users", **row(2, "ann@site.org")), delete("users", id=1)]),
            (30, [update("users", old_keys={"id": 3}, id=30, born="2001-01-01")]),
            (40, [insert("users", **row(4, None)), insert("orders", id=2, buyer="eve@site.org")]),
        ],
        prev=1,
        **under(world),
    )
    world.sync()
    assert shown(world) == ("active", "")
    assert emails(world) == {2: first[1], 30: first[3], 4: None}, "the same mask, whichever way it comes"
    assert world.value("SELECT buyer FROM orders WHERE id = 2") == "eve@site.org", "no rule, as it came"

    with world.service() as service:
        service.resync("users")
    assert emails(world) == {2: first[1], 30: first[3], 4: None}
    with world.service() as service:
        found = service.verify_now(["users"])["users"]
    assert isinstance(found, Differences) and (found.are_none, found.rows) == (True, 3)
    world.execute("UPDATE users SET phone = 'written here', born = '2002-02-02' WHERE id = 4")
    with world.service() as service:
        found = service.verify_now(["users"])["users"]
    assert isinstance(found, Differences) and found.different == 1


def test_keys_are_masked_in_old_values_too(make_site: MakeSite) -> None:
    world = make_site({"users": {"id": "permute", "phone": "withhold"}})
    source = begin(world)
    ids = {email: id for id, email in world.rows("SELECT id, email FROM users")}
    assert set(ids.values()) != {1, 2, 3}
    source.changes(
        2,
        [
            (20, [update("users", old_keys={"id": 1}, **row(7, "ann@site.org"))]),
            (30, [delete("users", id=3), insert("users", **row(1, "new@site.org"))]),
        ],
        **under(world),
    )
    world.sync()
    assert shown(world) == ("active", "")
    found = {email: id for id, email in world.rows("SELECT id, email FROM users")}
    assert found.keys() == {"ann@site.org", None, "new@site.org"}
    assert found["new@site.org"] == ids["ann@site.org"] and found[None] == ids[None]
    source.changes(3, [(40, [truncate("users")])], **under(world))
    world.sync()
    assert world.rows("SELECT * FROM users") == []


def test_rows_of_a_table_without_a_key_are_found_by_their_masked_values(make_site: MakeSite) -> None:
    world = make_site({"notes": {"text": "token", "n": "permute"}})
    world.execute("CREATE TABLE notes (text text, n int)")
    world.whitelist("notes")
    every = ("text", "n")
    notes = table("notes", "text text", "n integer", key=(), identity="full", identity_columns=every, oid=3)
    first: dict[str, Any] = {"text": "one", "n": 1}
    second: dict[str, Any] = {"text": "two", "n": 1}
    source = Writer(world.archive)
    tables = under(world, USERS, ORDERS, notes)
    source.changes(1, [(10, [insert("notes", **first), insert("notes", **second)])], **tables)
    removed = [delete("notes", **first), update("notes", old_keys=second, **second | {"n": 2})]
    source.changes(2, [(20, removed)], **tables)
    world.sync()
    assert shown(world, "notes")[0] == "partial"
    ((text, n),) = world.rows("SELECT * FROM notes")
    assert text not in ("one", "two") and n != 2

    make_site({"notes": {"text": "withhold"}})
    source.changes(3, [(30, [insert("notes", **first)])], **tables)
    world.sync()
    assert "text: it tells the rows apart" in shown(world, "notes")[1]


def test_a_table_whose_deletes_cascade_is_masked_in_order(make_site: MakeSite) -> None:
    world = make_site({"users": {"id": "permute"}, "orders": {"owner": "permute"}})
    world.execute("ALTER TABLE orders ADD COLUMN owner int REFERENCES users ON DELETE CASCADE")
    world.use_ordinary_role()
    orders = table("orders", "id integer", "buyer text", "owner integer", oid=2)
    source = Writer(world.archive)
    source.changes(
        1,
        [
            (10, [insert("users", **row(1, "a")), insert("orders", id=1, owner=1)]),
            (20, [insert("users", **row(2, "b")), update("orders", id=1, owner=2), delete("users", id=1)]),
        ],
        **under(world, USERS, orders),
    )
    world.sync()
    assert world.rows("SELECT o.id, u.email FROM orders o JOIN users u ON u.id = o.owner") == [(1, "b")]


def test_a_change_of_the_rules_blocks_the_table_until_a_resync(make_site: MakeSite) -> None:
    world = make_site()
    source = begin(world)
    first = emails(world)
    make_site({"users": {"email": "token", "phone": "withhold"}})
    source.changes(2, [(20, [insert("users", **row(4, "eve@site.org"))])], **under(world))
    world.sync()
    state, text = shown(world)
    assert state == "blocked" and "this side's privacy rules for column email have changed" in text
    assert "'python manage.py resync users'" in text
    assert emails(world) == first and shown(world, "orders")[0] == "active"
    with world.service() as service:
        service.resync("users")
    world.sync()
    assert shown(world) == ("active", "")
    assert all("@" not in email for email in emails(world).values() if email)

    # Rules for rows that came without any.
    make_site({"users": {"email": "token", "phone": "withhold"}, "orders": {"buyer": "token"}})
    source.changes(3, [(30, [insert("users", **row(5, "eva@site.org"))])], **under(world))
    world.sync()
    assert shown(world)[0] == "active"
    assert "rules for column buyer have changed" in shown(world, "orders")[1]


def test_bounds_of_a_key_that_is_masked_here_are_kept_nowhere(make_site: MakeSite) -> None:
    world = make_site({"users": {"email": "email"}})
    world.execute("ALTER TABLE users DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (email)")
    published = msgspec.structs.replace(USERS, key=("email",), identity_columns=("email",))
    fields: dict[str, Any] = {"columns": ("email",), "key": ("email",), "rows": 1, "hash": "5", "round": 1}
    bounds: list[dict[str, Any]] = [
        {"upto": ("ann@site.org",)},
        {"keys": (("bob@site.org",),)},
        {"after": ("cid@site.org",)},
    ]
    checks = [
        Check(schema="public", table="users", lsn="0/1E", seen=number, chunk=number, **fields | bound)
        for number, bound in enumerate(bounds, 1)
    ]
    lines = [check_comment(check).decode().rstrip("\n") for check in checks]
    source = Writer(world.archive)
    first = [insert("users", **row(number, f"{name}@site.org")) for number, name in enumerate(("ann", "bob"))]
    source.changes(1, [(20, [*first, *lines])], **under(world, published, ORDERS))
    world.sync()
    with world.service() as service:
        ((info, unequal),) = service.read_verification(["users"])
    assert [check.is_equal for check in unequal] == [None] * 3
    assert "column email of the key is masked by this side's rules" in info.not_comparable
    for name in ("verifications", "checkpoints", "logs", "runs"):
        assert "@site.org" not in str(world.rows(f"SELECT * FROM data_sync_{name}"))


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"id": "withhold"}, "id: it tells the rows apart"),
        ({"email": "fixed"}, None),
        ({"email": {"mask": "fixed", "value": "x"}}, "email: it is part of a unique key"),
        ({"born": "token"}, "born: "),
        ({"emial": "email"}, "emial: there is no such column here"),
        ({"emial": "withhold"}, "column emial, which is on neither side"),
    ],
    ids=[
        "the key is withheld",
        "no rule at all",
        "collisions",
        "type",
        "no such column",
        "none there either",
    ],
)
def test_a_rule_that_cannot_hold_blocks_its_table_alone(
    make_site: MakeSite, rules: dict[str, Any], why: str | None
) -> None:
    world = make_site({"users": rules})
    if why is None:
        with pytest.raises(ConfigError, match="columns.users.email"):
            world.service()
        return
    begin(world)
    state, text = shown(world)
    assert state == "blocked" and why in text
    assert world.rows("SELECT * FROM users") == []
    assert shown(world, "orders") == ("active", "")


def test_a_foreign_key_with_one_masked_end_blocks_the_table_that_has_it(make_site: MakeSite) -> None:
    world = make_site({"users": {"email": "email"}})
    world.execute("ALTER TABLE orders ADD FOREIGN KEY (buyer) REFERENCES users (email)")
    begin(world)
    state, text = shown(world, "orders")
    assert state == "blocked" and "buyer: it refers to" in text
    make_site({"users": {"email": "email"}, "orders": {"buyer": "email"}})
    world.sync()
    assert shown(world, "orders") == ("active", "")
    assert world.value("SELECT count(*) FROM orders JOIN users ON email = buyer") == 1


def test_a_column_that_is_not_here_is_left_out_only_where_a_rule_withholds_it(make_site: MakeSite) -> None:
    world = make_site({"users": {"phone": "withhold"}})
    world.execute("ALTER TABLE users DROP COLUMN phone, DROP COLUMN born")
    begin(world)
    state, text = shown(world)
    assert state == "blocked" and "a column 'born' that the table lacks" in text
    world.execute("ALTER TABLE users ADD COLUMN born date")
    world.sync()
    assert shown(world) == ("active", "")
    assert emails(world) == {1: "ann@site.org", 2: None, 3: "bob@site.org"}


def test_a_withheld_column_that_must_have_a_value_blocks_with_the_statement(make_site: MakeSite) -> None:
    world = make_site()
    world.execute("ALTER TABLE users ALTER COLUMN phone SET NOT NULL")
    begin(world)
    state, text = shown(world)
    assert state == "blocked" and "column phone is withheld by this side's rules" in text
    world.execute("ALTER TABLE users ALTER COLUMN phone SET DEFAULT '-'")
    world.sync()
    assert shown(world) == ("active", "")
    assert world.rows("SELECT DISTINCT phone FROM users") == [("-",)]


def test_a_table_with_rules_needs_an_archive_with_catalogs(make_site: MakeSite) -> None:
    world = make_site()
    world.write("changes_20260205_103000.json", [insert("users", **row(1, "ann@site.org"))])
    world.sync()
    state, text = shown(world)
    assert state == "blocked" and "the archive does not say what its columns are" in text
    assert world.rows("SELECT * FROM users") == []


def test_what_this_side_masks_is_listed(make_site: MakeSite) -> None:
    world = make_site()
    begin(world)
    with world.service() as service:
        (info,) = [info for info in service.list_tables() if info.table_name == "users"]
        privacy = service.get_status().privacy
    assert [str(one) for one in info.privacy or ()] == ["email (email here)", "phone (withheld here)"]
    assert privacy == "2 columns of 1 table are masked or withheld by the rules of this side"


def test_without_the_key_nothing_comes_in(make_site: MakeSite) -> None:
    world = make_site()
    Path(world.options["privacy"]["key_file"]).unlink()
    with pytest.raises(ConfigError, match="mask.key"):
        begin(world)
    assert world.rows("SELECT * FROM users") == []
