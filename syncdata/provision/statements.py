"""The statements that set up a source, from what is there and what is wanted. Pure; source.py runs them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from psycopg import sql

from syncdata.changes.names import TableName
from syncdata.provision.facts import PublicationPlan, Relation, quote

# What is left out of a publication is lost, silently. Partitions are published under their root's name:
# it is the root that exists everywhere.
_OPTIONS = sql.SQL("publish = 'insert, update, delete, truncate', publish_via_partition_root = true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A statement, and what it did in the operator's words."""

    statement: sql.Composed
    done: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a role may already do; ``unusable_schemas`` and ``unreadable_tables`` are what it may not."""

    name: str
    exists: bool
    is_superuser: bool
    may_login: bool
    may_replicate: bool
    may_connect: bool
    unusable_schemas: tuple[str, ...]
    unreadable_tables: tuple[TableName, ...]


def make_identities_full(relations: Iterable[Relation]) -> Iterator[Change]:
    for relation in relations:
        yield Change(
            statement=sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(_table(relation.name)),
            done=f"table {relation.name}: set REPLICA IDENTITY FULL",
        )


def make_publication(name: str, plan: PublicationPlan, wanted: Collection[TableName]) -> Iterator[Change]:
    """Yield what *plan* asks for. *wanted*: all tables that the publication has afterwards."""
    label, publication = f"publication {quote(name)}", sql.Identifier(name)
    # ONLY: a table that inherits is published when it is named itself. Partitions are included anyway.
    tables = sql.SQL(", ").join(sql.SQL("ONLY {}").format(_table(table)) for table in wanted)
    if plan.is_new:
        yield Change(
            statement=sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(
                publication, tables, _OPTIONS
            ),
            done=f"created {label} for {', '.join(map(str, wanted))}",
        )
        return
    if plan.changes_tables:
        # SET also makes tables whole that were published in part, and drops whole schemas.
        yield Change(
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
        yield Change(
            statement=sql.SQL("ALTER PUBLICATION {} SET ({})").format(publication, _OPTIONS),
            done=f"{label}: corrected its options",
        )


def make_account(account: Account, database: str, password_hash: str | None) -> Iterator[Change]:
    """Yield what the role lacks in order to replicate and to read the tables.

    *password_hash*: the password to set, as the server stores it; None leaves it as it is.
    """
    label, role = f"role {quote(account.name)}", sql.Identifier(account.name)
    if not account.exists:
        yield Change(
            statement=sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(role),
            done=f"created {label} with LOGIN and REPLICATION",
        )
    elif not (account.may_login and (account.may_replicate or account.is_superuser)):
        yield Change(
            statement=sql.SQL("ALTER ROLE {} LOGIN REPLICATION").format(role),
            done=f"{label}: granted LOGIN and REPLICATION",
        )
    if password_hash is not None:
        yield Change(
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
    """Whether anything is still missing; GRANT by who may not grant is a mere warning to the server."""
    return not account.may_connect or bool(account.unusable_schemas or account.unreadable_tables)


def _grant(right: str, target: sql.Identifier, name: str, role: str) -> Change:
    return Change(
        statement=sql.SQL("GRANT {} {} TO {}").format(sql.SQL(right), target, sql.Identifier(role)),
        done=f"role {quote(role)}: granted {right} {name}",
    )


def _table(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)
