"""The first and the last line of a file that syncdata wrote: header and footer. Pure.

The header names the source and the file's place in the chain; the footer proves that the file is whole.
"""

from __future__ import annotations

import msgspec

from syncdata.changes.document import DocumentError, read_document
from syncdata.changes.position import parse_lsn
from syncdata.errors import ParseError

HEADER_PREFIX = b'# {"syncdata":'
FOOTER_PREFIX = b'# {"end":'

REFETCH_HINT = "replace the file in the archive by a good copy; syncing goes on by itself"


class Header(msgspec.Struct, frozen=True):
    """The first line of a file that syncdata wrote: where its changes come from.

    ``seq`` counts the files of an epoch, and ``prev`` names the file before. A snapshot has its table in
    ``snapshot``, and in ``commit_lsn`` the last commit that its rows show. ``catalog`` is the digest of the
    catalog (:mod:`syncdata.changes.catalog`) that holds from the first record on, and ``catalog_lsn`` is the
    WAL position where it was read: it shows what was published there. So it says nothing of rows that came
    from a snapshot whose ``commit_lsn`` is not before it: they are newer.

    ``first_timeline`` stands where the server has failed over within the epoch: it is the timeline on which
    the epoch began, while ``timeline`` is that of now. The archiver writes it only when it has proved that
    nothing is missing between the two, so all files of the epoch are of one source.
    """

    syncdata: int
    system_id: str | int = ""
    timeline: int = 0
    slot: str = ""
    epoch: str | int = ""
    seq: int | None = None
    prev: str | None = None
    start_lsn: str | None = None
    created: str | None = None
    snapshot: str | None = None
    commit_lsn: str | None = None
    catalog: str | None = None
    catalog_lsn: str | None = None
    first_timeline: int | None = None

    @property
    def source_id(self) -> str:
        """The source of this file's changes: between files of two sources, changes may be missing."""
        timeline = self.timeline if self.first_timeline is None else self.first_timeline
        return f"{self.system_id}/{timeline}/{self.slot}/{self.epoch}"


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a file that syncdata wrote: the counts and the SHA-256 of all the lines before it.

    Everything that was committed before ``end_lsn`` is in this file or in earlier ones. ``signature``, where
    the archiver signs, is base64, and ``key`` the fingerprint of the key (`archive.signatures`).
    """

    end: bool
    records: int
    transactions: int | None = None
    first_commit_lsn: str | None = None
    last_commit_lsn: str | None = None
    end_lsn: str | None = None
    sha256: str
    key: str | None = None
    signature: str | None = None


def parse_header(head: bytes, name: str) -> Header | None:
    """Return the header at the beginning of *head*; None when the file *name* is a plain one.

    Raises ParseError when the header is broken, or of a later version of the format.
    """
    if not head.startswith(HEADER_PREFIX):
        return None
    first_line, newline, _ = head.partition(b"\n")
    if not newline:
        return Header(syncdata=1)  # cut inside the header: unfinished, for there is no footer
    try:
        header = read_document(first_line[2:], Header)
    except DocumentError as error:
        raise ParseError(f"broken header: {error}", hint=REFETCH_HINT, file=name, line=1) from None
    if header.syncdata != 1:
        raise ParseError(
            f"format version {header.syncdata} is newer than this program",
            hint="upgrade syncdata",
            file=name,
            line=1,
        )
    return header


def parse_footer(last_line: bytes) -> Footer | None:
    """Read *last_line* as a footer; return None when it is not one, or not a whole one."""
    if not last_line.startswith(FOOTER_PREFIX) or not last_line.endswith(b"\n"):
        return None
    try:
        footer = read_document(last_line[2:], Footer)
        for lsn in (footer.first_commit_lsn, footer.last_commit_lsn, footer.end_lsn):
            if lsn is not None:
                parse_lsn(lsn)
    except ValueError:
        return None
    return footer if footer.end else None


def format_comment(content: Header | Footer) -> bytes:
    """Return a header or footer as its line in the file; fields without a value are left out."""
    fields = {name: value for name, value in msgspec.to_builtins(content).items() if value is not None}
    if isinstance(content, Header) and content.seq is not None:
        fields["prev"] = content.prev  # also when it is None: null says that no file came before
    return b"# " + msgspec.json.encode(fields) + b"\n"
