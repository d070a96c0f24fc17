"""The benchmarks' workloads, at sizes that take no time: each replays to its source's rows, in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.archives import Stream
from benchmarks.figures import Figures
from benchmarks.report import BEGIN, END, Result, median, write
from benchmarks.servers import checksum, copy_rows, value
from benchmarks.source import Source, new_source
from benchmarks.workloads import NAMES, workload
from syncdata.changes.position import parse_lsn
from syncsite.demo.postgres import PostgresServer
from tests.world import World

RECORDS = 600
Forms = dict[str, Callable[[Stream, Source, Path], object]]
FORMS: Forms = {
    "plain": lambda stream, source, directory: stream.write_plain(directory, source.types()),
    "headed": lambda stream, source, directory: stream.write_headed(directory),
    "small files": lambda stream, source, directory: stream.write_headed(
        directory, files=7, compression="zstd"
    ),
}
# A thousand tables differ from three hundred in nothing but the time.
WORKLOADS = [name for name in NAMES if name != "W8/1000"]


@pytest.fixture
def make_source(postgres: PostgresServer, tmp_path: Path) -> Iterator[Callable[[str], Source]]:
    with ExitStack() as cleanup:
        yield lambda name: cleanup.enter_context(new_source(postgres, workload(name, RECORDS), tmp_path))


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_form_of_a_workloads_files_replays_to_its_sources_rows(
    name: str, make_source: Callable[[str], Source], make_world: Callable[..., World]
) -> None:
    source = make_source(name)
    worlds = {form: _world_before_the_work(make_world(), source) for form in FORMS}
    source.work()
    stream = source.archive()
    assert stream.records >= min(RECORDS, 20) * 0.9
    for form, world in worlds.items():
        FORMS[form](stream, source, world.archive)
        result = world.sync()
        records = result.records_added + result.records_updated + result.records_deleted
        assert (form, records, result.blocked) == (form, stream.records, ())
        found = checksum(world.database.server, world.database.name, source.workload.tables)
        assert (form, found) == (form, source.checksum)


def test_a_workload_is_the_same_work_each_time(postgres: PostgresServer, tmp_path: Path) -> None:
    work, totals = workload("W2", RECORDS), []
    for _ in range(2):
        with new_source(postgres, work, tmp_path) as source:
            source.work()
            totals.append(
                value(postgres, source.database, "SELECT (count(*), sum(id), sum(amount)) FROM account")
            )
    assert totals[0] == totals[1]


def test_files_of_one_record_each_are_a_chain_of_their_own(
    make_source: Callable[[str], Source], make_world: Callable[..., World], tmp_path: Path
) -> None:
    source = make_source("W1")
    world = _world_before_the_work(make_world(), source)
    source.work()
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    paths = source.archive().write_one_record_each(waiting, world.archive, 4)
    for path in paths:
        path.rename(world.archive / path.name)
        assert world.sync().records_added == 1
    assert world.value("SELECT count(*) FROM account") == 4


def test_a_stream_ends_with_the_last_transaction(make_source: Callable[[str], Source]) -> None:
    source = make_source("W3")
    source.work()
    stream = source.archive()
    lsns = [lsn for lsn, _ in stream]
    assert lsns == sorted(lsns)
    assert stream.last_commit_lsn == lsns[-1] < parse_lsn(source.end_lsn)
    assert (stream.transactions, stream.records) == (RECORDS // 10, RECORDS)


def test_a_page_gets_the_medians_between_its_marks_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = Result(machine={"cores": "2"})
    for seconds in (1.0, 5.0, 2.0):
        result.add("W1", "native subscription", Figures(records=100, seconds=seconds * 2))
        result.add(
            "W1", "plain files", Figures(records=100, seconds=seconds, client_s=0.001, peak_mib=seconds)
        )
    result.add("W8", "at rest", Figures(records=0, seconds=20, client_s=0.02, server_s=0.1))
    write(result, page)
    lines = page.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["before", "after"]
    assert "old" not in lines
    assert "| plain files | 50 | 2.00 of native subscription | 10.0 |  |  | 5 MiB |" in lines
    assert "| at rest |  |  | 0.10% of a core | 0.50% of a core |  |  |" in lines
    assert median(result.runs["W1"]["plain files"]).seconds == 2.0
    assert page.with_suffix(".json").exists()


def _world_before_the_work(world: World, source: Source) -> World:
    """Give *world* the source's tables and first rows, and whitelist them."""
    tables = source.workload.tables
    world.execute(*source.workload.schema)
    with source.server.connect(source.database) as production, world.database.connect() as local:
        copy_rows(production, local, tables)
    world.whitelist(*tables)
    return world
