"""The base of all syncdata commands: how errors end them, where their log goes, how they open the service.

Knows Django's commands and the terminal; does nothing of the work.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import io
import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter
from django.db import Error as DatabaseError

from syncdata.conf import load_config
from syncdata.errors import ServiceInitError, SyncError
from syncdata.management.progress import SYNC_WORDS, Words, format_duration, make_progress
from syncdata.runtime.driver_log import without_values
from syncdata.runtime.progress import Progress
from syncdata.runtime.unexpected import safe_traceback, unexpected_error
from syncdata.service import SyncDataService, SyncResult

_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class SyncCommand(BaseCommand):
    """A command whose errors are SyncErrors.

    From the command line a SyncError becomes its message on stderr, which begins with the code, and
    exit status 1; so does an error that nobody foresaw. Ctrl-C becomes exit status 130. ``--traceback`` shows
    where the error came from, without values. ``call_command`` raises the error itself.
    """

    # No system checks here: a failing check of another app must not keep the data from syncing.
    requires_system_checks = ()
    epilog = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        texts = {"formatter_class": _HelpFormatter, "epilog": self.epilog}
        parser = super().create_parser(prog_name, subcommand, **texts | kwargs)
        parser.add_argument("--verbose", action="store_true", help="Log every step (the same as -v 2).")
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        _print_what_the_terminal_cannot()
        try:
            super().run_from_argv(_spell_out_verbose(argv))
            sys.stdout.flush()
        except BrokenPipeError:  # ``head`` has read enough: end quietly, as other tools do
            _give_up_stdout()
            sys.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            self._say("Interrupted.")
            sys.exit(130)
        except Exception as error:
            if "--traceback" in argv:
                self._say(safe_traceback(error))
            self._say(explain(error))
            if isinstance(error, OSError):
                _give_up_stdout()
            sys.exit(error.returncode if isinstance(error, CommandError) else 1)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # where stderr cannot be written, the exit status has to do
            self.stderr.write(text)

    def execute(self, *args: Any, **options: Any) -> str | None:
        verbosity = 2 if options.get("verbose") else options["verbosity"]
        levels = {0: logging.ERROR, 1: self.log_level(options)}
        is_reported = not self.is_daemon(options)
        level = levels.get(verbosity, logging.DEBUG)
        with without_values(), _logging_to_stderr(level, without_errors=is_reported):
            try:
                return super().execute(*args, **options)
            except (DatabaseError, psycopg.Error) as error:
                raise _database_error(error) from None

    def is_daemon(self, options: Mapping[str, Any]) -> bool:
        """Return whether the command goes on after errors, so that the log must tell of them.

        Every other command ends with its error, and reports it once, as its last words."""
        return False

    def log_level(self, options: Mapping[str, Any]) -> int:
        """Return the level that is logged without -v."""
        return logging.INFO if self.is_daemon(options) else logging.WARNING

    @contextlib.contextmanager
    def open_service(self, **kwargs: Any) -> Iterator[SyncDataService]:
        """Read the configuration and open the service, with *kwargs* for its constructor."""
        with SyncDataService(load_config(), **kwargs) as service:
            yield service

    @contextlib.contextmanager
    def show_progress(self, verbosity: int, words: Words = SYNC_WORDS) -> Iterator[Progress | None]:
        """Yield the progress for stderr, since stdout is for results; None where silence was asked for."""
        if verbosity == 0:
            yield None
            return
        with contextlib.closing(make_progress(sys.stderr, words)) as progress:
            yield progress

    def confirm(self, question: str, refusal: type[SyncError]) -> None:
        """Ask the operator on the terminal; raise *refusal* unless the answer is yes."""
        try:
            answer = input(f"{question} [y/N] ")
        except EOFError:
            raise refusal(
                "nobody is there to ask; nothing was changed", hint="--noinput does not ask"
            ) from None
        if answer.strip().lower() not in ("y", "yes"):
            raise refusal("cancelled; nothing was changed")

    def fail(self, errors: Sequence[SyncError]) -> None:
        """End the command if there are *errors*: write all but the last, raise that one."""
        for error in errors[:-1]:
            self.stderr.write(str(error))
        if errors:
            raise errors[-1]


def explain(error: Exception) -> str:
    """Return the line for an error that ends a command."""
    match error:
        case SyncError():
            return str(error)
        case CommandError():
            return f"CommandError: {error}"
        case OSError(filename=None) if error.errno in (errno.ENOSPC, errno.EIO):
            return str(unexpected_error(error, hint="free space where the output goes, and run it again"))
    return str(unexpected_error(error, hint="run it again with --traceback, and report what it prints"))


def _print_what_the_terminal_cannot() -> None:
    """Print characters that stdout cannot encode as escapes: names of tables and files can hold any."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _give_up_stdout() -> None:
    """Let what is left in stdout's buffer go nowhere: it would be tried again at the interpreter's end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spell_out_verbose(argv: Sequence[str]) -> list[str]:
    """Return *argv* with ``--verbose`` for each ``-v`` without a number: the predecessor's needs none."""
    following = [*argv[1:], ""]
    return [
        "--verbose" if word == "-v" and not after.isdigit() else word
        for word, after in zip(argv, following, strict=True)
    ]


class _HelpFormatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Django's order of options, our own paragraphs."""


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the stderr of the moment: a progress bar replaces it to keep log lines above itself."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignore the stream that the base class sets: stderr may be replaced later."""


@contextlib.contextmanager
def _logging_to_stderr(level: int, *, without_errors: bool) -> Iterator[None]:
    """Show the app's log on stderr, unless the project has configured where it goes.

    *without_errors*: leave out the records of a SyncError, which the command itself will report.
    """
    app_logger = logging.getLogger("syncdata")
    previous_level = app_logger.level
    handler = None if app_logger.hasHandlers() else _StderrHandler()
    if handler is not None:
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        if without_errors:
            handler.addFilter(lambda record: record.levelno < logging.ERROR or not hasattr(record, "code"))
        app_logger.addHandler(handler)
    if handler is not None or level == logging.DEBUG:  # DEBUG was asked for on the command line
        app_logger.setLevel(level)
    try:
        yield
    finally:
        app_logger.setLevel(previous_level)
        if handler is not None:
            app_logger.removeHandler(handler)


def _database_error(error: Exception) -> ServiceInitError:
    """Translate a driver's error that the service let pass. Without details, which can hold row values."""
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    if isinstance(cause, psycopg.errors.UndefinedTable):
        return ServiceInitError(
            "syncdata's own tables are missing", hint="create them with `manage.py migrate`"
        )
    primary = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
    message = primary or str(error).partition("\n")[0]
    return ServiceInitError(message, hint="check that PostgreSQL runs and that the pg_* settings are right")


def add_table_names(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("tables", nargs="+", metavar="table", help=help)


def login_name() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return None


def format_result(result: SyncResult) -> str:
    return (
        f"{format_count(result.records_synced, 'record')} of {format_count(result.files_processed, 'file')}"
        f" in {format_duration(result.duration)}:"
        f" {result.records_added:,} added, {result.records_updated:,} updated,"
        f" {result.records_deleted:,} deleted, {result.records_truncated:,} truncated,"
        f" {result.records_skipped:,} skipped (other tables),"
        f" {result.records_failed:,} failed"
    )


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 file``, ``1,000 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or f'{noun}s'}"


def format_json(document: Any) -> str:
    return json.dumps(document, indent=2, default=_to_json)


def format_time(moment: datetime | None) -> str:
    """Return a time as text: ``2026-02-05T10:30:00Z``, or ``-`` for None."""
    if moment is None:
        return "-"
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _to_json(value: object) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
