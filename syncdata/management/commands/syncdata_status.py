from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from syncdata.errors import StatusError
from syncdata.management.base import SyncCommand, format_json
from syncdata.service import DaemonStatus, format_status


class Command(SyncCommand):
    help = """\
Show whether the daemon runs, what it has done since its start, which tables are synced, and which
of them are blocked or in doubt and why."""
    epilog = """\
For monitoring: --check exits with status 1 when the daemon does not run, a table is blocked or in doubt
(differs, suspect, partial, unpublished, stale), the last cycle failed or is overdue, the archiver is
silent or cannot go on, or the daemon waits for a lock; the reasons are on stderr."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the status as one JSON object.")
        parser.add_argument("--check", action="store_true", help="Exit with status 1 when not healthy.")

    def handle(self, *, json: bool, check: bool, **options: Any) -> None:
        with self.open_service() as service:
            status = service.get_status()
        self.stdout.write(_format_status_json(status) if json else format_status(status))
        if check and not status.is_healthy:
            raise StatusError("not healthy: " + "; ".join(map(str, status.problems)))


def _format_status_json(status: DaemonStatus) -> str:
    texts = [str(problem) for problem in status.problems]
    return format_json(asdict(status) | {"is_healthy": status.is_healthy, "problems": texts})
