"""What a privacy policy asks of the publication: columns and rows of each table, and what is told of it.

Pure: knows the facts and the policy's verdicts, no server. The archiver holds back what the policy withholds
in any case; what this takes off the publication never leaves the server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from syncdata.capture.described import Described
from syncdata.capture.publication import Part
from syncdata.changes.names import TableName
from syncdata.privacy.policy import Policy, TableVerdict
from syncdata.provision.facts import SourceFacts, TableFacts
from syncdata.provision.findings import Finding, missing, note, ok

_LISTS_SINCE = 150_000
_MEND_RULES = "mend the rules in [source.columns]; archive_changes --privacy shows them all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The row rules as the server spells them (``spelled``), and those that it refuses, with its reason."""

    spelled: Mapping[TableName, str] = field(default_factory=dict)
    refused: Mapping[TableName, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """``parts``: what is published of a table, where not all of it. ``withheld``: tables that are not."""

    parts: Mapping[TableName, Part] = field(default_factory=dict)
    withheld: frozenset[TableName] = frozenset()
    findings: tuple[Finding, ...] = ()

    def published(self, tables: Collection[TableName]) -> tuple[TableName, ...]:
        """Return those of *tables* that are to be in the publication."""
        return tuple(table for table in tables if table not in self.withheld)

    def compare(self, publication: str, there: Mapping[TableName, Part]) -> Iterator[Finding]:
        """Tell where the *publication*, which has the parts *there*, has other or fewer rows and columns."""
        for table, allowed in self.parts.items():
            if (part := there.get(table)) is not None:
                yield from _compare(f"publication {publication}", table, part, allowed)


NO_PRIVACY = PrivacyPlan()


def plan_privacy(
    policy: Policy,
    described: Mapping[TableName, Described],
    source: SourceFacts,
    filters: Filters,
    *,
    identity_full: bool = False,
) -> PrivacyPlan:
    """Return what *policy* lets be published of *source*, and its findings.

    *identity_full*: the setup gives tables without a usable key REPLICA IDENTITY FULL.
    """
    verdicts = policy.judge([table.facts for table in described.values()])
    has_lists = source.server.version_num >= _LISTS_SINCE
    withheld = frozenset(table for table, verdict in verdicts.items() if verdict.is_withheld)
    parts, findings = {}, list[Finding]()
    for facts in source.tables:
        if (verdict := verdicts.get(facts.name)) is None:
            continue
        findings += _judged(verdict)
        if facts.name in withheld:
            continue
        takes_list = has_lists and not _is_full(facts, identity_full)
        findings += _held_back(facts, verdict, has_lists=has_lists, takes_list=takes_list)
        columns = _columns(described[facts.name], verdict) if takes_list else None
        part = Part(columns=columns, row_filter=filters.spelled.get(facts.name) if has_lists else None)
        if part != Part():
            parts[facts.name] = part
    findings += _of_filters(policy, filters, source)
    findings += _of_lists(parts)
    if verdicts and len(withheld) == len(source.tables):
        findings.append(
            missing("the privacy policy withholds every table", "name their columns in [source.columns]")
        )
    return PrivacyPlan(parts=parts, withheld=withheld, findings=tuple(findings))


def _judged(verdict: TableVerdict) -> Iterator[Finding]:
    if verdict.halts:
        yield missing(f"table {verdict.table}: {verdict.halts}", _MEND_RULES)
    for problem in verdict.problems:
        yield missing(f"source.columns.{verdict.table}.{problem}", _MEND_RULES)


def _held_back(
    facts: TableFacts, verdict: TableVerdict, *, has_lists: bool, takes_list: bool
) -> Iterator[Finding]:
    label = f"table {verdict.table}"
    withheld = [it.column for it in verdict.columns if it.rule == "withhold"]
    masked = [it.column for it in verdict.columns if it.rule not in ("keep", "withhold")]
    told = f"{label}: of {len(verdict.columns)} columns {len(masked)} are masked, {len(withheld)} withheld"
    yield ok(told + (f" ({', '.join(withheld)})" if withheld else ""))
    if withheld and has_lists and not takes_list:
        yield note(
            f"{label} has REPLICA IDENTITY FULL, with which PostgreSQL takes no list of columns: what the"
            " privacy policy withholds is held back by the archiver alone",
            "give it a primary key and REPLICA IDENTITY DEFAULT",
        )
    elif withheld and not has_lists:
        yield note(
            f"{label}: this server has no lists of columns: what the privacy policy withholds is held back by"
            " the archiver alone",
            "PostgreSQL 15 and later have them",
        )


def _columns(described: Described, verdict: TableVerdict) -> tuple[str, ...]:
    sent = {it.column for it in verdict.columns if it.rule != "withhold"}
    # Generated columns travel only where somebody has had them published; a list that names them does that.
    columns = [it.name for it in described.facts.columns if it.name in sent and not it.is_generated]
    return tuple(columns)


def _is_full(facts: TableFacts, identity_full: bool) -> bool:
    """Tell whether rows of the table are told apart by all of their columns, in one partition at least."""
    return any(part.identity == "f" or (identity_full and not part.is_locatable) for part in facts.parts)


def _of_filters(policy: Policy, filters: Filters, source: SourceFacts) -> Iterator[Finding]:
    if policy.rows and source.server.version_num < _LISTS_SINCE:
        names = ", ".join(map(str, sorted(policy.rows)))
        yield missing(
            f"source.rows ({names}) needs PostgreSQL 15 or later: this server publishes whole tables",
            "take the rules out, and the tables out of source.tables",
        )
        return
    for table, reason in filters.refused.items():
        yield missing(f"source.rows.{table}: the server refuses it: {reason}", "mend the condition")
    for table in filters.spelled:
        yield note(
            f"table {table}: a TRUNCATE travels whatever its row filter says, and an UPDATE that takes a row"
            " out of the filter as its DELETE",
            "nothing is to be done",
        )


def _of_lists(parts: Mapping[TableName, Part]) -> Iterator[Finding]:
    if any(part.columns is not None for part in parts.values()):
        yield note(
            "a column on a publication's list cannot be dropped, and with CASCADE, as Django drops columns,"
            " it takes its table off the publication",
            'before such a migration give the column the rule "withhold" and run this setup',
        )


def _compare(label: str, table: TableName, there: Part, allowed: Part) -> Iterator[Finding]:
    if there.columns is not None:
        lacking = [name for name in allowed.columns or () if name not in there.columns]
        if lacking or allowed.columns is None:
            yield note(
                f"{label} has only {', '.join(there.columns) or 'no columns'} of {table}"
                + (f", and the privacy policy lets {', '.join(lacking)} travel, too" if lacking else ""),
                "it stays so unless setup_logical_replication --widen changes it; then take a snapshot",
            )
    if there.row_filter == allowed.row_filter or there.row_filter is None:
        return
    if allowed.row_filter is None:
        yield note(
            f"{label} has only the rows of {table} WHERE {there.row_filter}",
            "it stays so unless setup_logical_replication --widen changes it; then take a snapshot",
        )
    else:
        yield missing(
            f"{label} has the rows of {table} WHERE {there.row_filter}, and source.rows says WHERE"
            f" {allowed.row_filter}",
            "let setup_logical_replication --widen set it, then take a snapshot",
        )
