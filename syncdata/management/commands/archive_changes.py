from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from msgspec import to_builtins

from syncdata.capture.status import format_archiver_status, format_bytes
from syncdata.changes.catalog import catalog_name
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.conf import load_source_config
from syncdata.daemon import stop_on_signals
from syncdata.errors import ArchiverRunError, ArchiverStatusError, PrivacyError, RetentionError
from syncdata.management.base import format_count, format_json, login_name
from syncdata.management.interpreter import tune_interpreter
from syncdata.management.production import ProductionCommand
from syncdata.modelnames import hints_of_fields
from syncdata.production import ProductionService
from syncdata.provision.privacy_report import format_report, shortcomings
from syncdata.provision.privacy_rows import format_sample

_STOP_TIMEOUT_S = 60.0
_MOST_SAMPLES = 1_000
_MEND_RULES = "give each column a rule in [source.columns]; mend what cannot hold, and source.tables"
_ACTIONS = ("once", "snapshot", "prune", "status", "new_epoch", "stop", "skip_transaction")
# Options that only go with one of these.
_COMPANIONS = (
    ("json", "status", "privacy"),
    ("dry_run", "prune"),
    ("before_policy", "prune"),
    ("timeout", "stop"),
    ("yes", "sample"),
)
_PRIVACY_ACTIONS = ("privacy", "sample", "init")


def _lsn(text: str) -> int:
    try:
        return parse_lsn(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not an LSN, as 0/16B3D50") from None


class Command(ProductionCommand):
    help = """\
Write the committed changes of the [source] database as change files into the archive.

Runs in the foreground until SIGTERM or Ctrl-C: the open file is finished and delivered, and the
command exits with status 0. What is not in the archive is not confirmed to the source, so whatever
happens, the archive holds every transaction once. A source or a backup host that is away is waited
for. Prepare the source with setup_logical_replication first."""
    epilog = """\
A resync, or a newly added table, on a local machine begins with the newest snapshot of the table:

  manage.py archive_changes --snapshot           all tables of [source], at one moment
  manage.py archive_changes --snapshot users     this one

Both may run beside the daemon."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        action = parser.add_mutually_exclusive_group()
        action.add_argument("--once", action="store_true", help="Archive what is there, and exit.")
        action.add_argument(
            "--snapshot",
            nargs="*",
            metavar="table",
            help="Put a snapshot of these tables (of all, without any) into the archive.",
        )
        action.add_argument(
            "--prune",
            action="store_true",
            help="Remove change files and snapshots that no resync can need any more.",
        )
        action.add_argument(
            "--status",
            action="store_true",
            help="Show lag, last file, what waits for the archive; exit status 1 when not healthy.",
        )
        action.add_argument("--stop", action="store_true", help="Stop the archiver that runs here.")
        action.add_argument(
            "--new-epoch",
            action="store_true",
            help="Begin anew where the slot stands now, with snapshots of all tables: when changes were lost"
            " (slot recreated, source restored). Every local machine must resync afterwards.",
        )
        action.add_argument(
            "--skip-transaction",
            type=_lsn,
            metavar="LSN",
            help="Leave out the transaction that committed at LSN, which the source cannot hand over: every"
            " table is then suspect on the local machines until there is a new snapshot of it.",
        )
        action.add_argument(
            "--privacy",
            action="store_true",
            help="Show what becomes of each column and why; exit status 1 when a column has no rule, a rule"
            " cannot hold, or a table is not there. Needs no key.",
        )
        action.add_argument(
            "--sample",
            nargs="+",
            metavar=("N", "table"),
            help="Show N rows of these tables (of all, without any) as they are and as they travel: real"
            " values, on this terminal only.",
        )
        action.add_argument(
            "--init",
            nargs="?",
            const="-",
            metavar="FILE",
            help="Make the key of the masks, and write a first privacy policy into FILE, a new one, or to"
            " the standard output.",
        )
        parser.add_argument("--yes", action="store_true", help="With --sample: also where nobody looks on.")
        parser.add_argument(
            "--json", action="store_true", help="With --status and --privacy: print one JSON document."
        )
        parser.add_argument(
            "--before-policy",
            action="store_true",
            help="With --prune: remove what was written before the privacy policy came into force, whatever"
            " keep_days says, once each table has a snapshot under it.",
        )
        parser.add_argument("--dry-run", action="store_true", help="With --prune: only say what would go.")
        parser.add_argument(
            "--timeout", type=float, metavar="S", help=f"With --stop: how long to wait ({_STOP_TIMEOUT_S:g})."
        )
        parser.add_argument(
            "--noinput", "--no-input", action="store_false", dest="interactive", help="Never ask."
        )

    def is_daemon(self, options: Mapping[str, Any]) -> bool:
        return all(options[name] in (False, None) for name in (*_ACTIONS, *_PRIVACY_ACTIONS))

    def handle(self, **options: Any) -> None:
        for option, *owners in _COMPANIONS:
            if options[option] and not any(options[owner] for owner in owners):
                goes_with = " or ".join(f"--{owner}" for owner in owners)
                raise CommandError(f"--{option.replace('_', '-')} goes with {goes_with}", returncode=2)
        service = ProductionService(load_source_config())
        if options["privacy"]:
            self._report_privacy(service, as_json=options["json"])
        elif options["sample"]:
            self._sample(service, options["sample"], is_sure=options["yes"])
        elif options["init"]:
            self._init_privacy(service, options["init"])
        elif options["status"]:
            self._show_status(service, as_json=options["json"])
        elif options["stop"]:
            self._stop(service, options["timeout"] or _STOP_TIMEOUT_S)
        elif options["prune"]:
            self._prune(service, before_policy=options["before_policy"], is_dry_run=options["dry_run"])
        elif options["snapshot"] is not None:
            self.take_snapshots(service, options["snapshot"], verbosity=options["verbosity"])
        elif options["new_epoch"]:
            self._begin_epoch(service, options["interactive"], options["verbosity"])
        elif options["skip_transaction"] is not None:
            self._leave_out(service, options["skip_transaction"], options["interactive"])
        else:
            self._archive(service, once=options["once"], verbosity=options["verbosity"])

    def _archive(self, service: ProductionService, *, once: bool, verbosity: int) -> None:
        tune_interpreter()
        with stop_on_signals() as stop:
            if not once:
                service.run_loop(stop)
                return
            archived = service.run_once(stop)
        if stop.is_set():
            raise ArchiverRunError("stopped by a signal", hint="run it again to go on")
        if verbosity:
            self.stdout.write(
                f"{format_count(archived.records, 'record')} of"
                f" {format_count(archived.transactions, 'transaction')} in"
                f" {format_count(archived.files, 'file')}"
            )

    def _stop(self, service: ProductionService, timeout_s: float) -> None:
        pid = service.stop(timeout_s=timeout_s)
        self.stdout.write(f"stopped (pid {pid}); its last file is delivered, or waits in the spool")

    def _begin_epoch(self, service: ProductionService, interactive: bool, verbosity: int) -> None:
        if interactive:
            self.confirm(
                "The chain of change files begins anew: every local machine stops at its first file until its"
                " tables are resynced. Continue?",
                ArchiverRunError,
            )
        chain = service.begin_epoch()
        self.stdout.write(f"epoch {chain.epoch} begins at {chain.confirmed_lsn}")
        self.take_snapshots(service, [], verbosity=verbosity)
        self.stdout.write("Start archive_changes again, and resync the tables on every local machine.")

    def _leave_out(self, service: ProductionService, commit_lsn: int, interactive: bool) -> None:
        lsn = format_lsn(commit_lsn)
        if interactive:
            self.confirm(
                f"What the transaction that committed at {lsn} has changed will be missing in the archive,"
                " and every table is suspect on the local machines until there is a new snapshot of it."
                " Continue?",
                ArchiverRunError,
            )
        service.leave_out(commit_lsn, requested_by=login_name() or "an operator")
        self.stdout.write(
            f"the transaction that committed at {lsn} is left out; what came later is archived. For tables"
            " without a newer snapshot run 'python manage.py archive_changes --snapshot'. Then start"
            " archive_changes again."
        )

    def _prune(self, service: ProductionService, *, before_policy: bool, is_dry_run: bool) -> None:
        prune = service.prune_before_policy if before_policy else service.prune
        with stop_on_signals() as stop:
            removals = prune(stop=stop, is_dry_run=is_dry_run)
        for file in removals.files:
            self.stdout.write(file.name)
        for digest in removals.catalogs:
            self.stdout.write(catalog_name(digest))
        verb = "would remove" if is_dry_run else "removed"
        self.stdout.write(
            f"{verb} {format_count(len(removals.files), 'file')}, {format_bytes(removals.size_bytes)}"
        )
        if removals.reason and before_policy:
            # Whoever asks for it wants to know that older values are still there.
            raise RetentionError(removals.reason)
        if removals.reason:
            self.stdout.write(removals.reason)

    def _report_privacy(self, service: ProductionService, *, as_json: bool) -> None:
        reports = service.report_privacy()
        self.stdout.write(format_json(to_builtins(reports)) if as_json else format_report(reports))
        if not service.has_policy:
            raise PrivacyError(
                "there is no privacy policy: every column travels as it is", hint="archive_changes --init"
            )
        if found := shortcomings(reports):
            # Before the list: behind it, the hint would seem to be of its last line.
            raise PrivacyError("\n  - ".join([f"the policy is not complete: {_MEND_RULES}", *found]))

    def _sample(self, service: ProductionService, arguments: Sequence[str], *, is_sure: bool) -> None:
        number, *tables = arguments
        if not number.isdecimal() or not 1 <= int(number) <= _MOST_SAMPLES:
            raise CommandError(f"--sample takes a number from 1 to {_MOST_SAMPLES} first", returncode=2)
        if not self.stdout.isatty() and not is_sure:
            raise CommandError(
                "--sample shows real values, and the output is no terminal: --yes if it may be kept",
                returncode=2,
            )
        self._tell("real values, for this terminal only: nothing of them is logged or kept")
        for sample in service.sample(int(number), tables):
            self.stdout.write(format_sample(sample))

    def _init_privacy(self, service: ProductionService, target: str) -> None:
        made = service.init_privacy(hints_of_fields())
        if made.is_new_key:
            self._tell(f"made the key {made.key_file}; keep a copy of it, but not in the archive")
        if not made.text:
            self._tell("there is a policy already; archive_changes --privacy shows what it lacks")
        elif target == "-":
            self.stdout.write(made.text, ending="")
        else:
            self._write_new(Path(target), made.text)

    def _tell(self, text: str) -> None:
        # Beside the policy, which may go into a file; and no error, so not in an error's colour.
        self.stderr.write(text, str)

    def _write_new(self, path: Path, text: str) -> None:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from error
        self._tell(f"wrote {path}; read it, correct it, and append it to the configuration")

    def _show_status(self, service: ProductionService, *, as_json: bool) -> None:
        status = service.get_status()
        texts = [str(problem) for problem in status.problems]
        document = asdict(status) | {"is_healthy": status.is_healthy, "problems": texts}
        self.stdout.write(format_json(document) if as_json else format_archiver_status(status))
        if not status.is_healthy:
            raise ArchiverStatusError("not healthy: " + "; ".join(texts))
