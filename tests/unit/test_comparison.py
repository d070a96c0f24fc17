from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from syncdata.apply.plan.comparison import plan_comparison
from syncdata.apply.plan.local_rules import ColumnRule, LocalRules
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.state.marks import differs, is_of_check
from syncdata.changes.names import TableName
from syncdata.changes.verification import Check
from tests.catalogs import column, table

USERS = TableName("public", "users")


def here(sql_type: str, *, kind: str = "plain", **options: object) -> TableSchema:
    only = Column(name="a", sql_type=sql_type, type=ColumnType(kind=kind), **options)  # type: ignore[arg-type]
    return TableSchema(name=USERS, oid=1, columns=(only,), key=("a",))


def check(**options: object) -> Check:
    fields = {"columns": ("a",), "rows": 1, "hash": "5", "lsn": "0/1", "round": 1, "chunk": 1, "seen": 1}
    return Check(schema="public", table="users", **fields | options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "local", "options"),
    [
        ("integer", "integer", {}),
        ("smallint", "bigint", {}),
        ("bigint[]", "integer[]", {}),
        ("integer", "numeric", {}),
        ("numeric(10,2)", "numeric", {}),
        ("numeric(10,2)[]", "numeric(10,2)[]", {}),
        ("character varying(5)", "text", {}),
        ("text", "character varying(9)", {}),
        ("text", "citext", {}),
        ("real", "text", {}),
        ("integer[]", "text", {}),
        ("character(3)", "character(3)", {}),
        ("character(3)", "text", {}),
        ("jsonb", "json", {}),
        ("bit(3)", "bit(3)", {}),
        ("timestamp(3) without time zone", "timestamp without time zone", {}),
        ("public.mood", "mood", {"is_enum": True}),
        ("text", "mood", {"is_enum": True}),
        ('"char"', '"char"', {}),
    ],
)
def test_types_that_spell_a_value_alike_are_compared(
    there: str, local: str, options: dict[str, object]
) -> None:
    found = plan_comparison(check(), table("users", f"a {there}"), here(local, **options))  # type: ignore[arg-type]
    assert [(c.name, c.scale) for c in found.columns] == [("a", None)]
    assert (found.problem, found.unhashed) == ("", "")


@pytest.mark.parametrize(
    ("there", "local", "scale"),
    [
        ("numeric(10,1)", "numeric(10,2)", 1),
        ("numeric(10,2)", "numeric(12,2)", 2),
        ("numeric(5)", "numeric(10,2)", 0),
        ("integer", "numeric(10,2)", 0),
    ],
)
def test_a_number_has_the_digits_that_production_gives_it(there: str, local: str, scale: int) -> None:
    found = plan_comparison(check(), table("users", f"a {there}"), here(local))
    assert [(c.name, c.scale) for c in found.columns] == [("a", scale)]


@pytest.mark.parametrize(
    ("there", "local", "options"),
    [
        ("real", "double precision", {}),
        ("numeric", "numeric(10,2)", {}),
        ("numeric(10,1)[]", "numeric(10,2)[]", {}),
        ("numeric", "double precision", {}),
        ("character(3)", "character(5)", {}),
        ("text", "character(5)", {}),
        ("date", "timestamp without time zone", {}),
        ("regclass", "regclass", {}),
        ("json", "jsonb", {}),
        ("integer", "integer[]", {}),
        ("bit(3)", "bit varying", {}),
        ('"char"', '"char"', {"kind": "byte"}),
        ("integer", "integer", {"is_generated": True}),
    ],
)
def test_where_a_value_may_be_spelled_otherwise_only_the_number_is_compared(
    there: str, local: str, options: dict[str, object]
) -> None:
    found = plan_comparison(check(), table("users", f"a {there}"), here(local, **options))  # type: ignore[arg-type]
    assert found.columns == ()
    assert "column a" in found.unhashed
    assert found.problem == ""


@pytest.mark.parametrize("is_array", [False, True])
def test_another_text_of_a_composite_is_in_doubt(is_array: bool) -> None:
    kind = ColumnType(kind="composite", fields=(("n", ColumnType()),))
    element = ColumnType(kind="array", element=kind) if is_array else kind
    only = Column(name="a", sql_type="pair[]" if is_array else "pair", type=element)
    there = "public.pair[]" if is_array else "public.pair"
    schema = TableSchema(name=USERS, oid=1, columns=(only,), key=("a",))
    found = plan_comparison(check(), table("users", f"a {there}"), schema)
    assert [c.name for c in found.columns] == ["a"] and "column a" in found.doubt
    assert plan_comparison(check(), table("users", "a integer"), here("integer")).doubt == ""


def test_a_column_that_is_on_one_side_only_is_named() -> None:
    found = plan_comparison(check(columns=("a", "b")), table("users", "a integer"), here("integer"))
    assert found.unhashed == "production's catalog has no column b"
    found = plan_comparison(
        check(columns=("a", "b")), table("users", "a integer", "b integer"), here("integer")
    )
    assert found.unhashed == "there is no column b here"


@pytest.mark.parametrize(
    ("there", "local", "read_as"),
    [
        ("integer", "bigint", "bigint"),
        ("bigint", "integer", "bigint"),
        ("text", "character varying(5)", "text"),
        ("uuid", "uuid", "uuid"),
        ("numeric(10,2)", "numeric", "numeric"),
    ],
)
def test_keys_of_one_order_have_bounds(there: str, local: str, read_as: str) -> None:
    bounded = check(key=("a",), after=("1",))
    found = plan_comparison(bounded, table("users", f"a {there}"), here(local))
    assert [(c.name, c.sql_type, c.is_text) for c in found.key] == [("a", read_as, read_as == "text")]


@pytest.mark.parametrize(
    ("there", "local"),
    [("integer", "text"), ("integer", "numeric"), ("mood", "mood"), ("integer[]", "integer[]")],
)
def test_keys_of_another_order_have_none(there: str, local: str) -> None:
    found = plan_comparison(check(key=("a",), upto=("1",)), table("users", f"a {there}"), here(local))
    assert "column a of the key" in found.problem


def test_a_listed_key_needs_no_order() -> None:
    listed = check(key=("a",), keys=(("sad",),))
    assert plan_comparison(listed, table("users", "a mood"), here("mood", is_enum=True)).problem == ""
    other = plan_comparison(listed, table("users", "a integer"), here("text"))
    assert "column a of the key" in other.problem


def test_a_key_that_is_not_here_has_no_bounds() -> None:
    bounded = check(key=("b",), after=("1",))
    found = plan_comparison(bounded, table("users", "a integer", "b integer"), here("integer"))
    assert found.problem == "column b of the key is not on both sides"


def test_a_number_alone_needs_no_columns() -> None:
    found = plan_comparison(
        check(hash=None, columns=("gone",)), table("users", column("a", "real", number=1)), here("text")
    )
    assert (found.columns, found.problem, found.unhashed) == ((), "", "")


def test_a_mark_of_a_check_says_what_differs_and_in_how_many_places() -> None:
    one, two, three = (differs(USERS, "id up to 9", "5 there, 4 here", others=n) for n in range(3))
    assert one.text == "rows are not production's: 5 there, 4 here, in id up to 9"
    assert two.text == f"{one.text}; and so in 1 more place"
    assert three.text == f"{one.text}; and so in 2 more places"
    assert "resync users" in one.hint
    assert is_of_check(one)


def masked(key: str = "") -> object:
    columns = (
        column("a", "text", number=1, privacy=key, privacy_id=key),
        column("email", "text", number=2, privacy="email", privacy_id="e"),
        column("phone", "text", number=3, privacy="withheld"),
        column("node", "regclass", number=4),
    )
    return table("users", *columns, column_list=("a", "email", "node"))


def test_what_a_hash_is_without_is_named_by_the_reason() -> None:
    whole = check(key=("a",), left_out=("email", "node", "phone"))
    found = plan_comparison(whole, masked(), here("text"))  # type: ignore[arg-type]
    assert found.left_out == (
        "without email, masked by production's privacy policy;"
        " without node, whose text means something at production only;"
        " without phone, withheld by production's privacy policy"
    )
    assert [c.name for c in found.columns] == ["a"]


def test_a_masked_key_is_compared_by_its_values_alone() -> None:
    published = masked("token")
    bounds = check(columns=(), key=("a",), after=("a",), left_out=("a", "email"))
    found = plan_comparison(bounds, published, here("text"))  # type: ignore[arg-type]
    assert "column a of the key is masked in production" in found.problem
    listed = check(columns=(), key=("a",), keys=(("tok1",),), left_out=("a", "email"))
    found = plan_comparison(listed, published, here("text"))  # type: ignore[arg-type]
    assert (found.problem, [c.name for c in found.key]) == ("", ["a"])


def test_what_this_side_masks_is_not_compared() -> None:
    class Nothing:
        def row_mask(self, columns: Sequence[str], /) -> None:
            return None

    rules = LocalRules(columns=(ColumnRule("a", "token", "1"),), masking=Nothing())
    ruled = replace(here("text"), rules=rules)
    whole, published = check(key=()), table("users", "a text")
    assert plan_comparison(whole, published, ruled).unhashed == "column a is masked by this side's rules"
    bounds = check(key=("a",), after=("a",))
    assert "column a of the key is masked by this side's rules" in (
        plan_comparison(bounds, published, ruled).problem
    )
