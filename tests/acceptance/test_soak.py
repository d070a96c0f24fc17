"""A few short seeds of the fault harness; `python -m tests.acceptance.soak` runs as many as there is time for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncsite.demo.postgres import PostgresServer
from tests.acceptance.soak.faults import FAULTS
from tests.acceptance.soak.rounds import Deck, Report, run_world
from tests.acceptance.soak.world import running_servers

Servers = tuple[PostgresServer, PostgresServer]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with running_servers() as servers:
        yield servers


@pytest.mark.xdist_group("soak")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_breaks_production_and_the_local_rows_are_the_same_afterwards(
    servers: Servers, tmp_path: Path, seed: int
) -> None:
    report = Report()
    run_world(
        servers,
        tmp_path / "soak",
        seed,
        rounds=1,
        faults_a_round=4,
        deck=iter(Deck(seed, [*FAULTS])),
        report=report,
    )
    assert report.faults.total() == 4
    assert report.judged.records > 100 and report.judged.rows > 100
