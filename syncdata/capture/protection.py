"""What the source shows once a privacy policy has judged it. Pure.

A column that is withheld is one that the publication does not send, for all that comes behind; a table that
is withheld is one that is not published. So a look, and an entry of the catalog that the stream describes,
are judged as soon as they are there, and nothing behind them needs rules of its own. What the policy does not
know is withheld, and so is what it has a problem with: the archiver does not start with a problem, but one
may come later, when a migration gives a column another type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from syncdata.capture.constraints import Constraints
from syncdata.capture.pgoutput import Relation
from syncdata.capture.published import Look, SeenColumn, SeenTable
from syncdata.capture.renamed import HeldColumn, held_by_table, hold
from syncdata.changes.catalog import WITHHELD, Column, PublishedTable
from syncdata.changes.names import TableName
from syncdata.errors import PrivacyError
from syncdata.privacy.facts import ColumnFacts, TableFacts
from syncdata.privacy.policy import ColumnVerdict, Policy, TableVerdict

_FULL_IDENTITIES = ("f", "full")
# For the log.
CANNOT_HOLD = "the privacy policy cannot hold, so a column, or its whole table, is withheld: %s"
# What the catalog says of a row filter that quotes columns which do not travel as they are.
HIDDEN_FILTER = "by columns that are masked or withheld"


def facts_of(seen: SeenTable) -> TableFacts:
    """Return what a policy must know of a table that was *seen* with its constraints."""
    constraints = seen.constraints or Constraints()
    return TableFacts(
        table=seen.table,
        columns=tuple(
            ColumnFacts(
                name=column.name,
                type=column.base or column.type,
                not_null=column.not_null,
                is_generated=column.generated != "",
                derives_from=constraints.sources.get(column.name),
            )
            for column in seen.columns
        ),
        # Under FULL rows are found by all values that travel; no column must be one of them.
        identity=() if seen.identity in _FULL_IDENTITIES else seen.identity_columns,
        uniques=constraints.uniques,
        references=constraints.references,
        checked=constraints.checked,
        primary_key=seen.key,
    )


def judge(look: Look, policy: Policy, held: Collection[HeldColumn]) -> dict[TableName, TableVerdict]:
    """Return what becomes of each table of *look*, which was taken with constraints. *held*: columns that do
    not travel as they are, whatever rule their new name has (see `CatalogState.held_in`)."""
    facts = {seen.table: facts_of(seen) for seen in look.tables}
    verdicts = policy.judge(list(facts.values()))
    for table, renamed in held_by_table(held, look).items():
        verdicts[table] = hold(verdicts[table], renamed, facts[table].identity)
    for seen in look.tables:
        if seen.table in policy.rows and seen.row_filter is None:
            verdicts[seen.table] = _without_filter(verdicts[seen.table])
        elif seen.table in policy.rows and seen.is_filter_new:
            verdicts[seen.table] = msgspec.structs.replace(
                verdicts[seen.table], is_withheld=True, notes=(*verdicts[seen.table].notes, FILTERED_LATE)
            )
    return verdicts


# The server filters a change by the publication as it was then: what was committed before the filter, or
# began before it, would travel whole. The table comes back as one that was withheld: see `rule_anew`.
# Test: test_changes_from_before_a_row_filter_do_not_travel.
FILTERED_LATE = (
    "rows: its row filter is newer than changes that the slot may still hand over, so it is withheld until"
    " the slot is past them; that takes some seconds of writing at production, and then needs a new snapshot"
)


def is_filtered_late(seen: SeenTable, verdict: TableVerdict) -> bool:
    """Tell whether *seen* is withheld for a row filter that may be newer than changes of the stream."""
    return seen.is_filter_new and FILTERED_LATE in verdict.notes


def _without_filter(verdict: TableVerdict) -> TableVerdict:
    """The publication alone leaves out rows, so without its filter all would travel."""
    problem = (
        "rows: the publication has no row filter for it (they came with PostgreSQL 15);"
        " 'python manage.py setup_logical_replication' writes it"
    )
    return msgspec.structs.replace(verdict, is_withheld=True, problems=(*verdict.problems, problem))


def shown(look: Look, verdicts: Mapping[TableName, TableVerdict]) -> Look:
    """Return *look* as *verdicts* let it be seen."""
    tables = (_shown_table(seen, verdicts.get(seen.table)) for seen in look.tables)
    return msgspec.structs.replace(look, tables=tuple(table for table in tables if table is not None))


def _shown_table(seen: SeenTable, verdict: TableVerdict | None) -> SeenTable | None:
    if is_withheld(verdict):
        return None
    rules = _rules(verdict)
    columns = tuple(_shown_column(column, rules.get(column.name)) for column in seen.columns)
    sent = tuple(column.name for column in columns if column.is_sent)
    if any(_hides(rules.get(name)) for name in seen.filtered_by):
        # It may quote values of the column, as (email <> 'ann@example.org'). Nothing is lost with it: the
        # publication knows another filter as another membership.
        seen = msgspec.structs.replace(seen, told_filter=HIDDEN_FILTER)
    if len(sent) == sum(column.is_sent for column in seen.columns):
        return msgspec.structs.replace(seen, columns=columns)
    return msgspec.structs.replace(
        seen,
        columns=columns,
        column_list=sent,
        identity_columns=tuple(name for name in seen.identity_columns if name in sent),
    )


def _shown_column(column: SeenColumn, rule: ColumnVerdict | None) -> SeenColumn:
    if column.generated and not column.is_sent:
        return column
    if _is_out(rule):
        # The digest of a default (`older`) says too much of a value that somebody may guess.
        return msgspec.structs.replace(
            column, is_sent=False, privacy=WITHHELD, privacy_id=_id_of(rule), older=""
        )
    assert rule is not None
    if not rule.privacy or not column.is_sent:
        return column
    # What older rows got from a default is masked where it travels, and no reader can mask its own.
    return msgspec.structs.replace(
        column,
        privacy=rule.privacy,
        privacy_id=rule.id,
        older="",
        default_varies=column.default_varies or column.older != "",
    )


def stream_facts(entry: PublishedTable, relation: Relation, known: TableFacts | None) -> TableFacts:
    """Return what a policy must know of a table as the stream describes it: *entry*, made of *relation*.

    The constraints are those that the last look shows (*known*), as far as the stream has their columns.
    """
    old = known or TableFacts(table=entry.table, columns=())
    of_column = {column.name: column for column in old.columns}
    columns = tuple(
        msgspec.structs.replace(
            of_column.get(column.name) or ColumnFacts(name=column.name, type=column.value_type),
            type=column.value_type,
        )
        for column in entry.columns
        if column.name in relation.columns or column.generated
    )
    names = {column.name for column in columns}
    return msgspec.structs.replace(
        old,
        table=entry.table,
        columns=columns,
        identity=() if entry.identity in _FULL_IDENTITIES else entry.identity_columns,
        uniques=tuple(key for key in old.uniques if names.issuperset(key)),
        references=tuple(found for found in old.references if names.issuperset(found.columns)),
        checked=tuple(name for name in old.checked if name in names),
        primary_key=entry.key,
    )


def shown_entry(
    entry: PublishedTable,
    verdict: TableVerdict | None,
    relation: Relation,
    column_list: tuple[str, ...] | None,
) -> PublishedTable | None:
    """Return the catalog's *entry*, made of *relation*, as *verdict* lets it be seen. *column_list*: the
    publication's own."""
    if is_withheld(verdict):
        return None
    rules = _rules(verdict)
    out = {name for name in relation.columns if _is_out(rules.get(name))}
    sent = tuple(name for name in relation.columns if name not in out)
    return msgspec.structs.replace(
        entry,
        columns=tuple(
            _entry_column(column, rules.get(column.name), is_sent=column.name in relation.columns)
            for column in entry.columns
        ),
        column_list=sent if out else column_list,
        identity_columns=tuple(name for name in entry.identity_columns if name not in out),
    )


def _entry_column(column: Column, rule: ColumnVerdict | None, *, is_sent: bool) -> Column:
    plain = msgspec.structs.replace(column, privacy="", privacy_id="")
    if column.generated and not is_sent:
        return plain
    if _is_out(rule):
        return msgspec.structs.replace(plain, privacy=WITHHELD, privacy_id=_id_of(rule), older="")
    assert rule is not None
    if not rule.privacy:
        return plain
    return msgspec.structs.replace(plain, privacy=rule.privacy, privacy_id=rule.id, older="")


def is_withheld(verdict: TableVerdict | None) -> bool:
    return verdict is None or verdict.is_withheld


def _is_out(rule: ColumnVerdict | None) -> bool:
    """Tell whether a column's values do not travel. Where in doubt, they do not."""
    return rule is None or rule.privacy == WITHHELD or rule.problem != ""


def _hides(rule: ColumnVerdict | None) -> bool:
    """Tell whether a column does not travel as it is."""
    return _is_out(rule) or (rule is not None and rule.privacy != "")


def _id_of(rule: ColumnVerdict | None) -> str:
    return "" if rule is None else rule.id


def _rules(verdict: TableVerdict | None) -> dict[str, ColumnVerdict]:
    return {} if verdict is None else {rule.column: rule for rule in verdict.columns}


def withheld_tables(verdicts: Mapping[TableName, TableVerdict]) -> frozenset[TableName]:
    return frozenset(table for table, verdict in verdicts.items() if verdict.is_withheld)


def problems_of(verdicts: Mapping[TableName, TableVerdict]) -> Iterator[str]:
    """Yield in plain words what of the policy cannot hold, each with the table that it is about."""
    for table, verdict in verdicts.items():
        yield from (f"{table}: {problem}" for problem in verdict.problems)


def require_no_problem(verdicts: Mapping[TableName, TableVerdict], tried: Sequence[str] = ()) -> None:
    """Raise PrivacyError, which tells all problems at once, where there is any. *tried*: those that a trial
    of the masks has found."""
    problems: Sequence[str] = [*problems_of(verdicts), *tried]
    if problems:
        raise PrivacyError(
            "the privacy policy cannot hold: " + "; ".join(problems),
            hint="mend these rules in [source.columns]; nothing was sent",
        )


def require_no_halt(verdicts: Mapping[TableName, TableVerdict]) -> None:
    """Raise PrivacyError where a column has no rule and must have one (``unnamed = "halt"``)."""
    found = [f"{table}: {verdict.halts}" for table, verdict in verdicts.items() if verdict.halts]
    if found:
        raise PrivacyError(
            "; ".join(found),
            hint='give it a rule in [source.columns]; source.privacy.unnamed is "halt", and the archiver goes'
            " on where it stood",
        )
