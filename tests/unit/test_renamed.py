"""Which columns do not travel as they are because of the name that they had."""

from __future__ import annotations

from typing import Any

import pytest

from syncdata.capture.protection import judge
from syncdata.capture.published import Look, SeenColumn, SeenTable
from syncdata.capture.renamed import HeldColumn, held_by_table, held_columns, hold, names_of
from syncdata.changes.catalog import Catalog, Column, PublishedTable
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
