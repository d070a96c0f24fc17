"""The catalog of the archive: its file, its name, and the line that announces it."""

from __future__ import annotations

import pytest

from syncdata.changes.catalog import (
    Catalog,
    Column,
    Partition,
    PublishedTable,
    catalog_comment,
    catalog_name,
    digest_of,
    encode_catalog,
    is_digest,
    parse_catalog,
    parse_catalog_comment,
)
from syncdata.changes.head import Head, encode_head, parse_head
from syncdata.changes.names import TableName
from syncdata.errors import ParseError

USERS = PublishedTable(
    schema="public",
    name="users",
    oid=16384,
    kind="partitioned table",
    columns=(
        Column(name="id", number=1, type="bigint", not_null=True, identity="always"),
        Column(name="price", number=3, type="numeric(10,2)", filled=True),
    ),
    key=("id",),
    identity_columns=("id",),
    row_filter="(id > 3)",
    column_list=("id", "price"),
    partitions=(Partition(schema="public", name="users_1", oid=16390, storage=16390),),
)
CATALOG = Catalog(version=1, publication="syncdata_publication", tables=(USERS,))


def test_a_catalog_is_read_as_it_was_written() -> None:
    content = encode_catalog(CATALOG)
    assert parse_catalog(content, catalog_name(digest_of(content))) == CATALOG
    assert CATALOG.find(TableName("public", "users")) == USERS
    assert CATALOG.find(TableName("shop", "users")) is None


def test_a_catalog_that_is_not_what_its_name_says_is_refused() -> None:
    name = catalog_name(digest_of(encode_catalog(CATALOG)))
    with pytest.raises(ParseError, match="damaged"):
        parse_catalog(encode_catalog(CATALOG).replace(b"16384", b"16385"), name)


@pytest.mark.parametrize("content", [b"{", b"[]\n", b'{"version":1}\n', b"[" * 100_000])
def test_a_broken_catalog_is_an_error_that_names_the_file(content: bytes) -> None:
    name = catalog_name(digest_of(content))
    with pytest.raises(ParseError) as caught:
        parse_catalog(content, name)
    assert caught.value.file == name


def test_the_comment_line_carries_the_digest() -> None:
    digest = digest_of(b"content")
    assert catalog_comment(digest) == b'# {"catalog":"%b"}\n' % digest.encode()
    assert parse_catalog_comment(catalog_comment(digest)) == digest


@pytest.mark.parametrize(
    "line",
    [
        b"# a comment\n",
        b'# {"catalog":7}\n',
        b'# {"catalog":"../../etc"}\n',
        b'# {"catalog":"ab\n',
        b'# {"catalog":' + b"[" * 100_000,
    ],
)
def test_other_comments_announce_no_catalog(line: bytes) -> None:
    assert parse_catalog_comment(line) is None


def test_a_digest_cannot_lead_out_of_the_directory() -> None:
    assert is_digest(digest_of(b""))
    assert not is_digest("../chain")
    assert not is_digest("")


def test_a_head_is_read_as_it_was_written() -> None:
    head = Head(version=1, time="2026-02-05T10:30:00Z", every_s=60, confirmed_lsn="0/16B3D50")
    assert parse_head(encode_head(head)) == head
    with pytest.raises(ParseError, match="broken head"):
        parse_head(b'{"version"')
