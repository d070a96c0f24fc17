"""What a batch costs follows the rows that it changes, not those that are there."""

from __future__ import annotations

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
