"""Checks a source, sets it up for the archiver, and takes that back. Knows the order of the steps and who
may be in the way; leaves SQL to database.py, the judgement to preflight.py. Everything that is missing is
reported at once, and then nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncdata.capture.waits import told_waits
from syncdata.changes.names import TableName
from syncdata.errors import SlotError, SourceSetupError
from syncdata.privacy.policy import Policy
from syncdata.provision.database import RefusedWrite, SourceDatabase, open_source
from syncdata.provision.facts import (
    Failover,
    PublicationPlan,
    SourceFacts,
    TablePart,
    foreign_slot,
    plan_publication,
    quote,
    quote_table,
    wants_failover,
    without_identity,
)
from syncdata.provision.findings import Finding, missing
from syncdata.provision.preflight import examine
from syncdata.provision.privacy_filters import spell_filters
from syncdata.provision.privacy_plan import NO_PRIVACY, PrivacyPlan, plan_privacy
from syncdata.provision.statements import (
    lacks_rights,
    make_account,
    make_identities_full,
    make_publication,
)

Report = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionSettings:
    """The configured source: ``params`` are psycopg's; ``tables`` are those to publish, as far as ``policy``
    lets them."""

    params: Mapping[str, Any] = field(repr=False)
    slot_name: str
    publication: str
    tables: tuple[TableName, ...]
    failover: Failover = "auto"
    policy: Policy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """The role that the archiver will log in as.

    *ask_password* is called only when a password is to be set: for a role that does not exist, and with
    *sets_password* also for one that does.
    """

    name: str
    ask_password: Callable[[], str]
    sets_password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupResult:
    """The outcome of a setup: its ``changes``, a line each, and its ``notes`` on the source.

    Changes of ``new_tables`` are published only from now on, so a snapshot must supply the rows that they
    have already. Changes of ``dropped_tables`` are not published any more.
    """

    changes: tuple[str, ...]
    notes: tuple[Finding, ...]
    creates_slot: bool
    new_tables: tuple[TableName, ...]
    dropped_tables: tuple[TableName, ...]


def check(settings: ProvisionSettings) -> list[Finding]:
    """Return all findings on the source; changes nothing."""
    with open_source(settings.params) as database:
        source = _read(database, settings)
        refused = database.refused_writes(_parts(source))
        privacy = _plan_privacy(database, settings, source)
        return examine(source, failover=settings.failover, privacy=privacy) + [
            missing(
                f"table {write.part}: production's {write.verb} is refused as things are: {write.reason}",
                "mend what it names",
            )
            for write in refused
        ]


def set_up(
    settings: ProvisionSettings,
    *,
    identity_full: bool = False,
    widens: bool = False,
    user: NewUser | None = None,
    report: Report = lambda line: None,
) -> SetupResult:
    """Create or correct the publication, then the slot; *report* gets a line for each change made.

    Running it again changes nothing. *identity_full* gives tables without a usable key REPLICA IDENTITY FULL;
    *widens* publishes all of what somebody has published in part. Raises SourceSetupError that lists
    everything that is missing, and when production could not write a table any more; then nothing is changed.
    """
    with open_source(settings.params) as database:
        source = _read(database, settings)
        privacy = _plan_privacy(database, settings, source, identity_full=identity_full)
        findings = examine(
            source,
            identity_full=identity_full,
            widens=widens,
            failover=settings.failover,
            privacy=privacy,
        )
        _refuse(findings)
        tables = privacy.published(settings.tables)
        plan = plan_publication(source.publication, tables, parts=privacy.parts, widens=widens)
        done = _make_all_but_slot(database, source, plan, tables, user)
        for line in done:
            report(line)
        # The publication before the slot: a change made while the slot exists and the publication does not
        # can never be read.
        is_failover = wants_failover(source.server, settings.failover)
        if source.slot is None:
            with told_waits(settings.params, "the slot"):
                lsn = database.create_slot(settings.slot_name, is_failover=is_failover)
            standbys = " and is kept on standbys" if is_failover else ""
            done.append(f"created slot {settings.slot_name}, which begins at {lsn}{standbys}")
            report(done[-1])
        elif settings.failover == "true" and is_failover and not source.slot.is_failover:
            database.make_failover_slot(settings.slot_name)
            done.append(f"slot {settings.slot_name}: standbys keep a copy of it from now on")
            report(done[-1])
    return SetupResult(
        changes=tuple(done),
        notes=tuple(finding for finding in findings if finding.level == "note"),
        creates_slot=source.slot is None,
        new_tables=tables if source.slot is None else plan.added,
        dropped_tables=plan.dropped,
    )


def drop(settings: ProvisionSettings, *, drops_all: bool = False, report: Report = lambda line: None) -> bool:
    """Drop slot and publication, where they are there; return whether anything was.

    *drops_all*: also the roles that setups have made, with their rights; what must stay is reported. Raises
    SlotError when the slot is in use or is not ours; then nothing is changed.
    """
    with open_source(settings.params) as database:
        source = _read(database, settings)
        _refuse_to_drop(source)
        # The slot before the publication: without its publication it could not be read any more.
        if source.slot is not None:
            database.drop_slot(source.slot_name)
            report(f"dropped slot {source.slot_name}")
        if source.publication is not None:
            database.drop_publication(source.publication_name)
            report(f"dropped publication {quote(source.publication_name)}")
        roles = _drop_roles(database, source.server.database, report) if drops_all else False
        if drops_all:
            _tell_of_identities(source, report)
    return source.slot is not None or source.publication is not None or roles


def list_problems(problems: Sequence[str], remark: str = "") -> SourceSetupError:
    """Return the error that lists *problems*, with their number."""
    count = len(problems)
    title = "1 thing is missing" if count == 1 else f"{count} things are missing"
    return SourceSetupError("\n  - ".join([f"{title}{remark and '; ' + remark}", *problems]))


def _read(database: SourceDatabase, settings: ProvisionSettings) -> SourceFacts:
    return database.read(tables=settings.tables, publication=settings.publication, slot=settings.slot_name)


def _plan_privacy(
    database: SourceDatabase, settings: ProvisionSettings, source: SourceFacts, *, identity_full: bool = False
) -> PrivacyPlan:
    if settings.policy is None:
        return NO_PRIVACY
    described = database.read_described(settings.tables)
    there = {} if source.publication is None else source.publication.partial
    filters = spell_filters(database, settings.policy, described, there)
    return plan_privacy(settings.policy, described, source, filters, identity_full=identity_full)


def _parts(source: SourceFacts) -> list[TablePart]:
    parts = (part for table in source.tables for part in table.parts)
    return list({part.name: part for part in parts}.values())


def _make_all_but_slot(
    database: SourceDatabase,
    source: SourceFacts,
    plan: PublicationPlan,
    tables: Sequence[TableName],
    user: NewUser | None,
) -> list[str]:
    """Make all changes but the slot: PostgreSQL creates none in a transaction that has written.

    Raises SourceSetupError, and changes nothing, when production could not write its tables afterwards.
    """
    password_hash = None if user is None else _new_password(database, user, tables)
    refused_before = database.refused_writes(_parts(source))
    with database.transaction():
        done = database.make(make_identities_full(without_identity(source)))
        done += database.make(make_publication(source.publication_name, plan, tables))
        # A publication can make production's own statements fail. The server tells, whatever the reason.
        # Test: test_a_publication_that_would_stop_productions_writes_is_taken_back_with_the_reason.
        if refused := database.refused_writes(_parts(source)):
            raise list_problems(
                [_describe(write, refused_before) for write in refused], "nothing was changed"
            )
        if user is not None:
            done += _make_account(database, source, tables, user.name, password_hash)
    return done


def _describe(write: RefusedWrite, refused_before: Sequence[RefusedWrite]) -> str:
    when = "is refused already" if write in refused_before else "would be refused from then on"
    return (
        f"table {write.part}: production's {write.verb} {when}: {write.reason}: give the table a primary"
        f" key of"
        " plain columns that are all published, or take it out of source.tables"
    )


def _drop_roles(database: SourceDatabase, name: str, report: Report) -> bool:
    """Drop the roles that setups have made for the database *name*; return whether there was one. Roles that
    others need stay."""
    is_any = False
    for role in database.read_made_roles(name):
        label = f"role {quote(role.name)}"
        if role.owns:
            report(f"{label} stays: it owns objects: REASSIGN OWNED BY {quote(role.name)} TO …; and again")
        elif role.elsewhere:
            report(
                f"{label} stays: it has rights in {', '.join(role.elsewhere)}: run --drop --all there first"
            )
        else:
            for line in database.drop_role(role.name):
                report(line)
            is_any = True
    return is_any


def _tell_of_identities(source: SourceFacts, report: Report) -> None:
    """Tell which tables write their whole old rows into the WAL: only their owner knows for whom."""
    for part in _parts(source):
        if part.identity == "f":
            report(
                f"table {part.name} keeps REPLICA IDENTITY FULL; if nobody else needs it:"
                f" ALTER TABLE {quote_table(part.name)} REPLICA IDENTITY DEFAULT;"
            )


def _new_password(database: SourceDatabase, user: NewUser, tables: Sequence[TableName]) -> str | None:
    """Return the hash of the password that the role is to get, or None when it keeps its own."""
    exists = database.read_account(user.name, tables).exists
    if exists and not user.sets_password:
        return None
    return database.hash_password(user.name, user.ask_password())


def _make_account(
    database: SourceDatabase,
    source: SourceFacts,
    tables: Sequence[TableName],
    name: str,
    password_hash: str | None,
) -> list[str]:
    database_name = source.server.database
    account, membership = database.read_account(name, tables), database.read_membership()
    done = database.make(make_account(account, database_name, password_hash, membership=membership))
    if not account.exists:  # Now that it exists, the server can tell which rights it has through PUBLIC.
        account = database.read_account(name, tables)
        done += database.make(make_account(account, database_name, None, membership=membership))
    if lacks_rights(database.read_account(name, tables)):
        raise SourceSetupError(
            f"role {source.role.name} may not grant role {name} what it needs; nothing was changed",
            hint="run the setup as the tables' owner or as a superuser",
        )
    return done


def _refuse(findings: Sequence[Finding]) -> None:
    problems = [str(found) for found in findings if found.level == "missing" and not found.is_mended_by_setup]
    if problems:
        raise list_problems(problems, "nothing was changed")


def _refuse_to_drop(source: SourceFacts) -> None:
    slot, name, publication = source.slot, source.slot_name, source.publication
    if slot is not None and (reason := foreign_slot(slot, source.server.database)) is not None:
        raise SlotError(f"slot {name} {reason}", hint="choose another source.slot_name; nothing was changed")
    if slot is not None and slot.reader is not None:
        raise SlotError(
            f"slot {name} is in use by {slot.reader}", hint="stop the archiver first; nothing was changed"
        )
    if publication is not None and not publication.is_owned:
        raise SourceSetupError(
            f"publication {quote(source.publication_name)} belongs to another role; nothing was changed",
            hint="drop it as its owner or as a superuser",
        )
