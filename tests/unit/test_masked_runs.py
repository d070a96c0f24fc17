"""Changes are masked alike one by one and many at once, and nothing of what is withheld comes out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncdata.capture.masking import MaskingDecoder
from syncdata.capture.pgoutput import Relation, RowChange, Truncate, Withheld
from syncdata.capture.runs import RunForms, encode_masked_run
from syncdata.changes.names import TableName
from syncdata.errors import CaptureError
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.key import MaskKey
from syncdata.privacy.policy import parse_policy
from tests.unit.test_capture_runs import LINES, one_by_one, sent
from tests.unit.test_pgoutput import ODD_TEXTS, change, relation, row, text

WHOLE, MASKED_KEY, KEPT, HIDDEN, DATED = 16384, 16385, 16386, 16387, 16388
# By oid: a table's name, its columns, how many of them are its key, and its rules.
TABLES: dict[int, tuple[str, tuple[str, ...], int, dict[str, object]]] = {
    WHOLE: (
        "users",
        ("id", "email", "gone", "notes", "password", 'a "name"'),
        1,
        {"id": "keep", "email": "email", "notes": "null", "password": {"mask": "fixed", "value": "!"}},
    ),
    MASKED_KEY: ("people", ("code", "n", "gone"), 2, {"code": "token", "n": "keep"}),
    KEPT: ("kept", ("id", "v"), 1, {"id": "keep", "v": "keep"}),
    HIDDEN: ("hidden", ("id", "v"), 1, {}),
    DATED: ("dated", ("id", "born"), 1, {"id": "keep", "born": {"mask": "shift", "by": "id"}}),
}

values = st.one_of(ODD_TEXTS.map(text), st.sampled_from([b"n", b"u"]))


def described() -> tuple[MaskingDecoder, RunForms]:
    decoder, forms = MaskingDecoder(), RunForms()
    spelled = {name: rules for name, _, _, rules in TABLES.values() if rules}
    policy, problems = parse_policy(spelled, key=MaskKey(b"k" * 32))
    assert not problems
    facts = [
        TableFacts(
            table=TableName("public", name),
            columns=tuple(
                ColumnFacts(name=column, type="date" if column == "born" else "text") for column in columns
            ),
            identity=columns[:key],
        )
        for name, columns, key, _ in TABLES.values()
    ]
    verdicts = policy.judge(facts)
    for oid, (name, columns, key, rules) in TABLES.items():
        table = decoder.decode(relation(*columns, key=key, oid=oid, name=name))
        assert isinstance(table, Relation)
        if rules:
            mask = verdicts[TableName("public", name)].row_mask(table.columns)
            decoder.describe(table, mask)
            forms.describe(table, mask)
        else:
            decoder.withhold(table)
            forms.forget(table)
    return decoder, forms


@st.composite
def changes(draw: st.DrawFn) -> bytes:
    oid = draw(st.sampled_from([WHOLE, WHOLE, MASKED_KEY, KEPT]))
    width = len(TABLES[oid][1])
    kinds = draw(st.lists(values, min_size=width, max_size=width + draw(st.integers(0, 9)) // 9))
    kind, which = draw(st.sampled_from([(b"I", b"N"), (b"U", b"N"), (b"D", b"K"), (b"D", b"O")]))
    return sent(change(kind, which + row(*kinds), oid=oid), draw(st.integers(0, 2**64 - 1)))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(changes(), min_size=1, max_size=6))
def test_the_lines_of_a_masked_run_are_those_of_its_changes_one_by_one(messages: list[bytes]) -> None:
    decoder, known = described()
    forms = known.of(messages, 0)
    run = messages[: len(forms)]
    block = encode_masked_run(run, forms, LINES.end) if run else None
    assert block is None or block == one_by_one(decoder, run)


def test_whole_rows_and_keys_go_together_masked() -> None:
    decoder, known = described()
    whole = row(*map(text, ("1", "Zebedee", "Zebedee", "Zebedee", "Zebedee", "Zebedee")))
    messages = [
        sent(change(b"I", b"N" + row(text("Zebedee"), text("2"), text("Zebedee")), oid=MASKED_KEY)),
        sent(change(b"D", b"K" + row(text("Zebedee"), text("2"), b"n"), oid=MASKED_KEY)),
        sent(change(b"D", b"O" + row(text("Zebedee"), text("2"), text("Zebedee")), oid=MASKED_KEY)),
        sent(change(b"U", b"N" + row(text("Zebedee"), text("2"), b"u"), oid=MASKED_KEY)),
        sent(change(b"I", b"N" + row(text("1"), b"n"), oid=KEPT)),
    ]
    for number in range(1, len(messages) + 1):
        run = messages[:number]
        forms = known.of(run, 0)
        assert len(forms) == number
        block = encode_masked_run(run, forms, LINES.end)
        assert block is not None and block == one_by_one(decoder, run)
        assert b"Zebedee" not in block
    alone = one_by_one(decoder, [sent(change(b"U", b"N" + whole))])
    assert alone is not None and b"Zebedee" not in alone and b"gone" not in alone


@pytest.mark.parametrize("widths", [(3, 4), (2, 2), (3, 2)])
def test_rows_that_are_not_as_wide_as_their_table_are_no_run(widths: tuple[int, ...]) -> None:
    _, known = described()
    run = [sent(change(b"I", b"N" + row(*[text("a")] * width), oid=MASKED_KEY)) for width in widths]
    assert encode_masked_run(run, known.of(run, 0), LINES.end) is None


def test_an_update_of_a_masked_key_has_the_old_one_masked_alike() -> None:
    decoder, _ = described()
    old, new = row(text("Zebedee"), text("2"), b"n"), row(text("Zebedee2"), text("2"), b"n")
    moved = decoder.decode(change(b"U", b"K" + old, b"N" + new, oid=MASKED_KEY))
    first = decoder.decode(change(b"I", b"N" + row(text("Zebedee"), text("2"), b"n"), oid=MASKED_KEY))
    assert isinstance(moved, RowChange) and isinstance(first, RowChange)
    assert moved.data is not None and first.data is not None
    assert moved.old_keys == first.data
    assert moved.data["code"] not in ("Zebedee2", first.data["code"])


def test_a_date_that_is_moved_by_a_key_is_so_where_the_key_is_in_the_old_row_alone() -> None:
    decoder, _ = described()
    key, date = text("k" * 2_500), text("1999-12-31")
    inserted = decoder.decode(change(b"I", b"N" + row(key, date), oid=DATED))
    touched = decoder.decode(change(b"U", b"K" + row(key, b"n") + b"N" + row(b"u", date), oid=DATED))
    assert isinstance(inserted, RowChange) and isinstance(touched, RowChange)
    assert inserted.data is not None and inserted.data["born"] not in (None, "1999-12-31")
    assert touched.data == inserted.data


@pytest.mark.parametrize("content", [row(text("1"), text("Zebedee")), row(b"t\0\0\0\1\xe9", b"n"), b"?"])
def test_nothing_is_read_of_a_table_that_is_withheld(content: bytes) -> None:
    decoder, known = described()
    message = change(b"I", b"N" + content, oid=HIDDEN)
    found = decoder.decode(message)
    assert isinstance(found, Withheld) and found.relation.name == "hidden"
    assert "Zebedee" not in repr(msgspec.to_builtins(found.relation.columns))
    assert known.of([sent(message)], 0) == []


def test_a_truncate_names_the_tables_that_travel() -> None:
    decoder, _ = described()
    message = b"T" + (2).to_bytes(4, "big") + b"\0" + HIDDEN.to_bytes(4, "big") + WHOLE.to_bytes(4, "big")
    truncate = decoder.decode(message)
    assert isinstance(truncate, Truncate)
    assert [table.name for table in truncate.relations] == ["users"]


def test_a_change_of_a_table_that_was_never_described_is_still_refused() -> None:
    decoder, _ = described()
    with pytest.raises(CaptureError):
        decoder.decode(change(b"I", b"N" + row(text("1")), oid=99))
