"""Makes the findings of a check: each thing that logical replication needs at the source, there or missing.

Knows the needs, and the remedies in SQL; asks no server: it works on the values of facts.py. The setup
itself makes a missing publication or slot; for everything else that is missing, the finding tells the
operator what to do first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from syncdata.capture.slot import Slot
from syncdata.changes.names import TableName
from syncdata.provision.facts import (
    Failover,
    Publication,
    PublicationPlan,
    Role,
    Server,
    SourceFacts,
    TableFacts,
    TablePart,
    foreign_slot,
    plan_publication,
    quote,
    quote_table,
    wants_failover,
)
from syncdata.provision.findings import Finding, by_setup, missing, note, ok
from syncdata.provision.privacy_plan import NO_PRIVACY, PrivacyPlan

OLDEST_VERSION = 14


def examine(
    source: SourceFacts,
    *,
    identity_full: bool = False,
    widens: bool = False,
    failover: Failover = "auto",
    privacy: PrivacyPlan = NO_PRIVACY,
) -> list[Finding]:
    """Return all findings, in the order in which an operator would mend them.

    *identity_full*: the setup will give tables without a usable key REPLICA IDENTITY FULL. *widens*: it will
    publish all of what somebody has published in part. *failover*: the slot is to survive a failover.
    *privacy*: what a policy lets travel, and what it finds.
    """
    return [
        *_server(source.server),
        *_capacity(source),
        *_role(source.role, source.server),
        *(finding for table in source.tables for finding in _table(table, source.role, identity_full)),
        *_named_twice(source),
        *privacy.findings,
        *_publication(source, privacy, widens=widens),
        *_slot(source),
        *_failover(source, failover),
    ]


def _server(server: Server) -> Iterator[Finding]:
    if server.version_num // 10_000 < OLDEST_VERSION:
        yield missing(f"PostgreSQL {server.version} is too old", f"{OLDEST_VERSION} or later is needed")
    else:
        yield ok(f"PostgreSQL {server.version}")
    if server.is_in_recovery:
        yield missing("the server is a standby", "set source.pg_host to the primary")
    if server.wal_level == "logical":
        yield ok("wal_level is logical")
    else:
        yield missing(f"wal_level is {server.wal_level}", _restart(server, "wal_level", "logical"))
    if server.encoding == "SQL_ASCII":
        yield missing(
            "the database's encoding is SQL_ASCII: the server does not know which characters its bytes stand"
            " for, so they cannot be written as UTF-8",
            "move the data into a database with an encoding: pg_dump, createdb -T template0 -E UTF8,"
            " pg_restore",
        )
    yield from _wal_limits(server)


_LOGICAL_DECODING = {
    "rds_superuser": "rds.logical_replication = 1",
    "cloudsqlsuperuser": "cloudsql.logical_decoding = on",
}


def _restart(server: Server, setting: str, value: str) -> str:
    """Return how a setting is changed that needs a restart."""
    if server.marker is None:
        return f"ALTER SYSTEM SET {setting} = {value}; then restart the server"
    told = f"{setting} = {value}"
    if setting == "wal_level":
        told = _LOGICAL_DECODING.get(server.marker, told)
    return f"set {told} in the service's parameters, and restart the server there"


def _reload(server: Server, setting: str, value: str) -> str:
    """Return how a setting is changed that needs no restart."""
    if server.marker is None:
        return f"ALTER SYSTEM SET {setting} = {value}; SELECT pg_reload_conf();"
    return f"set {setting} = {value} in the service's parameters"


def _wal_limits(server: Server) -> Iterator[Finding]:
    advised_mib = max(10 * 1024, 4 * server.max_wal_mib)
    advice = (
        _reload(server, "max_slot_wal_keep_size", f"'{advised_mib // 1024}GB'")
        + " (at most what the disk can spare)"
    )
    if server.keep_mib == -1:
        yield note(
            "max_slot_wal_keep_size is unlimited: an archiver that is stopped for long fills the disk", advice
        )
    elif server.keep_mib < server.max_wal_mib:
        yield note(
            f"max_slot_wal_keep_size is only {server.keep_mib} MB, less than max_wal_size: the slot is lost"
            " soon after the archiver stops",
            advice,
        )
    else:
        yield ok(f"max_slot_wal_keep_size is {server.keep_mib} MB")
    if server.idle_timeout:
        yield note(
            "idle_replication_slot_timeout is on: the slot is lost when the archiver is stopped for so long",
            _reload(server, "idle_replication_slot_timeout", "0"),
        )


def _capacity(source: SourceFacts) -> Iterator[Finding]:
    """Check for free slots and WAL senders: the archiver needs one of each; a snapshot, one more."""
    server, slot = source.server, source.slot
    slots, senders = 1 if slot else 2, 1 if slot and slot.reader else 2
    rows = [
        ("max_replication_slots", "slots", server.max_slots, server.used_slots, slots),
        ("max_wal_senders", "senders", server.max_senders, server.used_senders, senders),
    ]
    for setting, noun, limit, used, needed in rows:
        free = limit - used
        if free >= needed:
            yield ok(f"{free} of {limit} replication {noun} are free")
        else:
            yield missing(
                f"{max(free, 0)} of {limit} replication {noun} are free, and {needed} are needed",
                _restart(server, setting, str(used + needed)),
            )


def _role(role: Role, server: Server) -> Iterator[Finding]:
    if role.is_superuser or role.may_replicate:
        yield ok(f"role {role.name} may replicate")
        return
    remedy = f"ALTER ROLE {quote(role.name)} REPLICATION;"
    if server.marker == "rds_superuser":
        remedy = f"GRANT rds_replication TO {quote(role.name)};"
    yield missing(f"role {role.name} may not replicate", remedy)


_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
}


def _table(table: TableFacts, role: Role, identity_full: bool) -> Iterator[Finding]:
    label = f"table {table.name}"
    if (reason := _unfit(table.kind, table.persistence)) is not None:
        yield missing(f"{label} {reason}", "take it out of source.tables, or mend the name")
        return
    problems = [*_rights(table, role), *_identities(table, identity_full), *_generated_keys(table)]
    yield from problems or [ok(f"{label}: {_describe_identity(table.parts[0])}")]
    if table.has_children:
        yield note(
            f"{label} has child tables by inheritance, whose rows are their own",
            "name them in source.tables, too",
        )
    if table.kind == "p" and not table.parts[0].has_key:
        # A new partition inherits the primary key of its root, but not the replica identity.
        yield note(
            f"{label} is partitioned and has no usable primary key: updates of a partition that is added"
            " later fail until it has the identity, too",
            "ALTER TABLE … REPLICA IDENTITY FULL for each new partition",
        )
    if table.kind == "p":
        yield note(
            f"{label} is partitioned: what TRUNCATE, DROP and DETACH of a partition take away is in no"
            " record, nor are the rows of one that is attached",
            "the archiver then takes a snapshot, from which readers rebuild the table; where it is larger"
            f" than source.snapshot_bytes, run archive_changes --snapshot {table.name}",
        )


def _unfit(kind: str | None, persistence: str | None) -> str | None:
    """Return the reason why changes of such a relation cannot be captured, or None when they can."""
    if kind is None:
        return "does not exist"
    if kind not in ("r", "p"):
        return f"is {_KINDS.get(kind, 'no table')}"
    return "is unlogged" if persistence == "u" else None


def _rights(table: TableFacts, role: Role) -> Iterator[Finding]:
    label, grantee = f"table {table.name}", quote(role.name)
    if not table.has_usage:
        schema = quote(table.name.schema)
        yield missing(f"{label}: no right to use its schema", f"GRANT USAGE ON SCHEMA {schema} TO {grantee};")
    if not table.may_select:
        name = quote_table(table.name)
        yield missing(
            f"{label}: no right to read it, which snapshots need", f"GRANT SELECT ON {name} TO {grantee};"
        )
    elif table.hides_rows:
        yield missing(
            f"{label}: row security hides rows from snapshots",
            f"ALTER ROLE {grantee} BYPASSRLS;",
        )


def _identities(table: TableFacts, identity_full: bool) -> Iterator[Finding]:
    for part in table.parts:
        label = f"table {table.name}"
        if part.name != table.name:
            label += f", partition {part.name}"
        if (reason := _unfit(part.kind, part.persistence)) is not None:
            yield missing(
                f"{label} {reason}", "its changes are not in the WAL; detach it, or take the table out"
            )
        elif not part.is_locatable:
            yield _identity_missing(label, part, identity_full)


def _generated_keys(table: TableFacts) -> Iterator[Finding]:
    """Refuse keys with generated columns: they are not in the stream, so no change says which row it is of;
    and from version 18 on the server refuses production's own UPDATEs and DELETEs of a published one."""
    generated = tuple(dict.fromkeys(name for part in table.parts for name in part.generated_keys))
    if generated:
        yield missing(
            f"table {table.name} is identified by the generated column {', '.join(generated)}, which no"
            f" change"
            " carries",
            "give it a primary key of columns that are not generated, or take it out of source.tables",
        )


def _named_twice(source: SourceFacts) -> Iterator[Finding]:
    names = {table.name for table in source.tables}
    for table in source.tables:
        for root in table.roots:
            if root in names:
                yield missing(
                    f"table {table.name} is a partition of {root}, which is named, too: its changes are"
                    f" published"
                    f" as those of {root}",
                    f"take {table.name} out of source.tables",
                )
                break


def _identity_missing(label: str, part: TablePart, identity_full: bool) -> Finding:
    text = f"{label} {_describe_identity(part)}, so its updates and deletes cannot be followed"
    name = quote_table(part.name)
    if identity_full and part.is_owned:
        return Finding(
            level="missing", text=text, remedy="setup sets REPLICA IDENTITY FULL", is_mended_by_setup=True
        )
    to_default = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    to_full = f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
    if part.has_key:
        return missing(text, to_default)
    how = "as its owner" if identity_full else "or --identity-full"
    return missing(text, f"add a primary key, or: {to_full} ({how})")


def _describe_identity(part: TablePart) -> str:
    if part.identity == "n":
        return "has REPLICA IDENTITY NOTHING"
    if part.identity == "f":
        return "has REPLICA IDENTITY FULL"
    if part.identity == "i":
        return f"{'is' if part.has_identity_index else 'was'} identified by a unique index" + (
            "" if part.has_identity_index else " that is gone or not valid"
        )
    if part.has_key:
        return "has a primary key"
    return "has only a deferrable primary key" if part.has_deferrable_key else "has no primary key"


def _publication(source: SourceFacts, privacy: PrivacyPlan, *, widens: bool) -> Iterator[Finding]:
    name, publication = quote(source.publication_name), source.publication
    wanted = privacy.published([table.name for table in source.tables])
    plan = plan_publication(publication, wanted, parts=privacy.parts, widens=widens)
    if publication is not None and publication.is_for_all_tables:
        yield missing(
            f"publication {name} is FOR ALL TABLES",
            f"choose another source.publication, or: DROP PUBLICATION {name};",
        )
        return
    narrowed = [] if publication is None or widens else [*_narrowed(source, publication, privacy, wanted)]
    yield from narrowed
    if not plan.is_empty:
        yield from _publication_rights(source, plan)
        yield by_setup(f"publication {name} {_describe_plan(plan)}")
    elif not narrowed:
        yield ok(f"publication {name} is as configured")


def _narrowed(
    source: SourceFacts, publication: Publication, privacy: PrivacyPlan, wanted: Sequence[TableName]
) -> Iterator[Finding]:
    """Tell what somebody has taken out of the publication: the setup widens nothing unless it is told to.

    A part of a table is a copy of its own, and is kept. Without all kinds of changes, or with partitions
    under their own names, the copies could only go wrong.
    """
    name = quote(source.publication_name)
    for table in wanted:
        if (part := publication.partial.get(table)) is not None and table not in privacy.parts:
            yield note(
                f"publication {name} has only a part of {table}: {part}",
                "it stays so, and local machines get no more; setup_logical_replication --widen publishes"
                " all",
            )
    yield from privacy.compare(name, publication.partial)
    if publication.lacks:
        yield missing(
            f"publication {name} does not publish {', '.join(publication.lacks)}: copies would keep what"
            " production has changed",
            "let --widen add it, or choose another source.publication",
        )
    roots = [str(table.name) for table in source.tables if table.kind == "p"]
    if roots and not publication.is_via_root:
        yield missing(
            f"publication {name} publishes the partitions of {', '.join(roots)} under their own names",
            "let --widen set publish_via_partition_root, or choose another source.publication",
        )


def _publication_rights(source: SourceFacts, plan: PublicationPlan) -> Iterator[Finding]:
    role, name = source.role, quote(source.publication_name)
    if plan.is_new and not role.may_create:
        database = quote(source.server.database)
        yield missing(
            f"role {role.name} may not create the publication",
            f"GRANT CREATE ON DATABASE {database} TO {quote(role.name)}; or run the setup as a superuser",
        )
    if source.publication is not None and not source.publication.is_owned:
        yield missing(f"publication {name} belongs to another role", "run the setup as its owner")
    if not (plan.is_new or plan.changes_tables):
        return
    for table in source.tables:
        is_added = table.name in plan.added + plan.made_whole + plan.narrowed
        if is_added and table.kind is not None and not table.is_owned:
            yield missing(
                f"table {table.name} can be published only by its owner",
                "run the setup as its owner or as a superuser",
            )


def _describe_plan(plan: PublicationPlan) -> str:
    if plan.is_new:
        return "does not exist"
    parts = [
        *(f"lacks {table}" for table in plan.added),
        *(f"has {table}, which is not configured" for table in plan.dropped),
        *(f"has only a part of {table}" for table in plan.made_whole),
        *(f"has more of {table} than the privacy policy lets travel" for table in plan.narrowed),
        *(f"has the whole schema {schema}" for schema in plan.dropped_schemas),
        *(["has other options"] if plan.corrects_options else []),
    ]
    return ", ".join(parts)


def _slot(source: SourceFacts) -> Iterator[Finding]:
    name, slot = source.slot_name, source.slot
    if slot is None:
        yield by_setup(f"slot {name} does not exist")
    elif (reason := foreign_slot(slot, source.server.database)) is not None:
        yield missing(f"slot {name} {reason}", "choose another source.slot_name")
    elif slot.wal_status == "lost":
        yield missing(
            f"slot {name} is lost, and with it the changes since it was read last",
            "run the setup with --drop, then again, and take new snapshots",
        )
    elif slot.wal_status == "unreserved":
        yield note(f"slot {name} is about to be lost", "start the archiver now")
    else:
        yield ok(f"slot {name} exists" + (f", in use by {slot.reader}" if slot.reader else ""))


def _failover(source: SourceFacts, failover: Failover) -> Iterator[Finding]:
    server, slot, name = source.server, source.slot, source.slot_name
    if failover == "true" and not server.has_failover_slots:
        yield missing(
            f"source.failover is true, but PostgreSQL {server.version} keeps no slots on standbys",
            'set it to "auto": 17 or later is needed',
        )
    if server.is_in_recovery or not wants_failover(server, failover):
        return
    if slot is not None and not slot.is_failover:
        yield from _without_failover(slot, failover)
    if server.standby_slots and not server.waits_for_standbys:
        yield note(
            "synchronized_standby_slots is empty: the archiver may be ahead of a standby, and after a"
            " failover to"
            " such a one a new epoch is needed",
            _reload(server, "synchronized_standby_slots", f"'{', '.join(server.standby_slots)}'")
            + " (of standbys that may take over; the archiver then waits for them)",
        )
    if slot is not None and slot.is_failover:
        yield ok(f"slot {name} is kept on standbys that have sync_replication_slots = on")


def _without_failover(slot: Slot, failover: Failover) -> Iterator[Finding]:
    text = f"slot {slot.name} is not kept on standbys: after a failover it is gone"
    if failover == "auto":
        yield note(text, "set source.failover = true, stop the archiver, and run the setup again")
    elif slot.reader is not None:
        yield missing(
            f"{text}, and it is in use by {slot.reader}", "stop the archiver, and run the setup again"
        )
    else:
        yield by_setup(text)
