"""What header, footer and records must say of each other."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from typing import Any

import pytest

from syncdata.changes.header import Footer
from syncdata.changes.proof import Count
from syncdata.changes.reader import inspect
from syncdata.changes.record import ChangeRecord
from syncdata.errors import ParseError

LSNS = ["0/10", "0/10", "0/20"]
RECORDS = [{"table": "t", "op": "INSERT", "data": {"id": n}, "commit_lsn": lsn} for n, lsn in enumerate(LSNS)]
HEADER: dict[str, Any] = {
    "syncdata": 1,
    "system_id": "7",
    "timeline": 1,
    "slot": "s",
    "epoch": "e",
    "seq": 1,
    "prev": None,
    "start_lsn": "0/10",
}
FOOTER: dict[str, Any] = {
    "end": True,
    "records": 3,
    "transactions": 2,
    "first_commit_lsn": "0/10",
    "last_commit_lsn": "0/20",
    "end_lsn": "0/21",
}


def comment(values: dict[str, Any]) -> bytes:
    return b"# " + json.dumps(values, separators=(",", ":")).encode() + b"\n"


def framed(*, header: dict[str, Any] | None = None, **footer: Any) -> bytes:
    text = comment(HEADER | (header or {}))
    text += b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    return text + comment(FOOTER | {"sha256": hashlib.sha256(text).hexdigest()} | footer)


def error_of(content: bytes, name: str = "f.json") -> str:
    error = inspect(io.BytesIO(content), name).error
    return str(error or "")


def test_a_file_as_the_archiver_writes_it_is_proved() -> None:
    inspection = inspect(io.BytesIO(framed()), "f.json")
    assert inspection.header and inspection.footer and not inspection.error


@pytest.mark.parametrize("damaged", range(len(b'# {"syncdata":')))
def test_a_footer_without_a_header_is_a_broken_file_wherever_the_header_is_damaged(damaged: int) -> None:
    content = bytearray(framed())
    content[damaged] ^= 1
    assert "SHD_SYN_063" in (error := error_of(bytes(content)))
    assert "its beginning is damaged" in error and "replace the file" in error
    assert "its beginning is damaged" in error_of(gzip.compress(content), "f.json.gz")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xef\xbb\xbf" + framed(), "beginning is damaged"),  # an editor's byte order mark
        (framed()[10:], "beginning is damaged"),
        (b"\n" + framed(), "beginning is damaged"),
        (framed().partition(b"\n")[2], "beginning is damaged"),  # the header is gone
        (framed().partition(b"\n")[2][:-1], "beginning is damaged"),  # and the end is cut off
        (framed() + framed(), "two files in one"),
        (framed() + b'{"table":"t","op":"TRUNCATE"}\n', "lines follow its footer"),
        (framed() + b"\n", "lines follow its footer"),
        (b'{"table":"t","op":"TRUNCATE"}\n' + framed() + b'{"table":"t","op":"TRUNCATE"}\n', "damaged"),
    ],
)
def test_a_file_whose_frame_is_not_where_it_belongs_is_broken(content: bytes, problem: str) -> None:
    assert problem in error_of(content)
    large = content.replace(b'"id": 1', b'"id": 1, "v": "%b"' % (b"x" * 3_000_000))  # over many blocks
    assert error_of(large)


@pytest.mark.parametrize(
    ("header", "footer"),
    [
        ({"start_lsn": "0/11"}, {}),  # the first commit is before where the file starts
        ({}, {"first_commit_lsn": "0/30"}),
        ({}, {"end_lsn": "0/20"}),
        ({}, {"end_lsn": "0/1"}),
        ({}, {"transactions": 4}),
        ({}, {"transactions": -1}),
        ({}, {"records": -1}),
        ({"start_lsn": "nowhere"}, {}),
        ({"start_lsn": "FFFFFFFF/0"}, {}),
        ({"snapshot": "public.t", "commit_lsn": "0/5"}, {}),
    ],
)
def test_a_header_and_a_footer_that_contradict_each_other_are_a_broken_file(
    header: dict[str, Any], footer: dict[str, Any]
) -> None:
    assert "contradicts itself" in error_of(framed(header=header, **footer))


@pytest.mark.parametrize("field", ["first_commit_lsn", "last_commit_lsn", "end_lsn"])
@pytest.mark.parametrize("lsn", ["80000000/0", "FFFFFFFF/FFFFFFFF", "17"])
def test_a_footer_with_a_position_beyond_reason_proves_nothing(field: str, lsn: str) -> None:
    wrong: dict[str, Any] = {field: lsn}
    inspection = inspect(io.BytesIO(framed(**wrong)), "f.json")
    assert inspection.unfinished == "it has no footer yet"


def record(lsn: str | None, table: str = "t") -> ChangeRecord:
    return ChangeRecord(table=table, op="INSERT", data={"id": 1}, commit_lsn=lsn)


def counted(*lsns: str | None) -> Count:
    count = Count()
    for lsn in lsns:
        count.add(record(lsn), "f.json")
    return count


@pytest.mark.parametrize(
    "footer",
    [
        {"transactions": 3},
        {"transactions": 1},
        {"first_commit_lsn": "0/11"},
        {"last_commit_lsn": "7FFFFFFF/FFFFFFFF"},
        {"last_commit_lsn": "0/1F"},
    ],
)
def test_a_footer_that_says_of_its_records_what_they_do_not_is_refused(footer: dict[str, Any]) -> None:
    with pytest.raises(ParseError, match="contradicts itself"):
        counted(*LSNS).require(Footer(**(FOOTER | {"sha256": ""} | footer)), "f.json")


def test_the_same_position_may_be_spelt_otherwise_and_what_the_footer_leaves_out_is_not_asked() -> None:
    counted(*LSNS).require(Footer(**(FOOTER | {"sha256": "", "first_commit_lsn": "0/00000010"})), "f.json")
    counted(*LSNS).require(Footer(end=True, records=3, sha256=""), "f.json")


def test_records_that_say_nothing_of_commits_prove_and_disprove_nothing() -> None:
    wrong = Footer(**(FOOTER | {"sha256": "", "transactions": 1}))
    for lsns in ((None, None), ("0/10", None, "0/20"), ()):
        counted(*lsns).require(wrong, "f.json")
    # Nor does a line that an operator has skipped: it may have been a transaction of its own.
    count = counted("0/10", "0/20")
    count.add(record("0/20", table=""), "f.json")
    count.require(Footer(**(FOOTER | {"sha256": "", "transactions": 3})), "f.json")


def test_commits_that_run_backwards_within_a_file_are_a_broken_file() -> None:
    with pytest.raises(ParseError, match="commits run backwards"):
        counted("0/10", "0/20", "0/10")
