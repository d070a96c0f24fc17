"""When a change file ends. The messages are those of a real stream, see `test_encoder`."""

from __future__ import annotations

import base64
import datetime as dt
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from syncdata.capture import assembler
from syncdata.capture.assembler import Assembler
from syncdata.capture.chain import Chain
from syncdata.capture.replication import XLogData
from syncdata.capture.runs import encode_run
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.spool import SpooledFile
from syncdata.capture.stream_catalog import NamedCatalog, StreamCatalog
from syncdata.changes.position import format_lsn
from syncdata.errors import UnreadableChangeError

STREAM = Path(__file__).parents[1] / "data" / "pgoutput_lines.jsonl"
CHAIN = Chain(system_id="7", timeline=1, slot="s", epoch="e", confirmed_lsn="0/0")


class Catalogs:
    """A catalog that never changes, or with each description of a table."""

    def __init__(self, *, changes: bool = False) -> None:
        self.current = NamedCatalog(digest="d" * 64, lsn="0/1")
        self._changes = changes
        self._described = 0

    def describe(self, *described: object) -> bool:
        self._described += 1
        if self._changes:
            self.current = NamedCatalog(digest=f"{self._described:064}", lsn=f"0/{self._described}")
        return self._changes

    def note_naming(self, *named: object) -> None: ...

    def note_announced(self, digest: str) -> None: ...


def stream() -> Iterator[XLogData]:
    for line in STREAM.read_bytes().splitlines():
        entry = msgspec.json.decode(line)
        yield XLogData(entry["lsn"], base64.b64decode(entry["message"]))


def as_they_come() -> list[bytes]:
    """Return the messages as they come from the connection."""
    return [b"w" + struct.pack(">QQQ", message.lsn, 0, 0) + message.message for message in stream()]


def assembled(
    directory: Path,
    *,
    burst: int = 0,
    chain: Chain = CHAIN,
    held_lsn: int | None = None,
    catalogs: Catalogs | None = None,
    **options: Any,
) -> list[SpooledFile]:
    """Return the files of the stream that end while nobody asks for it. *burst*: so many messages are taken
    at once; 0: each by itself."""
    directory.mkdir(exist_ok=True)
    files: list[SpooledFile] = []
    settings = CaptureSettings(params={}, slot_name="s", publication="p", spool_dir=directory, **options)
    clock = lambda: dt.datetime(2026, 2, 5, tzinfo=dt.UTC)  # noqa: E731
    named = cast(StreamCatalog, catalogs or Catalogs())
    assembling = Assembler(settings, chain, files.append, clock, named, held_lsn=held_lsn)
    if burst:
        sent = as_they_come()
        for first in range(0, len(sent), burst):
            left: Sequence[bytes] = sent[first : first + burst]
            while left:
                left = assembling.take_all(left)
    else:
        for message in stream():
            assembling.take(message)
    assembling.discard()
    return files


def test_an_old_file_ends_at_a_commit_though_the_stream_never_pauses(tmp_path: Path) -> None:
    files = assembled(tmp_path, rotate_s=0.0)
    assert len(files) == 12
    assert [file.footer.transactions for file in files] == [1] * len(files)
    assert sum(file.footer.records for file in files) == 29


def test_a_young_file_goes_on_until_it_is_large(tmp_path: Path) -> None:
    assert assembled(tmp_path, rotate_s=3600.0) == []
    (first, *_) = assembled(tmp_path, rotate_s=3600.0, rotate_bytes=4_000)
    assert (first.footer.transactions or 0) > 1


@pytest.mark.parametrize("burst", [1, 2, 7, 62])
def test_messages_taken_together_make_the_files_that_they_make_one_by_one(
    tmp_path: Path, burst: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"rotate_s": 3600.0, "rotate_bytes": 4_000, "compression": "none"}
    expected = [(file.footer, file.path.read_bytes()) for file in assembled(tmp_path / "one", **options)]
    runs: list[int] = []

    def counted(messages: Sequence[bytes], *given: Any) -> bytes | None:
        runs.append(len(messages))
        return encode_run(messages, *given)

    monkeypatch.setattr(assembler, "encode_run", counted)
    together = assembled(tmp_path / "all", burst=burst, **options)
    assert [(file.footer, file.path.read_bytes()) for file in together] == expected
    assert len(expected) > 1
    assert bool(runs) == (burst > 1)


@pytest.mark.parametrize("burst", [2, 7, 62])
@pytest.mark.parametrize("case", ["in the chain", "held", "announced"])
def test_messages_taken_together_keep_to_what_one_by_one_they_keep_to(
    tmp_path: Path, burst: int, case: str
) -> None:
    """Transactions that are in the chain get no lines, a file ends before one that was held, and a catalog is
    named where it begins, between the same two lines."""
    fourth = 22188600

    def made(name: str, burst: int) -> list[bytes]:
        cases: dict[str, dict[str, Any]] = {
            "in the chain": {"chain": msgspec.structs.replace(CHAIN, last_commit_lsn=format_lsn(fourth))},
            "held": {"held_lsn": fourth, "rotate_bytes": 1 << 30},
            "announced": {"catalogs": Catalogs(changes=True)},
        }
        options: dict[str, Any] = {"rotate_s": 3600.0, "rotate_bytes": 4_000, "compression": "none"}
        options |= cases[case]
        return [file.path.read_bytes() for file in assembled(tmp_path / name, burst=burst, **options)]

    expected = made("one", 0)
    assert made("all", burst) == expected
    lines = b"".join(expected).splitlines()
    of_fourth = [line for line in lines if format_lsn(fourth).encode() in line and not line.startswith(b"#")]
    assert len(of_fourth) == (5 if case == "announced" else 0)
    assert len(expected) == 1 or case != "held"
    assert sum(b'"0000' in line for line in lines) > 2 or case != "announced"


def test_what_is_behind_the_end_of_a_file_is_left_for_the_next_time(tmp_path: Path) -> None:
    """There may be no room for one more."""
    files: list[SpooledFile] = []
    settings = CaptureSettings(
        params={}, slot_name="s", publication="p", spool_dir=tmp_path, rotate_s=3600.0, rotate_bytes=1
    )
    clock = lambda: dt.datetime(2026, 2, 5, tzinfo=dt.UTC)  # noqa: E731
    assembling = Assembler(settings, CHAIN, files.append, clock, cast(StreamCatalog, Catalogs()))
    left: Sequence[bytes] = as_they_come()
    for number in range(1, 13):
        left = assembling.take_all(left)
        assert len(files) == number
    assert left == []


def test_a_change_that_cannot_be_kept_is_found_among_many_and_those_before_it_are_written(
    tmp_path: Path,
) -> None:
    sent = as_they_come()
    sent[20] = sent[20].removesuffix(b">") + b"\xff"
    settings = CaptureSettings(params={}, slot_name="s", publication="p", spool_dir=tmp_path)
    clock = lambda: dt.datetime(2026, 2, 5, tzinfo=dt.UTC)  # noqa: E731
    assembling = Assembler(settings, CHAIN, lambda file: None, clock, cast(StreamCatalog, Catalogs()))
    with pytest.raises(UnreadableChangeError) as caught:
        assembling.take_all(sent)
    assert assembling.locate(caught.value).commit_lsn == 22189392
    assert assembling._counts.records == 9
    assembling.discard()


def test_what_no_run_can_be_made_of_is_taken_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"rotate_s": 3600.0, "rotate_bytes": 4_000, "compression": "none"}
    expected = [file.path.read_bytes() for file in assembled(tmp_path / "one", **options)]
    monkeypatch.setattr(assembler, "encode_run", lambda *given: None)
    together = assembled(tmp_path / "all", burst=62, **options)
    assert [file.path.read_bytes() for file in together] == expected
