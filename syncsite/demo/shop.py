"""The shop of compose.yaml: opens it, lets it trade, and holds the local rows against production's.

    python -m syncsite.demo.shop open | trade [--seconds S] | compare [--within S]

Knows where both databases are; knows nothing of how the rows travel. Passwords: PGPASSWORD.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from syncsite.demo.comparison import Comparison, compare
from syncsite.demo.scenario import is_as_expected
from syncsite.demo.traffic import (
    PRIVATE,
    PUBLISHED,
    SCHEMA,
    UNWANTED,
    WHITELIST,
    Connect,
    open_shop,
    trading,
)

PRODUCTION = "host=production-db user=postgres dbname=shop"
LOCAL = "host=local-db user=postgres dbname=shop"
WRITERS, PAUSE_S = 4, 0.015
WHY_EMPTY = {UNWANTED: "not whitelisted", PRIVATE: "not published"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    production, local = _connect_to(options.production), _connect_to(options.local)
    if options.action == "open":
        return _open(production, local)
    if options.action == "trade":
        return _trade(production, options.seconds)
    return _compare(production, local, within_s=options.within)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shop", description="The shop whose rows travel in compose.yaml.")
    parser.add_argument("--production", default=PRODUCTION, metavar="CONNINFO", help="(%(default)s)")
    parser.add_argument("--local", default=LOCAL, metavar="CONNINFO", help="(%(default)s)")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("open", help="make the tables on both sides, and stock production's, unless done")
    trade = actions.add_parser("trade", help="let production trade on several connections at a time")
    trade.add_argument("--seconds", type=float, default=30.0, metavar="S")
    comparing = actions.add_parser("compare", help="compare every row; exit status 1 when any differs")
    comparing.add_argument("--within", type=float, default=60.0, metavar="S", help="wait so long for it")
    return parser


def _connect_to(conninfo: str) -> Connect:
    return functools.partial(psycopg.connect, conninfo, options="-c timezone=UTC")


def _open(production: Connect, local: Connect) -> int:
    if not _has_tables(production):
        open_shop(production)
    if not _has_tables(local):
        with local() as connection:
            connection.execute(SCHEMA)
    print("the shop is open")
    return 0


def _trade(production: Connect, seconds: float) -> int:
    end = time.monotonic() + seconds
    with trading(production, writers=WRITERS, pause_s=PAUSE_S) as traffic:
        while time.monotonic() < end:
            traffic.check()
            time.sleep(0.1)
    print(f"{traffic.committed:,} transactions, and {traffic.rolled_back:,} rolled back")
    return 0


def _compare(production: Connect, local: Connect, *, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    while not all(map(is_as_expected, compared := _compared(production, local))):
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    for table in compared:
        print(_describe(table))
    return 0 if all(map(is_as_expected, compared)) else 1


def _compared(production: Connect, local: Connect) -> list[Comparison]:
    with production() as source, local() as target:
        return [compare(source, target, table) for table in (*PUBLISHED, PRIVATE)]


def _describe(table: Comparison) -> str:
    sides = f"{table.table:<16}{table.production:>7,} rows in production"
    if not is_as_expected(table):
        difference = f"{table.missing:,} missing, {table.unexpected:,} unexpected"
        return f"{sides} <> {table.local:,} rows in local: {difference}"
    if table.table in WHITELIST:
        return f"{sides} = {table.local:,} rows in local"
    return f"{sides}, {table.local:,} rows in local: {WHY_EMPTY[table.table]}"


def _has_tables(connect: Connect) -> bool:
    with connect() as connection:
        row: Any = connection.execute("SELECT to_regclass('public.customers') IS NOT NULL").fetchone()
    return bool(row[0])


if __name__ == "__main__":
    sys.exit(main())
