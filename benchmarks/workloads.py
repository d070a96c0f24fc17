"""The work that production does in a benchmark: tables, their first rows, and changes. SQL alone, no I/O.

Each makes *records* records, give or take a transaction. The changes are a procedure's body, so they are made
in the server, in transactions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ACCOUNT = (
    "CREATE TABLE {table} (id bigint PRIMARY KEY, customer_id int, status text, amount numeric(12,2),"
    " note text, tags jsonb, created_at timestamptz, updated_at timestamptz);"
    "CREATE INDEX ON {table} (customer_id)"
)
ACCOUNT_ROW = (
    "{id}, {id} % 1000, 'active', {id} * 1.25, repeat('some words ', 4) || {id},"
    " jsonb_build_object('a', {id}, 'b', jsonb_build_array('bravo')), now(), now()"
)
# 59 columns beside the key, of the kinds that wide tables have.
WIDE = [
    (f"{kind}_{number}", type_, value)
    for kind, type_, value, how_many in (
        ("name", "text", "'name ' || {id}", 20),
        ("count", "int", "({id} % 1000)::int", 12),
        ("price", "numeric(10,2)", "{id} * 0.25", 8),
        ("at", "timestamptz", "now()", 8),
        ("is", "boolean", "{id} % 2 = 0", 6),
        ("day", "date", "date '2026-02-05'", 3),
        ("ratio", "float8", "{id} / 7.0", 2),
    )
    for number in range(1, how_many + 1)
]
WIDE_ROW = "{id}, " + ", ".join(value for _, _, value in WIDE)
TEXT_BYTES = 102_400
BODY = f"repeat(md5({{id}}::text), {TEXT_BYTES // 32})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """*schema* makes *tables*, *first_rows* fills them, and *changes* is the body of a procedure."""

    name: str
    title: str
    tables: Sequence[str]
    schema: Sequence[str]
    first_rows: Sequence[str]
    changes: str

    @property
    def database(self) -> str:
        return f"bench_{self.name.lower().replace('/', '_')}"


def workload(name: str, records: int) -> Workload:
    """Return the workload called *name*. Raises KeyError when there is none."""
    make, share = _MAKERS[name]
    return make(name, max(int(records * share), 20))


def _inserts(name: str, records: int) -> Workload:
    size = min(100, records)
    changes = (
        f"FOR i IN 0 .. {records // size - 1} LOOP"
        f" INSERT INTO account SELECT {ACCOUNT_ROW.format(id='n')}"
        f" FROM generate_series(i * {size} + 1, i * {size} + {size}) n; COMMIT; END LOOP;"
    )
    return _accounts(name, "inserts, transactions of 100", ["account"], 0, changes)


def _hot_mixed(name: str, records: int) -> Workload:
    return _mixed(name, records, ["account"], "60 % updates, 25 % inserts, 15 % deletes on hot keys")


def _forty_tables(name: str, records: int) -> Workload:
    tables = [f"account_{number}" for number in range(1, 41)]
    return _mixed(name, records, tables, "the same over 40 tables, few of them hot")


def _mixed(name: str, records: int, tables: Sequence[str], title: str) -> Workload:
    rows = max(int(records * 0.4) // len(tables), 8)
    table = "'account'" if len(tables) == 1 else f"'account_' || 1 + floor({len(tables)} * random() ^ 3)::int"
    row = ACCOUNT_ROW.format(id="$1").replace("%", "%%")  # for PostgreSQL's format()
    # The first quarter of the rows stays, so the hot keys do. A row that is gone makes no record.
    changes = (
        f"k2 := {rows}; WHILE done < {records} LOOP FOR j IN 1 .. 5 + floor(random() * 11)::int LOOP"
        f" t := {table}; c := random();"
        f" IF c < 0.6 THEN k := least(floor(1 / (1 - random()) ^ 2), {rows});"
        "  EXECUTE format('UPDATE %I SET amount = amount + 1, updated_at = now() WHERE id = $1', t) USING k;"
        " ELSIF c < 0.85 THEN k2 := k2 + 1;"
        f"  EXECUTE format($i$INSERT INTO %I SELECT {row}$i$, t) USING k2;"
        f" ELSE k := 1 + {rows // 4} + floor(random() * (k2 - {rows // 4}));"
        "  EXECUTE format('DELETE FROM %I WHERE id = $1', t) USING k; END IF;"
        " GET DIAGNOSTICS hit = ROW_COUNT; done := done + hit; END LOOP; COMMIT; END LOOP;"
    )
    return _accounts(name, title, tables, rows, changes)


def _spread_updates(name: str, records: int) -> Workload:
    changes = (
        f"FOR i IN 1 .. {records // 10} LOOP FOR j IN 1 .. 10 LOOP k := 1 + floor(random() * {records});"
        " UPDATE account SET amount = amount + 1, status = 'changed' WHERE id = k;"
        " END LOOP; COMMIT; END LOOP;"
    )
    title = "updates spread over the whole table, transactions of 10"
    return _accounts(name, title, ["account"], records, changes)


def _accounts(name: str, title: str, tables: Sequence[str], rows: int, changes: str) -> Workload:
    return Workload(
        name=name,
        title=title,
        tables=tables,
        schema=[ACCOUNT.format(table=table) for table in tables],
        first_rows=[
            f"INSERT INTO {table} SELECT {ACCOUNT_ROW.format(id='n')} FROM generate_series(1, {rows}) n"
            for table in tables
        ],
        changes=changes,
    )


def _wide(name: str, records: int) -> Workload:
    columns = ", ".join(f"{column} {type_}" for column, type_, _ in WIDE)
    rows = records // 2
    return Workload(
        name=name,
        title="60 columns: updates and inserts by halves, transactions of 10",
        tables=["wide"],
        schema=[f"CREATE TABLE wide (id bigint PRIMARY KEY, {columns})"],
        first_rows=[f"INSERT INTO wide SELECT {WIDE_ROW.format(id='n')} FROM generate_series(1, {rows}) n"],
        changes=(
            f"FOR i IN 1 .. {records // 10} LOOP FOR j IN 1 .. 5 LOOP k := 1 + floor(random() * {rows});"
            " UPDATE wide SET count_1 = count_1 + 1, name_3 = 'changed', at_2 = now() WHERE id = k; END LOOP;"
            f" INSERT INTO wide SELECT {WIDE_ROW.format(id='n')}"
            f" FROM generate_series({rows} + i * 5 - 4, {rows} + i * 5) n; COMMIT; END LOOP;"
        ),
    )


def _large_texts(name: str, records: int) -> Workload:
    rows = max(records // 10, 5)
    return Workload(
        name=name,
        title="updates beside texts of 100 KB, which 1 in 50 changes",
        tables=["page"],
        schema=[
            "CREATE TABLE page (id bigint PRIMARY KEY, title text, body text, visits int)",
            "ALTER TABLE page ALTER body SET STORAGE EXTERNAL",
        ],
        first_rows=[
            f"INSERT INTO page SELECT n, 'title ' || n, {BODY.format(id='n')}, 0"
            f" FROM generate_series(1, {rows}) n"
        ],
        changes=(
            f"FOR i IN 1 .. {records // 10} LOOP FOR j IN 1 .. 10 LOOP k := 1 + floor(random() * {rows});"
            " IF (i * 10 + j) % 50 = 0 THEN"
            f" UPDATE page SET body = {BODY.format(id='(k + i)')}, visits = visits + 1 WHERE id = k;"
            " ELSE UPDATE page SET visits = visits + 1, title = 'changed' WHERE id = k; END IF;"
            " END LOOP; COMMIT; END LOOP;"
        ),
    )


def _many_tables(name: str, records: int) -> Workload:
    how_many = int(name.partition("/")[2])
    tables = [f"item_{number}" for number in range(1, how_many + 1)]
    columns = (
        "id bigint PRIMARY KEY, code text, amount numeric(10,2), is_open boolean, updated_at timestamptz"
    )
    row = "{id}, 'code ' || {id}, {id} * 1.5, true, now()"
    return Workload(
        name=name,
        title=f"{how_many} tables, ten of which change",
        tables=tables,
        schema=[f"CREATE TABLE {table} ({columns})" for table in tables],
        first_rows=[
            f"INSERT INTO {table} SELECT {row.format(id='n')} FROM generate_series(1, 10) n"
            for table in tables
        ],
        changes=(
            f"FOR i IN 1 .. {records // 10} LOOP FOR j IN 1 .. 5 LOOP t := 'item_' || 1 + (i + j) % 10;"
            f" EXECUTE format($i$INSERT INTO %I SELECT {row.format(id='$1')}$i$, t)"
            " USING 10 + i * 10 + j;"
            " EXECUTE format('UPDATE %I SET amount = amount + 1, is_open = false WHERE id = $1', t)"
            " USING 1 + j; END LOOP; COMMIT; END LOOP;"
        ),
    )


# By name: what makes it, and its share of the records that were asked for.
_MAKERS = {
    "W1": (_inserts, 1.0),
    "W2": (_hot_mixed, 1.0),
    "W3": (_spread_updates, 1.0),
    "W4": (_forty_tables, 0.5),
    "W5": (_hot_mixed, 1.0),
    "W6": (_wide, 0.2),
    "W7": (_large_texts, 0.04),
    "W8/300": (_many_tables, 0.04),
    "W8/1000": (_many_tables, 0.04),
}
NAMES = list(_MAKERS)
