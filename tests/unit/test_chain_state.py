from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncdata.capture.chain import (
    CHAIN_FILE_NAME,
    Chain,
    continue_chain,
    follow_failover,
    from_archive,
    load_chain,
    new_epoch,
    require_same_archive,
    require_same_slot,
    require_same_system,
    save_chain,
)
from syncdata.capture.slot import Slot
from syncdata.capture.source import SystemIdentity, parse_timeline_history
from syncdata.capture.spool import SpooledFile
from syncdata.changes.header import Footer, Header
from syncdata.errors import SlotError, SourceChangedError, SpoolError

NOW = dt.datetime(2026, 2, 5, 10, 30, tzinfo=dt.UTC)
CHAIN = Chain(
    system_id="7",
    timeline=1,
    slot="s",
    epoch="e",
    seq=3,
    last_file="changes_20260205_103000.json.zst",
    last_commit_lsn="0/80",
    confirmed_lsn="0/100",
)
HERE = SystemIdentity(system_id="7", timeline=1, wal_lsn=0x200)


def slot(**changed: Any) -> Slot:
    values: dict[str, Any] = {
        "name": "s",
        "plugin": "pgoutput",
        "database": "d",
        "active_pid": None,
        "confirmed_lsn": 0x100,
        "wal_lsn": 0x200,
        "retained_bytes": 0,
        "limit_bytes": None,
        "is_temporary": False,
        "reader": None,
        "wal_status": "reserved",
    }
    return Slot(**values | changed)


def spooled(seq: int, *, epoch: str = "e", directory: Path = Path("/spool")) -> SpooledFile:
    header = Header(syncdata=1, system_id="7", timeline=1, slot="s", epoch=epoch, seq=seq)
    footer = Footer(
        end=True, records=1, transactions=1, last_commit_lsn=f"0/{seq * 0x20:X}", end_lsn="0/100", sha256=""
    )
    name = f"changes_20260205_10300{seq - 3}.json.zst"
    return SpooledFile(path=directory / name, header=header, footer=footer)


def test_the_state_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    assert load_chain(tmp_path) is None
    save_chain(tmp_path, CHAIN)
    assert load_chain(tmp_path) == CHAIN


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"system_id":"7"}', msgspec.json.encode(CHAIN).replace(b"0/100", b"later")],
)
def test_a_broken_state_is_said_and_not_guessed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHAIN_FILE_NAME).write_bytes(content)
    with pytest.raises(SpoolError, match="SHD_SYN_106.*state of the chain is broken") as caught:
        load_chain(tmp_path)
    assert CHAIN_FILE_NAME in str(caught.value)


def test_confirming_never_goes_back() -> None:
    assert CHAIN.confirm(0x180, NOW).confirmed_lsn == "0/180"
    assert CHAIN.confirm(0x20, NOW).confirmed_lsn == "0/100"


def test_the_header_that_follows_counts_on_and_names_the_last_file() -> None:
    header = CHAIN.header(NOW, start_lsn=0x120)
    assert (header.seq, header.prev, header.start_lsn) == (4, CHAIN.last_file, "0/120")
    assert header.created == "2026-02-05T10:30:00Z"
    assert header.source_id == CHAIN.source_id


def test_a_new_epoch_counts_from_one_and_follows_the_archive() -> None:
    chain = new_epoch(HERE, slot(), "changes_x.json", NOW)
    assert chain.epoch == "20260205T103000.000000Z"
    assert (chain.header(NOW).seq, chain.header(NOW).prev, chain.watermark) == (1, "changes_x.json", -1)


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (SystemIdentity(system_id="8", timeline=1, wal_lsn=0x200), "another system"),
        (SystemIdentity(system_id="7", timeline=2, wal_lsn=0x200), "on timeline 2, the chain on 1"),
        (SystemIdentity(system_id="7", timeline=1, wal_lsn=0xFF), "restored from an older copy"),
    ],
)
def test_another_source_cannot_continue_the_chain(identity: SystemIdentity, message: str) -> None:
    with pytest.raises(SourceChangedError, match=f"SHD_SYN_104.*{message}.*--new-epoch"):
        require_same_system(CHAIN, identity)


def failed_over(switches: dict[int, int], timeline: int = 2) -> SystemIdentity:
    return SystemIdentity(system_id="7", timeline=timeline, wal_lsn=0x300, switches=switches)


def test_a_failover_behind_all_that_is_archived_continues_the_chain() -> None:
    chain = follow_failover(CHAIN, failed_over({1: 0x120}), archived_lsn=0x120)
    assert (chain.timeline, chain.first_timeline, chain.epoch, chain.seq) == (2, 1, "e", 3)
    assert chain.source_id == CHAIN.source_id
    assert chain.header(NOW).source_id == CHAIN.header(NOW).source_id
    assert chain.header(NOW).timeline == 2
    require_same_system(chain, failed_over({1: 0x120}))
    again = follow_failover(chain, failed_over({1: 0x120, 2: 0x200}, timeline=3), archived_lsn=0x120)
    assert (again.timeline, again.first_timeline, again.source_id) == (3, 1, CHAIN.source_id)


def test_what_was_confirmed_beyond_the_switch_is_confirmed_no_more() -> None:
    """The archiver had confirmed an idle stretch that the standby has not got: there, other commits come."""
    chain = msgspec.structs.replace(CHAIN, last_end_lsn="0/A0")
    assert follow_failover(chain, failed_over({1: 0xB0}), chain.archived_lsn).confirmed_lsn == "0/B0"


@pytest.mark.parametrize(
    ("identity", "archived_lsn", "message"),
    [
        (failed_over({1: 0x120}), 0x121, "left at 0/120, but the archive holds changes up to 0/121"),
        (failed_over({}), 0x100, "history does not come from timeline 1"),
        (failed_over({3: 0x200}, timeline=4), 0x100, "history does not come from timeline 1"),
    ],
)
def test_a_failover_that_may_have_lost_something_does_not(
    identity: SystemIdentity, archived_lsn: int, message: str
) -> None:
    with pytest.raises(SourceChangedError, match=f"SHD_SYN_104.*{message}.*--new-epoch"):
        follow_failover(CHAIN, identity, archived_lsn)


def test_a_timeline_of_the_same_number_but_another_history_is_another_source() -> None:
    chain = follow_failover(CHAIN, failed_over({1: 0x120}), archived_lsn=0x120).with_history({1: 0x120})
    require_same_system(chain, failed_over({1: 0x120}))
    with pytest.raises(SourceChangedError, match="SHD_SYN_104.*timeline 2 is not the one of the chain"):
        require_same_system(chain, failed_over({1: 0x118}))


def test_a_chain_that_does_not_know_where_its_last_transaction_ends_takes_the_confirmed_position() -> None:
    assert CHAIN.archived_lsn == 0x100
    assert msgspec.structs.replace(CHAIN, last_end_lsn="0/90").archived_lsn == 0x90


def test_a_history_is_read_as_the_server_writes_it() -> None:
    content = b"1\t0/3000060\tno recovery target specified\n\n# a comment\n2\t1/0\tbefore 2026-02-05\n"
    assert parse_timeline_history(content) == {1: 0x3000060, 2: 1 << 32}
    assert parse_timeline_history("") == {}


def test_the_same_source_can_however_far_its_wal_is() -> None:
    require_same_system(CHAIN, HERE)
    require_same_system(CHAIN, SystemIdentity(system_id="7", timeline=1, wal_lsn=0x100))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "t"}, "slot_name is t, but the chain was written from s"),
        ({"wal_status": "lost"}, "has removed WAL"),
        ({"confirmed_lsn": 0x101}, "stands at 0/101, beyond what was confirmed"),
    ],
)
def test_a_slot_that_would_leave_a_hole_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises((SlotError, SourceChangedError), match=f"{message}.*--new-epoch"):
        require_same_slot(CHAIN, slot(**other))


@pytest.mark.parametrize("confirmed", [None, 0x20, 0x100])  # a crashed source forgets
def test_a_slot_that_repeats_is_fine(confirmed: int | None) -> None:
    require_same_slot(CHAIN, slot(confirmed_lsn=confirmed))


@pytest.mark.parametrize(
    ("newest", "waiting"),
    [
        ("changes_20260205_103000.json.zst", []),
        ("changes_20260205_103000.json.gz", []),  # compressed in another way, but the same file
        ("changes_20260205_103001.json.zst", [spooled(4)]),  # delivered in the moment before a crash
        ("changes_20260205_103000.json.zst", [spooled(4)]),
    ],
)
def test_the_archive_ends_with_the_chain_or_with_what_was_just_delivered(
    newest: str, waiting: list[SpooledFile]
) -> None:
    require_same_archive(CHAIN, newest, waiting)


@pytest.mark.parametrize("newest", [None, "changes_20260205_102959.json.zst", "changes_20260205_110000.json"])
def test_an_archive_that_ends_elsewhere_is_refused(newest: str | None) -> None:
    with pytest.raises(SourceChangedError, match=f"newest change file is {newest or 'none'}.*--new-epoch"):
        require_same_archive(CHAIN, newest, [spooled(4)])


def test_a_chain_that_has_no_file_yet_needs_none_in_the_archive() -> None:
    require_same_archive(new_epoch(HERE, slot(), None, NOW), None, [])


def test_spooled_files_continue_the_chain_but_for_those_that_are_in_it() -> None:
    chain, waiting = continue_chain(CHAIN, [spooled(3), spooled(4), spooled(5)])
    assert [file.header.seq for file in waiting] == [4, 5]
    assert (chain.seq, chain.last_file, chain.last_commit_lsn) == (5, waiting[-1].name, "0/A0")
    assert chain.confirmed_lsn == CHAIN.confirmed_lsn


@pytest.mark.parametrize("files", [[spooled(5)], [spooled(4), spooled(6)], [spooled(4, epoch="f")]])
def test_spooled_files_that_do_not_follow_are_refused(files: list[SpooledFile]) -> None:
    with pytest.raises(SpoolError, match="does not follow"):
        continue_chain(CHAIN, files)


def test_a_lost_state_is_found_again_in_the_archives_newest_file() -> None:
    file = spooled(3)
    chain = from_archive(file.header, file.footer, file.name, slot(), NOW)
    assert (chain.seq, chain.last_file, chain.last_commit_lsn) == (3, file.name, "0/60")
    assert (chain.source_id, chain.confirmed_lsn) == (CHAIN.source_id, "0/100")


def test_a_lost_state_is_not_guessed_when_the_slot_has_moved_beyond_that_file() -> None:
    file = spooled(3)
    with pytest.raises(SourceChangedError, match="state of the chain is lost.*--new-epoch"):
        from_archive(file.header, file.footer, file.name, slot(confirmed_lsn=0x101), NOW)
