from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.position import format_lsn, parse_lsn


@pytest.mark.parametrize(
    ("text", "lsn"),
    [
        ("0/0", 0),
        ("0/16B3D40", 0x16B3D40),
        ("0/16b3d40", 0x16B3D40),
        ("1/0", 1 << 32),
        ("16/B374D848", 0x16_B374D848),
        ("7FFFFFFF/FFFFFFFF", 2**63 - 1),
    ],
)
def test_an_lsn_is_two_hexadecimal_halves(text: str, lsn: int) -> None:
    assert parse_lsn(text) == lsn
    assert format_lsn(lsn) == text.upper()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/G",
        "0/0/0",
        "0/123456789",
        "0/-1",
        "+1/0",
        "0/1_0",
        " 0/0",
        "0/0\n",
        "0/٣",
        "80000000/0",  # no server gets there
        "FFFFFFFF/FFFFFFFF",
    ],
)
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)


@given(st.integers(0, 2**63 - 1))
def test_an_lsn_survives_its_text_form(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn
