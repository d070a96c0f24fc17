"""Every type, written at the source by SQL and compared at the target by SQL, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg

from syncsite.demo.postgres import PostgresServer
from tests.matrix import Servers
from tests.production import Production, differences
from tests.verified import catalog_of, check_of, hold
from tests.world import World

EXTENSIONS = ("hstore", "citext", "ltree", "cube", "isn", "vector")

# Every one is made on both sides.
DEFINITIONS = (
    """CREATE TYPE mood AS ENUM ('sad', 'it''s, "fine"', 'a b', '\\', '', 'Äther', '{null}', '(x)')""",
    "CREATE TYPE pair AS (n integer, t text)",
    'CREATE TYPE "Odd Name" AS ("Big, One" pair, "list" text[], flag boolean, moment timestamptz, bin bytea)',
    "CREATE DOMAIN posint AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN code AS text CHECK (VALUE ~ '^[A-Z]') NOT NULL",
    "CREATE DOMAIN codes AS text[] CHECK (cardinality(VALUE) > 0)",
    "CREATE DOMAIN boxed AS pair CHECK ((VALUE).n > 0)",
    "CREATE TYPE floatrange AS RANGE (subtype = float8, subtype_diff = float8mi)",
    "CREATE TYPE textrange AS RANGE (subtype = text)",
)

# What applications set for a database. None of it may matter, neither at the source nor at the target.
ODD_SOURCE = {
    "datestyle": "'German'",
    "intervalstyle": "'sql_standard'",
    "bytea_output": "'escape'",
    "extra_float_digits": "'-15'",
    "timezone": "'Asia/Kolkata'",
    "xmloption": "'document'",
    "quote_all_identifiers": "'on'",
    "search_path": "'nowhere'",
    "client_encoding": "'LATIN1'",
    "statement_timeout": "'1h'",
    "standard_conforming_strings": "'off'",
}
ODD_TARGET = {
    "datestyle": "'SQL, DMY'",
    "intervalstyle": "'iso_8601'",
    "bytea_output": "'escape'",
    "extra_float_digits": "'0'",
    "timezone": "'America/St_Johns'",
    "xmloption": "'document'",
    "array_nulls": "'off'",
    "client_encoding": "'LATIN1'",
    "standard_conforming_strings": "'off'",
    "backslash_quote": "'off'",
    "default_transaction_isolation": "'repeatable read'",
}

EVERY_CHARACTER = "(SELECT string_agg(chr(n), '') FROM generate_series(1, 127) n)"

VALUES: dict[str, list[str]] = {
    "smallint": ["-32768", "0", "32767"],
    "integer": ["-2147483648", "0", "2147483647"],
    "bigint": ["-9223372036854775808", "0", "9223372036854775807", "9007199254740993"],
    "numeric": [
        *("'12345678901234567890123456789012345678'", "'0.00000000000000000000000000000000000001'", "'NaN'"),
        *("'Infinity'", "'-Infinity'", "'1.0'", "'1.00'", "'-0.0'", "'1e130'", "10::numeric ^ 1000 + 0.5"),
    ],
    "numeric(38,10)": ["'1234567890123456789012345678.0123456789'", "'-0.0000000001'", "'NaN'"],
    "real": [
        *("'1.17549435e-38'", "'3.4028235e+38'", "'1e-45'", "'0.1'", "'16777217'"),
        *("'NaN'", "'Infinity'", "'-Infinity'", "'-0'"),
    ],
    "double precision": [
        *("'2.2250738585072014e-308'", "'1.7976931348623157e+308'", "'5e-324'", "'0.1'", "0.1::float8 + 0.2"),
        *("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'9007199254740993'"),
    ],
    "money": ["'-92233720368547758.08'", "'92233720368547758.07'", "'0.01'", "'-1234.5'"],
    "text": [
        *("''", "' '", "'NULL'", r"E'\\N'", r"E'\\.'", r"E'a\\nb'", r"E'line\nbreak\r\ntab\t\b\f'"),
        *(
            "'single '' double \" back ` $$ dollar'",
            r"E'{\"a\":\\u0041}'",
            r"E'trailing \\'",
            "'# {\"end\":true}'",
        ),
        *(EVERY_CHARACTER, "chr(128512) || chr(1114111) || chr(65279) || chr(8232) || chr(133) || chr(233)"),
        *("'e' || chr(769)", "repeat('x', 100000)", "repeat(chr(128512), 30000)"),
    ],
    "varchar(5)": ["''", "'abc  '", "chr(128512) || '1234'"],
    "char(5)": ["''", "'ab'", "'abcde'", "chr(128512)"],
    '"char"': ["''", "'a'", r"'\200'", r"'\'"],
    "name": ["'a name'", "repeat('x', 63)"],
    "bytea": [
        *(
            "''",
            "decode('00ff5c27', 'hex')",
            r"'\x6162'",
            r"decode('5c7836', 'hex')",
            "decode('dead', 'hex')",
        ),
        *("'1234'", "decode(repeat('00', 5000), 'hex')"),
        "(SELECT decode(string_agg(lpad(to_hex(n), 2, '0'), ''), 'hex') FROM generate_series(0, 255) n)",
    ],
    "boolean": ["true", "false"],
    "date": [
        *(
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'0001-01-01'",
            "'0001-12-31 BC'",
            "'5874897-12-31'",
        ),
        *("'2024-02-29'", "'02/03/2004'::text::date"),
    ],
    "time": ["'00:00'", "'24:00:00'", "'23:59:59.999999'", "'12:34:56.7'"],
    "time(3)": ["'12:34:56.789'", "'12:34:56'"],
    "timetz": ["'00:00+15:59:59'", "'24:00:00-15:59:59'", "'12:34:56.789012+05:30'"],
    "timestamp": [
        *("'infinity'", "'-infinity'", "'4714-11-24 00:00:00 BC'", "'0001-01-01 00:00:00'", "'294276-12-31'"),
        *("'2024-02-29 23:59:59.999999'", "'0044-03-15 12:00:00 BC'", "'1969-12-31 23:59:59.999999'"),
    ],
    "timestamp(0)": ["'2026-02-05 10:30:00'"],
    "timestamp(1)": ["'2026-02-05 10:30:00.1'"],
    "timestamp(6)": ["'2026-02-05 10:30:00.000001'"],
    "timestamptz": [
        *("'infinity'", "'-infinity'", "'4714-11-24 00:00:00+00 BC'", "'0001-01-01 00:00:00+00'"),
        *("'294276-12-31 23:59:59.999999+00'", "'1883-11-18 12:00:00-04:56:02'", "'2026-02-05 10:30+05:30'"),
        "'2026-03-29 01:30+00'",
    ],
    "timestamptz(3)": ["'2026-02-05 10:30:00.123+00'"],
    "interval": [
        *("'0'", "'1 year 2 mons 3 days 04:05:06.789'", "'-1 year -2 mons +3 days -04:05:06.000001'"),
        *(
            "'-1 day +02:03:00'",
            "'178000000 years'",
            "'-178000000 years'",
            "'2147483647 days'",
            "'-00:00:00.5'",
        ),
        *("'25:00:00'", "'1 mon -1 day'"),
    ],
    "interval(2)": ["'1.23 seconds'"],
    "interval year to month": ["'1-2'", "'-1-2'"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'", "'FFFFFFFF-ffff-ffff-ffff-ffffffffffff'"],
    "json": [
        *(
            """'"a string"'""",
            "'1.0'",
            "'1e400'",
            "'null'",
            "'true'",
            "'[]'",
            """'{"a": 1, "a":  2 , "b":{}}'""",
        ),
        *(
            r"""'{"nul":"\u0000","lone":"\ud800","esc":"\"\\\/\b\f\n\r\t\u00e4"}'""",
            """E'  {\n\t"k" : [1 ]}\n'""",
        ),
        *("""'""'""", """'{"op":"DELETE","table":"x"}'""", "'[1,[2,[3,[null]]]]'", "'-0.0'"),
    ],
    "jsonb": [
        *(
            """'"a string"'""",
            "'1.0'",
            "'1e400'",
            "'null'",
            "'true'",
            "'[]'",
            """'{"b": 1, "a":  2 , "c":{}}'""",
        ),
        *(r"""'{"esc":"\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00", "":""}'""", "'[1,[2,[3,[null]]]]'", "'-0.0'"),
        *("'12345678901234567890.123456789'", """'""'""", """'"{\\"a\\": 1}"'"""),
    ],
    "jsonpath": ["'$'", """'strict $."a b"[*] ? (@.x > 1.5 && @.y like_regex "^a\\\\d" flag "i")'"""],
    "integer[]": [
        *("'{}'", "'{1,NULL,-3}'", "'{{1,2},{3,4}}'", "'[0:1]={1,2}'", "'[-2:-1][5:6]={{1,2},{3,NULL}}'"),
    ],
    "text[]": [
        *(
            "'{}'",
            """ARRAY['', 'NULL', 'null', NULL, 'a,b', '{x}', '"q"', E'back\\\\slash', ' sp ', E'n\\nl']""",
        ),
        "ARRAY[['a', NULL], ['{', '}']]",
    ],
    "bytea[]": [r"ARRAY['\x00ff'::bytea, '\x', NULL]"],
    "numeric(10,2)[]": ["ARRAY[1.50, 'NaN', NULL]::numeric(10,2)[]"],
    "timestamptz[]": [
        "ARRAY['infinity', '0044-03-15 12:00:00+00 BC', '2026-02-05 10:30+05:30']::timestamptz[]"
    ],
    "jsonb[]": ["""ARRAY['null', '"x"', '{"a": [1]}', NULL]::jsonb[]"""],
    "json[]": ["""ARRAY['null', '"x"', '{"a" :[1]}', NULL]::json[]"""],
    "pair[]": ["""ARRAY[(1, 'a,b'), (NULL, NULL), (2, '"'), NULL]::pair[]""", "'{}'"],
    "mood[]": ["enum_range(NULL::mood)", "ARRAY[NULL, 'sad']::mood[]"],
    "box[]": ["ARRAY['((1,2),(3,4))', '((0,0),(1,1))']::box[]", "'{}'"],
    "mood": [f"(enum_range(NULL::mood))[{number}]" for number in range(1, 9)],
    "posint": ["1", "2147483647"],
    "code": ["'A'", "'Z, \"quoted\"'"],
    "codes": ["ARRAY['a', NULL]"],
    "boxed": ["ROW(1, 'x')"],
    "posint[]": ["ARRAY[1, NULL]::posint[]"],
    "pair": ["ROW(1, 'a')", "ROW(NULL, NULL)", "ROW(2, '')", "ROW(3, E'q\"b\\\\s,(x)\\n')"],
    '"Odd Name"': [
        """ROW(ROW(1, 'x"y'), ARRAY['a', NULL, '"'], true, '2026-02-05 10:30+05', decode('00ff', 'hex'))""",
        "ROW(NULL, NULL, NULL, NULL, NULL)",
        "ROW(ROW(NULL, ''), '{}', false, 'infinity', '')",
    ],
    "int4range": ["'empty'", "'[1,5]'", "'(,)'", "'(,7)'"],
    "int8range": ["'[-9223372036854775808,9223372036854775807)'"],
    "numrange": ["'[1.0,2.00]'", "'(NaN,)'", "'[-Infinity,Infinity]'"],
    "tsrange": ["'[2026-02-05 10:30,infinity)'", "'[0044-03-15 12:00:00 BC,0001-01-01]'"],
    "tstzrange": ["'[2026-02-05 10:30+05:30,infinity]'", "'(-infinity,)'"],
    "daterange": ["'[0001-01-01 BC,0001-01-01]'", "'[2024-02-28,2024-03-01)'"],
    "floatrange": ["'[0.1,NaN]'", "'[-0,1e308)'"],
    "textrange": ["""textrange('a,b', 'c"d')""", """textrange('', NULL)""", """textrange('(', ']', '[]')"""],
    "int4multirange": ["'{}'", "'{[1,3),[5,9)}'", "'{(,)}'"],
    "tstzmultirange": ["'{[2026-02-05 10:30+05:30,2026-02-06 00:00+00),[2027-01-01 00:00+00,)}'"],
    "int4range[]": ["ARRAY['[1,2)', 'empty', NULL]::int4range[]"],
    "inet": ["'192.168.0.1'", "'192.168.0.1/24'", "'::1'", "'2001:db8::/32'", "'::ffff:1.2.3.4'"],
    "cidr": ["'10.0.0.0/8'", "'2001:db8::/32'", "'0.0.0.0/0'"],
    "macaddr": ["'08:00:2b:01:02:03'", "'ff:ff:ff:ff:ff:ff'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "bit(8)": ["B'00000000'", "B'10101010'"],
    "bit varying": ["B''", "B'1'", "repeat('10', 500)::varbit"],
    "tsvector": [
        "''",
        r"""E'\'it\'\'s\':1A,2B \'back\\\\slash\' fat:5C \'a b\':3'""",
        "to_tsvector('simple', 'x y')",
    ],
    "tsquery": ["''", "'fat & (rat | !cat) <2> dog:*AB'", "$$'it''s' & 'a b'$$"],
    "pg_lsn": ["'0/0'", "'FFFFFFFF/FFFFFFFF'", "'16/B374D848'"],
    "oid": ["0", "4294967295"],
    "xid8": ["'18446744073709551615'"],
    "regclass": ["'pg_class'", "'0'"],
    "regtype": ["'integer'", "'text[]'", "'timestamptz'"],
    "tid": ["'(4294967295,65535)'"],
    "point": ["'(1,2)'", "'(-0,1e-300)'", "'(NaN,Infinity)'", "'(0.1,-Infinity)'"],
    "line": ["'{1,2,3}'"],
    "lseg": ["'[(0,0),(1,1)]'"],
    "box": ["'((1,2),(3,4))'"],
    "path": ["'((0,0),(1,1),(2,0))'", "'[(0,0),(0.1,1)]'"],
    "polygon": ["'((0,0),(1,1),(2,0))'"],
    "circle": ["'<(0.1,2),3>'"],
    "xml": [
        "'<a>text &amp; <b c=\"d\"/></a>'",
        "XMLPARSE(CONTENT 'not <i>one</i> document')",
        "XMLPARSE(CONTENT '')",
        "XMLPARSE(DOCUMENT '<?xml version=\"1.0\"?><!-- c --><a/>')",
    ],
    "hstore": ["''", r"""hstore(ARRAY['a', 'b"c', 'd=>e', 'f'], ARRAY['1', NULL, E'n\nl', '\'])"""],
    "citext": ["'MiXed'", "''"],
    "ltree": ["'Top.Science.Astronomy'", "''"],
    "cube": ["'(1,2),(3,4)'", "'(0.1)'"],
    "isbn13": ["'978-0-393-04002-9'"],
    "vector": ["'[1,-2.5,3e-10]'"],
}
# Not every server has them: it takes the contrib modules, and a build with libxml.
OPTIONAL = {"xml", "hstore", "citext", "ltree", "cube", "isbn13", "vector"}
BAGS = 6
# What PostgreSQL 14 reads as a backslash, and 15 and later as the byte 128.
NOT_IN_14 = {'"char"': r"'\200'"}
# Their texts mean something on one server only, so verification compares none of them.
NAMES_OF_THINGS = ("regclass", "regtype")
SINCE_17 = {"interval": ["'infinity'", "'-infinity'"]}


def has_type(server: PostgresServer, database: str, sql_type: str) -> bool:
    """Whether the server has the type, and was built so that it can hold a value."""
    with server.connect(database, autocommit=True) as connection:
        try:
            connection.execute("SELECT '<a/>'::xml" if sql_type == "xml" else f"SELECT NULL::{sql_type}[]")
        except (psycopg.errors.UndefinedObject, psycopg.errors.FeatureNotSupported):
            return False
    return True


def make_types(production: Production, *worlds: World) -> list[str]:
    """Make the types everywhere; return those that all have."""
    databases = [production.database, *(world.database for world in worlds)]
    for database in databases:
        with database.connect(autocommit=True) as connection:
            for extension in EXTENSIONS:
                available = "SELECT 1 FROM pg_available_extensions WHERE name = %s"
                if connection.execute(available, (extension,)).fetchone():
                    connection.execute(f"CREATE EXTENSION {extension}")
            for statement in DEFINITIONS:
                connection.execute(statement)
    return [
        sql_type
        for sql_type in VALUES
        if all(has_type(database.server, database.name, sql_type) for database in databases)
    ]


def make_tables(columns: dict[str, str], production: Production, *worlds: World) -> None:
    """Make `keyed`, with a column of each type, and the bags, without a key, which share them."""
    # What a domain refuses to be absent has a default.
    defaults = {"code": " DEFAULT 'A'"}
    defined = [f"{column} {sql_type}{defaults.get(sql_type, '')}" for sql_type, column in columns.items()]
    sides: list[Production | World] = [production, *worlds]
    for side in sides:
        side.execute(f"CREATE TABLE keyed (id integer PRIMARY KEY, {', '.join(defined)})")
        for number in range(BAGS):
            side.execute(f"CREATE TABLE bag_{number} ({', '.join(defined[number::BAGS])})")
            side.execute(f"ALTER TABLE bag_{number} REPLICA IDENTITY FULL")


def set_defaults(production: Production, world: World) -> None:
    for database, odd in ((production.database, ODD_SOURCE), (world.database, ODD_TARGET)):
        with database.connect(autocommit=True) as connection:
            for name, value in odd.items():
                connection.execute(f"ALTER DATABASE {database.name} SET {name} = {value}")


def test_every_value_arrives_byte_for_byte_by_stream_and_by_snapshot(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    servers: Servers,
) -> None:
    production = make_production(servers.source)
    streamed, snapped = (make_world(servers.target) for _ in range(2))
    types = make_types(production, streamed, snapped)
    are_all_new = {*servers.versions} <= {"17", "18"}
    assert VALUES.keys() - set(types) <= OPTIONAL
    columns = {sql_type: f"c{number}" for number, sql_type in enumerate(types)}
    make_tables(columns, production, streamed, snapped)
    before, after = [], []
    for number, (sql_type, column) in enumerate(columns.items()):
        bag = f"public.bag_{number % BAGS}"
        values = VALUES[sql_type] + (SINCE_17.get(sql_type, []) if are_all_new else [])
        if "14" in servers.versions:
            values = [value for value in values if value != NOT_IN_14.get(sql_type)]
        for n, value in enumerate(values):
            before.append(f"INSERT INTO keyed (id, {column}) VALUES ({1000 * number + n}, {value})")
            before.append(f"INSERT INTO {bag} ({column}) VALUES ({value}), ({value})")
            # The same values once more after the snapshot, as new rows and as updates of the row before.
            after.append(f"INSERT INTO keyed (id, {column}) VALUES ({1000 * number + 500 + n}, {value})")
            after.append(
                f"UPDATE keyed SET {column} = {value} WHERE id = {1000 * number + (n + 1) % len(values)}"
            )
        one = f"ctid = (SELECT {{}}(ctid) FROM {bag} WHERE {column} IS NOT NULL)"
        after.append(f"UPDATE {bag} SET {column} = {values[-1]} WHERE {one.format('min')}")
        after.append(f"DELETE FROM {bag} WHERE {one.format('max')}")
    tables = ["keyed", *(f"bag_{number}" for number in range(BAGS))]
    production.publish(*tables)
    run(production, before)
    production.archive()

    set_defaults(production, streamed)
    set_defaults(production, snapped)
    production.snapshot(*tables)
    # The archive as the streaming side sees it has no snapshots, so everything comes as changes.
    snapped.archive = production.archive_dir
    snapped.whitelist(*tables)
    assert snapped.sync().errors == ()
    by_snapshot = differences(production.database, snapped.database, tables)

    run(production, after)
    production.archive()
    for file in production.archive_dir.glob("changes_*"):
        shutil.copy(file, streamed.archive)
    shutil.copytree(production.archive_dir / "catalog", streamed.archive / "catalog")
    streamed.whitelist(*tables)
    assert streamed.sync().errors == ()
    assert snapped.sync().errors == ()
    by_stream = differences(production.database, streamed.database, tables)
    by_both = differences(production.database, snapped.database, tables)
    found = {difference.partition(".")[2] for difference in by_snapshot + by_stream + by_both}
    assert [sql_type for sql_type, column in columns.items() if column in found] == []
    assert streamed.value("SELECT count(*) FROM keyed") > 500
    assert (by_snapshot, by_stream, by_both) == ([], [], [])
    assert streamed.rows("SELECT count(*) FROM data_sync_checkpoints WHERE error IS NOT NULL") == [(0,)]
    for world in (streamed, snapped):
        assert verified(production, world, columns) == {}


def verified(production: Production, world: World, columns: dict[str, str]) -> dict[str, str]:
    """Hold the rows of *world* to checks of each column; return those with another outcome than they must."""
    spelled_anew = set(NAMES_OF_THINGS)
    if world.value("SHOW server_version_num") < "150000":
        spelled_anew.add('"char"')
    checks = {
        sql_type: check_of(production, "keyed", "id", column, chunk=number)
        for number, (sql_type, column) in enumerate(columns.items(), start=1)
    }
    for number in range(BAGS):
        shared = [c for t, c in list(columns.items())[number::BAGS] if t not in spelled_anew]
        checks[f"bag_{number}"] = check_of(production, f"bag_{number}", *shared)
    published = catalog_of(production)
    outcomes = dict(zip(checks, hold(world, published, *checks.values()), strict=True))
    assert all(outcome.check.rows > 0 for outcome in outcomes.values())
    return {
        name: outcome.reason
        for name, outcome in outcomes.items()
        if outcome.is_equal is not (None if name in spelled_anew else True)
    }


def run(production: Production, statements: list[str]) -> None:
    """Run *statements*, whose literals are written for the defaults of PostgreSQL."""
    with production.connect(options="-c standard_conforming_strings=on -c xmloption=content") as connection:
        connection.execute("SET search_path = public")
        connection.execute("SET datestyle = 'ISO, MDY'")
        connection.execute("SET client_encoding = 'UTF8'")
        for statement in statements:
            connection.execute(statement)


def test_a_text_of_50_megabytes_arrives(
    make_production: Callable[..., Production], make_world: Callable[..., World], any_postgres: PostgresServer
) -> None:
    production, world = make_production(any_postgres), make_world(any_postgres)
    for side in (production, world):
        side.execute("CREATE TABLE books (id integer PRIMARY KEY, body text)")
    production.publish("books")
    world.archive = production.archive_dir
    world.whitelist("books")
    body = "repeat('0123456789abcdef\n\"\\' || chr(228), 2500000)"
    production.execute(f"INSERT INTO books VALUES (1, {body})")
    production.archive()
    (taken,) = production.snapshot("books")
    assert Path(production.archive_dir / taken.name).stat().st_size > 0
    assert world.sync().errors == ()
    production.execute(
        f"INSERT INTO books VALUES (2, reverse({body}))", "UPDATE books SET id = 3 WHERE id = 1"
    )
    production.archive()
    assert world.sync().errors == ()
    query = "SELECT id, octet_length(body), md5(body) FROM books ORDER BY id"
    assert world.rows(query) == production.rows(query)
    assert world.rows("SELECT count(*), min(octet_length(body)) FROM books") == [(2, 52_500_000)]
