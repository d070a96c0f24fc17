from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from syncdata import errors
from syncdata.errors import ApplyError, ParseError, Problem, Reason, SyncError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ParseError("broken"), "SHD_SYN_063: broken"),
        (ParseError("broken", hint="mend it"), "SHD_SYN_063: broken (mend it)"),
        (ParseError("broken", file="a.json"), "SHD_SYN_063: a.json: broken"),
        (ParseError("broken", file="a.json", line=7), "SHD_SYN_063: a.json:7: broken"),
        (ApplyError("refused", table="shop.t"), "SHD_SYN_064: table shop.t: refused"),
        (
            ApplyError("refused", hint="look", table="t", file="a.json", line=7),
            "SHD_SYN_064: a.json:7: table t: refused (look)",
        ),
    ],
)
def test_an_error_says_its_code_its_place_what_happened_and_what_to_do(error: SyncError, text: str) -> None:
    assert str(error) == text


def test_a_line_without_a_file_is_no_place() -> None:
    assert ParseError("broken", line=7).place == ""


def test_every_class_has_a_code_of_its_own() -> None:
    classes = [
        item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, SyncError)
    ]
    coded = [item for item in classes if item is not SyncError]
    assert len({item.code for item in coded}) == len(coded)
    assert SyncError.by_code == {item.code: item for item in coded}
    assert all(re.fullmatch(r"SHD_SYN_\d{3}", code) for code in SyncError.by_code)


def test_a_class_without_a_code_has_its_parents() -> None:
    class StrangerError(ParseError):
        pass

    assert StrangerError.code == "SHD_SYN_063"
    assert SyncError.by_code["SHD_SYN_063"] is ParseError


def test_every_code_of_the_design_has_a_class() -> None:
    numbers = {1, 2, 30, 31, *range(50, 55), *range(60, 65), 70, 80, 81, *range(90, 94)}
    assert {f"SHD_SYN_{number:03}" for number in numbers} <= SyncError.by_code.keys()


@pytest.mark.parametrize("code", sorted(SyncError.by_code))
def test_every_code_is_raised_by_a_test(code: str) -> None:
    """A test expects the class, or reads the code in what somebody is told."""
    name = SyncError.by_code[code].__name__
    is_told = re.compile(rf"\braises\([^)]*\b{name}\b|[\"']{code}\b")
    assert any(is_told.search(text) for text in _texts_of_tests())


@cache
def _texts_of_tests() -> list[str]:
    paths = Path(__file__).parents[1].rglob("test_*.py")
    return [path.read_text(encoding="utf-8") for path in paths if path != Path(__file__)]


def test_a_reason_keeps_the_parts_of_an_error_beside_its_text() -> None:
    error = ApplyError("refused (A)", hint="mend (or) drop", table="t", file="a b.json", line=7)
    reason = Reason.of(error)
    assert reason == Reason(
        text=str(error), code="SHD_SYN_064", file="a b.json", line=7, hint="mend (or) drop"
    )
    assert (reason.place, str(reason)) == ("a b.json:7", str(error))
    assert reason.message == "a b.json:7: table t: refused (A)"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Reason(text="SHD_SYN_064: refuses (A)", code="SHD_SYN_064"), "refuses (A)"),
        (
            Reason(text="words of another version", code="SHD_SYN_064", hint="mend it"),
            "words of another version",
        ),
        (Reason(text="no code at all"), "no code at all"),
    ],
)
def test_a_page_that_shows_code_and_hint_apart_does_not_repeat_them(reason: Reason, message: str) -> None:
    assert reason.message == message


def test_a_problem_reads_as_one_sentence() -> None:
    reason = Reason(text="SHD_SYN_060: gone", code="SHD_SYN_060")
    assert str(Problem(kind="overdue", text="no cycle has ended")) == "no cycle has ended"
    assert (
        str(Problem(kind="cycle-failed", text="it failed", reason=reason)) == "it failed: SHD_SYN_060: gone"
    )
    assert str(Problem(kind="source", reason=reason)) == "SHD_SYN_060: gone"
