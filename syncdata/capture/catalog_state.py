"""From looks at the source to catalogs: what a look shows, held against the look before. Pure but for the
state's own file, ``catalog.json`` in the spool.

A look alone does not say everything. Some changes of rows are in no record, and show only in a comparison:

- A new column whose older rows got values of their own: the whole table was written anew (a volatile default,
  an identity), or the default was worked out once for all of them (now()).
- A partition that was attached with rows in it.
- A table that was written anew by ALTER TABLE … TYPE … USING, which may give every row another value.
- A TRUNCATE of a leaf, of which nothing is published through the root. It changes the leaf's relfilenode. So
  does VACUUM FULL, which keeps the rows: where a row of the time before the last look is still there, nothing
  was truncated, and the leaf keeps its ``storage``.

So the state is kept across restarts. Were it lost, the next look begins anew and takes nothing for new.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from syncdata.capture.protection import judge
from syncdata.capture.published import Look, SeenColumn, SeenLeaf, SeenTable
from syncdata.capture.renamed import HeldColumn, HiddenTable, held_columns
from syncdata.capture.spool import replace_in_spool, translated, waiting_catalogs
from syncdata.changes.catalog import (
    WITHHELD,
    Catalog,
    Column,
    Partition,
    PublishedTable,
    digest_in_name,
    digest_of,
    encode_catalog,
)
from syncdata.changes.document import read_document
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.errors import PrivacyError, SpoolError
from syncdata.privacy.policy import Policy, TableVerdict

STATE_FILE_NAME = "catalog.json"
SNAPSHOTS_FILE_NAME = "catalogs_of_snapshots.json"

HasOlderRows = Callable[[SeenTable, str, SeenLeaf | None, str], bool | None]

# A default that was worked out while the column was added, and dropped then, as Django does it: such values
# are the moment or the identifier of that one migration.
_TYPES_OF_THE_MOMENT = ("timestamp", "date", "time", "uuid")

# So many catalogs that files or snapshots name are remembered; those that are forgotten are never pruned.
_MOST_NAMED = 10_000

# So many tables that have left the publication are remembered.
_MOST_LEFT_TABLES = 1_000

_MODIFIER = re.compile(r"\([^)]*\)")

# More steps than a transaction can have.
_ANY_STEP = str(1 << 32)

_KINDS: dict[str, Literal["table", "partitioned table"]] = {"r": "table", "p": "partitioned table"}
_IDENTITIES: dict[str, Literal["default", "full", "index", "nothing"]] = {
    "d": "default",
    "f": "full",
    "i": "index",
    "n": "nothing",
}
_GENERATED: dict[str, Literal["", "stored", "virtual"]] = {"": "", "s": "stored", "v": "virtual"}
_IDENTITY_COLUMNS: dict[str, Literal["", "always", "by default"]] = {
    "": "",
    "a": "always",
    "d": "by default",
}


class CatalogState(msgspec.Struct, frozen=True, kw_only=True):
    """The last catalog, and what the next look is compared with.

    ``lsn`` and ``xmin`` are the look's. ``storages`` has the relfilenode of each table and leaf, by oid, and
    ``attached`` the transaction that attached each leaf.
    ``announced`` is the digest that holds behind the last finished change file. ``named`` says which change
    file or snapshot, by its stamp, was the last one to name a catalog. ``rewritten``: the tables whose rows
    have changed without a record since the last catalog that was announced; ``ruled``: those whose privacy
    rules have, and which are to be copied therefore. ``left``: tables that were
    published and no longer are, the last ones: when one comes back, what changed in between is in no record.
    ``policy`` is the id of the privacy policy that the catalog was made under, ``held`` the columns that it
    keeps back for the names that they had, ``hidden`` the tables that it withholds.
    """

    lsn: str
    xmin: str
    catalog: Catalog
    storages: dict[int, int]
    attached: dict[int, str] = {}
    announced: str | None = None
    named: dict[str, str] = {}
    rewritten: tuple[TableName, ...] = ()
    ruled: tuple[TableName, ...] = ()
    left: tuple[TableName, ...] = ()
    policy: str = ""
    held: tuple[HeldColumn, ...] = ()
    hidden: tuple[HiddenTable, ...] = ()

    def held_in(self, look: Look, policy: str) -> tuple[HeldColumn, ...]:
        """Return the columns of *look* that the *policy* of this id keeps back for their earlier names."""
        if policy != self.policy:
            return ()
        return held_columns(self.catalog, self.held, look, self.hidden)

    @property
    def position(self) -> int:
        return parse_lsn(self.lsn)


def judge_beside(directory: Path, look: Look, policy: Policy) -> dict[TableName, TableVerdict]:
    """Return what becomes of each table of *look* beside the stream, in a snapshot or a check: as in the
    stream, whose state is in the spool *directory*. Raises as `load_state_for`."""
    state = load_state_for(directory, policy)
    return judge(look, policy, () if state is None else state.held_in(look, policy.id))


def next_state(before: CatalogState | None, look: Look, has_older_rows: HasOlderRows) -> CatalogState:
    """Return the state after *look*; *before* is the one until then.

    *has_older_rows* tells whether a table or leaf has a row from before a transaction; None: nobody knows.
    """
    known = {} if before is None else {table.oid: table for table in before.catalog.tables}
    storages: dict[int, int] = {}
    attached: dict[int, str] = {}
    tables = []
    for seen in look.tables:
        comparison = _Comparison(seen, known.get(seen.oid), before, has_older_rows)
        tables.append(comparison.published())
        storages[seen.oid] = seen.storage
        storages |= {leaf.oid: leaf.storage for leaf in seen.leaves}
        attached |= {leaf.oid: leaf.attached for leaf in seen.leaves}
    return CatalogState(
        lsn=format_lsn(look.lsn),
        xmin=look.xmin,
        catalog=Catalog(version=1, publication=look.publication, tables=tuple(tables)),
        storages=storages,
        attached=attached,
        announced=before.announced if before else None,
        named=before.named if before else {},
        rewritten=before.rewritten if before else (),
        ruled=before.ruled if before else (),
        policy=before.policy if before else "",
        held=before.held if before else (),
        hidden=before.hidden if before else (),
        left=_left_tables(before, {seen.table for seen in look.tables}),
    )


def leave_out(state: CatalogState, commit_lsn: int) -> CatalogState:
    """Return *state* after the transaction that committed at *commit_lsn* was left out of the stream: any
    table may lack its changes."""
    lsn = format_lsn(commit_lsn)
    tables = tuple(msgspec.structs.replace(table, left_out=lsn) for table in state.catalog.tables)
    return msgspec.structs.replace(
        state,
        catalog=msgspec.structs.replace(state.catalog, tables=tables),
        rewritten=tuple(sorted({*state.rewritten, *(table.table for table in tables)})),
    )


def rule_anew(state: CatalogState, tables: Collection[TableName]) -> CatalogState:
    """Return *state* where *tables* have other privacy rules from its look on: what the stream has of them
    before is masked otherwise, or is missing.

    A snapshot is judged by a look of its own, which may be older and have the new rules already. Then the
    changes between the two are not as its rows are, and its readers must learn that they are left out.
    Test: test_a_snapshot_that_knew_other_rules_before_the_stream_did_is_not_taken_for_equal.
    """
    others = tuple(
        msgspec.structs.replace(table, left_out=state.lsn) if table.table in tables else table
        for table in state.catalog.tables
    )
    return msgspec.structs.replace(state, catalog=msgspec.structs.replace(state.catalog, tables=others))


def _left_tables(before: CatalogState | None, published: Collection[TableName]) -> tuple[TableName, ...]:
    if before is None:
        return ()
    gone = dict.fromkeys((*before.left, *(table.table for table in before.catalog.tables)))
    return tuple(table for table in gone if table not in published)[-_MOST_LEFT_TABLES:]


class _Comparison:
    """One table as it is seen now, and as it was published at the last look (None: it was not)."""

    def __init__(
        self,
        seen: SeenTable,
        known: PublishedTable | None,
        before: CatalogState | None,
        has_older_rows: HasOlderRows,
    ) -> None:
        self._seen = seen
        self._known = known
        self._storages: Mapping[int, int] = before.storages if before else {}
        self._attached: Mapping[int, str] = before.attached if before else {}
        self._xmin = before.xmin if before else "0"
        self._has_older_rows = has_older_rows

    def published(self) -> PublishedTable:
        seen = self._seen
        storage, stored_by = self._storage()
        return PublishedTable(
            schema=seen.schema,
            name=seen.name,
            oid=seen.oid,
            columns=tuple(column_of(column, is_filled=self._is_filled(column)) for column in seen.columns),
            kind=_KINDS[seen.kind],
            key=seen.key,
            identity=_IDENTITIES[seen.identity],
            identity_columns=seen.identity_columns,
            row_filter=seen.told_filter,
            column_list=seen.column_list,
            partitions=tuple(map(self._partition, seen.leaves)),
            membership=seen.membership,
            left_out=self._known.left_out if self._known else "",
            storage=storage,
            stored_by=stored_by,
        )

    def _storage(self) -> tuple[int, int]:
        """Return what stands for the table's storage, and the transaction that it comes from."""
        seen, known = self._seen, self._known
        if known is None or not known.storage or seen.kind == "p":
            return seen.storage, 0
        if self._storages.get(seen.oid) in (None, seen.storage) or not self._may_have_other_values():
            return known.storage, known.stored_by
        return seen.storage, int(seen.stored_by)

    def _may_have_other_values(self) -> bool:
        """Tell whether rows were written anew by other than VACUUM FULL, which keeps their xmin, and by
        other than a TRUNCATE, which leaves none that is as old as the new storage."""
        seen = self._seen
        return self._has_older_rows(
            seen, self._xmin, None, "0"
        ) is not True and self._may_have_rows_of_its_making(seen)

    def _is_filled(self, column: SeenColumn) -> bool:
        if self._known is None or column.generated or column.privacy == WITHHELD:
            return False
        old = next((old for old in self._known.columns if old.number == column.number), None)
        if old is not None:
            return old.filled
        if column.has_missing:
            is_of_the_moment = column.type.startswith(_TYPES_OF_THE_MOMENT)
            may_be = column.default_varies or (is_of_the_moment and not column.has_default)
        else:
            may_be = column.identity != "" or self._was_written_anew(has_default=column.has_default)
        # Rows that came after the column brought their values with them, in records.
        return may_be and self._has_older_rows(self._seen, column.changed, None, _ANY_STEP) is not False

    def _was_written_anew(self, *, has_default: bool) -> bool:
        """Tell whether the rows may have been written anew since the last look, by other than VACUUM FULL and
        TRUNCATE."""
        seen = self._seen
        parts: Sequence[SeenTable | SeenLeaf] = seen.leaves if seen.kind == "p" else (seen,)
        old = [self._storages.get(part.oid) for part in parts]
        if seen.kind == "r" and old == [None]:
            return has_default
        changed = [
            part for part, storage in zip(parts, old, strict=True) if storage not in (None, part.storage)
        ]
        return (
            bool(changed)
            and self._has_older_rows(seen, self._xmin, None, "0") is not True
            and any(self._may_have_rows_of_its_making(part) for part in changed)
        )

    def _may_have_rows_of_its_making(self, part: SeenTable | SeenLeaf) -> bool:
        """Tell whether the table or leaf may have rows as old as its storage. A TRUNCATE leaves none."""
        leaf = part if isinstance(part, SeenLeaf) else None
        return self._has_older_rows(self._seen, part.stored_by, leaf, _ANY_STEP) is not False

    def _partition(self, leaf: SeenLeaf) -> Partition:
        old = None
        if self._known is not None:
            old = next((old for old in self._known.partitions if old.oid == leaf.oid), None)
        if old is None:
            return self._make_partition(leaf, leaf.storage, is_filled=self._had_rows(leaf))
        storage, stored_by = old.storage, old.stored_by
        if self._attached.get(leaf.oid, leaf.attached) != leaf.attached:
            # Detached and attached again: what was changed between is in no record. The storage may be the
            # same, so the transaction stands for it; no relfilenode is below zero.
            storage, stored_by = -int(leaf.attached), 0
        elif self._storages.get(leaf.oid, storage) != leaf.storage and (
            self._has_older_rows(self._seen, self._xmin, leaf, "0") is not True
        ):
            storage, stored_by = leaf.storage, int(leaf.stored_by)
        return self._make_partition(leaf, storage, is_filled=old.filled, stored_by=stored_by)

    def _had_rows(self, leaf: SeenLeaf) -> bool:
        """Tell whether a new partition had rows when it was attached; where nobody knows, it counts so.

        Not in a table that is new itself: readers begin it with a snapshot, which has those rows.
        """
        if self._known is None:
            return False
        return self._has_older_rows(self._seen, leaf.attached, leaf, leaf.command) is not False

    def _make_partition(
        self, leaf: SeenLeaf, storage: int, *, is_filled: bool, stored_by: int = 0
    ) -> Partition:
        return Partition(
            schema=leaf.schema,
            name=leaf.name,
            oid=leaf.oid,
            storage=storage,
            filled=is_filled,
            stored_by=stored_by,
        )


def column_of(column: SeenColumn, *, is_filled: bool) -> Column:
    return Column(
        name=column.name,
        number=column.number,
        type=column.type,
        not_null=column.not_null,
        generated=_GENERATED[column.generated],
        identity=_IDENTITY_COLUMNS[column.identity],
        filled=is_filled,
        older=column.older,
        base=column.base,
        collation=column.collation,
        privacy=column.privacy,
        privacy_id=column.privacy_id,
    )


def name_identity(code: str) -> Literal["default", "full", "index", "nothing"]:
    """Return the kind of replica identity that PostgreSQL abbreviates by *code*."""
    return _IDENTITIES[code]


# What changed, for the log.

_UNTIL_RESYNC = "readers hold it for suspect, or block it, until there is a new snapshot"


def rewritten_tables(before: Catalog, after: Catalog, left: Collection[TableName] = ()) -> list[TableName]:
    """Return the tables that are published before and after, and whose rows changed without a record; and
    those of *left*, published earlier, that are so again."""
    now = {table.table: table for table in after.tables}
    known = {table.table for table in before.tables}
    return [
        old.table
        for old in before.tables
        if (new := now.get(old.table)) is not None and (new.oid != old.oid or _tell_table(old, new))
    ] + [table for table in left if table in now and table not in known]


def tell_changes(before: Catalog, after: Catalog, withheld: Collection[TableName] = ()) -> list[str]:
    """Return a line for each change between two catalogs after which rows may differ at the readers.

    *withheld*: the tables that the privacy policy withholds now.
    """
    lines = []
    by_oid = {table.oid: table for table in after.tables}
    by_name = {table.table: table for table in after.tables}
    for old in before.tables:
        new = by_oid.get(old.oid)
        if new is not None and new.table == old.table:
            lines += [f"{old.table}: {change}; {_UNTIL_RESYNC}" for change in _tell_table(old, new)]
            continue
        renamed = "" if new is None else f": it is called {new.table} now"
        if old.table in withheld:
            lines.append(f"{old.table}: the privacy policy withholds it; {_UNTIL_RESYNC}")
        elif old.table in by_name:
            lines.append(
                f"{old.table}: dropped and made anew, or swapped by rename{renamed}; {_UNTIL_RESYNC}"
            )
        else:
            lines.append(
                f"{old.table}: no longer published{renamed or ' (dropped, or taken out of the publication)'};"
                " its changes are lost to the archive until 'python manage.py setup_logical_replication' has"
                f" run; {_UNTIL_RESYNC}"
            )
    return lines


def _tell_table(old: PublishedTable, new: PublishedTable) -> list[str]:
    told = []
    if old.membership != new.membership:
        told.append("it was taken off the publication and added again")
    known = {column.number: column for column in old.columns}
    numbers = {column.name: column.number for column in old.columns}
    for column in new.columns:
        if column.privacy == WITHHELD:
            continue  # readers have no values of it
        if column.filled and not (column.number in known and known[column.number].filled):
            told.append(f"the new column {column.name} got values in older rows, which no record carries")
        elif numbers.get(column.name, column.number) != column.number:
            told.append(f"the column {column.name} was dropped and added anew, so its older values are gone")
        elif column.number in known and _is_another_type(known[column.number], column):
            told.append(f"the type of the column {column.name} was changed to {column.type}")
    if old.storage and new.storage != old.storage:
        told.append("it was written anew, as by ALTER TABLE … TYPE … USING, or truncated")
    if old.row_filter != new.row_filter:
        told.append("the publication's row filter has changed")
    if _is_another_list(old, new):
        told.append("the publication's list of columns has changed")
    leaves = {leaf.oid: leaf for leaf in new.partitions}
    for leaf in old.partitions:
        now = leaves.pop(leaf.oid, None)
        if now is None:
            told.append(f"the partition {leaf.name} was detached or dropped")
        elif now.storage != leaf.storage:
            told.append(f"the partition {leaf.name} was truncated or rewritten")
    told += [
        f"the partition {leaf.name} was attached with rows in it, which no record carries"
        for leaf in leaves.values()
        if leaf.filled
    ]
    return told


def _is_another_list(old: PublishedTable, new: PublishedTable) -> bool:
    """Tell whether the publication's own list of columns is another one: what is withheld is in neither."""
    if old.column_list == new.column_list:
        return False
    if not any(column.privacy == WITHHELD for column in (*old.columns, *new.columns)):
        return True
    were_sent, are_sent = frozenset(old.travelling), frozenset(new.travelling)
    return any(
        (before.name in were_sent) != (now.name in are_sent)
        for before, now in _kept_columns(old, new)
        if WITHHELD not in (before.privacy, now.privacy)
    )


def ruled_tables(before: Catalog, after: Catalog) -> list[TableName]:
    """Return the tables that are published before and after, and under other privacy rules: older records,
    and rows at the readers, have their values in another form."""
    now = {table.oid: table for table in after.tables}
    return [
        new.table
        for old in before.tables
        if (new := now.get(old.oid)) is not None and any(tell_rules(old, new))
    ]


def tell_rules(old: PublishedTable, new: PublishedTable) -> Iterator[str]:
    """Yield what has changed in the privacy rules of columns that were there before."""
    for before, now in _kept_columns(old, new):
        if before.privacy == now.privacy and before.privacy_id == now.privacy_id:
            continue
        if now.privacy == WITHHELD:
            yield f"the privacy policy withholds the column {now.name}"
        elif before.privacy == WITHHELD:
            yield f"the privacy policy lets the column {now.name} travel"
        else:
            yield f"the privacy rule of the column {now.name} has changed"


def tell_privacy(before: Catalog, after: Catalog) -> list[str]:
    """Return a line for each change of what the privacy policy does to the columns of published tables."""
    known = {table.oid: table for table in before.tables}
    lines = []
    for table in after.tables:
        old = known.get(table.oid)
        if old is not None:
            lines += [f"{table.table}: {change}; {_UNTIL_RESYNC}" for change in tell_rules(old, table)]
        kept = set() if old is None else {column.number for column in old.columns}
        lines += [
            f"{table.table}: the privacy policy withholds the new column {column.name}: readers go on without"
            " it; give it a rule in [source.columns]"
            for column in table.columns
            if old is not None and column.privacy == WITHHELD and column.number not in kept
        ]
    return lines


def _kept_columns(old: PublishedTable, new: PublishedTable) -> Iterator[tuple[Column, Column]]:
    """Yield the columns that were there before and still are, as they were and as they are."""
    known = {column.number: column for column in old.columns}
    for column in new.columns:
        if column.number in known:
            yield known[column.number], column


def _is_another_type(old: Column, new: Column) -> bool:
    """Tell whether more than the modifier has changed. Where that gives the rows other values, it writes them
    anew."""
    return _MODIFIER.sub("", old.type) != _MODIFIER.sub("", new.type)


# The state's file.


def load_state(directory: Path) -> CatalogState | None:
    """Return the state in the spool *directory*; None where there is none yet, or none that can be read."""
    path = directory / STATE_FILE_NAME
    try:
        with translated(path):
            content = path.read_bytes()
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        state = read_document(content, CatalogState)
        state.position  # noqa: B018  (it parses)
    except ValueError:
        return None
    return state


def load_state_for(directory: Path, policy: Policy | None) -> CatalogState | None:
    """Return what `load_state` does. Raises PrivacyError where there is a policy, and a state that cannot be
    read: it may have said which columns are kept back for their earlier names.

    Test: test_without_its_memory_the_archiver_lets_nothing_travel_under_a_new_name.
    """
    state = load_state(directory)
    path = directory / STATE_FILE_NAME
    if policy is not None and state is None and path.exists():
        raise PrivacyError(
            f"{path} cannot be read, and it may have said that a column which was masked or withheld has"
            " another name now",
            hint="compare the rules with what the columns of these names hold today; then remove the file and"
            " start archive_changes again",
        )
    return state


def save_state(directory: Path, state: CatalogState) -> None:
    """Write the state; durable on return."""
    replace_in_spool(directory / STATE_FILE_NAME, msgspec.json.encode(state) + b"\n")


def note_snapshot(directory: Path, digest: str, stamp: str) -> None:
    """Remember durably that the snapshot of *stamp* names the catalog *digest*. For one process at a time."""
    path = directory / SNAPSHOTS_FILE_NAME
    named = newest_named(_named_by_snapshots(directory) | {digest: stamp})
    replace_in_spool(path, msgspec.json.encode(named) + b"\n")


def newest_named(named: Mapping[str, str]) -> dict[str, str]:
    """Return of *named*, stamps by digest, the newest ones: as many as are remembered."""
    newest = sorted(named.items(), key=lambda entry: entry[1])[-_MOST_NAMED:]
    return dict(newest)


def last_naming(directory: Path) -> dict[str, str]:
    """Return by digest the stamp of the last change file or snapshot that names the catalog.

    Those that may be named again at any time, or of which the spool *directory* knows nothing, are left out.
    """
    state = load_state(directory)
    if state is None:
        return {}
    named = _named_by_snapshots(directory)
    for digest, stamp in state.named.items():
        named[digest] = max(stamp, named.get(digest, ""))
    current = {state.announced, digest_of(encode_catalog(state.catalog))}
    current |= {digest_in_name(name) for name, _ in waiting_catalogs(directory)}
    return {digest: stamp for digest, stamp in named.items() if digest not in current}


def _named_by_snapshots(directory: Path) -> dict[str, str]:
    path = directory / SNAPSHOTS_FILE_NAME
    try:
        with translated(path):
            return read_document(path.read_bytes(), dict[str, str])
    except SpoolError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    except ValueError:
        return {}
