"""The statements that set up a source. Knows SQL, and the words for what each did; runs nothing:
database.py does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from psycopg import sql

from syncdata.changes.names import TableName
from syncdata.provision.facts import PublicationPlan, TablePart, quote

# A publication without one of the four loses those changes silently. Partitions are published under their
# root's name: local databases may be partitioned otherwise, but all have the root.
_OPTIONS = sql.SQL("publish = 'insert, update, delete, truncate', publish_via_partition_root = true")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupStep:
    """A statement, and the lines (``done``) that tell the operator of its effect."""

    statement: sql.Composed
    done: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The rights of the role that the archiver will log in as; it may not use ``unusable_schemas`` and not
    read ``unreadable_tables``."""

    name: str
    exists: bool
    is_superuser: bool
    may_login: bool
    may_replicate: bool
    may_connect: bool
    unusable_schemas: tuple[str, ...]
    unreadable_tables: tuple[TableName, ...]


def make_identities_full(parts: Iterable[TablePart]) -> Iterator[SetupStep]:
    for part in parts:
        yield SetupStep(
            statement=sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(_table(part.name)),
            done=f"table {part.name}: set REPLICA IDENTITY FULL",
        )


def make_publication(name: str, plan: PublicationPlan, wanted: Collection[TableName]) -> Iterator[SetupStep]:
    """Yield the steps of *plan*. *wanted*: all tables that the publication has afterwards."""
    label, publication = f"publication {quote(name)}", sql.Identifier(name)
    # ONLY: a child by inheritance is published when it is configured itself. Partitions are included anyway.
    tables = sql.SQL(", ").join(sql.SQL("ONLY {}").format(_table(table)) for table in wanted)
    if plan.is_new:
        yield SetupStep(
            statement=sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(
                publication, tables, _OPTIONS
            ),
            done=f"created {label} for {', '.join(map(str, wanted))}",
        )
        return
    if plan.changes_tables:
        # SET also makes tables whole that were published in part, and drops whole schemas.
        yield SetupStep(
            statement=sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(publication, tables),
            done="\n".join(
                [
                    *(f"{label}: added {table}" for table in plan.added),
                    *(f"{label}: dropped {table}" for table in plan.dropped),
                    *(f"{label}: publishes all of {table} now" for table in plan.made_whole),
                    *(f"{label}: dropped schema {schema}" for schema in plan.dropped_schemas),
                ]
            ),
        )
    if plan.corrects_options:
        yield SetupStep(
            statement=sql.SQL("ALTER PUBLICATION {} SET ({})").format(publication, _OPTIONS),
            done=f"{label}: corrected its options",
        )


def make_account(account: Account, database: str, password_hash: str | None) -> Iterator[SetupStep]:
    """Yield the steps that let the role log in, replicate and read the tables.

    *password_hash*: the password to set, as the server stores it; None leaves it as it is.
    """
    label, role = f"role {quote(account.name)}", sql.Identifier(account.name)
    if not account.exists:
        yield SetupStep(
            statement=sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(role),
            done=f"created {label} with LOGIN and REPLICATION",
        )
    elif not (account.may_login and (account.may_replicate or account.is_superuser)):
        yield SetupStep(
            statement=sql.SQL("ALTER ROLE {} LOGIN REPLICATION").format(role),
            done=f"{label}: granted LOGIN and REPLICATION",
        )
    if password_hash is not None:
        yield SetupStep(
            statement=sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password_hash)),
            done=f"{label}: set its password",
        )
    if not account.may_connect:
        yield _grant("CONNECT ON DATABASE", sql.Identifier(database), database, account.name)
    for schema in account.unusable_schemas:
        yield _grant("USAGE ON SCHEMA", sql.Identifier(schema), schema, account.name)
    for table in account.unreadable_tables:
        yield _grant("SELECT ON TABLE", _table(table), str(table), account.name)


def lacks_rights(account: Account) -> bool:
    """Return whether a right is still missing. Ask after granting: when the role that grants may not do so,
    the server only warns."""
    return not account.may_connect or bool(account.unusable_schemas or account.unreadable_tables)


def _grant(right: str, target: sql.Identifier, name: str, role: str) -> SetupStep:
    return SetupStep(
        statement=sql.SQL("GRANT {} {} TO {}").format(sql.SQL(right), target, sql.Identifier(role)),
        done=f"role {quote(role)}: granted {right} {name}",
    )


def _table(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)
