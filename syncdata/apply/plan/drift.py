"""Holds a table to the catalog: may its rows still be production's, and can they be from here on? Pure.

Two comparisons. `changes` holds the table as production published it before to what it publishes now: some
changes of a table alter its rows without a record, such as a partition that is dropped. `differences` holds
what production publishes to the table here: some values would change on their way without an error, such as
a number that is rounded. A finding of either blocks the table, or marks it suspect where its rows may differ
already and nothing gets worse when it goes on. The baseline is the published table that the rows here are
known to agree with; it moves on in the transaction in which the rows do.

Example: the rows of ``events`` stand under a catalog with the partitions January and February. The next
catalog has February alone. No record says that January was dropped; its rows are still here. So ``events``
is suspect until it is rebuilt from a snapshot that was taken since.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from syncdata.apply.plan.local_rules import ColumnRule, LocalRules
from syncdata.apply.plan.schema import Column as LocalColumn
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.types import is_held, is_type_text, is_widened, merges_texts, parse_type
from syncdata.changes.catalog import WITHHELD, Column, PublishedTable, lsn_or_none
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError


class Baseline(msgspec.Struct, frozen=True, omit_defaults=True):
    """The published table that the rows agree with. ``lsn``: the commit of the snapshot that it came with;
    catalogs that are older say nothing of these rows. ``truncated``: a TRUNCATE of the whole table has come
    since, which gives each partition another storage, too; ``truncated_by`` is its transaction.
    ``suspect_lsn``: where the catalog was read that made the table suspect last; what that catalog shows may
    have happened after any earlier record. ``suspect_by``: the one transaction whose TRUNCATE would explain
    all that it shows. ``rules``: this side's own privacy rules, by which the rows were written."""

    table: PublishedTable
    lsn: int | None = None
    truncated: bool = False
    suspect_lsn: int | None = None
    truncated_by: int = 0
    suspect_by: int = 0
    rules: tuple[ColumnRule, ...] = ()

    def is_of_truncate(self, stored_by: int) -> bool:
        """Tell whether a storage that transaction *stored_by* has made comes from the TRUNCATE that was seen;
        where one of the two is not known, it counts so."""
        return self.truncated and (stored_by == 0 or self.truncated_by in (0, stored_by))


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it must be. ``in_rebuild``: what to do where a table that is rebuilt from an
    older snapshot meets it. ``spoils``: the remedy lets the table go on, though a rebuild must follow.
    ``is_of_storage``: a TRUNCATE of the whole table shows in the same way; ``stored_by`` is its transaction
    then, 0 where that is not known. ``subject``: of several findings of one kind, what differs."""

    kind: Literal["blocked", "suspect"]
    text: str
    remedy: str
    in_rebuild: str = ""
    spoils: bool = False
    is_of_storage: bool = False
    stored_by: int = 0
    subject: str = ""


def is_older(read_at: int | None, baseline: Baseline | None, *, commit_lsn: int | None) -> bool:
    """Tell whether a catalog that was read at *read_at* is older than the snapshot that *baseline* is of.

    The change files after a snapshot may begin with such a catalog. Where a catalog does not say when it was
    read, it counts as older up to the snapshot's own commit; *commit_lsn* is that of the records beside it.
    """
    if baseline is None or baseline.lsn is None:
        return False
    if read_at is not None:
        return read_at <= baseline.lsn
    return commit_lsn is None or commit_lsn <= baseline.lsn


# What production did


def changes(baseline: Baseline, now: PublishedTable) -> list[Finding]:
    """Return what production has done to the rows, from *baseline* to *now*, that no record carries."""
    before, table = baseline.table, now.table
    if before.oid != now.oid:
        text = "the table is another one in production than before: it was dropped and made anew, or swapped"
        return [_rows_lost(table, text)]
    columns = [*_changed_columns(before, now)]
    # What changed the columns has written the table anew.
    rewritten = [] if columns else [*_rewritten(baseline, now)]
    return [*_changed_publication(before, now), *columns, *rewritten, *_changed_leaves(baseline, now)]


def _rewritten(baseline: Baseline, now: PublishedTable) -> Iterator[Finding]:
    """Test: test_a_table_written_anew_by_an_alter_using_is_suspect."""
    before = baseline.table
    if not before.storage or not now.storage or before.storage == now.storage:
        return
    if not baseline.is_of_truncate(now.stored_by):
        yield _rows_differ(
            now.table,
            "production has written all rows of the table anew (ALTER TABLE … TYPE … USING, or a TRUNCATE):"
            " they may have other values, which no record carries",
            is_of_storage=True,
            stored_by=now.stored_by,
        )


def left_out(baseline: Baseline | None, now: PublishedTable, *, rows_lsn: int | None) -> list[Finding]:
    """Return what says that a transaction was left out which the rows would need.

    *rows_lsn*: the commit of the snapshot that the rows came from. What was committed up to there is in them.
    """
    lsn = lsn_or_none(now.left_out)
    known = max(rows_lsn or -1, (baseline and lsn_or_none(baseline.table.left_out)) or -1)
    if lsn is None or lsn <= known:
        return []
    text = (
        f"a transaction was left out at production (it committed at {now.left_out}, and could not be handed"
        " over, or followed other privacy rules): what it changed is not here"
    )
    return [_rows_differ(now.table, text)]


def republished(table: TableName) -> Finding:
    return _rows_lost(table, "production publishes the table again: what changed in between is not here")


def _changed_publication(before: PublishedTable, now: PublishedTable) -> Iterator[Finding]:
    table = now.table
    if before.membership != now.membership and before.membership and now.membership:
        yield republished(table)
    if before.row_filter != now.row_filter:
        yield _rows_lost(table, "the row filter of the publication has changed: other rows belong here now")
    if before.column_list != now.column_list and (which := _other_columns(before, now)):
        yield _rows_lost(table, f"the column list of the publication has changed ({', '.join(which)})")
    if which := other_rules(before, now):
        yield _rows_lost(table, f"the privacy rules of {_columns(which)} have changed in production")


def _other_columns(before: PublishedTable, now: PublishedTable) -> list[str]:
    """Return in words which of the columns that were there before and still are travel now, or no longer; but
    for those of which that is an affair of production's privacy policy."""
    old, new = before.travelling, now.travelling
    both = [
        (earlier.name, column.name)
        for earlier, column in _pairs(before, now)
        if earlier and WITHHELD not in (earlier.privacy, column.privacy)
    ]
    return [f"with {name}" for name_before, name in both if name in new and name_before not in old] + [
        f"without {name}" for name_before, name in both if name not in new and name_before in old
    ]


def other_rules(before: PublishedTable, now: PublishedTable) -> list[str]:
    """Return the columns that were there before and still are, and whose values production's privacy policy
    makes otherwise now: masks them otherwise, withholds them, or lets them travel.

    What was masked by another rule would stand beside what is masked by this one, and a key that is masked
    otherwise names another row. Test: test_a_changed_privacy_rule_blocks_until_a_resync.
    """
    return [
        column.name
        for earlier, column in _pairs(before, now)
        if earlier and _rule_of(earlier) != _rule_of(column)
    ]


MASKED_OTHERWISE = "the change files follow other privacy rules than the snapshot that the rows came from"


def masked_otherwise(table: TableName, columns: list[str]) -> Finding:
    """Return what says that the records behind a snapshot mask the values of *columns* otherwise than it.

    Both were read of one production, but by two programs: a snapshot was taken with the new configuration
    while the archiver still ran with the older one, or the other way round. The catalog's position tells
    nothing of that. Tests: test_records_under_other_privacy_rules_than_the_snapshot_are_not_applied,
    test_a_snapshot_under_other_privacy_rules_than_the_change_files_is_suspect.
    """
    remedy = (
        "see that the archiver at production runs with the configuration that snapshots are taken with (start"
        f" it anew), then take another one, 'archive_changes --snapshot {table.argument}', and then run"
        f" 'python manage.py resync {table.argument}' here"
    )
    text = f"{MASKED_OTHERWISE}, for {_columns(columns)}"
    return Finding(kind="blocked", text=text, remedy=remedy)


def _rule_of(column: Column) -> tuple[str, str]:
    # Nothing comes of a withheld column, under whatever rule.
    return (WITHHELD, "") if column.privacy == WITHHELD else ("", column.privacy_id)


def _columns(names: list[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _changed_columns(before: PublishedTable, now: PublishedTable) -> Iterator[Finding]:
    table = now.table
    names = {column.name for column in before.columns}
    for old, column in _pairs(before, now):
        if column.privacy == WITHHELD:
            continue  # None of its values is here, older or newer.
        if old is None and column.name in names:
            yield _rows_lost(
                table,
                f"column {column.name} was dropped and added anew: no record carries its older values",
                subject=column.name,
            )
        elif column.filled and (old is None or not old.filled):
            yield _rows_lost(
                table,
                f"column {column.name} was added with a default that gave the older rows values of their own:"
                " no record carries them",
                subject=column.name,
            )
        elif old is not None and not is_widened(old.value_type, column.value_type):
            yield _rows_differ(
                table,
                f"the type of column {column.name} was changed from {old.type} to {column.type}: that may"
                " have changed the older values, and no record carries them",
            )


def _pairs(before: PublishedTable, now: PublishedTable) -> Iterator[tuple[Column | None, Column]]:
    """Yield the columns of *now*, each with what it was *before*: by its number, else by its name.

    A column has no number (0) where the archiver knows it from the stream alone, which gives names only.
    """
    numbers = {column.number: column for column in before.columns if column.number}
    names = {column.name: column for column in before.columns}
    for column in now.columns:
        same = names.get(column.name)
        if column.number and column.number in numbers:
            yield numbers[column.number], column
        elif same is not None and not (column.number and same.number):
            yield same, column
        else:
            yield None, column


def _changed_leaves(baseline: Baseline, now: PublishedTable) -> Iterator[Finding]:
    """A TRUNCATE of the whole table gives all leaves another storage, and says so. One leaf may have been
    emptied again since: then another transaction did that. Test:
    test_a_leaf_emptied_after_a_truncate_of_the_whole_table_is_not_missed."""
    before, table = baseline.table, now.table
    leaves = {leaf.oid: leaf for leaf in now.partitions}
    for old in before.partitions:
        leaf = leaves.pop(old.oid, None)
        name = TableName(old.schema, old.name)
        if leaf is None:
            yield _rows_differ(
                table,
                f"partition {name} was dropped or detached: its rows are still here, for no record says so",
                subject=str(name),
            )
        elif leaf.storage != old.storage and not baseline.is_of_truncate(leaf.stored_by):
            yield _rows_differ(
                table,
                f"partition {name} was truncated or rewritten: rows that are gone may still be here, for no"
                " record says so",
                is_of_storage=True,
                stored_by=leaf.stored_by,
                subject=str(name),
            )
    for leaf in leaves.values():
        if leaf.filled:
            name = TableName(leaf.schema, leaf.name)
            text = f"partition {name} was attached with rows, which no record carries"
            yield _rows_lost(table, text, subject=str(name))


def renames(before: PublishedTable, now: PublishedTable, here: TableSchema) -> Iterator[Finding]:
    """Yield the columns that have another name in production now, but still the old one *here*. A column that
    were added here under the new name would lack the older values."""
    there, local = {column.name for column in now.columns}, {column.name for column in here.columns}
    for earlier, column in _pairs(before, now):
        old = earlier.name if earlier else column.name
        if old != column.name and old in local and old not in there:
            yield Finding(
                kind="blocked",
                text=f"column {old} is called {column.name} in production now",
                remedy="rename it here, too: "
                + _statement(
                    f"ALTER TABLE {sql_name(now.table)} RENAME COLUMN {quoted(old)} TO {quoted(column.name)}"
                )
                + "; the table goes on by itself",
            )


def additions(before: PublishedTable, now: PublishedTable, here: TableSchema) -> Iterator[Finding]:
    """Yield the columns that were added in production, where the rows that were there have another value than
    the rows *here*: no record carries it, so the defaults of both sides must be the same.

    Only PostgreSQL's note of that value is compared. A table here that was written anew has it no more: then
    it is taken for another one. Partitioned tables have no such note.
    Tests: "a column has another default here" in tests/acceptance/test_green_means_equal.py.
    """
    if now.kind == "partitioned table" or here.is_partitioned:
        return
    local = {column.name: column for column in here.columns}
    numbers = {column.number for column in before.columns}
    travelling = now.travelling
    for column in now.columns:
        is_new = column.number not in numbers and column.number > 0 and not column.filled
        if not is_new or column.name not in local or column.name not in travelling:
            continue
        if local[column.name].older != column.older:
            yield _rows_differ(
                now.table,
                f"column {column.name} was added with a default that gave the older rows in production"
                " another value than it did here",
                subject=column.name,
            )


def seen_here(before: PublishedTable | None, now: PublishedTable, here: TableSchema | None) -> PublishedTable:
    """Return *now* without the columns that are new and not *here* yet: they are looked at when they are. One
    that is withheld stays: whenever it begins to travel, the rows here lack its values."""
    if before is None or here is None:
        return now
    numbers = {column.number for column in before.columns}
    local = {column.name for column in here.columns}
    columns = tuple(c for c in now.columns if c.number in numbers or c.name in local or c.privacy == WITHHELD)
    return msgspec.structs.replace(now, columns=columns)


def _rows_lost(table: TableName, text: str, *, subject: str = "") -> Finding:
    return Finding(
        kind="blocked",
        text=text,
        remedy=_snapshot_remedy(table),
        in_rebuild=_in_rebuild(table),
        subject=subject,
    )


def _rows_differ(
    table: TableName, text: str, *, is_of_storage: bool = False, stored_by: int = 0, subject: str = ""
) -> Finding:
    return Finding(
        kind="suspect",
        text=text,
        remedy=_snapshot_remedy(table),
        in_rebuild=_in_rebuild(table),
        is_of_storage=is_of_storage,
        stored_by=stored_by,
        subject=subject,
    )


def _snapshot_remedy(table: TableName) -> str:
    return (
        f"take a new snapshot at production, 'archive_changes --snapshot {table.argument}', and then run"
        f" 'python manage.py resync {table.argument}' here"
    )


def _in_rebuild(table: TableName) -> str:
    return (
        "that happened after the newest snapshot that the archive has of the table, so a resync cannot give"
        f" it the right rows: first run 'archive_changes --snapshot {table.argument}' at production, then"
        f" 'python manage.py resync {table.argument}' again"
    )


# What does not fit here


def differences(published: PublishedTable, here: TableSchema) -> list[Finding]:
    """Return where values or rows of *published* would change in the table *here* without an error."""
    columns = {column.name: column for column in here.columns}
    travelling = published.travelling
    found = [
        finding
        for column in published.columns
        if (local := columns.get(column.name)) is not None
        and column.privacy != WITHHELD
        and (finding := _different(published.table, column, local, travels=column.name in travelling))
    ]
    if (key := _different_key(published, here)) is not None:
        found.append(key)
    return found + _merging_columns(published, here)


def _different(table: TableName, there: Column, here: LocalColumn, *, travels: bool) -> Finding | None:
    if there.generated and not here.is_generated:
        if travels:
            return _different_type(table, there, here)
        return Finding(
            kind="blocked",
            text=f"column {there.name} is generated in production, so its values are in no record, and it is"
            " an ordinary column here",
            remedy="make it a generated column here, too, with production's expression: "
            + _statement(
                f"ALTER TABLE {sql_name(table)} DROP COLUMN {quoted(there.name)},"
                f" ADD COLUMN {quoted(there.name)} {there.type} GENERATED ALWAYS AS (…) STORED",
                there.type,
            )
            + "; the table goes on by itself",
        )
    if here.is_generated and not there.generated:
        return Finding(
            kind="blocked",
            text=f"column {there.name} is generated here and an ordinary column in production, whose values"
            " it cannot take",
            remedy="make it an ordinary column: "
            + _statement(
                f"ALTER TABLE {sql_name(table)} DROP COLUMN {quoted(there.name)},"
                f" ADD COLUMN {quoted(there.name)} {there.type}",
                there.type,
            )
            + f"; then run 'python manage.py resync {table.argument}'",
            spoils=True,
        )
    return _different_type(table, there, here) if travels and not here.is_generated else None


def _different_type(table: TableName, there: Column, here: LocalColumn) -> Finding | None:
    # Two domains of one name may be made of different types.
    is_same = not there.base and parse_type(there.type) == parse_type(here.declared_type)
    if is_same or is_held(there.value_type, here.sql_type, is_enum=here.is_enum):
        return None
    made_of = f" (a domain of {there.base})" if there.base else ""
    return Finding(
        kind="blocked",
        text=f"column {there.name} is {there.type}{made_of} in production and"
        f" {here.declared_type or here.sql_type} here, which would change values without an error",
        remedy=_statement(
            f"ALTER TABLE {sql_name(table)} ALTER COLUMN {quoted(there.name)} TYPE {there.value_type}"
            f"{_using(there, here)}",
            there.value_type,
        ),
    )


def unfilled(published: PublishedTable, here: TableSchema) -> list[Finding]:
    """Return the columns *here* that must have a value, and get none, for they are withheld."""
    by_production = {column.name for column in published.columns if column.privacy == WITHHELD}
    # A rule that cannot hold withholds its column, too, and is a finding of its own.
    by_rules = here.rules.withheld if here.rules and not here.rules.problems else frozenset()
    found = []
    for column in here.columns:
        if column.is_required and column.name in by_production | by_rules:
            whose = "production's privacy policy" if column.name in by_production else "this side's rules"
            alter = f"ALTER TABLE {sql_name(published.table)} ALTER COLUMN {quoted(column.name)}"
            found.append(
                Finding(
                    kind="blocked",
                    text=f"column {column.name} is withheld by {whose}, and here it is NOT NULL without a"
                    " default: no new row could be written",
                    remedy=f"make it nullable: {_statement(f'{alter} DROP NOT NULL')}; or give it a default:"
                    f" {_statement(f'{alter} SET DEFAULT …')}; the table goes on by itself",
                )
            )
    return found


def rules_error(rules: LocalRules) -> SchemaError:
    """Return the error of a table whose *rules* cannot hold here."""
    return SchemaError(
        f"this side's privacy rules for it cannot hold: {'; '.join(rules.problems)}",
        hint="mend them in [columns] of the configuration and start the daemon anew; or mend the table here",
    )


def own_rules(
    baseline: Baseline | None, published: PublishedTable, here: TableSchema, *, has_rows: bool
) -> list[Finding]:
    """Return where this side's own rules cannot hold, or are others than those that the rows follow.

    *has_rows*: rows were written before, by the rules of *baseline*.
    """
    table, rules = published.table, here.rules
    if rules is not None and rules.problems:
        error = rules_error(rules)
        return [Finding(kind="blocked", text=error.message, remedy=error.hint or "")]
    there = {column.name for column in published.columns}
    if rules is not None and (unknown := [name for name in rules.absent if name not in there]):
        text = f"this side's privacy rules name {_columns(unknown)}, which is on neither side"
        return [Finding(kind="blocked", text=text, remedy="mend the name in [columns] of the configuration")]
    now = set(rules.columns if rules else ())
    before = set(baseline.rules if baseline else ())
    if not has_rows or now == before:
        return []
    which = sorted({rule.name for rule in now ^ before})
    return [
        Finding(
            kind="blocked",
            text=f"this side's privacy rules for {_columns(which)} have changed: the rows here follow the"
            " older ones",
            remedy=f"run 'python manage.py resync {table.argument}'",
        )
    ]


def _using(there: Column, here: LocalColumn) -> str:
    """Return the USING clause of an ALTER … TYPE that PostgreSQL refuses without one."""
    is_cast = _family(there.value_type) == _family(here.sql_type)
    return "" if is_cast else f" USING {quoted(there.name)}::text::{there.value_type}"


def _family(sql_type: str) -> str:
    text = sql_type.partition("(")[0].split(" ")[0]
    numbers = {"smallint", "integer", "bigint", "numeric", "real", "double"}
    return "number" if text in numbers else text


def _different_key(published: PublishedTable, here: TableSchema) -> Finding | None:
    """Two rows of production that share the key here would be one here; a row whose key here is not in the
    records of its changes would not be found."""
    key, there = set(here.key), set(published.key)
    locating = set(published.identity_columns)
    if (unlocated := _unlocated(published, here)) is not None:
        return unlocated
    if not key or key == there or (published.identity == "index" and key == locating):
        return None
    is_unique = bool(there) and there <= key
    is_located = key <= locating or published.identity == "index"
    if is_unique and is_located:
        return None
    keys = f"the key is ({', '.join(here.key)}) here and ({', '.join(published.key) or 'none'}) in production"
    if not is_unique:
        text = f"{keys}: rows that differ there may share a key here, and one would take the other's place"
    else:
        text = f"{keys}: a row whose key changes would not be found"
    remedy = f"give the table here production's primary key ({', '.join(published.key)})"
    if not there:
        remedy = f"give production's table {published.table} the primary key ({', '.join(here.key)})"
    return Finding(kind="blocked", text=text, remedy=remedy)


def _merging_columns(published: PublishedTable, here: TableSchema) -> list[Finding]:
    """Find the columns of the key here in which 'Ann' and 'ann', two rows of production, would be one.

    A collation that takes texts for equal may stand on both sides; then production has no such two rows.
    Tests: "the key takes texts for equal here" in tests/acceptance/test_green_means_equal.py.
    """
    locating = {*here.key, *(published.identity_columns if published.identity == "index" else ())}
    columns = {column.name: column for column in here.columns if here.key and column.name in locating}
    found = []
    for there in published.columns:
        local = columns.get(there.name)
        if local is None:
            continue
        if local.collation and local.collation != there.collation:
            kind, collate = "has a nondeterministic collation", ' COLLATE "default"'
        elif merges_texts(there.value_type, local.sql_type):
            kind, collate = "is citext", ""
        else:
            continue
        name = quoted(there.name)
        found.append(
            Finding(
                kind="blocked",
                text=f"column {there.name} locates rows and {kind} here, and is {there.type} in production:"
                " rows that differ there may share a key here, and one would take the other's place",
                remedy=_statement(
                    f"ALTER TABLE {sql_name(published.table)} ALTER COLUMN {name} TYPE"
                    f" {there.value_type}{collate}",
                    there.value_type,
                ),
            )
        )
    return found


def _unlocated(published: PublishedTable, here: TableSchema) -> Finding | None:
    """Production identifies rows by ``code``, an index beside the primary key ``id``. When an ``id`` changes,
    no record has the old one; without a unique index on ``code`` here, the row would be here twice."""
    key, locating = set(here.key), set(published.identity_columns)
    if not key or published.identity != "index" or not locating or key <= locating:
        return None
    if any(set(other) <= locating for other in here.other_keys):
        return None
    columns = ", ".join(map(quoted, published.identity_columns))
    return Finding(
        kind="blocked",
        text=f"production identifies rows by a unique index on ({columns}), and there is none here: a row"
        " whose key changes would not be found",
        remedy=_statement(f"CREATE UNIQUE INDEX ON {sql_name(published.table)} ({columns})")
        + ", of columns that are NOT NULL, as in production",
    )


# Names in SQL


def missing_columns(published: PublishedTable, here: TableSchema) -> list[Column]:
    """Return the columns whose values arrive although the table *here* has no place for them."""
    local, travelling = {column.name for column in here.columns}, published.travelling
    return [c for c in published.columns if c.name in travelling and c.name not in local]


def add_column(table: TableName, column: Column) -> str:
    """Return the statement that gives the table here *column*."""
    return _statement(
        f"ALTER TABLE {sql_name(table)} ADD COLUMN {quoted(column.name)} {column.type}", column.type
    )


def _statement(statement: str, *types: str) -> str:
    """Return *statement*, which somebody will paste, if it is surely what it seems to be, else words.

    Names and *types* in it come from the archive, whose writer may call a type ``int; DROP TABLE users``.
    """
    if statement.isprintable() and all(map(is_type_text, types)):
        return statement
    return "(no statement for it, for the archive has a name or a type that must not be pasted)"


def sql_name(table: TableName) -> str:
    """Return *table* as SQL spells it."""
    return ".".join(map(quoted, (table.schema, table.name)))


# Source: "SQL Key Words" of the PostgreSQL documentation, those that are reserved there. Test:
# test_names_that_sql_keeps_for_itself_are_quoted_in_remedies.
_RESERVED_WORDS = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check
collate collation column concurrently constraint create cross current_catalog current_date
current_role current_schema current_time current_timestamp current_user default deferrable desc
distinct do else end except false fetch for foreign freeze from full grant group having ilike in
initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
references returning right select session_user similar some symmetric system_user table tablesample
then to trailing true union unique user using variadic verbose when where window with
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())


def quoted(name: str) -> str:
    is_plain = name.isascii() and name.isidentifier() and name == name.lower() and name not in _RESERVED
    return name if is_plain else '"' + name.replace('"', '""') + '"'
