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

STREAM = Path(__file__).parents[1] / "data" / "pgoutput_lines.jsonl"
CHAIN = Chain(system_id="7", timeline=1, slot="s", epoch="e", confirmed_lsn="0/0")


class Catalogs:
    """A catalog that never changes."""

    current = NamedCatalog(digest="d" * 64, lsn="0/1")

    def describe(self, *described: object) -> bool:
        return False

    def note_naming(self, *named: object) -> None: ...

    def note_announced(self, digest: str) -> None: ...


def stream() -> Iterator[XLogData]:
    for line in STREAM.read_bytes().splitlines():
        entry = msgspec.json.decode(line)
        yield XLogData(entry["lsn"], base64.b64decode(entry["message"]))


def assembled(directory: Path, *, burst: int = 0, **options: Any) -> list[SpooledFile]:
    """Return the files of the stream that end while nobody asks for it. *burst*: so many messages are taken
    at once, as they come from the connection; 0: each by itself."""
    directory.mkdir(exist_ok=True)
    files: list[SpooledFile] = []
    settings = CaptureSettings(params={}, slot_name="s", publication="p", spool_dir=directory, **options)
    clock = lambda: dt.datetime(2026, 2, 5, tzinfo=dt.UTC)  # noqa: E731
    assembling = Assembler(settings, CHAIN, files.append, clock, cast(StreamCatalog, Catalogs()))
    if burst:
        sent = [b"w" + struct.pack(">QQQ", message.lsn, 0, 0) + message.message for message in stream()]
        for first in range(0, len(sent), burst):
            assembling.take_all(sent[first : first + burst])
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


def test_what_no_run_can_be_made_of_is_taken_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"rotate_s": 3600.0, "rotate_bytes": 4_000, "compression": "none"}
    expected = [file.path.read_bytes() for file in assembled(tmp_path / "one", **options)]
    monkeypatch.setattr(assembler, "encode_run", lambda *given: None)
    together = assembled(tmp_path / "all", burst=62, **options)
    assert [file.path.read_bytes() for file in together] == expected
