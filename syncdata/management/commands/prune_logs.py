from __future__ import annotations

import contextlib
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from syncdata.conf import load_config
from syncdata.errors import RequestError
from syncdata.management.base import SyncCommand, format_count, format_time
from syncdata.management.progress import PRUNE_WORDS
from syncdata.service import SyncDataService


class Command(SyncCommand):
    help = """\
Remove entries of the audit log (data_sync_logs) that are older than --keep-days, else than the key
log_keep_days says. In batches, each in a transaction of its own, so it may run beside the daemon, and may
be stopped: what was removed stays removed.

With log_keep_days set, the daemon does the same by itself. Tables, checkpoints and metrics stay."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--keep-days", type=_days, metavar="N", help="Keep the last N days, instead of log_keep_days."
        )
        parser.add_argument("--dry-run", action="store_true", help="Only say how many would go.")

    def handle(self, *, keep_days: int | None, dry_run: bool, verbosity: int, **options: Any) -> None:
        config = load_config()
        days = config.log_keep_days if keep_days is None else keep_days
        if not days:
            raise RequestError(
                "log_keep_days is 0: entries are kept for ever",
                hint="say how many days to keep: --keep-days N",
            )
        with (
            self.show_progress(verbosity, PRUNE_WORDS) as progress,
            SyncDataService(config, progress=progress) as service,
        ):
            count, before = service.prune_logs(days, dry_run=dry_run)
        done = "would go" if dry_run else "removed"
        entries = format_count(count, "entry", "entries")
        self.stdout.write(f"{done}: {entries} of the audit log from before {format_time(before)}")


def _days(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= (days := int(text)) <= 36_500:
            return days
    raise ArgumentTypeError(f"{text!r} is not a whole number of days, 1 or more")
