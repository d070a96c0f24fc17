"""The catalog: what production publishes, as a file of the archive that is named by its content. Pure.

``catalog/<digest>.json`` is written before the first file that names it, and never changes. The header of a
change file or snapshot names the catalog that holds from its first record on; a comment line announces
another one from the next record on:

    # {"catalog":"9f86d081884c7d65","lsn":"0/16B3D40"}

Its ``lsn`` (a header's ``catalog_lsn``) is production's position when the catalog was read: a catalog that
is older than a snapshot says nothing of the snapshot's rows, though the change files after it may name it.
Archives of older versions and of the predecessor have no catalogs, and are read without.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import msgspec

from syncdata.changes.document import DocumentError, read_document
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import ParseError

CATALOG_DIRECTORY = "catalog"
COMMENT_PREFIX = b'# {"catalog":'
_LONGEST_ANNOUNCEMENT = 1_000

_DIGEST = re.compile(r"[0-9a-f]{16,64}")
_NAME = re.compile(rf"{CATALOG_DIRECTORY}/({_DIGEST.pattern})\.json")
# What stands for a rule in a column's `privacy` when its values do not travel.
WITHHELD = "withheld"

_DIGEST_LENGTH = 32  # hex digits: 128 bits tell apart all that one production will ever publish

# A catalog of some hundred thousand columns.
MAX_CATALOG_BYTES = 64 << 20

# PostgreSQL's names have 63 bytes, those of a server that was built otherwise some more; a type may have a
# schema, quotes and a modifier. Longer ones would fill findings and messages.
_Name = Annotated[str, msgspec.Meta(max_length=255)]
_Type = Annotated[str, msgspec.Meta(max_length=1_000)]


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """A column as production has it.

    ``number`` is its ``attnum``: a column that was dropped and added again has another one. ``type`` is
    ``format_type``'s text, with the modifier: ``numeric(10,2)``. ``generated``: ``stored`` or ``virtual``;
    ``identity``: ``always`` or ``by default``. ``filled``: when the column was added, the rows that were
    there got values that no record carries (a volatile default, an identity). ``older`` stands for the value
    that they got otherwise, from a default that is a constant: a digest of it; empty for NULL. ``base``: the
    type that a domain is made of. ``collation``: that of a column in which different texts may be equal
    (nondeterministic); empty for all others. ``privacy``: the kind of rule of production's privacy policy,
    such as ``email``, or ``withheld`` where the values do not travel; empty where they travel as they are.
    ``privacy_id`` stands for the whole rule: with another one, equal values do not travel as equal ones.
    """

    name: _Name
    number: int
    type: _Type
    not_null: bool = False
    generated: Literal["", "stored", "virtual"] = ""
    identity: Literal["", "always", "by default"] = ""
    filled: bool = False
    older: _Name = ""
    base: _Type = ""
    collation: _Name = ""
    privacy: _Name = ""
    privacy_id: _Name = ""

    @property
    def value_type(self) -> str:
        """The type that decides what values may be: a domain's own name says nothing of it."""
        return self.base or self.type


class Partition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A leaf partition. ``storage`` is its relfilenode, which a TRUNCATE of the leaf changes; such a TRUNCATE
    says nothing in the stream. ``stored_by``: the transaction (its xid) that gave it this storage, where that
    was seen to change: a TRUNCATE of the whole table is one record with the same xid. ``filled``: it had rows
    when it was attached, which no record carries."""

    schema: _Name
    name: _Name
    oid: int
    storage: int
    filled: bool = False
    stored_by: int = 0


class PublishedTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """A published table. ``key``: the primary key's columns. ``identity``: the kind of its replica identity,
    whose columns ``identity_columns`` are (all of them for ``full``). ``column_list`` is None where all
    columns are published. ``membership`` changes when the table is taken off the publication and added again:
    the oid of its row in pg_publication_rel, 0 where all tables are published. ``left_out``: the commit LSN
    (``X/Y``) of the last transaction that an operator left out, for production could not hand it over; the
    table may have been changed in it. ``storage`` of an ordinary table changes when all its rows may have
    been written anew, as ALTER TABLE … TYPE … USING does it, which says nothing in the stream; ``stored_by``
    is as a partition's. 0 is not known."""

    schema: _Name
    name: _Name
    oid: int
    columns: tuple[Column, ...]
    kind: Literal["table", "partitioned table"] = "table"
    key: tuple[_Name, ...] = ()
    identity: Literal["default", "full", "index", "nothing"] = "default"
    identity_columns: tuple[_Name, ...] = ()
    row_filter: str | None = None
    column_list: tuple[_Name, ...] | None = None
    partitions: tuple[Partition, ...] = ()
    membership: int = 0
    left_out: str = ""
    storage: int = 0
    stored_by: int = 0

    @property
    def table(self) -> TableName:
        return TableName(self.schema, self.name)

    @property
    def travelling(self) -> tuple[str, ...]:
        """The columns whose values are in the records. Generated ones are only where they are listed: the
        archiver lists all columns where the publication says ``publish_generated_columns``."""
        if self.column_list is not None:
            return self.column_list
        return tuple(column.name for column in self.columns if not column.generated)


class Catalog(msgspec.Struct, frozen=True, omit_defaults=True):
    """All published tables, in the order of their names."""

    version: int
    publication: _Name
    tables: tuple[PublishedTable, ...]

    def find(self, table: TableName) -> PublishedTable | None:
        """Return what is published as *table*; None when nothing is."""
        return next((published for published in self.tables if published.table == table), None)


def encode_catalog(catalog: Catalog) -> bytes:
    """Return the content of the catalog's file: one line of JSON, the same for equal catalogs."""
    return msgspec.json.encode(catalog) + b"\n"


def digest_of(content: bytes) -> str:
    """Return the digest that names the catalog file with this *content*."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]


def catalog_name(digest: str) -> str:
    """Return the name of a catalog's file in the archive."""
    return f"{CATALOG_DIRECTORY}/{digest}.json"


def digest_in_name(name: str) -> str | None:
    """Return the digest in a catalog file's name, which includes its directory; None for any other name."""
    match = _NAME.fullmatch(name)
    return match and match[1]


def is_catalog_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def is_digest(text: str) -> bool:
    """Tell whether *text* can name a catalog; it becomes a part of a file's name."""
    return _DIGEST.fullmatch(text) is not None


def parse_catalog(content: bytes, name: str) -> Catalog:
    """Read the catalog file *name*. Raises ParseError when it is broken, or is not what its name says."""
    digest = name.rpartition("/")[2].partition(".")[0]
    if len(content) > MAX_CATALOG_BYTES:
        raise ParseError(f"the catalog is longer than {MAX_CATALOG_BYTES:,} bytes", file=name)
    if not digest_of(content).startswith(digest):
        raise ParseError("the catalog is damaged: its name is not that of its content", file=name)
    try:
        catalog = read_document(content, Catalog)
    except DocumentError as error:
        raise ParseError(f"broken catalog: {error}", file=name) from None
    if catalog.version != 1:
        raise ParseError(
            f"catalog version {catalog.version} is newer than this program",
            hint="upgrade syncdata",
            file=name,
        )
    return catalog


class Announcement(msgspec.Struct, frozen=True):
    """A catalog that holds from a place in a file on. ``lsn``: production's position when it was read; None
    where that is not said."""

    digest: str
    lsn: int | None = None


def catalog_comment(digest: str, lsn: str | None = None) -> bytes:
    """Return the line that announces another catalog from the next record on.

    *lsn* is the WAL position at which it was read, as in a header's ``catalog_lsn``.
    """
    where = b"" if lsn is None else b',"lsn":"%b"' % lsn.encode()
    return b'%b"%b"%b}\n' % (COMMENT_PREFIX, digest.encode(), where)


def parse_catalog_comment(line: bytes) -> str | None:
    """Return the digest that a comment line announces; None for every other comment."""
    announcement = parse_announcement(line)
    return None if announcement is None else announcement.digest


def catalog_comment_lsn(line: bytes) -> str | None:
    """Return the WAL position at which the catalog of a comment line was read; None where it does not say."""
    announcement = parse_announcement(line)
    return None if announcement is None or announcement.lsn is None else format_lsn(announcement.lsn)


def parse_announcement(line: bytes | bytearray) -> Announcement | None:
    """Return what a comment line announces; None for every other comment."""
    if not line.startswith(COMMENT_PREFIX) or len(line) > _LONGEST_ANNOUNCEMENT:
        return None
    try:
        content = read_document(line[2:], dict[str, str])
    except DocumentError:
        return None
    digest = content.get("catalog", "")
    return Announcement(digest, lsn_or_none(content.get("lsn"))) if is_digest(digest) else None


def lsn_or_none(text: str | None) -> int | None:
    """Return the position that *text* spells; None when it spells none."""
    try:
        return parse_lsn(text) if text else None
    except ValueError:
        return None
