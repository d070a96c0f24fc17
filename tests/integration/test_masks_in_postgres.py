"""What masks make of values is a value of the same type, for PostgreSQL itself, and spelled as it would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from syncdata.privacy.suspicions import suggest
from syncdata.runtime.session_settings import SESSION_SETTINGS, pin_statement
from tests.policies import judged, masking, policy, table
from tests.postgres import Database

SHIFT = {"mask": "shift", "by": "id", "days": 36_500}
PART = {"mask": "partial", "keep_start": 1, "keep_end": 1}
JSON = {"mask": "json", "paths": {"a[].b": "email", "n": "keep", "i": "permute"}}
TEXTS: LiteralString = r"""'', ' ', 'a', 'Ada Byron', 'Ädä €', E'tab\tnew\nline', '"{,}\', 'NULL',
    repeat('x', 9000), U&'\+01F600'"""
SHORT_TEXTS: LiteralString = "'', 'a', 'Ada Byron', 'Ädä €', 'NULL', '  x  '"
ARRAYS: LiteralString = (
    r"""'{}', '{a,NULL,"","NULL"}', '{{a b,"c,d"},{"e\"","\\\\"}}', '[2:3]={x,y}', '[0:0][1:2]={{x,y}}'"""
)
DATES: LiteralString = (
    "'4713-01-01 BC', '0001-12-31 BC', '0001-01-01', '1970-01-01', '2024-02-29', 'infinity'"
)
TIMES: LiteralString = DATES + ", '2024-02-29 23:59:59.123456', '294275-12-31 23:59:59.9', '-infinity'"
DOCUMENTS: LiteralString = """'{"a": [{"b": "x@y", "c": 1}], "n": 1.0000000000000000000001, "i": 7}',
    '[]', 'null', '"x"', '{}'"""
INVENTED = ("name", "first_name", "last_name", "city", "street", "company", "phone")

# By type, the masks that it takes and the values to try them on.
CASES: list[tuple[LiteralString, tuple[object, ...], LiteralString]] = [
    ("text", ("token", "email", "seal", PART, *INVENTED), TEXTS),
    ("character varying(48)", ("token", "email", PART, *INVENTED), SHORT_TEXTS),
    ("character varying(16)", ("token", PART, *INVENTED), SHORT_TEXTS),
    ("character varying(3)", (PART, *INVENTED), "'', 'a', 'Ädä'"),
    ("character(32)", ("token", "email", PART, *INVENTED), SHORT_TEXTS),
    ("name", ("token", "email", PART, *INVENTED), SHORT_TEXTS),
    ("uuid", ("token",), "'b0a1f6d0-0000-0000-0000-000000000000', '{B0A1F6D000000000000000000000FFFF}'"),
    ("bytea", ("token", "seal"), "'', '\\xdeadbeef'"),
    ("smallint", ("permute",), "'-32768', '-1', '0', '1', '32767'"),
    ("integer", ("permute",), "'-2147483648', '-32769', '7', '32768', '2147483647'"),
    ("bigint", ("permute",), "'-9223372036854775808', '-2147483649', '2147483648', '9223372036854775807'"),
    ("date", (SHIFT,), DATES + ", '-infinity', '294275-12-31'"),
    ("timestamp without time zone", (SHIFT,), TIMES),
    ("timestamp(3) with time zone", (SHIFT,), TIMES),
    ("json", (JSON,), DOCUMENTS),
    ("jsonb", (JSON,), DOCUMENTS),
    ("text[]", ("token", "email", "seal", PART, *INVENTED), ARRAYS),
    ("character varying(20)[]", ("token", PART, *INVENTED), ARRAYS),
    ("integer[]", ("permute",), "'{}', '{1,NULL,-5}', '{{70000,2},{3,4}}', '[5:6]={1,2}'"),
    ("date[]", (SHIFT,), "'{2024-02-29,NULL,infinity,\"0044-03-15 BC\"}'"),
    ("jsonb[]", (JSON,), 'ARRAY[\'{"a": [{"b": "x,y"}]}\', NULL, \'[]\']::jsonb[]'),
]


@pytest.fixture
def connection(fresh_database: Callable[..., Database]) -> Iterator[psycopg.Connection[Any]]:
    with fresh_database().connect(autocommit=True) as connection:
        connection.execute(pin_statement(SESSION_SETTINGS))
        yield connection


def spelled(connection: psycopg.Connection[Any], kind: LiteralString, values: LiteralString) -> list[str]:
    """Return *values* of the type *kind* as PostgreSQL spells them."""
    query: LiteralString = "SELECT t::{1}::text FROM unnest(ARRAY[{0}]::text[]) AS given (t)"
    if values.startswith("ARRAY"):
        query = "SELECT v::text FROM (SELECT {}::{}) AS given (v)"
    return [row[0] for row in connection.execute(sql.SQL(query).format(sql.SQL(values), sql.SQL(kind)))]


@pytest.mark.parametrize(("kind", "rules", "values"), CASES, ids=[kind for kind, _, _ in CASES])
def test_a_masked_value_is_one_of_its_type_and_spelled_as_postgresql_does(
    connection: psycopg.Connection[Any], kind: LiteralString, rules: tuple[object, ...], values: LiteralString
) -> None:
    connection.execute(
        sql.SQL("CREATE TABLE t (number int PRIMARY KEY, v {} NOT NULL)").format(sql.SQL(kind))
    )
    texts = spelled(connection, kind, values)
    assert texts
    for rule in rules:
        facts = table("t", {"id": "bigint", "value": kind}, not_null=("value",))
        row_mask = judged(facts, {"id": "keep", "value": rule}).row_mask(("id", "value"))
        assert row_mask is not None
        masked = [
            str(row[1]) for row in row_mask.rows([[str(place), text] for place, text in enumerate(texts)])
        ]
        assert not row_mask.unmasked
        connection.execute("TRUNCATE t")
        # COPY, for a cast would cut off what is too long.
        with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            for numbered in enumerate(masked):
                copy.write_row(numbered)
        found = [row[0] for row in connection.execute("SELECT v::text FROM t ORDER BY number")]
        if "json" not in kind:  # PostgreSQL puts blanks of its own between the parts
            assert [text.rstrip() for text in found] == [text.rstrip() for text in masked]


def test_unique_keys_and_foreign_keys_hold_over_masked_rows(connection: psycopg.Connection[Any]) -> None:
    """Peers broke both, hours after they had begun."""
    people = table(
        "people",
        {"id": "bigint", "email": "text", "code": "character varying(20)"},
        uniques=(("email",), ("code",)),
    )
    orders = table(
        "orders",
        {"id": "bigint", "person": "integer", "email": "text"},
        references={"person": ("people", "id"), "email": ("people", "email")},
    )
    verdicts = policy(
        {
            "people": {"id": "permute", "email": "email", "code": "token"},
            "orders": {"id": "keep", "person": "permute", "email": "email"},
        }
    ).judge([people, orders])
    assert not any(verdict.problems for verdict in verdicts.values())
    connection.execute(
        "CREATE TABLE people (id bigint PRIMARY KEY, email text NOT NULL UNIQUE, code varchar(20) UNIQUE)"
    )
    connection.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, person int REFERENCES people,"
        " email text REFERENCES people (email))"
    )
    rows = [
        [str(number), f"P{number % 7}.{number}@example.org", f"{number:09}"]
        for number in range(40_000, 40_500)
    ]
    bought = [[str(number), row[0], row[1]] for number, row in enumerate(rows)]
    for facts, columns, raw in (
        (people, ("id", "email", "code"), rows),
        (orders, ("id", "person", "email"), bought),
    ):
        row_mask = verdicts[facts.table].row_mask(columns)
        assert row_mask is not None
        insert = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(facts.table.name))
        with connection.cursor() as cursor, cursor.copy(insert) as copy:
            for row in row_mask.rows(raw):
                copy.write_row(row)
    joined = connection.execute(
        "SELECT count(*) FROM orders o JOIN people p ON p.id = o.person AND p.email = o.email"
    )
    assert joined.fetchall() == [(len(rows),)]


def test_values_that_stand_for_others_are_values_of_their_types(connection: psycopg.Connection[Any]) -> None:
    """NULL into NOT NULL stopped peers."""
    kinds: tuple[LiteralString, ...] = (
        "text",
        "character varying(3)",
        "character(3)",
        "name",
        "smallint",
        "bigint",
        "numeric(5,2)",
        "real",
        "boolean",
        "uuid",
        "bytea",
        "date",
        "timestamp without time zone",
        "time without time zone",
        "interval",
        "inet",
        "json",
        "jsonb",
        "text[]",
        "double precision",
    )
    for kind in kinds:
        mask = masking("tests.unit.test_masks:failing", kind)
        (row,) = connection.execute(
            sql.SQL("SELECT %s::text::{}::text").format(sql.SQL(kind)), (mask("secret"),)
        )
        assert row[0] is not None


def test_a_first_policy_fits_a_table_of_all_kinds(connection: psycopg.Connection[Any]) -> None:
    names = (
        "email",
        "phone",
        "first_name",
        "name",
        "street",
        "city",
        "password",
        "birth_date",
        "iban",
        "notes",
    )
    kinds: tuple[LiteralString, ...] = (
        "text",
        "character varying(16)",
        "bigint",
        "date",
        "jsonb",
        "uuid",
        "text[]",
        "inet",
    )
    columns = {f"{name}_{place}": kind for name in names for place, kind in enumerate(kinds)}
    facts = table("t", {"id": "bigint", **columns}, not_null=tuple(columns))
    rules = suggest([facts])[facts.table]
    verdict = judged(facts, rules)
    assert not verdict.problems
    samples = {kind: spelled(connection, kind, values)[-1] for kind, _, values in CASES if kind in kinds} | {
        "inet": "10.0.0.1"
    }
    row_mask = verdict.row_mask(("id", *columns))
    assert row_mask is not None
    masked = row_mask.row(["1", *(samples[kind] for kind in columns.values())])[1:]
    for kind, value in zip(columns.values(), masked, strict=True):
        if isinstance(value, str):
            connection.execute(sql.SQL("SELECT %s::text::{}").format(sql.SQL(kind)), (value,))
