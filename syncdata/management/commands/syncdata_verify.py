from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from syncdata.apply.sink import Differences
from syncdata.apply.state.marks import is_of_check
from syncdata.apply.state.queries import UnequalCheck
from syncdata.apply.state.status import verification_of
from syncdata.daemon import stop_on_signals
from syncdata.errors import SyncError, VerificationError
from syncdata.management.base import SyncCommand, format_count, format_json, format_time
from syncdata.service import TableInfo

_MOST_LINES = 20


class Command(SyncCommand):
    help = """\
Say of each table whether its rows are proved to be production's: when, how many, and what part of them;
which differ, by the bounds of their keys and their number, and what cannot be compared, and why.

The daemon compares the rows as it goes, wherever the archiver has put a check into the change files.
This command tells what came of it. With --now it compares the tables itself, at once: each is built
anew from its newest snapshot and the change files up to its checkpoint, beside the live one, compared
row by row, and thrown away. It changes nothing, asks nothing of production, and lets a daemon go on.
The exit status is 1 when a table differs, or cannot be compared with --now."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables",
            nargs="*",
            metavar="table",
            help="A table of the whitelist: table, schema.table or app_label.Model; all of them without it.",
        )
        parser.add_argument(
            "--now", action="store_true", help="Compare the tables now, with what the archive says they are."
        )
        parser.add_argument("--json", action="store_true", help="Print the tables as a JSON array.")

    def handle(self, *, tables: list[str], now: bool, json: bool, verbosity: int, **options: Any) -> None:
        if now:
            self._compare(tables, is_json=json, verbosity=verbosity)
        else:
            self._report(tables, is_json=json)

    def _report(self, tables: Sequence[str], *, is_json: bool) -> None:
        with self.open_service() as service:
            found = service.read_verification(tables)
        if is_json:
            self.stdout.write(format_json([_document(table, checks) for table, checks in found]))
        else:
            now = datetime.now(UTC)
            for table, checks in found:
                self.stdout.write("\n".join(report(table, checks, now=now)))
        self.fail(_refusals([table.table_name for table, _ in found if table.differs]))

    def _compare(self, tables: Sequence[str], *, is_json: bool, verbosity: int) -> None:
        documents: list[dict[str, Any]] = []
        differing: list[str] = []
        errors: list[SyncError] = []
        with (
            stop_on_signals() as stop,
            self.show_progress(verbosity) as progress,
            self.open_service(progress=progress) as service,
        ):
            chosen = [table.table_name for table, _ in service.read_verification(tables)]
            for table, found in service.verify_now(chosen, stop=stop).items():
                if isinstance(found, SyncError):
                    errors.append(found)
                    continue
                documents.append({"table_name": table, **asdict(found)})
                if not found.are_none:
                    differing.append(table)
                if not is_json:
                    self.stdout.write(f"{table}: {describe(found)}")
        if is_json:
            self.stdout.write(format_json(documents))
        self.fail([*errors, *_refusals(differing)])


def _refusals(differing: Sequence[str]) -> list[SyncError]:
    """Return the error that ends the command when tables differ."""
    if not differing:
        return []
    return [
        VerificationError(
            f"not production's rows: {', '.join(differing)}",
            hint=f"if nothing here should have changed them: resync {' '.join(differing)}",
        )
    ]


def describe(found: Differences) -> str:
    """Return what a comparison has found in a few words."""
    rows = format_count(found.rows, "row")
    if found.are_none:
        return f"{rows}, as the archive says"
    counts = (
        (found.missing, "missing here"),
        (found.too_many, "too many here"),
        (found.different, "with other values here"),
    )
    return f"differs: of {rows} " + ", ".join(f"{number:,} {what}" for number, what in counts if number)


def report(table: TableInfo, checks: Sequence[UnequalCheck], *, now: datetime) -> Iterator[str]:
    """Yield the lines for *table*, whose *checks* did not find its rows equal."""
    yield f"{table.table_name}: {verification_of(table, now=now)}"
    differing = [_describe(check) for check in checks if check.is_equal is False]
    yield from (f"    {line}" for line in differing[:_MOST_LINES])
    if len(differing) > _MOST_LINES:
        yield f"    and {len(differing) - _MOST_LINES:,} more: --json has all"
    for reason, number in Counter(check.reason for check in checks if check.is_equal is None).items():
        yield f"    not compared, {format_count(number, 'check')}: {reason}"
    if table.left_out:
        yield f"    {table.left_out}"
    for mark in table.marks:
        if mark.kind == "differs":
            # The lines above say already what a check has found.
            yield f"    {mark.hint if differing and is_of_check(mark) else mark}"


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
        "left_out": table.left_out,
        "differs": table.differs,
        "unequal": [asdict(check) for check in checks],
    }
