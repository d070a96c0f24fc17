from __future__ import annotations

import pytest

from syncdata.apply.state.status import blocking_place, explain, lag_s


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("SHD_SYN_050: f:1: no column (add it)", ("SHD_SYN_050", "f:1: no column", "add it")),
        (
            "SHD_SYN_064: refuses (A, B 1) (mend (or) drop)",
            ("SHD_SYN_064", "refuses (A, B 1)", "mend (or) drop"),
        ),
        ("SHD_SYN_064: refuses", ("SHD_SYN_064", "refuses", "")),
        ("SHD_SYN_064: odd )", ("SHD_SYN_064", "odd )", "")),
        ("no code at all", ("no code at all", "", "")),
    ],
)
def test_an_error_is_split_into_code_message_and_remedy(error: str, expected: tuple[str, str, str]) -> None:
    assert explain(error) == expected


@pytest.mark.parametrize(
    ("error", "place"),
    [
        ("SHD_SYN_064: changes_1.json:13: table t: refused", "changes_1.json:13"),
        ("SHD_SYN_063: changes_1.json.zst:1: not a record", "changes_1.json.zst:1"),
        ("SHD_SYN_063: changes_1.json: cut short", None),
        ("SHD_SYN_061: gone", None),
        ("see changes_1.json:13: ", None),
    ],
)
def test_only_an_error_of_one_record_has_a_place(error: str, place: str | None) -> None:
    assert blocking_place(error) == place


@pytest.mark.parametrize(
    ("own", "front", "expected"),
    [
        ("changes_20260205_103000.json:7", "changes_20260205_113000.json.gz:1", 3600.0),
        ("changes_20260205_103000.json:7", "changes_20260205_103000.json:900", 0.0),
        ("", "changes_20260205_103000.json:900", None),
        ("changes_other.json:1", "changes_20260205_103000.json:900", None),
    ],
)
def test_lag_is_the_time_between_files(own: str, front: str, expected: float | None) -> None:
    assert lag_s(own, front) == expected
