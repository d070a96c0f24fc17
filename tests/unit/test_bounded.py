"""Hostile files and documents: memory that is bounded, and one kind of error, whatever stands in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard

from syncdata.apply.plan.schema import ColumnType
from syncdata.apply.plan.values import to_text
from syncdata.changes.catalog import catalog_comment, digest_of, parse_announcement, parse_catalog
from syncdata.changes.compression import decompress
from syncdata.changes.head import parse_head
from syncdata.changes.header import parse_footer, parse_header
from syncdata.changes.reader import CHUNK_BYTES, MAX_ANNOUNCED, MAX_COMMENT_BYTES, inspect, read_records
from syncdata.changes.record import Json, parse_record
from syncdata.changes.times import parse_time
from syncdata.errors import ApplyError, ParseError, Reason, SchemaError, shortened

RECORD = b'{"table":"t","op":"INSERT","data":{"id":%d}}\n'
LIMIT = 1 << 20


def peak_of(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def compressed(name: str, pieces: Iterator[bytes]) -> bytes:
    """Return *pieces* compressed as *name* says, without ever holding them all."""
    out = io.BytesIO()
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
            for piece in pieces:
                file.write(piece)
    else:
        with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
            for piece in pieces:
                writer.write(piece)
    return out.getvalue()


def lines_of(content: bytes, name: str = "f.json", **options: Any) -> list[tuple[int, Any]]:
    options = {"max_record_bytes": LIMIT} | options
    return [
        (found.line, found.record.data and found.record.data["id"])
        for found in read_records(io.BytesIO(content), name, **options)
    ]


# Compression


@pytest.mark.parametrize("name", ["f.json.gz", "f.json.zst"])
def test_a_few_bytes_that_stand_for_many_are_read_in_steps(name: str) -> None:
    content = compressed(name, (bytes(1 << 20) for _ in range(96)))
    stream = decompress(io.BytesIO(content), name)

    def read_all() -> None:
        while stream.read(1 << 16):
            pass

    assert peak_of(read_all) < 24 << 20


def test_a_zstd_frame_that_asks_for_a_huge_window_is_an_error_that_says_so() -> None:
    # Without its size, a frame keeps the window that it was given.
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    error = inspect(io.BytesIO(frame.compress(RECORD % 1) + frame.flush()), "f.json.zst").error
    assert "128 MiB" in str(error)
    assert "--long" in str(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.json.gz", gzip.compress(RECORD % 1, mtime=0) + b"garbage"),
        ("f.json.zst", zstandard.ZstdCompressor().compress(RECORD % 1) + b"garbage!"),
        ("f.json.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 20),
    ],
)
def test_garbage_among_compressed_data_is_corrupt(name: str, content: bytes) -> None:
    assert "corrupt" in str(inspect(io.BytesIO(content), name).error)


def test_many_tiny_frames_are_read() -> None:
    member = gzip.compress(b"#\n", mtime=0)
    stream = decompress(io.BytesIO(member * 20_000), "f.json.gz")
    assert len(stream.read()) == 40_000


# Lines


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_record_beyond_the_limit_is_an_error_with_its_line_and_the_key(ending: bytes) -> None:
    content = RECORD % 1 + b"#\n" + b"x" * (LIMIT + 1) + ending
    records = read_records(io.BytesIO(content), "f.json", max_record_bytes=LIMIT)
    assert next(records).line == 1
    with pytest.raises(ParseError, match=r"f\.json:3: .*1,048,576 bytes.*max_record_bytes"):
        next(records)
    assert inspect(io.BytesIO(content), "f.json", max_record_bytes=LIMIT).unfinished == ""


def test_a_line_beyond_the_limit_is_never_in_memory_as_a_whole() -> None:
    content = compressed("f.json.gz", (b"x" * (1 << 20) for _ in range(64)))

    def read() -> None:
        inspect(io.BytesIO(content), "f.json.gz", max_record_bytes=LIMIT)
        with pytest.raises(ParseError, match="max_record_bytes"):
            lines_of(content, "f.json.gz")

    assert peak_of(read) < 24 << 20


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
@pytest.mark.parametrize("ends", [True, False])
def test_the_last_line_is_known_whatever_is_before_it(size: int, ends: bool) -> None:
    """A file that waits for the end of its last line, behind lines that end where a block ends, or do not."""
    for first in (b"x" * (size - 1) + b"\n", b"x" * (size - 3) + b"\n#\n", b"\n" * size):
        last = RECORD % 1 if ends else (RECORD % 1)[:20]
        found = inspect(io.BytesIO(first + last), "f.json", max_record_bytes=1_000)
        assert bool(found.unfinished) is not ends
        assert found.text_bytes == len(first + last)


def test_a_footer_is_found_behind_a_line_that_is_too_long() -> None:
    for size in (CHUNK_BYTES - 100, CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7):
        header = b'# {"syncdata":1}\n'
        text = header + b"x" * (size - len(header) - 1) + b"\n"
        footer = b'# {"end":true,"records":1,"sha256":"%b"}\n' % hashlib.sha256(text).hexdigest().encode()
        found = inspect(io.BytesIO(text + footer), "f.json", max_record_bytes=1_000)
        assert (found.error, found.unfinished, found.footer is not None) == (None, "", True)


def test_a_line_beyond_the_limit_can_be_skipped() -> None:
    content = RECORD % 1 + b"x" * (3 * LIMIT) + b"\n" + RECORD % 2
    assert lines_of(content, ignored={2}) == [(1, 1), (2, None), (3, 2)]
    assert lines_of(content, skip=2) == [(3, 2)]


def test_a_record_as_long_as_the_limit_is_read() -> None:
    line = b'{"table":"t","op":"INSERT","data":{"id":1,"v":"%b"}}\n'
    line %= b"x" * (LIMIT - len(line) + 2)
    assert len(line) == LIMIT
    assert lines_of(line + RECORD % 2) == [(1, 1), (2, 2)]
    assert lines_of(line, max_record_bytes=len(line) - 1, ignored={1}) == [(1, None)]


@pytest.mark.parametrize(
    "comment",
    [b"#\n", b"\n", b"# of some words\n", b" \t\r\n", b"#" + b"x" * 700_000 + b"\n", b"\r\n"],
)
def test_comments_and_blank_lines_are_skipped_however_many_and_long_they_are(comment: bytes) -> None:
    many = comment * max(2, 2_000_000 // len(comment))
    content = many + RECORD % 1 + many + RECORD % 2 + many.rstrip(b"\n")
    first = many.count(b"\n") + 1
    assert lines_of(content, max_record_bytes=1_000) == [(first, 1), (2 * first, 2)]


def test_a_record_among_comments_is_found_however_it_is_indented() -> None:
    content = b"#\n\n#\n " + RECORD % 1 + b"# a\n\t" + RECORD % 2 + b" \n#\n \t\n\r\n  " + RECORD % 3
    assert lines_of(content) == [(4, 1), (6, 2), (11, 3)]


def test_a_catalog_that_a_run_of_comments_announces_holds_from_the_next_record_on() -> None:
    content = RECORD % 1 + b"# a\n\n" + catalog_comment("1" * 32) + catalog_comment("2" * 32) + b"#\n"
    content += RECORD % 2
    catalogs = [found.catalog for found in read_records(io.BytesIO(content), "f.json")]
    assert [catalog and catalog.digest for catalog in catalogs] == [None, "2" * 32]


def test_a_file_that_announces_too_many_catalogs_is_broken() -> None:
    content = b'# {"catalog":\n' * (MAX_ANNOUNCED + 1) + RECORD % 1
    assert "too many catalogs" in str(inspect(io.BytesIO(content), "f.json").error)


def test_a_header_without_an_end_is_broken_and_no_longer_waited_for() -> None:
    content = b'# {"syncdata":1,"slot":"' + b"x" * MAX_COMMENT_BYTES
    assert "broken header" in str(inspect(io.BytesIO(content), "f.json").error)
    assert inspect(io.BytesIO(content[:1_000]), "f.json").unfinished


# Documents

DEEP = b"[" * 100_000
ODD = {
    "deeply nested": b'"odd":' + DEEP,
    "not UTF-8": b'"odd":1,"%b":"\xff"',
    "a NUL": b'"%b":"a\\u0000b"',
    "half a pair": b'"%b":"\\ud800"',
    "a number of 5000 digits": b'"%b":' + b"1" * 5_000,
}


def odd(kind: str, key: bytes) -> bytes:
    return ODD[kind].replace(b"%b", key)


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_header_is_an_error_with_its_file(kind: str) -> None:
    with pytest.raises(ParseError, match=r"f\.json:1: broken header"):
        parse_header(b'# {"syncdata":1,' + odd(kind, b"slot") + b"}\n", "f.json")


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_footer_is_none(kind: str) -> None:
    assert parse_footer(b'# {"end":true,"records":1,"sha256":"x",' + odd(kind, b"end_lsn") + b"}\n") is None


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_catalog_is_an_error_with_its_file(kind: str) -> None:
    content = b'{"version":1,"tables":[],' + odd(kind, b"publication") + b',"publication":1}'
    with pytest.raises(ParseError, match=r"catalog/.*broken catalog"):
        parse_catalog(content, f"catalog/{digest_of(content)}.json")


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_announcement_is_a_comment_like_any_other(kind: str) -> None:
    assert parse_announcement(b'# {"catalog":"aaaaaaaaaaaaaaaaaaaa",' + odd(kind, b"lsn") + b"}\n") is None


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"version":1,"time":"x","every_s":1,' + odd(kind, b"state") + b"}" for kind in ODD),
        b'{"version":1,"time":"x","every_s":1e300}',
        b'{"version":1,"time":"x","every_s":-1}',
        b'{"version":1,"every_s":1,"time":"' + b"x" * 1_000 + b'"}',
        b'{"version":1,"every_s":1,"time":"x"}' + b" " * MAX_COMMENT_BYTES,
    ],
)
def test_an_odd_head_is_an_error_with_its_file(content: bytes) -> None:
    with pytest.raises(ParseError, match=r"head\.json: broken head"):
        parse_head(content)


def test_a_name_in_a_catalog_that_no_server_has_is_refused() -> None:
    for key, name in (("name", "x" * 256), ("schema", "x" * 256)):
        names = {"schema": "public", "name": "t"} | {key: name}
        table = f'{{"schema":"{names["schema"]}","name":"{names["name"]}","oid":1,"columns":[]}}'
        content = f'{{"version":1,"publication":"p","tables":[{table}]}}'.encode()
        with pytest.raises(ParseError, match="broken catalog"):
            parse_catalog(content, f"catalog/{digest_of(content)}.json")


@pytest.mark.parametrize("kind", ["deeply nested", "not UTF-8", "half a pair"])
def test_an_odd_line_is_no_record_and_its_error_shows_no_value(kind: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_record(b'{"table":"t","op":"INSERT",' + odd(kind, b"table") + b"}")
    assert len(str(caught.value)) < 500


def test_an_operation_of_two_megabytes_makes_a_short_error() -> None:
    with pytest.raises(ParseError) as caught:
        parse_record(b'{"table":"t","op":"' + b"X" * 2_000_000 + b'"}')
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z", "x" * 100_000],
)
def test_a_time_that_no_commit_can_have_is_none(text: str) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize("depth", [7, 300])
def test_an_array_of_more_dimensions_than_postgresql_has_is_refused_at_once(depth: int) -> None:
    line = b'{"table":"t","op":"INSERT","data":{"a":%b%b}}' % (b"[" * depth, b"]" * depth)
    data = parse_record(line).data
    assert data is not None
    array = ColumnType(kind="array", element=ColumnType())
    with pytest.raises(ApplyError, match="nested too deeply"):
        to_text(data["a"], array)
    assert to_text(Json("[[[[[[1]]]]]]"), array) == '{{{{{{"1"}}}}}}'


# Texts


def test_a_text_from_outside_is_cut_and_shows_its_control_characters() -> None:
    assert shortened("ordinary name") == "ordinary name"
    assert shortened("a\nb\0c\x1b[0m\udce4") == r"a\nb\x00c\x1b[0m\udce4"
    cut = shortened("a" * 1_000_000 + "z" * 1_000_000)
    assert len(cut) == 200
    assert (cut[0], cut[-1]) == ("a", "z")
    assert len(shortened("\0" * 1_000)) <= 200


def test_an_error_is_never_long_and_holds_nothing_that_a_database_cannot_keep() -> None:
    long = "x\0" * 1_000_000
    error = SchemaError(long, hint=long, table=long, file=long, line=1)
    reason = Reason.of(error)
    for text in (str(error), *map(str, error.fields.values()), reason.text, reason.hint, str(reason.file)):
        assert len(text) < 25_000
        assert "\0" not in text
    assert str(SchemaError("two\n  - lines")) == "SHD_SYN_050: two\n  - lines"


@pytest.mark.parametrize("ending", ["\n", ""], ids=["among others", "at the end"])
def test_a_record_beyond_the_limit_is_refused_however_small_the_limit_is(ending: str) -> None:
    content = RECORD % 1 + (RECORD % 2).replace(b"}", b" " * 500 + b"}", 1).rstrip(b"\n") + ending.encode()
    content += RECORD % 3 if ending else b""
    with pytest.raises(ParseError, match="longer than 400 bytes") as refused:
        list(read_records(io.BytesIO(content), "f.json", max_record_bytes=400))
    assert refused.value.line == 2
