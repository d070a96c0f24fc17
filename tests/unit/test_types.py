"""Types by their texts: which PostgreSQL changes silently is tried in tests/integration/test_drift.py."""

from __future__ import annotations

import pytest

from syncdata.apply.plan.types import SqlType, is_held, is_type_text, is_widened, parse_type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("integer", SqlType("integer")),
        ("numeric(10,2)", SqlType("numeric", (10, 2))),
        ("numeric(5,-2)[]", SqlType("numeric", (5, -2), is_array=True)),
        ("character varying(20)", SqlType("character varying", (20,))),
        ("character", SqlType("character", (1,))),
        ("timestamp(3) with time zone", SqlType("timestamp with time zone", (3,))),
        ("interval day to second(2)", SqlType("interval", (2,), "day to second")),
        ("interval(0)", SqlType("interval", (0,))),
        ('"char"', SqlType('"char"')),
        ('"name"', SqlType("name")),
        ("pg_catalog.name", SqlType("name")),
        ('pg_catalog."name"', SqlType("name")),
        ("public.citext", SqlType("citext")),
        ('"My Types"."Mood"[]', SqlType("Mood", is_array=True)),
        ("shop.geometry(Point,4326)", SqlType("shop.geometry(Point,4326)")),
    ],
)
def test_a_types_text_is_taken_apart(text: str, expected: SqlType) -> None:
    assert parse_type(text) == expected


@pytest.mark.parametrize("text", ["shop.geometry(Point,4326)", '"name"', "mood", "bit(3)", "uuid", "hstore"])
def test_every_type_holds_itself(text: str) -> None:
    assert is_held(text, text) and is_widened(text, text)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("integer", "bigint", True),
        ("bigint", "integer", False),
        ("numeric(10,2)", "numeric(12,4)", True),
        ("numeric(12,4)", "numeric(10,2)", False),
        ("numeric(10,2)", "integer", False),
        ("integer", "numeric(10,2)", True),
        ("character varying(10)", "text", True),
        ("text", "character varying(10)", False),
        ("character varying(10)", "character varying(5)", False),
        ("timestamp(0) without time zone", "timestamp without time zone", True),
        ("timestamp without time zone", "timestamp with time zone", False),
        ("integer", "text", False),
        ("json", "jsonb", False),
        ("integer", "integer[]", False),
    ],
)
def test_only_some_changes_of_a_type_leave_every_value(before: str, after: str, expected: bool) -> None:
    assert is_widened(before, after) is expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "integer",
            "numeric(10,2)[]",
            "numeric(5,-2)",
            "character varying(20)",
            "double precision",
            "bit(3)",
        ),
        *(
            "timestamp(3) with time zone",
            "time without time zone",
            "interval(0)",
            "interval day to second(2)",
        ),
        *("shop.geometry(Point,4326)", '"char"', '"Shop"."a ""b"" ü"[]', "shop.mood", "bit varying(9)[]"),
    ],
)
def test_a_types_text_may_stand_in_a_statement(text: str) -> None:
    assert is_type_text(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "int; DROP TABLE users",
            "int, DROP COLUMN id",
            "integer DEFAULT evil()",
            "integer CHECK (true)",
        ),
        *(
            "integer --",
            "integer /*",
            '"a"; DROP TABLE users --"',
            '"a',
            "numeric(1);x",
            "numeric((1))",
            "a.b.c",
        ),
        *("integer\n", '"a\nb"', '"a\u202eb"', "integer USING evil(1)", "integer'", "$$a$$", "integer[1]"),
    ],
)
def test_what_says_more_than_a_type_may_not_stand_in_a_statement(text: str) -> None:
    assert not is_type_text(text)
