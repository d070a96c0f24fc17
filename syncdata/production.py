"""The production side as a service: what its commands call. Composes configuration, source and archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from syncdata.changes.names import TableName
from syncdata.conf import SourceConfig
from syncdata.errors import SlotError, SourceSetupError
from syncdata.provision.database import SourceDatabase, open_source
from syncdata.provision.facts import SourceFacts, foreign_slot, plan_publication, quote, without_identity
from syncdata.provision.preflight import Finding, examine
from syncdata.provision.statements import lacks_rights, make_account, make_identities_full, make_publication

Report = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """The role that the archiver will log in as. *ask_password* is called only when one is to be set:
    for a role that does not exist, and with *sets_password* also for one that does."""

    name: str
    ask_password: Callable[[], str]
    sets_password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupResult:
    """``notes``: what stops nothing but should be known. ``new_tables``: those whose changes are published
    only now, so that a snapshot must supply what they hold already. ``dropped_tables``: those whose changes
    are not published any more."""

    changes: tuple[str, ...]
    notes: tuple[Finding, ...]
    creates_slot: bool
    new_tables: tuple[TableName, ...]
    dropped_tables: tuple[TableName, ...]


class ProductionService:
    """Holds nothing open between calls. All methods raise SourceConnectionError and SourceSetupError."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    def check(self) -> list[Finding]:
        """Return what can be said of the source; changes nothing."""
        with self._open() as database:
            return examine(self._read(database))

    def setup(
        self, *, identity_full: bool = False, user: NewUser | None = None, report: Report = lambda line: None
    ) -> SetupResult:
        """Create or correct the publication, then the slot; *report* gets a line for each change made.

        Running it again changes nothing. Raises SourceSetupError with everything that is missing; then
        nothing is changed. *identity_full* gives tables without a usable key REPLICA IDENTITY FULL.
        """
        with self._open() as database:
            source = self._read(database)
            plan = plan_publication(source.publication, self._config.tables)
            findings = examine(source, identity_full=identity_full)
            _refuse(findings)
            done = self._make(database, source, user)
            for line in done:
                report(line)
            # The publication first: a change decoded before it existed would be an error for ever.
            if source.slot is None:
                lsn = database.create_slot(self._config.slot_name)
                done.append(f"created slot {self._config.slot_name}, which begins at {lsn}")
                report(done[-1])
        return SetupResult(
            changes=tuple(done),
            notes=tuple(finding for finding in findings if finding.level == "note"),
            creates_slot=source.slot is None,
            new_tables=self._config.tables if source.slot is None else plan.added,
            dropped_tables=plan.dropped,
        )

    def drop(self, *, report: Report = lambda line: None) -> bool:
        """Drop slot and publication, where they are there; return whether any was.

        Raises SlotError when the slot is in use or is not ours; then nothing is changed.
        """
        with self._open() as database:
            source = self._read(database)
            _refuse_to_drop(source)
            # The slot first: without its publication it could not be read any more.
            if source.slot is not None:
                database.drop_slot(source.slot_name)
                report(f"dropped slot {source.slot_name}")
            if source.publication is not None:
                database.drop_publication(source.publication_name)
                report(f"dropped publication {quote(source.publication_name)}")
        return source.slot is not None or source.publication is not None

    @contextmanager
    def _open(self) -> Iterator[SourceDatabase]:
        with open_source(self._config.connection_params) as database:
            yield database

    def _read(self, database: SourceDatabase) -> SourceFacts:
        config = self._config
        return database.read(tables=config.tables, publication=config.publication, slot=config.slot_name)

    def _make(self, database: SourceDatabase, source: SourceFacts, user: NewUser | None) -> list[str]:
        """Make all changes but the slot, which PostgreSQL creates only outside of such a transaction."""
        name, tables = source.publication_name, self._config.tables
        password = self._new_password(database, user)
        with database.transaction():
            done = database.make(make_identities_full(without_identity(source)))
            done += database.make(
                make_publication(name, plan_publication(source.publication, tables), tables)
            )
            if user is not None:
                done += self._make_account(database, source, user.name, password)
        return done

    def _new_password(self, database: SourceDatabase, user: NewUser | None) -> str | None:
        """Return the hash of the password that the role is to get, or None."""
        if user is None:
            return None
        exists = database.read_account(user.name, self._config.tables).exists
        if exists and not user.sets_password:
            return None
        return database.hash_password(user.name, user.ask_password())

    def _make_account(
        self, database: SourceDatabase, source: SourceFacts, name: str, password: str | None
    ) -> list[str]:
        tables, database_name = self._config.tables, source.server.database
        account = database.read_account(name, tables)
        done = database.make(make_account(account, database_name, password))
        if not account.exists:  # only now can be asked what it may do by itself
            account = database.read_account(name, tables)
            done += database.make(make_account(account, database_name, None))
        if lacks_rights(database.read_account(name, tables)):
            raise SourceSetupError(
                f"role {source.role.name} may not grant role {name} what it needs; nothing was changed",
                hint="run the setup as the tables' owner or as a superuser",
            )
        return done


def _refuse(findings: Sequence[Finding]) -> None:
    problems = [str(found) for found in findings if found.level == "missing" and not found.is_mended_by_setup]
    if problems:
        raise setup_error(problems, "nothing was changed")


def setup_error(problems: Sequence[str], remark: str = "") -> SourceSetupError:
    """Return the error that lists *problems*."""
    count = len(problems)
    title = "1 thing is missing" if count == 1 else f"{count} things are missing"
    return SourceSetupError("\n  - ".join([f"{title}{remark and '; ' + remark}", *problems]))


def _refuse_to_drop(source: SourceFacts) -> None:
    slot, name, publication = source.slot, source.slot_name, source.publication
    if slot is not None and (reason := foreign_slot(slot, source.server.database)) is not None:
        raise SlotError(f"slot {name} {reason}", hint="choose another source.slot_name; nothing was changed")
    if slot is not None and slot.user is not None:
        raise SlotError(
            f"slot {name} is in use by {slot.user}", hint="stop the archiver first; nothing was changed"
        )
    if publication is not None and not publication.is_owned:
        raise SourceSetupError(
            f"publication {quote(source.publication_name)} belongs to another role; nothing was changed",
            hint="drop it as its owner or as a superuser",
        )
