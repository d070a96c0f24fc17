"""What the publication has of the configured tables, and what of it is not as it should be.

Knows two queries and the words for what they find; opens no connection. A list of tables' names would not do:
an ALTER PUBLICATION that hides a column or leaves out DELETEs changes no name.

Source: "pg_publication", "pg_publication_rel" and "pg_publication_tables" of the PostgreSQL documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from psycopg import Connection

from syncdata.capture.spool import replace_in_spool, translated
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.errors import Problem, SpoolError

PUBLISHED_FILE_NAME = "published.json"

_PUBLICATION = """
SELECT array_remove(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END, CASE WHEN NOT pubupdate THEN 'update'
END,
                          CASE WHEN NOT pubdelete THEN 'delete' END,
                          CASE WHEN NOT pubtruncate THEN 'truncate' END], NULL),
       pubviaroot
FROM pg_publication WHERE pubname = %(publication)s
"""

# As JSON, since PostgreSQL 14 has no row filters and column lists.
_TABLES = """
SELECT wanted.schema, wanted.name, c.relkind::text, to_jsonb(p) ->> 'rowfilter',
       CASE WHEN to_jsonb(r) ->> 'prattrs' IS NOT NULL THEN ARRAY(
           SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid
           AND a.attnum::text = ANY(regexp_split_to_array(btrim(to_jsonb(r) ->> 'prattrs', '[]'), '[, ]+'))
           ORDER BY a.attnum
       ) END,
       ARRAY(
           SELECT m.relname::text FROM pg_class m
           WHERE m.relkind = 'r' AND m.oid IN (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid))
           AND NOT CASE m.relreplident
               WHEN 'f' THEN true
               WHEN 'n' THEN false
               ELSE EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = m.oid AND i.indisvalid AND i.indimmediate
                   AND CASE m.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
               ) END
           ORDER BY m.relname
       )
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
JOIN pg_publication_tables p
    ON p.pubname = %(publication)s AND p.schemaname = n.nspname AND p.tablename = c.relname
JOIN pg_publication b ON b.pubname = p.pubname
LEFT JOIN pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid
"""


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of a table is published: some columns, the rows of a filter; None is all of them."""

    columns: tuple[str, ...] | None = None
    row_filter: str | None = None

    def __str__(self) -> str:
        columns = "all columns" if self.columns is None else f"the columns {', '.join(self.columns)}"
        return columns if self.row_filter is None else f"{columns} of the rows WHERE {self.row_filter}"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What is published of the configured tables. ``lacks``: kinds of changes that are not. ``parts`` has a
    Part for each published table. ``roots``: the partitioned ones. ``unlocatable``: by table, the partitions
    (or the table itself) whose rows have no replica identity."""

    lacks: tuple[str, ...] = ()
    is_via_root: bool = True
    parts: Mapping[TableName, Part] = {}
    roots: tuple[TableName, ...] = ()
    unlocatable: Mapping[TableName, tuple[str, ...]] = {}


def read_published(connection: Connection[Any], publication: str, tables: Sequence[TableName]) -> Published:
    """Return what *publication* has of *tables*; nothing where it does not exist."""
    options = connection.execute(_PUBLICATION, {"publication": publication}).fetchone()
    if options is None:
        return Published()
    names = {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}
    rows = connection.execute(_TABLES, names | {"publication": publication}).fetchall()
    found = [(TableName(row[0], row[1]), *row[2:]) for row in rows]
    return Published(
        lacks=tuple(options[0]),
        is_via_root=options[1],
        parts={
            table: Part(columns=None if columns is None else tuple(columns), row_filter=row_filter)
            for table, _, row_filter, columns, _ in found
        },
        roots=tuple(table for table, kind, *_ in found if kind == "p"),
        unlocatable={table: tuple(parts) for table, _, _, _, parts in found if parts},
    )


def find_faults(published: Published, publication: str) -> list[Problem]:
    """Return what makes copies go wrong, whatever was published before."""
    problems = []
    if published.lacks:
        text = (
            f"the publication {publication} does not publish {', '.join(published.lacks)}: such changes"
            f" are lost"
            " to the archive; run 'python manage.py setup_logical_replication --widen', then archive_changes"
            " --snapshot, and resync the tables"
        )
        problems.append(Problem(kind="actions", text=text))
    if published.roots and not published.is_via_root:
        text = (
            f"the publication {publication} publishes partitions of {', '.join(map(str, published.roots))}"
            f" under"
            " their own names; run 'python manage.py setup_logical_replication --widen', then archive_changes"
            " --snapshot, and resync the tables"
        )
        problems.append(Problem(kind="partitions", text=text))
    for table, parts in published.unlocatable.items():
        text = (
            f"{', '.join(parts)} has no usable replica identity: production's own UPDATEs and DELETEs of it"
            " fail; give it back its primary key, or run 'python manage.py setup_logical_replication"
            " --identity-full'"
        )
        problems.append(Problem(kind="identity", text=f"table {table}: {text}", table=str(table)))
    return problems


def find_alterations(before: Mapping[TableName, Part], now: Mapping[TableName, Part]) -> list[Problem]:
    """Return the tables of which more or less is published than *before*."""
    return [
        Problem(
            kind="altered",
            text=f"table {table}: the publication has {now[table]} now, and had {before[table]} when"
            " the archiver was started: if that is meant to be, run"
            f" 'archive_changes --snapshot {table.argument}', resync it, and start the archiver again",
            table=str(table),
        )
        for table in sorted(before.keys() & now.keys())
        if before[table] != now[table]
    ]


def save_parts(directory: Path, parts: Mapping[TableName, Part]) -> None:
    """Note for `load_parts` what is published as the archiver begins."""
    content = msgspec.json.encode([(table.schema, table.name, part) for table, part in sorted(parts.items())])
    replace_in_spool(directory / PUBLISHED_FILE_NAME, content)


def load_parts(directory: Path) -> dict[TableName, Part]:
    """Return what was noted; nothing where there is no note, or none that can be read."""
    path = directory / PUBLISHED_FILE_NAME
    try:
        with translated(path):
            rows = read_document(path.read_bytes(), list[tuple[str, str, Part]])
    except (SpoolError, ValueError):
        return {}
    return {TableName(schema, name): part for schema, name, part in rows}
