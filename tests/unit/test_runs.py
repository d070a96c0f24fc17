"""What stands between lines that are read as runs: an announced catalog holds from the next record on."""

from __future__ import annotations

import io

from syncdata.changes.reader import read_records

LINE = b'{"table":"t","op":"INSERT","data":{"id":"%d"},"lsn":"0/1","ts":"t","commit_lsn":"0/1"}\n'
DIGEST = "0f2a6c1d9be34a57a7c1f6a4b2d8e903"


def test_a_catalog_announced_before_a_run_of_lines_holds_from_the_first_of_them_on() -> None:
    announcement = b'# {"catalog":"%b","lsn":"0/1"}\n' % DIGEST.encode()
    content = LINE % 1 + LINE % 2 + announcement + LINE % 3 + LINE % 4
    records = list(read_records(io.BytesIO(content), "changes_20260205_103000.json"))
    found = [(located.line, located.catalog and located.catalog.digest) for located in records]
    assert found == [(1, None), (2, None), (4, DIGEST), (5, None)]
