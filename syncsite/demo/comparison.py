"""Holds the rows of a table in one database against those in another. Knows SQL only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``missing``: rows that only production has; ``unexpected``: rows that only the local database has."""

    table: str
    production: int
    local: int
    missing: int
    unexpected: int

    @property
    def is_equal(self) -> bool:
        return not self.missing and not self.unexpected


def compare(production: psycopg.Connection[Any], local: psycopg.Connection[Any], table: str) -> Comparison:
    """Compare all columns of all rows of *table*, in PostgreSQL's text form. Order does not count."""
    name = sql.Identifier(table)
    description = production.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(name)).description or []
    texts = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(column.name)) for column in description
    )
    query = sql.SQL("SELECT {} FROM {}").format(texts, name)
    wanted, found = Counter(production.execute(query)), Counter(local.execute(query))
    return Comparison(
        table=table,
        production=wanted.total(),
        local=found.total(),
        missing=(wanted - found).total(),
        unexpected=(found - wanted).total(),
    )
