"""The statements that set up a source. Knows SQL, and the words for what each did; runs nothing:
database.py does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql

from syncdata.capture.publication import Part
from syncdata.changes.names import TableName
from syncdata.provision.facts import NO_PARTS, WHOLE, PublicationPlan, TablePart, quote

# A publication without one of the four loses those changes silently. Partitions are published under their
# root's name: local databases may be partitioned otherwise, but all have the root.
_OPTIONS = sql.SQL("publish = 'insert, update, delete, truncate', publish_via_partition_root = true")


def role_mark(database: str) -> str:
    """Return the comment of a role that a setup has made for *database*: --drop --all knows it by this."""
    return f"made by syncdata (setup_logical_replication --create-user) for the database {database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupStep:
    """A statement, and the lines (``done``) that tell the operator of its effect; empty: nothing to tell."""

    statement: sql.Composed
    done: str = ""


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
    if plan.is_new:
        yield SetupStep(
            statement=sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(
                publication, _tables(wanted, plan.parts), _OPTIONS
            ),
            done=f"created {label} for {', '.join(map(str, wanted))}",
        )
        return

    def alter(change: str, what: sql.Composed, *done: str) -> SetupStep:
        statement = sql.SQL("ALTER PUBLICATION {} {} {}").format(publication, sql.SQL(change), what)
        return SetupStep(statement=statement, done="\n".join(f"{label}: {line}" for line in done))

    # Each change by itself, never SET TABLE: that would make tables whole that somebody has published in
    # part.
    # Test: test_a_table_more_leaves_the_hidden_columns_of_the_others_hidden.
    # Schemas first: beside one, PostgreSQL takes no list of columns.
    if plan.dropped_schemas:
        schemas = sql.SQL(", ").join(map(sql.Identifier, plan.dropped_schemas))
        lines = (f"dropped schema {schema}" for schema in plan.dropped_schemas)
        yield alter("DROP TABLES IN SCHEMA", schemas, *lines)
    if altered := plan.made_whole + plan.narrowed:
        yield alter("DROP TABLE", _tables(altered))
        lines = (f"publishes {plan.parts.get(table, 'all')} of {table} now" for table in altered)
        yield alter("ADD TABLE", _tables(altered, plan.parts), *lines)
    if plan.added:
        yield alter("ADD TABLE", _tables(plan.added, plan.parts), *(f"added {table}" for table in plan.added))
    if plan.dropped:
        yield alter("DROP TABLE", _tables(plan.dropped), *(f"dropped {table}" for table in plan.dropped))
    if plan.corrects_options:
        yield SetupStep(
            statement=sql.SQL("ALTER PUBLICATION {} SET ({})").format(publication, _OPTIONS),
            done=f"{label}: corrected its options",
        )


def make_account(
    account: Account, database: str, password_hash: str | None, *, membership: str | None = None
) -> Iterator[SetupStep]:
    """Yield the steps that let the role log in, replicate and read the tables.

    *password_hash*: the password to set, as the server stores it; None leaves it as it is. *membership*: the
    role whose members may replicate, on a managed service where the attribute cannot be set.
    """
    label, role = f"role {quote(account.name)}", sql.Identifier(account.name)
    attributes = "LOGIN REPLICATION" if membership is None else "LOGIN"
    lacks_replication = not (account.may_replicate or account.is_superuser)
    if not account.exists:
        yield SetupStep(
            statement=sql.SQL("CREATE ROLE {} {}").format(role, sql.SQL(attributes)),
            done=f"created {label} with {attributes.replace(' ', ' and ')}",
        )
        yield SetupStep(
            statement=sql.SQL("COMMENT ON ROLE {} IS {}").format(role, sql.Literal(role_mark(database))),
        )
    elif not account.may_login or (lacks_replication and membership is None):
        yield SetupStep(
            statement=sql.SQL("ALTER ROLE {} {}").format(role, sql.SQL(attributes)),
            done=f"{label}: granted {attributes.replace(' ', ' and ')}",
        )
    if lacks_replication and membership is not None:
        yield SetupStep(
            statement=sql.SQL("GRANT {} TO {}").format(sql.Identifier(membership), role),
            done=f"{label}: granted membership in {membership}",
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


def drop_account(name: str) -> Iterator[SetupStep]:
    """Yield the steps that revoke all that the role has in this database, and drop it."""
    role = sql.Identifier(name)
    yield SetupStep(statement=sql.SQL("DROP OWNED BY {}").format(role))
    yield SetupStep(
        statement=sql.SQL("DROP ROLE {}").format(role), done=f"dropped role {quote(name)} and its rights"
    )


def lacks_rights(account: Account) -> bool:
    """Return whether a right is still missing. Ask after granting: when the role that grants may not do so,
    the server only warns."""
    return not account.may_connect or bool(account.unusable_schemas or account.unreadable_tables)


def _grant(right: str, target: sql.Identifier, name: str, role: str) -> SetupStep:
    return SetupStep(
        statement=sql.SQL("GRANT {} {} TO {}").format(sql.SQL(right), target, sql.Identifier(role)),
        done=f"role {quote(role)}: granted {right} {name}",
    )


def _tables(tables: Iterable[TableName], parts: Mapping[TableName, Part] = NO_PARTS) -> sql.Composed:
    return sql.SQL(", ").join(published_part(table, parts.get(table, WHOLE)) for table in tables)


def published_part(table: TableName, part: Part) -> sql.Composed:
    """Return *table* as a publication names it. The filter is SQL of the configuration, which the server has
    been asked about before."""
    # ONLY: a child by inheritance is published when it is configured itself. Partitions are included anyway.
    text = sql.SQL("ONLY {}").format(_table(table))
    if part.columns is not None:
        text += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, part.columns)))
    if part.row_filter is not None:
        text += sql.SQL(" WHERE ({})").format(sql.SQL(part.row_filter))
    return text


def _table(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)
