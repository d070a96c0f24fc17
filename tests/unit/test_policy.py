"""What a policy makes of the tables that are there: what travels, what cannot hold, what a migration does."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET

from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, Reference, TableFacts
from syncdata.privacy.policy import Policy, TableVerdict, parse_policy
from syncdata.privacy.rules import parse_rule
from tests.policies import KEY, OTHER_KEY, judged, policy, table

Rules = dict[str, dict[str, object]]

USERS = table(
    "users",
    {
        "id": "bigint",
        "email": "text",
        "name": "text",
        "born": "date",
        "notes": "text",
        "profile": "jsonb",
        "code": "character varying(10)",
    },
    uniques=(("email",),),
    not_null=("name",),
)


def rules(verdict: TableVerdict) -> dict[str, str]:
    return {column.column: column.rule for column in verdict.columns}


def problem(rule: object, column: str = "email", facts: TableFacts = USERS) -> str:
    """Return the one problem that *rule* for *column* is; empty where it is none."""
    verdict = judged(facts, {"id": "keep", column: rule}) if column != "id" else judged(facts, {"id": rule})
    assert len(verdict.problems) <= 1
    return verdict.problems[0] if verdict.problems else ""


# What no rule names


def test_what_no_rule_names_is_withheld() -> None:
    verdict = judged(USERS, {"id": "keep", "email": "email"})
    assert [column for column, rule in rules(verdict).items() if rule != "withhold"] == ["id", "email"]
    row_mask = verdict.row_mask(("id", "email", "name"))
    assert row_mask is not None
    assert row_mask.sent == ("id", "email")
    assert row_mask.row(["1", None, "Ada"]) == ["1", None, UNSET]
    assert row_mask.keys({"id": "1", "name": "Ada"}) == {"id": "1"}


def test_a_table_that_no_rule_names_is_withheld() -> None:
    verdict = policy({"orders": {"id": "keep"}}).judge([USERS])[USERS.table]
    assert verdict.is_withheld
    assert not verdict.problems
    row_mask = verdict.row_mask(("id", "email"))
    assert row_mask is not None
    assert row_mask.sent == ()
    assert row_mask.row(["1", "a"]) == [UNSET, UNSET]


def test_unnamed_columns_and_tables_may_be_kept() -> None:
    verdict = policy({}, unnamed="keep").judge([USERS])[USERS.table]
    assert not verdict.is_withheld
    assert verdict.row_mask(("id", "email")) is None
    assert not any(column.is_named for column in verdict.columns)


def test_unnamed_columns_may_halt() -> None:
    verdict = judged(USERS, {"id": "keep", "email": "email"}, unnamed="halt")
    assert verdict.halts == "no rule names name, born, notes, profile, code"
    assert not policy({}, unnamed="halt").judge([USERS])[USERS.table].problems
    everything = dict.fromkeys(rules(verdict), "keep")
    assert not judged(USERS, everything, unnamed="halt").halts
    assert policy({}, unnamed="halt").judge([USERS])[USERS.table].halts


def test_a_column_that_came_after_the_judgement_is_withheld() -> None:
    """A peer let columns through that a migration added in mid-stream."""
    row_mask = judged(USERS, {"id": "keep"}, unnamed="keep").row_mask(("id", "added"))
    assert row_mask is not None
    assert row_mask.row(["1", "secret"]) == ["1", UNSET]


def test_a_renamed_column_is_withheld_though_unnamed_ones_are_kept() -> None:
    renamed = msgspec.structs.replace(
        USERS,
        columns=tuple(
            msgspec.structs.replace(column, name="mail") if column.name == "email" else column
            for column in USERS.columns
        ),
    )
    verdict = judged(renamed, {"id": "keep", "name": "name", "email": "email"}, unnamed="keep")
    assert rules(verdict)["mail"] == "withhold"
    assert verdict.problems == ("email: a rule, but no such column",)
    kept = judged(renamed, {"id": "keep", "name": "name", "email": "keep"}, unnamed="keep")
    assert rules(kept)["mail"] == "keep"
    assert not kept.problems


def test_a_rule_for_a_column_that_is_gone_is_noted() -> None:
    verdict = judged(USERS, {"id": "keep", "gone": "email"})
    assert verdict.notes[0] == "gone: a rule, but no such column"
    assert not verdict.problems


# What cannot hold


@pytest.mark.parametrize(
    "mask", ["keep", "token", "email", "seal", {"mask": "tests.unit.test_masks:tagged", "distinct": True}]
)
def test_masks_that_keep_values_apart_are_for_unique_columns(mask: object) -> None:
    assert not problem(mask)


@pytest.mark.parametrize(
    "mask", ["name", "partial", {"mask": "fixed", "value": "!"}, "null", "tests.unit.test_masks:tagged"]
)
def test_masks_that_can_make_values_equal_are_not_for_unique_columns(mask: object) -> None:
    """Peers broke unique keys, after hours."""
    assert "part of a unique key" in problem(mask)
    spelled = {"mask": mask} if isinstance(mask, str) else mask
    assert not problem({**spelled, "allow_collisions": True})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"mask": "token", "allow_collisions": "yes"}, "allow_collisions is true or false"),
        ({"mask": "partial", "keep_end": "two"}, "keep_end is a whole number"),
        ({"mask": "token", "domain": 5}, "domain is a text"),
    ],
)
def test_an_option_of_another_kind_is_told_in_plain_words(rule: object, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rule(rule)
    assert str(caught.value) == told


def test_null_is_not_for_a_column_that_is_not_null() -> None:
    assert problem("null", "name") == "name: null cannot be, for the column is NOT NULL"
    assert problem({"mask": "null", "allow_collisions": True}, "name")
    assert not problem("null", "notes")


@pytest.mark.parametrize(
    "rule", ["withhold", "null", {"mask": "fixed", "value": 1, "allow_collisions": True}]
)
def test_what_tells_rows_apart_must_travel(rule: object) -> None:
    verdict = judged(USERS, {"id": rule})
    assert verdict.is_withheld
    assert verdict.problems
    assert judged(USERS, {"email": "email"}).is_withheld


@pytest.mark.parametrize(
    ("rule", "column", "why"),
    [
        ("email", "born", "email is for texts, not for date"),
        ("token", "id", "token is for texts, not for bigint"),
        ("permute", "name", "permute is for whole numbers, not for text"),
        ("token", "code", "6 characters too short for token"),
        ("seal", "code", "longer than what it seals"),
        ("json", "notes", "json is for documents, not for text"),
        ({"mask": "shift", "by": "id"}, "notes", "shift is for dates and times, not for text"),
        ({"mask": "shift", "by": "email"}, "born", "'email' is no column of the primary key"),
        ({"mask": "fixed", "value": "longer than ten"}, "code", "longer than the column's 10 characters"),
        ({"mask": "fixed", "value": "x"}, "born", "none of the type date"),
        ({"mask": "fixed", "value": "{"}, "profile", "no JSON"),
        (
            {"mask": "json", "paths": {"a": "tests.policies:nothing"}},
            "profile",
            "path 'a': tests.policies:nothing",
        ),
    ],
)
def test_a_mask_that_does_not_fit_its_column_is_a_problem(rule: object, column: str, why: str) -> None:
    assert why in problem(rule, column)


def test_without_a_key_only_masks_that_need_none_can_be() -> None:
    verdict = judged(USERS, {"id": "keep", "email": "email", "notes": "null"}, key=None)
    assert verdict.problems == ("email: email needs a key: name a key_file",)
    assert rules(verdict)["notes"] == "null"


def test_a_problem_withholds_its_column_and_says_so() -> None:
    verdict = judged(USERS, {"id": "keep", "born": "email"})
    (born,) = (column for column in verdict.columns if column.column == "born")
    assert (born.rule, born.privacy, born.id) == ("withhold", "withheld", "")
    assert born.why == born.problem


def test_a_retyped_column_is_withheld() -> None:
    retyped = table("users", {"id": "bigint", "email": "integer"})
    assert rules(judged(retyped, {"id": "keep", "email": "email"})) == {"id": "keep", "email": "withhold"}


# Foreign keys

PEOPLE = table(
    "people",
    {"email": "character varying(100)", "boss": "character varying(100)"},
    key="email",
    references={"boss": ("people", "email")},
)
ORDERS = table("shop.orders", {"id": "bigint", "buyer": "text"}, references={"buyer": ("people", "email")})
LINES = table("lines", {"id": "bigint", "buyer": "text"}, references={"buyer": ("shop.orders", "buyer")})


def test_columns_that_foreign_keys_tie_together_have_one_mask() -> None:
    """A peer masked both ends of a foreign key, each in its own way."""
    columns = {
        "people": {"email": "email", "boss": "email"},
        "shop.orders": {"id": "keep", "buyer": "email"},
        "lines": {"id": "keep", "buyer": "email"},
    }
    verdicts = policy(columns).judge([LINES, ORDERS, PEOPLE])
    assert not any(verdict.problems for verdict in verdicts.values())
    masks = [verdicts[facts.table].row_mask(("email", "boss", "buyer")) for facts in (PEOPLE, ORDERS, LINES)]
    masked = [value for mask in masks if mask for value in mask.row(["a@b", "a@b", "a@b"])]
    assert len({value for value in masked if value is not UNSET}) == 1
    assert len([value for value in masked if value is not UNSET]) == 4


def test_a_foreign_key_with_another_mask_at_its_other_end_is_a_problem() -> None:
    columns: Rules = {"people": {"email": "email"}, "shop.orders": {"id": "keep", "buyer": "token"}}
    verdict = policy(columns).judge([PEOPLE, ORDERS])[ORDERS.table]
    assert verdict.problems == ("buyer: it refers to people.email, which has another mask: email, not token",)
    columns["shop.orders"]["buyer"] = "keep"
    assert policy(columns).judge([PEOPLE, ORDERS])[ORDERS.table].problems
    loose: Rules = {
        "people": {"email": "email"},
        "shop.orders": {"id": "keep", "buyer": {"mask": "token", "allow_collisions": True}},
    }
    assert not policy(loose).judge([PEOPLE, ORDERS])[ORDERS.table].problems


def test_a_domain_at_one_end_of_a_foreign_key_is_a_problem() -> None:
    columns: Rules = {
        "people": {"email": "email"},
        "shop.orders": {"id": "keep", "buyer": {"mask": "email", "domain": "x"}},
    }
    verdict = policy(columns).judge([PEOPLE, ORDERS])[ORDERS.table]
    assert verdict.problems == ("buyer: it refers to people.email, whose email has other options",)


def test_an_end_that_is_withheld_troubles_no_other() -> None:
    columns: Rules = {"shop.orders": {"id": "keep", "buyer": "token"}}
    assert not policy(columns).judge([PEOPLE, ORDERS])[ORDERS.table].problems


def test_foreign_keys_may_go_round_in_a_circle() -> None:
    a = table("a", {"id": "text", "b": "text"}, references={"b": ("b", "id"), "id": ("b", "a")})
    b = table("b", {"id": "text", "a": "text"}, references={"a": ("a", "id"), "id": ("a", "b")})
    columns = {"a": {"id": "token", "b": "token"}, "b": {"id": "token", "a": "token"}}
    for tables in ([a, b], [b, a]):
        verdicts = policy(columns).judge(tables)
        assert not any(verdict.problems for verdict in verdicts.values())
        ids = [{column.column: column.id for column in verdict.columns} for verdict in verdicts.values()]
        assert all(ids)


def test_the_order_of_tables_and_foreign_keys_decides_nothing() -> None:
    child = table("child", {"id": "text"}, references={"id": ("a", "id")})
    both = msgspec.structs.replace(
        child, references=(*child.references, Reference(("id",), TableName("public", "b"), ("id",)))
    )
    turned = msgspec.structs.replace(both, references=both.references[::-1])
    a, b = table("a", {"id": "text"}), table("b", {"id": "text"})
    made = policy({name: {"id": "token"} for name in ("a", "b", "child")})
    first, second = made.judge([both, a, b]), made.judge([b, a, turned])
    assert first[child.table].columns[0].id == second[child.table].columns[0].id
    assert not first[child.table].problems


def test_integers_of_all_sizes_meet_over_a_foreign_key() -> None:
    a, b = (
        table("a", {"id": "bigint"}),
        table("b", {"id": "integer", "a": "integer"}, references={"a": ("a", "id")}),
    )
    verdicts = policy({"a": {"id": "permute"}, "b": {"id": "keep", "a": "permute"}}).judge([a, b])
    assert not any(verdict.problems for verdict in verdicts.values())


def test_dates_move_alike_in_all_tables_of_a_person() -> None:
    visits = table("visits", {"id": "bigint", "born": "date"}, references={"id": ("users", "id")})
    shift = {"mask": "shift", "by": "id"}
    verdicts = policy(
        {"users": {"id": "keep", "born": shift}, "visits": {"id": "keep", "born": shift}}
    ).judge([USERS, visits])
    rows = [verdict.row_mask(("id", "born")).row(["7", "2000-01-01"]) for verdict in verdicts.values()]  # type: ignore[union-attr]
    assert rows[0] == rows[1] != ["7", "2000-01-01"]


# Generated columns


def generated(derives_from: tuple[str, ...] | None) -> TableFacts:
    made = ColumnFacts("made", "text", is_generated=True, derives_from=derives_from)
    return msgspec.structs.replace(USERS, columns=(*USERS.columns, made))


@pytest.mark.parametrize(
    ("derives_from", "rule"),
    [(("id",), "keep"), (("id", "email"), "withhold"), (("name",), "withhold"), (None, "withhold")],
)
def test_a_generated_column_says_no_more_than_what_it_is_made_of(
    derives_from: tuple[str, ...] | None, rule: str
) -> None:
    for stated in ({}, {"made": "keep"}):
        verdict = judged(generated(derives_from), {"id": "keep", "email": "email", **stated})
        assert rules(verdict)["made"] == rule
        assert not verdict.problems
    assert judged(generated(derives_from), {"id": "keep", "made": "token"}).problems


# Rows


def test_null_stays_null_but_where_the_mask_is_for_it_and_what_is_absent_stays_absent() -> None:
    fixed = {"mask": "fixed", "value": "-"}
    row_mask = judged(
        USERS,
        {
            "id": "keep",
            "email": "email",
            "name": fixed,
            "born": {"mask": "shift", "by": "id"},
            "notes": "null",
        },
    ).row_mask(("id", "email", "name", "born", "notes"))
    assert row_mask is not None
    assert row_mask.row(["1", None, None, None, "x"]) == ["1", None, "-", None, None]
    assert row_mask.row(["1", UNSET, UNSET, UNSET, UNSET]) == ["1", UNSET, UNSET, UNSET, UNSET]
    assert row_mask.rows([]) == []


def test_a_date_whose_companion_is_absent_goes_out_as_another() -> None:
    row_mask = judged(USERS, {"id": "keep", "born": {"mask": "shift", "by": "id"}}).row_mask(("born",))
    assert row_mask is not None
    assert row_mask.row(["2000-01-01"]) == [None]
    assert row_mask.unmasked == {"born": 1}


def test_a_table_whose_columns_all_go_as_they_are_has_no_row_mask() -> None:
    assert judged(USERS, dict.fromkeys(rules(judged(USERS, {})), "keep")).row_mask(("id", "email")) is None


# Ids


def test_the_same_function_has_the_same_id_and_another_one_another() -> None:
    def id_of(rule: object, kind: str = "text", key: object = KEY, name: str = "t") -> str:
        facts = table(name, {"id": "bigint", "v": kind})
        return judged(facts, {"id": "keep", "v": rule}, key=key).columns[1].id  # type: ignore[arg-type]

    same = [
        id_of("token"),
        id_of("token", "character varying(50)"),
        id_of({"mask": "token", "domain": "t.v"}),
        id_of({"mask": "token", "domain": "t.v"}, name="u"),
    ]
    assert len({*same}) == 1
    others = [
        *(id_of(rule) for rule in ("email", "partial", "name", "city", "null")),
        *(id_of({"mask": "fixed", "value": value}) for value in ("a", "b")),
        *(id_of("token", kind) for kind in ("character varying(20)", "uuid", "citext")),
        id_of("token", key=OTHER_KEY),
        id_of("token", name="u"),
        id_of({"mask": "partial", "keep_end": 1}),
        *(id_of({"mask": "json", "paths": {path: "token"}}, "json") for path in ("a", "b")),
        id_of({"mask": "json", "paths": {"a": "token"}, "unnamed": "keep"}, "json"),
    ]
    assert len({*others, same[0]}) == len(others) + 1
    assert id_of("keep") == ""


def test_the_id_of_a_policy_changes_with_all_that_decides_what_leaves() -> None:
    columns = {TableName("public", "t"): {"a": parse_rule("token")}}
    policies = [
        Policy(columns, key=KEY),
        Policy(columns, key=OTHER_KEY),
        Policy(columns, key=KEY, unnamed="keep"),
        Policy(columns, key=KEY, rows={TableName("public", "t"): "a > 1"}),
        Policy({}, key=KEY),
        Policy({}),
    ]
    assert len({one.id for one in policies}) == len(policies)
    assert Policy(columns, key=KEY, takes_snapshots=True).id == policies[0].id


# The configuration


def test_all_that_is_wrong_is_said_at_once_and_where() -> None:
    _, problems = parse_policy(
        {
            "users": {"id": "kep", "email": {"mask": "email", "keep_end": 1}, "name": 7, "ok": "keep"},
            "a.b.c": {"id": "keep"},
            "public.users": {},
            "hr": "keep",
        },
        rows={"orders": "", "a..b": "x", "users": "a", "public.users": "b"},
        unnamed="drop",
        key=KEY,
    )
    wrong = ["users.id", "users.email", "users.name", "a.b.c", "public.users", "hr"]
    assert [key for key, _ in problems] == [
        *(f"columns.{key}" for key in wrong),
        "rows.orders",
        "rows.a..b",
        "rows.public.users",
        "unnamed",
    ]
    assert problems[0][1].startswith("there is no mask 'kep': it is one of keep, ")
    assert problems[1][1] == "email has no option 'keep_end': it takes domain"


@pytest.mark.parametrize(
    "rule",
    [
        None,
        {},
        {"mask": 1},
        "shift",
        "fixed",
        {"mask": "fixed"},
        {"mask": "partial", "keep_end": -1},
        {"mask": "partial", "fill": "ab"},
        {"mask": "shift", "by": "id", "days": 0},
        {"mask": "json", "paths": "a"},
        {"mask": "json", "paths": {"a..b": "token"}},
        {"mask": "json", "paths": {"a": "shift"}},
        {"mask": "json", "paths": {"a": "token", "a.b": "token"}},
        {"mask": "json", "paths": {"a[]": "token", "a[].b": "token"}},
        {"mask": "json", "unnamed": "halt"},
        "a:b:c",
        "a:",
        ":b",
        {"mask": "token", "domain": 7},
        {"mask": "fixed", "value": "\0"},
        {"mask": "keep", "distinct": True},
    ],
    ids=str,
)
def test_a_rule_that_is_none_is_refused(rule: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_rule(rule)
