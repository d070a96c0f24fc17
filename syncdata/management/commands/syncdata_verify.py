from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from syncdata.apply.state.queries import UnequalCheck
from syncdata.apply.state.status import verification_of
from syncdata.errors import VerificationError
from syncdata.management.base import SyncCommand, format_count, format_json, format_time
from syncdata.service import TableInfo

_MOST_LINES = 20


class Command(SyncCommand):
    help = """\
Say of each table whether its rows are proved to be production's: when, how many, and what part of them;
which differ, by the bounds of their keys and their number, and what cannot be compared, and why.

The daemon compares the rows as it goes, wherever the archiver has put a check into the change files.
This command only tells what came of it. The exit status is 1 when a table differs."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables",
            nargs="*",
            metavar="table",
            help="A table of the whitelist: table, schema.table or app_label.Model; all of them without it.",
        )
        parser.add_argument("--json", action="store_true", help="Print the tables as a JSON array.")

    def handle(self, *, tables: list[str], json: bool, **options: Any) -> None:
        with self.open_service() as service:
            found = service.read_verification(tables)
        if json:
            self.stdout.write(format_json([_document(table, checks) for table, checks in found]))
        else:
            now = datetime.now(UTC)
            for table, checks in found:
                self.stdout.write("\n".join(report(table, checks, now=now)))
        if differing := [table.table_name for table, _ in found if table.differs]:
            raise VerificationError(
                f"not production's rows: {', '.join(differing)}",
                hint=f"if nothing here should have changed them: resync {' '.join(differing)}",
            )


def report(table: TableInfo, checks: Sequence[UnequalCheck], *, now: datetime) -> Iterator[str]:
    """Yield the lines for *table*, whose *checks* did not find its rows equal."""
    yield f"{table.table_name}: {verification_of(table, now=now)}"
    differing = [_describe(check) for check in checks if check.is_equal is False]
    yield from (f"    {line}" for line in differing[:_MOST_LINES])
    if len(differing) > _MOST_LINES:
        yield f"    and {len(differing) - _MOST_LINES:,} more: --json has all"
    for reason, number in Counter(check.reason for check in checks if check.is_equal is None).items():
        yield f"    not compared, {format_count(number, 'check')}: {reason}"
    for mark in table.marks:
        if mark.kind == "differs":
            yield f"    {mark}"


def _describe(check: UnequalCheck) -> str:
    if check.rows == check.rows_here:
        found = f"{format_count(check.rows, 'row')} on both sides, not all of them the same"
    else:
        found = f"{format_count(check.rows, 'row')} at production, {check.rows_here:,} here"
    return f"{check.bounds}: {found}, at {check.position} ({format_time(check.verified_at)})"


def _document(table: TableInfo, checks: Sequence[UnequalCheck]) -> dict[str, Any]:
    return {
        "table_name": table.table_name,
        "state": table.state,
        "verified_at": table.verified_at,
        "rows": table.verified_rows,
        "share": table.verified_share,
        "checked_at": table.checked_at,
        "differs": table.differs,
        "unequal": [asdict(check) for check in checks],
    }
