from __future__ import annotations

import re

import pytest

from syncdata.apply.feed.continuity import check_chain, lost_beginning
from syncdata.apply.position import START, Position
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.errors import DiscoveryError, ParseError

SOURCE = Header(syncdata=1, system_id="7", timeline=1, slot="s", epoch="e").source_id


def header(prev: str | None, *, epoch: str = "e", timeline: int = 1, seq: int | None = None) -> Header:
    return Header(syncdata=1, system_id="7", timeline=timeline, slot="s", epoch=epoch, seq=seq, prev=prev)


def after(file: str, *, source_id: str = SOURCE) -> Position:
    return Position(file=file, is_finished=True, record_number=3, source_id=source_id)


@pytest.mark.parametrize(
    ("position", "next_header"),
    [
        (START, header(None)),
        (after("changes_1.json"), header("changes_1.json")),
        (after("changes_1.json"), header("changes_1.json.gz")),
        (after("changes_1.json.zst"), header("changes_1.json")),
        # Our own writer takes over from the predecessor's plain files.
        (after("changes_1.json", source_id=""), header(None)),
        (after("changes_1.json", source_id=""), header("changes_1.json")),
        (after("changes_1.json", source_id=""), header(None, seq=1)),
        # A snapshot of the new source began after the predecessor's last file, or before any file.
        (after("changes_1.json"), header("changes_1.json", seq=1)),
        (after(""), header(None, seq=1)),
    ],
)
def test_the_file_that_follows_is_accepted(position: Position, next_header: Header) -> None:
    check_chain(position, next_header, "changes_2.json")


@pytest.mark.parametrize(
    ("position", "next_header", "words"),
    [
        (START, header("changes_1.json"), "it follows changes_1.json, but none was applied last"),
        (
            after("changes_1.json"),
            header("changes_2.json"),
            "it follows changes_2.json, but changes_1.json was applied last",
        ),
        (after("changes_1.json"), header(None), "it follows none, but changes_1.json was applied last"),
        (
            after("changes_1.json", source_id=""),
            header("changes_0.json"),
            "it follows changes_0.json, but changes_1.json was applied last",
        ),
    ],
)
def test_a_gap_stops_loudly(position: Position, next_header: Header, words: str) -> None:
    with pytest.raises(DiscoveryError, match="^SHD_SYN_061: changes_3.json: a gap: ") as caught:
        check_chain(position, next_header, "changes_3.json")
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "changed", [header("changes_1.json", epoch="f"), header("changes_1.json", timeline=2)]
)
def test_another_source_stops_loudly(changed: Header) -> None:
    with pytest.raises(DiscoveryError, match="another source") as caught:
        check_chain(after("changes_1.json"), changed, "changes_2.json")
    assert caught.value.hint


def test_a_new_source_after_the_predecessors_files_stops_loudly() -> None:
    with pytest.raises(DiscoveryError, match="a new source begins here") as caught:
        check_chain(after("changes_1.json", source_id=""), header("changes_1.json", seq=1), "changes_2.json")
    assert "--snapshot" in caught.value.hint and "resync" in caught.value.hint


def test_a_pruned_file_is_a_gap_that_a_resync_closes() -> None:
    with pytest.raises(DiscoveryError, match="gone for good, take snapshots"):
        check_chain(after("changes_1.json"), header("changes_4.json", seq=5), "changes_5.json")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (None, "there is no snapshot of it"),
        (
            ParseError("it is cut", file="snapshot_1/public.t.json.gz"),
            "no snapshot of it is good .*it is cut",
        ),
    ],
)
def test_a_lost_beginning_says_what_to_do_at_production(broken: ParseError | None, words: str) -> None:
    error = lost_beginning(TableName("public", "t"), "changes_5.json", broken)
    assert re.search(f"no longer holds the history of this table from its beginning, and {words}", str(error))
    assert "archive_changes --snapshot t" in error.hint
