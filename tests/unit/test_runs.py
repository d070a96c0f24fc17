"""What stands between lines that are read as runs: an announced catalog holds from the next record on."""

from __future__ import annotations

import io

import pytest

from syncdata.changes.reader import read_pieces, read_records
from syncdata.changes.run import LocatedRecord, Run, records_in, try_run

LINE = b'{"table":"t","op":"INSERT","data":{"id":"%d"},"lsn":"0/1","ts":"t","commit_lsn":"0/1"}\n'
DIGEST = "0f2a6c1d9be34a57a7c1f6a4b2d8e903"


def test_a_catalog_announced_before_a_run_of_lines_holds_from_the_first_of_them_on() -> None:
    announcement = b'# {"catalog":"%b","lsn":"0/1"}\n' % DIGEST.encode()
    content = LINE % 1 + LINE % 2 + announcement + LINE % 3 + LINE % 4
    records = list(read_records(io.BytesIO(content), "changes_20260205_103000.json"))
    found = [(located.line, located.catalog and located.catalog.digest) for located in records]
    assert found == [(1, None), (2, None), (4, DIGEST), (5, None)]


@pytest.mark.parametrize("skip", range(5))
def test_lines_that_were_applied_are_left_out_of_a_run(skip: int) -> None:
    content = b"".join(LINE % number for number in range(1, 5))
    records = read_records(io.BytesIO(content), "changes_20260205_103000.json", skip=skip)
    assert [located.line for located in records] == list(range(skip + 1, 5))


def test_a_comment_among_lines_is_counted_and_no_record() -> None:
    content = LINE % 1 + b"# a comment\n" + LINE % 2 + b"\n" + LINE % 3
    records = read_records(io.BytesIO(content), "changes_20260205_103000.json")
    assert [(located.line, located.record.data) for located in records] == [
        (1, {"id": "1"}),
        (3, {"id": "2"}),
        (5, {"id": "3"}),
    ]


def test_a_value_that_is_not_utf8_is_in_no_run() -> None:
    assert try_run((LINE % 1).replace(b'"1"', b'"\xff"'), 1, "f.json") is None


def test_a_line_that_is_left_out_is_read_by_itself_and_no_line_of_a_run() -> None:
    content = b"".join(LINE % number for number in range(1, 6)).replace(b'{"id":"3"}', b'{"id":3e}')
    pieces = list(read_pieces(io.BytesIO(content), "changes_20260205_103000.json", ignored=[3]))
    records = [located for piece in pieces for located in records_in(piece)]
    assert [located.record.data and located.record.data["id"] for located in records] == [
        *("1", "2", None, "4", "5")
    ]


def test_lines_among_which_one_is_to_be_left_out_are_no_run() -> None:
    # The line may have been mended since: whether it is left out then, whoever reads the records says.
    content = b"".join(LINE % number for number in range(1, 4))
    kinds = [
        [type(piece) for piece in read_pieces(io.BytesIO(content), "f.json", ignored=ignored)]
        for ignored in ([2], [4])
    ]
    assert kinds == [[LocatedRecord] * 3, [Run]]
