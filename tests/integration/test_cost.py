"""What a batch costs follows the rows that it changes, not those that are there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.world import World, delete, insert, update

ROWS = 50_000

TABLES = (
    "CREATE TABLE owner (id int PRIMARY KEY, v text)",
    "CREATE TABLE big (id serial PRIMARY KEY, a int, b text UNIQUE, v text, doc jsonb,"
    " owner int REFERENCES owner DEFERRABLE)",
    "CREATE INDEX ON big (a, v)",
    "CREATE INDEX ON big (lower(v)) WHERE a > 5",
    "CREATE INDEX ON big (owner)",
    "CREATE TABLE part (id int PRIMARY KEY DEFERRABLE, big int REFERENCES big ON DELETE CASCADE, v text)",
    "CREATE INDEX ON part (big)",
    "INSERT INTO owner SELECT n, 'o' FROM generate_series(1, 1000) n",
    f"INSERT INTO big SELECT n, n % 100, 'b' || n, 'v', '{{}}', n % 1000 + 1"
    f" FROM generate_series(1, {ROWS}) n",
    f"INSERT INTO part SELECT n, n, 'p' FROM generate_series(1, {ROWS}) n",
    "UPDATE part SET big = 1 WHERE id = 502",
    "ANALYZE",
)


@pytest.mark.parametrize("is_ordinary", [False, True])
def test_a_batch_of_few_rows_reads_no_table_or_index_as_a_whole(world: World, is_ordinary: bool) -> None:
    world.execute(*TABLES)
    world.whitelist("big", "part", "owner")
    if is_ordinary:
        world.use_ordinary_role()
    read = (
        "SELECT coalesce(sum(seq_tup_read), 0)::bigint,"
        " (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN ('big', 'part'))::bigint"
        " FROM pg_stat_user_tables WHERE relname IN ('big', 'part')"
    )
    world.execute("SELECT pg_stat_force_next_flush()")
    ((seq_before, idx_before),) = world.rows(read)
    world.write(
        "changes_20260205_103000.json",
        [
            insert("big", id=ROWS + 1, a=1, b="new", v="x", doc="{}", owner=5),
            update("big", {"id": 500}, id=500, a=2, b="b500", v="y", doc="{}", owner=6),
            update("big", {"id": 501}, id=501, v="partial"),
            update("big", {"id": 502}, id=ROWS + 2, v="moved"),
            delete("part", id=700),
            insert("part", id=ROWS + 1, big=ROWS + 1, v="x"),
            update("part", {"id": 701}, id=701, v="y"),
            delete("big", id=700),
        ],
    )
    assert world.sync().errors == ()
    assert world.rows("SELECT id, v FROM big WHERE id IN (500, 501, 700) ORDER BY id") == [
        (500, "y"),
        (501, "partial"),
    ]
    ((seq_after, idx_after),) = world.rows(read)
    assert seq_after - seq_before == 0
    assert idx_after - idx_before < 200
    assert world.value("SELECT last_value FROM big_id_seq") == ROWS + 2


# Shapes of tables, each with MANY rows; ``t`` is the large one. What a batch of few rows reads of them, in
# blocks of tables and indexes together, must not grow with them: as a whole, each has more than 400.
FEW_BLOCKS = 200
MANY = 20_000
FILL = f"FROM generate_series(1, {MANY}) n"
V = "repeat('v', 150)"


def whole(**key: Any) -> dict[str, Any]:
    return update("t", **key, v="new")


SHAPES: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "a sequence without an index": (
        ["CREATE TABLE t (id serial, k int PRIMARY KEY, v text)", f"INSERT INTO t SELECT n, n, {V} {FILL}"],
        [whole(id=5, k=5), insert("t", id=MANY + 1, k=0, v="x"), delete("t", k=7)],
    ),
    "a sequence in the second column of the key": (
        [
            "CREATE TABLE t (tenant int, id serial, v text, PRIMARY KEY (tenant, id))",
            f"INSERT INTO t SELECT n % 10, n, {V} {FILL}",
        ],
        [whole(tenant=5, id=5), insert("t", tenant=1, id=MANY + 1, v="x"), delete("t", tenant=7, id=7)],
    ),
    "a key of two columns that changes": (
        [
            "CREATE TABLE t (a int, b text, v text, PRIMARY KEY (a, b))",
            f"INSERT INTO t SELECT n % 10, 'b' || n, {V} {FILL}",
        ],
        [whole(a=0, b="b10"), delete("t", a=7, b="b7"), update("t", {"a": 8, "b": "b8"}, a=9, b="c")],
    ),
    "an identity beside the primary key": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, k text NOT NULL UNIQUE, v text)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX t_k_key",
            f"INSERT INTO t SELECT n, 'k' || n, {V} {FILL}",
        ],
        [
            whole(k="k5"),
            insert("t", id=0, k="q", v="x"),
            delete("t", k="k7"),
            update("t", {"k": "k8"}, k="c"),
        ],
    ),
    "unique values that swap": (
        ["CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE)", f"INSERT INTO t SELECT n, {V} || n {FILL}"],
        [
            update("t", id=1, v="x"),
            update("t", id=2, v="y"),
            update("t", id=1, v="y"),
            update("t", id=2, v="x"),
        ],
    ),
    "a deferrable key": (
        [
            "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)",
            f"INSERT INTO t SELECT n, {V} {FILL}",
        ],
        [update("t", {"id": 1}, id=2, v="x"), update("t", {"id": 2}, id=1, v="y"), whole(id=5), whole(id=0)],
    ),
    "a table that refers to itself": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, p int REFERENCES t ON DELETE SET NULL, v text)",
            "CREATE INDEX ON t (p)",
            f"INSERT INTO t SELECT n, nullif(n / 2, 0), {V} {FILL}",
        ],
        [delete("t", id=MANY), insert("t", id=0, p=5, v="x"), update("t", id=50, p=60, v="x")],
    ),
    "a hundred partitions": (
        [
            "CREATE TABLE t (id serial, day int, v text, PRIMARY KEY (id, day)) PARTITION BY LIST (day)",
            "DO $$ BEGIN FOR day IN 0..99 LOOP EXECUTE"
            " format('CREATE TABLE t_%s PARTITION OF t FOR VALUES IN (%s)', day, day); END LOOP; END $$",
            f"INSERT INTO t SELECT n, n % 100, {V} {FILL}",
        ],
        [
            *(whole(id=5, day=5), insert("t", id=MANY + 1, day=1, v="x"), delete("t", id=7, day=7)),
            update("t", {"id": 8, "day": 8}, id=8, day=9, v="x"),
        ],
    ),
    "a table that inherits": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (t)",
            *(f"INSERT INTO {table} SELECT n, {V} {FILL}" for table in ("t", "child")),
        ],
        [whole(id=5), insert("t", id=0, v="x"), delete("t", id=7), update("t", {"id": 8}, id=-1, v="x")],
    ),
    "an identity that is always generated, outside the key": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, rev int GENERATED ALWAYS AS IDENTITY, v text)",
            f"INSERT INTO t OVERRIDING SYSTEM VALUE SELECT n, n, {V} {FILL}",
        ],
        [update("t", id=5, rev=MANY + 5, v="x"), insert("t", id=0, rev=MANY + 6, v="x"), delete("t", id=7)],
    ),
    "a trigger that is awake": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            f"INSERT INTO t SELECT n, {V} {FILL}",
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
            "CREATE TRIGGER r BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()",
            "ALTER TABLE t ENABLE ALWAYS TRIGGER r",
        ],
        [whole(id=5), insert("t", id=0, v="x"), delete("t", id=7), update("t", {"id": 8}, id=-1, v="x")],
    ),
    "indexes of all kinds and a generated column": (
        [
            "CREATE TABLE t (id int PRIMARY KEY, v text, w text GENERATED ALWAYS AS (upper(v)) STORED,"
            " a int[], r int4range)",
            f"INSERT INTO t (id, v, a, r) SELECT n, {V}, ARRAY[n], int4range(n, n + 1) {FILL}",
            "CREATE INDEX ON t USING gin (a)",
            "CREATE INDEX ON t USING gist (r)",
            "CREATE INDEX ON t USING brin (id)",
            "CREATE INDEX ON t USING hash (w)",
        ],
        [
            *(update("t", id=5, v="x", a="{1}", r="[1,2)"), update("t", id=6, v="x"), delete("t", id=7)),
            insert("t", id=0, v="x", a="{1}", r="[1,2)"),
        ],
    ),
}


# What it reads is not ours.
NO_AUTOVACUUM = """
DO $$
DECLARE name regclass;
BEGIN
    FOR name IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relname ~ '^(t|child)'
        AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', name);
    END LOOP;
END
$$
"""


@pytest.mark.parametrize("is_ordinary", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_small_batch_reads_little_of_a_large_table(world: World, shape: str, is_ordinary: bool) -> None:
    ddl, records = SHAPES[shape]
    world.execute(*ddl, NO_AUTOVACUUM, "ANALYZE")
    world.whitelist("t")
    if is_ordinary:
        world.use_ordinary_role()
    read = (
        "SELECT sum(coalesce(heap_blks_read + heap_blks_hit, 0) + coalesce(idx_blks_read + idx_blks_hit, 0))"
        "::bigint FROM pg_statio_user_tables WHERE relname ~ '^(t|child)'"
    )
    world.execute("SELECT pg_stat_force_next_flush()")
    before = world.value(read)
    world.write("changes_20260205_103000.json", records)
    assert world.sync().errors == ()
    assert world.value(read) - before < FEW_BLOCKS


def test_a_sequence_without_an_index_follows_the_rows_of_each_batch(world: World) -> None:
    world.execute("CREATE TABLE t (tenant int, id serial, v text, PRIMARY KEY (tenant, id))")
    world.whitelist("t")
    world.options["batch_records"] = 1
    records = [insert("t", ts="1", tenant=1, id=50), insert("t", ts="2", tenant=1, id=7)]
    # The file does not come to its end, and a later process has nothing to say about the row.
    world.write("changes_20260205_103000.json", [*records, "broken"])
    assert world.sync().errors
    assert world.value("SELECT last_value FROM t_id_seq") == 50
    moved = update("t", {"tenant": 1, "id": 50}, ts="3", tenant=2, id=90)
    world.write("changes_20260205_103000.json", [*records, moved])
    assert world.sync().errors == ()
    assert world.value("SELECT nextval('t_id_seq')") == 91
