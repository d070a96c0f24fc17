"""Names that sound like a person's data, in four languages, and what a first policy makes of them."""

from __future__ import annotations

import pytest

from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.policy import Policy
from syncdata.privacy.rules import parse_rule
from syncdata.privacy.suspicions import suggest, suspicion, suspicions
from tests.policies import KEY, table


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("email", "e-mail address"),
        ("e_mail", "e-mail address"),
        ("contactEMailAddress", "e-mail address"),
        ("Email_Adresse", "e-mail address"),
        ("correo_electronico", "e-mail address"),
        ("courriel", "e-mail address"),
        ("phone_numbers", "phone number"),
        ("TelefonNr", "phone number"),
        ("teléfono", "phone number"),
        ("first_name", "first name"),
        ("Vorname", "first name"),
        ("prénom", "first name"),
        ("apellidos", "last name"),
        ("user_name", "name"),
        ("nom_complet", "name"),
        ("straße", "street"),
        ("STRASSE", "street"),
        ("zip_code", "address"),
        ("codigo_postal", "address"),
        ("date_of_birth", "date of birth"),
        ("fecha_de_nacimiento", "date of birth"),
        ("geburtsdatum", "date of birth"),
        ("dateNaissance", "date of birth"),
        ("iban", "bank account or card"),
        ("ssn", "identity number"),
        ("führerschein", "identity number"),
        ("password_hash", "secret"),
        ("APIKey", "secret"),
        ("mot_de_passe", "secret"),
        ("contraseña", "secret"),
        ("last_seen_ip", "address in a network or device"),
        ("last_login_ip", "address in a network or device"),
        ("IPv4", "address in a network or device"),
        ("salaire", "personal circumstance"),
    ],
)
def test_a_name_that_sounds_personal_is_found(name: str, meaning: str) -> None:
    assert suspicion(name) == meaning


@pytest.mark.parametrize(
    "name",
    [
        "shipping",
        "recipe",
        "description",
        "tokenizer",
        "spinning",
        "zipped",
        "id",
        "total_amount",
        "cityscape",
        "unique",
        "",
        "42",
        "été",
    ],
)
def test_a_name_that_only_has_such_letters_in_it_is_none(name: str) -> None:
    assert suspicion(name) == ""


def test_truth_values_are_not_suspicious() -> None:
    facts = table("t", {"id": "bigint", "email": "text", "has_phone": "boolean"})
    assert suspicions(facts) == {"email": "e-mail address"}


USERS = table(
    "users",
    {
        "id": "bigint",
        "email": "character varying(100)",
        "full_name": "text",
        "phone": "character varying(20)",
        "birth_date": "date",
        "national_id": "character varying(12)",
        "passport": "uuid",
        "password": "text",
        "last_ip": "inet",
        "is_active": "boolean",
        "score": "numeric(10,2)",
        "joined": "timestamp with time zone",
        "notes": "text",
        "about": "text",
        "profile": "jsonb",
        "tags": "text[]",
        "mood": "mood",
        "slug": "text",
        "email_verified": "boolean",
    },
    uniques=(("email",), ("slug",)),
    not_null=("about", "profile", "slug", "password"),
)
ORDERS = table(
    "orders",
    {"id": "bigint", "buyer_email": "text", "user_id": "integer"},
    references={"buyer_email": ("users", "email"), "user_id": ("users", "id")},
)


def test_a_first_policy_keeps_what_is_plain_masks_what_is_personal_and_withholds_the_rest() -> None:
    assert suggest([USERS, ORDERS]) == {
        USERS.table: {
            "id": "keep",
            "email": "email",
            "full_name": "name",
            "phone": "phone",
            "birth_date": {"mask": "shift", "by": "id", "days": 30},
            "national_id": "withhold",
            "passport": "token",
            "password": {"mask": "fixed", "value": "!"},
            "last_ip": "withhold",
            "is_active": "keep",
            "score": "keep",
            "joined": "keep",
            "notes": "withhold",
            "about": {"mask": "fixed", "value": ""},
            "profile": {"mask": "json", "paths": {}},
            "tags": "withhold",
            "mood": "withhold",
            "slug": "keep",
            "email_verified": "keep",
        },
        ORDERS.table: {"id": "keep", "buyer_email": "email", "user_id": "keep"},
    }


def test_a_text_that_must_be_there_and_is_checked_gets_no_empty_one() -> None:
    facts = TableFacts(
        table=TableName("public", "t"),
        columns=tuple(ColumnFacts(name=name, type="text", not_null=True) for name in ("a", "b")),
        checked=("a",),
    )
    assert suggest([facts])[facts.table] == {"a": "token", "b": {"mask": "fixed", "value": ""}}


def test_a_first_policy_can_hold() -> None:
    awkward = [
        table("a", {"email": "character varying(10)"}, key="email"),
        table(
            "b", {"ssn": "bigint", "a": "character varying(10)"}, key="ssn", references={"a": ("a", "email")}
        ),
        table(
            "c",
            {"id": "bigint", "ssn": "integer", "birthday": "date"},
            uniques=(("birthday",), ("ssn",)),
            references={"ssn": ("b", "ssn")},
        ),
        table("d", {"name": "text", "born": "date"}, key=""),
        USERS,
        ORDERS,
    ]
    suggested = suggest(awkward)
    rules = {
        name: {column: parse_rule(rule) for column, rule in columns.items()}
        for name, columns in suggested.items()
    }
    for verdict in Policy(rules, key=KEY, unnamed="halt").judge(awkward).values():
        assert not verdict.problems
        assert not verdict.halts
        assert not verdict.is_withheld
    assert suggested[TableName("public", "b")]["ssn"] == "permute"
