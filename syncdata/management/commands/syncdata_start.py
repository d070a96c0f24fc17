from __future__ import annotations

import contextlib
import logging
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any

from syncdata.conf import SyncConfig, load_config
from syncdata.daemon import PID_FILE_NAME, PidFile, stop_on_signals
from syncdata.errors import CycleError
from syncdata.management.base import SyncCommand, format_result
from syncdata.management.interpreter import tune_interpreter
from syncdata.monitoring import DEFAULT_ADDRESS, serve_metrics
from syncdata.service import SyncDataService, SyncResult

logger = logging.getLogger(__name__)


class Command(SyncCommand):
    help = """\
Keep the whitelisted tables up to date: look for new change files every data_sync_freq seconds,
fetch them from the archive and apply them, each record exactly once.

Runs in the foreground until SIGTERM or Ctrl-C (or syncdata_stop): the running batch commits and the
command exits with status 0. A second signal ends it at once; the running batch is then rolled back
and applied again by the next start. Errors are logged, recorded in data_sync_logs and retried in
the next cycle. Only one daemon can work on a database."""
    epilog = """\
With --once the exit status is 0 only if everything that was there has been applied; it is 1 when a
table is blocked or anything failed, and stderr says what and where. Good for cron:

  manage.py syncdata_start --once -v 0

With --until the tables get every transaction that was committed up to that moment, or up to that
commit, and not the next one; then the command exits with status 0. While the archive does not reach
that far it waits; with --once it says how far the archive goes, and exits with 1. The next start
without --until goes on from there:

  manage.py syncdata_start --until 2026-02-05T10:30:00Z"""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="Run one cycle and exit.")
        parser.add_argument(
            "--until",
            metavar="TIME|LSN",
            help="Stop there: at a time such as 2026-02-05T10:30:00Z, or a commit's LSN such as 1A/2B3C4D5E.",
        )
        parser.add_argument(
            "--interval",
            type=_seconds,
            metavar="S",
            help="Seconds from one cycle to the next, instead of data_sync_freq.",
        )
        parser.add_argument(
            "--metrics-port",
            type=_port,
            metavar="N",
            help="Serve /metrics (Prometheus) and /health on this port while running; 0 takes any free one.",
        )
        parser.add_argument(
            "--metrics-address",
            default=DEFAULT_ADDRESS,
            metavar="A",
            help="Where to listen for that (default: %(default)s, this machine alone).",
        )

    def handle(
        self,
        *,
        once: bool,
        until: str | None,
        interval: int | None,
        metrics_port: int | None,
        metrics_address: str,
        verbosity: int,
        **options: Any,
    ) -> None:
        config = load_config()
        tune_interpreter()
        with (
            stop_on_signals() as stop,
            PidFile(config.state_dir / PID_FILE_NAME),
            _metrics(config, metrics_port, metrics_address),
            self.show_progress(verbosity) as progress,
            SyncDataService(config, progress=progress) as service,
        ):
            if once:
                self._tell(service.run_once(stop=stop, until=until), stop, verbosity)
            elif until is not None:
                result = service.run_loop(interval_s=interval, stop=stop, until=until)
                self._tell(result or SyncResult(), stop, verbosity)
            else:
                service.run_loop(interval_s=interval, stop=stop)

    def is_daemon(self, options: Mapping[str, Any]) -> bool:
        # A single cycle prints its result; of a daemon's cycles, only the log tells.
        return not options["once"]

    def _tell(self, result: SyncResult, stop: Event, verbosity: int) -> None:
        """Print the result; raise SyncError unless all is done that was there, or asked for."""
        if verbosity:
            self.stdout.write(format_result(result))
        self.fail(result.errors)
        if result.blocked:
            raise CycleError(
                f"blocked: {', '.join(result.blocked)}", hint="syncdata_status says why each table is blocked"
            )
        if stop.is_set():
            raise CycleError("stopped by a signal; what was applied stays", hint="run it again to go on")
        if result.short_of is not None:
            raise result.short_of
        if result.waiting_for and verbosity:
            self.stdout.write(f"{result.waiting_for} is still being written: left for the next cycle")


@contextlib.contextmanager
def _metrics(config: SyncConfig, port: int | None, address: str) -> Iterator[None]:
    if port is None:
        yield
        return
    with serve_metrics(config, port=port, address=address) as url:
        logger.info("metrics are at %s", url)
        yield


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= (port := int(text)) <= 65535:
            return port
    raise ArgumentTypeError(f"{text!r} is not a port, a whole number from 0 to 65535")


def _seconds(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (seconds := int(text)) >= 1:
            return seconds
    raise ArgumentTypeError(f"{text!r} is not a whole number of seconds, 1 or more")
