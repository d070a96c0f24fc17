"""Checks of a real production's rows, made as the format says, and held against the rows of a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from syncdata.apply.postgres.target import Target
from syncdata.apply.sink import Verdict
from syncdata.apply.state.checkpoints import read_checkpoint
from syncdata.apply.state.verifications import Verification, summaries
from syncdata.changes.catalog import Catalog, parse_catalog
from syncdata.changes.names import TableName
from syncdata.changes.verification import SESSION, Check, hash_of_rows
from tests.production import Production
from tests.world import World

Key = tuple[str, ...]


def follow(production: Production, world: World, *tables: str) -> None:
    """Have *world* hold the rows that *tables* have in production."""
    production.publish(*tables)
    production.archive()
    world.archive = production.archive_dir
    production.snapshot(*tables)
    world.whitelist(*tables)
    assert world.sync().errors == ()


def check_of(
    production: Production,
    table: str,
    *columns: str,
    key: Key = (),
    after: Key | None = None,
    upto: Key | None = None,
    keys: Sequence[Key] | None = None,
    of_number: bool = False,
    **options: Any,
) -> Check:
    """Return what production has in *table* now. Bounds are compared as the types of the key order them."""
    name = TableName.parse(table)
    names = sql.SQL(", ").join(map(sql.Identifier, key))
    parts: list[sql.Composable] = []
    for sign, bound in ((">", after), ("<=", upto)):
        if bound is not None:
            values = sql.SQL(", ").join(map(sql.Literal, bound))
            parts.append(sql.SQL("({}) {} ({})").format(names, sql.SQL(sign), values))
    if keys is not None:
        rows = (sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, values))) for values in keys)
        parts.append(sql.SQL("({}) IN ({})").format(names, sql.SQL(", ").join(rows)))
    with production.connect() as connection:
        for setting, value in (SESSION | {"client_encoding": "UTF8", "search_path": "pg_catalog"}).items():
            connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
        (kind,) = connection.execute(
            "SELECT relkind FROM pg_class WHERE oid = %s::regclass",
            (sql.Identifier(name.schema, name.name).as_string(None),),
        ).fetchone() or ("",)
        query = sql.SQL("SELECT count(*), {}, pg_current_wal_lsn()::text FROM {} {}{}").format(
            sql.SQL(hash_of_rows([sql.Identifier(column).as_string(None) for column in columns])),
            sql.SQL("" if kind == "p" else "ONLY"),
            sql.Identifier(name.schema, name.name),
            sql.SQL(" WHERE ") + sql.SQL(" AND ").join(parts) if parts else sql.SQL(""),
        )
        row = connection.execute(query).fetchone()
    assert row is not None
    rows, digest, lsn = row
    defaults: dict[str, Any] = {"round": 1, "chunk": 1, "seen": rows}
    return Check(
        schema=name.schema,
        table=name.name,
        columns=columns,
        rows=rows,
        hash=None if of_number else digest,
        lsn=lsn,
        key=key,
        after=after,
        upto=upto,
        keys=None if keys is None else tuple(keys),
        **defaults | options,
    )


def catalog_of(production: Production) -> Catalog:
    """Return the newest catalog in the archive."""
    files = (production.archive_dir / "catalog").glob("*.json")
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    return parse_catalog(newest.read_bytes(), f"catalog/{newest.name}")


def hold(world: World, published: Catalog | None, *checks: Check) -> list[Verdict]:
    """Hold the rows of *world* to *checks*, as if it stood exactly there."""
    with world.connect() as connection:
        target = Target(connection, metric_freq_hours=24)
        verdicts = []
        for check in checks:
            checkpoint = read_checkpoint(connection, check.name)
            assert checkpoint is not None
            position = checkpoint.position
            verdicts += target.verify([check], published, position=position)
    return verdicts


def outcome(world: World, published: Catalog | None, check: Check) -> bool | None:
    (verdict,) = hold(world, published, check)
    return verdict.is_equal


def marks(world: World, table: str) -> list[str]:
    """Return the kinds of the marks of *table*."""
    rows = world.rows(
        "SELECT m ->> 'kind' FROM data_sync_checkpoints, jsonb_array_elements(marks) m"
        f" WHERE table_name = '{table}'"
    )
    return [kind for (kind,) in rows]


def summary(world: World, table: str) -> Verification:
    with world.connect() as connection:
        return summaries(connection).get(table, Verification())
