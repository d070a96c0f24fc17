"""The migration that reads code, file, line and hint from the texts that older versions wrote."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from syncdata.errors import ApplyError, ParseError, SyncError

parse_error = import_module("syncdata.migrations.0004_errors_as_data").parse_error


def columns(code: str, file: str | None, line: int | None, hint: str | None) -> dict[str, Any]:
    return {"error_code": code, "error_file": file, "error_line": line, "error_hint": hint}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "SHD_SYN_050: changes_1.json:1: table users: no column n (add it)",
            ("SHD_SYN_050", "changes_1.json", 1, "add it"),
        ),
        ("SHD_SYN_063: changes_1.json.zst:12: not a record", ("SHD_SYN_063", "changes_1.json.zst", 12, None)),
        ("SHD_SYN_063: changes_1.json: cut short", ("SHD_SYN_063", "changes_1.json", None, None)),
        (
            "SHD_SYN_064: changes_2026 at 10 30.json:13: table t: refused (A)",
            ("SHD_SYN_064", "changes_2026 at 10 30.json", 13, "A"),
        ),
        (
            "SHD_SYN_064: changes_a:b.json.gz:13: table t: refused",
            ("SHD_SYN_064", "changes_a:b.json.gz", 13, None),
        ),
        (
            "SHD_SYN_063: snapshot_20260205_000000/public.t.json.gz:7: not a record",
            ("SHD_SYN_063", "snapshot_20260205_000000/public.t.json.gz", 7, None),
        ),
        ("SHD_SYN_064: refuses (A, B 1) (mend (or) drop)", ("SHD_SYN_064", None, None, "mend (or) drop")),
        ("SHD_SYN_064: odd )", ("SHD_SYN_064", None, None, None)),
        ("SHD_SYN_061: changes_5 is lost: see changes_4.json: it", ("SHD_SYN_061", None, None, None)),
        ("SHD_SYN_061: see changes_1.json:13: there", ("SHD_SYN_061", None, None, None)),
    ],
)
def test_an_old_text_is_read_into_the_columns(
    text: str, expected: tuple[str, str | None, int | None, str | None]
) -> None:
    assert parse_error(text) == columns(*expected)


def test_a_text_without_a_code_is_left_alone() -> None:
    assert parse_error("no code at all") == {}


@pytest.mark.parametrize(
    "error",
    [
        ParseError("broken", file="changes_1.json", line=7),
        ApplyError("refused (why)", hint="look (there)", table="shop.t", file="changes_ 1 .json.gz", line=7),
        ApplyError("the database went away", hint="wait"),
    ],
)
def test_what_is_read_from_a_text_is_what_would_be_kept_now(error: SyncError) -> None:
    assert parse_error(str(error)) == columns(error.code, error.file, error.line, error.hint or None)
