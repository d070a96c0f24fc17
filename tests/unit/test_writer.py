"""A change file is written over any stream, and read back as it was meant."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, get_args

import pytest

from syncdata.changes.filenames import SUFFIXES, Compression
from syncdata.changes.header import Footer, Header
from syncdata.changes.reader import inspect, read_records
from syncdata.changes.writer import ChangeFileWriter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
HEADER = Header(syncdata=1, system_id="7", timeline=1, slot="s", epoch="e", seq=1)


def line(number: int) -> bytes:
    return b'{"table":"t","op":"INSERT","data":{"id":"%d"},"commit_lsn":"0/%X"}\n' % (number, number)


def finish(writer: ChangeFileWriter, records: int) -> Footer:
    return writer.finish(
        records=records, transactions=min(records, 1), first_commit_lsn=1, last_commit_lsn=1, end_lsn=None
    )


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("records", [0, 1, 20_000])  # within one buffer, and over many
def test_what_was_written_is_read_back_and_the_stream_stays_open(
    compression: Compression, records: int
) -> None:
    stream = io.BytesIO()
    writer = ChangeFileWriter(stream, HEADER, compression)
    for number in range(records):
        writer.write(line(number))
    text_bytes = writer.text_bytes
    footer = finish(writer, records)
    stream.seek(0)
    name = f"changes_1{SUFFIXES[compression]}"
    inspection = inspect(stream, name)
    assert (inspection.header, inspection.footer) == (HEADER, footer)
    assert [read.record.data for read in read_records(stream, name)] == [
        {"id": str(number)} for number in range(records)
    ]
    assert text_bytes == sum(len(line(number)) for number in range(records)) + len(
        b'# {"syncdata":1,"system_id":"7","timeline":1,"slot":"s","epoch":"e","seq":1,"prev":null}\n'
    )


def test_fields_without_a_value_are_left_out_but_for_the_prev_of_a_chains_first_file() -> None:
    stream = io.BytesIO()
    finish(ChangeFileWriter(stream, HEADER, "none"), 0)
    header, footer = stream.getvalue().splitlines()
    assert header.endswith(b'"seq":1,"prev":null}')
    assert b"end_lsn" not in footer and b'"first_commit_lsn":"0/1"' in footer


class FullDisk(io.BytesIO):
    """Has room for the few bytes with which gzip begins."""

    def write(self, block: ReadableBuffer, /) -> int:
        if self.tell() + memoryview(block).nbytes > 20:
            raise OSError("no space")
        return super().write(block)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_the_stream_refuses_is_raised_and_the_file_can_be_given_up(compression: Compression) -> None:
    writer = ChangeFileWriter(FullDisk(), HEADER, compression)
    with pytest.raises(OSError, match="no space"):
        finish(writer, 0)
    writer.give_up()
