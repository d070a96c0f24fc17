"""Judges this side's own privacy rules by the tables that are here. Knows PostgreSQL's catalogs and the
policy; knows nothing of records.

Tables with rules are judged together with those that foreign keys tie to them: both ends of a key must be
masked alike, or rows would not find each other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.apply.plan.local_rules import ColumnRule, LocalRules
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, Reference, TableFacts
from syncdata.privacy.policy import Policy, TableVerdict
from syncdata.privacy.rules import Rule

_TIED = """
SELECT DISTINCT n.nspname::text, c.relname::text
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
JOIN pg_namespace wn ON wn.nspname = wanted.schema
JOIN pg_class w ON w.relnamespace = wn.oid AND w.relname = wanted.name
JOIN pg_constraint f ON f.contype = 'f' AND w.oid IN (f.conrelid, f.confrelid)
JOIN pg_class c ON c.oid IN (f.conrelid, f.confrelid)
JOIN pg_namespace n ON n.oid = c.relnamespace
"""

# An index on an expression counts for every column: which of them it is about is not worth the trouble.
_BINDINGS = """
SELECT t.oid::bigint AS oid,
    ARRAY(SELECT attname::text FROM pg_attribute a WHERE a.attrelid = t.oid AND attnum > 0 AND attnotnull)
        AS required,
    coalesce((
        SELECT jsonb_agg(ARRAY(
            SELECT attname::text FROM pg_attribute a
            WHERE a.attrelid = t.oid AND attnum > 0 AND NOT attisdropped
                AND (attnum = ANY(i.indkey::int2[]) OR i.indexprs IS NOT NULL)
        )) FROM pg_index i WHERE i.indrelid = t.oid AND (i.indisunique OR i.indisexclusion)
    ), '[]')::text AS uniques,
    coalesce((
        SELECT jsonb_agg(jsonb_build_array(
            ARRAY(SELECT attname::text FROM unnest(f.conkey) WITH ORDINALITY AS k (number, place)
                  JOIN pg_attribute ON attrelid = f.conrelid AND attnum = number ORDER BY place),
            n.nspname, c.relname,
            ARRAY(SELECT attname::text FROM unnest(f.confkey) WITH ORDINALITY AS k (number, place)
                  JOIN pg_attribute ON attrelid = f.confrelid AND attnum = number ORDER BY place)))
        FROM pg_constraint f
        JOIN pg_class c ON c.oid = f.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE f.conrelid = t.oid AND f.contype = 'f'
    ), '[]')::text AS references
FROM unnest(%(oids)s::oid[]) AS t (oid)
"""


def read_local_rules(connection: Connection[Any], policy: Policy) -> dict[TableName, LocalRules]:
    """Return the rules of each table that *policy* is about, or that cannot go on beside such a one."""
    ruled = policy.columns.keys()
    tied = connection.execute(
        _TIED, {"schemas": [table.schema for table in ruled], "names": [table.name for table in ruled]}
    ).fetchall()
    schemas = read_schemas(connection, {*ruled, *(TableName(*row) for row in tied)})
    verdicts = _here(policy, schemas).judge(_facts(connection, schemas.values()))
    found = {
        table: _rules(policy.columns.get(table, {}), schema, verdicts[table])
        for table, schema in schemas.items()
    }
    return {table: rules for table, rules in found.items() if rules is not None}


def _here(policy: Policy, schemas: Mapping[TableName, TableSchema]) -> Policy:
    """Return *policy* without the rules for columns that are not here."""
    names = {table: {column.name for column in schema.columns} for table, schema in schemas.items()}
    columns = {
        table: {name: rule for name, rule in rules.items() if name in names.get(table, ())}
        for table, rules in policy.columns.items()
    }
    return Policy(columns, unnamed=policy.unnamed, key=policy.key)


def _rules(stated: Mapping[str, Rule], schema: TableSchema, verdict: TableVerdict) -> LocalRules | None:
    here = {column.name: column for column in schema.columns}
    missing = [name for name in stated if name not in here]
    absent = tuple(name for name in missing if stated[name].mask == "withhold")
    problems = verdict.problems + tuple(
        f"{name}: there is no such column here" for name in missing if name not in absent
    )
    # A generated column is made of what has been masked already.
    columns = tuple(
        ColumnRule(one.column, one.privacy, one.id)
        for one in verdict.columns
        if one.privacy and not here[one.column].is_generated
    )
    if not columns and not absent and not problems:
        return None
    return LocalRules(columns=columns, masking=verdict, absent=absent, problems=problems)


def _facts(connection: Connection[Any], schemas: Collection[TableSchema]) -> list[TableFacts]:
    rows = connection.cursor(row_factory=dict_row).execute(
        _BINDINGS, {"oids": [schema.oid for schema in schemas]}
    )
    bindings = {row["oid"]: row for row in rows.fetchall()}
    return [_table_facts(schema, bindings[schema.oid]) for schema in schemas]


def _table_facts(schema: TableSchema, bindings: Mapping[str, Any]) -> TableFacts:
    # Without a key, rows are found by all their values. Test:
    # test_rows_of_a_table_without_a_key_are_found_by_their_masked_values.
    identity = schema.key or tuple(column.name for column in schema.writable)
    return TableFacts(
        table=schema.name,
        columns=tuple(
            ColumnFacts(
                column.name,
                column.sql_type,
                not_null=column.name in bindings["required"],
                is_generated=column.is_generated,
            )
            for column in schema.columns
        ),
        identity=identity,
        uniques=tuple(tuple(columns) for columns in json.loads(bindings["uniques"])),
        references=tuple(
            Reference(tuple(columns), TableName(schema_name, name), tuple(to))
            for columns, schema_name, name, to in json.loads(bindings["references"])
        ),
        primary_key=schema.key,
    )
