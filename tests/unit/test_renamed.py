"""Which columns do not travel as they are because of the name that they had."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from syncdata.capture.protection import judge
from syncdata.capture.published import Look, SeenColumn, SeenTable
from syncdata.capture.renamed import (
    HeldColumn,
    HiddenTable,
    doubtful_names,
    held_by_table,
    held_columns,
    hidden_tables,
    hold,
    names_of,
)
from syncdata.changes.catalog import Catalog, Column, Partition, PublishedTable
from syncdata.changes.names import TableName
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import TableVerdict, parse_policy

USERS = TableName("public", "users")


def before(**privacy: str) -> Catalog:
    """`users` as it was: its columns by name, numbered from 1, each with the kind of its rule."""
    columns = tuple(
        Column(name=name, number=number, type="text", privacy=kind)
        for number, (name, kind) in enumerate(privacy.items(), start=1)
    )
    table = PublishedTable(schema="public", name="users", oid=7, columns=columns)
    return Catalog(version=1, publication="p", tables=(table,))


def now(**numbers: int) -> Look:
    columns: list[SeenColumn] = []
    for name, number in numbers.items():
        values: dict[str, Any] = dict.fromkeys(("generated", "identity", "older"), "")
        values |= dict.fromkeys(("not_null", "has_missing", "has_default", "default_varies"), False)
        columns.append(
            SeenColumn(
                name=name,
                number=number,
                type="text",
                type_oid=25,
                modifier=-1,
                changed="1",
                is_sent=True,
                **values,
            )
        )
    table = SeenTable(
        schema="public",
        name="users",
        oid=7,
        kind="r",
        storage=1,
        identity="d",
        key=("id",),
        identity_columns=("id",),
        row_filter=None,
        column_list=None,
        columns=tuple(columns),
        leaves=(),
    )
    return Look(publication="p", lsn=1, xmin="1", tables=(table,))


OF_EMAIL = HeldColumn(oid=7, number=2, was="email")


@pytest.mark.parametrize(
    ("look", "held"),
    [
        (now(id=1, email=2, city=3), ()),
        (now(id=1, mail=2, city=3), (OF_EMAIL,)),
        (now(id=1, city=2), (OF_EMAIL,)),
        (now(id=1, city=2, email=3), (OF_EMAIL,)),
        # What travels as it is may have any name.
        (now(id=1, email=2, town=3), ()),
        # Another column, that of the name is gone.
        (now(id=1, email=4), ()),
    ],
)
def test_a_column_is_held_that_had_a_rule_under_another_name(
    look: Look, held: tuple[HeldColumn, ...]
) -> None:
    assert held_columns(before(id="", email="email", city=""), (), look) == held


def test_a_held_column_stays_held_until_it_is_gone() -> None:
    withheld = before(id="", city="withheld")

    assert held_columns(withheld, (OF_EMAIL,), now(id=1, city=2)) == (OF_EMAIL,)
    assert held_columns(withheld, (OF_EMAIL,), now(id=1, town=2)) == (OF_EMAIL,)
    assert held_columns(withheld, (OF_EMAIL,), now(id=1)) == ()


def _verdict(rules: dict[str, Any], look: Look, *held: HeldColumn) -> TableVerdict:
    policy, problems = parse_policy({"users": rules}, key=MaskKey(bytes(32)))
    assert problems == ()
    return judge(look, policy, held)[USERS]


def test_what_is_held_is_withheld_and_said() -> None:
    verdict = _verdict({"id": "keep", "city": "keep"}, now(id=1, city=2), OF_EMAIL)

    mask = verdict.row_mask(("id", "city"))
    assert mask is not None and mask.sent == ("id",)
    (problem,) = verdict.problems
    assert problem.startswith("city: it was called email")


@pytest.mark.parametrize("rule", ["token", "email", "withhold", "null"])
def test_a_mask_that_shows_nothing_may_have_any_name(rule: str) -> None:
    verdict = _verdict({"id": "keep", "city": rule}, now(id=1, city=2), OF_EMAIL)

    assert verdict.problems == ()


def test_a_held_key_withholds_its_table() -> None:
    held = HeldColumn(oid=7, number=1, was="email")

    assert _verdict({"id": "keep"}, now(id=1), held).is_withheld
    plain = _verdict({"id": "keep"}, now(id=1))
    assert not plain.is_withheld and hold(plain, {}, ("id",)) == plain


def test_names_that_the_stream_describes_in_another_order_may_be_any_column() -> None:
    def columns(**numbers: int) -> list[Column]:
        return [Column(name=name, number=number, type="text") for name, number in numbers.items()]

    assert names_of((OF_EMAIL,), 7, columns(id=1, city=2)) == {"city": "email"}
    assert names_of((OF_EMAIL,), 7, columns(id=1, city=3, x=2)) == dict.fromkeys(("id", "city", "x"), "email")
    assert names_of((OF_EMAIL,), 7, columns(id=1, x=0)) == dict.fromkeys(("id", "x"), "email")
    assert names_of((OF_EMAIL,), 8, columns(id=1, x=0)) == {}


def test_held_columns_are_told_by_table() -> None:
    assert held_by_table((OF_EMAIL,), now(id=1, city=2)) == {USERS: {"city": "email"}}
    assert held_by_table((), now(id=1, city=2)) == {}


def called(name: str, look: Look, oid: int = 7) -> Look:
    table = msgspec.structs.replace(look.tables[0], name=name, oid=oid)
    return msgspec.structs.replace(look, tables=(table,))


def test_a_column_is_held_whose_table_has_another_name() -> None:
    known, look = before(id="", email="email"), now(id=1, email=2, city=3)

    (held,) = held_columns(known, (), called("members", look))

    assert held == HeldColumn(oid=7, number=2, was="users.email")
    assert held_columns(known, (held,), look) == (held,)
    assert held_columns(known, (), called("members", look, oid=8)) == ()


def test_a_generated_column_that_is_a_plain_one_is_held_beside_masked_ones() -> None:
    def generated(**privacy: str) -> Catalog:
        catalog = before(**privacy, own="")
        *columns, own = catalog.tables[0].columns
        own = msgspec.structs.replace(own, generated="stored")
        return msgspec.structs.replace(
            catalog, tables=(msgspec.structs.replace(catalog.tables[0], columns=(*columns, own)),)
        )

    look = now(id=1, email=2, own=3)
    (held,) = held_columns(generated(id="", email="email"), (), look)
    assert held == HeldColumn(oid=7, number=3, was="own, a generated column")
    assert held_columns(generated(id="", email=""), (), look) == ()


def test_a_partition_by_itself_is_held_by_the_names_of_its_root() -> None:
    known = before(id="", email="email")
    leaf = Partition(schema="public", name="users_1", oid=9, storage=1)
    known = msgspec.structs.replace(
        known, tables=(msgspec.structs.replace(known.tables[0], partitions=(leaf,)),)
    )
    look = called("users_1", now(email=1, id=2), oid=9)
    assert held_columns(known, (), look) == (HeldColumn(oid=9, number=1, was="users.email"),)


def test_a_table_that_is_withheld_is_known_by_what_it_was() -> None:
    nothing, look = Catalog(version=1, publication="p", tables=()), now(number=1, email=2)
    hidden = hidden_tables(before(id="", email="email"), (), look, {USERS})

    assert hidden == (HiddenTable(7, USERS, {2: "email"}),)
    assert hidden_tables(nothing, hidden, look, {USERS}) == hidden
    assert hidden_tables(nothing, hidden, look, ()) == ()
    assert held_columns(nothing, (), now(id=1, email=2), hidden) == ()
    assert held_columns(nothing, (), now(id=1, city=2), hidden) == (OF_EMAIL,)
    # And one that never travelled, by its name alone.
    (unnamed,) = hidden_tables(nothing, (), look, {USERS})
    assert held_columns(nothing, (), now(id=1, city=2), (unnamed,)) == ()
    assert [one.number for one in held_columns(nothing, (), called("items", look), (unnamed,))] == [1, 2]


def test_names_in_another_order_than_the_last_look_has_may_be_a_masked_one() -> None:
    (known,) = before(id="", email="email", city="").tables

    def doubtful(entry: PublishedTable, **numbers: int) -> dict[str, str]:
        columns = [Column(name=name, number=number, type="text") for name, number in numbers.items()]
        return doubtful_names((), entry, columns, known)

    assert doubtful(known, id=1, email=2, city=3) == {}
    # A column that has gone since, or has come, is no sign of a swap.
    assert doubtful(known, id=1, old=0, email=2) == {}
    assert doubtful(known, id=1, city=3, email=2) == dict.fromkeys(("id", "city", "email"), "email")
    members = msgspec.structs.replace(known, name="members")
    assert doubtful(members, id=1, email=2, city=3) == {"email": "email"}
    assert doubtful_names((), members, known.columns, None) == {}
