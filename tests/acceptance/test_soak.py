"""A few short seeds of the fault harness; `python -m tests.acceptance.soak` runs more of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from syncsite.demo.postgres import PostgresServer
from tests import processes
from tests.acceptance.soak import rounds
from tests.acceptance.soak.faults import FAULTS, Harmless
from tests.acceptance.soak.judge import Judge, Observer
from tests.acceptance.soak.model import TABLES, Plan
from tests.acceptance.soak.rounds import Breaker, Deck, Report, run_world
from tests.acceptance.soak.verified import (
    KINDS,
    Difference,
    Verdict,
    Verification,
    disagreements,
    read_verdicts,
    spoil,
    whole_rounds,
)
from tests.acceptance.soak.world import SoakError, World, running_servers, running_world, until
from tests.processes import ROOT

Servers = tuple[PostgresServer, PostgresServer]


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Servers]:
    with running_servers() as servers:
        yield servers


# Nearly all there are; the writers rest longer than in the command, and the command has more rounds.
FAULTS_OF_SEEDS = {
    1: (
        *("daemon killed at a step", "connection cut in a transfer", "file damaged", "table resynced"),
        *("local server crashed", "resync asked of the daemon"),
    ),
    2: (
        *("archiver killed at a step", "connection stalled", "file missing", "production crashed"),
        *("backends terminated", "disk full"),
    ),
    3: (
        *("local database restored", "file half visible", "archiver killed", "table paused"),
        *("connection refused", "clock stepped"),
    ),
    4: (
        *("production failed over", "daemon killed", "table locked", "lock timeouts"),
        *("connection slow", "disk read only"),
    ),
    5: (
        *("daemon frozen", "archiver killed again and again", "table off the whitelist", "snapshot taken"),
        *("file duplicated", "connection cut"),
    ),
}


@pytest.mark.xdist_group("soak")
@pytest.mark.parametrize("seed", FAULTS_OF_SEEDS)
def test_whatever_breaks_production_and_the_local_rows_are_the_same_afterwards(
    own_servers: Servers, tmp_path: Path, seed: int
) -> None:
    report, faults = Report(), FAULTS_OF_SEEDS[seed]
    run_world(
        own_servers,
        tmp_path / "soak",
        seed,
        rounds=1,
        faults_a_round=len(faults),
        deck=iter(faults),
        at_once=3,
        report=report,
        writer_pause_s=0.15,
        verifies=True,
    )
    # A step may not be come to, in any of the tries.
    assert all("at a step" in name for name in Counter(faults) - report.faults)
    assert not report.faults - Counter(faults)
    assert report.judged.records > 100 and report.judged.rows > 100
    verified = report.judged.verified
    assert verified.equal > 50 and verified.found == verified.spoilt


@pytest.mark.xdist_group("soak")
def test_the_harness_finds_what_is_made_to_differ(own_servers: Servers, tmp_path: Path) -> None:
    with running_world(*own_servers, tmp_path / "soak", "differs") as world:
        judge = Judge(world)
        judge.settle()
        judge.judge()

        def require_found(complaint: str, change: str, back: str) -> None:
            _execute(world, change)
            with pytest.raises(SoakError, match=complaint):
                judge.judge()
            _execute(world, back)

        require_found(
            "booking is shown as equal, but 1 rows are missing here",
            "CREATE TABLE kept AS SELECT * FROM booking WHERE id = 7; DELETE FROM booking WHERE id = 7",
            "INSERT INTO booking SELECT * FROM kept; DROP TABLE kept",
        )
        require_found(
            "bag is shown as equal, but 0 rows are missing here.* and 1 should not be there",
            "INSERT INTO bag SELECT * FROM bag LIMIT 1",
            "DELETE FROM bag WHERE ctid = (SELECT max(ctid) FROM bag)",
        )
        require_found(
            "beat went back",
            "UPDATE data_sync_checkpoints SET file = 'changes_2026.json' WHERE table_name = 'beat'",
            "UPDATE data_sync_checkpoints c SET file = o.file FROM data_sync_checkpoints o"
            " WHERE c.table_name = 'beat' AND o.table_name = 'bag'",
        )
        require_found(
            "the audit log counts 1 INSERT of seat, the archive 0",
            "INSERT INTO data_sync_logs (table_name, status, action, records_added)"
            " VALUES ('seat', 'SUCCESS', 'sync', 1)",
            "DELETE FROM data_sync_logs WHERE table_name = 'seat' AND action = 'sync'",
        )
        judge.judge()
        _require_seen_from_outside(world, judge)
        _require_mended_after_an_error(world, judge)


def _require_seen_from_outside(world: World, judge: Judge) -> None:
    """Money that is gone for a moment is seen by the reader, though it is back when all is judged."""
    reads = judge.judged.reads
    with pytest.raises(SoakError, match="the sum of the balances"), Observer(world.local, judge.judged):
        _execute(world, "UPDATE account SET balance = balance - 1 WHERE id = 1")
        until(lambda: judge.judged.reads > reads + 6, lambda: "nobody has looked")
        _execute(world, "UPDATE account SET balance = balance + 1 WHERE id = 1")
    judge.judge()


def _require_mended_after_an_error(world: World, judge: Judge) -> None:
    """A round that fails leaves nothing broken, or it would spoil the seeds after it."""
    chance = Random(1)
    for name in ("production crashed", "local server crashed", "connection refused", "archiver frozen"):
        with pytest.raises(ZeroDivisionError), FAULTS[name](world, chance):
            raise ZeroDivisionError
    judge.settle()
    judge.judge()


def _execute(world: World, statements: str) -> None:
    with world.local.connect(autocommit=True) as connection:
        connection.execute(statements)


def test_a_seed_plans_the_same_transactions_each_time_and_another_one_others() -> None:
    one, again, other = (list(islice(Plan(seed), 300)) for seed in ("1 1 0", "1 1 0", "1 1 1"))
    assert one == again != other
    assert {transaction.ending for transaction in one} == {
        *("commit", "roll back", "prepare and commit", "prepare and roll back")
    }


def test_a_fault_counts_when_it_has_bitten_and_is_tried_again_alone_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    def fault(name: str, *signs: bool | None) -> None:
        left = iter(signs)

        @contextmanager
        def broken(world: World, chance: Random) -> Iterator[Callable[[], object]]:
            begun.append(name)
            if (sign := next(left)) is None:
                raise Harmless
            yield lambda: sign

        monkeypatch.setitem(FAULTS, name, broken)

    monkeypatch.setattr(rounds, "_BITE_S", 0.05)
    fault("always", True)
    fault("later", None, False, True)
    fault("never", *[False] * 9)
    breaker = Breaker(None, Random(1), ["later", "never", "always"], 2)  # type: ignore[arg-type]
    breaker.run()
    assert breaker.bitten == {"always": 1, "later": 1}
    assert breaker.done[0] == "later with never" and begun.count("never") == 4
    assert breaker.done[-1] == "never"


def test_every_fault_comes_up_before_any_comes_up_again() -> None:
    names = [*FAULTS]
    assert sorted(islice(Deck(1, names), len(names))) == sorted(names)


def test_a_program_whose_clock_is_wrong_reads_its_state_file(tmp_path: Path) -> None:
    (clock := tmp_path / "clock").write_text("86400")
    (tmp_path / "state.json").write_text('{"version": 1, "last_file_time": "2026-02-05T10:30:00Z"}')
    script = tmp_path / "read.py"
    script.write_text(
        "import sys, datetime, pathlib\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.acceptance.soak.deadly import _set_clock\n"
        "right = datetime.datetime.now()\n"
        "_set_clock(pathlib.Path(sys.argv[1]))\n"
        "from syncdata.predecessor.statefile import load_state\n"
        "time = load_state(pathlib.Path(sys.argv[2])).last_file_time\n"
        "print(time, (datetime.datetime.now() - right).days)\n"
    )
    done = processes.run(
        str(script), str(clock), str(tmp_path / "state.json"), env={"PATH": os.environ["PATH"]}, timeout=60
    )
    assert done.stdout == "2026-02-05 10:30:00+00:00 1\n", done.stderr


def test_the_report_has_the_totals_in_one_block() -> None:
    report = Report(seeds=[3, 4], rounds=5, kills=6, minutes=7.25)
    report.faults.update({"disk full": 2})
    report.failures += [SoakError("a row is missing", "lost"), SoakError("nothing arrives")]
    report.judged.verified.count([_verdict("a", 1), _verdict("a", 2, is_equal=None)])
    lines = str(report).splitlines()
    assert lines[0] == "minutes 7.2; seeds 2 (3 to 4); rounds 5"
    assert "processes killed: 6; ended otherwise: none" in lines
    assert "checks: 2, equal 1, different 0, not comparable 1; whole rounds of a table: 0" in lines
    assert "failures: lost 1, doubled 0, wrong 0, false alarm 0, not found 0, other 1" in lines
    assert lines[-2:] == ["1 faults, each 2 to 2 times, 2 together:", "      2 disk full"]


def _verdict(table: str, chunk: int, is_equal: bool | None = True, **values: Any) -> Verdict:
    parts = {"number": chunk, "round": 7, "bounds": f"chunk {chunk}", "rows": 10, "rows_here": 10, "seen": 0}
    flags = {"is_of_number": False, "is_last": False, "reason": ""}
    return Verdict(**{"table": table, "chunk": chunk, "is_equal": is_equal, **parts, **flags, **values})


def test_a_round_is_whole_when_no_chunk_of_it_lacks_and_it_has_begun_since() -> None:
    whole = [_verdict("a", 1), _verdict("a", 2), _verdict("a", 3, is_last=True)]
    again = _verdict("a", 2, is_equal=False, number=9)
    assert whole_rounds([*whole, again], {}) == {"a": [whole[0], again, whole[2]]}
    assert whole_rounds(whole, {"a": 6}) == {"a": whole}
    assert whole_rounds(whole, {"a": 7}) == {}
    assert [*map(len, (whole_rounds(whole[1:], {}), whole_rounds(whole[:2], {})))] == [0, 0]
    assert whole_rounds([whole[0], whole[2]], {}) == {}


def test_the_judge_of_verification_finds_false_alarms_and_differences_that_were_not_found() -> None:
    rows, missing, changed = {"a": 20}, Difference(missing=1, surplus=0), Difference(missing=1, surplus=1)

    def said(second: Verdict, difference: Difference | None = None) -> list[str]:
        differing = {} if difference is None else {"a": difference}
        return disagreements({"a": [_verdict("a", 1), second]}, differing, rows)

    equal, found = _verdict("a", 2), _verdict("a", 2, is_equal=False, reason="11 here")
    assert said(equal) == said(found, missing) == said(found, changed) == []
    assert said(found) == ["false alarm: a is equal, but not chunk 2: 11 here"]
    (complaint,) = said(equal, changed)
    assert complaint.startswith("not found: a has ")
    assert said(_verdict("a", 2, rows=9)) == ["a: the chunks have 19 rows together, production 20"]
    # Where the number of rows alone is compared, a changed value cannot be found.
    number = [_verdict("a", 1, is_of_number=True)]
    assert disagreements({"a": number}, {"a": changed}, rows) == []
    assert len(disagreements({"a": number}, {"a": missing}, rows)) == 1


@pytest.mark.xdist_group("soak")
def test_each_way_of_spoiling_rows_makes_a_table_differ_and_its_verdicts_are_kept(
    own_servers: Servers, tmp_path: Path
) -> None:
    with running_world(*own_servers, tmp_path / "soak", "spoilt") as world:
        judge = Judge(world)
        judge.settle()
        Verification(world, judge.compare)
        for kind in KINDS:
            for table in TABLES if "partition" not in kind else ("parts",):
                before = judge.compare(table)
                with world.local.connect() as connection:
                    connection.execute("SET session_replication_role = replica")
                    changed = spoil(connection, table, kind, Random(1))
                    connection.commit()
                    assert (judge.compare(table)[0] != before[0]) == (changed > 0), (table, kind)
                    assert changed or kind != "a row too many"
        with world.local.connect() as connection:
            connection.execute("SET session_replication_role = replica")
            for is_equal in (True, False):
                connection.execute(
                    "INSERT INTO data_sync_verifications (table_name, round, chunk, is_equal)"
                    " VALUES ('bag', 1, 1, %s) ON CONFLICT (table_name, round, chunk) DO UPDATE SET"
                    " is_equal = excluded.is_equal",
                    (is_equal,),
                )
            assert [verdict.is_equal for verdict in read_verdicts(connection)] == [True, False]
