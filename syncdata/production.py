"""The production side as one service: what its commands call. Knows the configuration and the daemon's
claim on its spool; leaves the source, the slot and the archive to `provision` and `capture`.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.retention import (
    PolicyInForce,
    Removals,
    find_older_than_policy,
    find_removals,
    prune,
)
from syncdata.archive.signatures import Signer, load_signer
from syncdata.capture.archiver import Archiver
from syncdata.capture.catalog_state import last_naming, load_state
from syncdata.capture.chain import Chain, load_chain, require_same_slot, timeline_problem
from syncdata.capture.housekeeper import Housekeeper, SourceView, Watch, too_large_to_copy, view_source
from syncdata.capture.owed import Asked, load_owed, settle, sizes_of
from syncdata.capture.policy_note import load_policy_note, note_clean
from syncdata.capture.privacy_note import load_privacy_note
from syncdata.capture.publication import find_alterations, load_parts
from syncdata.capture.session import Archived
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import Slot
from syncdata.capture.snapshot import PartlyTakenError, TakenSnapshot, take_snapshots
from syncdata.capture.spool import list_finished, make_spool
from syncdata.capture.status import (
    ArchiverStatus,
    PrivacyStatus,
    VerificationStatus,
    archiver_status,
    privacy_problems,
    privacy_status,
    unpublished_warning,
    verification_status,
)
from syncdata.capture.trial import Sample
from syncdata.capture.trouble import trouble_problems
from syncdata.capture.unmasked import load_unmasked
from syncdata.capture.unreadable import load_left_out, load_unreadable
from syncdata.capture.verify_walk import load_verification
from syncdata.changes.filenames import Compression
from syncdata.changes.names import TableName
from syncdata.conf import SourceConfig
from syncdata.daemon import PidFile, running_pid, stop_daemon
from syncdata.errors import (
    ArchiverRunError,
    ConfigError,
    PidFileError,
    Problem,
    Reason,
    RetentionError,
    SnapshotError,
    SyncError,
)
from syncdata.privacy.policy import Policy
from syncdata.provision import privacy_tools, provision
from syncdata.provision.facts import Failover
from syncdata.provision.findings import Finding
from syncdata.provision.privacy_init import Hints
from syncdata.provision.privacy_report import TableReport
from syncdata.provision.provision import NewUser, ProvisionSettings, Report, SetupResult
from syncdata.runtime.progress import Progress

logger = logging.getLogger(__name__)

ARCHIVER_PID_FILE_NAME = ".syncdata_archiver.pid"

_BEGIN_PATIENCE_S, _BEGIN_POLL_S = 20.0, 0.2

_ROLE = "archiver"
_KEY_FILE_NAME = "mask.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPolicy:
    """A first policy (``text``; empty where there is one already), and where its key is."""

    text: str
    key_file: Path
    is_new_key: bool


class ProductionService:
    """One production side. Holds nothing open between calls.

    Every method raises SourceConnectionError when the source is away, and SourceSetupError when it refuses.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    @property
    def pid_file(self) -> Path:
        return self._config.spool_dir / ARCHIVER_PID_FILE_NAME

    @property
    def spool_dir(self) -> Path:
        return self._config.spool_dir

    @property
    def has_policy(self) -> bool:
        """True where a policy says what may leave production."""
        return self._config.privacy is not None

    @property
    def has_chain(self) -> bool:
        """True once an archiver has begun a chain of change files here."""
        return load_chain(self._config.spool_dir) is not None

    # The source

    def check(self) -> list[Finding]:
        """Return all findings on the source; changes nothing."""
        return provision.check(self._provision_settings)

    def setup(
        self,
        *,
        identity_full: bool = False,
        widens: bool = False,
        user: NewUser | None = None,
        report: Report = lambda line: None,
    ) -> SetupResult:
        """Create or correct the publication, then the slot, as `provision.set_up` does."""
        return provision.set_up(
            self._provision_settings, identity_full=identity_full, widens=widens, user=user, report=report
        )

    def drop(self, *, drops_all: bool = False, report: Report = lambda line: None) -> bool:
        """Drop slot and publication, where they are there, as `provision.drop` does."""
        return provision.drop(self._provision_settings, drops_all=drops_all, report=report)

    # Privacy

    def report_privacy(self) -> list[TableReport]:
        """Return what becomes of each column of the configured tables, and why. Needs no key."""
        config = self._config
        policy = None if config.privacy is None else config.privacy.trial_policy
        return privacy_tools.report(config.connection_params, config.tables, policy)

    def sample(self, rows: int, tables: Sequence[str]) -> list[Sample]:
        """Return *rows* rows of each of *tables*, without any of all, as they are and as they travel.

        They are for nobody's eyes but production's. Raises ConfigError without a policy, or without its key.
        """
        policy = self._policy
        if policy is None:
            raise ConfigError("there is no privacy policy", hint="archive_changes --init writes a first one")
        config = self._config
        return privacy_tools.sample(
            config.connection_params, config.tables, policy, shown=self._chosen(tables), rows=rows
        )

    def init_privacy(self, models: Hints) -> FirstPolicy:
        """Make the key where there is none, and return a first policy where there is no policy.

        *models*: what the fields of a project's models say of their columns. Nothing is written over.
        """
        config = self._config
        privacy = config.privacy
        key_file = (privacy and privacy.key_file) or config.state_dir / _KEY_FILE_NAME
        text = ""
        if privacy is None:
            text = privacy_tools.first_policy(
                config.connection_params, config.tables, models, key_file=_beside(key_file, config.state_dir)
            )
        is_needed = privacy is None or privacy.key is None
        return FirstPolicy(
            text=text, key_file=key_file, is_new_key=is_needed and privacy_tools.make_key(key_file)
        )

    # The archiver

    def run_loop(self, stop: threading.Event) -> None:
        """Archive until *stop* is set. Raises SyncError when only a person can tell how to go on."""
        housekeeper = Housekeeper(
            Watch(self._view_source, self._config.spool_dir),
            lambda: self.prune(stop=stop),
            prune_every_s=self._config.prune_hours * 3600,
            copy=lambda: self.copy_rewritten(stop=stop),
            stop=stop,
        )
        with self._as_the_only_one(), housekeeper:
            self._archiver().run_loop(stop)

    def run_once(self, stop: threading.Event) -> Archived:
        """Archive what was committed before now. Raises SyncError when not all of it is in the archive."""
        with self._as_the_only_one():
            archived = self._archiver().run_once(stop)
            self._copy_what_is_owed(stop)
            return archived

    def leave_out(self, commit_lsn: int, *, requested_by: str) -> None:
        """Go on behind the transaction that committed at *commit_lsn*, which the source cannot hand over.

        All published tables are suspect at the readers from there on, until there are new snapshots. Raises
        CaptureError unless it is that transaction that holds the stream.
        """
        with self._as_the_only_one():
            self._archiver().leave_out(commit_lsn, requested_by=requested_by)
            self._copy_what_is_owed(threading.Event())

    def stop(self, *, timeout_s: float, progress: Callable[[str], None] = lambda line: None) -> int:
        """Stop the archiver that runs here, wait until it is gone, and return its pid.

        Raises ArchiverRunError when none runs here, or it is still there after *timeout_s*.
        """
        try:
            return stop_daemon(self.pid_file, timeout_s=timeout_s, progress=progress, role=_ROLE)
        except PidFileError as error:
            raise ArchiverRunError(
                error.message, hint="archive_changes --status shows how it does; stop it where it runs"
            ) from error

    def begin_epoch(self) -> Chain:
        """Begin the chain anew where the slot stands, after an interruption that cannot be mended."""
        with self._as_the_only_one():
            return self._archiver().begin_epoch()

    def take_snapshots(
        self, tables: Sequence[str] = (), *, stop: threading.Event, progress: Progress | None = None
    ) -> list[TakenSnapshot]:
        """Put a snapshot of each of *tables*, without any of all configured ones, into the archive.

        All are of one moment. An archiver may run meanwhile. Raises SnapshotError.
        """
        return take_snapshots(
            self._settings,
            self._open_archive,
            self._chain(),
            self._chosen(tables),
            stop=stop,
            progress=progress,
        )

    def copy_rewritten(self, *, stop: threading.Event) -> list[TableName]:
        """Take the snapshots of tables whose rows changed without a record; return those that are too large,
        unless they were asked for.

        Raises SyncError when a snapshot cannot be taken; it stays owed.
        """
        settings, tables = self._settings, frozenset(self._tables)
        owed = load_owed(settings.spool_dir)
        # What is not configured any more, or withheld, can have none.
        settle(settings.spool_dir, {t: since for t, since in owed.items() if t not in tables})
        owed = {table: since for table, since in owed.items() if table in tables}
        small = [table for table, since in owed.items() if isinstance(since, Asked)]
        others = [table for table in owed if table not in small]
        if others and settings.snapshot_bytes:
            sizes = sizes_of(settings.params, others)
            small += [table for table in others if sizes[table] <= settings.snapshot_bytes]
        if small:
            logger.info("copying what no record says: %s", " ".join(map(str, small)))
            failure: PartlyTakenError | None = None
            try:
                taken = take_snapshots(settings, self._open_archive, self._chain(), small, stop=stop)
            except PartlyTakenError as error:
                taken, failure = error.taken, error
            settle(settings.spool_dir, {snapshot.table: owed[snapshot.table] for snapshot in taken})
            if failure is not None:
                raise failure
        return [table for table in owed if table not in small]

    def _copy_what_is_owed(self, stop: threading.Event) -> None:
        try:
            if too_large := self.copy_rewritten(stop=stop):
                logger.warning("%s", too_large_to_copy(too_large))
        except SyncError as error:
            logger.warning("%s", error, extra={"code": error.code})

    def prune(self, *, stop: threading.Event, is_dry_run: bool = False) -> Removals:
        """Remove the files from the archive that no resync can need any more; return those removed.

        *is_dry_run*: only return the files that would be. Raises RetentionError, and the archive's errors.
        """
        chain = self._chain()
        with closing(self._open_archive()) as archive:
            removals = find_removals(
                archive,
                self._tables,
                source_id=chain.source_id,
                now=_utcnow(),
                keep_days=self._config.keep_days,
                named=last_naming(self._config.spool_dir),
                withheld=self._withheld_tables,
            )
            return removals if is_dry_run else prune(archive, removals, stop=stop)

    def prune_before_policy(self, *, stop: threading.Event, is_dry_run: bool = False) -> Removals:
        """Remove the files from the archive that may hold values from before the privacy policy; return those
        removed, none where a table lacks a snapshot under it.

        *is_dry_run*: only return the files that would be. Raises RetentionError where no archiver has worked
        under the policy of the configuration yet, and the archive's errors.
        """
        spool_dir, privacy = self._config.spool_dir, self._config.privacy
        note, state = load_policy_note(spool_dir), load_state(spool_dir)
        if privacy is None:
            raise RetentionError("there is no privacy policy", hint="write one: [source.columns]")
        policy_id = privacy.load_policy().id
        if note is None or state is None or note.id != policy_id:
            raise RetentionError(
                "no archiver has worked under this privacy policy yet",
                hint="start archive_changes anew, then run 'archive_changes --snapshot'",
            )
        policy = PolicyInForce(
            tables={table.table: table for table in state.catalog.tables},
            withheld=self._withheld_tables,
            last_before=note.last_before,
        )
        chain = self._chain()
        with closing(self._open_archive()) as archive:
            found = find_older_than_policy(
                archive,
                self._config.tables,
                policy,
                source_id=chain.source_id,
                named=last_naming(spool_dir),
            )
            if is_dry_run:
                return found
            removed = prune(archive, found, stop=stop)
        if removed == found and not found.reason:
            note_clean(spool_dir, note)
        return removed

    def get_status(self) -> ArchiverStatus:
        """Return the archiver's status, from slot and spool; a source that is away is one of its problems."""
        view, slot, problems = None, None, list[Problem]()
        try:
            view = self._view_source()
            slot = view.slot
            problems = self._source_problems(view)
        except SyncError as error:
            problems.append(Problem(kind="source", reason=Reason.of(error)))
        problems += trouble_problems(self._config.spool_dir)
        signer = None
        try:
            signer = self._signer
        except ConfigError as error:
            problems.append(Problem(kind="signing-key", reason=Reason.of(error)))
        try:
            _ = self._policy
        except ConfigError as error:
            problems.append(Problem(kind="mask-key", reason=Reason.of(error)))
        is_active = running_pid(self.pid_file) is not None
        chain = load_chain(self._config.spool_dir)
        if (held := load_unreadable(self._config.spool_dir, chain)) is not None:
            problems.append(Problem(kind="unreadable", reason=held.reason))
        if chain is not None and view is not None:
            problems += _timeline_problems(chain, view)
        if slot is not None and chain is not None and not is_active:
            problems += _chain_problems(chain, slot)
        problems += self._privacy_problems(is_active=is_active)
        return archiver_status(
            is_active=is_active,
            slot_name=self._config.slot_name,
            slot=slot,
            chain=chain,
            waiting=list_finished(self._config.spool_dir),
            rotate_s=self._config.rotate_seconds,
            now=_utcnow(),
            problems=tuple(problems),
            left_out=tuple(entry.commit_lsn for entry in load_left_out(self._config.spool_dir)),
            signs_with=signer.fingerprint if signer else None,
            verification=self._verification_status(),
            privacy=self._privacy_status(),
        )

    # Inside

    def _verification_status(self) -> VerificationStatus | None:
        rate = self._config.verify_rows_per_second
        if not rate:
            return None
        return verification_status(load_verification(self._config.spool_dir), rows_per_second=rate)

    @property
    def _policy_id(self) -> str | None:
        """The id of the configured policy, empty without one; None where its key cannot be read."""
        try:
            return "" if self._config.privacy is None else self._config.privacy.load_policy().id
        except ConfigError:
            return None

    @property
    def _withheld_tables(self) -> tuple[TableName, ...]:
        """The configured tables that the policy withholds as a whole: those that it does not name, and those
        whose key cannot travel, as far as an archiver has found any."""
        privacy = self._config.privacy
        if privacy is None:
            return ()
        noted = load_privacy_note(self._config.spool_dir)
        is_of_policy = noted is not None and noted.policy == self._policy_id
        out = {*noted.withheld_tables} if noted is not None and is_of_policy else set()
        if privacy.rules.unnamed == "withhold":
            out |= {*self._config.tables} - privacy.rules.columns.keys()
        return tuple(table for table in self._config.tables if table in out)

    @property
    def _tables(self) -> tuple[TableName, ...]:
        """The configured tables that travel."""
        withheld = frozenset(self._withheld_tables)
        return tuple(table for table in self._config.tables if table not in withheld)

    def _privacy_status(self) -> PrivacyStatus | None:
        spool_dir, privacy, policy_id = self._config.spool_dir, self._config.privacy, self._policy_id
        if privacy is None:
            return None
        state = load_state(spool_dir)
        return privacy_status(
            policy_id,
            privacy.rules.unnamed,
            note=load_policy_note(spool_dir),
            tables=() if state is None else state.catalog.tables,
            withheld_tables=self._withheld_tables,
            keep_days=self._config.keep_days,
            unmasked=load_unmasked(spool_dir, policy_id),
        )

    def _privacy_problems(self, *, is_active: bool) -> list[Problem]:
        spool_dir, policy_id = self._config.spool_dir, self._policy_id
        noted = load_privacy_note(spool_dir)
        return privacy_problems(
            policy_id,
            note=load_policy_note(spool_dir),
            troubles=noted.problems if noted is not None and noted.policy == policy_id else (),
            is_active=is_active,
        )

    def _source_problems(self, view: SourceView) -> list[Problem]:
        problems = []
        if view.unpublished:
            problems.append(unpublished_warning([*map(str, view.unpublished)]))
        problems += view.faults
        problems += find_alterations(load_parts(self._config.spool_dir), view.published.parts)
        if view.slot is None:
            text = f"the source has no replication slot {self._config.slot_name}"
            problems.append(Problem(kind="no-slot", text=text))
        elif view.slot.is_lost:
            text = f"the slot {view.slot.name} is lost: the source has removed WAL that it needed"
            problems.append(Problem(kind="lost-slot", text=text))
        return problems

    def _view_source(self) -> SourceView:
        config = self._config
        return view_source(
            config.connection_params,
            slot_name=config.slot_name,
            publication=config.publication,
            tables=self._tables,
        )

    @property
    def _provision_settings(self) -> ProvisionSettings:
        config = self._config
        return ProvisionSettings(
            params=config.connection_params,
            slot_name=config.slot_name,
            publication=config.publication,
            tables=config.tables,
            failover=cast(Failover, config.failover),
            policy=None if config.privacy is None else config.privacy.trial_policy,
        )

    @property
    def _settings(self) -> CaptureSettings:
        config = self._config
        return CaptureSettings(
            params=config.connection_params,
            slot_name=config.slot_name,
            publication=config.publication,
            spool_dir=config.spool_dir,
            rotate_s=config.rotate_seconds,
            rotate_bytes=config.rotate_bytes,
            compression=cast(Compression, config.compression),
            snapshot_bytes=config.snapshot_bytes,
            signer=self._signer,
            policy=self._policy,
            verify_rows_per_s=config.verify_rows_per_second,
            verify_days=config.verify_days,
        )

    @property
    def _policy(self) -> Policy | None:
        """What may leave production, its key read anew with each piece of work. Raises ConfigError."""
        privacy = self._config.privacy
        return None if privacy is None else privacy.load_policy()

    @property
    def _signer(self) -> Signer | None:
        """The key to sign with, read anew with each piece of work. Raises ConfigError."""
        path = self._config.signing_key_file
        return None if path is None else load_signer(path)

    def _archiver(self) -> Archiver:
        return Archiver(self._settings, self._open_archive)

    def _open_archive(self) -> Archive:
        return open_archive(self._config.archive, spool_dir=self._config.spool_dir)

    def _chain(self) -> Chain:
        """Return the chain: from the spool, where an archiver has begun it; else begin it here."""
        deadline_s = time.monotonic() + _BEGIN_PATIENCE_S
        while (chain := load_chain(self._config.spool_dir)) is None:
            try:
                with self._as_the_only_one():
                    return self._archiver().open_chain()
            except ArchiverRunError:
                # An archiver that was started just now will begin the chain.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_BEGIN_POLL_S)
        return chain

    def _chosen(self, names: Sequence[str]) -> list[TableName]:
        tables = list(dict.fromkeys(TableName.parse(name) for name in names)) or list(self._tables)
        if unknown := [str(table) for table in tables if table not in self._config.tables]:
            raise SnapshotError(
                f"not in source.tables: {', '.join(unknown)}",
                hint="add them there and run 'python manage.py setup_logical_replication'",
            )
        return tables

    @contextmanager
    def _as_the_only_one(self) -> Iterator[None]:
        """Be the one archiver of this spool directory. Raises ArchiverRunError when there is another."""
        make_spool(self._config.spool_dir)
        claim = PidFile(self.pid_file, role=_ROLE)
        try:
            claim.__enter__()
        except PidFileError as error:
            raise ArchiverRunError(
                error.message, hint="stop it first: python manage.py archive_changes --stop"
            ) from error
        try:
            yield
        finally:
            claim.__exit__(None, None, None)


def _timeline_problems(chain: Chain, view: SourceView) -> list[Problem]:
    if view.timeline is None:
        return [Problem(kind="standby", text="the source is a standby: set source.pg_host to the primary")]
    text = timeline_problem(chain, view.timeline)
    return [] if text is None else [Problem(kind="timeline", text=text)]


def _chain_problems(chain: Chain, slot: Slot) -> list[Problem]:
    """Return the reason why *slot* does not continue *chain*; not while an archiver moves both."""
    if slot.is_lost:  # which is told already
        return []
    try:
        require_same_slot(chain, slot)
    except SyncError as error:
        return [Problem(kind="other-slot", reason=Reason.of(error))]
    return []


def _beside(path: Path, folder: Path) -> str:
    """Return *path* as a configuration in *folder* names it."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
