"""What sequences must reach is read from the rows of a plan."""

from __future__ import annotations

import pytest

from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import Shape, TablePlan
from syncdata.apply.postgres.sequences import highest_written
from syncdata.changes.names import TableName

SCHEMA = TableSchema(
    name=TableName("public", "t"),
    oid=1,
    columns=tuple(Column(name=name, sql_type="int", type=ColumnType()) for name in ("id", "n")),
    key=("id",),
)


@pytest.mark.parametrize(
    ("values", "highest"),
    [
        ([], None),
        ([3, "20", 7], 20),
        (["-5", None], -5),
        (["7.00", "6.5"], 7),
        (["NaN", "Infinity", "x", None, True], None),
        (["1e400", "4"], 4),
        (["9223372036854775807", "9223372036854775808"], 2**63 - 1),
    ],
)
def test_the_highest_whole_number_counts(values: list[object], highest: int | None) -> None:
    rows = [(n, value) for n, value in enumerate(values)]
    plan = TablePlan(schema=SCHEMA, writes={Shape("upsert", ("id", "n")): rows})
    assert highest_written(plan, "n") == highest


def test_rows_of_all_shapes_count_and_a_moved_row_by_the_key_that_it_gets() -> None:
    plan = TablePlan(
        schema=SCHEMA,
        writes={
            Shape("move", ("id", "n")): [("99", 7, 1), ("98", "8", 1)],
            Shape("update", ("id",)): [("5",)],
            Shape("upsert", ("n",)): [(100,)],
        },
    )
    assert highest_written(plan, "id") == 8
