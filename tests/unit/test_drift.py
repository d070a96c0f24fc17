"""What is found wrong with a table becomes statements for the operator, never more than it seems to be."""

from __future__ import annotations

import pytest

from syncdata.apply.plan import drift
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.changes.names import TableName
from tests.catalogs import column, table

T = TableName("public", "t")


def local(sql_type: str, *, is_generated: bool = False) -> TableSchema:
    """The table t here, with the column c."""
    c = Column(name="c", sql_type=sql_type, type=ColumnType(), is_generated=is_generated)
    return TableSchema(name=T, oid=2, columns=(c,), key=())


EVIL = "integer; DROP TABLE users"


def test_a_type_of_the_archive_stands_in_a_statement_only_if_it_is_one() -> None:
    (finding,) = drift.differences(table("t", "c bigint"), local("uuid"))
    assert finding.remedy == "ALTER TABLE public.t ALTER COLUMN c TYPE bigint USING c::text::bigint"
    (finding,) = drift.differences(table("t", f"c {EVIL}"), local("integer"))
    assert "DROP TABLE" not in finding.remedy
    assert "ALTER" not in finding.remedy
    assert "DROP TABLE" not in drift.add_column(T, column("c", EVIL, number=1))


@pytest.mark.parametrize("generated", ["stored", ""])
def test_the_same_for_columns_that_are_generated_on_one_side(generated: str) -> None:
    there = table("t", column("c", EVIL, number=1, generated=generated))
    (finding,) = drift.differences(there, local("integer", is_generated=not generated))
    assert "DROP TABLE" not in finding.remedy


def test_a_name_with_a_line_in_it_stands_in_no_statement() -> None:
    before, now = table("t", "c integer"), table("t", column("b\nc", "integer", number=1))
    (finding,) = drift.renames(before, now, local("integer"))
    assert "ALTER" not in finding.remedy
