"""The report on a privacy policy: what becomes of each column, why, and what somebody should look at.

Pure: knows verdicts and facts; reads no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from syncdata.capture.described import Described
from syncdata.privacy.facts import TableFacts
from syncdata.privacy.policy import ColumnVerdict, TableVerdict


class ColumnReport(msgspec.Struct, frozen=True, kw_only=True):
    """A column. ``rule``: what becomes of its values; ``why``: what decided that. ``keys``: why it must tell
    values apart. ``looks_like``: the personal data that its name speaks of, where it goes as it is."""

    column: str
    type: str
    rule: str
    why: str
    keys: tuple[str, ...] = ()
    looks_like: str = ""
    has_rule: bool = True


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """A table. ``problems``: rules that cannot hold, each with its column; ``notes``: what to know."""

    table: str
    columns: tuple[ColumnReport, ...]
    is_withheld: bool = False
    rows: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def unruled(self) -> tuple[str, ...]:
        return tuple(column.column for column in self.columns if not column.has_rule)


def report_table(
    described: Described,
    verdict: TableVerdict,
    suspicions: Mapping[str, str],
    *,
    rows: str = "",
    tried: Sequence[str] = (),
) -> TableReport:
    """Return the report on one table. *tried*: what trials of the masks have found; *rows*: its row rule."""
    facts = described.facts
    generated = {column.name for column in facts.columns if column.is_generated}
    return TableReport(
        table=str(facts.table),
        columns=tuple(
            ColumnReport(
                column=it.column,
                type=described.types[it.column],
                rule=it.rule,
                why=_why(it, generated),
                keys=tuple(_keys(facts, it.column)),
                looks_like=suspicions.get(it.column, "") if it.rule == "keep" else "",
                has_rule=it.is_named or (it.column in generated and it.rule == "withhold"),
            )
            for it in verdict.columns
        ),
        is_withheld=verdict.is_withheld,
        rows=rows,
        problems=(*verdict.problems, *tried, *filter(None, [verdict.halts])),
        notes=verdict.notes,
    )


def shortcomings(reports: Sequence[TableReport]) -> list[str]:
    """Return why the policy is not complete: columns without a rule, and rules that cannot hold."""
    found = []
    for report in reports:
        if report.unruled:
            found.append(f"{report.table}: no rule names {', '.join(report.unruled)}")
        found += [f"{report.table}: {problem}" for problem in report.problems]
    return found


def format_report(reports: Sequence[TableReport]) -> str:
    """Return the report as lines of text."""
    return "\n".join(line for report in reports for line in _lines(report))


def _lines(report: TableReport) -> Iterator[str]:
    yield report.table + (": withheld as a whole" if report.is_withheld else "")
    if report.rows:
        yield f"  only rows WHERE {report.rows}"
    cells = [(it.column, it.type, it.rule, _remark(it)) for it in report.columns]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    for *left, remark in cells:
        padded = "  ".join(text.ljust(width) for text, width in zip(left, widths, strict=True))
        yield f"  {padded}  {remark}".rstrip()
    yield from (f"  problem: {problem}" for problem in report.problems)
    yield from (f"  note: {text}" for text in report.notes)


def _remark(column: ColumnReport) -> str:
    looks = f"LOOKS PERSONAL ({column.looks_like})" if column.looks_like else ""
    return "; ".join(filter(None, [looks, *column.keys, column.why]))


def _why(verdict: ColumnVerdict, generated: set[str]) -> str:
    if verdict.column in generated and not verdict.is_named:
        return "it is generated, so it does not travel by itself"
    return verdict.problem or verdict.why


def _keys(facts: TableFacts, column: str) -> Iterator[str]:
    if column in facts.identity:
        yield "tells rows apart"
    elif any(column in unique for unique in facts.uniques):
        yield "unique"
    for reference in facts.references:
        for name, to in zip(reference.columns, reference.to, strict=True):
            if name == column:
                yield f"refers to {reference.table}.{to}"
