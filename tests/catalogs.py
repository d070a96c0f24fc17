"""Catalogs by hand: what production would publish, put into the archive of a test."""

from __future__ import annotations

from pathlib import Path

from syncdata.changes.catalog import (
    Catalog,
    Column,
    PublishedTable,
    catalog_name,
    digest_of,
    encode_catalog,
)


def column(name: str, type: str, *, number: int, **options: object) -> Column:
    return Column(name=name, number=number, type=type, **options)  # type: ignore[arg-type]


def table(name: str, *columns: Column | str, oid: int = 16384, **options: object) -> PublishedTable:
    """A published table of `columns`, the first of which is its key; a string is ``name type``."""
    described = tuple(
        column(*entry.split(" ", 1), number=number) if isinstance(entry, str) else entry
        for number, entry in enumerate(columns, start=1)
    )
    keys = {"key": (described[0].name,), "identity_columns": (described[0].name,)}
    return PublishedTable(schema="public", name=name, oid=oid, columns=described, **keys | options)  # type: ignore[arg-type]


def put(archive: Path, *tables: PublishedTable) -> str:
    """Put the catalog of *tables* into the archive; return its digest."""
    content = encode_catalog(Catalog(version=1, publication="p", tables=tables))
    digest = digest_of(content)
    path = archive / catalog_name(digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return digest
