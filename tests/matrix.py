"""The PostgreSQL versions that the tests run on: two, and with `--matrix` five, in all pairs.

A test that takes `any_postgres` runs once on each, one that takes `servers` on each pair of production and
local server. With `--matrix` all other tests stay out, and a table at the end says how each pair did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from syncsite.demo.postgres import PostgresServer
from tests.postgres import VERSIONS, all_versions


@dataclass(frozen=True, slots=True)
class Servers:
    """A production server and a local one, which may be the same."""

    source: PostgresServer
    target: PostgresServer
    versions: tuple[str, str]


@pytest.fixture
def servers(
    request: pytest.FixtureRequest,
    postgres_server: Callable[[str], PostgresServer],
    record_property: Callable[[str, object], None],
) -> Servers:
    """Every pair of the servers, one after the other."""
    source, target = request.param
    record_property("servers", (source, target))
    return Servers(postgres_server(source), postgres_server(target), request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="run the pairs alone, of versions 14 to 18")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    versions = all_versions() if metafunc.config.getoption("matrix") else VERSIONS
    if "any_postgres" in metafunc.fixturenames:
        metafunc.parametrize("any_postgres", versions, indirect=True, scope="session")
    if "servers" in metafunc.fixturenames:
        pairs = list(product(versions, versions))
        ids = [f"{source} to {target}" for source, target in pairs]
        metafunc.parametrize("servers", pairs, indirect=True, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("matrix"):
        return
    others = [item for item in items if not _is_in_matrix(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if _is_in_matrix(item)]


def _is_in_matrix(item: pytest.Item) -> bool:
    return "servers" in getattr(item, "fixturenames", ())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("matrix"):
        for line in table_of_pairs(list(_outcomes(terminalreporter.stats))):
            terminalreporter.write_line(line)


def _outcomes(stats: dict[str, list[Any]]) -> Iterator[tuple[str, str, bool, float]]:
    """Yield source, target, whether it passed, and the seconds, of each test that ran on a pair."""
    for outcome in ("passed", "failed", "error"):
        for report in stats.get(outcome, ()):
            pair = dict(report.user_properties).get("servers")
            if pair:
                yield *pair, outcome == "passed", report.duration


def table_of_pairs(outcomes: list[tuple[str, str, bool, float]]) -> list[str]:
    """Return a table of the pairs, with a row a source and a column a target."""
    cells: dict[tuple[str, str], list[tuple[bool, float]]] = defaultdict(list)
    for source, target, is_passed, seconds in outcomes:
        cells[source, target].append((is_passed, seconds))
    versions = sorted({version for pair in cells for version in pair})

    def cell(source: str, target: str) -> str:
        results = cells.get((source, target), [])
        failed = sum(not is_passed for is_passed, _ in results)
        if not results:
            return "-"
        return f"{failed} FAILED" if failed else f"{len(results)} ok {sum(s for _, s in results):3.0f} s"

    head = ["production", *(f"local {version}" for version in versions)]
    rows = [[f"PostgreSQL {source}", *(cell(source, target) for target in versions)] for source in versions]
    return ["".join(text.ljust(15) for text in row).rstrip() for row in (head, *rows)]
