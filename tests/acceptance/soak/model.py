"""The tables of the workload, and what its transactions do to them: pure, the same for the same seed.

Two promises hold in every state that production shows (`INVARIANTS`): the balances have one sum, and the
total of an order is that of its lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Literal

ACCOUNTS = 20
BALANCE = 1000

# What both sides have. Where they differ, see below.
BOTH = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text);
CREATE TABLE "order" (id int PRIMARY KEY, total int NOT NULL);
CREATE TABLE order_line ("order" int REFERENCES "order" ON DELETE CASCADE ON UPDATE CASCADE, n int,
    amount int, PRIMARY KEY ("order", n));
CREATE TABLE bag (v text, n numeric, body text);
CREATE TABLE seat (id int PRIMARY KEY, place int UNIQUE DEFERRABLE, code text UNIQUE);
CREATE TABLE booking (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE document (id int PRIMARY KEY, title text, body text);
CREATE TABLE filed (id int PRIMARY KEY, code text NOT NULL, body text);
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE TABLE typed (id bigint PRIMARY KEY, m mood, a int[], j jsonb, x json, f float8, t timestamptz,
    b bytea);
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,
    twice int GENERATED ALWAYS AS (a * 2) STORED);
CREATE SCHEMA "Groß";
CREATE TABLE "Groß"."select" ("end" text, "table" int, "a.b" text, PRIMARY KEY ("table", "end"));
CREATE TABLE scratch (id int PRIMARY KEY, v text);
CREATE TABLE beat (id int PRIMARY KEY, n int);
"""

SOURCE = f"""{BOTH}
ALTER TABLE bag REPLICA IDENTITY FULL;
ALTER TABLE filed REPLICA IDENTITY FULL;
CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE parts_north PARTITION OF parts FOR VALUES IN ('north');
CREATE TABLE parts_south (v text, region text NOT NULL, id int NOT NULL);
ALTER TABLE parts_south ADD PRIMARY KEY (region, id);
ALTER TABLE parts ATTACH PARTITION parts_south FOR VALUES IN ('south');
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
CREATE SEQUENCE line_number;
CREATE FUNCTION large(seed int) RETURNS text LANGUAGE sql AS
    $$ SELECT string_agg(md5((seed * 1000 + piece)::text), '') FROM generate_series(1, 200) piece $$;
CREATE FUNCTION swap_codes(one int, other int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE was text;
BEGIN
    UPDATE seat SET code = '~' || id WHERE id = one;
    SELECT code INTO was FROM seat WHERE id = other;
    UPDATE seat SET code = 'c' || one || '-' || other WHERE id = other;
    UPDATE seat SET code = was WHERE id = one;
END $$;
CREATE FUNCTION swap_bookings(one int, other int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE first int4range; second int4range;
BEGIN
    SELECT during INTO first FROM booking WHERE id = one FOR UPDATE;
    SELECT during INTO second FROM booking WHERE id = other FOR UPDATE;
    UPDATE booking SET during = int4range(1000000 + id, 1000001 + id) WHERE id = one;
    UPDATE booking SET during = first WHERE id = other;
    UPDATE booking SET during = second WHERE id = one;
END $$;
INSERT INTO account SELECT n, {BALANCE}, 'n' || n FROM generate_series(1, {ACCOUNTS}) n;
INSERT INTO "order" SELECT n, 12 FROM generate_series(1, 20) n;
INSERT INTO order_line SELECT n, -k, k FROM generate_series(1, 20) n, (VALUES (5), (7)) v (k);
INSERT INTO bag SELECT 'same', n % 3, NULL FROM generate_series(1, 30) n;
INSERT INTO seat SELECT n, n, 'code' || n FROM generate_series(1, 20) n;
INSERT INTO booking SELECT n, int4range(n * 10, n * 10 + 10) FROM generate_series(1, 20) n;
INSERT INTO document SELECT n, 't' || n, large(n) FROM generate_series(1, 15) n;
INSERT INTO filed SELECT n, 'c' || n, large(n) FROM generate_series(1, 15) n;
INSERT INTO parts SELECT n, (ARRAY['north', 'south', 'west'])[1 + n % 3], 'v' FROM generate_series(1, 30) n;
INSERT INTO scratch SELECT n, 'v' FROM generate_series(1, 30) n;
INSERT INTO always (a) SELECT n FROM generate_series(1, 10) n;
INSERT INTO beat VALUES (1, 0);
"""

# Production's keys, without its partitions: rows that move between them stay where they are.
LOCAL = f"""{BOTH}
ALTER TABLE bag REPLICA IDENTITY FULL;
ALTER TABLE filed REPLICA IDENTITY FULL;
CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (region, id));
"""

MONEY = ("account", '"order"', "order_line")
# Tables that faults hold, clear and resync by themselves; MONEY and the beat must stay in step.
SINGLE = ("bag", "seat", "booking", "document", "filed", "typed", "always", "scratch", "parts")
TABLES = (*(name.strip('"') for name in MONEY), *SINGLE, "Groß.select", "beat")

INVARIANTS = {
    "the sum of the balances": f"SELECT sum(balance) = {ACCOUNTS * BALANCE} FROM account",
    "the total of each order": 'SELECT NOT EXISTS (SELECT FROM "order" o WHERE total <>'
    ' (SELECT coalesce(sum(amount), 0) FROM order_line l WHERE l."order" = o.id))',
    "each line's order": 'SELECT NOT EXISTS (SELECT FROM order_line l LEFT JOIN "order" o ON o.id = l."order"'
    " WHERE o.id IS NULL)",
}

Ending = Literal["commit", "roll back", "prepare and commit", "prepare and roll back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """``statements`` at production, savepoints included. ``before_here`` and ``after_here``: what a migration
    does to the local database, before and after it. ``kinds``: what it is made of, to be counted."""

    statements: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    ending: Ending = "commit"
    before_here: tuple[str, ...] = ()
    after_here: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """Transactions without end, of one writer. What comes next depends on nothing but the seed."""

    seed: str
    chance: Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)

    def __iter__(self) -> Iterator[Transaction]:
        for number in count():
            yield self._transaction(number)

    def _transaction(self, number: int) -> Transaction:
        chance = self.chance
        if chance.random() < 0.03:
            return _migration(chance)
        statements: list[str] = []
        kinds: list[str] = []
        for step in range(chance.choice((1, 1, 1, 2, 3, 5, 8))):
            operation = chance.choice(OPERATIONS)
            own = operation(chance)
            kinds += [operation.__name__.replace("_", " "), *("TRUNCATE" for one in own if "TRUNCATE" in one)]
            if chance.random() < 0.2:
                kinds.append("savepoint")
                undone = [f"ROLLBACK TO s{step}"] if chance.random() < 0.5 else [f"RELEASE s{step}"]
                own = [f"SAVEPOINT s{step}", *own, *undone]
            statements += own
        endings: tuple[Ending, ...] = ("roll back", "prepare and commit", "prepare and roll back")
        ending: Ending = chance.choice(endings) if chance.random() < 0.15 else "commit"
        return Transaction(statements=tuple(statements), kinds=(*kinds, ending), ending=ending)


_DROP_PARTITION = """DO $$
DECLARE one regclass;
BEGIN
    SELECT inhrelid INTO one FROM pg_inherits
        WHERE inhparent = 'parts'::regclass AND inhrelid::regclass::text ~ '^parts_[0-9]' LIMIT 1;
    IF FOUND THEN
        EXECUTE format('ALTER TABLE parts DETACH PARTITION %s', one);
        EXECUTE format('DROP TABLE %s', one);
    END IF;
END $$"""


def _migration(chance: Random) -> Transaction:
    """A column comes to both sides, in either order, or goes at production (and here after the round);
    or a partition comes or goes with its rows."""
    column = f"c{chance.randint(1, 300)}"
    add = f"ALTER TABLE scratch ADD IF NOT EXISTS {column} int"
    fill = f"UPDATE scratch SET {column} = id WHERE id % 3 = 0"
    match chance.randint(0, 5):
        case 0:
            return Transaction(statements=(add, fill), kinds=("column added",), after_here=(add,))
        case 1:
            return Transaction(statements=(add, fill), kinds=("column added",), before_here=(add,))
        case 2:
            return Transaction(
                statements=(f"ALTER TABLE scratch DROP COLUMN IF EXISTS c{chance.randint(1, 300)}",),
                kinds=("column dropped",),
            )
        case 3:
            return Transaction(statements=("TRUNCATE parts_south",), kinds=("partition truncated",))
        case 4:
            return Transaction(statements=(_DROP_PARTITION,), kinds=("partition dropped",))
        case _:
            name = f"parts_{chance.randint(1, 10**9)}"
            row = [f"INSERT INTO {name} VALUES (1, '{name}', 'attached')"] if chance.random() < 0.1 else []
            return Transaction(
                statements=(
                    f"CREATE TABLE {name} (LIKE parts INCLUDING ALL)",
                    *row,
                    f"ALTER TABLE parts ATTACH PARTITION {name} FOR VALUES IN ('{name}')",
                ),
                kinds=("partition attached",),
            )


Operation = Callable[[Random], list[str]]


def transfer(chance: Random) -> list[str]:
    one, other = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    amount = chance.randint(-90, 90)
    return [
        f"UPDATE account SET balance = balance - {amount} WHERE id = {one}",
        f"UPDATE account SET balance = balance + {amount}, note = 'né {amount}' WHERE id = {other}",
    ]


def place_order(chance: Random) -> list[str]:
    return [
        f'WITH o AS (INSERT INTO "order" VALUES ({_order(chance)}, 12) ON CONFLICT DO NOTHING RETURNING id)'
        " INSERT INTO order_line SELECT id, -amount, amount FROM o, (VALUES (5), (7)) v (amount)"
    ]


def add_line(chance: Random) -> list[str]:
    amount = chance.randint(1, 50)
    return [
        f'WITH o AS (UPDATE "order" SET total = total + {amount} WHERE id = {_order(chance)} RETURNING id)'
        f" INSERT INTO order_line (\"order\", n, amount) SELECT id, nextval('line_number'), {amount} FROM o"
    ]


def drop_line(chance: Random) -> list[str]:
    return [
        'WITH gone AS (DELETE FROM order_line WHERE ("order", n) IN (SELECT "order", n FROM order_line'
        f' WHERE "order" = {_order(chance)} ORDER BY n LIMIT 1) RETURNING "order", amount)'
        ' UPDATE "order" o SET total = o.total - gone.amount FROM gone WHERE o.id = gone."order"'
    ]


def cancel_order(chance: Random) -> list[str]:
    return [f'DELETE FROM "order" WHERE id = {_order(chance)}']


def renumber_order(chance: Random) -> list[str]:
    step = "CASE WHEN id > 1000 THEN -1000 ELSE 1000 END"
    return [f'UPDATE "order" SET id = id + {step} WHERE id = {_order(chance)}']


def _order(chance: Random) -> int:
    return chance.randint(1, 30) + chance.choice((0, 1000))


def change_bag(chance: Random) -> list[str]:
    some = f"ctid IN (SELECT ctid FROM bag WHERE n = {chance.randint(0, 4)} LIMIT {chance.randint(1, 3)})"
    match chance.randint(0, 5):
        case 0 | 1:
            rows = chance.choice((1, 2, 5, 40))
            return [
                f"INSERT INTO bag SELECT 'same', {chance.randint(0, 4)}, NULL FROM generate_series(1, {rows})"
            ]
        case 2:
            return [f"INSERT INTO bag VALUES (NULL, {chance.randint(0, 4)}, large({chance.randint(1, 9)}))"]
        case 3:
            return [f"UPDATE bag SET n = {chance.randint(0, 4)}.0 WHERE {some}"]
        case 4:
            return [f"UPDATE bag SET v = 'w{chance.randint(1, 3)}' WHERE {some}"]
        case _:
            return [f"DELETE FROM bag WHERE {some}"]


def change_seats(chance: Random) -> list[str]:
    one, other = sorted(chance.sample(range(1, 21), 2))
    if chance.random() < 0.5:
        return [f"SELECT swap_codes({one}, {other})"]
    both = f"(({one}, {other}), ({other}, {one}))"
    return [f"UPDATE seat a SET place = b.place FROM seat b WHERE (a.id, b.id) IN {both}"]


def swap_bookings(chance: Random) -> list[str]:
    one, other = sorted(chance.sample(range(1, 21), 2))
    return [f"SELECT swap_bookings({one}, {other})"]


def change_documents(chance: Random) -> list[str]:
    table = chance.choice(("document", "filed"))
    text = "title" if table == "document" else "code"
    key, other = chance.randint(1, 30), chance.randint(1, 30)
    match chance.randint(0, 6):
        case 0 | 1:
            return [f"UPDATE {table} SET {text} = 'unchanged TOAST {other}' WHERE id = {key}"]
        case 2:
            return [f"UPDATE {table} SET body = large({other}) WHERE id = {key}"]
        case 3:
            return [f"UPDATE {table} SET body = NULL WHERE id = {key}"]
        case 4:  # the row moves, and its large value is not in the stream
            return [
                f"DELETE FROM {table} WHERE id = {other}",
                f"UPDATE {table} SET id = {other} WHERE id = {key}",
            ]
        case 5:
            return [f"DELETE FROM {table} WHERE id = {key}"]
        case _:
            return [f"INSERT INTO {table} VALUES ({key}, 'new', large({other})) ON CONFLICT DO NOTHING"]


def change_typed(chance: Random) -> list[str]:
    key, n = chance.randint(1, 40), chance.randint(0, 999)
    if chance.random() < 0.2:
        return [f"DELETE FROM typed WHERE id = {key}"]
    values = (
        f"(ARRAY['sad', 'it''s ok', 'happy', NULL]::mood[])[{n % 4 + 1}], ARRAY[{n}, NULL, -1],"
        f' \'{{"b": [{n}, null], "a": "\\\\u00e9\\\\n"}}\', \'{{"a" : {n}}}\', {n} / 7.0::float8,'
        f" timestamptz '2026-02-05 10:30:00.{n:03}+02', decode('{n:04}', 'hex')"
    )
    columns = "m, a, j, x, f, t, b"
    return [
        f"INSERT INTO typed (id, {columns}) VALUES ({key}, {values}) ON CONFLICT (id) DO UPDATE SET"
        f" ({columns}) = ROW ({values})"
    ]


def change_always(chance: Random) -> list[str]:
    n = chance.randint(1, 30)
    return [
        chance.choice(
            (
                f"INSERT INTO always (a) VALUES ({n})",
                f"UPDATE always SET a = {n} WHERE id % 7 = {n % 7}",
                f"UPDATE always SET id = DEFAULT WHERE id = (SELECT min(id) FROM always WHERE id > {n})",
                f"DELETE FROM always WHERE id = {n}",
            )
        )
    ]


def change_parts(chance: Random) -> list[str]:
    key, region = chance.randint(1, 60), chance.choice(("north", "south", "west"))
    return [
        chance.choice(
            (
                f"INSERT INTO parts VALUES ({key}, '{region}', 'v') ON CONFLICT DO NOTHING",
                f"UPDATE parts SET region = '{region}', v = 'moved' WHERE id = {key} AND region <> 'west'",
                f"UPDATE parts SET v = v || '{key}' WHERE id = {key}",
                f"DELETE FROM parts WHERE id = {key} AND region = '{region}'",
            )
        )
    ]


def change_odd_names(chance: Random) -> list[str]:
    key, table = chance.randint(1, 20), '"Groß"."select"'
    longer = '"end" = "end" || \'x\''
    return [
        chance.choice(
            (
                f"INSERT INTO {table} VALUES ('e{key % 3}', {key}, 'a\\b') ON CONFLICT DO NOTHING",
                f'UPDATE {table} SET "a.b" = \'{key}\' WHERE "table" = {key}',
                f'UPDATE {table} SET {longer} WHERE "table" = {key} AND length("end") < 9',
                f'DELETE FROM {table} WHERE "table" = {key}',
            )
        )
    ]


def change_scratch(chance: Random) -> list[str]:
    key = chance.randint(1, 3000)
    match chance.randint(0, 9):
        case 0:
            return ["TRUNCATE scratch"]
        case 1:
            many = f"SELECT n, 'many' FROM generate_series(1, {chance.choice((100, 100, 100, 3000))}) n"
            return [f"INSERT INTO scratch {many} ON CONFLICT DO NOTHING"]
        case 2:
            return [f"UPDATE scratch SET v = v || '.' WHERE id BETWEEN {key} AND {key + 300}"]
        case 3:
            return [f"DELETE FROM scratch WHERE id BETWEEN {key} AND {key + 100}"]
        case 4:
            return [f"UPDATE scratch SET id = -id WHERE id BETWEEN {key} AND {key + 5}"]
        case _:
            return [f"INSERT INTO scratch VALUES ({key}, 'one') ON CONFLICT (id) DO UPDATE SET v = 'again'"]


OPERATIONS: tuple[Operation, ...] = (
    *(transfer, transfer, place_order, add_line, add_line, drop_line, cancel_order, renumber_order),
    *(change_bag, change_bag, change_bag, change_seats, swap_bookings, change_documents, change_documents),
    *(
        change_typed,
        change_always,
        change_parts,
        change_parts,
        change_odd_names,
        change_scratch,
        change_scratch,
    ),
)
