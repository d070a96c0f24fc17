"""What a table is held for, in words that the archive's writer cannot make into lines of ours."""

from __future__ import annotations

import pytest

from syncdata.apply.plan.drift import Baseline
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.state.published import Known, look
from syncdata.changes.catalog import PublishedTable
from syncdata.changes.names import TableName
from tests.catalogs import column, table

T = TableName("public", "t")
FORGED = "x\n2026-11-28 02:00:00 ERROR forged"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (table("t", "c integer"), table("t", column("c", FORGED, number=1))),
        (table("t", "c integer"), table("t", column(FORGED, "integer", number=1))),
        (table("t", "c integer"), table("t", "c integer", column(FORGED, "integer", number=2, filled=True))),
        (table("t", "c integer"), table("t", "c integer", column_list=("c",), key=(FORGED,))),
    ],
    ids=["type", "renamed", "added", "key"],
)
def test_a_name_of_the_archive_forges_no_line(before: PublishedTable, now: PublishedTable) -> None:
    c = Column(name="c", sql_type="integer", type=ColumnType())
    here = TableSchema(name=T, oid=2, columns=(c,), key=("c",))

    found = look(T, Known(baseline=Baseline(before)), now, here)

    assert found.error is not None
    for text in (str(found.error), *map(str, found.known.marks)):
        assert "forged" not in text or text.isprintable()
    assert any("forged" in text for text in (str(found.error), *map(str, found.known.marks)))
