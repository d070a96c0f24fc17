from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from syncdata.changes.catalog import Announcement, catalog_comment
from syncdata.changes.filenames import stem
from syncdata.changes.header import Header
from syncdata.changes.reader import inspect, read_records
from syncdata.errors import ParseError

RECORDS = [b'{"table":"t","op":"INSERT","data":{"id":%d}}' % number for number in range(3)]
PLAIN = b"".join(line + b"\n" for line in RECORDS)
HEADER = {
    "syncdata": 1,
    "system_id": "7",
    "timeline": 1,
    "slot": "s",
    "epoch": "e",
    "seq": 2,
    "prev": "changes_1.json",
}


def comment(values: dict[str, Any]) -> bytes:
    return b"# " + json.dumps(values, separators=(",", ":")).encode() + b"\n"


def finished(body: bytes = PLAIN, *, header: dict[str, Any] = HEADER, **footer: Any) -> bytes:
    text = comment(header) + body
    return text + comment({"end": True, "records": 3, "sha256": hashlib.sha256(text).hexdigest(), **footer})


def is_finished(content: bytes, name: str = "f.json") -> bool:
    inspection = inspect(io.BytesIO(content), name)
    return not inspection.unfinished and inspection.error is None


def ids(content: bytes, name: str = "f.json", *, skip: int = 0) -> list[Any]:
    records = read_records(io.BytesIO(content), name, skip=skip)
    return [item.record.data["id"] for item in records if item.record.data]


def gz_frames(content: bytes) -> list[bytes]:
    middle = len(content) // 2
    return [gzip.compress(content[:middle], mtime=0), gzip.compress(content[middle:], mtime=0)]


def zst_frames(content: bytes) -> list[bytes]:
    middle = len(content) // 2
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    return [compressor.compress(content[:middle]), compressor.compress(content[middle:])]


COMPRESSED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("f.json", lambda content: content),
    ("f.json.gz", gzip.compress),
    ("f.json.gz", lambda content: b"".join(gz_frames(content))),
    ("f.json.zst", lambda content: zstandard.ZstdCompressor().compress(content)),
    ("f.json.zst", lambda content: zstandard.ZstdCompressor(write_content_size=False).compress(content)),
    ("f.json.zst", lambda content: b"".join(zst_frames(content))),
    # A skippable frame, such as pzstd writes.
    (
        "f.json.zst",
        lambda content: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.ZstdCompressor().compress(content),
    ),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("changes_1.json", "changes_1"),
        ("changes_1.json.gz", "changes_1"),
        ("changes_1.json.zst", "changes_1"),
        ("changes_1", "changes_1"),
        ("", ""),
    ],
)
def test_a_files_identity_is_its_name_without_format_and_compression(name: str, expected: str) -> None:
    assert stem(name) == expected


@pytest.mark.parametrize(("name", "compress"), COMPRESSED)
def test_a_finished_file_is_read_whatever_its_compression(
    name: str, compress: Callable[[bytes], bytes]
) -> None:
    stream = io.BytesIO(compress(finished()))
    inspection = inspect(stream, name)
    assert (inspection.unfinished, inspection.error) == ("", None)
    assert inspection.header is not None
    assert (inspection.header.seq, inspection.header.prev) == (2, "changes_1.json")
    assert inspection.footer is not None
    assert inspection.footer.records == 3
    assert stream.tell() == 0
    assert ids(stream.read(), name) == [0, 1, 2]


@pytest.mark.parametrize(("name", "compress"), COMPRESSED)
def test_a_plain_file_is_read_whatever_its_compression(name: str, compress: Callable[[bytes], bytes]) -> None:
    inspection = inspect(io.BytesIO(compress(PLAIN)), name)
    assert (inspection.header, inspection.footer) == (None, None)
    assert (inspection.unfinished, inspection.error) == ("", None)
    assert ids(compress(PLAIN), name) == [0, 1, 2]


@pytest.mark.parametrize(("name", "compress"), COMPRESSED[:-1])
def test_a_file_with_a_header_cut_anywhere_is_unfinished(
    name: str, compress: Callable[[bytes], bytes]
) -> None:
    content = compress(finished())
    for size in range(1, len(content)):
        inspection = inspect(io.BytesIO(content[:size]), name)
        assert inspection.unfinished, size
        assert inspection.error is None


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("f.json.gz", [gzip.compress(PLAIN)]),
        ("f.json.gz", gz_frames(PLAIN)),
        ("f.json.zst", [zstandard.ZstdCompressor().compress(PLAIN)]),
        ("f.json.zst", zst_frames(PLAIN)),
    ],
)
def test_a_compressed_plain_file_cut_anywhere_is_unfinished(name: str, frames: list[bytes]) -> None:
    content = b"".join(frames)
    assert [size for size in range(len(content) + 1) if is_finished(content[:size], name)] == [len(content)]


def test_a_plain_file_cut_anywhere_is_unfinished_unless_its_last_line_is_whole() -> None:
    content = b"# note\n" + PLAIN
    line_ends = [number for number, byte in enumerate(content) if byte == ord("\n")]
    whole = {0, *range(3, 8), *line_ends, *(number + 1 for number in line_ends)}
    for size in range(len(content) + 1):
        assert is_finished(content[:size]) is (size in whole), size


@pytest.mark.parametrize("size", range(1, 15))
def test_what_may_become_a_header_is_unfinished(size: int) -> None:
    assert not is_finished(finished()[:size])


def test_a_plain_file_whose_last_line_is_huge_and_cut_is_unfinished() -> None:
    line = b'{"table":"t","op":"INSERT","data":{"id":%s}}' % (b"9" * 5000)
    assert is_finished(PLAIN + line)
    assert not is_finished(PLAIN + line[:-1])
    assert not is_finished(PLAIN + line[:-20])


def test_no_damaged_byte_before_the_footer_goes_unnoticed() -> None:
    content = finished()
    for place in range(content.rindex(b"# ")):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert not is_finished(bytes(damaged)) or place < len(b'# {"syncdata":'), place


@pytest.mark.parametrize("name", ["f.json.gz", "f.json.zst"])
@pytest.mark.parametrize("content", [b"not compressed at all\n", b"\0" * 100])
def test_corrupt_compression_is_an_error(name: str, content: bytes) -> None:
    inspection = inspect(io.BytesIO(content), name)
    assert str(inspection.error).startswith(f"SHD_SYN_063: {name}: the compressed data is corrupt (")


@pytest.mark.parametrize(
    ("name", "frames"), [("f.json.gz", gz_frames(PLAIN)), ("f.json.zst", zst_frames(PLAIN))]
)
def test_a_damaged_checksum_of_the_compression_is_an_error(name: str, frames: list[bytes]) -> None:
    damaged = bytearray(b"".join(frames))
    damaged[len(frames[0]) - 1 - 4 * name.endswith(".gz")] ^= 1
    assert inspect(io.BytesIO(bytes(damaged)), name).error is not None


def test_a_wrong_sha256_is_an_error() -> None:
    error = inspect(io.BytesIO(finished(sha256="0" * 64)), "f.json").error
    assert error is not None
    assert "SHA-256" in str(error)
    assert error.hint


@pytest.mark.parametrize(
    "content",
    [
        comment(HEADER) + PLAIN,
        comment(HEADER),
        finished(end=False),
        finished(records="three"),
        finished(last_commit_lsn="17"),
        finished()[:-1],
    ],
)
def test_a_file_with_a_header_and_no_valid_footer_is_unfinished(content: bytes) -> None:
    inspection = inspect(io.BytesIO(content), "f.json")
    assert inspection.header is not None
    assert inspection.unfinished == "it has no footer yet"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'# {"syncdata":1,\n', "broken header"),
        (b'# {"syncdata":"one"}\n', "broken header"),
        (b'# {"syncdata":1,"seq":"two"}\n', "broken header"),
        (b'# {"syncdata":2}\n', "format version 2 is newer"),
    ],
)
def test_a_broken_header_is_an_error(header: bytes, message: str) -> None:
    error = inspect(io.BytesIO(header + PLAIN), "f.json").error
    assert error is not None
    assert str(error).startswith("SHD_SYN_063: f.json:1: ")
    assert message in str(error)
    assert error.hint


def test_keys_that_a_later_version_adds_are_ignored() -> None:
    assert is_finished(finished(header={**HEADER, "later": [1]}, later={"x": 1}))


def test_a_source_is_its_system_timeline_slot_and_epoch() -> None:
    base = Header(syncdata=1, system_id="7", timeline=1, slot="s", epoch="e")
    others = [
        Header(syncdata=1, system_id="8", timeline=1, slot="s", epoch="e"),
        Header(syncdata=1, system_id="7", timeline=2, slot="s", epoch="e"),
        Header(syncdata=1, system_id="7", timeline=1, slot="t", epoch="e"),
        Header(syncdata=1, system_id="7", timeline=1, slot="s", epoch="f"),
    ]
    assert base.source_id == Header(syncdata=1, system_id=7, timeline=1, slot="s", epoch="e", seq=9).source_id
    assert len({header.source_id for header in [base, *others]}) == 5


@pytest.mark.parametrize(
    "content",
    [
        b"# note\n\n" + PLAIN + b"   \n#\n",
        b"\xef\xbb\xbf" + PLAIN,
        b"\xef\xbb\xbf# note\n" + PLAIN,
        PLAIN.replace(b"\n", b"\r\n"),
        b"\r\n" + PLAIN + b"\r\n",
        PLAIN[:-1],
        PLAIN + b"# no newline",
        PLAIN + b"  ",
        b'# {"end":true}\n' + PLAIN,
    ],
)
def test_comments_blank_lines_and_other_systems_line_ends_are_no_records(content: bytes) -> None:
    assert is_finished(content)
    assert ids(content) == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"\n", b"# note", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_plain_file_may_hold_nothing(content: bytes) -> None:
    assert is_finished(content)
    assert ids(content) == []


def test_one_line_after_a_byte_order_mark_needs_no_newline() -> None:
    assert is_finished(b"\xef\xbb\xbf" + RECORDS[0])


def test_records_know_their_line_and_size() -> None:
    content = b"# note\n\n" + PLAIN
    found = [(item.line, item.size_bytes) for item in read_records(io.BytesIO(content), "f.json")]
    assert found == [(number, len(RECORDS[0]) + 1) for number in (3, 4, 5)]


@pytest.mark.parametrize("skip", range(5))
def test_records_that_were_applied_are_skipped_without_being_parsed(skip: int) -> None:
    content = b"# note\n" + b"broken\n" * skip + PLAIN
    assert ids(content, skip=skip) == [0, 1, 2]


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize(("name", "compress"), [COMPRESSED[0], COMPRESSED[1], COMPRESSED[3]])
def test_a_line_may_be_as_long_as_it_likes(name: str, compress: Callable[[bytes], bytes], size: int) -> None:
    line = b'{"table":"t","op":"INSERT","data":{"id":"%s"}}' % (b"x" * size)
    for content in (finished(PLAIN + line + b"\n" + PLAIN), PLAIN + line + b"\n" + PLAIN, PLAIN + line):
        assert is_finished(compress(content), name)
        assert ids(compress(content), name)[3] == "x" * size


@pytest.mark.parametrize(
    "line",
    [b"broken", b'{"op":"INSERT"}', RECORDS[0] + b",", b'{"table":"t","op":"INSERT","data":{"id":"\xff"}}'],
)
def test_an_unreadable_line_is_an_error_that_names_it(line: bytes) -> None:
    content = b"# note\n" + PLAIN + line + b"\n" + PLAIN
    records = read_records(io.BytesIO(content), "f.json")
    assert [item.line for _, item in zip(range(3), records, strict=False)] == [2, 3, 4]
    with pytest.raises(ParseError, match="^SHD_SYN_063: f.json:5: not a "):
        next(records)
    assert is_finished(content)


def mark(op: str) -> bytes:
    return b'{"table": "", "op": "%s", "ts": "2026-11-27 15:15:20+00"}\n' % op.encode()


B, C, M = mark("B"), mark("C"), mark("M")


def test_a_position_counts_the_marks_of_transactions() -> None:
    content = B + RECORDS[0] + b"\n" + C + M + B + RECORDS[1] + b"\n" + C
    found = list(read_records(io.BytesIO(content), "f.json"))
    assert "".join(item.record.op[0] for item in found) == "BICMBIC"
    for skip in range(8):
        rest = [0, 1] if skip < 2 else [1] if skip < 6 else []
        assert ids(content, skip=skip) == rest


@pytest.mark.parametrize(
    ("content", "is_whole"),
    [
        (B + C, True),
        (B + PLAIN + C, True),
        (B + PLAIN + C + M, True),
        (B + PLAIN + C[:-1], True),
        (B + PLAIN + C + b"# note\n", True),
        (b"\xef\xbb\xbf" + B + PLAIN, False),
        (B, False),
        (B + PLAIN, False),
        (B + PLAIN[:-1], False),
        (B + PLAIN + C + B, False),
        (B + PLAIN + C[:-9], False),
        (PLAIN + B, True),  # its first line does not say that it marks transactions
    ],
)
def test_a_plain_file_that_ends_inside_a_marked_transaction_is_unfinished(
    content: bytes, is_whole: bool
) -> None:
    assert is_finished(content) is is_whole
    assert is_finished(gzip.compress(content), "f.json.gz") is is_whole


def test_a_file_names_its_catalogs_and_each_holds_from_the_next_record_on() -> None:
    first, second, third = ("1" * 32, "2" * 32, "3" * 32)
    header = b'# {"syncdata":1,"catalog":"%b","catalog_lsn":"0/5"}\n' % first.encode()
    body = header + catalog_comment(second, "0/A") + b'{"table":"t","op":"TRUNCATE"}\n' * 2
    body += b"# a word\n" + b'{"table":"t","op":"TRUNCATE"}\n' + catalog_comment(third)
    sha256 = hashlib.sha256(body).hexdigest()
    stream = io.BytesIO(body + b'# {"end":true,"records":3,"sha256":"%b"}\n' % sha256.encode())
    inspection = inspect(stream, "f.json")
    assert inspection.error is None and inspection.unfinished == ""
    assert inspection.digests == {first, second, third}
    assert inspection.catalog == Announcement(first, 5)
    assert inspection.last_catalog == Announcement(third, None)
    announced = [located.catalog for located in read_records(stream, "f.json")]
    assert announced == [Announcement(second, 10), None, None]
    # A reader that begins behind the comment line knows it nevertheless.
    stream.seek(0)
    assert [r.catalog for r in read_records(stream, "f.json", skip=1)] == [Announcement(second, 10), None]


def test_a_snapshots_catalog_is_of_the_commit_that_its_rows_are() -> None:
    header = b'# {"syncdata":1,"snapshot":"public.t","commit_lsn":"0/9","catalog":"%b"}\n' % (b"1" * 32)
    sha256 = hashlib.sha256(header).hexdigest()
    stream = io.BytesIO(header + b'# {"end":true,"records":0,"sha256":"%b"}\n' % sha256.encode())
    assert inspect(stream, "f.json").catalog == Announcement("1" * 32, 9)


def test_a_header_with_a_catalog_that_could_lead_out_of_the_archive_is_broken() -> None:
    header = b'# {"syncdata":1,"catalog":"../../secret"}\n'
    sha256 = hashlib.sha256(header).hexdigest()
    stream = io.BytesIO(header + b'# {"end":true,"records":0,"sha256":"%b"}\n' % sha256.encode())
    assert "catalog" in str(inspect(stream, "f.json").error)
