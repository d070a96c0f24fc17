"""What holds for all masks and values: the same everywhere, apart where promised, nothing of the original."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from syncdata.privacy.arrays import masked_array
from syncdata.privacy.dates import moved
from syncdata.privacy.key import MaskKey
from syncdata.privacy.permutation import permutation
from syncdata.privacy.policy import parse_policy
from syncdata.privacy.rules import parse_rule
from syncdata.privacy.sealing import unseal
from tests.policies import KEY, judged, masking, policy, table

# The first value of a permutation takes some time: its tables are made.
law = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What the stream may bring: any character but NUL and halves of pairs.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
UUIDS = st.uuids().map(str)
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1).map(str)
DATES = st.dates().map(str)
SHIFT = {"mask": "shift", "by": "id", "days": 30}
DOCUMENT = {"mask": "json", "paths": {"a[].b": "email", "c": {"mask": "partial"}, "d": "keep"}}
DOCUMENTS = st.sampled_from(['{"a": [{"b": "x"}]}', "[1]", '{"c": "abc", "d": 1.0}'])
OWN = {"mask": "tests.unit.test_masks:tagged"}

COLUMNS: dict[str, tuple[str, object, st.SearchStrategy[str]]] = {
    "id": ("bigint", "permute", INTEGERS),
    "mail": ("text", "email", TEXTS),
    "code": ("character varying(20)", "token", TEXTS),
    "sealed": ("text", "seal", TEXTS),
    "uid": ("uuid", "token", UUIDS),
    "name": ("text", "name", TEXTS),
    "city": ("character varying(9)", "city", TEXTS),
    "phone": ("text", {"mask": "partial", "keep_end": 2}, TEXTS),
    "born": ("date", SHIFT, DATES),
    "word": ("text", {"mask": "fixed", "value": "!"}, TEXTS),
    "nothing": ("text", "null", TEXTS),
    "document": ("jsonb", DOCUMENT, DOCUMENTS),
    "own": ("text", OWN, TEXTS),
    "as_it_is": ("text", "keep", TEXTS),
    "withheld": ("text", "withhold", TEXTS),
}
FACTS = table("people", {column: kind for column, (kind, _, _) in COLUMNS.items()})
RULES = {column: rule for column, (_, rule, _) in COLUMNS.items()}
VERDICT = judged(FACTS, RULES)
VALUES: list[st.SearchStrategy[Any]] = [
    strategy if column == "id" else st.one_of(strategy, st.none(), st.just(UNSET))
    for column, (_, _, strategy) in COLUMNS.items()
]
ROWS = st.lists(st.tuples(*VALUES).map(list), max_size=5)


@law
@given(ROWS)
def test_rows_at_once_are_rows_one_by_one_and_old_keys_are_like_both(rows: list[list[Any]]) -> None:
    """So a snapshot has the values of the stream, and an old key finds the row that was sent."""
    stream, snapshot = VERDICT.row_mask(tuple(COLUMNS)), judged(FACTS, RULES).row_mask(tuple(COLUMNS))
    assert stream is not None
    assert snapshot is not None
    masked = snapshot.rows(rows)
    assert [stream.row(row) for row in rows] == masked
    for row, result in zip(rows, masked, strict=True):
        named = {name: value for name, value in zip(COLUMNS, row, strict=True) if value is not UNSET}
        sent = {name: value for name, value in zip(COLUMNS, result, strict=True) if value is not UNSET}
        assert stream.keys(named) == sent


@law
@given(ROWS, st.permutations(list(COLUMNS)), st.integers(1, len(COLUMNS)))
def test_the_order_and_the_choice_of_columns_change_no_value(
    rows: list[list[Any]], order: list[str], count: int
) -> None:
    chosen = ["id", *(column for column in order[:count] if column != "id")]
    whole, part = VERDICT.row_mask(tuple(COLUMNS)), VERDICT.row_mask(chosen)
    assert whole is not None
    assert part is not None
    for row in rows:
        results = dict(zip(COLUMNS, whole.row(row), strict=True))
        values = dict(zip(COLUMNS, row, strict=True))
        assert part.row([values[column] for column in chosen]) == [results[column] for column in chosen]
    assert set(part.sent) == set(chosen) - {"withheld"}


@law
@given(ROWS)
def test_null_stays_null_and_what_is_absent_stays_absent(rows: list[list[Any]]) -> None:
    row_mask = VERDICT.row_mask(tuple(COLUMNS))
    assert row_mask is not None
    for row in rows:
        for column, value, result in zip(COLUMNS, row, row_mask.row(row), strict=True):
            if value is UNSET or column == "withheld":
                assert result is UNSET
            elif column not in ("word", "nothing"):
                assert (result is None) == (value is None)


DISTINCT: list[Any] = [
    ("token", "text", TEXTS),
    ("token", "character varying(16)", TEXTS),
    ("token", "uuid", UUIDS),
    ("token", "bytea", st.binary(max_size=9).map(lambda data: f"\\x{data.hex()}")),
    ("email", "text", TEXTS),
    ("seal", "text", TEXTS),
    ("permute", "bigint", INTEGERS),
]


@pytest.mark.parametrize(("rule", "kind", "values"), DISTINCT, ids=str)
@given(data=st.data())
@law
def test_different_values_stay_different(rule: str, kind: str, values: Any, data: st.DataObject) -> None:
    mask = masking(rule, kind)
    some = data.draw(st.lists(values, unique=True, min_size=2, max_size=10))
    assert len({mask(value) for value in some}) == len(some)


def test_all_smallints_are_permuted_among_themselves() -> None:
    permuted = permutation(KEY, "t.id").text
    results = [int(permuted(str(number))) for number in range(-(1 << 15), 1 << 15)]
    assert sorted(results) == [*range(-(1 << 15), 1 << 15)]
    assert all((result > 0) == (number > 0) for number, result in enumerate(results, -(1 << 15)))
    assert sum(result == number for number, result in enumerate(results, -(1 << 15))) < 20


PERMUTED = permutation(KEY, "t.id").text


@law
@given(st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-70_000, 70_000)))
def test_a_permuted_integer_keeps_its_sign_and_fits_where_it_did(number: int) -> None:
    result = int(PERMUTED(str(number)))
    assert (result > 0) == (number > 0)
    assert (result == 0) == (number == 0)
    for bits in (15, 31, 63):
        assert (-(1 << bits) <= number < 1 << bits) == (-(1 << bits) <= result < 1 << bits)


@law
@given(TEXTS)
def test_what_is_sealed_opens_again(text: str) -> None:
    assert unseal(KEY, "t.value", str(masking("seal")(text))) == text


@law
@given(st.dates(), st.integers(-36_500, 36_500).filter(bool))
def test_dates_move_as_pythons_do_where_these_can(date: dt.date, days: int) -> None:
    try:
        expected = str(date + dt.timedelta(days))
    except OverflowError:
        return
    assert moved(str(date), days) == expected
    assert moved(f"{date} 12:00:00+01:30", days) == f"{expected} 12:00:00+01:30"


@law
@given(st.integers(-4_000, 250_000), st.integers(1, 12), st.integers(1, 28), st.integers(-36_500, 36_500))
def test_a_date_that_moves_there_and_back_is_where_it_was(year: int, month: int, day: int, days: int) -> None:
    text = f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}{'' if year > 0 else ' BC'}"
    assert moved(moved(text, days), -days) == text


TELLING: list[Any] = [
    ("token", "text"),
    ("email", "text"),
    ("seal", "text"),
    ("name", "text"),
    ("city", "text"),
    ("street", "text"),
    ("company", "text"),
    ({"mask": "partial"}, "text"),
    ({"mask": "json", "paths": {"a": "token", "b": "null"}}, "jsonb"),
    ("token", "text[]"),
]
LONG = st.text(st.sampled_from("ghijklmnop GHIJKLMNOP äöü@_"), min_size=4, max_size=20).filter(
    lambda t: not t.isspace()
)


@pytest.mark.parametrize(("rule", "kind"), TELLING, ids=str)
@given(original=LONG)
@law
def test_nothing_of_the_original_is_in_what_is_sent(rule: object, kind: str, original: str) -> None:
    assume(original not in "@example.invalid")
    text = original
    if kind == "jsonb":
        text = msgspec.json.encode(
            {"a": original, "b": original, "c": [original], "d": {original: 1}}
        ).decode()
    if kind == "text[]":
        text = masked_array("{x}", lambda _: original)
    result = str(masking(rule, kind)(text))
    assert original not in result
    assert original.casefold() not in result.casefold()


@law
@given(st.lists(st.one_of(TEXTS, st.none()), max_size=5))
def test_an_array_that_is_masked_to_itself_is_as_it_was(elements: list[str | None]) -> None:
    parts = iter(elements)
    spelled = masked_array("{" + ",".join("x" for _ in elements) + "}", lambda _: next(parts))
    seen: list[str] = []
    assert masked_array(spelled, lambda element: seen.append(element) or element) == spelled  # type: ignore[func-returns-value]
    assert seen == [element for element in elements if element is not None]


SHORT = st.text(max_size=5)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), SHORT)
JUNK = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(SHORT, SCALARS, max_size=2))
NAMED = st.dictionaries(
    st.sampled_from(
        ["mask", "domain", "value", "keep_end", "by", "days", "paths", "unnamed", "distinct", "x"]
    ),
    st.one_of(st.sampled_from(["token", "email", "json", "shift", "partial", "fixed", "keep", "id"]), JUNK),
)


@law
@given(st.one_of(JUNK, NAMED))
def test_whatever_stands_for_a_rule_is_one_or_is_refused_in_words(spelled: object) -> None:
    try:
        rule = parse_rule(spelled)
    except ValueError as error:
        assert str(error)
    else:
        assert parse_rule(spelled) == rule


@law
@given(st.dictionaries(st.text(max_size=9), JUNK, max_size=3), JUNK)
def test_whatever_stands_for_a_policy_is_one_or_names_its_keys(columns: Any, unnamed: object) -> None:
    _, problems = parse_policy(columns, rows=columns, unnamed=unnamed, key=MaskKey(bytes(32)))
    assert all(key.startswith(("columns.", "rows.", "unnamed")) and why for key, why in problems)


KINDS = st.sampled_from(
    ["text", "bigint", "date", "uuid", "jsonb", "text[]", "numeric(10,2)", "mood", "character(3)", "citext"]
)
MASKS = st.sampled_from(
    ["keep", "withhold", "null", "token", "email", "name", "permute", "seal", "partial", "json", SHIFT]
)


@law
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(KINDS, st.one_of(st.none(), MASKS)), min_size=1),
    st.sampled_from(["withhold", "keep", "halt"]),
    st.booleans(),
)
def test_a_column_goes_as_it_is_only_where_that_was_said(columns: Any, unnamed: str, has_key: bool) -> None:
    facts = table("t", {"id": "bigint", **{name: kind for name, (kind, _) in columns.items()}})
    rules = {"id": "keep", **{name: rule for name, (_, rule) in columns.items() if rule is not None}}
    verdict = policy({"t": rules}, key=KEY if has_key else None, unnamed=unnamed).judge([facts])[facts.table]
    row_mask = verdict.row_mask([column.name for column in facts.columns])
    for column in verdict.columns:
        may_go = rules.get(column.column, unnamed) == "keep"
        assert (column.treatment is None) == (column.privacy == "") == may_go
        if not may_go:
            assert row_mask is not None
            assert (column.column in row_mask.sent) == (column.rule != "withhold")
