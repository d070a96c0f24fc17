"""A cycle holds its tables' rows to the checks of the archive: exactly where they stand, and not for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.counts import Counts
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group
from syncdata.apply.plan.batches import Batch, BatchFile, Limits, Segment
from syncdata.apply.position import START, Advance, Position
from syncdata.apply.result import CycleResult, Verified
from syncdata.apply.sink import Outcome, Verdict
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.verifying import Budget, Verifying
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.changes.catalog import Catalog, catalog_comment
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.verification import Check, check_comment, parse_check
from syncdata.errors import ApplyError, SyncError
from tests.catalogs import put
from tests.catalogs import table as published
from tests.framed import Record, Writer, file_name

ORDERS, USERS = TableName("public", "orders"), TableName("public", "users")


@dataclass
class Rows:
    """Keeps ids by table, counts them for each check, and refuses those of *refused*."""

    refused: Collection[int] = ()
    rows: dict[TableName, list[int]] = field(default_factory=dict)
    batches: int = 0
    asked: list[tuple[int, str, Position]] = field(default_factory=list)
    catalogs: list[Catalog | None] = field(default_factory=list)
    ends: list[tuple[int, Position]] = field(default_factory=list)

    def begin_file(self, tables: Collection[TableName]) -> None:
        pass

    def prepare(self, batch: Batch) -> list[tuple[TableName, int]]:
        return [
            (TableName("public", located.record.table), (located.record.data or {})["id"])
            for located in batch.records
        ]

    def apply(self, prepared: list[tuple[TableName, int]], advance: Advance) -> Outcome:
        self.batches += 1
        outcome = Outcome()
        for table, number in prepared:
            if table not in advance.watermarks:
                continue
            if number in self.refused:
                outcome.blocked[table] = ApplyError("refused", table=str(table))
            else:
                self.rows.setdefault(table, []).append(number)
                outcome.counts.setdefault(table, Counts()).added += 1
        return outcome

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        pass

    def unblock(self, tables: Collection[TableName]) -> None:
        pass

    def verify(
        self, checks: Sequence[Check], published: Catalog | None, *, position: Position
    ) -> list[Verdict]:
        self.asked += [(check.chunk, position.file, position) for check in checks]
        self.catalogs += [published] * len(checks)
        verdicts = []
        for check in checks:
            rows = len(self.rows.get(check.name, []))
            verdicts.append(
                Verdict(table=check.name, check=check, is_equal=rows == check.rows, rows_here=rows)
            )
        return verdicts

    def pass_over(self, ends: Sequence[Check], *, position: Position) -> None:
        self.ends += [(end.chunk, position) for end in ends]


class Clock:
    """Monotonic seconds that pass as the test says: so many at each look."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def check(chunk: int, rows: int, *, table: str = "orders", lsn: int = 10**6, **options: Any) -> str:
    made = Check(
        schema="public",
        table=table,
        columns=("id",),
        rows=rows,
        lsn=format_lsn(lsn),
        chunk=chunk,
        seen=rows,
        **({"round": 1} | options),
    )
    return check_comment(made).decode().rstrip()


def order(number: int, *, table: str = "orders") -> Record:
    return {"table": table, "op": "INSERT", "data": {"id": number}}


@dataclass
class World:
    folder: Path
    sink: Rows = field(default_factory=Rows)
    clock: Clock = field(default_factory=Clock)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(
        self,
        *tables: TableName,
        at: Position = START,
        verifies: bool = True,
        behind: Collection[TableName] = (),
        deadline: float | None = None,
    ) -> CycleResult:
        verifying = Verifying(self.sink, Budget(now_s=0.0), stop=self.stop, clock=self.clock)
        cycle = Cycle(
            open_archive(LocalSettings(directory=self.folder)),
            self.sink,
            limits=Limits(batch_records=1_000, batch_bytes=1_000_000),
            stop=self.stop,
            verifying=verifying if verifies else None,
            deadline=deadline,
        )
        checkpoints = [TableCheckpoint(table=table, position=at) for table in tables or (ORDERS,)]
        checkpoints += [TableCheckpoint(table=table, position=START) for table in behind]
        return cycle.run(checkpoints)

    @property
    def chunks(self) -> list[int]:
        return [chunk for chunk, _, _ in self.sink.asked]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_rows_are_held_to_a_check_where_it_stands(world: World) -> None:
    orders = [order(number) for number in range(5)]
    Writer(world.folder).changes(
        1, [(10, orders[:2]), (20, [check(1, 2), check(2, 3)]), (30, orders[2:]), (40, [check(3, 5)])]
    )
    result = world.run()
    assert world.chunks == [1, 2, 3]
    assert result.verified == {ORDERS: Verified(equal=2, differing=1)}
    assert [(name, position.record_number) for _, name, position in world.sink.asked] == [
        (file_name(1), 2),
        (file_name(1), 2),
        (file_name(1), 5),
    ]


def test_checks_in_files_that_go_together_are_met_where_they_stand(world: World) -> None:
    writer = Writer(world.folder)
    for number in range(1, 30):
        ends = [(number * 10 + 5, [check(number, number)])] if number % 7 == 0 else []
        begins = [(number * 10 - 5, [check(number, number - 1)])] if number % 11 == 0 else []
        writer.changes(number, [*begins, (number * 10, [order(number)]), *ends])
    result = world.run()
    assert result.verified == {ORDERS: Verified(equal=6)}
    assert result.files_processed == 29
    assert world.sink.batches < 29


def test_files_whose_checks_are_not_wanted_go_together_as_they_did(world: World) -> None:
    writer = Writer(world.folder)
    for number in range(1, 30):
        writer.changes(
            number, [(number * 10, [order(number)]), (number * 10 + 5, [check(1, 1, table="users")])]
        )
    world.run()
    batches = world.sink.batches
    world.sink = Rows()
    world.run(verifies=False)
    # How many go together depends on how long the ones before took.
    assert world.chunks == [] and batches < 10 and world.sink.batches < 10


def test_a_table_that_a_batch_blocked_is_held_to_nothing(world: World) -> None:
    world.sink.refused = {1}
    both = [order(1), order(1_000, table="users")]
    Writer(world.folder).changes(1, [(10, both), (20, [check(1, 1), check(2, 1, table="users")])])
    assert world.run(ORDERS, USERS).verified == {USERS: Verified(equal=1)}


def test_rows_of_a_newer_snapshot_are_held_to_no_check_before_it(world: World) -> None:
    writer = Writer(world.folder)
    writer.changes(1, [(10, [order(1)])])
    writer.changes(2, [(20, [order(2)]), (30, [check(1, 1, lsn=30), check(2, 1, lsn=50)])])
    world.run()
    source_id = world.sink.asked[-1][2].source_id
    world.sink = Rows(rows={ORDERS: [1]})
    at = Position(file=file_name(1), is_finished=True, commit_lsn=40, source_id=source_id)
    assert world.run(at=at).verified == {ORDERS: Verified(equal=1)}
    assert world.chunks == [2]


@pytest.mark.parametrize("begins_with_records", [True, False])
def test_each_check_comes_with_the_catalog_that_holds_at_its_place(
    world: World, begins_with_records: bool
) -> None:
    before, behind = published("orders", "id integer"), published("orders", "id integer", "price text")
    first, second = put(world.folder, before), put(world.folder, behind)
    announced = catalog_comment(second, "0/15").decode().rstrip()
    rows = 1 if begins_with_records else 0

    def begins(lsn: int) -> list[tuple[int, list[Record | str]]]:
        return [(lsn, [order(lsn)])] if begins_with_records else []

    lines = [check(1, rows), announced, check(2, rows), check(3, rows)]
    writer = Writer(world.folder)
    writer.changes(1, [*begins(10), (20, lines)], catalog=first, catalog_lsn=5)
    writer.changes(2, [*begins(25), (30, [check(4, 2 * rows), announced])], catalog=first, catalog_lsn=5)
    assert world.run().verified == {ORDERS: Verified(equal=4)}
    assert world.chunks == [1, 2, 3, 4]
    assert [catalog and catalog.tables for catalog in world.sink.catalogs] == [
        (before,),
        (behind,),
        (behind,),
        (before,),
    ]


def test_a_plain_file_has_no_checks(world: World) -> None:
    text = '{"table": "orders", "op": "INSERT", "data": {"id": 1}, "ts": "2026-02-05 10:30:00"}\n'
    (world.folder / file_name(1)).write_text(text + check(1, 1) + "\n")
    assert world.run().verified == {} and world.sink.rows == {ORDERS: [1]}


def test_a_stop_ends_verifying_between_two_checks(world: World) -> None:
    Writer(world.folder).changes(1, [(10, [order(1)]), (20, [check(chunk, 10_000) for chunk in range(100)])])
    verify = world.sink.verify

    def verify_and_stop(*args: object, **options: object) -> list[Verdict]:
        world.stop.set()
        return verify(*args, **options)  # type: ignore[arg-type]

    world.sink.verify = verify_and_stop  # type: ignore[method-assign]
    world.run()
    assert len(world.chunks) == 1


def test_far_behind_checks_are_passed_over_once_the_time_is_spent(world: World) -> None:
    writer = Writer(world.folder)
    for number in range(1, 40):
        writer.changes(number, [(number * 10, [order(number)]), (number * 10 + 5, [check(number, number)])])
    world.clock.step_s = 0.2  # each look at the clock comes so much later
    world.run()
    assert 0 < len(world.chunks) < 20
    assert len(world.sink.rows[ORDERS]) == 39


def test_each_check_gets_its_turn(world: World) -> None:
    writer = Writer(world.folder)
    taken: set[tuple[int, int]] = set()
    rounds = range(1, 17)
    for number in rounds:
        lines = [check(chunk, 10_000, round=number) for chunk in range(1, 41)]
        writer.changes(number, [(number * 10, [order(number)]), (number * 10 + 5, lines)])
    verify = world.sink.verify

    def noted(checks: Sequence[Check], *args: Any, **options: Any) -> list[Verdict]:
        taken.update((check.chunk, check.round) for check in checks)
        return verify(checks, *args, **options)

    world.sink.verify = noted  # type: ignore[method-assign]
    world.clock.step_s = 0.5
    world.run()
    assert {chunk for chunk, _ in taken} == set(range(1, 41))
    assert len(taken) < 16 * 40 / 4


def test_a_round_whose_last_check_is_passed_over_ends_all_the_same(world: World) -> None:
    writer = Writer(world.folder)
    for number in range(1, 40):
        lines = [check(number, number, is_last=number == 39)]
        writer.changes(number, [(number * 10, [order(number)]), (number * 10 + 5, lines)])
    writer.changes(40, [(1_000, [order(40)])])
    world.clock.step_s = 0.2
    world.run()
    assert 39 not in world.chunks
    assert [(chunk, position.file) for chunk, position in world.sink.ends] == [(39, file_name(40))]


def test_a_round_that_is_overtaken_by_the_next_one_is_not_ended_anew(world: World) -> None:
    budget = Budget(now_s=0.0)
    verifying = Verifying(world.sink, budget, stop=world.stop, clock=world.clock)
    budget.spend(30, now_s=0.0)
    lines = [check(3, 1, round=number, is_last=True).encode() for number in (1, 2)]
    first, second = (found for line in lines if (found := parse_check(line)) is not None)
    assert not verifying.wanted({ORDERS: None})(first)
    world.clock.now_s = 10_000.0
    at = Position(file=file_name(1), is_finished=True)
    file = BatchFile(name=file_name(1), is_plain=False)
    segment = Segment(
        file=file,
        records=[],
        end_record=1,
        commit_lsn=10,
        skipped=0,
        repeated=0,
        size_bytes=0,
        ends_file=True,
        checks=(second,),
    )
    group = Group(position=at, watermarks={ORDERS: None})
    verifying.verify(Batch(segments=(segment,)), group)
    verifying.note_ends(group)
    assert world.chunks == [3] and world.sink.ends == []


def tables_one_of_which_is_behind(world: World) -> Position:
    writer = Writer(world.folder)
    for number in range(1, 6):
        both = [order(number), order(number, table="users")]
        checks = [check(number, number), check(number, number, table="users")]
        writer.changes(number, [(number * 10, both), (number * 10 + 5, checks)])
    world.run()
    source_id = world.sink.asked[-1][2].source_id
    world.sink = Rows(rows={ORDERS: [1, 2]})
    return Position(file=file_name(2), is_finished=True, commit_lsn=20, source_id=source_id)


def test_tables_behind_are_not_verified_while_they_catch_up(world: World) -> None:
    at = tables_one_of_which_is_behind(world)
    result = world.run(ORDERS, at=at, behind=[USERS])
    assert world.sink.rows == {ORDERS: [1, 2, 3, 4, 5], USERS: [1, 2, 3, 4, 5]}
    assert result.verified == {ORDERS: Verified(equal=3)}


def test_verifying_takes_no_time_of_tables_behind(world: World) -> None:
    at = tables_one_of_which_is_behind(world)
    verify = world.sink.verify

    def slow(*args: Any, **options: Any) -> list[Verdict]:
        world.clock.now_s += 100.0
        return verify(*args, **options)

    world.sink.verify = slow  # type: ignore[method-assign]
    # As if it had passed while the rows were looked at.
    world.run(ORDERS, at=at, behind=[USERS], deadline=time.monotonic() - 50)
    assert world.sink.rows[USERS] == [1, 2, 3, 4, 5]


@given(st.lists(st.tuples(st.floats(0, 1_000), st.floats(0.001, 5)), min_size=1, max_size=50))
def test_no_more_than_a_share_of_the_time_goes_into_verifying(steps: list[tuple[float, float]]) -> None:
    budget, now_s, spent_s = Budget(now_s=0.0), 0.0, 0.0
    for waited_s, costs_s in steps:
        now_s += waited_s
        if budget.has_left(now_s):
            now_s += costs_s
            spent_s += costs_s
            budget.spend(costs_s, now_s=now_s)
            # More than there was is a debt, of one piece of work at the most.
            assert spent_s <= Budget.AT_FIRST_S + Budget.SHARE * now_s + costs_s + 1e-6


@pytest.mark.parametrize(("idle_s", "left_s"), [(0.0, 0.5), (60.0, 3.0), (10**6, 60.0), (None, 2.0)])
def test_a_process_has_the_share_of_the_time_since_the_one_before(
    idle_s: float | None, left_s: float
) -> None:
    budget = Budget(now_s=0.0)
    budget.begin(idle_s, now_s=0.0)
    budget.spend(left_s - 0.01, now_s=0.0)
    assert budget.has_left(0.0)
    budget.spend(0.02, now_s=0.0)
    assert not budget.has_left(0.0)


def test_what_was_not_spent_is_kept_up_to_a_limit() -> None:
    budget = Budget(now_s=0.0)
    budget.spend(Budget.AT_FIRST_S + Budget.MOST_S, now_s=10**6)
    assert budget.has_left(10**6) is False
    assert budget.has_left(10**6 + Budget.AT_FIRST_S / Budget.SHARE + 1) is True
