"""The last resort: what is told of an exception that nobody foresaw."""

from __future__ import annotations

import logging
from pathlib import Path

import psycopg
import pytest

from syncdata.capture.trouble import (
    TROUBLE_FILE_NAME,
    forget_trouble,
    load_trouble,
    note_trouble,
    trouble_problems,
)
from syncdata.changes.position import parse_lsn
from syncdata.errors import ApplyError, UnexpectedError
from syncdata.runtime.told import Told
from syncdata.runtime.unexpected import safe_traceback, unexpected_error

SECRET = "hunter2-in-a-row"


def caught(*, text: str = SECRET, kind: type[Exception] = KeyError) -> Exception:
    try:
        raise kind(text)
    except Exception as error:
        return error


def endless(depth: int = 0) -> int:
    return endless(depth + 1) + 1


def test_an_unexpected_error_names_class_and_place_and_no_value() -> None:
    try:
        parse_lsn(None)
    except TypeError as failure:
        error = unexpected_error(failure)

    assert str(error).startswith("SHD_SYN_094: unexpected: TypeError in syncdata/changes/position.py:")
    assert "please report it" in error.hint
    assert "parse_lsn" in error.traceback


@pytest.mark.parametrize("kind", [KeyError, ValueError, TypeError, RuntimeError, psycopg.DataError])
def test_a_traceback_holds_no_text_of_a_foreign_exception(kind: type[Exception]) -> None:
    try:
        try:
            raise caught(kind=kind)
        except Exception as cause:
            raise RuntimeError(f"on {SECRET}") from cause
    except RuntimeError as failure:
        text = safe_traceback(failure)

    assert SECRET not in text
    assert kind.__name__ in text and "RuntimeError" in text and "which came of:" in text


def test_a_traceback_holds_the_words_of_our_own_errors_and_of_the_system() -> None:
    try:
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError as cause:
            raise ApplyError("no way", hint="try another") from cause
    except ApplyError as failure:
        text = safe_traceback(failure)

    assert "SHD_SYN_064: no way (try another)" in text
    assert "FileNotFoundError (No such file or directory)" in text


def test_a_traceback_of_an_endless_recursion_is_short() -> None:
    with pytest.raises(RecursionError) as failure:
        endless()

    assert len(safe_traceback(failure.value).splitlines()) < 200


def test_an_unexpected_error_is_logged_with_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    told, logger = Told(), logging.getLogger("syncdata.test")
    error = unexpected_error(caught())

    with caplog.at_level(logging.INFO, "syncdata.test"):
        told.trouble(logger, error, "cycle")
        told.trouble(logger, error, "cycle")

    assert [record.getMessage().count("Traceback") for record in caplog.records] == [1]
    assert SECRET not in caplog.text


def test_the_archivers_note_counts_and_goes(tmp_path: Path) -> None:
    error = UnexpectedError("unexpected: TypeError in somewhere")
    assert trouble_problems(tmp_path) == []

    for at in ("2026-02-05T10:30:00Z", "2026-02-05T10:31:00Z"):
        note_trouble(tmp_path, error, at=at)

    (problem,) = trouble_problems(tmp_path)
    assert problem.kind == "unexpected"
    assert str(problem) == (
        "the archiver fails and tries again (2 times in a row, last at 2026-02-05T10:31:00Z):"
        " SHD_SYN_094: unexpected: TypeError in somewhere"
    )

    forget_trouble(tmp_path)
    forget_trouble(tmp_path)
    assert load_trouble(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'{"code": 1}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TROUBLE_FILE_NAME).write_bytes(content)

    assert trouble_problems(tmp_path) == []
