"""What each mask makes of a value: once and for ever, and never what it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from syncdata.privacy.dates import moved
from syncdata.privacy.key import MaskKey
from syncdata.privacy.permutation import permutation
from syncdata.privacy.sealing import unseal
from syncdata.privacy.words import words
from tests.policies import KEY, OTHER_KEY, judged, masking, table

ADDRESSES = {"mask": "json", "paths": {"contacts[].email": "email", "size": "keep"}}
# The format is for ever: rows that were masked years ago must meet those of today. A line that fails here
# means that every local database would have to be resynced; it is not to be "mended".
GOLDEN = [
    ("token", "text", "Ada", "6205b5e638e2373a38660a39370485ab"),
    ("token", "character varying(20)", "Ada", "6205b5e638e2373a3866"),
    ("token", "citext", "ADA", "519ac33c80e16402b53fe438519d0172"),
    ("token", "uuid", "b0a1f6d0-0000-0000-0000-000000000000", "21f0efac-be75-897e-85a2-e4c6e3c60d51"),
    ("token", "bytea", "\\xdeadbeef", "\\x93a52359297588031ebe8cc50ddca296"),
    ("email", "text", "ada@example.org", "e70c99e152bf0fe2a4883fb84ccc5637@example.invalid"),
    ("name", "text", "Ada Byron", "Dorothy Lark"),
    ("first_name", "text", "Ada", "Neil"),
    ("last_name", "text", "Byron", "Zimmer"),
    ("city", "text[]", '{London,"St Ives",NULL}', "{Deerview,Westerhaven,NULL}"),
    ("street", "text", "12 Baker St", "181 Honey Avenue"),
    ("company", "text", "Acme", "Granite Supplies"),
    ("phone", "text", "+44 20 1234", "+999295600726"),
    ({"mask": "partial", "keep_end": 2}, "text", "12345678", "******78"),
    ({"mask": "fixed", "value": True}, "boolean", "f", "t"),
    ({"mask": "shift", "by": "id", "days": 30}, "date", "1990-02-28", "1990-02-27"),
    (
        {"mask": "shift", "by": "id"},
        "timestamp with time zone",
        "2020-01-01 10:00:00.5+02 BC",
        "2021-12-31 10:00:00.5+02 BC",
    ),
    (
        ADDRESSES,
        "jsonb",
        '{"contacts": [{"email": "a@b", "x": 1}, 3], "size": 1.0e400}',
        '{"contacts":[{"email":"e7344558e2cf92811faca60747ece2cb@example.invalid"}],"size":1.0e400}',
    ),
    ("seal", "text", "Ada", "14ba2de2248c251260f66af8343f50ebe6b77041"),
    ("permute", "smallint", "7", "1956"),
    ("permute", "integer", "70000", "1045999945"),
    ("permute", "bigint", "-5000000000", "-7132704573526381629"),
]


@pytest.mark.parametrize(("rule", "kind", "text", "masked"), GOLDEN, ids=str)
def test_a_mask_makes_of_a_value_what_it_always_did(rule: object, kind: str, text: str, masked: str) -> None:
    assert masking(rule, kind)(text) == masked


def test_another_process_makes_the_same_of_a_value() -> None:
    program = "from tests.policies import masking; print(masking('name')('Ada'), masking('email')('a@b'))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{masking('name')('Ada')} {masking('email')('a@b')}\n"}


KEYED = [
    ("token", "text", "Ada Byron"),
    ("token", "uuid", "b0a1f6d0-0000-0000-0000-000000000000"),
    ("email", "text", "ada@example.org"),
    ("name", "text", "Ada Byron"),
    ("phone", "text", "12345"),
    ("seal", "text", "Ada"),
    ("permute", "bigint", "123456789"),
    ({"mask": "json", "paths": {"a": "token"}}, "json", '{"a": "x"}'),
    ("tests.unit.test_masks:tagged", "text", "Ada"),
]


@pytest.mark.parametrize(("rule", "kind", "text"), KEYED, ids=str)
def test_another_key_makes_something_else_of_a_value(rule: object, kind: str, text: str) -> None:
    """A peer took a salt from its configuration and did not use it."""
    assert masking(rule, kind)(text) != masking(rule, kind, key=OTHER_KEY)(text)


def test_the_key_decides_how_far_dates_move() -> None:
    rule = {"mask": "shift", "by": "id", "days": 30}
    mine, other = (
        [masking(rule, "date", key=key, by=str(by))("2020-01-01") for by in range(8)]
        for key in (KEY, OTHER_KEY)
    )
    assert mine != other


def test_without_the_key_no_hash_of_guesses_finds_a_value() -> None:
    """A peer hashed without a key: who hashes all phone numbers knows all of them."""
    import hashlib

    masked = str(masking("token")("12345"))
    guessed = [
        hashlib.new(name, b"12345").hexdigest() for name in ("md5", "sha1", "sha256", "sha512", "blake2b")
    ]
    guessed.append(hashlib.blake2b(b"12345", digest_size=16).hexdigest())
    assert not any(masked in guess for guess in guessed)


# Texts


def test_a_token_is_as_long_as_its_column_allows() -> None:
    assert len(str(masking("token", "character varying(20)")("Ada"))) == 20
    assert len(str(masking("email", "character varying(40)")("Ada"))) == 40


@pytest.mark.parametrize(("rule", "kind"), [("token", "character varying(15)"), ("email", "character(31)")])
def test_a_token_that_would_be_too_short_to_tell_values_apart_is_refused(rule: str, kind: str) -> None:
    facts = table("t", {"id": "bigint", "value": kind})
    assert "too short" in judged(facts, {"id": "keep", "value": rule}).problems[0]


def test_what_a_type_takes_for_equal_has_one_token() -> None:
    assert masking("email", "citext")("Ada@Example.org") == masking("email", "citext")("ada@example.ORG")
    assert masking("token", "character(40)")("Ada" + 37 * " ") == masking("token", "character(40)")("Ada")
    assert masking("email")("Ada@example.org") != masking("email")("ada@example.org")


@pytest.mark.parametrize(
    ("text", "masked"), [("12345678", "12****78"), ("1234567", "*******"), ("", ""), ("ÄÖÜß€abc", "ÄÖ****bc")]
)
def test_of_a_short_text_nothing_is_kept(text: str, masked: str) -> None:
    assert masking({"mask": "partial", "keep_start": 2, "keep_end": 2})(text) == masked


def test_invented_words_end_where_their_column_does() -> None:
    assert {len(str(masking("street", "character varying(5)")(str(number)))) for number in range(50)} <= {
        *range(1, 6)
    }


def test_an_invented_name_is_never_the_one_that_was_there() -> None:
    first_name = masking("first_name")
    assert not [name for name in words("first_names") if first_name(name) == name]


@pytest.mark.parametrize(
    "kind", ["first_names", "last_names", "cities", "streets", "companies", "company_forms"]
)
def test_the_lists_of_words_are_plain_and_long_enough(kind: str) -> None:
    """Letters that every encoding has: the local database may not be UTF-8."""
    listed = words(kind)
    assert len(listed) == len({*listed}) >= 20
    assert all(word.isascii() and word == word.strip() and word for word in listed)


def test_what_was_sealed_opens_with_the_key_and_the_domain() -> None:
    sealed = str(masking("seal")("Ädä"))
    assert unseal(KEY, "t.value", sealed) == "Ädä"
    assert unseal(KEY, "t.value", str(masking("seal")(""))) == ""
    assert unseal(KEY, "t.value", str(masking("seal", "bytea")("\\xdead"))) == "\\xdead"
    for key, domain, text in [
        (OTHER_KEY, "t.value", sealed),
        (KEY, "t.other", sealed),
        (KEY, "t.value", f"00{sealed[2:]}"),
        (KEY, "t.value", "Ada"),
        (KEY, "t.value", ""),
    ]:
        with pytest.raises(ValueError, match="not sealed with this key"):
            unseal(key, domain, text)


# Dates


@pytest.mark.parametrize(
    "text",
    [
        "infinity",
        "-infinity",
    ],
)
def test_infinity_stays(text: str) -> None:
    assert masking({"mask": "shift", "by": "id"}, "date")(text) == text


def test_dates_of_one_row_move_together_and_never_stay() -> None:
    rule = {"mask": "shift", "by": "id", "days": 3}
    moved = {str(masking(rule, "date", by=str(by))("2020-02-28")) for by in range(100)}
    assert moved == {"2020-02-25", "2020-02-26", "2020-02-27", "2020-02-29", "2020-03-01", "2020-03-02"}
    of_one = masking(rule, "timestamp without time zone")
    assert str(of_one("2020-02-28 23:59:59.123456"))[10:] == " 23:59:59.123456"


@pytest.mark.parametrize(
    "text",
    ["4713-01-01 BC", "294275-12-31 23:59:59", "0001-01-01", "0001-12-31 BC", "9999-12-31", "10000-01-01"],
)
def test_a_date_at_an_edge_moves_to_where_a_date_can_be(text: str) -> None:
    moved = str(masking({"mask": "shift", "by": "id"}, "timestamp without time zone")(text))
    assert moved != text
    assert (int(moved.split("-")[0]), "BC" in moved) <= (294275, True)


@pytest.mark.parametrize(
    "text", ["2020-01-01 Zebedee", "2020-01-01Zebedee", "2020-01-01 10:00:00 AD", "Zebedee 10:00:00", ""]
)
def test_of_what_is_no_date_nothing_gets_through(text: str) -> None:
    assert "Zebedee" not in str(masking({"mask": "shift", "by": "id"}, "timestamp with time zone")(text))
    with pytest.raises(ValueError, match="no date"):
        moved(text, 1)


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 1 << 70])
def test_what_no_bigint_holds_is_not_permuted(number: int) -> None:
    with pytest.raises(ValueError, match="no integer"):
        permutation(KEY, "t.id").text(str(number))


# Many at once


PEOPLE = table(
    "people",
    {"id": "bigint", "mail": "text", "name": "text", "phone": "text", "born": "date", "code": "text"},
    not_null=("mail",),
)
PEOPLE_RULES: dict[str, object] = {
    "id": "keep",
    "mail": "email",
    "name": "name",
    "phone": {"mask": "partial", "keep_end": 2},
    "born": {"mask": "shift", "by": "id"},
    "code": "token",
}


def test_one_value_that_no_mask_takes_is_replaced_and_counted_once_among_many() -> None:
    rules = PEOPLE_RULES | {"mail": "tests.unit.test_masks:failing_for_zebedee"}
    many, one = (judged(PEOPLE, rules).row_mask(tuple(PEOPLE_RULES)) for _ in range(2))
    assert many is not None
    assert one is not None
    rows = [[str(number), "Ada", "Ada", None, "2020-01-01", "x"] for number in range(9)]
    rows[4][1], rows[5][4] = "Zebedee", "Zebedee"
    masked = many.rows(rows)
    assert masked == [one.row(row) for row in rows]
    assert (masked[4][1], masked[5][4]) == ("", None)
    assert many.unmasked == one.unmasked == {"mail": 1, "born": 1}


def test_a_mask_costs_few_calls_a_value() -> None:
    """Masks are most of what a masked record costs, and calls are most of what a mask costs."""
    row_mask = judged(PEOPLE, PEOPLE_RULES).row_mask(tuple(PEOPLE_RULES))
    assert row_mask is not None
    rows = [[str(number), "a@b", f"Zoë {number}", "12345", "2020-01-01", "x"] for number in range(100)]
    row_mask.rows(rows)
    calls = 0

    def count(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        row_mask.rows(rows)
    finally:
        sys.setprofile(before)
    assert calls <= 8.5 * len(rows)


# Documents


@pytest.mark.parametrize(
    ("rule", "text", "masked"),
    [
        ({"paths": {"a": "keep"}}, '{"a": 1.00, "b": 2}', '{"a":1.00}'),
        (
            {"paths": {"a": "withhold"}, "unnamed": "keep"},
            '{"a": 1, "b": {"c": [1, 2.50]}}',
            '{"b":{"c": [1, 2.50]}}',
        ),
        ({"paths": {}}, '{"a": 1}', "{}"),
        ({"paths": {}}, "[1]", "null"),
        ({"paths": {"a": "null"}}, '{"a": {"b": 1}}', '{"a":null}'),
        ({"paths": {"a.b": {"mask": "fixed", "value": 0}}}, '{"a": {"b": 7, "c": 8}}', '{"a":{"b":0}}'),
        ({"paths": {"a[].b": "keep"}}, '{"a": {"b": 7}}', "{}"),
        ({"paths": {"a[].b": "keep"}, "unnamed": "keep"}, '{"a": "x@y"}', "{}"),
        ({"paths": {"[]": {"mask": "partial"}}}, '["abc", null, 12, {"x": 1}]', '["***",null,"**",null]'),
        (
            {"paths": {'"a.b"': "keep"}},
            '{"a.b": 123456789012345678901234567890}',
            '{"a.b":123456789012345678901234567890}',
        ),
        ({"paths": {"a": "keep"}}, '{"a": "first", "a": "last"}', '{"a":"last"}'),
        ({"paths": {"a": "keep"}}, "null", "null"),
    ],
    ids=str,
)
def test_of_a_document_what_no_path_names_is_left_out(
    rule: dict[str, object], text: str, masked: str
) -> None:
    assert masking({"mask": "json", **rule}, "json")(text) == masked


def test_a_number_in_a_document_may_be_permuted_and_stays_one() -> None:
    mask = masking({"mask": "json", "paths": {"id": "permute"}}, "jsonb")
    assert str(mask('{"id": 7}')).removeprefix('{"id":').removesuffix("}").isdecimal()
    assert mask('{"id": 7.5}') == '{"id":null}'


def test_a_document_that_is_none_or_too_deep_becomes_a_harmless_one() -> None:
    mask = masking({"mask": "json", "paths": {"a": "token"}}, "json")
    assert mask('{"a": "secret"') == "null"
    assert mask('{"a": ' + 100_000 * "[" + 100_000 * "]" + "}") in ("null", '{"a":null}')


# Arrays


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("{}", "{}"),
        ("{abcd,NULL}", "{****,NULL}"),
        ('{{"a b","c,d"},{"e\\"f","NULL"}}', "{{***,***},{***,****}}"),
        ('[2:3]={"",x}', '[2:3]={"",*}'),
        ('{"a\\\\b","{}"}', "{***,**}"),
    ],
)
def test_an_array_is_masked_element_by_element(text: str, masked: str) -> None:
    assert masking({"mask": "partial"}, "text[]")(text) == masked


def test_elements_are_quoted_as_postgresql_does() -> None:
    assert masking("tests.unit.test_masks:same", "text[]")('{"a b","{",NULL,"null","",x,"\\"","\\\\"}') == (
        '{"a b","{",NULL,"null","",x,"\\"","\\\\"}'
    )


def test_what_is_no_array_becomes_a_harmless_one() -> None:
    assert masking("token", "text[]")("secret") == "{}"


def test_the_tables_of_a_permutation_are_made_once() -> None:
    """A policy judges every few seconds."""
    assert permutation(MaskKey(bytes(range(32))), "t.id") is permutation(KEY, "t.id")
    assert permutation(OTHER_KEY, "t.id") is not permutation(KEY, "t.id")


# Own functions


def tagged(text: str, digits: str) -> str:
    return f"own {digits[:4]}"


def same(text: str, digits: str) -> str:
    return text


def failing(text: str, digits: str) -> str:
    raise RuntimeError(text)


def failing_for_zebedee(text: str, digits: str) -> str:
    if text == "Zebedee":
        raise RuntimeError(text)
    return digits


def too_long(text: str, digits: str) -> str:
    return 30 * "x"


@pytest.mark.parametrize("own", ["failing", "too_long"])
def test_a_function_that_fails_lets_nothing_through_and_is_counted(own: str) -> None:
    facts = table(
        "t", {"id": "bigint", "a": "character varying(20)", "b": "character varying(20)"}, not_null=("b",)
    )
    rule = f"tests.unit.test_masks:{own}"
    row_mask = judged(facts, {"id": "keep", "a": rule, "b": rule}).row_mask(("id", "a", "b"))
    assert row_mask is not None
    assert row_mask.row(["1", "secret", "secret"]) == ["1", None, ""]
    assert row_mask.unmasked == {"a": 1, "b": 1}


def test_parts_of_documents_that_a_mask_cannot_take_are_counted() -> None:
    facts = table("t", {"id": "bigint", "d": "jsonb"})
    rule = {
        "mask": "json",
        "paths": {"a": "tests.unit.test_masks:failing", "b[]": "token"},
        "unnamed": "keep",
    }
    row_mask = judged(facts, {"id": "keep", "d": rule}).row_mask(("id", "d"))
    assert row_mask is not None
    masked = row_mask.row(["1", '{"a": "secret", "b": ["x", {"c": "secret"}], "c": 1}'])[1]
    assert isinstance(masked, str) and "secret" not in masked
    assert row_mask.unmasked == {"d": 2}
    row_mask.rows([["2", '{"a": null, "b": ["y"]}'], ["3", '{"a": "secret"}']])
    assert row_mask.unmasked == {"d": 3}


def test_a_failing_function_of_a_key_still_tells_rows_apart() -> None:
    facts = table("t", {"id": "text"})
    rule = {"mask": "tests.unit.test_masks:failing", "distinct": True}
    row_mask = judged(facts, {"id": rule}).row_mask(("id",))
    assert row_mask is not None
    assert len({row_mask.row([text])[0] for text in ("a", "b", "c")}) == 3


@pytest.mark.parametrize("name", ["no.such_module:mask", "tests.policies:nothing", "tests.policies:KEY"])
def test_a_function_that_is_not_there_is_a_problem(name: str) -> None:
    facts = table("t", {"id": "bigint", "value": "text"})
    assert judged(facts, {"id": "keep", "value": name}).problems
