"""Looks at tables under the catalog of a batch: may they go on, and are they still what production has?

Knows the checkpoint's columns ``published`` (the baseline, plan/drift.py) and ``marks``, and what becomes of
findings; knows nothing of rows or files. `look` is pure. The functions that read and write work inside the
caller's transaction, so that the baseline moves on together with the rows, or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from psycopg import Connection

from syncdata.apply.plan import drift
from syncdata.apply.plan.drift import Baseline, Finding
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.state.marks import Mark, decode_marks, encode_marks, folded
from syncdata.changes.catalog import PublishedTable
from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, shortened

# Longer than a finding of names that PostgreSQL can have.
_LONGEST_TEXT = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a checkpoint knows of its table in production. ``has_rows``: the table has begun, so that its rows
    may be wrong already. ``is_rebuild``: it is being rebuilt, and only its new rows count."""

    baseline: Baseline | None = None
    marks: tuple[Mark, ...] = ()
    has_rows: bool = True
    is_rebuild: bool = False

    @property
    def was_unpublished(self) -> bool:
        return any(mark.kind == "unpublished" for mark in self.marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look has found: the ``error`` that blocks the table, and what its checkpoint knows now."""

    known: Known
    error: SchemaError | None = None


def look(
    table: TableName,
    known: Known,
    published: PublishedTable | None,
    here: TableSchema | None,
    *,
    is_older: bool = False,
    catalog_lsn: int | None = None,
    snapshot_lsn: int | None = None,
    file: str = "",
    has_records: bool = False,
    commit_lsn: int | None = None,
) -> Look:
    """Hold *table* to the catalog, which has *published*, and to the table *here*.

    *is_older*: the catalog is older than the snapshot that the rows came from, so it says nothing of them.
    *catalog_lsn*: where it was read. *snapshot_lsn*: the commit of the snapshot that is being loaded under
    the catalog. *file* is the one that names the catalog. *has_records*: records of the table are about to be
    applied under it; *commit_lsn*: the commit up to which it holds at least.
    """
    baseline = known.baseline
    unlike: list[str] = []
    if is_older and baseline is not None:
        unlike = [] if published is None else drift.other_rules(baseline.table, published)
        if unlike and has_records:
            stopping = _on_one_line([drift.masked_otherwise(table, unlike)])
            return Look(known=known, error=_error(table, stopping, known))
        published = baseline.table
    if published is None:
        # First: what other marks advise, such as a snapshot, can be done only when the table is published.
        mark = _unpublished(table, known)
        return Look(known=replace(known, marks=tuple(dict.fromkeys((mark, *known.marks)))))
    # A rename alone leaves the rows as they are. Test:
    # test_a_renamed_column_waits_for_the_same_here_and_goes_on_by_itself.
    renamed = [] if baseline is None or here is None else [*drift.renames(baseline.table, published, here)]
    found = [] if baseline is None else _done_there(known, baseline, published, None if renamed else here)
    lsn = baseline.lsn if snapshot_lsn is None and baseline is not None else snapshot_lsn
    found += drift.left_out(baseline, published, rows_lsn=lsn)
    unfit = [] if here is None else drift.differences(published, here)
    # Neither spoils rows: nothing has been written.
    held = [] if here is None else drift.unfilled(published, here)
    if here is not None:
        has_rows = known.has_rows and not known.is_rebuild
        held += drift.own_rules(baseline, published, here, has_rows=has_rows)
    renamed, found, unfit, held = map(_on_one_line, (renamed, found, unfit, held))
    stopping = [finding for finding in found if finding.kind == "blocked"] + renamed + unfit + held
    suspicions = folded(_suspicion(finding, known, file) for finding in found)
    if stopping:
        known = known if known.is_rebuild else _with_marks(known, *suspicions)
        return Look(known=_spoilt(table, known, published, unfit), error=_error(table, stopping, known))
    marks = [mark for mark in known.marks if mark.kind != "unpublished" and not _is_of_other_rules(mark)]
    marks += suspicions
    if unlike and baseline is not None and (commit_lsn or 0) > (baseline.lsn or 0):
        (finding,) = _on_one_line([drift.masked_otherwise(table, unlike)])
        marks.append(_suspicion(finding, known, file))
    if known.was_unpublished:
        marks.append(_partial(table))
    suspect_lsn, suspect_by = (baseline.suspect_lsn, baseline.suspect_by) if baseline else (None, 0)
    if any(not finding.is_of_storage or finding.stored_by for finding in found):
        makers = {finding.stored_by if finding.is_of_storage else 0 for finding in found}
        is_first = suspect_lsn is None and len(makers) == 1
        suspect_lsn, suspect_by = catalog_lsn, makers.pop() if is_first else 0
    after = Known(
        baseline=Baseline(
            drift.seen_here(baseline.table if baseline else None, published, here),
            lsn,
            truncated=is_older and baseline is not None and baseline.truncated,
            suspect_lsn=suspect_lsn,
            truncated_by=baseline.truncated_by if is_older and baseline is not None else 0,
            suspect_by=suspect_by,
            rules=here.rules.columns if here and here.rules else (),
        ),
        marks=known.marks,
        has_rows=known.has_rows,
        is_rebuild=known.is_rebuild,
    )
    return Look(known=_with_marks(after, *marks, keeps=False))


def _is_of_other_rules(mark: Mark) -> bool:
    """Tell whether *mark* says what is looked at again with each catalog: the rules of the change files."""
    return mark.kind == "suspect" and mark.text.startswith(drift.MASKED_OTHERWISE)


def _on_one_line(findings: list[Finding]) -> list[Finding]:
    """Return *findings* with names and types, which come from the archive, that forge no line of the log."""
    return [
        msgspec.structs.replace(
            finding,
            text=shortened(finding.text, _LONGEST_TEXT),
            remedy=shortened(finding.remedy, _LONGEST_TEXT),
            in_rebuild=shortened(finding.in_rebuild, _LONGEST_TEXT),
            subject=shortened(finding.subject, _LONGEST_TEXT),
        )
        for finding in findings
    ]


def _done_there(
    known: Known, baseline: Baseline, published: PublishedTable, here: TableSchema | None
) -> list[Finding]:
    found = [] if baseline.table == published else drift.changes(baseline, published)
    if known.was_unpublished and not found:
        found.append(drift.republished(published.table))
    if here is not None and not found:
        found += drift.additions(baseline.table, published, here)
    return found


def _unpublished(table: TableName, known: Known) -> Mark:
    if known.was_unpublished:
        return next(mark for mark in known.marks if mark.kind == "unpublished")
    if known.baseline is None:
        return Mark(
            "unpublished",
            "production does not publish it: nothing will arrive",
            f"at production, add {table} to source.tables and run 'setup_logical_replication'; then run"
            f" 'python manage.py resync {table.argument}' here",
        )
    return Mark(
        "unpublished",
        "production does not publish it any more (dropped, renamed, or taken off the publication): nothing"
        " arrives",
        "at production, run 'setup_logical_replication' and then"
        f" 'archive_changes --snapshot {table.argument}'; then run"
        f" 'python manage.py resync {table.argument}' here",
    )


def _partial(table: TableName) -> Mark:
    return Mark(
        "partial",
        "production publishes it only since the table began here: rows from before are missing",
        f"run 'archive_changes --snapshot {table.argument}' at production, and then"
        f" 'python manage.py resync {table.argument}' here",
    )


def _spoilt(table: TableName, known: Known, published: PublishedTable, unfit: list[Finding]) -> Known:
    """Return *known* with the mark of a table whose rows here may be wrong although it may go on again.

    Where production has not changed the table, it is the table here that has, or nobody has looked before:
    values may have been rounded already. Test: test_a_column_narrowed_here_stays_suspect_after_it_is_mended.
    """
    if known.is_rebuild or not known.has_rows or not unfit:
        return known
    is_local = known.baseline is None or known.baseline.table == published
    if not (is_local or any(finding.spoils for finding in unfit)):
        return known
    text = f"its rows may differ since this was found: {'; '.join(finding.text for finding in unfit)}"
    hint = f"when that is mended, run 'python manage.py resync {table.argument}'"
    return _with_marks(known, Mark("suspect", text, hint))


def _with_marks(known: Known, *marks: Mark, keeps: bool = True) -> Known:
    return Known(
        baseline=known.baseline,
        marks=folded([*(known.marks if keeps else ()), *marks]),
        has_rows=known.has_rows,
        is_rebuild=known.is_rebuild,
    )


def _error(table: TableName, findings: list[Finding], known: Known) -> SchemaError:
    texts = (mark.text for mark in folded(_suspicion(finding, known, "") for finding in findings))
    return SchemaError(
        "; ".join(dict.fromkeys(texts)),
        hint="; ".join(dict.fromkeys(_remedy(finding, known) for finding in findings)),
        table=str(table),
    )


def _suspicion(finding: Finding, known: Known, file: str) -> Mark:
    subjects = (finding.subject,) if finding.subject else ()
    return Mark("suspect", finding.text, _remedy(finding, known), file, subjects)


def _remedy(finding: Finding, known: Known) -> str:
    return (known.is_rebuild and finding.in_rebuild) or finding.remedy


@dataclass(frozen=True, slots=True)
class Emptied:
    """A TRUNCATE of a whole table: where its transaction committed, and its xid; 0 where it does not say."""

    commit_lsn: int | None = None
    xid: int = 0


def after_truncate(known: Known, emptied: Emptied) -> Known:
    """Return *known* after a TRUNCATE of the table: nothing is left of rows that may have differed.

    But a catalog may be ahead of the records: an archiver that was away for a night names in its first file
    what production publishes in the morning. Say the table was emptied at one o'clock and filled again, and a
    partition of it dropped at two. Then the drop is known before the TRUNCATE comes, which settles nothing.
    Where all that is known was made by the TRUNCATE's own transaction, it settles that, too.
    Tests: test_a_truncate_of_the_whole_table_settles_what_was_suspect,
    test_a_truncate_that_may_be_older_than_what_made_a_table_suspect_settles_nothing.
    """
    baseline = known.baseline
    suspect_lsn = None if baseline is None else baseline.suspect_lsn
    suspect_by = 0 if baseline is None else baseline.suspect_by
    is_later = suspect_lsn is not None and (emptied.commit_lsn or 0) > suspect_lsn
    if is_later or (suspect_by and suspect_by == emptied.xid):
        suspect_lsn, suspect_by = None, 0
    settled = ("partial",) if suspect_lsn is not None else ("suspect", "partial")
    return Known(
        baseline=baseline
        and msgspec.structs.replace(
            baseline,
            truncated=True,
            truncated_by=emptied.xid,
            suspect_lsn=suspect_lsn,
            suspect_by=suspect_by,
        ),
        marks=tuple(mark for mark in known.marks if mark.kind not in settled),
        has_rows=known.has_rows,
        is_rebuild=known.is_rebuild,
    )


def suspicion(table: TableName, known: Known) -> SchemaError | None:
    """Return the error for a rebuilt table whose new rows are not production's either; None if they are."""
    suspect = [mark for mark in known.marks if mark.kind == "suspect"]
    if not suspect:
        return None
    return SchemaError(
        "; ".join(mark.text for mark in suspect),
        hint="; ".join(dict.fromkeys(mark.hint for mark in suspect)),
        table=str(table),
    )


# The checkpoint's columns

_SELECT = """
SELECT table_name, published::text, marks::text, file <> '' OR commit_lsn IS NOT NULL
FROM data_sync_checkpoints WHERE table_name = ANY(%s)
"""

_UPDATE = """
UPDATE data_sync_checkpoints SET published = %(published)s::jsonb, marks = %(marks)s::jsonb
WHERE table_name = %(name)s
"""


def read_known(connection: Connection[Any], tables: Collection[TableName]) -> dict[TableName, Known]:
    """Return what the checkpoints of *tables* know."""
    rows = connection.execute(_SELECT, ([str(table) for table in tables],)).fetchall()
    return {
        TableName.parse(name): Known(
            baseline=None if published is None else msgspec.json.decode(published, type=Baseline),
            marks=decode_marks(marks),
            has_rows=has_rows,
        )
        for name, published, marks, has_rows in rows
    }


def keep_known(connection: Connection[Any], known: Mapping[TableName, Known]) -> None:
    """Write what the checkpoints know from now on."""
    for table, entry in sorted(known.items()):
        connection.execute(_UPDATE, {"name": str(table)} | known_parameters(entry))


def known_parameters(known: Known) -> dict[str, str | None]:
    """Return the values of the columns ``published`` and ``marks``."""
    baseline = known.baseline
    return {
        "published": None if baseline is None else msgspec.json.encode(baseline).decode(),
        "marks": encode_marks(known.marks),
    }
