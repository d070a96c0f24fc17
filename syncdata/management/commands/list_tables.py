from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from syncdata.apply.state.status import verification_of
from syncdata.management.base import SyncCommand, format_json, format_time
from syncdata.service import TableInfo

HEADINGS = ("TABLE", "STATE", "CHECKPOINT", "ROWS SYNCED", "CREATOR", "CREATED", "VERIFIED")


class Command(SyncCommand):
    help = """\
List the whitelist: each table with its state (new, active, paused, or blocked, differs, suspect, partial,
unpublished or stale, and why), its checkpoint (the file and the record in it up to which its changes are
applied), the rows synced so far, who added it and when, and when its rows were last proved to be
production's, how many they were, and what part of them, if not all, was proved."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the tables as a JSON array.")

    def handle(self, *, json: bool, **options: Any) -> None:
        with self.open_service() as service:
            tables = service.list_tables()
        self.stdout.write(
            format_json([asdict(table) for table in tables])
            if json
            else format_tables(tables, now=datetime.now(UTC))
        )


def format_tables(tables: Sequence[TableInfo], *, now: datetime) -> str:
    if not tables:
        return "No tables are synced yet. Add some with: manage.py add_tables <table> ..."
    rows = [HEADINGS, *(_cells(table, now) for table in tables)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    reasons = [(), *(_reasons(table) for table in tables)]
    return "\n".join(
        line for row, why in zip(rows, reasons, strict=True) for line in _lines(row, widths, why)
    )


def _cells(table: TableInfo, now: datetime) -> tuple[str, ...]:
    return (
        table.table_name,
        table.state,
        table.checkpoint or "-",
        str(table.rows_synced),
        table.creator or "-",
        format_time(table.created_at),
        verification_of(table, now=now),
    )


def _reasons(table: TableInfo) -> tuple[str, ...]:
    ruled = ", ".join(map(str, table.privacy or ()))
    return (
        *([table.error] if table.error else []),
        *map(str, table.marks),
        *([f"masked or withheld: {ruled}"] if ruled else []),
    )


def _lines(row: Sequence[str], widths: Sequence[int], reasons: Sequence[str]) -> Iterator[str]:
    yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for reason in reasons:
        yield f"    {reason}"
