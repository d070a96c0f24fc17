"""The cycle without a database: its sink is a list, as another consumer of the archive could be."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from syncdata.apply.counts import Counts
from syncdata.apply.cycle import Cycle
from syncdata.apply.plan.batches import Batch, Limits
from syncdata.apply.position import START, Advance, Position
from syncdata.apply.sink import Outcome, Sink
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.archive.archive import open_archive
from syncdata.archive.local import LocalSettings
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError, ParseError, Reason, SyncError

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
ORDERS, USERS = TableName("public", "orders"), TableName("public", "users")
Ids = list[tuple[str, int]]


@dataclass
class Listed:
    """Keeps the ids of what it is given; refuses those of *refused*."""

    refused: Collection[int] = ()
    ids: Ids = field(default_factory=list)
    advances: list[Advance] = field(default_factory=list)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)
    unblocked: set[TableName] = field(default_factory=set)

    def begin_file(self, tables: Collection[TableName]) -> None:
        pass

    def prepare(self, batch: Batch) -> Ids:
        return [(located.record.table, (located.record.data or {})["id"]) for located in batch.records]

    def apply(self, prepared: Ids, advance: Advance) -> Outcome:
        self.advances.append(advance)
        outcome = Outcome()
        for name, number in prepared:
            table = TableName("public", name)
            if table not in advance.watermarks:
                continue
            if number in self.refused:
                outcome.blocked[table] = ApplyError("refused", table=name)
            else:
                self.ids.append((name, number))
                outcome.counts.setdefault(table, Counts()).added += 1
        return outcome

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        self.blocked |= dict.fromkeys(watermarks, error)

    def unblock(self, tables: Collection[TableName]) -> None:
        self.unblocked |= set(tables)


def write(folder: Path, name: str, ids: Iterable[tuple[str, int]], end: str = "") -> None:
    """Write a plain file, each record a transaction of its own."""
    records = (
        {"table": table, "op": "INSERT", "data": {"id": number}, "ts": f"2026-02-05 10:30:{second:02}"}
        for second, (table, number) in enumerate(ids)
    )
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records) + end)


def cycle_over(folder: Path, sink: Sink[Ids], *, batch_records: int = 1) -> Cycle:
    limits = Limits(batch_records=batch_records, batch_bytes=1_000_000)
    return Cycle(open_archive(LocalSettings(directory=folder)), sink, limits=limits)


def at(position: Position = START, error: str | None = None, *tables: TableName) -> list[TableCheckpoint]:
    reason = None if error is None else Reason(text=error)
    return [TableCheckpoint(table=table, position=position, reason=reason) for table in tables or (ORDERS,)]


@pytest.mark.parametrize("batch_records", [1, 2, 100])
def test_any_sink_gets_every_record_once_and_in_order(tmp_path: Path, batch_records: int) -> None:
    write(tmp_path, FIRST, [("orders", 7), ("users", 1), ("other", 3)])
    write(tmp_path, SECOND, [("users", 2), ("orders", 8)])
    sink = Listed()
    result = cycle_over(tmp_path, sink, batch_records=batch_records).run(at(START, None, ORDERS, USERS))
    assert sink.ids == [("orders", 7), ("users", 1), ("users", 2), ("orders", 8)]
    assert (result.counts.added, result.skipped, result.files_processed) == (4, 1, 2)
    assert result.position == sink.advances[-1].end


def test_each_advance_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    write(tmp_path, FIRST, [("orders", 7), ("orders", 8), ("orders", 9)])
    sink = Listed()
    cycle_over(tmp_path, sink).run(at())
    starts, ends = [a.start for a in sink.advances], [a.end for a in sink.advances]
    assert starts == [START, *ends[:-1]]
    assert [(end.record_number, end.is_finished) for end in ends] == [(1, False), (2, False), (3, True)]


def test_a_table_that_the_sink_blocks_leaves_the_others_alone(tmp_path: Path) -> None:
    write(tmp_path, FIRST, [("orders", 7), ("users", 1), ("orders", 8), ("users", 2)])
    sink = Listed(refused={7})
    result = cycle_over(tmp_path, sink).run(at(START, None, ORDERS, USERS))
    assert sink.ids == [("users", 1), ("users", 2)]
    assert result.blocked.keys() == {ORDERS}
    assert (result.failed, result.counts.added) == (1, 2)


def test_a_table_behind_catches_up_to_the_others(tmp_path: Path) -> None:
    write(tmp_path, FIRST, [("orders", 7), ("users", 1)])
    write(tmp_path, SECOND, [("orders", 8), ("users", 2)])
    front = Position(file=FIRST, is_finished=True, record_number=2)
    sink = Listed()
    cycle_over(tmp_path, sink).run(at(front, None, ORDERS) + at(START, None, USERS))
    assert sink.ids == [("orders", 8), ("users", 1), ("users", 2)]


def test_a_broken_line_blocks_after_the_records_before_it(tmp_path: Path) -> None:
    write(tmp_path, FIRST, [("orders", 7), ("orders", 8)], end="{nonsense}\n")
    sink = Listed()
    result = cycle_over(tmp_path, sink).run(at())
    assert sink.ids == [("orders", 7)]  # record 8 may belong to the transaction of the line after it
    assert isinstance(sink.blocked[ORDERS], ParseError)
    assert result.blocked[ORDERS].line == 3


def test_what_blocked_a_table_and_has_gone_unblocks_it(tmp_path: Path) -> None:
    write(tmp_path, FIRST, [("orders", 7)])
    sink = Listed()
    cycle_over(tmp_path, sink).run(at(Position(file=FIRST, is_finished=True, record_number=1), "broken"))
    assert sink.unblocked == {ORDERS}
    assert sink.advances == []
