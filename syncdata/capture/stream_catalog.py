"""The catalog that holds where the stream stands: looks at the source, set right by what the stream says.

A look shows the source as it is now, and the stream may be behind. Say a column was widened an hour ago, and
the archiver reads the changes of two hours ago: the description of the table that comes with them (pgoutput's
Relation message) has the old type. Then the table's entry is made of that description, until the stream has
passed the look. So an entry never describes the values of records otherwise than the stream does.

The other way round, a description that a look does not show is newer than the look: look again, at once.

Each catalog lies in the spool, durable, before a file names it; the uploader puts it into the archive first.

Where there is a privacy policy, the catalog is of what it lets travel; looks and descriptions are compared as
they came. How the rows of a table are masked goes with its entry: where that changes, another catalog holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from syncdata.capture.catalog_state import (
    CatalogState,
    load_state_for,
    name_identity,
    newest_named,
    next_state,
    rewritten_tables,
    rule_anew,
    ruled_tables,
    save_state,
    tell_changes,
    tell_privacy,
)
from syncdata.capture.owed import owe
from syncdata.capture.pgoutput import Relation
from syncdata.capture.policy_note import id_of
from syncdata.capture.privacy_note import load_privacy_note, note_privacy
from syncdata.capture.protection import (
    CANNOT_HOLD,
    FILTERED_LATE,
    facts_of,
    is_filtered_late,
    is_withheld,
    judge,
    problems_of,
    require_no_halt,
    require_no_problem,
    shown,
    shown_entry,
    stream_facts,
    withheld_tables,
)
from syncdata.capture.published import Look, SeenTable, SourceEye
from syncdata.capture.renamed import HeldColumn, doubtful_names, hidden_tables, hold
from syncdata.capture.spool import keep_catalog
from syncdata.capture.unmasked import Unmasked
from syncdata.changes.catalog import Catalog, Column, PublishedTable, digest_of, encode_catalog
from syncdata.changes.filenames import stamp_of
from syncdata.changes.names import TableName
from syncdata.errors import SourceConnectionError, SyncError
from syncdata.privacy.facts import TableFacts
from syncdata.privacy.policy import Policy, TableVerdict
from syncdata.privacy.row_mask import RowMask

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
# Where a look takes long (thousands of tables), looks are rarer, so that they take no more than this share.
_MOST_OF_THE_TIME = 0.02
_NO_TABLES = Catalog(version=1, publication="", tables=())


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCatalog:
    """A catalog as files name it: its digest, and the WAL position of the look (``X/Y``)."""

    digest: str
    lsn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A table as the stream describes it: its entry, None where the table is withheld, and what decides how
    its rows are masked, where there is a policy."""

    entry: PublishedTable | None
    verdict: TableVerdict | None = None


class StreamCatalog:
    """Follows what is published, for one session. ``current`` is the catalog that holds now.

    Its methods raise SpoolError, and PrivacyError where the policy says to stop; the errors of the source are
    logged once, and the last look counts on.
    """

    def __init__(
        self,
        directory: Path,
        eye: SourceEye,
        *,
        rotate_s: float,
        policy: Policy | None = None,
        is_start: bool = False,
        try_masks: Callable[[Mapping[TableName, TableVerdict]], Sequence[str]] | None = None,
    ) -> None:
        """Look at the source. Raises SourceConnectionError when that fails; at the archiver's *start*,
        PrivacyError where a rule of the policy cannot hold, or *try_masks* returns problems."""
        self._directory = directory
        self._policy = policy
        self._unmasked = Unmasked(directory, id_of(policy))
        self._facts: dict[int, TableFacts] | None = None  # of the last look
        self._filtered: set[TableName] = set()
        self._held: tuple[HeldColumn, ...] = ()
        self._verdicts: dict[TableName, TableVerdict] = {}
        self._problems: set[str] = set()
        # Those that the archiver before this one withheld, then those of the last look.
        note = load_privacy_note(directory)
        self._withheld = frozenset() if note is None else frozenset(note.withheld_tables)
        self._must_hold = is_start
        self._try_masks = try_masks
        self._eye = eye
        self._every_s = min(rotate_s, LOOK_EVERY_S)
        self._due_s = 0.0
        self._error = ""
        self._by_stream: dict[int, Described] = {}
        self._is_past = False  # the stream is past the look, and the next one takes its place
        self._leaves: set[int] = set()
        self._types: dict[tuple[int, int], tuple[str, str]] = {}
        self._saved: CatalogState | None = load_state_for(directory, policy)
        self._state, self._seen, self._shown = self._compare(self._saved, self._take_look())
        self.current = NamedCatalog(digest="", lsn="")
        self._renew()
        if self._saved is not None and self._saved.announced is None:
            # The first look announces nothing: there is nothing that it could be another one than. Snapshots
            # name it, and the next file will.
            self.note_announced(self.current.digest)

    @property
    def position(self) -> int:
        """What was committed before, the last look shows."""
        return self._state.position

    @property
    def is_announced(self) -> bool:
        """True when the last finished file has ended under the current catalog, or it is the first of all."""
        return self._state.announced == self.current.digest

    def look_if_due(self, *, received_lsn: int) -> bool:
        """Look at the source when it is time; return whether another catalog holds now.

        Call it between two transactions; *received_lsn* is where the stream stands.
        """
        if self._by_stream and not self._is_past and received_lsn >= self.position:
            # What the stream described counts until a look has taken its place, which may fail.
            self._is_past = True
            self._due_s = 0.0
        if time.monotonic() < self._due_s:
            return False
        return self._look_again()

    def describe(self, relation: Relation, commit_lsn: int) -> bool:
        """Take in the stream's description of a table, which changes up to now agree with or not; return
        whether another catalog holds now. The transaction commits at *commit_lsn*."""
        # Of a partition, the root is described, under whose name its records come, and then itself, too.
        if relation.oid in self._leaves:
            return False
        if self._agrees(relation):
            # What is published of it may have changed: that, too, makes the stream describe it anew.
            return commit_lsn >= self.position and self._may_be_another(relation) and self._look_for(relation)
        changed = commit_lsn >= self.position and self._look_for(relation)
        if relation.oid in self._leaves:
            return changed  # a partition that is new
        if _describes(relation, self._seen.get(relation.oid)):
            is_new = self._by_stream.pop(relation.oid, None) is not None
        else:
            self._by_stream[relation.oid] = self._make_entry(relation)
            is_new = True
        return self._renew() if is_new else changed

    def withholds(self, relation: Relation) -> bool:
        """Tell whether no change of *relation* may travel, as the catalog stands that holds now."""
        return self._policy is not None and is_withheld(self._verdict(relation))

    def mask(self, relation: Relation) -> RowMask | None:
        """Return what masks the rows of *relation*, which travels; None where they travel as they are."""
        verdict = self._verdict(relation)
        mask = None if verdict is None else verdict.row_mask(relation.columns)
        if mask is not None:
            self._unmasked.watch(relation.oid, TableName(relation.schema, relation.name), mask)
        return mask

    def shows(self, seen: SeenTable) -> bool:
        """Tell whether *seen*, of another look (as the policy lets it be seen), is read as the table that the
        stream stands at. Where it is not, the next look is due."""
        known = self._shown.get(seen.oid)
        is_alike = known is not None and seen.oid not in self._by_stream and _is_read_alike(known, seen)
        if not is_alike:
            self._due_s = 0.0
        return is_alike

    def note_naming(self, file_name: str, digests: set[str]) -> None:
        """Remember durably that the file *file_name*, which is about to be finished, names *digests*."""
        self._unmasked.save()
        stamp = stamp_of(file_name)
        if stamp is not None:
            self._keep(named=newest_named(self._state.named | dict.fromkeys(digests, stamp)))

    def note_announced(self, digest: str) -> None:
        """Remember durably that the last finished file ends under *digest*, and what snapshots are owed.

        Not before: a snapshot must be newer, by its name, than the file in which readers meet the change.
        """
        if digest != self._state.announced:
            owe(self._directory, self._state.rewritten)
            owe(self._directory, self._state.ruled, is_asked_for=True)
            self._keep(announced=digest, rewritten=(), ruled=())

    # Inside

    def _look_for(self, relation: Relation) -> bool:
        """Look again, for what the stream says of *relation* is newer than the look; return whether another
        catalog holds now. Under a policy nothing goes on without: by its names alone, a column that was
        renamed could be taken for another one. Raises SourceConnectionError then."""
        is_new = self._look_again()
        if self._policy is not None and self._error:
            table = TableName(relation.schema, relation.name)
            raise SourceConnectionError(
                f"{table} may have been altered, and what is published cannot be read: {self._error}",
                hint="nothing is masked by names that may be out of date; the archiver tries again by itself",
            )
        return is_new

    def _may_be_another(self, relation: Relation) -> bool:
        """Tell whether *relation*, which reads as before, may stand for something else by now. Say (id, a, b)
        lost its a, then b was renamed to a, and there is a new b: a description has names, and no numbers.
        Test: test_columns_that_change_under_the_same_names_are_noticed_at_once."""
        if self._policy is None or self._filters(relation):
            return self._policy is not None
        seen = self._seen.get(relation.oid)
        return seen is None or (not self.withholds(relation) and self._eye.has_altered_columns(seen))

    def _look_again(self) -> bool:
        try:
            look = self._take_look()
        except SyncError as error:
            if str(error) != self._error:
                logger.warning("what is published cannot be read: %s", error, extra={"code": error.code})
            self._error = str(error)
            self._due_s = time.monotonic() + self._every_s
        else:
            self._error = ""
            if self._is_past:
                # From here on the stream has nothing that is older than the look before.
                self._by_stream.clear()
                self._is_past = False
            self._state, self._seen, self._shown = self._compare(self._state, look)
        return self._renew()

    def _take_look(self) -> Look:
        started_s = time.monotonic()
        look = self._eye.look()
        now_s = time.monotonic()
        self._due_s = now_s + max(self._every_s, (now_s - started_s) / _MOST_OF_THE_TIME)
        return look

    def _compare(
        self, before: CatalogState | None, look: Look
    ) -> tuple[CatalogState, dict[int, SeenTable], dict[int, SeenTable]]:
        """Return the state after *look*; the look's tables by oid; and these as the policy shows them."""
        visible = self._judge(before, look)
        state = next_state(before, visible, self._eye.has_older_rows)
        policy_id = id_of(self._policy)
        withheld = withheld_tables(self._verdicts)
        is_same = before is not None and before.policy == policy_id
        hidden = hidden_tables(before.catalog, before.hidden, look, withheld) if before and is_same else ()
        hidden = hidden or hidden_tables(_NO_TABLES, (), look, withheld)
        state = msgspec.structs.replace(state, policy=policy_id, held=self._held, hidden=hidden)
        if before is not None:
            state = self._tell(before, state)
            self._leaves.update(leaf.oid for table in before.catalog.tables for leaf in table.partitions)
        if look.leaves_out_actions and (before is None or before.catalog.tables):
            logger.warning(
                "the publication %s leaves out some of INSERT, UPDATE, DELETE and TRUNCATE: readers take its"
                " tables for unpublished; ALTER PUBLICATION %s SET (publish ="
                " 'insert, update, delete, truncate')",
                look.publication,
                look.publication,
            )
        # Those of withheld tables, too: a description of a leaf is none of a table.
        self._leaves.update(leaf.oid for table in look.tables for leaf in table.leaves)
        # One that was detached is a table like any other, whose alterations count.
        self._leaves.difference_update(table.oid for table in look.tables)
        self._withheld = withheld
        return (
            state,
            {table.oid: table for table in look.tables},
            {table.oid: table for table in visible.tables},
        )

    def _tell(self, before: CatalogState, state: CatalogState) -> CatalogState:
        """Log what is new in *state*; return it with the tables whose rows or rules have changed."""
        withheld = withheld_tables(self._verdicts)
        for line in tell_changes(before.catalog, state.catalog, withheld):
            logger.warning("%s", line)
        for line in tell_privacy(before.catalog, state.catalog):
            logger.warning("%s", line)
        rewritten = {*before.rewritten, *rewritten_tables(before.catalog, state.catalog, before.left)}
        ruled = {*ruled_tables(before.catalog, state.catalog)}
        state = rule_anew(state, ruled | (self._withheld - withheld))
        if self._policy is None or not self._policy.takes_snapshots:
            ruled.clear()
        return msgspec.structs.replace(
            state,
            rewritten=tuple(sorted(rewritten)),
            ruled=tuple(sorted({*before.ruled, *ruled})),
        )

    def _judge(self, before: CatalogState | None, look: Look) -> Look:
        """Return *look* as the policy lets it be seen. Raises PrivacyError where it says to stop."""
        if self._policy is None:
            return look
        facts = {seen.oid: facts_of(seen) for seen in look.tables}
        filtered = {seen.table for seen in look.tables if seen.row_filter and not seen.is_filter_new}
        held = () if before is None else before.held_in(look, self._policy.id)
        if (facts, filtered, held) != (self._facts, self._filtered, self._held):
            verdicts = judge(look, self._policy, held)
            require_no_halt(verdicts)
            if self._must_hold:
                require_no_problem(verdicts, self._try_masks(verdicts) if self._try_masks else ())
            problems = set(problems_of(verdicts))
            for problem in sorted(problems - self._problems):
                logger.warning(CANNOT_HOLD, problem)
            for seen in look.tables:
                if is_filtered_late(seen, verdicts[seen.table]):
                    logger.warning("%s: %s", seen.table, FILTERED_LATE)
            self._facts, self._filtered, self._held = facts, filtered, held
            self._verdicts, self._problems = verdicts, problems
        self._must_hold = False
        return shown(look, self._verdicts)

    def _filters(self, relation: Relation) -> bool:
        """Tell whether the policy relies on the publication's row filter of the table."""
        return self._policy is not None and TableName(relation.schema, relation.name) in self._policy.rows

    def _verdict(self, relation: Relation) -> TableVerdict | None:
        described = self._by_stream.get(relation.oid)
        if described is not None:
            return described.verdict
        seen = self._seen.get(relation.oid)
        return None if seen is None else self._verdicts.get(seen.table)

    def _renew(self) -> bool:
        """Work out what holds now; return whether that is another catalog, which is in the spool then."""
        content = encode_catalog(self._merged())
        digest = digest_of(content)
        is_new = digest != self.current.digest
        if is_new:
            keep_catalog(self._directory, digest, content)
        self._save_if_changed()
        # Not before: were the note newer than the state, a table would come back as if it were new.
        note_privacy(self._directory, self._policy, self._verdicts)
        self.current = NamedCatalog(digest=digest, lsn=self._state.lsn)
        return is_new

    def _merged(self) -> Catalog:
        catalog = self._state.catalog
        if not self._by_stream:
            return catalog
        described = [found.entry for found in self._by_stream.values() if found.entry is not None]
        names = {table.table for table in described}
        others = [
            table for table in catalog.tables if table.oid not in self._by_stream and table.table not in names
        ]
        tables = sorted([*others, *described], key=lambda table: table.table)
        return msgspec.structs.replace(catalog, tables=tuple(tables))

    def _agrees(self, relation: Relation) -> bool:
        described = self._by_stream.get(relation.oid)
        if described is None:
            return _describes(relation, self._seen.get(relation.oid))
        return described.entry == self._make_entry(relation).entry

    def _make_entry(self, relation: Relation) -> Described:
        """Return the table as *relation* describes it, and the last look for all else."""
        entry = self._plain_entry(relation)
        if self._policy is None:
            return Described(entry=entry)
        seen = self._seen.get(relation.oid)
        if seen is not None and is_withheld(self._verdicts.get(seen.table)):
            return Described(entry=None)  # it does not come back for a while
        known = self._facts or {}
        facts = known | {relation.oid: stream_facts(entry, relation, known.get(relation.oid))}
        verdict = self._policy.judge(list(facts.values())).get(entry.table)
        by_name = {column.name: column for column in entry.columns}
        columns = [by_name[name] for name in relation.columns]
        renamed = doubtful_names(self._held, entry, columns, self._known_entry(relation.oid))
        if verdict is not None and renamed:
            verdict = hold(verdict, renamed, facts[relation.oid].identity)
        visible = shown_entry(entry, verdict, relation, None if seen is None else seen.column_list)
        return Described(entry=visible, verdict=verdict)

    def _plain_entry(self, relation: Relation) -> PublishedTable:
        known = self._known_entry(relation.oid)
        old = {} if known is None else {column.name: column for column in known.columns}
        columns = []
        for name, (type_oid, modifier) in zip(relation.columns, relation.types, strict=True):
            type_text, base = self._type_texts(type_oid, modifier)
            column = old.pop(name, None) or Column(name=name, number=0, type=type_text)
            columns.append(msgspec.structs.replace(column, type=type_text, base=base, generated=""))
        # Generated columns are not in the description; what else is missing there is newer than the stream.
        columns += [column for column in old.values() if column.generated]
        columns.sort(key=lambda column: column.number)
        in_order = tuple(name for name in relation.columns if name in relation.key)
        entry = PublishedTable(
            schema=relation.schema,
            name=relation.name,
            oid=relation.oid,
            columns=tuple(columns),
            key=known.key if known and set(known.key) <= set(relation.columns) else in_order,
            identity=name_identity(relation.identity),
            identity_columns=in_order,
        )
        if known is None:
            return entry
        return msgspec.structs.replace(
            entry,
            kind=known.kind,
            row_filter=known.row_filter,
            column_list=known.column_list,
            partitions=known.partitions,
            membership=known.membership,
            left_out=known.left_out,
            storage=known.storage,
            stored_by=known.stored_by,
        )

    def _known_entry(self, oid: int) -> PublishedTable | None:
        return next((table for table in self._state.catalog.tables if table.oid == oid), None)

    def _type_texts(self, type_oid: int, modifier: int) -> tuple[str, str]:
        texts = self._types.get((type_oid, modifier))
        if texts is None:
            texts = self._types[type_oid, modifier] = self._eye.type_texts(type_oid, modifier)
        return texts

    def _keep(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        self._save_if_changed()

    def _save_if_changed(self) -> None:
        """Save the state unless only its moment has changed: an older one is as good for comparisons."""
        state, saved = self._state, self._saved
        if saved is None or msgspec.structs.replace(saved, lsn=state.lsn, xmin=state.xmin) != state:
            save_state(self._directory, state)
            self._saved = state


def _is_read_alike(one: SeenTable, other: SeenTable) -> bool:
    def what_is_read(seen: SeenTable) -> object:
        columns = [(c.name, c.type_oid, c.modifier, c.is_sent, c.privacy_id) for c in seen.columns]
        leaves = [leaf.oid for leaf in seen.leaves]
        return seen.table, seen.kind, seen.membership, seen.row_filter, columns, leaves

    return what_is_read(one) == what_is_read(other)


def _describes(relation: Relation, seen: SeenTable | None) -> bool:
    """Tell whether the stream describes the table as it was *seen*."""
    if seen is None:
        return False
    sent = [column for column in seen.columns if column.is_sent]
    return (
        seen.table == TableName(relation.schema, relation.name)
        and relation.identity == seen.identity
        and relation.columns == tuple(column.name for column in sent)
        and relation.types == tuple((column.type_oid, column.modifier) for column in sent)
        and relation.key == frozenset(seen.identity_columns) & frozenset(relation.columns)
    )
