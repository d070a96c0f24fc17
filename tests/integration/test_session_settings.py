"""Whatever a role or a database has set for its applications, a session of ours is the same."""

from __future__ import annotations

from typing import Any

import pytest

from syncdata.capture.source import connect, connect_for_replication
from syncdata.connections import AliasSession
from syncdata.provision.database import open_source
from syncdata.runtime.session_settings import SESSION_SETTINGS
from tests.production import Production, differences
from tests.world import World

# The worst that ALTER DATABASE … SET may do, for each setting that is pinned.
NASTY = {
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "timezone": "Asia/Kolkata",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "lc_monetary": "C.UTF-8",
    "quote_all_identifiers": "on",
    "xmloption": "document",
    "xmlbinary": "hex",
    "array_nulls": "off",
    "statement_timeout": "1s",
    "lock_timeout": "1s",
    "transaction_timeout": "1s",
    "idle_in_transaction_session_timeout": "1s",
    "idle_session_timeout": "1s",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "transform_null_equals": "on",
    "check_function_bodies": "off",
    "exit_on_error": "on",
    "default_table_access_method": "heap",
    "client_min_messages": "error",
}


def spoil(side: Production | World, settings: dict[str, str]) -> None:
    """Set *settings* for the database of *side*, as far as its server knows them."""
    with side.connect() as connection:
        known = {name.lower() for (name,) in connection.execute("SELECT name FROM pg_settings")}
        for name in settings.keys() & known:
            value = ", ".join(f"'{part}'" for part in settings[name].split(", "))
            connection.execute(f"ALTER DATABASE {side.database.name} SET {name} = {value}")


def test_every_setting_has_its_worst_case() -> None:
    assert NASTY.keys() == SESSION_SETTINGS.keys()
    # Only heap is there on every server; a database with another default is seen by its statement alone.
    assert {name for name in NASTY if NASTY[name] == SESSION_SETTINGS[name]} == {
        "default_table_access_method"
    }


def pinned(connection: Any) -> dict[str, str]:
    rows = connection.execute("SELECT lower(name) AS name, setting AS value FROM pg_settings").fetchall()
    found = {row["name"]: row["value"] for row in rows} if isinstance(rows[0], dict) else dict(rows)
    return {name: found[name] for name in SESSION_SETTINGS if name in found}


def test_every_setting_that_results_depend_on_is_pinned_on_both_sides(
    world: World, production: Production
) -> None:
    spoil(world, NASTY)
    spoil(production, NASTY)
    session = AliasSession(world.alias)
    local = pinned(session.connect())
    session.close()
    with connect(production.database.params) as connection:
        ordinary = pinned(connection)
    with connect_for_replication(production.database.params) as connection:
        replication = pinned(connection)
    with open_source(production.database.params) as source:
        setup = pinned(source._connection)
    expected = {name: value for name, value in SESSION_SETTINGS.items() if name in local}
    assert len(expected) == len(SESSION_SETTINGS)
    assert local == ordinary == replication == expected
    assert setup == expected | {"row_security": "on"}


@pytest.mark.parametrize("is_ordinary", [False, True])
def test_settings_of_the_role_or_the_database_change_no_result(
    world: World, production: Production, is_ordinary: bool
) -> None:
    """The timeouts are short here, and a trigger takes its time in each batch and in the resync."""
    for side in (world, production):
        side.execute(
            "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, x float8, b bytea, i interval, n money,"
            " a text[], d date, v text)",
            "CREATE TABLE bag (at timestamptz, x float8, a text[])",
            "ALTER TABLE bag REPLICA IDENTITY FULL",
        )
    world.execute(
        "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN IF new.id = 1 THEN PERFORM pg_sleep(1.3); END IF; RETURN new; END'",
        "CREATE TRIGGER naps BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION nap()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER naps",
    )
    production.publish("t", "bag")
    world.archive = production.archive_dir
    world.whitelist("t", "bag")
    if is_ordinary:
        world.use_ordinary_role()
    rows = (
        "SELECT n, timestamptz '2026-02-03 04:05:06.789+00' + n * interval '1 hour', n / 3.0::float8,"
        " '\\x00ff5c'::bytea, interval '-1 year 2 days 03:04:05.6', 12.34::numeric::money,"
        " '{NULL,\"NULL\",\"a\\\\b\"}'::text[], date '2026-02-03', E'\\\\ ''ä'' = NULL'"
    )
    with production.connect() as connection:
        # Sessions that are open keep their settings: production's own is as it always was.
        spoil(world, NASTY)
        spoil(production, NASTY)
        connection.execute(f"INSERT INTO t {rows} FROM generate_series(1, 20) n")
        connection.execute("INSERT INTO bag SELECT at, x, a FROM t")
        production.archive()
        production.snapshot("t", "bag")
        connection.execute("UPDATE t SET x = x / 7, i = -i WHERE id < 9")
        connection.execute("DELETE FROM bag WHERE x < 3")
        connection.execute("UPDATE t SET id = id + 100 WHERE id = 12")
    assert world.sync().errors == ()
    production.archive()
    assert world.sync().errors == ()
    assert differences(production.database, world.database, ["t", "bag"]) == []
    with world.service() as service:
        service.resync("t")
        service.resync("bag")
    assert differences(production.database, world.database, ["t", "bag"]) == []
