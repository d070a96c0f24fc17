from __future__ import annotations

import re

import pytest

from syncdata import errors
from syncdata.errors import ApplyError, ParseError, SyncError


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
