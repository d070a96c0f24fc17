"""Reads what an archiver has put into a directory, and holds it to what every chain promises."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from syncdata.changes.head import HEAD_NAME, parse_head
from syncdata.changes.header import Footer, Header
from syncdata.changes.position import parse_lsn
from syncdata.changes.reader import inspect, read_records
from syncdata.changes.record import ChangeRecord


def archived_records(directory: Path) -> list[ChangeRecord]:
    """Return the records of all the archive's change files in order.

    Fails unless each file is whole and follows the one before, and each transaction is there once, whole,
    and in the order of the commits.
    """
    records: list[ChangeRecord] = []
    previous: Header | None = None
    previous_name, watermark = None, 0
    for path in sorted(directory.glob("changes_*")):
        with path.open("rb") as stream:
            found = inspect(stream, path.name)
            assert found.header is not None and found.footer is not None, (path.name, found)
            own = [located.record for located in read_records(stream, path.name)]
        _require_successor(found.header, previous, previous_name)
        if own:
            _require_footer(found.footer, own)
        if not own:  # It only announces what is published now.
            assert found.header.catalog and found.footer.transactions == 0, path.name
            previous, previous_name = found.header, path.name
            continue
        if found.header.seq == 1:
            watermark = 0  # A new epoch may begin with what the last one ended with.
        assert _commit(own[0]) > watermark, f"{path.name} repeats what is in the file before it"
        records += own
        previous, previous_name, watermark = found.header, path.name, _commit(own[-1])
    return records


def named_catalogs(directory: Path) -> set[str]:
    """Return the digests that the archive's change files and its head name."""
    digests = {parse_head((directory / HEAD_NAME).read_bytes()).catalog}
    for path in sorted(directory.glob("changes_*")):
        with path.open("rb") as stream:
            digests |= inspect(stream, path.name).digests
    return {digest for digest in digests if digest is not None}


def _require_successor(header: Header, previous: Header | None, previous_name: str | None) -> None:
    if previous is not None and header.source_id == previous.source_id:
        assert header.seq == (previous.seq or 0) + 1
    else:
        assert header.seq == 1
    assert header.prev == previous_name


def _require_footer(footer: Footer, records: list[ChangeRecord]) -> None:
    commits = [_commit(record) for record in records]
    # A transaction that came in two pieces would be two groups.
    transactions = [commit for commit, _ in groupby(commits)]
    assert transactions == sorted(set(transactions))
    assert footer.records == len(records)
    assert footer.transactions == len(transactions)
    assert parse_lsn(footer.first_commit_lsn or "") == transactions[0]
    assert parse_lsn(footer.last_commit_lsn or "") == transactions[-1]
    assert parse_lsn(footer.end_lsn or "") > transactions[-1]


def _commit(record: ChangeRecord) -> int:
    assert record.commit_lsn is not None
    return parse_lsn(record.commit_lsn)
